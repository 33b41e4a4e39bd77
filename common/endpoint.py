"""Requests to an OpenAI-compatible address: many at a time, tried again, with one sentence for what is wrong.

judge.py uses it. A try that fails for a reason that can pass (no connection, 429, 5xx, a broken reply) is repeated
after a growing random pause, or the one the server asks for with Retry-After. When all tries of a prompt fail, it is
either the prompt's fault, then that one stays without a reply, or the server's (away, too busy, answers not even a
greeting), then everything stops, also in the middle of a batch: what it would have said must not be left out.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any

from common.errors import SightRLError
from common.readers.shared import shown

Messages = list[dict[str, str]]  # [{"role": "user", "content": "..."}], a system turn before it if there is one
BUSY = (408, 409, 425, 429)  # worth another try, as is every 5xx
AWAY = (408, 425, 429, 502, 503, 504)  # these tell of the server, the others perhaps of the prompt alone
GREETING = [{"role": "user", "content": "Answer with the word yes."}]  # any server in order replies to it
MANY = 8  # so many prompts, all of them without a reply, are no accident
LONGEST_PAUSE = 60.0  # seconds between two tries, whatever Retry-After says
LARGEST_REPLY = 8 << 20  # bytes
DEFAULT_KEY = "JUDGE_API_KEY"


def parse_address(spec: str) -> tuple[str, str, str]:
    """(url, model, name of the variable with the key) of "http://host/v1,model=NAME,key=VARIABLE"; SightRLError."""
    url, *options = (part.strip() for part in spec.split(","))
    known = {name: value for name, _, value in (option.partition("=") for option in options)}
    if "@" in url or "?" in url:
        raise SightRLError(f"write no password or query into the judge's address; a key goes into {DEFAULT_KEY}.")
    if not known.get("model") or not set(known) <= {"model", "key"}:
        raise SightRLError(f"the judge {spec!r} is not understood; write {url},model=NAME, then ,key=VARIABLE if the "
                           f"key is not in {DEFAULT_KEY}.")  # fmt: skip
    return url.rstrip("/").removesuffix("/chat/completions"), known["model"], known.get("key") or DEFAULT_KEY


class Failure(Exception):
    """One try without a reply. again: another try may help; away: and if not, nobody gets a reply; fix: what the user
    has to change, then no try can help."""

    def __init__(self, problem: str, again: bool = False, away: bool = False, fix: str = "", wait: float = 0.0) -> None:
        super().__init__(problem)
        self.problem, self.again, self.away, self.fix, self.wait = problem, again, away, fix, wait


class NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the key to another host."""

    def redirect_request(self, *details: Any) -> None:
        return None


@dataclass
class Endpoint:
    """<url>/chat/completions. timeout: seconds for one try; pause: before the second one, doubled every time."""

    url: str
    model: str
    key_name: str
    parameters: dict[str, Any]
    timeout: float = 120.0
    attempts: int = 6
    parallel: int = 32
    pause: float = 1.0

    def ask(self, batch: list[Messages]) -> Iterator[tuple[int, str]]:
        """(index, reply) as they come; a prompt that gets none by its own fault is left out.

        Raises SightRLError when the server is away or out of order, none of many prompts gets a reply, or a setting is
        wrong.
        """
        stop, answered, failure = threading.Event(), 0, None
        with ThreadPoolExecutor(self.parallel) as threads:
            tries = {threads.submit(self.try_often, messages, stop): i for i, messages in enumerate(batch)}
            try:
                for done in as_completed(tries):
                    result = done.result()
                    if isinstance(result, str):
                        answered += 1
                        yield tries[done], result
                    elif not stop.is_set():
                        failure = result
                        if failure.fix or failure.away or (not answered and not self.replies()):
                            stop.set()  # the others would fare no better
            finally:  # also when the caller is interrupted
                stop.set()
                threads.shutdown(cancel_futures=True)
        silent = not answered and len(batch) >= MANY
        if failure and (failure.fix or failure.away or silent or not self.replies()):
            fix = failure.fix or "see whether the server runs and the address, which often ends in /v1, is right"
            raise SightRLError(f"the judge at {self.url} {failure.problem}; {fix}.")

    def replies(self) -> bool:
        """Whether the server is in order."""
        return isinstance(self.try_often(GREETING, threading.Event()), str)

    def try_often(self, messages: Messages, stop: threading.Event) -> str | Failure:
        """The reply, or why there is none."""
        failure = Failure("was not asked")
        for attempt in range(self.attempts):
            if stop.is_set():
                break
            try:
                return self.request(messages)
            except Failure as error:
                failure = error
            if not failure.again or attempt + 1 == self.attempts:
                break
            jitter = random.SystemRandom().uniform(0.5, 1.5)  # leaves the run's random numbers alone
            stop.wait(min(max(self.pause * 2**attempt * jitter, failure.wait), LONGEST_PAUSE))
        return failure

    def request(self, messages: Messages) -> str:
        """One try. Raises Failure."""
        key = os.environ.get(self.key_name, "").strip()
        if not key.isascii() or not key.isprintable():
            raise Failure("was not asked", fix=f"the key in {self.key_name} holds odd characters, set it again")
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
        body = json.dumps({"model": self.model, "messages": messages, **self.parameters}).encode()
        near = urllib.parse.urlsplit(self.url).hostname in ("localhost", "127.0.0.1", "::1")
        proxies = [urllib.request.ProxyHandler({})] if near else []
        opener = urllib.request.build_opener(NoRedirect, *proxies)
        try:
            request = urllib.request.Request(f"{self.url}/chat/completions", body, headers)
            with opener.open(request, timeout=self.timeout) as answer:
                data = read_all(answer, time.monotonic() + self.timeout)
        except urllib.error.HTTPError as error:
            raise refusal(error, self, key) from None
        except (OSError, http.client.HTTPException) as error:  # time-outs and broken connections too
            reason = getattr(error, "reason", None) or error
            text = shown(str(reason) or type(error).__name__)
            raise Failure(f"does not answer ({text})", again=True, away=True) from None
        try:
            reply = json.loads(data)["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError, RecursionError):
            text = shown(data[:400].decode("utf-8", "replace"))
            raise Failure(f"sends no chat completion but {text!r}", again=True) from None
        if not isinstance(reply, str):
            raise Failure("sends a chat completion without text", again=True)
        return reply


def read_all(answer: http.client.HTTPResponse, deadline: float) -> bytes:
    """The body, unless it is endless or too slow, which raises an OSError."""
    parts, size = [], 0
    while part := answer.read1(1 << 16):
        parts.append(part)
        size += len(part)
        if size > LARGEST_REPLY or time.monotonic() > deadline:
            raise OSError("the reply has no end")
    if answer.length:
        raise OSError("the connection was closed in the middle of the reply")
    return b"".join(parts)


def refusal(error: urllib.error.HTTPError, endpoint: Endpoint, key: str) -> Failure:
    """What a status other than 200 means."""
    try:
        text = error.read(2000).decode("utf-8", "replace")
    except (OSError, http.client.HTTPException):
        text = ""
    said = f"answers with status {error.code}"
    if text.strip():
        said += f" ({shown(text.replace(key, '***') if key else text)})"
    if error.code in (401, 403):
        fix = f"put a key that it accepts into the environment variable {endpoint.key_name}"
        return Failure(f"answers with status {error.code}", fix=fix)
    if error.code == 404 or error.code < 400:
        return Failure(said, fix=f"correct the address (it often ends in /v1) or model={endpoint.model}")
    wait = error.headers.get("Retry-After", "")
    seconds = float(wait) if wait.isascii() and wait.isdigit() and len(wait) < 9 else 0.0
    again = error.code in BUSY or error.code >= 500
    return Failure(said, again=again, away=error.code in AWAY, wait=seconds)

"""Ask a judge about texts: a model behind an OpenAI-compatible address, a local VLM, or a Python function.

    judge = open_judge("http://localhost:8000/v1,model=Qwen2.5-32B-Instruct", cache=run.folder / "judge_cache.jsonl")
    replies = judge(["Is 3 larger than 2? Answer yes or no.", ...])  # one reply per prompt, in order

Equal prompts are asked once. Replies go to the cache file as they come, so that a killed run that goes on hears the
same verdicts again. The key of an address is read from the environment variable JUDGE_API_KEY (or the one named with
,key=NAME) and stands in no file. A prompt without a reply has the reply "" and counts in judge.lost; when the
server goes away, or no prompt of many gets one, a SightRLError says what is wrong.
With several processes let one ask: from_main(... if is_main() else None).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from common.checkpoint import disk_errors
from common.endpoint import MANY, Endpoint, Messages, parse_address
from common.errors import SightRLError
from common.readers.shared import shown


class Judge:
    """Call it with prompts, get replies in order. lost: prompts so far that got none."""

    def __init__(self, ask: Callable[[list[Messages]], Iterable[tuple[int, str]]], identity: list[Any],
                 cache: Path | None = None, system: str = "",
                 readable: Callable[[str], Any] | None = None) -> None:  # fmt: skip
        """ask: conversations -> (index, reply) as replies come. identity: model and parameters, part of the cache's
        keys. readable(reply): false for a reply that is as good as none. Raises SightRLError when the cache cannot be
        read."""
        self.ask, self.identity, self.cache, self.system, self.lost = ask, identity, cache, system, 0
        self.readable = readable or (lambda reply: True)
        self.replies = read_cache(cache) if cache else {}

    def messages(self, prompt: str) -> Messages:
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, {"role": "user", "content": prompt}]

    def key(self, prompt: str) -> str:
        return hashlib.sha256(json.dumps([self.identity, self.messages(prompt)]).encode()).hexdigest()

    def __call__(self, prompts: list[str]) -> list[str]:
        keys = [self.key(prompt) for prompt in prompts]
        asked = {key: p for key, p in zip(keys, prompts, strict=True) if key not in self.replies}
        order, unreadable = list(asked), []
        for i, reply in self.ask([self.messages(prompt) for prompt in asked.values()]) if asked else ():
            if not self.readable(reply):
                unreadable.append(reply)
                continue
            self.replies[order[i]] = reply
            if self.cache:
                with disk_errors(self.cache), open(self.cache, "ab") as file:  # the first break ends a torn line
                    file.write(b"\n" + json.dumps({"key": order[i], "reply": reply}).encode())
        if len(unreadable) >= MANY and not any(key in self.replies for key in order):
            raise SightRLError(
                f"the judge {self.identity[0]} answers none of {len(order)} questions in the form asked "
                f"for, but {shown(unreadable[0])!r}; see whether the right model is served."
            )
        self.lost += sum(key not in self.replies for key in order)
        return [self.replies.get(key, "") for key in keys]


def open_judge(spec: str, *, cache: Path | None = None, system: str = "", max_tokens: int = 512,
               timeout: float = 120.0, attempts: int = 6, parallel: int = 32, device: str = "auto",
               oracle: Callable[[str], str] | None = None, readable: Callable[[str], Any] | None = None,
               ) -> Judge:  # fmt: skip
    """The judge that `spec` names; it answers greedily.

    spec: "http://host:8000/v1,model=NAME[,key=ENVIRONMENT_VARIABLE]" (https too), "local:PATH-or-ID" (whatever
    load_vlm loads, asked without pictures), or "oracle" (calls `oracle`, prompt -> reply, and keeps no file).
    system: system turn before every prompt. max_tokens: of a reply. timeout: seconds for one try, of which there are
    `attempts` with growing pauses; parallel: requests under way at a time. device: of a local model. readable(reply):
    false for replies of an address that are as good as none; they are not kept.
    Raises SightRLError for a spec or a cache file that cannot be used.
    """
    kind = spec.partition(":")[0]
    if kind in ("http", "https"):
        address, model, key_name = parse_address(spec)
        parameters = {"temperature": 0.0, "max_tokens": max_tokens}
        endpoint = Endpoint(address, model, key_name, parameters, timeout, attempts, parallel)
        return Judge(endpoint.ask, [model, parameters], cache, system, readable)
    if kind == "local" and spec != "local:":
        name = spec.removeprefix("local:")
        return Judge(local_model(name, device, max_tokens), [name, {"max_tokens": max_tokens}], cache, system)
    if spec == "oracle" and oracle is not None:
        return Judge(lambda batch: ((i, oracle(m[-1]["content"])) for i, m in enumerate(batch)), ["oracle"])
    problem = "knows the truth of the micro-world only" if spec == "oracle" else "is not understood"
    raise SightRLError(f"the judge {spec!r} {problem}; give http://HOST:PORT/v1,model=NAME or local:FOLDER-or-ID.")


# ---------------------------------------------------------------- the cache file


def read_cache(path: Path) -> dict[str, str]:
    """Key -> reply. Lines that are not whole, as a killed process leaves them, are passed over."""
    replies = {}
    with disk_errors(path):
        lines = path.read_bytes().split(b"\n") if path.exists() else []
    for line in lines:
        try:
            row = json.loads(line)
            replies[str(row["key"])] = str(row["reply"])
        except (ValueError, KeyError, TypeError):
            continue
    return replies


# ---------------------------------------------------------------- a local model


def local_model(name: str, device: str, max_tokens: int, rows: int = 32) -> Callable:
    """A function for Judge that asks a VLM without pictures, `rows` prompts at a time."""
    import torch

    from common.distributed import world_size
    from common.rollout import rollout
    from common.vlm import harmless, load_vlm

    if world_size() > 1:
        raise SightRLError(f"the judge local:{name} works in one process only; serve the model and give its address.")
    vlm = load_vlm(name, device=device)

    def ask(batch: list[Messages]) -> Iterator[tuple[int, str]]:
        texts = [[harmless(turn["content"]) for turn in messages] for messages in batch]
        prompts = [vlm.prompt(turns[-1], [], system=turns[0] if len(turns) > 1 else None) for turns in texts]
        for start in range(0, len(prompts), rows):
            part = rollout(vlm, prompts[start : start + rows], 1, max_new_tokens=max_tokens, temperature=0.0,
                           generator=torch.Generator().manual_seed(0))  # fmt: skip
            yield from enumerate(part.texts, start)

    return ask

"""A judge behind an address that goes down, slows down or lies while a run trains: a clear stop, and the resumed run
is the one that was never interrupted."""

from __future__ import annotations

import json
import os
import random
import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from child_runs import lines, options_of, run, start
from helpers import coin
from method_runs import assert_same_end

MANY = int(os.environ.get("SIGHTRL_FAULT_MOMENTS", "7")) >= 12
TROUBLES = ["dies", "error", "slow", "unavailable", "html", "cut", "no text"]


class JudgeServer:
    """Verdicts that depend on the prompt alone, like coins; after `good` of them there is trouble."""

    def __init__(self, port: int = 0, good: float = float("inf"), trouble: str = "") -> None:
        self.good, self.trouble, self.asked, self.lock, self.end = good, trouble, 0, threading.Lock(), threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.answer(self, body["messages"][-1]["content"])

            def log_message(self, *words):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True)
        self.thread.start()
        self.port, self.descriptor = self.server.server_port, self.server.fileno()

    def answer(self, handler: BaseHTTPRequestHandler, prompt: str) -> None:
        with self.lock:
            self.asked += 1
            trouble = self.trouble if self.asked > self.good else ""
        verdicts = "".join(f"<info{k}>{coin(prompt + str(k))}</info{k}>" for k in range(1, 9))
        text = None if trouble == "no text" else "I like it." if trouble == "banana" else verdicts
        data = json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]}).encode()
        if trouble == "dies":
            threading.Thread(target=self.close).start()
            return handler.connection.close()
        if trouble == "slow":
            self.end.wait(30)
            return handler.connection.close()
        if trouble == "html":
            data = b"<html>It works!</html>"
        handler.send_response({"error": 500, "unavailable": 503}.get(trouble, 200))
        handler.send_header("Content-Length", str(len(data) + 9 * (trouble == "cut")))
        handler.end_headers()
        handler.wfile.write(data)
        return None

    def close(self) -> None:
        """No more connections; the port is free for the next server."""
        self.end.set()
        self.server.shutdown()
        self.server.server_close()


def impatient(descriptor: int, timeout: float) -> None:
    """In the child: short pauses between tries, and no copy of the server's socket that would keep the port open."""
    from common import endpoint, judge

    os.close(descriptor)
    endpoint.LONGEST_PAUSE = 0.01
    judge.open_judge.__kwdefaults__["timeout"] = timeout


def options(out: Path, name: str, port: int, **more) -> dict:
    spec = f"http://127.0.0.1:{port}/v1,model=m"
    return options_of("perception_r1", out, name, judge=spec, steps=3, judge_noise=0.0) | more


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """(folder of the run whose judge was never in trouble, port, how often the judge was asked)."""
    out, server = tmp_path_factory.mktemp("whole"), JudgeServer()
    child = run("perception_r1", options(out, "r", server.port), out / "log", partial(impatient, server.descriptor, 60))
    server.close()
    return child.folder, server.port, server.asked


def resume_and_compare(child, options: dict, whole: Path, port: int, log: Path) -> None:
    server = JudgeServer(port)
    try:
        again = options | {"resume": str(child.folder)}
        run("perception_r1", again, log, partial(impatient, server.descriptor, 60))
    finally:
        server.close()
    assert_same_end(whole, child.folder)


@pytest.mark.parametrize("trouble", TROUBLES if MANY else TROUBLES[:3])
def test_a_judge_in_trouble_stops_the_run_which_goes_on_later(trouble, whole, tmp_path):
    folder, port, asked = whole
    good = random.Random(trouble).randrange(2, asked - 1)
    server, words = JudgeServer(port, good, trouble), options(tmp_path, "r", port)
    timeout = 1.0 if trouble == "slow" else 60
    child = start("perception_r1", words, tmp_path / "log", partial(impatient, server.descriptor, timeout))
    status = child.wait()
    server.close()
    assert status == 2 and f"the judge at http://127.0.0.1:{port}/v1 " in child.error()
    if lines(child.folder / "metrics.jsonl"):
        assert f"continue with: python methods/perception_r1.py --resume {child.folder}" in child.error()
    print(f"{trouble} after {good} of {asked} verdicts, {len(lines(child.folder / 'metrics.jsonl'))} of 3 steps")
    resume_and_compare(child, words, folder, port, tmp_path / "again")


def test_a_judge_that_talks_instead_of_judging(whole, tmp_path):
    """Every request is answered, no answer holds a verdict: a wrong model is served. Nothing of it is kept."""
    folder, port, _ = whole
    server, words = JudgeServer(port, 0, "banana"), options(tmp_path, "r", port, eval_questions=0)
    child = start("perception_r1", words, tmp_path / "log", partial(impatient, server.descriptor, 60))
    status = child.wait()
    server.close()
    assert status == 2 and "in the form asked for, but 'I like it.'" in child.error()
    assert not lines(child.folder / "metrics.jsonl") and not (child.folder / "judge.jsonl").exists()

r"""math-verify, which many papers grade with, in processes of its own.

It reads LaTeX with sympy, where \boxed{9^{9^{9^9}}} computes for ever or until the memory is gone, and its own time
limit cannot interrupt that. A process that is silent for too long is killed, and the answer counts as wrong.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from queue import SimpleQueue

from common.errors import SightRLError

SECONDS = 15.0  # for one answer; math-verify itself gives up after 5 for reading and 5 for comparing
MEMORY = 8 << 30  # bytes of address space for one process
ROWS_PER_PROCESS = 64  # a process takes seconds to start, an answer about 30 ms

_workers: list[Worker] = []


def verified(golds: list[str], texts: list[str], seconds: float = SECONDS) -> list[float]:
    r"""1.0 where verify(parse(gold), parse(text)) of math-verify 0.9.0 holds, else 0.0, as for any exception.

    golds are read as they are: "\sqrt{18}" without dollars and plain words are unknown to it. texts may be whole
    responses. An answer can cost up to `seconds`, so with several processes of one run let the first one decide:
    from_main(verified(...) if is_main() else None). Raises SightRLError if math-verify is not installed.
    """
    if _workers and _workers[0].owner != os.getpid():  # inherited through a fork: they belong to the parent
        _workers.clear()
    wanted = min(os.cpu_count() or 1, 8, -(-len(texts) // ROWS_PER_PROCESS))
    _workers.extend(Worker() for _ in range(wanted - len(_workers)))
    idle: SimpleQueue[Worker] = SimpleQueue()
    for worker in _workers:
        idle.put(worker)

    def check(gold: str, text: str) -> float:
        worker = idle.get()
        try:
            return worker.check(gold, text, seconds)
        finally:
            idle.put(worker)

    with ThreadPoolExecutor(max(len(_workers), 1)) as threads:
        return list(threads.map(check, golds, texts))


class Worker:
    """One process that compares answers, started again after it had to be killed."""

    def __init__(self) -> None:
        self.owner = os.getpid()
        self.start()

    def start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=serve, args=(other,), daemon=True)
        self.process.start()
        other.close()
        try:
            self.pipe.recv_bytes()  # it has imported math-verify
        except EOFError:
            raise SightRLError("math-verify does not start; run pip install math-verify==0.9.0.") from None

    def check(self, gold: str, text: str, seconds: float) -> float:
        try:
            self.pipe.send_bytes(json.dumps([gold, text]).encode())
            if self.pipe.poll(seconds):
                return float(self.pipe.recv_bytes() == b"1")
        except (EOFError, OSError):  # it ran out of memory
            pass
        self.process.kill()
        self.process.join()
        self.start()
        return 0.0


def serve(pipe: Connection) -> None:
    """The life of a process: read [gold, text] as JSON, write 1 or 0, until the other side is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the training process, which ends this one
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    except (ImportError, ValueError, OSError):  # Windows, or a lower limit is set already
        pass
    from math_verify import parse, verify

    logging.disable(logging.CRITICAL)
    pipe.send_bytes(b"ready")
    while True:
        try:
            gold, text = json.loads(pipe.recv_bytes())
        except EOFError:
            return
        try:
            same = bool(verify(parse(gold), parse(text)))
        except Exception:  # sympy raises nearly anything
            same = False
        pipe.send_bytes(b"1" if same else b"0")

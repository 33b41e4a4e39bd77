"""What tests/test_distributed.py starts with torchrun: some runs one after another, as [method, options] in JSON.

An option "die" is for this file: {"rank": 1, "step": 1, "how": "kill" or "raise" or "wait"} in that optimiser step
("wait": the process writes its number into the file `waiting` in the folder WAIT_IN and waits there for a signal).
After every run the processes compare their weights; process 0 writes <run folder>/agreed.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import signal
import sys
import time
from pathlib import Path

import torch
from helpers import coin

import common.rewards
import common.training
from common import distributed
from common.errors import main_guard
from common.run import Run


def die(rank: int, step: int, how: str) -> None:
    """Let one process come to an end in the given optimiser step."""
    plain, calls, signals, handle = torch.optim.AdamW.step, [], [], Run._on_signal
    Run._on_signal = lambda self, number, frame: signals.append(number) or handle(self, number, frame)

    def deadly(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == step + 1 and distributed.rank() == rank:
            if how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if how == "raise":
                raise ArithmeticError("the cat sat on the keyboard")
            (Path(os.environ["WAIT_IN"]) / "waiting").write_text(f"{os.getpid()}\n")
            while not signals:
                time.sleep(0.05)
        return plain(self, *args, **kwargs)

    torch.optim.AdamW.step = deadly


def remember_model() -> list:
    """The list that the models of the following runs are put into."""
    models, load = [], common.training.load_model
    common.training.load_model = lambda *args, **options: models.append(load(*args, **options)) or models[-1]
    return models


def fingerprint(model: torch.nn.Module) -> str:
    state = model.state_dict().values()
    return hashlib.sha256(b"".join(v.contiguous().view(torch.uint8).numpy().tobytes() for v in state)).hexdigest()


def main(jobs: list) -> None:
    common.rewards.accuracy = coin
    torch.set_num_threads(1)
    models = remember_model()
    for name, options in jobs:
        method = importlib.import_module(f"methods.{name}")
        if "die" in options:
            die(**options.pop("die"))
        args = method.Args(**options)
        method.main(args)
        if len(set(distributed.gather(fingerprint(models[-1].model)))) == 1 and distributed.is_main():
            (Path(args.out) / args.run_name / "agreed").touch()


if __name__ == "__main__":
    main_guard(main, json.loads(sys.argv[1]))

"""Small runs of a method in this process, what they leave, what must be equal at their end, and stand-ins for a VLM.

    folder = only_run(tmp_path)             # after method.main(method.Args(**MINUTE, out=str(tmp_path)))
    whole = killed_and_resumed(method.main, lambda **more: method.Args(**MINUTE | more), tmp_path, step=1)

What differs between methods is in the tests of each.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from helpers import read_lines
from safetensors.torch import load_file

from common import checkpoint as checkpoints
from common.args import parse_args

MINUTE = dict(model="random:qwen2_5_vl", steps=2, eval_questions=2, eval_k=2, max_new_tokens=6, checkpoint_every=1,
              log_rollouts_every=1)  # fmt: skip
GROUPS = dict(prompts_per_step=3, group_size=3)  # for methods that have groups
TIMES = ("seconds/", "tokens_per_second", "memory/")


def parse(method: ModuleType, *words: str) -> Any:
    """The Args of a method for the words of a command, with its presets and variants."""
    choices = {"preset": method.PRESETS} | ({"variant": method.VARIANTS} if hasattr(method, "VARIANTS") else {})
    return parse_args(method.Args, method.__doc__, list(words), **choices)


# ---------------------------------------------------------------- what a run leaves


def only_run(out: Path) -> Path:
    (folder,) = out.iterdir()
    return folder


def untimed(path: Path) -> list[dict]:
    """Lines of a JSONL file without what the clock decides."""
    return [{name: v for name, v in row.items() if not name.startswith(TIMES)} for row in read_lines(path)]


def metrics(folder: Path) -> list[dict]:
    return untimed(folder / "metrics.jsonl")


def summary(folder: Path) -> dict:
    return json.loads((folder / "summary.json").read_text())


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """file/name -> tensor."""
    return {f"{file.name}/{n}": t for file in sorted(folder.glob("*.safetensors")) for n, t in load_file(file).items()}


def assert_same_tensors(left: Path, right: Path, tolerance: float = 0.0) -> None:
    """Of all safetensors in two folders; tolerance 0: to the bit."""
    ours, theirs = tensors(left), tensors(right)
    assert ours and ours.keys() == theirs.keys()
    for name, value in ours.items():
        other = theirs[name]
        assert torch.equal(value, other) if not tolerance else (value - other).abs().max() <= tolerance, name


# ---------------------------------------------------------------- what must be equal at the end


def without_times(value: Any) -> Any:
    """A packed state without seconds and file positions, which depend on the clock."""
    if isinstance(value, list):
        dropped = ("elapsed", "positions", "seconds")
        return [without_times(v) for v in value if not (isinstance(v, list) and v and v[0] in dropped)]
    return {name: without_times(v) for name, v in value.items()} if isinstance(value, dict) else value


def end_state(folder: Path) -> dict:
    """Everything of a finished run, but its tensors, that must not depend on interruptions."""
    last = checkpoints.latest_checkpoint(folder / "checkpoints")
    return {
        "state": without_times(json.loads((last / "state.json").read_text())),
        "metrics": metrics(folder),
        "rollouts": [untimed(path) for path in folder.glob("rollouts.jsonl")],
        "summary": {name: v for name, v in summary(folder).items() if not name.startswith("seconds")},
        "evaluations": {p.name: json.loads(p.read_text()) for p in sorted(folder.glob("*_*.json"))},
        "skipped": {p.name: untimed(p) for p in sorted((folder / "skipped").glob("*"))},
        "pictures": {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in (folder / "images").glob("*")},
        "names": sorted(p.name for p in folder.iterdir() if p.name[0] != "."),
    }


def assert_same_end(left: Path, right: Path) -> None:
    """Two finished runs are the same to the last bit: checkpoint, model, and all that was written of them."""
    a, b = end_state(left), end_state(right)
    for part in a:
        assert a[part] == b[part], part
    assert_same_tensors(*(checkpoints.latest_checkpoint(folder / "checkpoints") for folder in (left, right)))
    assert_same_tensors(left / "model", right / "model")


def kill_in_step(step: int) -> None:
    """Make this process kill itself in the optimiser step of this number, counted from 0."""
    plain, calls = torch.optim.AdamW.step, []

    def deadly(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == step + 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return plain(self, *args, **kwargs)

    torch.optim.AdamW.step = deadly


def killed_and_resumed(main: Callable[[Any], Any], args: Callable[..., Any], tmp_path: Path, step: int) -> Path:
    """kill -9 in the update of this step, resumed: to the bit the run that is never killed, whose folder is returned.

    args(out=..., resume=...) are the options of a run with checkpoint_every=1.
    """
    main(args(out=str(tmp_path / "whole")))
    whole = only_run(tmp_path / "whole")
    pid = os.fork()
    if pid == 0:
        try:
            kill_in_step(step)
            main(args(out=str(tmp_path / "broken")))
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    broken = only_run(tmp_path / "broken")
    assert len(metrics(broken)) == step and not (broken / "model").exists()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)  # whatever happens between the two sittings
    main(args(out=str(tmp_path / "broken"), resume=str(broken)))
    assert_same_end(broken, whole)
    return whole


# ---------------------------------------------------------------- main() on a table of log-probs

ONE_STEP = dict(steps=1, eval_questions=0, log_rollouts_every=0, prompts_per_step=1)


class TableModel:
    """Stands in for a VLM: its only parameters are tables of the current log-probs."""

    model, device, eos_ids, shards = None, torch.device("cpu"), [0], []

    def __init__(self, *tables: torch.Tensor) -> None:
        self.tables = [torch.nn.Parameter(table.clone()) for table in tables]
        self.table = self.tables[0]
        self.gradients: list[list[torch.Tensor]] = [[] for _ in tables]  # of every table, one per backward pass
        for table, seen in zip(self.tables, self.gradients, strict=True):
            table.register_hook(partial(self._keep, seen))

    @staticmethod
    def _keep(seen: list[torch.Tensor], gradient: torch.Tensor) -> None:
        seen.append(gradient.clone())

    def trainable(self) -> list[torch.nn.Parameter]:
        return self.tables

    def token_strings(self, tokens: list[int]) -> list[str]:
        return [str(token) for token in tokens]

    def save(self, folder: Path) -> None:
        folder.mkdir()


class TableModelWithPictures(TableModel):
    """One whose prompts can be given other pictures: they have `replaced` then."""

    def replace_images(self, prompt: Any, images: list) -> SimpleNamespace:
        return SimpleNamespace(images=images, input_ids=prompt.input_ids, replaced=True)


def stand_in(monkeypatch: pytest.MonkeyPatch, vlm: TableModel, samples: list, fakes: dict[str, Any]) -> SimpleNamespace:
    """Let the main() of a method train this model on these samples; the prompt that each of them becomes.

    fakes: "common.module.function" -> what takes its place.
    """
    prompt = SimpleNamespace(images=[np.zeros((28, 28, 3), np.uint8)], input_ids=torch.zeros(3))
    stream = SimpleNamespace(next=lambda n: samples, state_dict=dict, dataset=SimpleNamespace(skipped=[]))
    always = {"common.training.load_model": lambda args, **_: vlm, "common.training.load_stream": lambda args: stream,
              "common.training.make_prompt": lambda vlm, sample, template: prompt}  # fmt: skip
    for name, fake in (always | fakes).items():
        monkeypatch.setattr(name, fake)
    return prompt


def table_rollout(prompts: list, texts: list[str], mask: torch.Tensor, logps: torch.Tensor) -> Any:
    """A Rollout of these texts, a row of the table each; mask and logps: [rows, tokens]."""
    from common.rollout import Rollout

    rows = len(texts)
    truncated = torch.zeros(rows).bool()
    return Rollout(prompts, rows // len(prompts), torch.ones(mask.shape).long(), mask, logps, truncated, texts, None)

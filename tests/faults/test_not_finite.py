"""NaN and infinity in loss or gradient, and groups whose rewards are all equal."""

from __future__ import annotations

import hashlib
import json
import os
import signal
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from child_runs import METHODS, lines, options_of, run, start
from helpers import free_port
from method_runs import GROUPS, assert_same_end, tensors

from common import distributed
from common.training import Averages, optimizer_step


class BadGradient(torch.autograd.Function):
    """The identity, whose gradient is infinite."""

    @staticmethod
    def forward(ctx, value: torch.Tensor) -> torch.Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> torch.Tensor:
        return gradient * float("inf")


HOWS = {
    "a loss that is NaN": lambda loss: loss * float("nan"),
    "an infinite loss with a finite gradient": lambda loss: loss + float("inf"),
    "an infinite gradient of a finite loss": BadGradient.apply,
}


# ---------------------------------------------------------------- one update


@pytest.mark.parametrize("how", HOWS)
def test_the_update_is_skipped_and_nothing_changes(how):
    torch.manual_seed(0)
    layer = torch.nn.Linear(4, 2)
    vlm = SimpleNamespace(trainable=lambda: list(layer.parameters()), shards=[])
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1)

    def update(spoil) -> dict:
        averages, loss = Averages(), spoil(layer(torch.ones(3, 4)).square().mean())
        loss.backward()
        averages.add("loss", loss)
        optimizer_step(vlm, optimizer, 1.0, averages)
        return averages.result()

    def state() -> list[torch.Tensor]:
        moments = [value for one in optimizer.state.values() for value in one.values()]
        return [value.clone() for value in [*layer.parameters(), *moments]]

    assert update(lambda loss: loss)["updates/skipped"] == 0
    before = state()
    assert update(HOWS[how])["updates/skipped"] == 1
    assert all(torch.equal(a, b) for a, b in zip(before, state(), strict=True))
    assert all(p.grad is None for p in layer.parameters())  # it does not come back in the next step
    assert update(lambda loss: loss)["updates/skipped"] == 0
    after = state()
    assert not any(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert all(value.isfinite().all() for value in after)


# ---------------------------------------------------------------- whole runs


def poison(steps: set[int], how: str, kill_in: int | None = None) -> None:
    """Spoil the loss of these training steps, with several processes only in the last one."""
    from common import grpo
    from common import run as runs

    plain, started, current, log = grpo.aggregate, runs.Run.__init__, [], runs.Run.log

    def remember(self, *words, **more) -> None:
        current.append(self)
        started(self, *words, **more)

    def bad(*words, **more) -> torch.Tensor:
        loss, last = plain(*words, **more), distributed.rank() == distributed.world_size() - 1
        return HOWS[how](loss) if current[-1].step + 1 in steps and last else loss

    def deadly(self, step, metrics) -> None:
        if step == kill_in:
            os.kill(os.getpid(), signal.SIGKILL)
        log(self, step, metrics)

    runs.Run.__init__, grpo.aggregate, runs.Run.log = remember, bad, deadly


PLAIN = dict(filter_groups="off", gen_prompts=0, group_size=4, eval_questions=0)


def checkpoint(folder, step: int) -> dict[str, torch.Tensor]:
    found = tensors(folder / f"checkpoints/step-{step:08d}")
    return {name: value for name, value in found.items() if not name.startswith("state")}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, b[name]) for name, value in a.items())


def test_a_skipped_step_is_counted_and_its_batch_can_be_read(tmp_path):
    options = options_of("grpo", tmp_path, "nan", **PLAIN | dict(steps=3, keep_checkpoints=9))
    child = run("grpo", options, tmp_path / "log", partial(poison, {1}, "an infinite gradient of a finite loss"))
    folder = child.folder
    assert same(checkpoint(folder, 0), checkpoint(folder, 1)) and not same(checkpoint(folder, 1), checkpoint(folder, 2))
    rows = lines(folder / "metrics.jsonl")
    assert [row["updates/skipped"] for row in rows] == [0, 1, 0] and rows[1]["grad_norm"] is None
    assert json.loads((folder / "summary.json").read_text())["steps_skipped"] == 1
    assert "step 2: loss or gradient is not a finite number, update skipped" in child.said()
    assert child.said().count("steps skipped (NaN or infinity): 1") >= 2  # the display, and the last lines
    assert "1 steps were skipped" in (folder / "report.html").read_text()
    (file,) = (folder / "skipped").iterdir()
    batch = lines(file)
    assert file.name == "step-00000001.jsonl" and len(batch) == 12
    for row in batch:
        assert row["question"] in row["prompt"] and set(row["rewards"]) >= {"accuracy"}
        assert len(row["logps"]) == len(row["tokens"]) > 0 and "".join(row["tokens"]).startswith(row["response"][:1])
        assert all((folder / name).stat().st_size for name in row["images"]) and row["images"]


def test_three_in_a_row_stop_the_run_and_nothing_is_lost(tmp_path):
    """Also when it is killed between the second and the third; the uninterrupted run has more patience."""

    def patient() -> None:
        from common import run as runs

        runs.SKIPS = 99
        poison({1, 2, 3}, "a loss that is NaN")

    options = PLAIN | dict(steps=5, checkpoint_every=3, keep_checkpoints=9)
    whole = run("grpo", options_of("grpo", tmp_path, "whole", **options), tmp_path / "whole.log", patient)
    options, how = options_of("grpo", tmp_path, "cut", **options), "a loss that is NaN"
    first = start("grpo", options, tmp_path / "first.log", partial(poison, {1, 2, 3}, how, kill_in=3))
    assert first.wait() == -signal.SIGKILL
    options["resume"] = str(first.folder)
    second = start("grpo", options, tmp_path / "second.log", partial(poison, {1, 2, 3}, how))
    assert second.wait() == 2 and "continuing after step 3" in second.said()
    sentence = second.error()
    assert "3 steps in a row, the last is step 4" in sentence and str(first.folder / "skipped") in sentence
    assert sentence.endswith(f"continue with: python methods/grpo.py --resume {first.folder}")
    assert same(checkpoint(first.folder, 2), checkpoint(first.folder, 3))  # written although it was not due
    run("grpo", options, tmp_path / "third.log", partial(poison, {1, 2, 3}, how))
    assert_same_end(whole.folder, first.folder)


def as_rank(rank: int, port: int, folder) -> None:
    """Let this process be one of two, note its weights after every update, and spoil those of step 2 in rank 1."""
    from common import training

    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
                   "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}  # fmt: skip
    plain = training.optimizer_step

    def noted(vlm, *words) -> None:
        plain(vlm, *words)
        state = [value.detach().contiguous().view(torch.uint8).numpy().tobytes() for value in vlm.model.parameters()]
        with open(folder / f"weights{rank}", "a") as file:
            file.write(hashlib.sha256(b"".join(state)).hexdigest() + "\n")

    training.optimizer_step = noted
    poison({1}, "an infinite loss with a finite gradient")  # nothing of it reaches the other process by itself


def test_all_processes_skip_what_one_of_them_finds(tmp_path):
    port, options = free_port(), PLAIN | dict(steps=3, keep_checkpoints=9, micro_tokens=1)
    options = options_of("grpo", tmp_path, "two", **options)
    ranks = [start("grpo", options, tmp_path / f"log{rank}", partial(as_rank, rank, port, tmp_path)) for rank in (0, 1)]
    assert [child.wait() for child in ranks] == [0, 0], ranks[0].said() + ranks[1].said()
    weights = [(tmp_path / f"weights{rank}").read_text().split() for rank in (0, 1)]
    assert weights[0] == weights[1] and len(weights[0]) == 3
    assert weights[0][0] == weights[0][1] != weights[0][2]
    folder = ranks[0].folder
    assert [row["updates/skipped"] for row in lines(folder / "metrics.jsonl")] == [0, 1, 0]
    assert same(checkpoint(folder, 0), checkpoint(folder, 1)) and len(list((folder / "skipped").iterdir())) == 1


# ---------------------------------------------------------------- groups without spread


@pytest.mark.parametrize("method", sorted(METHODS.keys() - {"sft"}))
def test_groups_without_spread_are_no_trouble(method, tmp_path):
    options = GROUPS | dict(steps=1, eval_questions=0, max_new_tokens=3, log_rollouts_every=0)
    options |= {"visurf": {"variant": "grpo"}, "perception_r1": {"judge_noise": 0.0}}.get(method, {})
    child = run(method, options_of(method, tmp_path, "flat", **options), tmp_path / "log", grade=lambda *_, **__: 0)
    rows = lines(child.folder / "metrics.jsonl")
    assert "nothing left to learn" in child.said() or "these answers teach nothing" in child.said()
    assert "not a finite number" not in child.said() and all(None not in row.values() for row in rows)
    if method != "pearl":  # whose gate is closed before there are groups
        assert [row["groups/zero_spread"] for row in rows] == [1.0]
        assert json.loads((child.folder / "summary.json").read_text())["steps_no_spread"] == 1


def test_without_spread_the_weights_stay(tmp_path):
    options = PLAIN | dict(steps=2, keep_checkpoints=9, max_new_tokens=3)
    child = run("grpo", options_of("grpo", tmp_path, "flat", **options), tmp_path / "log", grade=lambda *_, **__: 0)
    assert same(checkpoint(child.folder, 0), checkpoint(child.folder, 1))
    said = child.said()
    assert said.count("these answers teach nothing") == 1 and "steps without spread of rewards: 2" in said

"""What every method promises, whatever its paper is about: runs of each in a child process, on a random model."""

from __future__ import annotations

import dataclasses
import importlib
import json
from functools import partial
from pathlib import Path

import pytest
from child_runs import METHODS, OURS, coin, options_of, run
from helpers import read_lines
from method_runs import metrics

WITH_GROUPS = sorted(METHODS.keys() - {"sft"})
QUICK = dict(steps=1, eval_questions=0, log_rollouts_every=0, checkpoint_every=0, max_new_tokens=4,
             train_vision=False)  # fmt: skip


def fields(method: str) -> set[str]:
    return {field.name for field in dataclasses.fields(importlib.import_module(f"methods.{method}").Args)}


def first_row(method: str, out: Path, name: str = "run", setup=None, grade=coin, **options) -> dict:
    """Metrics of the first step; options that the method lacks are left out."""
    options = {word: value for word, value in options_of(method, out, name, **QUICK | options).items()
               if word in fields(method)}  # fmt: skip
    child = run(method, options, out / f"{name}.log", setup, grade)
    return metrics(child.folder)[0]


def note_sampling(path: Path) -> None:
    """A line with [temperature, top_p] for every rollout."""
    from common import rollout

    plain = rollout.rollout

    def noted(*words, **more):
        with open(path, "a") as file:
            file.write(json.dumps([more["temperature"], more["top_p"]]) + "\n")
        return plain(*words, **more)

    rollout.rollout = noted


@pytest.mark.parametrize("method", WITH_GROUPS)
def test_scoring_uses_the_temperature_of_sampling(method, tmp_path):
    """It is the one asked for, and the log-probabilities that the first update learns from are those with which the
    answers were sampled."""
    options = dict(temperature=0.6, top_p=0.9) | ({"variant": "visurf"} if method == "visurf" else {})  # not SFT first
    row = first_row(method, tmp_path, setup=partial(note_sampling, tmp_path / "sampling"), **options)
    assert row["logp_mismatch"] < 1e-4
    sampled = read_lines(tmp_path / "sampling")
    assert sampled and all(pair == [0.6, 0.9] for pair in sampled)


def note_updates(path: Path) -> None:
    """A line with [learning rate, weight decay, norm of the gradient] for every update."""
    import torch

    plain = torch.optim.AdamW.step

    def noted(self, *words, **more):
        (group,) = self.param_groups
        norm = torch.stack([p.grad.norm() for p in group["params"] if p.grad is not None]).norm()
        with open(path, "a") as file:
            file.write(json.dumps([group["lr"], group["weight_decay"], float(norm)]) + "\n")
        return plain(self, *words, **more)

    torch.optim.AdamW.step = noted


@pytest.mark.parametrize("method", sorted(METHODS))
def test_the_optimiser_is_told_what_was_asked_for(method, tmp_path):
    row = first_row(method, tmp_path, setup=partial(note_updates, tmp_path / "updates"), lr=3e-4, weight_decay=0.07,
                    max_grad_norm=1e-3, warmup_steps=2, warmup=0.0, mini_batch_prompts=0)  # fmt: skip
    ((lr, decay, norm),) = read_lines(tmp_path / "updates")
    assert row["lr"] == lr == pytest.approx(3e-4 if method == "sft" else 1.5e-4)  # SFT warms up over a share of the run
    assert decay == 0.07 and norm == pytest.approx(1e-3, rel=1e-2) and row["grad_norm"] > 1e-2


def one_nat() -> None:
    """Let every token be a nat away from the reference."""
    from common import grpo

    grpo.kl_estimate = lambda logps, ref_logps, *_, **__: logps - logps.detach() + 1


def nothing(*_, **__) -> int:
    return 0


EQUAL = dict(filter_groups="off", entropy_coef=0.0, gate=False, judge_noise=0.0)  # with grades that are all the same


@pytest.mark.parametrize("method", [name for name in WITH_GROUPS if "kl_coef" in fields(name)])
def test_distance_from_the_reference_is_a_loss(method, tmp_path):
    """Answers of equal worth leave nothing of the loss but kl_coef times the divergence."""
    row = first_row(method, tmp_path, setup=one_nat, grade=nothing, kl_coef=0.5, **EQUAL)
    share = 1 + importlib.import_module("methods.pearl").Args().perception_coef if method == "pearl" else 1  # two sums
    assert row["kl"] == pytest.approx(1) and row["loss"] == pytest.approx(0.5 * share)


@pytest.mark.parametrize("method", [name for name in WITH_GROUPS if "entropy_coef" in fields(name)])
def test_surprise_is_a_loss(method, tmp_path):
    """entropy_coef is a penalty, as in the code of VPPO: on the sampled tokens' -log p."""
    row = first_row(method, tmp_path, grade=nothing, **EQUAL | dict(entropy_coef=0.5, kl_coef=0.0))
    assert row["loss"] == pytest.approx(0.5 * row["entropy"], rel=0.3) and row["entropy"] > 1


# VPPO scales each micro-batch by its own extremes, as its code does: see test_vppo.py.
@pytest.mark.parametrize("method", sorted({*OURS} - {"vppo"}))  # its TAS, and so that of copies, is per micro-batch
def test_micro_batches_bound_the_memory_alone(method, tmp_path):
    """The gradient of the first update does not depend on how many tokens a forward pass may hold."""
    rows = [first_row(method, tmp_path, str(tokens), micro_tokens=tokens, loss_mean="token_mean")
            for tokens in (1, 10**6)]  # fmt: skip
    assert rows[0]["grad_norm"] == pytest.approx(rows[1]["grad_norm"], rel=1e-3) and rows[0]["grad_norm"] > 0

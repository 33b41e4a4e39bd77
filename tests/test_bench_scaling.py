"""The counts of eval/bench_scaling.py by hand and against PyTorch's counter; exponents; one tiny run."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import bench_scaling as bench
from bench_scaling import Args
from common.errors import SightRLError
from step_work import Setting, counts, memory, work

TINY = Setting(group=3, tokens=5, text=6, side=56, images=2, width=64)


@pytest.fixture(scope="module")
def trainer() -> bench.Trainer:
    return bench.Trainer(64, "cpu", "cpu", seed=0)


def test_work_by_hand():
    s = Setting(group=2, tokens=3, text=4, side=56, images=1, width=64, prompts=1)
    prompt = 4 + 19 + 2 + 4  # question, template, marks of the picture, 16 patches / 4
    assert counts(s) == (16, 16, [prompt])
    block = 2 * (32 * 96 + 32 * 32 + 3 * 32 * 128)  # of the tower, width 32, a patch: qkv, out, MLP
    merger = 4 * 2 * (128 * 128 + 128 * 64)
    tower = 16 * (2 * 1176 * 32 + 6 * block) + 6 * 4 * 32 * 16 * 16 + merger
    layer = 2 * (64 * (64 + 2 * 32) + 64 * 64 + 3 * 64 * 256)  # a token: qkv, out, MLP
    prefill = 4 * (prompt * layer + 4 * 64 * prompt * (prompt + 1) // 2)
    pairs = (prompt + 1) + (prompt + 2)  # two tokens of each response are run
    decode = 2 * (4 * (2 * layer + 4 * 64 * pairs) + 3 * 2 * 64 * 8192)
    forward = tower + prefill + decode
    assert work(s) == {"prefill": tower + prefill, "decode": decode, "logps": forward, "update": 3 * forward}


def test_work_is_what_pytorch_counts(trainer, monkeypatch):
    monkeypatch.setenv("SIGHTRL_KERNELS", "off")  # PyTorch counts its own products alone
    s = Setting(group=3, tokens=5, text=6, side=140, images=2, width=64)  # windows of several sizes
    prompts = trainer.prompts(s, 0)
    assert [len(p.input_ids) for p in prompts] == counts(s)[2]

    def counted(call) -> int:
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # its products are counted
            call()
        return counter.get_total_flops()

    batch = trainer.rollout(s, prompts)
    need = work(s)
    # PyTorch's attention also computes the pairs that the causal rule hides, a small part here.
    assert counted(lambda: trainer.score(batch)) == pytest.approx(need["logps"], rel=0.03)
    assert counted(lambda: trainer.rollout(s, prompts)) == pytest.approx(need["prefill"] + need["decode"], rel=0.03)
    # No gradient is needed for the pixels.
    reference = trainer.score(batch)
    assert counted(lambda: trainer.update(batch, reference)) == pytest.approx(need["update"], rel=0.06)


def test_every_prompt_and_picture_is_counted_once_per_group():
    once, twice = work(TINY), work(replace(TINY, group=6))
    assert twice["prefill"] == once["prefill"] and twice["decode"] == 2 * once["decode"]
    assert memory(replace(TINY, group=6))["update"] < 2 * memory(TINY)["update"]


def test_peak_of_memory():
    def call() -> None:
        a = torch.zeros(1000)
        b = torch.zeros(3000)
        del a
        c = torch.zeros(500)
        del b, c

    assert bench.peak(call, torch.device("cpu")) == pytest.approx(16000, rel=0.02)


def test_exponents():
    xs = [1, 2, 4, 8, 16]
    assert bench.exponent(xs, [3 * x**1.5 for x in xs]) == pytest.approx(1.5)
    assert bench.exponent(xs, [5, 5, 1, 2, 4]) == pytest.approx(1.0)  # the upper half alone
    assert bench.exponent([2, 4], [1, 4]) == pytest.approx(2.0)
    assert bench.local_exponents(xs, [1, 1, 2, 8, 8]) == pytest.approx([0, 1, 2, 0])


def test_a_sum_that_shifts_to_its_slow_part_is_no_violation():
    needed = np.array([[1, 1, 1], [1, 2, 4]])
    measured = np.array([[1, 1, 1], [9, 18, 36]])  # the second part is nine times as slow for its work
    assert bench.expected(measured, needed) == pytest.approx([10, 19, 37])


def test_what_grows_too_fast_is_marked():
    points = [replace(TINY, group=g) for g in (2, 4, 8)]
    seconds = {s: dict.fromkeys(bench.PARTS, 1.0) | {"logps": work(s)["logps"] * 1e-9, "update": s.group**2.0}
               for s in points}  # fmt: skip
    found = {s: {"bytes": memory(s), "seconds": [seconds[s]]} for s in points}
    result = bench.analyse("group", points, found, 0.15)
    marks = {phase: any(r["too_fast"]) for phase, r in result["seconds"].items()}
    assert marks.pop("update") and marks.pop("step") and not any(marks.values())
    assert not any(any(r["too_fast"]) for r in result["memory"].values())
    text = bench.table({"group": result})
    assert [line.split(" | ")[1] for line in text.splitlines() if "!" in line] == ["update", "step"]


def test_a_tiny_run(tmp_path, capfd):
    args = Args(settings=["group", "side"], points=["group=2,4", "side=56,84"], repeats=2, device="cpu", out=tmp_path,
                base=["tokens=3", "text=4", "side=56", "width=64"])  # fmt: skip
    bench.main(args)
    record = json.loads((tmp_path / "bench_scaling_cpu.json").read_text())
    assert {"git_commit", "versions", "hardware", "threads"} <= record.keys() and record["args"]["repeats"] == 2
    side = record["results"]["side"]
    assert side["x"] == [56, 84] and side["points"][0]["group"] == 8 and len(side["rounds"][0]) == 2
    assert all(value > 0 for phase in ("seconds", "memory") for r in side[phase].values() for value in r["measured"])
    assert (tmp_path / "bench_scaling_cpu.png").stat().st_size > 10_000
    assert (tmp_path / "bench_scaling_cpu.md").read_text() in capfd.readouterr().out


@pytest.mark.parametrize("options, words", [
    ({"settings": ["rows"]}, "--settings rows: unknown"),
    ({"points": ["G=2,4"]}, "--points G=2,4: expected NAME=NUMBER"),
    ({"points": ["group=2,x"]}, "one of group, tokens"),
    ({"points": ["group=4,2"]}, "ascending"),
    ({"base": ["side=100"]}, "side must be 56 to 896"),
    ({"base": ["group=1"], "settings": ["side"]}, "group, tokens and text at least 2"),
    ({"repeats": 0}, "--repeats 0"),
])  # fmt: skip
def test_wrong_options(options, words, tmp_path):
    with pytest.raises(SightRLError, match=words):
        bench.main(Args(**options, out=tmp_path))

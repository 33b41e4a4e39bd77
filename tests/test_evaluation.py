"""Evaluation: pass@k and intervals against independent formulas, pairing, the loop over a fake sampler."""

import io
import json
import math
import sys
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from common.errors import SightRLError
from common.evaluation import (
    Evaluation,
    bootstrap_interval,
    compare_evaluations,
    evaluate,
    gap,
    gap_change,
    pass_at,
    print_table,
)


def record(index: int, scores: list[float], split: str = "test", task: str = "count", **more: object) -> dict:
    responses = ["r"] * len(scores)
    base = {"id": f"q{index}", "task": task, "split": split, "question": f"question {index}", "answer": "3"}
    return {**base, "responses": responses, "scores": scores, **more}


def make(rates: list[float], split: str = "test", k: int = 4, seed: int = 0) -> list[dict]:
    generator = np.random.default_rng(seed)
    rows = generator.random((len(rates), k)) < np.array(rates)[:, None]
    return [record(i, row.astype(float).tolist(), split) for i, row in enumerate(rows)]


# ---------------------------------------------------------------- pass@k


@settings(max_examples=80, deadline=None)
@given(st.lists(st.lists(st.booleans(), min_size=6, max_size=9), min_size=1, max_size=5), st.integers(1, 6))
def test_pass_at_equals_the_binomial_formula(rows, j):
    expected = [1 - math.comb(len(r) - sum(r), j) / math.comb(len(r), j) for r in rows]
    assert pass_at(rows, [j])[j] == pytest.approx(np.mean(expected), abs=1e-12)


def test_pass_at_needs_enough_responses():
    with pytest.raises(ValueError, match="needs 5 responses"):
        pass_at([[True] * 4], [5])


# ---------------------------------------------------------------- intervals


def test_interval_matches_the_normal_approximation():
    values = np.random.default_rng(1).random(400)
    low, high = bootstrap_interval(values)
    error = 1.96 * values.std() / 20
    assert (low, high) == pytest.approx((values.mean() - error, values.mean() + error), abs=0.003)
    assert bootstrap_interval(values) == [low, high]  # fixed seed
    assert bootstrap_interval(np.array([0.5])) == [0.5, 0.5]


def test_interval_covers_the_truth_about_95_times_in_100():
    generator = np.random.default_rng(0)
    hits = 0
    for _ in range(200):
        low, high = bootstrap_interval((generator.random(60) < 0.4).astype(float), draws=500)
        hits += low <= 0.4 <= high
    assert 178 <= hits <= 199


# ---------------------------------------------------------------- one evaluation


def test_summary_by_hand():
    records = [
        record(0, [1.0, 0.0], task="a", habits=["careful", "blind"], truncated=[False, True], lengths=[3, 9],
               states=["ok", "no_answer"]),
        record(1, [1.0, 1.0], task="b", habits=["careful", "careful"], truncated=[False, False],
               lengths=[4, 4], states=["ok", "ok"]),
    ]  # fmt: skip
    summary = Evaluation(records, 2).summary()
    overall = summary["overall"]
    assert overall["avg@k"] == 0.75 and overall["pass@k"] == 1.0 and overall["pass"] == {"1": 0.75, "2": 1.0}
    assert overall["habits"] == {"blind": 0.25, "careful": 0.75}
    assert overall["truncated"] == 0.25 and overall["no_answer"] == 0.25 and overall["length"] == 5.0
    assert overall["interval"][0] == 0.5 and overall["interval"][1] == 1.0
    assert list(summary["tasks"]) == ["a", "b"] and summary["tasks"]["a"]["avg@k"] == 0.5
    assert summary["splits"]["test"]["questions"] == 2
    assert Evaluation([], 2).summary()["overall"]["avg@k"] is None


def test_save_and_load(tmp_path):
    evaluation = Evaluation([record(0, [1.0], responses=["é \ud800 </script>"])], 1, {"seed": 3})
    evaluation.save(tmp_path / "e.json")
    loaded = Evaluation.load(tmp_path / "e.json")
    assert loaded.summary() == evaluation.summary() and loaded.settings == {"seed": 3}
    (tmp_path / "bad.json").write_text("[1]")
    with pytest.raises(SightRLError, match=r"bad\.json is not an evaluation"):
        Evaluation.load(tmp_path / "bad.json")


# ---------------------------------------------------------------- before and after


def test_comparison_by_hand():
    before = Evaluation([record(0, [0, 0]), record(1, [1, 1]), record(2, [0, 1], task="colour"), record(9, [1, 1])], 2)
    after = Evaluation([record(2, [1, 1], task="colour"), record(0, [1, 1]), record(1, [0, 0]), record(7, [1, 1])], 2)
    result = compare_evaluations(before, after)
    assert result["overall"]["questions"] == 3  # only what both hold, whatever the order
    assert result["overall"]["difference"] == pytest.approx(0.5 / 3)
    assert result["tasks"]["colour"]["difference"] == 0.5
    assert result["mcnemar"] == {"gained": 2, "lost": 1, "p": 1.0}
    assert [(c["id"], c["difference"]) for c in result["changed"]] == [("q0", 1.0), ("q2", 0.5), ("q1", -1.0)]
    with pytest.raises(SightRLError, match="no question in common"):
        compare_evaluations(before, Evaluation([record(50, [1, 1])], 2))


def test_pairing_narrows_the_interval():
    rates = np.random.default_rng(3).random(300)
    before, after = (Evaluation(make(rates, seed=1), 4), Evaluation(make(np.clip(rates + 0.1, 0, 1), seed=2), 4))
    paired = compare_evaluations(before, after)["overall"]
    low, high = paired["interval"]
    separate = [evaluation.summary()["overall"]["interval"] for evaluation in (before, after)]
    assert low > 0 and high - low < 0.7 * sum(i[1] - i[0] for i in separate)
    assert json.dumps(paired)  # plain numbers


def test_gap_before_and_after():
    before = Evaluation(make([0.9] * 200) + make([0.3] * 200, "test_counter", seed=5), 4)
    after = Evaluation(make([0.9] * 200, seed=6) + make([0.8] * 200, "test_counter", seed=7), 4)
    change = gap_change(before, after)
    assert change["before"]["gap"] == pytest.approx(0.6, abs=0.06) and change["before"] == gap(before)
    assert change["after"]["gap"] == pytest.approx(0.1, abs=0.06)
    low, high = change["change"]["interval"]
    assert low < change["change"]["gap"] < high < 0
    assert gap(Evaluation(make([1.0]), 4)) is None and gap_change(before, after, "test", "nowhere") is None


def test_table_prints_splits_tasks_and_differences():
    before, after = Evaluation(make([0.2] * 30), 4), Evaluation(make([0.8] * 30, seed=1), 4)
    console = Console(file=io.StringIO(), width=140)
    print_table(before, after, console)
    text = console.file.getvalue()
    assert "overall" in text and "count" in text and "test" in text and "+0." in text and "pass@4" in text
    print_table(before, console=console)
    assert "accuracy" in console.file.getvalue()


# ---------------------------------------------------------------- the loop


@dataclass
class FakeSample:
    id: str
    question: str
    answer: str
    task: str = "count"
    meta: dict = field(default_factory=dict)


@pytest.fixture
def fake_rollout(monkeypatch):
    """A sampler that answers with the prompt's number, wrongly in every fourth response."""
    calls = []

    def rollout(vlm, prompts, group_size, *, max_new_tokens, temperature, top_p, generator):
        assert not vlm.model.training and not torch.is_grad_enabled()
        calls.append((len(prompts), torch.rand((), generator=generator).item()))
        texts = [f"\\boxed{{{p.text if g % 4 else 'x'}}}" for p in prompts for g in range(group_size)]
        mask = torch.ones(len(texts), 5, dtype=torch.bool)
        return SimpleNamespace(texts=texts, mask=mask, truncated=torch.zeros(len(texts), dtype=torch.bool))

    module = ModuleType("common.rollout")
    module.rollout = rollout
    monkeypatch.setitem(sys.modules, "common.rollout", module)
    return calls


def run_fake(samples, **more):
    vlm = SimpleNamespace(model=torch.nn.Identity())
    image = np.zeros((300, 200, 3), np.uint8)
    result = evaluate(
        vlm,
        samples,
        lambda _, sample: SimpleNamespace(text=sample.answer, images=[image]),
        lambda text, sample: float(text == f"\\boxed{{{sample.answer}}}"),
        k=4,
        max_new_tokens=8,
        batch_prompts=3,
        **more,
    )
    assert vlm.model.training
    return result


def test_evaluate_scores_every_response(fake_rollout):
    samples = [FakeSample(f"s{i}", "how many?", str(i)) for i in range(7)]
    before = torch.get_rng_state()
    done = []
    result = run_fake(
        {"test": samples[:5], "test_counter": samples[5:]},
        habit=lambda text, sample: "blind" if "{x}" in text else "careful",
        progress=lambda n, total: done.append((n, total)),
    )
    assert torch.equal(before, torch.get_rng_state())
    assert [n for n, _ in fake_rollout] == [3, 3, 1] and done == [(3, 7), (6, 7), (7, 7)]
    assert [r["id"] for r in result.records] == [s.id for s in samples]
    assert all(r["scores"] == [0.0, 1.0, 1.0, 1.0] for r in result.records)
    summary = result.summary()
    assert summary["overall"]["avg@k"] == 0.75 and summary["overall"]["habits"]["blind"] == 0.25
    assert summary["splits"]["test_counter"]["questions"] == 2 and summary["overall"]["length"] == 5
    assert result.records[0]["thumbnail"] and json.dumps(result.records)


def test_evaluate_is_seeded_and_takes_a_plain_list(fake_rollout):
    samples = [FakeSample("a", "q", "1", meta={"split": "val"}), FakeSample("b", "q", "2")]
    first, second = run_fake(samples, seed=4), run_fake(samples, seed=4)
    assert fake_rollout[0] == fake_rollout[1] and first == second
    assert [r["split"] for r in first.records] == ["val", "test"]

"""methods/pearl.py: golden vectors worked out by hand from the paper's formulas, its pieces, and whole runs."""

from __future__ import annotations

import json
import random
from types import SimpleNamespace

import pytest
import torch
from helpers import close, coin, jsonl
from hypothesis import given, settings
from hypothesis import strategies as st
from method_runs import (
    GROUPS,
    MINUTE,
    ONE_STEP,
    TableModel,
    killed_and_resumed,
    metrics,
    only_run,
    parse,
    stand_in,
    summary,
    table_rollout,
)
from PIL import Image

from common.data import Sample, open_dataset
from common.errors import SightRLError
from common.evaluation import Evaluation
from common.world.layouts import PROMPTS, checklist
from methods import pearl
from methods.pearl import (
    PRESETS,
    VARIANTS,
    Args,
    advantages_of,
    checklist_answers,
    fidelity,
    main,
    probe_of,
    wrong_facts,
)

PAIRS = [("How many?", "3"), ("Which color?", "red"), ("Where?", "b2")]
RIGHT = ["3", "red", "b2"]
PATTERNS = [(1, 1, 0), (1, 0, 0), (1, 1, 1), (0, 0, 0), (1, 1, 0)]  # golden vector 1: facts of five responses
FACTS = torch.tensor([2 / 3, 1 / 3, 1, 0, 2 / 3])
A_P = [0.350822, -0.526233, 1.227878, -1.403289, 0.350822]
A_R = [0.547722, -0.365148, -0.365148, 0.547722, -0.365148]  # after the weight 0.5


def written(pattern) -> str:
    return "\n".join(f"{i}. {RIGHT[i - 1] if good else 'no'}" for i, good in enumerate(pattern, 1))


def item(name: str = "1", **meta) -> Sample:
    return Sample(name, "q", "a", "t", [], meta={"checklist": [{"question": q, "answer": a} for q, a in PAIRS]} | meta)


# --------------------------------------------------------------------------------------------- golden vectors
def test_golden_1_scores_of_checklists():
    probe = probe_of(item(), "anchored")
    scores = [fidelity(written(pattern), probe) for pattern in PATTERNS]
    close(scores, FACTS)
    assert sum(scores) / 5 == pytest.approx(0.5333, abs=5e-5)


def test_golden_2_and_3_advantages_and_weight():
    args = Args(group_size=5)
    thought, look = advantages_of(args, torch.tensor([1.0, 0, 0, 1, 0]), FACTS)
    close(look, A_P)
    close(thought, A_R)
    plain, _ = advantages_of(Args(group_size=5, weight_cap=0.0), torch.tensor([1.0, 0, 0, 1, 0]), FACTS)
    close(plain, [1.095443, -0.730295, -0.730295, 1.095443, -0.730295])


def test_golden_4_weight_below_the_cap():
    thought, _ = advantages_of(Args(group_size=5), torch.tensor([1.0, 0, 0, 1, 0]), torch.tensor([0, 0, 0, 0, 1.0]))
    assert thought[0].item() == pytest.approx(0.219089, abs=1e-6)


# -------------------------------------------------------------------- golden vectors and formula through main()
def run_main(monkeypatch, tmp_path, facts, right, args, ratios=None, lengths=None, width=3):
    """One step of main(): item i answers facts[i] ([G] patterns) and right[i] ([G] 0/1, None: never asked).

    Returns (gradient of the table [2 items, G, T]: reasoning, then checklists; metrics of the step, prompts asked).
    """
    items, G = len(facts), args.group_size
    shape = (2 * items, G, width)
    old = -torch.rand(shape, generator=torch.Generator().manual_seed(0)) - 0.5
    new = old if ratios is None else old + ratios
    lengths = torch.full(shape[:2], width) if lengths is None else lengths
    vlm, asked = TableModel(new), []

    def make_prompt(vlm, sample, template):
        look = template == args.checklist_prompt
        return SimpleNamespace(row=int(sample.id) + items * look, images=[], input_ids=torch.zeros(3), look=look)

    def rollout(vlm, prompts, group_size, **options):
        rows = [prompt.row for prompt in prompts]
        asked.extend(rows)
        texts = [written(p) for row in rows for p in facts[row - items]] if prompts[0].look else [
            "good" if good else "bad" for row in rows for good in right[row]]  # fmt: skip
        mask = (torch.arange(width) < lengths[rows][..., None]).flatten(0, 1)
        return table_rollout(prompts, texts, mask, old[rows].flatten(0, 1) * mask)

    def response_logps(vlm, prompts, tokens, mask, **options):
        logps = vlm.table[[prompt.row for prompt in prompts]].flatten(0, 1)[:, : mask.shape[1]]
        return logps * mask, torch.zeros(mask.shape)

    samples = [item(str(i)) for i in range(items)]
    stand_in(monkeypatch, vlm, samples, {
        "common.training.make_prompt": make_prompt,
        "common.rollout.rollout": rollout,
        "common.logprob.response_logps": response_logps,
        "common.rewards.accuracy": lambda text, sample: float(text == "good"),
    })  # fmt: skip
    for name, value in (ONE_STEP | dict(out=str(tmp_path), prompts_per_step=args.prompts_per_step)).items():
        setattr(args, name, value)
    main(args)
    (rows, (gradients,)) = metrics(only_run(tmp_path)), vlm.gradients
    return (sum(gradients) if gradients else None), (rows[0] if rows else None), asked


def test_golden_7_gradient_of_both_branches(monkeypatch, tmp_path):
    args = Args(group_size=5, prompts_per_step=1)
    gradient, row, _ = run_main(monkeypatch, tmp_path, [PATTERNS], [[1, 0, 0, 1, 0]], args)
    for branch, expected in ((0, torch.tensor(A_R) / 15), (1, 0.1 * torch.tensor(A_P) / 15)):  # N_r = N_p = 15
        close(gradient[branch], -expected[:, None].expand(5, 3), 5e-8)
    close(gradient[0, 0, 0], -0.547722 / 15, 1e-7)
    close(gradient[1, 0, 0], -0.0350822 / 15, 2e-8)
    assert row["checklist"] == pytest.approx(8 / 15) and row["gate/closed"] == 0
    assert row["loss"] == pytest.approx(0, abs=1e-7) and (row["gains"], row["lucky"]) == (2, 0)
    assert row["tokens"] == row["tokens_generated"] == 30


NOTHING, ALL = [(0, 0, 0)] * 5, [(1, 1, 1)] * 5
MIXED = [(1, 1, 0), (1, 1, 1), (0, 0, 0), (1, 0, 0), (0, 0, 0)]  # mean 0.4


def test_golden_5_a_closed_gate_saves_the_reasoning(monkeypatch, tmp_path):
    args = Args(group_size=5, prompts_per_step=2, filter_groups="off")
    gradient, row, asked = run_main(monkeypatch, tmp_path, [NOTHING, PATTERNS], [None, [1, 0, 0, 1, 0]], args)
    assert asked == [2, 3, 1]  # both checklists, then the reasoning of item 1 only
    assert row["gate/closed"] == 0.5 and row["tokens"] == 45 and not gradient[[0, 2]].any()
    close(gradient[1, 0, 0], -0.547722 / 15, 1e-7)


def test_golden_6_soft_filter(monkeypatch, tmp_path):
    facts, right = [MIXED, ALL, ALL, MIXED], [[1] * 5, [0] * 5, [1, 0, 0, 0, 0], [1, 1, 0, 0, 0]]
    args = Args(group_size=5, prompts_per_step=4, max_rounds=1)
    gradient, row, _ = run_main(monkeypatch, tmp_path / "soft", facts, right, args)
    assert row["groups/used"] == 3 and row["groups/filtered"] == 0.25
    moved = gradient.abs().sum(dim=(1, 2)) > 0
    assert moved.tolist() == [False, False, True, True, True, False, False, True]  # item 0 by its facts alone
    args = Args(group_size=5, prompts_per_step=4, max_rounds=1, filter_groups="hard")
    gradient, row, _ = run_main(monkeypatch, tmp_path / "hard", facts, right, args)
    assert row["groups/used"] == 2 and not gradient[[0, 1, 4, 5]].any() and gradient[7].any()


def test_the_soft_filter_goes_by_the_mean_alone(monkeypatch, tmp_path):
    """Five checklists with the same one fact right have no spread, but a mean inside (0, 1): the item is kept."""
    args = Args(group_size=5, prompts_per_step=2, max_rounds=1)
    _, row, _ = run_main(monkeypatch, tmp_path, [[(1, 0, 0)] * 5, ALL], [[1] * 5, [1] * 5], args)
    assert row["groups/used"] == 1 and row["groups/filtered"] == 0.5


def test_every_gate_closed_ends_the_run(monkeypatch, tmp_path, capsys):
    args = Args(group_size=5, prompts_per_step=2, max_rounds=3)
    _, row, asked = run_main(monkeypatch, tmp_path, [NOTHING, NOTHING], [None, None], args)
    assert row is None and asked == [2, 3] * 3 and "every gate is closed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "lucky", "tokens"),
    [
        (dict(), 0, 45),
        (dict(gate=False), 0, 60),  # the weight is 0
        (dict(gate=False, weight_cap=0.0), 2, 60),
        (dict(gate=False, weight_cap=0.0, perception_coef=0.0, filter_groups="hard"), 2, 30),  # facts are not used
    ],
)
def test_lucky_updates_are_counted(monkeypatch, tmp_path, options, lucky, tokens):
    args = Args(**dict(group_size=5, prompts_per_step=2, max_rounds=1) | options)
    facts, right = [NOTHING, PATTERNS], [[1, 0, 0, 0, 1], [1, 0, 0, 1, 0]]
    gradient, row, _ = run_main(monkeypatch, tmp_path, facts, right, args)
    assert (row["lucky"], row["gains"], row["tokens"]) == (lucky, 2 + lucky, tokens)
    assert gradient[0].any() == bool(lucky) and gradient[3].any() == bool(args.perception_coef)


@pytest.mark.parametrize(("mini", "micro_tokens"), [(0, 16384), (0, 1), (2, 16384)])
def test_gradient_equals_the_formula(monkeypatch, tmp_path, mini, micro_tokens):
    """-J = mean over N_r tokens of L(A_r) + lambda (mean over N_p tokens of L(A_p)) in float64, ratios away from 1."""
    G, items, generator = 4, 4, torch.Generator().manual_seed(3)
    ratios = torch.randn(2 * items, G, 3, generator=generator) * 0.4
    lengths = torch.randint(1, 4, (2 * items, G), generator=generator)
    facts = [[tuple(torch.randint(0, 2, (3,), generator=generator).tolist()) for _ in range(G)] for _ in range(items)]
    right = [[1, 0, 0, 1], [1, 1, 1, 0], [0, 1, 0, 0], [0, 0, 1, 1]]
    args = Args(group_size=G, prompts_per_step=items, filter_groups="off", mini_batch_prompts=mini,
                micro_tokens=micro_tokens, lr=1e-6, max_grad_norm=1e9)  # fmt: skip
    gradient, _, _ = run_main(monkeypatch, tmp_path, facts, right, args, ratios, lengths)
    expected = torch.zeros(2 * items, G, 3, dtype=torch.float64)
    for start in range(0, items, mini or items):
        part = range(start, start + (mini or items))
        for offset, factor in ((0, 1.0), (items, 0.1)):
            total = sum(int(lengths[offset + i].sum()) for i in part)
            for i in part:
                levels = [sum(p) / 3 for p in facts[i]]
                rewards = torch.tensor(levels if offset else right[i], dtype=torch.float64)
                A = (rewards - rewards.mean()) / (rewards.std() + 1e-6)
                A = A if offset else A * min(sum(levels) / G, 0.5)
                r = ratios[offset + i].double().exp().requires_grad_()
                loss = torch.maximum(-A[:, None] * r, -A[:, None] * r.clamp(0.8, 1.28))
                loss = torch.where(A[:, None] < 0, torch.minimum(loss, -3 * A[:, None]), loss)
                mask = torch.arange(3) < lengths[offset + i][:, None]
                (factor * (loss * mask).sum() / total).backward()
                expected[offset + i] = r.grad * r.detach()  # d/d log p
    close(gradient, expected, 1e-7)


# ------------------------------------------------------------------------------------------------- the pieces
def test_prompts_are_those_the_tiny_model_knows():
    assert Args().checklist_prompt == PROMPTS["checklist"] and Args().prompt == PROMPTS["boxed"]
    assert "{question}" in PRESETS["paper-7b"]["checklist_prompt"]
    args = parse(pearl, "--preset", "paper-7b", "--variant", "dapo")
    published = dict(group_size=5, lr=1e-6, mini_batch_prompts=128, max_new_tokens=2048, perception_coef=0.1,
                     weight_cap=0.5, gate=True, filter_groups="soft", kl_coef=0.0)  # fmt: skip
    assert {name: getattr(args, name) for name in published} == published
    assert args.overlong_buffer == VARIANTS["dapo"]["overlong_buffer"] == 0.2


@pytest.mark.parametrize("split", ["train", "test", "test_combo", "test_counter"])
def test_checklists_of_the_micro_world(split):
    for sample in open_dataset("world", split, seed=0).take(24):
        probe, dense = probe_of(sample, "anchored"), probe_of(sample, "dense")
        assert probe.meta["checklist"] == checklist(
            sample.task, sample.question, sample.meta["things"], sample.meta["relevant"]
        )
        assert fidelity(probe.answer, probe) == 1 and fidelity("", probe) == 0
        assert len(dense.meta["checklist"]) == 2 and dense == probe_of(sample, "dense")
        assert dense.question != probe.question and (probe.id, probe.images) == (sample.id, sample.images)
        assert "things" not in probe.meta and "things" in sample.meta


@pytest.mark.parametrize(
    "bad", [None, "text", [], ["a"], [{"question": "q"}], [{"question": "q", "answer": None}], {"question": "q"}, 3]
)
def test_a_missing_checklist_is_one_sentence(bad):
    sample = item(checklist=bad)
    sample.where = "d.jsonl line 2"
    with pytest.raises(SightRLError, match="d.jsonl line 2 needs a column named checklist"):
        probe_of(sample, "anchored")


@pytest.mark.parametrize(
    ("text", "answers"),
    [
        ("1. b2\n2. red", ["b2", "red"]),
        (" 1) b2 \r\n\n 2: red.", ["b2", "red."]),
        ("2. red\n1. b2", ["b2", "red"]),
        ("1. b2\n1. c3\n2. red\n2. blue", ["b2", "red"]),  # no second try
        ("Sure:\n1. b2\n3. x", ["b2", ""]),
        ("b2\nred", ["b2", "red"]),
        ("3.5\n2.5", ["3.5", "2.5"]),
        ("b2", ["b2", ""]),
        ("", ["", ""]),
    ],
)
def test_checklist_answers(text, answers):
    assert checklist_answers(text, 2) == answers


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from(["1", "2", "3.", ")", ":", " ", "\n", "b2", "\\boxed{", "}", "é"])).map("".join)
       | st.text(), st.integers(1, 5))  # fmt: skip
def test_any_text_has_a_score(text, k):
    assert len(checklist_answers(text, k)) == k
    probe = probe_of(Sample("1", "q", "a", "t", [], meta={"checklist": [{"question": "q", "answer": 3}] * k}), "")
    assert 0 <= fidelity(text, probe) <= 1


def test_long_texts():
    for text in ("1. \n" * 50_000, "1" * 200_000, " " * 200_000, "\\boxed{" * 30_000, "1." * 100_000):
        assert len(checklist_answers(text, 3)) == 3
        assert fidelity(text, probe_of(item(), "anchored")) == 0


def test_right_answers_with_wrong_facts():
    def evaluation(*scores):
        return Evaluation([{"id": str(i), "split": "test", "scores": s} for i, s in enumerate(scores)], 4)

    answers = evaluation([1, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0])
    looks = evaluation([1.0, 0.5, 1.0, 1.0], [0.0, 0.0, 0.5, 2 / 3], [0.0, 0.0, 0.0, 0.0])
    assert wrong_facts(answers, looks) == pytest.approx((3 * 0.25 + 1) / 4)
    assert wrong_facts(evaluation([0, 0]), evaluation([0, 0])) == 0


# ------------------------------------------------------------------------------------------------- whole runs
@pytest.fixture
def coins(coin_grades, monkeypatch):
    """The answers of checklists are graded by their text alone, too."""
    monkeypatch.setattr("common.rewards.grade_answer", coin)


def small(out, **options) -> Args:
    return Args(**MINUTE | GROUPS | dict(filter_groups="off", out=str(out)) | options)


@pytest.mark.usefixtures("coins")
def test_two_steps_from_end_to_end(tmp_path, capsys):
    main(small(tmp_path, filter_groups="soft"))
    folder = only_run(tmp_path)
    rows, final = metrics(folder), summary(folder)
    assert [row["step"] for row in rows] == [0, 1] and all(row["logp_mismatch"] < 1e-4 for row in rows)
    assert rows[-1]["tokens_generated"] == sum(row["tokens"] for row in rows)
    assert {"checklist", "gate/closed", "gains", "lucky", "grad_norm"} <= set(rows[0])
    assert set(final["effects"]) == {"wrong facts behind right answers", "lucky updates"}
    assert final["effects"]["lucky updates"] == {"before": 0.0, "after": 0.0}
    assert "own_comparison" in final and (folder / "own_after.json").exists()
    record = json.loads((folder / "rollouts.jsonl").read_text().splitlines()[0])
    assert {"response", "rewards", "advantage", "habit", "tokens"} <= set(record)
    assert "score on its own task before" in capsys.readouterr().out


@pytest.mark.usefixtures("coins")
@pytest.mark.parametrize(
    "options",
    [
        dict(variant="dapo", filter_groups="hard", overlong_buffer=0.5, max_rounds=2, checklist="dense"),
        dict(gate=False, weight_cap=0.0, recompute_old_logps=True, mini_batch_prompts=2, micro_tokens=1),
        dict(perception_coef=0.0, kl_coef=0.04, train_vision=False, entropy_coef=0.01, format_weight=0.1),
        dict(gate=False, filter_groups="soft", gen_prompts=2, max_rounds=3, mask_truncated=True, lora_rank=2),
    ],
)
def test_other_options_run(options, tmp_path):
    main(small(tmp_path, **dict(steps=1, eval_questions=0) | options))
    folder = only_run(tmp_path)
    assert (folder / "summary.json").exists() and metrics(folder)[0]["grad_norm"] > 0


@pytest.mark.usefixtures("coins")
def test_other_data_bring_their_checklists(tmp_path):
    rng = random.Random(0)
    for i in range(3):
        Image.new("RGB", (56, 56), tuple(rng.randrange(256) for _ in range(3))).save(tmp_path / f"{i}.png")
    rows = [{"question": "Which color?", "answer": "red", "image": f"{i}.png",
             "checklist": [{"question": "How many?", "answer": 3}, {"question": "Is it red?", "answer": "yes"}]}
            for i in range(3)]  # fmt: skip
    data = jsonl(tmp_path / "d.jsonl", rows)
    main(small(tmp_path / "runs", data=data, steps=1, eval_questions=0))
    assert metrics(only_run(tmp_path / "runs"))[0]["checklist"] > 0


@pytest.mark.usefixtures("coins")
def test_killed_and_resumed_equals_uninterrupted(tmp_path):
    options = dict(steps=3, filter_groups="soft", eval_questions=1)
    killed_and_resumed(main, lambda **more: small(**options | more), tmp_path, step=2)

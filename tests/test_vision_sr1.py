"""methods/vision_sr1.py against the golden vectors of its official code, its two passes, and whole runs."""

from __future__ import annotations

import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import close, jsonl
from hypothesis import given, settings
from hypothesis import strategies as st
from method_runs import (
    MINUTE,
    ONE_STEP,
    TableModel,
    killed_and_resumed,
    metrics,
    only_run,
    stand_in,
    summary,
    table_rollout,
)
from PIL import Image

from common.args import parse_args
from common.data import Sample
from common.world.layouts import PROMPTS
from methods import vision_sr1
from methods.vision_sr1 import PRESETS, Args, advantages_of, has_layout, main, score

EXAMPLE = Sample("1", "How many?", "3", "count", [], "number")


def written(description: str, thought: str, answer: int) -> str:
    return f"<description>{description}</description>\n<think>{thought}</think> \\boxed{{{answer}}}"


def rewards(args: Args, responses: list[str], replies: list[str]) -> list[float]:
    """R of every response, as main adds it up."""
    asked = [EXAMPLE] * len(responses)
    first, second = (SimpleNamespace(texts=texts, group_size=size, logps=torch.zeros(1))
                     for texts, size in ((responses, 2), (replies, 1)))  # fmt: skip
    _, terms = score(args, first, asked)
    told, _ = score(args, second, asked)
    return (sum(terms.values()) + args.self_weight * told).tolist()


# --------------------------------------------------------------------------------------------- golden vectors
@pytest.mark.parametrize(
    ("response", "reply", "expected"),
    [
        (written("a red square", "so 3", 3), "<think>ok</think> \\boxed{3}", 2.0),
        (written("a red square", "so 3", 3), "\\boxed{4}", 1.0),
        (written("a red square", "so 3", 4), "\\boxed{3}", 1.1),
        (written("x", "y", 4), "no box", 0.1),
        ("<think>t</think> \\boxed{3}", "\\boxed{3}", 1.9),
        (written("a", "b", 3) + " done", "", 0.9),
    ],
)
def test_golden_1_to_6_rewards(response, reply, expected):
    assert rewards(Args(), [response], [reply]) == pytest.approx([expected])


def test_golden_7_advantages_of_the_sum():
    responses = [written("d", "t", answer) for answer in (3, 4, 4, 3)]
    replies = [f"\\boxed{{{answer}}}" for answer in (3, 3, 4, 4)]
    R = rewards(Args(), responses, replies)
    assert pytest.approx([2.0, 1.1, 0.1, 1.0]) == R
    A = advantages_of(Args(group_size=4), torch.tensor(R))
    assert A.tolist() == pytest.approx([1.223050, 0.064371, -1.223050, -0.064371], abs=2e-6)


def test_golden_8_separate_advantages():
    args = Args(combine="separate", group_size=4)
    texts = [written("d", "t", answer) for answer in (3, 4, 4, 3)]
    replies = [f"<think>so</think> \\boxed{{{answer}}}" for answer in (3, 3, 4, 4)]
    for given_texts, size, expected in ((texts, 4, [1, -1, -1, 1]), (replies, 1, [1, 1, -1, -1])):
        batch = SimpleNamespace(texts=given_texts, group_size=size, logps=torch.zeros(1))
        _, terms = score(args, batch, [EXAMPLE] * 4)
        assert terms["accuracy"].max() == 1 and terms["format"].tolist() == pytest.approx([0.1] * 4)
        assert advantages_of(args, sum(terms.values())).tolist() == pytest.approx(expected, abs=1e-5)


# ------------------------------------------------------------------------------------------------- the layout
REFERENCE = re.compile(r"\s*<description>.*?</description>\s*<think>.*?</think>\s*\\boxed\{.*?\}\s*", re.DOTALL)
PIECES = ["<description>", "</description>", "<think>", "</think>", "\\boxed{", "}", " ", "\n", "a", "3"]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=9).map("".join))
def test_layout_equals_the_pattern(middle):
    for text in (middle, f"<description>a</description>{middle}\\boxed{{3}}", written("a", middle, 3)):
        assert has_layout(text) == bool(REFERENCE.fullmatch(text)), text


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=80))
def test_layout_of_any_text(text):
    assert has_layout(text) in (True, False)


def test_layout_of_long_texts():
    assert not any(has_layout("<description>" + piece * 20_000) for piece in PIECES)


def test_prompts_are_those_of_the_tiny_vlm_and_ask_for_the_tags():
    assert (Args().prompt, Args().second_prompt) == (PROMPTS["describe"], PROMPTS["from_description"])
    paper = PRESETS["paper-7b"]
    assert all(t in paper["prompt"] for t in ("{question}", "<description>", "</description>", "<think>", "\\boxed{}"))
    assert all(t in paper["second_prompt"] for t in ("{question}", "{description}", "<think>", "\\boxed{}"))


def test_published_values():
    args = parse_args(Args, "", ["--preset", "paper-7b"], preset=PRESETS)
    published = dict(
        group_size=8, temperature=1.0, top_p=0.99, max_new_tokens=2048, prompts_per_step=512, mini_batch_prompts=128,
        lr=1e-6, weight_decay=0.01, clip_low=0.2, clip_high=0.3, dual_clip=3.0, kl_coef=0.01, format_weight=0.1,
        self_weight=1.0, combine="sum", leak=True, min_pixels=262144, max_pixels=4194304)  # fmt: skip
    assert {name: getattr(args, name) for name in published} == published


# -------------------------------------------------------------------------------- both passes, through main()
OLD = [torch.tensor([[-0.5, -1.0, -0.2], [-0.3, -0.4, 0.0]]), torch.tensor([[-0.7, 0.0], [-1.0, -0.1]])]
MASKS = [torch.tensor([[1, 1, 1], [1, 1, 0]]).bool(), torch.tensor([[1, 0], [1, 1]]).bool()]
RESPONSES = [written("a red square", "so", 3), "<think>no description</think> \\boxed{4}"]
REPLIES = ["<think>so</think> \\boxed{4}", "\\boxed{3}"]


def run_with_tables(monkeypatch, folder, **options):
    """(gradients of the two tables, texts of the second pass's prompts, metrics)"""
    read = []

    def answered(vlm, prompts, group_size, **_):
        which = int(group_size == 1)
        return table_rollout(prompts, (RESPONSES, REPLIES)[which], MASKS[which], OLD[which])

    def second_prompt(vlm, template, **fields):
        read.append(fields["description"])
        return SimpleNamespace(images=[], input_ids=torch.zeros(2), row=len(read) - 1)

    def table_logps(vlm, prompts, tokens, mask, **_):
        second = hasattr(prompts[0], "row")  # its groups of one come in any order
        logps = vlm.tables[1][[p.row for p in prompts]] if second else vlm.tables[0]
        return logps[:, : mask.shape[1]] * mask, torch.zeros(mask.shape)

    vlm = TableModel(*OLD)
    stand_in(monkeypatch, vlm, [EXAMPLE], {
        "common.training.make_text_prompt": second_prompt,
        "common.rollout.rollout": answered,
        "common.logprob.response_logps": table_logps,
    })  # fmt: skip
    main(Args(out=str(folder), **ONE_STEP, group_size=2, kl_coef=0.0, **options))
    return [sum(seen) if seen else None for seen in vlm.gradients], read, metrics(only_run(folder))[0]


def expected_gradient(which: int, rewards: list[float], std: float, weight: float) -> torch.Tensor:
    """On the sampling policy the gradient of the clipped loss is -A / tokens; in float64."""
    R = torch.tensor(rewards, dtype=torch.float64)
    A = (R - R.mean()) / (std + 1e-6)
    return -weight * A[:, None] * MASKS[which] / MASKS[which].sum()


def test_the_sum_trains_the_first_pass_alone(monkeypatch, tmp_path):
    gradients, read, row = run_with_tables(monkeypatch, tmp_path)
    R = [0.9 + 0.1 + 0.0, 0.0 + 0.0 + 1.0]  # right and described but not told; wrong but told: the answer leaked
    assert read == ["a red square", RESPONSES[1]]
    assert gradients[1] is None and (gradients[0] is None or gradients[0].abs().max() < 1e-6)  # R is equal
    assert row["reward/mean"] == pytest.approx(sum(R) / 2) and row["reward/self"] == 0.5
    assert row["tokens"] == 5 + 3 and row["second/no_description"] == 0.5 and row["second/accuracy"] == 0.5


def test_separate_advantages_train_both_passes(monkeypatch, tmp_path):
    gradients, read, row = run_with_tables(monkeypatch, tmp_path, combine="separate", leak=False)
    assert read == ["a red square", ""]
    expected = [expected_gradient(0, [1.1, 0.0], 0.55, 0.5), expected_gradient(1, [0.1, 1.0], 0.45, 0.5)]
    for gradient, wanted in zip(gradients, expected, strict=True):
        close(gradient, wanted)


def test_without_self_reward_nothing_is_asked_twice(monkeypatch, tmp_path):
    gradients, read, row = run_with_tables(monkeypatch, tmp_path, self_reward=False)
    assert read == [] and row["tokens"] == 5 and "reward/self" not in row
    wanted = expected_gradient(0, [1.0, 0.0], float(np.std([1, 0], ddof=1)), 1.0)
    close(gradients[0], wanted)


# ------------------------------------------------------------------------------------------------- whole runs
SMALL = MINUTE | dict(eval_questions=1, max_new_tokens=5, prompts_per_step=2, group_size=2)


def test_two_steps_with_every_part(coin_grades, tmp_path):
    main(Args(out=str(tmp_path), **SMALL))
    rows, effects = metrics(only_run(tmp_path)), summary(only_run(tmp_path))["effects"]
    assert all(row["logp_mismatch"] < 1e-4 and row["kl"] >= 0 and row["grad_norm"] is not None for row in rows)
    assert rows[-1]["tokens_generated"] == sum(row["tokens"] for row in rows)
    assert all(row["second/no_description"] == 1 for row in rows)
    names = {"language shortcut rate", "leak rate", "description recall", "accuracy on test_counter", "response length"}
    assert set(effects) == names and effects["leak rate"]["after"] == 1


@pytest.mark.parametrize(
    "options",
    [
        dict(combine="separate", mini_batch_prompts=1, micro_tokens=1),
        dict(self_reward=False, kl_coef=0.0, train_vision=False),
        dict(combine="separate", leak=False, self_reward=True, lora_rank=2, rollout_rows=2),
        dict(self_weight=0.5, format_weight=0.0, top_p=0.9, limit=2),
    ],
)
def test_other_options_run(options, coin_grades, tmp_path):
    main(Args(out=str(tmp_path), **SMALL | dict(steps=1, eval_questions=0) | options))
    assert (only_run(tmp_path) / "summary.json").exists()


def test_own_data_with_a_picture_mark(coin_grades, tmp_path):
    Image.new("RGB", (56, 56), "red").save(tmp_path / "a.png")
    row = {"question": "<image> What color is it?", "answer": "red", "image": "a.png"}
    options = SMALL | dict(steps=1, eval_questions=0, data=jsonl(tmp_path / "d.jsonl", [row, row]))
    main(Args(out=str(tmp_path / "runs"), **options))
    assert metrics(only_run(tmp_path / "runs"))[0]["tokens"] > 0


def test_killed_and_resumed_equals_uninterrupted(coin_grades, tmp_path):
    options = SMALL | dict(eval_questions=1, combine="separate")
    killed_and_resumed(main, lambda **more: Args(**options | more), tmp_path, step=1)


def test_the_plan_knows_the_models(capsys):
    vision_sr1.main(parse_args(Args, "", ["--preset", "paper-7b", "--dry-run"], preset=PRESETS))
    assert "8.292 billion" in " ".join(capsys.readouterr().out.split())

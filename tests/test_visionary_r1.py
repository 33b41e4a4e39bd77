"""methods/visionary_r1.py against the golden vectors of its official code, its second call, and whole runs."""

from __future__ import annotations

import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import close, coin, jsonl
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
from methods.visionary_r1 import PRESETS, Args, accuracy, beta_at, caption_of, caption_rewards, has_layout, main, score


def sample(answer: str, problem_type: str = "numerical") -> Sample:
    return Sample("1", "What?", answer, "task", [], meta={"problem_type": problem_type})


def written(answer: str, info: str = "a red square") -> str:
    return f"<info>{info}</info> <think>so</think> <answer>{answer}</answer>"


# --------------------------------------------------------------------------------------------- golden vectors
@pytest.mark.parametrize(
    ("answer", "gold", "kind", "expected"),
    [
        ("12%", "0.12", "numerical", 1), ("about 12 apples", "12", "numerical", 1), ("1,200", "1200", "numerical", 0),
        ("", "5", "numerical", 0), ("Red", "red", "other", 1), ("A.", "A", "multiple choice", 0),
        ("colour", "color", "OCR", 0.833333), ("STOP", "stop", "OCR", 1), ("-.5 m", "-0.5", "OCR", 1),
        ("a red square left of a circle", "the red square is left of the circle", "free-form", 0.547009),
    ],
)  # fmt: skip
def test_golden_1_to_4_grades(answer, gold, kind, expected):
    assert accuracy(written(answer), sample(gold, kind)) == pytest.approx(expected, abs=1e-6)


def test_golden_5_layout():
    good = written("red")
    assert has_layout(good) and has_layout(good.replace("</info> ", "</info>\n"))
    assert not has_layout(good.replace("</info> ", "</info>")) and not has_layout(good.replace("</info> ", "</info>  "))
    assert not has_layout(good + "\n") and has_layout(good.replace("</think> ", "</think>"))


def test_golden_6_annealing():
    betas = [beta_at(Args(), progress) for progress in (0, 0.25, 0.5, 0.75, 1)]
    assert betas == pytest.approx([0.04, 0.0341421, 0.02, 0.0058579, 0], abs=1e-7)
    assert beta_at(Args(), 1.5) == 0 and beta_at(Args(anneal=False), 0.75) == 0.04


@pytest.mark.parametrize(("bugs", "call", "total"), [("none", 5, 2.1), ("growing", 2, 2.2), ("growing", 5, 2.5)])
def test_golden_7_the_caption_term(bugs, call, total):
    args, asked = Args(bugs=bugs, group_size=1), [sample("red", "other")]
    batch = SimpleNamespace(texts=[written("Red")], logps=torch.zeros(1))
    _, terms = score(args, batch, asked)
    (caption,) = caption_rewards(args, {0: "a red square"}, [" red\n"], asked, call)
    assert float(sum(terms.values())) + caption == pytest.approx(total)


# ------------------------------------------------------------------------------------------------- the pieces
def test_captions_lie_on_one_line():
    assert caption_of("x <info> a </info> <info>b</info>") == "a" and caption_of("<info></info>") == ""
    assert caption_of("<info>a\nb</info>") is None and caption_of("<info>a\n<info>b</info>") == "b"
    assert caption_of("</info><info>") is None


def test_refused_captions_earn_nothing_and_the_rule_catches_more():
    asked, captions = [sample("red", "other")], {0: "so it is red", 1: "a1 red circle"}
    replies = ["red", "Hacking Sample "]
    assert caption_rewards(Args(group_size=2), captions, replies, asked, 1) == pytest.approx([0.1, 0])
    assert caption_rewards(Args(group_size=2, checker="rule"), captions, replies, asked, 1) == [0, 0]


def test_shifted_rewards_go_to_the_first_responses_of_their_group():
    asked, captions = [sample("red", "other"), sample("blue", "other")], {1: "a", 2: "b", 5: "c"}
    replies = ["red", "green", "blue"]
    aligned = caption_rewards(Args(group_size=3), captions, replies, asked, 1)
    assert aligned == pytest.approx([0, 0.1, 0, 0, 0, 0.1])
    shifted = caption_rewards(Args(group_size=3, bugs="shifted"), captions, replies, asked, 1)
    assert shifted == pytest.approx([0.1, 0, 0, 0.1, 0, 0])


def test_boxes_and_the_micro_world_are_graded_as_elsewhere():
    world = Sample("1", "How many?", "3", "count", [], "number", {"things": []})
    assert accuracy(written("3.0"), world) == 1 and accuracy(written("3 or 4"), world) == 0
    box = Sample("1", "Where?", "[10, 10, 50, 50]", "locate", [], "box")
    assert accuracy(written("[12, 10, 50, 50]"), box) == 1 and accuracy("[12, 10, 50, 50]", box) == 0
    assert accuracy(written("colour"), Sample("1", "", "color", "OCR", [])) > 0.8  # the task names the type


REFERENCE = re.compile(r"<info>.*?</info>\s<think>.*?</think>\s*<answer>.*?</answer>", re.DOTALL)
CAPTION = re.compile(r"<info>(.*?)</info>")
PIECES = ["<info>", "</info>", "<think>", "</think>", "<answer>", "</answer>", " ", "\n", "a"]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=9).map("".join))
def test_layout_and_captions_equal_the_patterns(middle):
    for text in (middle, f"<info>a</info> {middle}</answer>", written("a", middle), written(middle)):
        assert has_layout(text) == bool(REFERENCE.fullmatch(text)), text
        found = CAPTION.search(text)
        assert caption_of(text) == (found and found.group(1).strip()), text


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=60), st.sampled_from(["OCR", "free-form", "numerical"]), st.sampled_from(["0.5", "red", "a b"]))
def test_any_answer_gets_a_grade(text, kind, gold):
    assert 0 <= accuracy(written(text), sample(gold, kind)) <= 1
    assert has_layout(text) in (True, False) and (caption_of(text) is None or "<info>" in text)


def test_long_texts_take_no_time():
    for piece in PIECES:
        text = "<info>a</info> <think>" + piece * 20_000
        assert not has_layout(text) and caption_of(text) == "a" and accuracy(text, sample("red", "OCR")) <= 1


def test_prompts_are_those_of_the_tiny_vlm_and_ask_for_the_blocks():
    assert (Args().prompt, Args().caption_prompt) == (PROMPTS["info"], PROMPTS["from_caption"])
    assert all(f"<{t}>" in PRESETS["paper-3b"]["prompt"] for t in ("info", "think", "answer"))


def test_published_values(capsys):
    args = parse_args(Args, "", ["--preset", "paper-3b"], preset=PRESETS)
    published = dict(group_size=8, top_p=0.9, temperature=0.9, max_new_tokens=768, lr=5e-7, kl_coef=0.04, anneal=True,
                     caption_weight=0.1, advantage_eps=1e-4, max_pixels=2359296, mini_batch_prompts=0,
                     bugs="none")  # fmt: skip
    assert {name: getattr(args, name) for name in published} == published
    args.dry_run = True
    main(args)
    assert "3.755 billion" in " ".join(capsys.readouterr().out.split())


# -------------------------------------------------------------------------------- reward and loss, through main()
OLD = torch.tensor([[-3.5, -1.0, -0.2], [-0.3, -0.4, 0.0], [-0.9, -0.1, -0.2]])
REF = torch.tensor([[-0.6, -1.0, -0.1], [-0.3, -0.9, 0.0], [-0.4, -0.1, -0.2]])
MASK = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 1, 1]]).bool()
assert (REF - OLD).max() > 2.7  # there k3 is above 10, where verl cuts it and TRL does not
TEXTS = [written("red"), "<answer>blue</answer>", written("red", "so it is red")]


class TableModelWithReference(TableModel):
    """It has a reference model, which REF gives the log-probs of."""

    asking_reference = False

    def reference(self):
        return self

    def __enter__(self):
        self.asking_reference = True

    def __exit__(self, *_):
        self.asking_reference = False


def test_main_reproduces_reward_and_gradient_in_float64(monkeypatch, tmp_path):
    captions = []

    def answered(vlm, prompts, group_size, **_):
        texts = TEXTS if group_size > 1 else ["red", "Hacking Sample"]
        return table_rollout(prompts, texts, MASK[: len(texts)], OLD[: len(texts)])

    vlm = TableModelWithReference(OLD)
    stand_in(monkeypatch, vlm, [sample("red", "other")], {
        "common.training.make_text_prompt": lambda vlm, template, **fields: captions.append(fields["caption"]),
        "common.rollout.rollout": answered,
        "common.logprob.response_logps": lambda vlm, prompts, tokens, mask, **_: (
            (REF if vlm.asking_reference else vlm.table) * mask, torch.zeros(mask.shape)),
    })  # fmt: skip
    # The first of two steps anneals nothing, so a half-spent budget of tokens is what makes beta fall here.
    main(Args(out=str(tmp_path), **ONE_STEP | dict(steps=2), budget_tokens=16, group_size=3))
    assert captions[:2] == ["a red square", "so it is red"]
    rows = metrics(only_run(tmp_path))
    assert [row["beta"] for row in rows] == pytest.approx([0.04, 0.02 * (1 + np.cos(np.pi * 13 / 16))])
    assert rows[0]["tokens"] == 8 + 5 and rows[0]["caption/hacking"] == 0.5
    assert rows[0]["reward/caption"] == pytest.approx(0.1 / 3)
    R = np.array([1 + 1 + 0.1, 0, 1 + 1 + 0])
    A = (R - R.mean()) / (R.std(ddof=1) + 1e-4)
    kl_slope = 1 - np.exp(REF.double().numpy() - OLD.double().numpy())  # of k3 with respect to log p
    mask = MASK.double().numpy()
    expected = (-A[:, None] + 0.04 * kl_slope) * mask / mask.sum(1, keepdims=True) / 3
    close(vlm.gradients[0][0], expected)


# ------------------------------------------------------------------------------------------------- whole runs
SMALL = MINUTE | dict(eval_questions=1, max_new_tokens=5, prompts_per_step=2, group_size=2)


@pytest.fixture
def coin_grades(coin_grades, monkeypatch):
    """A random model never captions either."""
    monkeypatch.setattr("methods.visionary_r1.accuracy", coin)
    monkeypatch.setattr("methods.visionary_r1.caption_of", lambda text: text if coin(text + "!") else None)


def test_two_steps_with_every_part(coin_grades, tmp_path):
    main(Args(out=str(tmp_path), **SMALL))
    rows, effects = metrics(only_run(tmp_path)), summary(only_run(tmp_path))["effects"]
    assert all(row["logp_mismatch"] < 1e-4 and row["kl"] >= 0 and row["grad_norm"] is not None for row in rows)
    assert rows[-1]["tokens_generated"] == sum(row["tokens"] for row in rows)
    assert [row["beta"] for row in rows] == pytest.approx([0.04, 0.02]) and "reward/caption" in rows[0] | rows[1]
    names = {"language shortcut rate", "leak rate", "description recall", "accuracy on test_counter", "response length"}
    assert set(effects) == names


@pytest.mark.parametrize(
    "options",
    [
        dict(caption_weight=0.0, anneal=False, mini_batch_prompts=1, micro_tokens=1),
        dict(kl_coef=0.0, bugs="growing+shifted", checker="rule", train_vision=False),
        dict(lora_rank=2, rollout_rows=2, kl_kind="k1", eval_every=1, eval_questions=1, limit=2),
    ],
)
def test_other_options_run(options, coin_grades, tmp_path):
    main(Args(out=str(tmp_path), **SMALL | dict(steps=1, eval_questions=0) | options))
    assert (only_run(tmp_path) / "summary.json").exists()


def test_own_data_with_problem_types(tmp_path):
    Image.new("RGB", (56, 56), "red").save(tmp_path / "a.png")
    row = {"problem": "<image> What is written?", "solution": "<answer>stop</answer>", "image": "a.png"}
    rows = [row | {"problem_type": kind} for kind in ("OCR", "free-form", "numerical")]
    options = SMALL | dict(steps=1, eval_questions=0, data=jsonl(tmp_path / "d.jsonl", rows))
    main(Args(out=str(tmp_path / "runs"), **options))
    assert metrics(only_run(tmp_path / "runs"))[0]["tokens"] > 0


def test_killed_and_resumed_equals_uninterrupted(coin_grades, tmp_path):
    killed_and_resumed(main, lambda **more: Args(**SMALL | more), tmp_path, step=1)

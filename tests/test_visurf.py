"""methods/visurf.py: the golden vectors of its card, its loss, labels, marks, variants, kill and resume."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import close, jsonl, read_lines
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
    stand_in,
    summary,
    table_rollout,
)
from PIL import Image

from common.args import PROMPT
from common.data import Sample, open_dataset
from common.errors import SightRLError
from common.grpo import group_advantages
from common.world.layouts import PROMPTS
from methods import visurf
from methods.visurf import Args, control, effects_of, main, marks, score, task_of

FULL = '<think>Looking for it: b2.</think> <answer>[{"bbox_2d": [10, 20, 30, 40]}]</answer>'


pytestmark = pytest.mark.usefixtures("one_thread")


def sample(answer: str, answer_type: str = "boxes", **meta: object) -> Sample:
    return Sample("x:1", "where?", answer, "task", [], answer_type, meta, where="x.jsonl line 1")


def rewards_of(label: float, rollouts: list[float], **options) -> torch.Tensor:
    """r(y), r(o) after control; neither thinks."""
    values = torch.tensor([float(label), *rollouts])
    terms = {"thinking": torch.zeros_like(values), "format": torch.zeros_like(values), "accuracy": values}
    return control(Args(**options), terms, len(values))


def advantages(label: float, rollouts: list[float], **options) -> torch.Tensor:
    return group_advantages(rewards_of(label, rollouts, **options), 1 + len(rollouts), eps=Args().advantage_eps)


# --------------------------------------------------------------------------------------------- golden vectors
@pytest.mark.parametrize(
    ("label", "rollouts", "smooth", "expected"),
    [
        (1, [0, 0, 0, 0], 1, [1.788850] + [-0.447213] * 4),
        (2, [1, 0, 0, 1], 2, [1.434273, 0.239045, -0.956182, -0.956182, 0.239045]),
        (1, [1, 0, 0, 1], 0.5, [0, 0.999998, -0.999998, -0.999998, 0.999998]),
        (1, [1, 1, 1, 1], 1, [0, 0, 0, 0, 0]),
        (1, [0.5, 1.2, 0.3, 0.9], 0.725, [0, -0.644502, 1.360614, -1.217392, 0.501279]),
    ],
)
def test_golden_1_to_5_smoothing_and_advantages(label, rollouts, smooth, expected):
    close(rewards_of(label, rollouts), [smooth, *rollouts])
    close(advantages(label, rollouts), expected)


def test_golden_3_against_plain_grpo():
    close(group_advantages(torch.tensor([1.0, 0, 0, 1]), 4, eps=1e-6), [0.866024, -0.866024, -0.866024, 0.866024])


def scored(args: Args, texts: list[str], samples: list[Sample]) -> dict[str, torch.Tensor]:
    G = len(texts) // len(samples)
    batch = SimpleNamespace(texts=texts, group_size=G, logps=torch.zeros(len(texts), 1))
    return score(args, batch, samples)[1]


def test_golden_6_the_label_earns_nothing_for_thinking():
    gold = sample('[{"bbox_2d": [10, 20, 30, 40]}]')
    label = f"<answer>{gold.answer}</answer>"
    poor = "<think>so</think> <answer>somewhere</answer>"  # thinking alone: 1
    wrong = '<think>so</think> <answer>[{"bbox_2d": [50, 60, 70, 80]}]</answer>'  # thinking and format: 2
    equal = Args(accuracy_weight=1.0)
    assert [sum(t) for t in zip(*scored(equal, [FULL, label], [gold]).values(), strict=True)] == [3, 2]
    rewards = control(equal, scored(equal, [label, poor, poor, poor, poor], [gold]), 5)
    close(rewards, [2.0, 1, 1, 1, 1])
    close(group_advantages(rewards, 5)[0], 1.788850)
    silent = control(equal, scored(equal, [label, poor, wrong, poor, poor], [gold]), 5)
    assert silent[0] == 1.25 and group_advantages(silent, 5)[0].abs() < 1e-6
    # which is why boxes weigh 2 here: a well-formed failure must not silence the label
    speaks = control(Args(), scored(Args(), [label, wrong, wrong, wrong, wrong], [gold]), 5)
    close(speaks, [3.0, 2, 2, 2, 2])
    with_think = control(Args(eliminate_think=False), scored(Args(), [label, wrong, wrong, FULL, wrong], [gold]), 5)
    close(with_think, [2.5, 2, 2, 4, 2])  # r(y) = 4 is reached by one rollout
    unsmoothed = control(Args(smoothing=False), scored(Args(), [label, FULL, FULL, FULL, FULL], [gold]), 5)
    close(unsmoothed, [3.0, 4, 4, 4, 4])


def test_equal_rollouts_silence_the_label_exactly():
    for value in (0.2, 0.1, 1 / 3, 2.7):
        rewards = rewards_of(0.1, [value] * 8)
        assert (rewards == rewards[0]).all() and not advantages(0.1, [value] * 8).any()


# ------------------------------------------------------------------------------------ the update through main()
OLD = torch.tensor([[-0.9, -0.6, -0.3], [-0.5, -1.0, -0.2], [-0.3, -0.4, 0.0], [-0.7, -0.2, -0.9], [-2.0, 0.0, 0.0]])
NEW = torch.tensor([[-0.6, -0.6, -0.3], [-0.5, -0.7, -0.6], [-0.3, -0.9, 0.0], [-0.7, -0.1, -0.9], [-1.5, 0.0, 0.0]])
MASK = OLD.ne(0)  # the label first, then four rollouts


def gradient_of(monkeypatch, out: Path, now: torch.Tensor, texts: list[str], **options) -> torch.Tensor:
    """d loss / d log-probs of the first step: rows of the table are the label and four rollouts."""
    gold = sample('[{"bbox_2d": [10, 20, 30, 40]}]')

    def rows(prompts: list, part: slice, texts: list[str]):
        return table_rollout(prompts, texts, MASK[part], OLD[part])

    vlm = TableModel(now)
    first = 0 if options.get("variant") != "grpo" else 1
    stand_in(monkeypatch, vlm, [gold], {
        "common.rollout.rollout": lambda vlm, prompts, group_size, **_: rows(prompts, slice(1, 5), texts),
        "common.rollout.forced_rollout": lambda vlm, prompts, texts, **_: rows(prompts, slice(0, 1), texts),
        "common.logprob.response_logps": lambda vlm, prompts, tokens, mask, **_: (
            vlm.table[first : first + len(tokens)] * mask, torch.zeros(mask.shape)),
    })  # fmt: skip
    main(Args(out=str(out), **ONE_STEP, group_size=4, **options))
    return sum(vlm.gradients[0], torch.zeros_like(now))


FAIL = '<think>so</think> <answer>[{"bbox_2d": [50, 60, 70, 80]}]</answer>'


def test_golden_7_only_with_the_label_an_all_fail_group_has_a_gradient(monkeypatch, tmp_path):
    assert not gradient_of(monkeypatch, tmp_path / "a", OLD, [FAIL] * 4, variant="grpo").any()
    gradient = gradient_of(monkeypatch, tmp_path / "b", OLD, [FAIL] * 4)
    close(-gradient[0].sum(), 0.357770)  # A_y / (G + 1), the label being on policy
    (row,) = metrics(only_run(tmp_path / "b"))
    assert row["label/advantage"] == pytest.approx(1.788850, abs=1e-5) and row["tokens"] == int(MASK.sum())


@pytest.mark.parametrize("loss_mean", ["sequence_mean", "sequence_sum"])
def test_loss_against_the_formula_in_float64(monkeypatch, tmp_path, loss_mean):
    texts = [FAIL, "<think>so</think> <answer>", "no", FAIL]  # rewards 2, 0, 0, 2 against 3 for the label
    actual = gradient_of(monkeypatch, tmp_path, NEW, texts, loss_mean=loss_mean)
    r = torch.tensor([3.0, 2, 0, 0, 2], dtype=torch.float64)
    A = ((r - r.mean()) / (r.std() + 1e-6))[:, None]
    logps = NEW.double().requires_grad_()
    rho = (logps - OLD.double()).exp()
    tokens = torch.minimum(rho * A, rho.clamp(0.8, 1.2) * A) * MASK
    sums = tokens.sum(1) / (MASK.sum(1) if loss_mean == "sequence_mean" else 1)
    (-sums.sum() / 5).backward()
    close(actual, logps.grad)


def test_sft_is_the_label_with_weight_one(monkeypatch, tmp_path):
    gradient = gradient_of(monkeypatch, tmp_path, OLD, [FAIL] * 4, variant="sft")
    close(gradient, torch.cat([torch.full((1, 3), -1 / 3), torch.zeros(4, 3)]))
    (row,) = metrics(only_run(tmp_path))
    assert row["tokens"] == 3 and row["label/advantage"] == 0


# ------------------------------------------------------------------------------------------ the task and the label
def test_the_prompt_is_the_one_the_tiny_model_knows():
    assert Args().own_prompt == PROMPTS["answer"] and Args().prompt == PROMPT


def test_world_samples_become_searches():
    found = [task_of(Args(), s) for s in open_dataset("world", "test").take(60)]
    assert {s.task for s in found} == {"target", "no target"}
    assert 0.15 < sum(s.task == "no target" for s in found) / 60 < 0.5
    for s in found:
        assert s.question.startswith("Where is the ") and s.question.endswith("Give a JSON list of boxes.")
        assert s == task_of(Args(), s)  # the same again, whatever the sample was
        boxes = [entry["bbox_2d"] for entry in json.loads(s.answer)]
        things = [t for t in s.meta["things"] if f"{t['color']} {t['shape']}?" in s.question]
        assert boxes == [t["box"] for t in things] and s.meta["relevant"] == [t["cell"] for t in things]
        assert marks(f"<answer>{s.answer}</answer>", s) == (0, 1, 1)
        assert marks(f"<think>so</think> <answer>{s.answer}</answer>", s) == (1, 1, 1)


def test_alignment_is_a_matter_of_blanks():
    s = open_dataset("world", "train").take(40)[3]
    aligned, raw = task_of(Args(), s).answer, task_of(Args(align=False), s).answer
    assert aligned.startswith('[{"bbox_2d": [') and ", " in aligned
    assert raw == aligned.replace(" ", "") and marks(f"<answer>{raw}</answer>", task_of(Args(), s)) == (0, 1, 1)


def test_labels_of_other_data():
    one = task_of(Args(), sample("[1, 2, 30, 40]", "box"))
    assert (one.answer, one.answer_type, one.task) == ('[{"bbox_2d": [1, 2, 30, 40]}]', "boxes", "target")
    many = task_of(Args(), sample('```json\n[{"bbox_2d":[1,2,3,4],"label":"cat"}]\n```', "text"))
    assert many.answer == '[{"bbox_2d": [1, 2, 3, 4], "label": "cat"}]' and many.answer_type == "boxes"
    for kind in ("box", "boxes", "text"):
        assert task_of(Args(), sample(" []" if kind == "text" else "[]", kind)).task == "no target"
    text = sample("3", "number")
    assert task_of(Args(), text) is text
    assert marks("<think>so</think> <answer>3</answer>", text) == (1, 1, 1)
    assert marks("<think>so</think> <answer>4</answer>", text) == (1, 1, 0)
    for answer, kind in (("somewhere", "box"), ("[1, 2]", "boxes"), ("", "text")):
        with pytest.raises(SightRLError, match=r"x\.jsonl line 1 has no label.*--columns answer=NAME\.$"):
            task_of(Args(), sample(answer, kind))


# ------------------------------------------------------------------------------------------------------- marks
@pytest.mark.parametrize(
    ("answer", "nothing", "box"),
    [
        ("[]", (1, 1), (1, 0)), (" [ ] ", (1, 1), (1, 0)),
        ('[{"bbox_2d": [10, 20, 30, 40]}]', (1, 0), (1, 1)),
        ('[{"bbox_2d": [10, 20, 30, 32]}]', (1, 0), (1, 1)),  # IoU 0.6
        ('[{"bbox_2d": [10, 20, 30, 29]}]', (1, 0), (1, 0)),  # IoU 0.45
        ('[{"bbox_2d": [10, 20, 30, 40]}, {"bbox_2d": [60, 60, 70, 70]}]', (1, 0), (1, 2 / 3)),
        ('[{"bbox_2d": [30, 20, 10, 40]}]', (0, 0), (0, 0)),  # no box, but not "nothing" either
        ("[0]", (0, 0), (0, 0)), ("{}", (0, 0), (0, 0)), ("none", (0, 0), (0, 0)), ("", (0, 0), (0, 0)),
        ('[{"bbox_2d": [10, 20, 1e999, 40]}]', (0, 0), (0, 0)), ("[" * 100_000, (0, 0), (0, 0)),
        ('[{"bbox_2d": [10, 20, 30, 40], "label": "\\\\boxed{[]}"}]', (1, 0), (1, 0)),  # another label than asked for
    ],
)  # fmt: skip
def test_marks_of_boxes(answer, nothing, box):
    text = f"<think>a</think><answer>{answer}</answer>"
    assert marks(text, sample("[]"))[1:] == pytest.approx(nothing)
    assert marks(text, sample('[{"bbox_2d": [10, 20, 30, 40]}]'))[1:] == pytest.approx(box)


@pytest.mark.parametrize(
    ("text", "thinking"),
    [
        (FULL, 1), (f"  {FULL}\n", 1), (FULL.replace("> <", ">\n<"), 1), (FULL + " Done.", 0), ("So: " + FULL, 0),
        (FULL.replace("</think>", ""), 0), (FULL.replace("<think>", ""), 0), (FULL.removesuffix("</answer>"), 0),
        ("<answer>[]</answer>", 0), ("<answer>[]</answer><think>late</think>", 0), ("", 0),
    ],
)  # fmt: skip
def test_thinking_format(text, thinking):
    assert marks(text, sample("[]"))[0] == thinking


def test_the_answer_is_read_after_the_thought():
    text = "<think>perhaps <answer>[]</answer></think> " + FULL.partition("</think> ")[2]
    assert marks(text, sample("[]"))[2] == 0 and marks(text, sample('[{"bbox_2d": [10, 20, 30, 40]}]'))[2] == 1


PIECES = st.sampled_from(
    ["<think>", "</think>", "<answer>", "</answer>", "[", "]", "{", "}", '"bbox_2d": ', "[1, 2, 3, 4]", ",", "\\boxed{",
     "1e999", "NaN", "-1", "null", '"', "\\", "```json", "9" * 5000, "\ud800", "\x00", " ",
     '[{"bbox_2d": [10, 20, 30, 40]}]', '"label": {}'])  # fmt: skip
TEXTS = st.one_of(st.text(), st.lists(PIECES, max_size=30).map("".join),
                  st.lists(PIECES, max_size=20).map(lambda parts: f"<answer>{''.join(parts)}</answer>"))  # fmt: skip


@settings(max_examples=300, deadline=None, derandomize=True)
@given(TEXTS)
def test_marks_are_total(text):
    boxes = '[{"bbox_2d": [10, 20, 30, 40]}]'
    for gold in (sample("[]"), sample(boxes), sample("3", "number"), sample("yes", "yesno")):
        assert all(0 <= mark <= 1 for mark in marks(text, gold))


@pytest.mark.parametrize(
    "unit", ["<think>", "</think>", "<answer>", "<answer></answer>", "[", '{"bbox_2d": [', "1, ", '"']
)
def test_long_responses_take_linear_time(unit):
    text = unit * 100_000
    for gold in (sample('[{"bbox_2d": [10, 20, 30, 40]}]'), sample("3", "number")):
        for written in (text, f"<answer>{text}</answer>", f"<think>{text}</think>{text}"):
            assert marks(written, gold)[2] == 0


# -------------------------------------------------------------------------------------------------------- runs
def small(out: Path, **options) -> Args:
    return Args(**MINUTE | GROUPS | dict(out=str(out), eval_questions=0) | options)


def coin(text: str, sample: Sample) -> tuple[float, float, float]:
    """Marks that depend on the text alone; a random model would never get any."""
    n = zlib.crc32(text.encode("utf-8", "replace"))
    return n // 2 % 2, n // 4 % 2, n // 8 % 2


def test_two_steps_from_the_outside(tmp_path, capsys):
    main(small(tmp_path, eval_questions=3, eval_every=1))
    folder = only_run(tmp_path)
    rows = metrics(folder)
    assert [row["step"] for row in rows] == [0, 1] and rows[-1]["tokens_generated"] == sum(r["tokens"] for r in rows)
    # nothing that a random model writes earns a mark, so every label stands out: A_y of (3, 0, 0, 0)
    assert all(row["label/advantage"] == pytest.approx(1.5, abs=1e-4) and row["groups/used"] == 3 for row in rows)
    assert all(row["logp_mismatch"] < 1e-4 and row["grad_norm"] > 0 and row["entropy"] > 0 for row in rows)
    records = read_lines(folder / "rollouts.jsonl")
    label, *others = records[:4]
    assert label["response"].startswith("<answer>[") and label["rewards"] == {"thinking": 0, "format": 1, "accuracy": 2}
    assert label["advantage"] > 0 > others[0]["advantage"]
    effects = summary(folder)["effects"]
    names = {"no target accuracy", "target accuracy", "words of thought", "different responses"}
    assert set(effects) == names and all(set(pair) == {"before", "after"} for pair in effects.values())
    questions = [r["question"] for r in json.loads((folder / "own_after.json").read_text())["records"]]
    assert len(questions) == 9 and all(q.startswith("Where is the ") for q in questions)
    assert any(not r["question"].startswith("Where is the ")
               for r in json.loads((folder / "eval_after.json").read_text())["records"])  # fmt: skip
    assert "score on its own task" in capsys.readouterr().out


@pytest.mark.parametrize(
    "options",
    [
        dict(variant="grpo", recompute_old_logps=True), dict(variant="sft", train_vision=False),
        dict(align=False, eliminate_think=False, mini_batch_prompts=1, train_vision=False),
        dict(smoothing=False, loss_mean="sequence_sum", micro_tokens=1, lora_rank=2, accuracy_weight=1.0),
    ],
)  # fmt: skip
def test_variants_and_ablations_run(options, tmp_path, monkeypatch):
    monkeypatch.setattr(visurf, "marks", coin)
    main(small(tmp_path, **options))
    rows = metrics(only_run(tmp_path))
    assert any(row["groups/used"] or options.get("variant") == "sft" for row in rows)
    assert all(row["logp_mismatch"] < 1e-4 for row in rows if "logp_mismatch" in row)


def test_sft_then_grpo_changes_over_at_half_of_the_steps_or_tokens(tmp_path, monkeypatch):
    monkeypatch.setattr(visurf, "marks", coin)
    main(small(tmp_path / "steps", variant="sft_grpo", steps=4, checkpoint_every=9))
    records = read_lines(only_run(tmp_path / "steps") / "rollouts.jsonl")
    labels = [record["response"].startswith("<answer>") for record in records]
    assert labels == [True] * 2 + [False] * 6  # one label a step, then groups of three
    main(small(tmp_path / "tokens", variant="sft_grpo", steps=99, budget_tokens=400, checkpoint_every=99))
    rows = metrics(only_run(tmp_path / "tokens"))
    sampled = [row["length"] <= 6 for row in rows]  # L_max of rollouts; labels are longer
    assert sampled == sorted(sampled) and sampled[-1] and not sampled[0]
    assert rows[sampled.index(True) - 1]["tokens_generated"] >= 200


def test_rows_with_a_label_text(tmp_path):
    Image.new("RGB", (56, 56), "red").save(tmp_path / "a.png")
    row = {"question": "the dog", "answer": "[]", "answer_type": "boxes", "image": "a.png", "label_text": "no dog"}
    main(small(tmp_path / "runs", data=jsonl(tmp_path / "d.jsonl", [row]), steps=1))
    assert read_lines(only_run(tmp_path / "runs") / "rollouts.jsonl")[0]["response"] == "no dog"


@pytest.mark.parametrize("variant", ["visurf", "sft_grpo"])
def test_killed_and_resumed_equals_uninterrupted(variant, tmp_path, monkeypatch):
    monkeypatch.setattr(visurf, "marks", coin)
    killed_and_resumed(main, lambda **more: small(variant=variant, steps=3, **more), tmp_path, step=2)


def test_effects_count_words_and_different_responses():
    def stats():
        return {"tasks": {"target": {"avg@k": 0.5}}}

    own = SimpleNamespace(
        records=[{"responses": [FULL, FULL]}, {"responses": ["<answer>[]</answer>", "x"]}], summary=stats
    )
    expected = {"target accuracy": 0.5, "words of thought": 2.0, "different responses": 0.75}
    assert effects_of(own) == expected

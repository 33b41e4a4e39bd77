"""methods/visual_rft.py against the golden vectors of its official code, its questions, and whole runs from outside."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import write_lines
from hypothesis import given, settings
from hypothesis import strategies as st
from method_runs import GROUPS, MINUTE, killed_and_resumed, metrics, only_run, parse, summary
from PIL import Image

from common.data import Dataset, Sample, Stream, open_dataset
from common.detection import NOTHING, match_by_confidence, read_corners, read_detections
from common.errors import SightRLError
from common.rewards import answer_line, iou, think_then_answer
from common.tasks.perception import detection_effects, few_shots, perception_question
from common.world.layouts import PROMPTS, is_held_out, of_kind
from methods import visual_rft
from methods.visual_rft import Args, grade, rewards_of, score

GOLD = ((10, 20, 110, 220), (300, 300, 400, 500))


def listed(*found) -> str:
    return "[" + ", ".join(f"{{'Position': {list(box)}, 'Confidence': {c}}}" for box, c in found) + "]"


def asked(task: str, answer: str) -> Sample:
    return Sample("1", "?", answer, task, [], meta={"class": "c", "thought": "t"})


DETECT = asked("detect", listed(*((box, 1.0) for box in GOLD)))


def said(answer: str, thought: str = "so") -> str:
    return f"<think>{thought}</think> <answer>{answer}</answer>"


def detect(text: str, **options) -> tuple[float, float, float]:
    terms = rewards_of(Args(**options), text, DETECT)
    return terms["iou"], terms["confidence"], terms["format"]


# ------------------------------------------------------------------- golden vectors: made with the official functions
@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ([((12, 21, 110, 220), 0.9), ((301, 303, 400, 500), 0.8)], (0.975125, 0.85, 1)),
        ([((12, 21, 110, 220), 0.9)], (0.48755, 0.9, 1)),
        ([((12, 21, 110, 220), 0.9), ((600, 600, 700, 700), 0.3), ((305, 303, 400, 500), 0.8)], (0.63695, 0.8, 1)),
        ([((600, 601, 700, 700), 0.3)], (0, 0.7, 1)),
    ],
)
def test_golden_1_to_4_boxes_and_confidences(found, expected):
    assert detect(said(listed(*found))) == pytest.approx(expected, abs=1e-6)


def test_golden_3_what_is_recorded():
    found = [((12, 21, 110, 220), 0.9), ((600, 600, 700, 700), 0.3), ((305, 303, 400, 500), 0.8)]
    pairs = match_by_confidence(found, GOLD)
    assert [c for c, _ in pairs] == [0.9, 0.8, 0.3]
    assert [overlap for _, overlap in pairs] == pytest.approx([0.9751, 0.93575, 0], abs=1e-6)


def test_golden_5_and_6_no_objects_and_a_list_without_tags():
    assert detect(said(NOTHING)) == (0, 0, 1)
    assert detect(listed(((12, 20, 110, 220), 0.9))) == pytest.approx((0.49, 0.9, 0))
    absent = asked("detect", NOTHING)
    for text in (said(NOTHING), said(listed((GOLD[0], 0.9)))):  # nothing is earned where nothing is to be found
        assert rewards_of(Args(), text, absent) == {"iou": 0, "confidence": 0, "format": 1}


def batch_of(texts: list[str]):
    from common.rollout import Rollout

    rows = torch.zeros(len(texts), 1)
    return Rollout([None], len(texts), rows.long(), rows == 0, rows, rows[:, 0] > 0, texts, None)


def test_golden_7_the_symbolic_check():
    text = said("[[12, 20, 110, 220]]")
    _, off = score(Args(), batch_of([text]), [DETECT])
    _, on = score(Args(symbolic_check=True), batch_of([text, said("no")]), [DETECT])
    assert {name: values.tolist() for name, values in off.items()} == {"iou": [0], "confidence": [0], "format": [1]}
    assert on["iou"].tolist() == [1, 0] == on["confidence"].tolist() and on["format"].tolist() == [1, 1]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("(350,187),(574,612)", 2.0),
        ("(340,187),(574,612)", 1.957265),
        ("(0,0),(100,100)", 0.299469),
        ("none", 0.0),
        ("\n( 350 , 187 ), (574,612)\n", 2.0),  # line breaks and blanks are allowed here
        ("(574,612),(350,187)", 1.0),  # inside out: a box without area
    ],
)
def test_golden_8_grounding(answer, expected):
    sample = asked("ground", "(350,187),(574,612)")
    terms = rewards_of(Args(), said(answer), sample)
    assert terms == {"ground": pytest.approx(expected, abs=1e-6), "format": 1}
    if "\n" not in answer:
        assert grade(said(answer), sample) == pytest.approx(max(0, expected - 1) if expected < 2 else 1, abs=1e-6)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [("japanese chin", 1), ("Japanese Chin (Spaniel)", 1), ("chin", 1), ("Pug", 0), ("", 1), ("Japanese_Chin", 1)],
)
def test_golden_9_classes(answer, expected):
    sample = asked("classify", "Japanese Chin")
    assert rewards_of(Args(name_match="part"), said(answer), sample) == {"classify": expected, "format": 1}
    very = answer.lower().replace("_", " ") == "japanese chin"
    assert rewards_of(Args(), said(answer), sample) == {"classify": float(very), "format": 1}
    assert grade(said(answer), sample) == float(answer == "japanese chin")  # evaluation asks for the very name


# -------------------------------------------------------------------------------------------------- more of rewards
def test_ablations_of_the_box_rewards():
    two = said(listed((GOLD[0], 0.9)))  # one of two
    assert detect(two) == (0.5, 0.9, 1) and detect(two, iou_denominator="predicted") == (1.0, 0.9, 1)
    assert rewards_of(Args(confidence_reward=False), two, DETECT) == {"iou": 0.5, "format": 1}


def test_matching_is_greedy_by_confidence_and_strict():
    half = (0, 0, 100, 50)  # IoU exactly 0.5 with the gold box
    assert match_by_confidence([(half, 1.0)], [(0, 0, 100, 100)]) == [(1.0, 0.0)]
    worse, better = (10, 20, 110, 180), GOLD[0]
    pairs = match_by_confidence([(better, 0.5), (worse, 0.6)], [GOLD[0]])
    assert pairs == [(0.6, pytest.approx(0.8)), (0.5, 0.0)]  # the surer box takes it, though it fits less
    assert [c for c, _ in match_by_confidence([(half, 0.5), (worse, 0.5), (better, 0.5)], [])] == [0.5] * 3


def test_confidence_is_clipped_as_a_mean_and_repeated_boxes_count_once():
    assert detect(said(listed((GOLD[0], 7), (GOLD[1], -5)))) == (1.0, 1.0, 1)
    assert detect(said(listed((GOLD[0], -3)))) == (0.5, 0.0, 1)
    assert detect(said(listed((GOLD[0], 0.5), (GOLD[0], 0.5), (GOLD[1], 0.5)))) == (1.0, 0.5, 1)


def test_a_line_break_inside_the_answer_makes_a_list_unreadable():
    assert detect(f"<think>so</think><answer>\n{listed((GOLD[0], 0.9))}\n</answer>") == (0, 0, 1)
    assert detect(said(listed((GOLD[0], 0.9))[:-1] + ", {'Pos")) == (0.5, 0.9, 1)  # broken off


def official_r_iou_conf(found, gold):
    """Independent float64 form of the two box rewards for distinct boxes."""
    rows, free = [], list(gold)
    for box, c in sorted(found, key=lambda pair: pair[1], reverse=True):
        overlaps = [iou(box, other) for other in free]
        best = max(overlaps, default=0)
        if best > 0.5:
            del free[overlaps.index(best)]
        rows.append((best * (best > 0.5), c))
    conf = math.fsum(c if overlap else 1 - c for overlap, c in rows) / len(rows)
    return math.fsum(o for o, _ in rows) / max(len(gold), len(rows)), conf


SIDES = st.tuples(*[st.integers(0, 60)] * 2, *[st.integers(1, 60)] * 2)
BOX = SIDES.map(lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3]))
CONFIDENCE = st.integers(0, 100).map(lambda c: c / 100)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    st.lists(st.tuples(BOX, CONFIDENCE), min_size=1, max_size=6, unique_by=lambda found: found[0]),
    st.lists(BOX, min_size=1, max_size=5, unique=True),
)
def test_box_rewards_against_an_independent_form(found, gold):
    sample = asked("detect", listed(*((box, 1.0) for box in gold)))
    terms = rewards_of(Args(), said(listed(*found)), sample)
    assert (terms["iou"], terms["confidence"]) == pytest.approx(official_r_iou_conf(found, gold), abs=1e-9)


WORDS = ["<think>", "</think>", "<answer>", "</answer>", "\n", " ", "[", "]", "(1,2)", "{'Position': [1, 2, 3, 4], "
         "'Confidence': 0.5}", ",", "(3,4)", "No Objects", "x", "9" * 30, "\\boxed{", "{" * 20]  # fmt: skip
HOSTILE = st.one_of(st.text(max_size=80), st.lists(st.sampled_from(WORDS), max_size=12).map("".join))


@settings(max_examples=300, deadline=None, derandomize=True)
@given(HOSTILE)
def test_any_text_earns_something_in_range(text):
    for sample in (DETECT, asked("ground", "(1,2),(3,4)"), asked("classify", "red circle"), asked("detect", NOTHING)):
        terms = rewards_of(Args(), text, sample)
        assert all(0 <= value <= 2 for value in terms.values()) and 0 <= grade(text, sample) <= 1
    official = re.fullmatch(r"<think>.*?</think>\s*<answer>.*?</answer>", text, re.DOTALL)
    assert think_then_answer(text) == (official is not None)
    first = re.search("<answer>(.*?)</answer>", text)
    assert answer_line(text) == (first.group(1) if first else text).strip()
    assert read_corners(text) is None or len(read_corners(text)) == 4


def test_parsers_take_linear_time():
    for piece in ("<answer>", "</think> ", "<answer>\n", "(1,", "( ", "[[", "},", "{'Position': [1, 2, 3, 4], "):
        text = "<think>" + piece * (400_000 // len(piece)) + "</answer>"
        assert rewards_of(Args(), text, DETECT)["iou"] == grade(text, asked("ground", "(1,2),(3,4)")) == 0


# ----------------------------------------------------------------------------------------------------- the questions
def test_the_tiny_prompt_is_the_one_that_was_taught():
    assert Args().own_prompt == PROMPTS["answer"]
    assert Args().group_size == 8 and Args().advantage_eps == 1e-4 and Args().kl_coef == 0.04


def test_published_values():
    args = parse(visual_rft, "--preset", "paper-7b")
    published = dict(model="Qwen/Qwen2-VL-7B-Instruct", group_size=4, temperature=1.0, top_p=1.0, lr=1e-6, kl_coef=0.04,
                     max_pixels=401408, prompts_per_step=16, frame="thousand", max_new_tokens=256, steps=200,
                     train_vision=True, symbolic_check=False, iou_denominator="larger")  # fmt: skip
    assert {name: getattr(args, name) for name in published} == published
    assert parse(visual_rft, "--preset", "paper-2b").group_size == 8
    for word in ("<think>", "</answer>", "'Position'", "'Confidence'", "No Objects", "(x1,y1),(x2,y2)", "1000"):
        assert word in args.own_prompt


@pytest.mark.parametrize("split", ["train", "test_combo"])
def test_questions_of_the_micro_world(split):
    data, kinds, absent = open_dataset("world", split), set(), 0
    for i in range(60):
        sample = data[i]
        question = perception_question(sample, "detect,ground,classify")
        assert question == perception_question(data[i], "detect,ground,classify")  # the id alone decides
        kinds.add(question.task)
        things, name = sample.meta["things"], question.meta["class"]
        assert rewards_of(Args(), said(question.answer, question.meta["thought"]), question)["format"] == 1
        if question.task == "detect":
            found = read_detections(question.answer) or []
            true = [[round(v * 1000 / 112) for v in t["box"]] for t in of_kind(things, name)]
            assert [list(box) for box, _ in found] == true
            absent += not true
        elif question.task == "ground":
            found = [round(v * 112 / 1000) for v in read_corners(question.answer)]
            assert found in [list(t["box"]) for t in of_kind(things, name)]
        else:
            assert question.answer == name and of_kind(things, name)
        if split == "test_combo":
            assert all(is_held_out(t) for t in of_kind(things, name)) and len(name.split()) == 2
        assert grade(said(question.answer), question) == 1.0
    assert kinds == {"detect", "ground", "classify"} and (absent > 0) == (split == "train")
    assert perception_question(data[0], "ground").task == "ground"
    with pytest.raises(SightRLError, match="knows no 'find'"):
        perception_question(data[0], "detect,find")


def test_pixels_are_those_of_the_picture_the_model_sees(tmp_path):
    from common.vlm import load_vlm

    vlm = load_vlm("random:qwen2_5_vl")
    Image.new("RGB", (200, 100)).save(tmp_path / "a.png")
    meta = {"boxes": [["cat", [20, 10, 100, 50]], ["dog", [0, 0, 9, 9]]], "label": "cat", "size": [200, 100]}
    sample = Sample("a", "How many?", "1", "detect", [tmp_path / "a.png"], meta=meta)
    height, width = vlm.prompt("?", sample.load_images()).images[0].shape[:2]
    pixels, thousand = (perception_question(sample, "", "{question}!", p) for p in (vlm.pixels, None))
    assert read_detections(thousand.answer) == [((100, 100, 500, 500), 1.0)]
    expected = [round(v) for v in (0.1 * width, 0.1 * height, 0.5 * width, 0.5 * height)]
    assert read_detections(pixels.answer) == [(tuple(expected), 1.0)]
    assert thousand.question == "Find all cat. List position and confidence.!" and thousand.meta["class"] == "cat"
    corners = perception_question(replace(sample, task="locate"), "")
    assert corners.task == "ground" and corners.answer == "(100,100),(500,500)"
    none = perception_question(replace(sample, task="count", meta=meta | {"label": "cow"}), "")
    assert none.answer == NOTHING and none.task == "detect"


def test_rows_of_a_table_keep_their_question_and_solution():
    kinds = {listed((GOLD[0], 1)): "detect", NOTHING: "detect", "(1,2),(30,40)": "ground", "Japanese Chin": "classify"}
    for answer, kind in kinds.items():
        question = perception_question(Sample("f:1", "Which?", answer, "f", []), "", "{question} Think.")
        assert (question.task, question.answer, question.question) == (kind, answer, "Which? Think.")
        assert question.meta["thought"]
    spelled = perception_question(Sample("f:1", "Which? <answer> </answer>", "Pug", "f", []), "", "{question} Think.")
    assert spelled.question == "Which? <answer> </answer>"
    with pytest.raises(SightRLError, match="f.jsonl line 2.*--columns answer="):
        perception_question(Sample("f:2", "Which?", "[[1, 2, 3, 4]]", "f", [], where="f.jsonl line 2"), "")


def test_few_shots_are_k_pictures_per_class():
    answers = ["a", "b", "a", "a", NOTHING, "b", "b", "c"]
    rows = [Sample(str(i), "?", answer, "t", []) for i, answer in enumerate(answers)]
    stream = few_shots(Stream(Dataset("d", "train", rows), seed=3), 2, lambda s: perception_question(s, ""))
    assert [s.id for s in stream.dataset.samples] == ["0", "1", "2", "5", "7"] and stream.seed == 3
    assert stream.dataset.name == "d" and sorted(s.id for s in stream.next(5)) == ["0", "1", "2", "5", "7"]


def test_effects_from_an_evaluation():
    from common.evaluation import Evaluation

    def record(split, responses, task="detect", answer=DETECT.answer):
        return {"id": "1", "task": task, "split": split, "question": "Find all cats.", "answer": answer,
                "responses": responses}  # fmt: skip

    both = said(listed((GOLD[0], 0.9), (GOLD[1], 0.7)))
    one = said(listed((GOLD[0], 0.6), ((600, 600, 700, 700), 0.2)))
    records = [record("test", [both, one]), record("test_combo", [said(NOTHING), one]),
               record("test", [both], "ground"), record("test", [one], answer=NOTHING)]  # fmt: skip
    before, after = Evaluation(records, 2), Evaluation([record("test", [both, both])], 2)
    effects = detection_effects(before, after)
    assert effects["recall"] == (pytest.approx(4 / 8), 1.0) and effects["boxes per answer"] == (6 / 4, 2.0)
    assert effects["mAP"] == (pytest.approx(76 / 101), pytest.approx(1.0))  # 3 of 4 boxes: recall 0 to 0.75
    assert not {"calibration gap", "mAP of novel classes"} & set(effects)  # not defined in both
    gap = detection_effects(before, before)["calibration gap"]
    assert gap[0] == pytest.approx((0.9 + 0.7 + 0.6 + 0.6) / 4 - 0.2)
    assert detection_effects(before, before)["mAP of novel classes"][0] == pytest.approx(26 / 101)  # recall 0 to 0.25
    assert detection_effects(None, None) == {}


# ------------------------------------------------------------------------------------------------------- whole runs
pytestmark = pytest.mark.usefixtures("one_thread")
SMALL = MINUTE | GROUPS | dict(eval_questions=3, eval_k=1)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """A random model earns nothing, so a term that depends on the text alone gives groups some spread."""
    plain = visual_rft.rewards_of

    def coin(args, text, sample, same=0.0):
        toss = {"coin": len(text) % 3 / 2} if args.model.startswith("random") else {}
        return plain(args, text, sample, same) | toss

    monkeypatch.setattr(visual_rft, "rewards_of", coin)


def run(out: Path, **options) -> Path:
    visual_rft.main(Args(out=str(out), **(SMALL | options)))
    return only_run(out)


def test_two_steps_from_end_to_end(tmp_path):
    folder = run(tmp_path)
    rows, final = metrics(folder), summary(folder)
    assert [row["step"] for row in rows] == [0, 1] and all(row["logp_mismatch"] < 1e-4 for row in rows)
    assert rows[-1]["tokens_generated"] == sum(row["tokens"] for row in rows) and "kl" in rows[0]
    assert {"reward/format", "reward/coin", "grad_norm", "groups/used"} <= set(rows[0])
    for name in ("eval_before", "eval_after", "own_before", "own_after", "config"):
        assert (folder / f"{name}.json").stat().st_size > 0
    own = json.loads((folder / "own_after.json").read_text())["records"]
    assert {r["split"] for r in own} == {"test", "test_combo"} and {r["task"] for r in own} > {"detect"}
    assert final["own_after"] and isinstance(final["effects"], dict)


@pytest.mark.parametrize(
    "options",
    [
        dict(iou_denominator="predicted", confidence_reward=False, kl_coef=0.0, kinds="detect", frame="thousand"),
        dict(supervised=True, shots=1, kinds="ground,classify", lora_rank=2, train_vision=False),
        dict(symbolic_check=True, mini_batch_prompts=2, micro_tokens=1, kinds="detect"),
    ],
)
def test_other_options_run(options, tmp_path, monkeypatch):
    monkeypatch.setattr("common.tasks.perception.SCANNED", 20)
    folder = run(tmp_path, steps=1, eval_questions=0, **options)
    (row,) = metrics(folder)
    if options.get("supervised"):  # every right answer earns all there is; one row counts as G
        assert row["reward/format"] == 1 and row["tokens_generated"] == 3 * row["tokens"] and row["groups/used"] == 3


def test_supervised_learns_the_right_answers(tmp_path, monkeypatch):
    """Its gradient is that of cross-entropy, each response weighing the same."""
    from common.logprob import response_logps
    from common.vlm import VLM

    gradients, plain = {}, torch.optim.AdamW.step
    seen = {}

    def spy(self, *args, **kwargs):
        parameters = enumerate(self.param_groups[0]["params"])
        gradients.update({i: p.grad.clone() for i, p in parameters if p.grad is not None})
        return plain(self, *args, **kwargs)

    def keep(vlm, prompts, tokens, mask, **options):
        if torch.is_grad_enabled():
            seen.update(vlm=vlm, prompts=prompts, tokens=tokens, mask=mask)
        return response_logps(vlm, prompts, tokens, mask, **options)

    monkeypatch.setattr("common.logprob.response_logps", keep)
    monkeypatch.setattr(torch.optim.AdamW, "step", spy)
    run(tmp_path, steps=1, eval_questions=0, supervised=True, lr=0.0, weight_decay=0.0, max_grad_norm=1e9)
    vlm: VLM = seen["vlm"]
    logps, _ = response_logps(vlm, seen["prompts"], seen["tokens"], seen["mask"])
    loss = -((logps * seen["mask"]).sum(1) / seen["mask"].sum(1)).mean()
    expected = torch.autograd.grad(loss, vlm.trainable(), allow_unused=True)
    assert len(gradients) > 10
    for i, value in gradients.items():
        torch.testing.assert_close(value, expected[i], atol=1e-6, rtol=1e-4)


def test_what_was_recorded_while_sampling_plays_no_part(tmp_path, monkeypatch):
    """The ratio is exp(log p - stop_gradient(log p)), also in the second of two updates from one rollout."""
    from common.rollout import rollout

    def shifted(*args, **options):
        batch = rollout(*args, **options)
        return dataclasses.replace(batch, logps=batch.logps - 0.7 * batch.mask)

    options = dict(eval_questions=0, prompts_per_step=4, mini_batch_prompts=2)
    plain = metrics(run(tmp_path / "plain", **options))
    monkeypatch.setattr("common.rollout.rollout", shifted)
    other = metrics(run(tmp_path / "shifted", **options))
    assert other[0].pop("logp_mismatch") > 0.6 > 1e-4 > plain[0].pop("logp_mismatch")
    assert other[0] == plain[0] and other[1]["grad_norm"] == plain[1]["grad_norm"] > 0


def write_table(folder: Path) -> str:
    Image.new("RGB", (56, 56), "red").save(folder / "a.png")
    answers = [listed(((10, 10, 500, 500), 1.0)), "(1,2),(30,40)", "red"]
    rows = [{"problem": f"Question {i}?", "solution": said(answers[i % 3]), "image": "a.png"} for i in range(6)]
    for split in ("train", "test"):
        write_lines(folder / f"{split}.jsonl", rows)
    return f"jsonl:{folder}"


def test_a_table_of_solutions(tmp_path):
    folder = run(tmp_path / "runs", steps=1, data=write_table(tmp_path), frame="thousand", shots=1)
    own = json.loads((folder / "own_after.json").read_text())["records"]
    assert {r["task"] for r in own} <= {"detect", "ground", "classify"} and not (folder / "eval_after.json").exists()


def test_pictures_with_boxes(tmp_path):
    voc = tmp_path / "voc"
    for name in ("Annotations", "JPEGImages"):
        (voc / name).mkdir(parents=True)
    for i in range(6):
        Image.new("RGB", (56, 56), "red").save(voc / f"JPEGImages/{i}.png")
        boxes = "".join(
            f"<object><name>{label}</name><bndbox><xmin>{x}</xmin><ymin>5</ymin><xmax>{x + 20}</xmax><ymax>25</ymax>"
            "</bndbox></object>" for label, x in (("cat", 2), ("cat", 30), ("dog", 9)))  # fmt: skip
        (voc / f"Annotations/{i}.xml").write_text(
            f"<annotation><size><width>56</width><height>56</height></size>{boxes}</annotation>"
        )
    folder = run(tmp_path / "runs", steps=1, data=f"voc:{voc}", shots=1)
    own = json.loads((folder / "own_before.json").read_text())["records"]
    assert own and all(r["task"] == "detect" and r["split"] == "test" for r in own)
    assert summary(folder)["effects"]["mAP"] == {"before": 0.0, "after": 0.0}


def test_killed_and_resumed_equals_uninterrupted(tmp_path):
    options = SMALL | dict(kinds="detect", max_new_tokens=4)
    killed_and_resumed(visual_rft.main, lambda **more: Args(**options | more), tmp_path, step=1)

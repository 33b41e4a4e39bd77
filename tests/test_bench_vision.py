"""Benchmarks of seeing: golden vectors of the official evaluators, rows as they are published, hostile responses."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from bench_rows import (
    BAG,
    BRAND,
    BUTTON,
    CHART,
    CLEVR,
    COLOURS,
    DOG,
    DOGS,
    PETS,
    R1,
    SAVE,
    SCREEN,
    SHAPES,
    SIGN,
    instances,
    query,
)
from PIL import Image

from benchmark import Benchmark, Result, Row
from benchmarks import chartqa, counting, detection, hrbench, odinw, refcoco, screenspot, textvqa_ocrbench, vstar
from boxes import iou_table
from columns import picture_size
from common.detection import Query, coco_map
from common.errors import SightRLError
from common.rewards import iou

FILES = (chartqa, counting, detection, hrbench, odinw, refcoco, screenspot, textvqa_ocrbench, vstar)
BENCHMARKS: dict[str, Benchmark] = {key: one for file in FILES for key, one in file.BENCHMARKS.items()}


def lines(benchmark: Benchmark, rows: list[Row], responses: list[str], scoring: str) -> dict[str, float]:
    results = [benchmark.score(row, text, scoring) for row, text in zip(rows, responses, strict=True)]
    return {line.name: line.value for line in benchmark.summarise(rows, results, scoring)}


# ---------------------------------------------------------------- V*


@pytest.mark.parametrize(
    ("response", "letter"),
    [("A", "A"), ("A dog is left of the car", "A"), ("because the bag is red", "B"), ("The answer is B.", "B"),
     ("The color is blue (C)", "C"), ("Red", "D")],
    ids=["1", "2", "3", "4", "5", "6"],
)  # fmt: skip
def test_vstar_letters(response, letter):
    assert vstar.lmms_letter(response) == letter
    assert vstar.score(BAG, response, "lmms-eval").score == (letter == "B")


def test_vstar_prompt_vector_7():
    assert vstar.prompt(BAG, "lmms-eval").split("\n")[:3] == ["What is the color of the bag?", "A. red", "B. blue"]
    told = BAG | {"text": BAG["text"] + "\nAnswer with a letter."}
    assert vstar.question_and_options(told) == ("What is the color of the bag?", {"A": "red", "B": "blue"})


def test_vstar_likelihood_vector_8():
    three = {"text": "Where? (A) left (B) right (C) above", "label": "A", "category": "relative_position"}
    assert vstar.score(three, "[0.7, 0.9, 0.8]", "official") == Result(1.0, "A")
    assert vstar.score(BAG | {"label": "A"}, "[0.9, 0.7]", "official") == Result(0.0, "B")
    assert vstar.score(three, "[0.7, 0.9]", "official").undecided  # not a loss for every option
    assert vstar.score(three, "A", "official").undecided
    assert vstar.judge_prompt(three, Result(0.0), "A", "official") == ""


def test_vstar_judge():
    undecided = vstar.score(BAG, "it could be either of them, red or blue", "vlmevalkit")
    assert undecided.undecided and undecided.score == 0
    assert "A. red" in vstar.judge_prompt(BAG, undecided, "either", "vlmevalkit")
    assert vstar.judge_score(BAG, undecided, "B", "vlmevalkit") == Result(1.0, "B")
    assert vstar.judge_score(BAG, undecided, "A", "vlmevalkit") == Result(0.0, "A")
    assert vstar.score(BAG, "blue", "vlmevalkit") == Result(1.0, "B")


# ---------------------------------------------------------------- HR-Bench


@pytest.mark.parametrize(
    ("response", "lmms", "vlmevalkit"),
    [("B", "B", "B"), ("B is the one that I can see in the picture", "B", None), ("blue", "B", "B"),
     ("red and blue", None, None), ("b", None, None), ("A dog near B", None, None)],
    ids=["1", "2", "3", "4", "5", "6"],
)  # fmt: skip
def test_hrbench_letters(response, lmms, vlmevalkit):
    for scoring, letter in (("lmms-eval", lmms), ("vlmevalkit", vlmevalkit), ("official", vlmevalkit)):
        expected = Result(float(letter == "B"), letter, undecided=letter is None)
        assert hrbench.score(COLOURS, response, scoring) == expected


def test_hrbench_mean_of_rotations_vector_7():
    rows = [COLOURS | {"cycle_category": cycle, "question": str(i)} for i, cycle in enumerate("aabbb")]
    table = lines(BENCHMARKS["hrbench_4k"], rows, ["B", "A", "B", "B", "B"], "official")
    assert table["overall"] == pytest.approx(75.0)  # not 80: each order weighs the same


def test_hrbench_judge():
    undecided = hrbench.score(COLOURS, "red and blue", "official")
    assert "B. blue" in hrbench.judge_prompt(COLOURS, undecided, "red and blue", "official")
    for reply, score in (("Yes, it is.", 1.0), ("no", 0.0), ("It is. Yes", 0.0), (" yes", 0.0)):
        verdict = hrbench.judge_score(COLOURS, undecided, reply, "official")
        assert verdict.score == score and not verdict.undecided
    for scoring in ("vlmevalkit", "lmms-eval"):
        assert "is it right" not in hrbench.judge_prompt(COLOURS, undecided, "red", scoring).lower()
        assert hrbench.judge_score(COLOURS, undecided, "B", scoring) == Result(1.0, "B")
    assert hrbench.judge_score(COLOURS, undecided, "either", "lmms-eval").undecided
    lot = hrbench.judge_score(COLOURS, undecided, "either", "vlmevalkit")  # by lot, the same in each run
    assert lot == hrbench.judge_score(COLOURS, undecided, "either", "vlmevalkit") and lot.answer in "ABCDZ"


# ---------------------------------------------------------------- ScreenSpot

SCREENSHOT = [  # response; SeeClick; lmms v1: IoU, hit; lmms v2: point, hit; VLMEvalKit: point
    ("(0.5, 0.5)", 1, (0, 0), ((0.5, 0.5), 1), (0.0, 0.0)),
    ("[0.4, 0.4, 0.6, 0.6]", 1, (1, 1), ((0.4, 0.4), 1), (0.0, 0.0)),
    ("[400, 400, 600, 600]", 0, (1, 1), ((0.4, 0.8), 0), (0.0, 0.0)),
    ("[500, 250]", 0, (0, 0), ((0.5, 0.5), 1), (0.0, 0.0)),
    ("pyautogui.click(x=0.5, y=0.5)", 1, (0, 0), ((0.5, 0.5), 1), (0.5, 0.5)),
    ("<box>(400,400),(600,600)</box>", 1, (0, 0), ((0.4, 0.8), 0), (0.0, 0.0)),
    ("at 2 places: (0.5, 0.5)", 0, (0, 0), ((0.5, 0.5), 1), (0.0, 0.0)),
]


@pytest.mark.parametrize(("response", "seeclick", "v1", "v2", "click"), SCREENSHOT, ids=list("1234567"))
def test_screenspot_points(response, seeclick, v1, v2, click):
    assert screenspot.score_v1(BUTTON, response, "official").score == seeclick
    box = screenspot.score_v1(BUTTON, response, "lmms-eval")
    assert (box.parts["iou"], box.score) == pytest.approx(v1)
    point = screenspot.score_v2(BUTTON, response, "lmms-eval")
    assert (point.answer, point.score) == (pytest.approx(v2[0]), v2[1])
    clicked = screenspot.score_v2(BUTTON, response, "vlmevalkit")
    assert clicked.answer == pytest.approx(click) and clicked.score == (click == (0.5, 0.5))


def test_screenspot_wrong_format_and_centres():
    assert screenspot.seeclick_point("at 2 places: (0.5, 0.5)") is None  # vector 7: three numbers
    assert screenspot.seeclick_point("[0.4, 0.4, 0.6, 0.6]") == (0.5, 0.5)  # 2
    assert screenspot.seeclick_point("[400, 400, 600, 600]") == (500, 500)  # 3
    assert screenspot.seeclick_point("<box>(400,400),(600,600)</box>") == (0.5, 0.5)
    assert screenspot.score_v1(BUTTON, "the box is 0.5 0.5", "official").parts["read"] is False
    assert screenspot.score_v2(BUTTON, "click(x=0.5.1, y=0.5)", "vlmevalkit").parts["read"] is False
    assert screenspot.lmms_point("<bbox>[40%, 0.4, 60%, 0.6]</bbox> (9, 9)") == pytest.approx((0.5, 0.5))
    assert screenspot.lmms_point("x: 12, y = 7") == (12, 7)
    assert screenspot.lmms_point("the box 1 2 3 4") == (2, 3)


def test_screenspot_true_boxes():
    size = (1000.0, 500.0)
    vector_8 = screenspot.lmms_true_box({"bbox": [100, 50, 200, 150]}, size, "v2")
    assert vector_8 == pytest.approx((0.1, 0.1, 0.2, 0.3))
    pixels = BUTTON | {"bbox": [400, 200, 200, 100]}  # x, y, width, height
    assert screenspot.true_box(pixels, corners=False) == pytest.approx((0.4, 0.4, 0.6, 0.6))
    assert screenspot.lmms_true_box(pixels, size, "v2") == pytest.approx((0.4, 0.4, 0.6, 0.6))
    assert screenspot.vlmevalkit_true_box(pixels, "v2") == pytest.approx((0.4, 0.4, 0.599, 0.598))
    assert screenspot.vlmevalkit_true_box(BUTTON, "v1") == pytest.approx((0.4, 0.4, 0.599, 0.598))
    assert screenspot.vlmevalkit_true_box(pixels | {"bbox": [-1, 5, 10, 10]}, "v2")[0] == 0
    pro = {"bbox": "[400, 200, 600, 300]", "img_size": "[1000, 500]", "instruction": "x", "ui_type": "icon"}
    assert screenspot.score_pro(pro, "[500, 250]", "lmms-eval").score == 1
    assert screenspot.score_pro(pro | {"img_size": [2000, 1000]}, "[500, 250]", "lmms-eval").score == 1
    both = pro | {"image_width": 1000, "image_height": 500}
    assert screenspot.score_pro(both, "click(x=600, y=300)", "vlmevalkit").score == 1  # no pixel less
    assert screenspot.score_v2(pixels, "click(x=600, y=300)", "vlmevalkit").score == 0


def test_screenspot_tables():
    rows = [BUTTON | {"data_type": kind, "data_source": source} for kind, source in
            (("text", "ios"), ("text", "android"), ("text", "windows"), ("icon", "shop"))]  # fmt: skip
    answers = ["(0.5, 0.5)", "(0, 0)", "(0.5, 0.5)", "(0, 0)"]
    official = lines(BENCHMARKS["screenspot"], rows, answers, "official")
    assert official == pytest.approx({"average": 50, "mobile text": 50, "desktop text": 100, "web icon": 0})
    clicks = ["click(x=0.5, y=0.5)" if text == "(0.5, 0.5)" else "" for text in answers]
    squared = [row | {"category": name} for row, name in zip(rows, "aabb", strict=True)]
    table = lines(BENCHMARKS["screenspot_v2"], squared, clicks, "vlmevalkit")
    assert table["overall"] == 50 and table["icon"] == 0
    assert table["text"] == pytest.approx(100 * (2 * 1 + 1 * 1) / (2**2 + 1**2))
    assert lines(BENCHMARKS["screenspot_v2"], squared, answers, "lmms-eval")["text"] == pytest.approx(100 * 2 / 3)
    boxes = lines(BENCHMARKS["screenspot"], rows, ["[0.4, 0.4, 0.6, 0.6]"] * 2 + [""] * 2, "lmms-eval")
    assert (boxes["IoU"], boxes["ACC@0.9"], boxes["text"]) == pytest.approx((50, 50, 200 / 3))


# ---------------------------------------------------------------- RefCOCO and LISA

REFERRED = [  # response; IoU of lmms grounding and of VLMEvalKit; VLM-R1: IoU, right
    ('<answer>{"bbox_2d": [100, 100, 300, 200]}</answer>', 1, 0, (1, 1)),
    ("[156, 208, 469, 417]", 0.995218, 0.995218, (0, 0)),
    ("<answer>[100, 100, 300, 200]</answer>", 1, 0, (0, 0)),
    ('<answer>{"bbox_2d": [100, 100, 200, 200]}</answer>', 0.5, 0, (0.5, 0)),
    ("[0.15, 0.2, 0.47, 0.42]", 0, 0.924775, (0, 0)),
]


@pytest.mark.parametrize(("response", "lmms", "vlmevalkit", "vlm_r1"), REFERRED, ids=list("12345"))
def test_refcoco_boxes(response, lmms, vlmevalkit, vlm_r1):
    for scoring, overlap in (("lmms-eval", lmms), ("vlmevalkit", vlmevalkit)):
        result = refcoco.score_grounding(DOG, response, scoring)
        assert result.parts["iou"] == pytest.approx(overlap, abs=1e-6) and result.score == (overlap >= 0.5)
    result = refcoco.score_vlm_r1(R1, response, "official")
    assert (result.parts["iou"], result.score) == vlm_r1


def test_refcoco_misread_pixels_vector_1():
    assert refcoco.vlmevalkit_box("[100, 100, 300, 200]", (640, 480)) == pytest.approx((64, 48, 192, 96))
    assert refcoco.vlmevalkit_box("100, 100, 300", (640, 480)) is None
    assert refcoco.vlm_r1_box(REFERRED[2][0]) == refcoco.ZERO  # 3
    assert refcoco.vlmevalkit_box("[1200, 100, 300, 200]", (1600, 480)) == (300, 100, 1200, 200)  # pixels, swapped


def test_vlm_r1_overlap_of_one_pixel_vector_6():
    a, b = (0.0, 0.0, 10.0, 10.0), (9.0, 9.0, 20.0, 20.0)
    assert refcoco.vlm_r1_iou(a, b) == 0 and iou(a, b) == pytest.approx(0.004545, abs=1e-6)
    assert refcoco.vlm_r1_iou((0, 0, 10, 10), (8, 0, 18, 10)) == pytest.approx(0.111111, abs=1e-6)


def test_refcoco_rec_needs_square_brackets_vector_7():
    assert refcoco.first_square("(0.1, 0.2, 0.3, 0.4)") == refcoco.ZERO
    inside = f"[{100 / 640}, {100 / 480}, {300 / 640}, {200 / 480}]"
    assert refcoco.score_rec(DOG, inside, "lmms-eval").score == 1
    assert refcoco.score_rec(DOG, inside.replace("[", "("), "lmms-eval").score == 0


def test_lisa_box_vector_8():
    row = {"text": ["the thing to sit on"], "shapes": SHAPES, "image": SCREEN}
    assert refcoco.score_lisa(row, "so (100,100),(500,500)", "official").score == pytest.approx(0.999994, abs=1e-6)
    assert refcoco.score_lisa(row, "[100,100,500,500]", "official").parts == {"iou": 0.0, "read": False}


def test_lisa_masks_vector_9():
    pairs = [(50, 100), (900, 1000), (0, 0)]
    rows = [{"intersection": shared, "union": union} for shared, union in pairs]
    table = {line.name: line.value for line in refcoco.summarise_lisa(rows, [Result(0.5)] * 3, "official")}
    assert table["gIoU"] == pytest.approx(80.00, abs=1e-4) and table["cIoU"] == pytest.approx(86.3636, abs=1e-4)
    assert table["mIoU of boxes"] == 50
    assert len(refcoco.summarise_lisa([{}], [Result(0.5)], "official")) == 1


def test_refcoco_oracle_and_tables():
    spray = "[[1, 2, 3, 4], [156, 208, 469, 417]]"  # the second box, as thousandths, is the one that counts
    assert refcoco.score_grounding(DOG, spray, "lmms-eval").score == 1
    assert refcoco.score_grounding(DOG, "1 2 3 4 and 100, 100, 300, 200", "lmms-eval").score == 1
    rows = [DOG | {"split": name} for name in ("val", "testA", "testA")]
    table = lines(BENCHMARKS["refcoco"], rows, ["[156, 208, 469, 417]", "", ""], "vlmevalkit")
    assert (table["average of splits"], table["val"], table["testA"]) == (50, 100, 0)
    table = lines(BENCHMARKS["refcoco"], rows, [REFERRED[3][0], REFERRED[0][0], ""], "lmms-eval")
    assert (table["accuracy"], table["IoU"], table["ACC@0.7"]) == pytest.approx((200 / 3, 50, 100 / 3))


def test_vlm_r1_scales_from_what_the_model_saw():
    seen = R1 | {"image_width": 640, "image_height": 480, "input_width": 320, "input_height": 240}
    text = '<answer>{"bbox_2d": [50, 50, 150, 100]}</answer>'
    assert [refcoco.score_vlm_r1(row, text, "official").score for row in (seen, R1)] == [1, 0]
    last = '<answer>{"a": [1, 2, 3, 4], "b": [100, 100, 300, 200]} [5, 6, 7, 8]</answer>'
    assert refcoco.vlm_r1_box(last) == (100, 100, 300, 200)


def test_reasonseg_is_read_from_its_folder(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps({"text": ["seat", "chair"], "is_sentence": False, "shapes": SHAPES}))
    with pytest.raises(SightRLError, match="a.json"):
        refcoco.read_reasonseg(tmp_path)
    SCREEN.save(tmp_path / "a.jpg")
    (row,) = refcoco.read_reasonseg(tmp_path)
    assert row["image"] == "a.jpg" and picture_size(row) == (640, 480) and refcoco.shape_box(row) == (64, 48, 320, 240)
    assert refcoco.score_lisa(row, "(100,100),(500,500)", "official").score > 0.99


# ---------------------------------------------------------------- COCO as Visual-RFT asks it


def found(*items: tuple[list[float], float]) -> str:
    return f"<answer>{[{'Position': position, 'Confidence': c} for position, c in items]}</answer>"


ONE = "[{'Position': [100, 200, 300, 400], 'Confidence': 0.9}"
DETECTIONS = [
    (f"<think>x</think> <answer>{ONE}]</answer>", [[100, 100, 300, 200, 0.9]]),
    (f"<answer>{ONE}, {{'Position': [100, 200, 300, 400], 'Confidence': 0.5}}]</answer>", [[100, 100, 300, 200, 0.9]]),
    ("<answer>No Objects</answer>", []),
    (f"<answer>{ONE}, {{'Position': [5, 6</answer>", [[100, 100, 300, 200, 0.9]]),
    ("[{'Position': [0, 0, 1000, 1000], 'Confidence': 1}]", [[0, 0, 1000, 500, 1]]),
    (f"<answer>[{ONE}]]</answer>", [[100, 100, 300, 200, 0.9]]),
]


@pytest.mark.parametrize(("response", "boxes"), DETECTIONS, ids=list("123456"))
def test_coco_boxes(response, boxes):
    """The vectors give x, y, width, height; here the same as corners."""
    assert detection.score_query(query([]), response, "official").answer == boxes


def test_coco_entries_before_a_broken_one_stay():
    assert len(detection.positions(f"{ONE}, {{'Position': [5, 6")) == 1
    assert detection.positions(f"<answer>{ONE}, {{'Position': [5, 6") == []  # the tag is no JSON
    assert len(detection.positions(f"<answer>{ONE}, {{'Position': [1, 2, 3, 4]}}]</answer>")) == 1
    assert detection.positions(f"<answer>{ONE}, {{'Confidence': 1}}]</answer>") == []
    assert detection.positions(f"<answer>{ONE}, ...]</answer>") == [((100, 200, 300, 400), 0.9)]


def test_coco_average_precision_vectors_7_to_9():
    table = BENCHMARKS["coco_few_shot"]
    a, b, far = [100, 100, 200, 200], [600, 600, 700, 700], [400, 0, 450, 50]  # thousandths
    true = [[100, 50, 100, 50], [600, 300, 100, 50]]  # pixels x, y, width, height
    result = lines(table, [query(true)], [found((a, 0.9), (far, 0.8), (b, 0.7))], "official")  # 7
    assert result["mAP"] == pytest.approx(83.4983, abs=1e-4) and result["mAP50"] == pytest.approx(83.4983, abs=1e-4)
    twice = found((a, 0.9), ([100, 100, 200, 200.0001], 0.8))
    assert lines(table, [query(true[:1])], [twice], "official")["mAP"] == pytest.approx(100)  # 8
    three_quarters = lines(table, [query(true[:1])], [found(([100, 100, 200, 175], 1.0))], "official")  # 9
    assert [three_quarters[name] for name in ("mAP", "mAP50", "mAP75")] == pytest.approx([60, 100, 100])


def test_coco_counts_what_was_not_asked_and_forgives_crowds():
    box, answer = [[100, 50, 100, 50]], found(([100, 100, 200, 200], 0.9))
    table = BENCHMARKS["coco_few_shot"]
    missed = lines(table, [query(box), query(box, asked=False)], [answer, answer], "official")
    assert missed["mAP"] == pytest.approx(100 * 51 / 101)
    both = [query(box), query([], crowd=[[0, 0, 1000, 500]]), query(box, category="dog")]
    crowded = lines(table, both, [answer, found(([500, 500, 600, 600], 1.0)), ""], "official")
    assert crowded["AP cat"] == pytest.approx(100) and crowded["mAP"] == pytest.approx(50) and crowded["AP dog"] == 0
    assert lines(table, [query(box), query([])], [answer, found(([500, 500, 600, 600], 1.0))], "official")["mAP"] < 100


def test_crowd_regions_as_pycocotools_has_them():
    gold, region, inside, far = (0, 0, 10, 10), (100, 100, 200, 200), (110, 110, 120, 120), (300, 300, 310, 310)
    crowded = [Query("cat", [gold], [(inside, 0.9), (inside, 0.8), (gold, 0.5)], crowd=[region])]
    assert coco_map(crowded)["mAP"] == pytest.approx(1.0)
    assert coco_map([Query("cat", [gold], [(far, 0.9), (gold, 0.5)], crowd=[region])])["mAP"] == pytest.approx(0.5)


def test_coco_rows_are_read_from_published_files(tmp_path):
    (tmp_path / "instances_val2017.json").write_text(json.dumps(instances()))
    read = BENCHMARKS["coco_few_shot"].read
    with pytest.raises(SightRLError, match="exist_map_coco"):
        read(tmp_path)
    exist = {"1": ["cat", "person"], "2": ["bus"]}
    (tmp_path / "exist_map_coco_Qwen2_vl_2B_baseline.json").write_text(json.dumps(exist))
    rows = read(tmp_path)
    assert rows == read(tmp_path / "instances_val2017.json")
    assert [(row["image"], row["category"], row["asked"]) for row in rows] == [
        ("1.jpg", "cat", True), ("val2017/2.jpg", "bus", True), ("val2017/2.jpg", "dog", False)]  # fmt: skip
    assert (rows[0]["boxes"], rows[0]["crowd"]) == ([[1, 2, 3, 4]], [[5, 6, 7, 8]])
    (tmp_path / "instances_val2017.json").write_text("[1]")
    with pytest.raises(SightRLError, match="instances_val2017.json"):
        read(tmp_path)


# ---------------------------------------------------------------- ODinW-13


def test_odinw_readings_vector_10():
    answer = '[{"bbox_2d": [10, 10, 50, 50], "label": "cat"}, {"bbox_2d": [500, 200, 900, 800], "label": "Dog"}]'
    result = odinw.score(PETS, answer, "lmms-eval")
    assert sum(result.parts["iou"]) == pytest.approx(2) and result.score == 1
    assert lines(BENCHMARKS["odinw13"], [PETS], [answer], "lmms-eval")["mAP"] == pytest.approx(100)


def test_odinw_without_label_vector_11():
    result = odinw.score(PETS, '[{"bbox_2d": [10, 10, 50, 50]}]', "lmms-eval")
    assert result.score == 0 and result.parts["iou"] == [0, 0]
    assert lines(BENCHMARKS["odinw13"], [PETS], ["10 10 50 50"], "lmms-eval")["mAP"] == 0


def test_odinw_order_and_broken_lists():
    right = '{"bbox_2d": [10, 10, 50, 50], "label": "cat"}'
    wrong = '{"bbox_2d": [150, 60, 160, 70], "label": "cat"}'
    only_cat = PETS | {"bboxes": PETS["bboxes"][:1], "labels": ["cat"]}
    first, last = (lines(BENCHMARKS["odinw13"], [only_cat], [f"[{a}, {b}]"], "lmms-eval")["mAP"]
                   for a, b in ((right, wrong), (wrong, right)))  # fmt: skip
    assert (first, last) == pytest.approx((50, 100))  # lists are read from behind
    assert [box for box, _ in odinw.predictions(f"here: {right} and {{'x'}} {wrong}, {{")] == [
        (150, 60, 160, 70), (10, 10, 50, 50)]  # fmt: skip
    assert odinw.predictions(f"{{ {right}") == [((10, 10, 50, 50), "none")]  # a brace that never closes hides all
    assert len(odinw.predictions(f"```json\n[{right}]\n``` ")) == 1
    sets = [PETS, PETS | {"dataset_name": "pothole"}]
    assert lines(BENCHMARKS["odinw13"], sets, [f"[{right}]", ""], "lmms-eval")["mAP"] == pytest.approx(25)


# ---------------------------------------------------------------- ChartQA


@pytest.mark.parametrize(
    ("prediction", "target", "right"),
    [("10.4", "10", 1), ("10.6", "10", 0), ("10%", "0.1", 1), ("10", "10%", 0), ("0", "0", 1), ("0.0", "0", 0),
     (" 12", "12", 1), ("yes", "Yes", 1), ("1,000", "1000", 0), ("2010", "2014", 1)],
    ids=["1", "1b", "2", "2b", "3", "3b", "4", "5", "6", "7"],
)  # fmt: skip
def test_chartqa_relaxed(prediction, target, right):
    row = {"type": "human_test", "question": "How many?", "answer": target, "image": SCREEN}
    assert [chartqa.score(row, prediction, scoring).score for scoring in ("official", "vlmevalkit")] == [right, right]


def test_chartqa_blanks_and_several_answers():
    row = {"answer": "Yes"}
    assert chartqa.score(row, " yes", "official").score == 0 and chartqa.score(row, " yes", "vlmevalkit").score == 1
    several = {"answer": "['3', '7']"}
    assert [chartqa.score(several, text, "vlmevalkit").score for text in ("7.1", "5")] == [1, 0]


# ---------------------------------------------------------------- TextVQA and OCRBench

VQA = [
    ("Stop.", ["stop"] * 4 + ["go"] * 6, 1.0),
    ("stop", ["stop"] * 2 + ["go"] * 8, 0.6),
    ("stop", ["stop"] + ["go"] * 9, 0.3),
    ("two", ["2"] * 10, 1.0),
    ("dont", ["don't"] * 10, 1.0),
    ("the nokia", ["nokia"] * 10, 1.0),
    ("nokia phone", ["nokia"] * 10, 0.0),
]


@pytest.mark.parametrize(("response", "answers", "score"), VQA, ids=["1", "2", "3", "4a", "4b", "4c", "5"])
def test_textvqa(response, answers, score):
    for scoring in ("official", "vlmevalkit"):
        assert textvqa_ocrbench.textvqa({"answers": answers}, response, scoring).score == pytest.approx(score)


def test_textvqa_cleaning_differs():
    cleaned = textvqa_ocrbench.cleaned
    assert (cleaned("no. 5.", "official"), cleaned("no. 5.", "vlmevalkit")) == ("no 5", "no 5.")
    assert (cleaned("John's", "official"), cleaned("John's", "vlmevalkit")) == ("john 's", "john's")
    assert (cleaned("1,000 (x)", "official"), cleaned("1,000/2", "vlmevalkit")) == ("1000 x", "10002")
    assert cleaned("a-b", "official") == "b" and cleaned("couldntve couldn'tve", "official") == "couldntve couldn't've"
    assert cleaned(". " * 40, "official") == " ".join("." * 8)  # the first 32 go


OCR = [
    ("The text says HELLO there", ["hello"], "IIIT5K", (1, 1, 1)),
    (r"\frac { a } { b }", [r"\frac{a}{b}"], "HME100k", (1, 1, 1)),
    ("X ^ 2", ["x^2"], "HME100k", (0, 0, 0)),
    ("shellfish", ["shell"], "IIIT5K", (1, 1, 1)),
    ("ＡＢＣ", ["abc"], "IIIT5K", (0, 0, 1)),
]


@pytest.mark.parametrize(("response", "answer", "dataset", "scores"), OCR, ids=["6", "7", "8", "9", "10"])
def test_ocrbench(response, answer, dataset, scores):
    kind = textvqa_ocrbench.FORMULAS if dataset == "HME100k" else "Regular Text Recognition"
    row = {"dataset": dataset, "question_type": kind, "answer": answer, "question": "what is written?"}
    found = [textvqa_ocrbench.ocrbench(row, response, scoring).score for scoring in BENCHMARKS["ocrbench"].scorings]
    assert tuple(found) == scores


def test_ocrbench_table_counts_hits_afresh_each_time():
    kinds = ("Regular Text Recognition", "Digit String Recognition", "Doc-oriented VQA")
    rows = [{"dataset": "x", "question_type": kind, "answer": ["a"]} for kind in kinds]
    for _ in range(2):
        table = lines(BENCHMARKS["ocrbench"], rows, ["a", "b", "a"], "official")
        assert table == {"final score (hits)": 2, "text recognition": 1, kinds[0]: 1, kinds[1]: 0, kinds[2]: 1}
    for scoring, formula in (("official", 0), ("vlmevalkit", 1)):  # each knows formulas by another column
        odd = {"dataset": "x", "question_type": textvqa_ocrbench.FORMULAS, "answer": ["a b"], "question": "?"}
        assert textvqa_ocrbench.ocrbench(odd, "ab", scoring).score == formula


# ---------------------------------------------------------------- counting


@pytest.mark.parametrize(
    ("response", "truth", "words", "digits"),
    [("5", 5, 1, 1), ("five", 5, 1, 0), (" Ten ", 10, 1, 0), ("There are 5", 5, 0, 0), ("5.", 5, 0, 0)],
    ids=["1", "2", "2b", "3", "3b"],
)  # fmt: skip
def test_countbench(response, truth, words, digits):
    row = {"question": "How many?", "number": truth, "text": f"{truth} dogs"}
    assert counting.countbench(row, response, "lmms-eval").score == words
    assert counting.countbenchqa(row, response, "lmms-eval").score == digits
    assert str(truth) not in counting.bare_number(row, "lmms-eval")  # the caption would tell


@pytest.mark.parametrize(
    ("response", "count"),
    [("<think>so</think><answer>7</answer>", 7), ("<answer> 07 </answer>", 7), ("<answer>7 objects</answer>", None),
     ("<answer>3</answer> <answer>4</answer>", 3), ("<answer>no</answer> <answer>٧</answer>", 7)],
    ids=["4", "5", "6", "7", "other digits"],
)  # fmt: skip
def test_superclevr(response, count):
    result = counting.superclevr({"question": "How many?", "ground_truth": 7}, response, "official")
    assert (result.answer, result.score, result.parts["read"]) == (count, count == 7, count is not None)


def test_countbenchqa_of_vlmevalkit_is_containment():
    row = {"question": "How many?", "number": 2}
    assert [counting.countbenchqa(row, text, "vlmevalkit").score for text in ("There are 2.", "12", "two")] == [1, 1, 0]


def test_superclevr_table_tells_what_was_not_read():
    rows = [{"question": "How many?", "ground_truth": n} for n in (3, 4, 4)]
    table = lines(BENCHMARKS["superclevr200"], rows, ["<answer>3</answer>", "4", "<answer>5</answer>"], "official")
    assert [table["overall"], table["without a readable answer"]] == pytest.approx([100 / 3] * 2)


# ---------------------------------------------------------------- every benchmark

ROWS: dict[str, tuple[Row, dict[str, str]]] = {  # a published row, and per scoring a response that is right
    "vstar": (BAG, {"lmms-eval": "(B)", "vlmevalkit": "B", "official": "[2.5, 1.5]"}),
    "hrbench_4k": (COLOURS, dict.fromkeys(("official", "vlmevalkit", "lmms-eval"), "B")),
    "hrbench_8k": (COLOURS, dict.fromkeys(("official", "vlmevalkit", "lmms-eval"), "blue")),
    "screenspot": ({**BUTTON, "image": SCREEN}, {"official": "(0.5, 0.5)", "lmms-eval": "(0.4, 0.4, 0.6, 0.6)",
                                                  "vlmevalkit": "pyautogui.click(x=0.5, y=0.5)"}),
    "screenspot_v2": ({**BUTTON, "image": SCREEN}, {"official": "(0.5, 0.5)", "lmms-eval": "[500, 250]",
                                                     "vlmevalkit": "pyautogui.click(x=500, y=250)"}),
    "screenspot_pro": (SAVE,
                       {"lmms-eval": "[0.5, 0.5]", "vlmevalkit": "click(x=320, y=240)"}),
    **{key: (DOG, {"lmms-eval": "```json\n[{\"bbox_2d\": [100, 100, 300, 200]}]\n```",
                   "vlmevalkit": "[156, 208, 469, 417]"}) for key in refcoco.SETS},
    **{f"{key}_rec": (DOG, {"lmms-eval": "[0.15625, 0.208333, 0.46875, 0.416667]"}) for key in refcoco.SETS},
    **{f"vlm_r1_{key}": (R1 | {"normal_caption": "dog"}, {"official": REFERRED[0][0]}) for key in refcoco.SETS},
    "lisa": ({"image": SCREEN, "text": ["seat"], "is_sentence": False, "shapes": SHAPES},
             {"official": "<answer>(100,100),(500,500)</answer>"}),
    **{key: (query([[100, 50, 100, 50]], category=names[0]), {"official": found(([100, 100, 200, 200], 0.9))})
       for key, names in detection.CLASSES.items()},
    "odinw13": (PETS, {"lmms-eval": '[{"bbox_2d": [10, 10, 50, 50], "label": "cat"},'
                                    ' {"bbox_2d": [100, 20, 180, 80], "label": "dog"}]'}),
    "chartqa": (CHART,
                {"official": "12.3", "vlmevalkit": "12 "}),
    "textvqa": (BRAND, {"official": "Nokia.", "vlmevalkit": "nokia"}),
    "ocrbench": (SIGN,
                 dict.fromkeys(("official", "vlmevalkit", "lmms-eval"), "It says Centre.")),
    "countbench": (DOGS, {"lmms-eval": "Two"}),
    "countbenchqa": (DOGS, dict.fromkeys(("lmms-eval", "vlmevalkit"), "2")),
    "superclevr200": (CLEVR, {"official": "<think></think><answer>4</answer>"}),
}  # fmt: skip
CASES = [(key, scoring) for key, benchmark in BENCHMARKS.items() for scoring in benchmark.scorings]


@pytest.mark.parametrize(("key", "scoring"), CASES)
def test_published_rows_from_prompt_to_table(key, scoring):
    benchmark, (row, right) = BENCHMARKS[key], ROWS[key]
    assert not set(benchmark.columns) - set(row) and set(right) == set(benchmark.scorings)
    assert len(benchmark.images(row)) == 1 and benchmark.prompt(row, scoring).strip()
    good, bad = benchmark.score(row, right[scoring], scoring), benchmark.score(row, "I do not know.", scoring)
    assert good.score == pytest.approx(1, abs=1e-4) and bad.score == 0 and not good.undecided
    lights = [{name: None if name == "image" and key != "hrbench_4k" else cell for name, cell in row.items()}] * 3
    table = benchmark.summarise(lights, [good, good, bad], scoring)
    expected = 2.0 if key == "ocrbench" else 100 * 2 / 3
    if benchmark.metric != "mAP":
        assert table[0].value == pytest.approx(expected, abs=0.01) and table[0].count == 3
        assert table[0].interval[0] <= table[0].value <= table[0].interval[1]
    else:
        assert 0 < table[0].value < 100 and table[0].interval is None
    assert all(line.count <= 3 for line in table) and len({line.name for line in table}) == len(table)
    assert benchmark.identify(row, 5) and benchmark.title and benchmark.source.startswith(("hf:", "github:"))


@pytest.mark.parametrize("key", BENCHMARKS)
def test_rows_that_lack_a_column_or_hold_nonsense(key):
    benchmark, (row, _) = BENCHMARKS[key], ROWS[key]
    stopped = 0
    for column in row:
        for wrong in ([{k: v for k, v in row.items() if k != column}], [row | {column: wrong} for wrong in NONSENSE]):
            for broken in wrong:
                try:
                    for scoring in benchmark.scorings:
                        benchmark.score(broken, "1", scoring)
                        benchmark.prompt(broken, scoring)
                except SightRLError as error:
                    stopped += 1
                    assert "column" in str(error) and len(str(error)) < 300 and "\n" not in str(error)
    needed = set(benchmark.columns) - {"image", "image_path", "type", "category", "cycle_category", "question_type",
                                       "data_type", "data_source", "ui_type", "dataset", "dataset_name"}  # fmt: skip
    assert stopped > 2 * len(needed)


NONSENSE = [None, 7.5, -3, [], {}, "", "x", [None], [1, 2], ["a", 1], float("nan"), float("inf"), [[1, 2, 3, 4, 5]],
            True, [float("nan")] * 4, 10**400, [10**400] * 4, [{"points": []}], b"x"]  # fmt: skip


def test_boxes_and_sizes():
    table = iou_table([[0, 0, 10, 10], [5, 5, 1, 1]], [[0, 0, 10, 5], [20, 20, 30, 30], [0, 0, np.inf, np.inf]])
    assert table.tolist() == [[0.5, 0, 0], [0, 0, 0]]
    data = io.BytesIO()
    turned = Image.Exif()
    turned[0x0112] = 6
    SCREEN.save(data, "JPEG", exif=turned)
    assert picture_size({"image": {"bytes": data.getvalue(), "path": None}}) == (480, 640)
    assert picture_size({"image": SCREEN}) == picture_size({"image": None, "width": 640, "height": 480}) == (640, 480)
    with pytest.raises(SightRLError, match="image_width"):
        picture_size({"image": b"no picture"})

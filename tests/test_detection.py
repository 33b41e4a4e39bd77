"""common/detection.py: average precision on hand-computed cases, and the reader of lists of boxes."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.detection import Query, coco_map, detection_stats, read_detections

A, B, FAR = (10, 10, 50, 50), (100, 100, 180, 160), (300, 300, 340, 340)


def test_a_false_box_between_two_hits(capsys):
    """Precision 1 up to recall 0.5, then 2/3: (51 * 1 + 50 * 2/3) / 101 at every threshold."""
    result = coco_map([Query("cat", [A, B], [(A, 0.9), (FAR, 0.8), (B, 0.7)])])
    assert result["mAP"] == pytest.approx((51 + 50 * 2 / 3) / 101) == pytest.approx(0.834983, abs=1e-6)
    assert result["mAP50"] == pytest.approx(0.834983, abs=1e-6) and capsys.readouterr().out == ""


def test_a_late_duplicate_costs_nothing_and_an_early_false_box_does():
    assert coco_map([Query("cat", [A], [(A, 0.9), (A, 0.8)])])["mAP"] == pytest.approx(1.0)
    assert coco_map([Query("cat", [A], [(A, 0.7), (FAR, 0.9)])])["mAP"] == pytest.approx(0.5)


def test_iou_of_exactly_three_quarters():
    result = coco_map([Query("cat", [(0, 0, 100, 100)], [((0, 0, 100, 75), 1.0)])])
    assert result == pytest.approx({"mAP": 0.6, "mAP50": 1.0, "mAP75": 1.0})


def test_classes_weigh_the_same_and_boxes_of_all_pictures_are_ranked_together():
    perfect = [Query("cat", [A], [(A, 0.5)]), Query("cat", [B], [(B, 0.5)]), Query("cat", [A], [(A, 0.5)])]
    assert coco_map([*perfect, Query("dog", [B], [])])["mAP"] == pytest.approx(0.5)
    unsure = [Query("cat", [A], [(A, 0.4)]), Query("cat", [B], [(FAR, 0.6)])]  # the false box comes first
    assert coco_map(unsure)["mAP"] == pytest.approx(0.5 * 51 / 101)
    sure = [Query("cat", [A], [(A, 0.6)]), Query("cat", [B], [(FAR, 0.4)])]
    assert coco_map(sure)["mAP"] == pytest.approx(51 / 101)


def test_nothing_found_is_zero_and_nothing_to_find_is_no_number():
    assert coco_map([Query("cat", [A], [])])["mAP"] == 0.0
    assert coco_map([Query("cat", [A], [((5.0, 5.0, 1.0, 1.0), 0.9)])])["mAP"] == 0.0  # a box inside out
    assert all(math.isnan(v) for v in coco_map([Query("cat", [], [(A, 1.0)])]).values())
    assert math.isnan(coco_map([])["mAP"])


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("[{'Position': [1, 2, 3, 4], 'Confidence': 0.9}]", [((1, 2, 3, 4), 0.9)]),
        ("[[{'Position': [1, 2, 3, 4], 'Confidence': 0.9}]]", [((1, 2, 3, 4), 0.9)]),
        ("[{'Position': [1, 2, 3, 4], 'Confidence': .9}]", None),
        ("[{'Position': [1, 2, 3, 4], 'Confidence': 1}, {'Position': [5, 6, 7", [((1, 2, 3, 4), 1)]),
        ("[{'Position': [1, 2, 3, 4], 'Confidence': 1}, {'Position': [1, 2, 3, 4], 'Confidence': 0}]",
         [((1, 2, 3, 4), 1)]),
        ("[{'Position': [1, 2, 3], 'Confidence': 1}]", None),
        ("[{'Position': [1, 2, 3, 4]}]", None),
        ("[{'Position': [1, 2, 3, NaN], 'Confidence': 1}]", None),
        ("[{'Position': [1, 2, 3, 4], 'Confidence': '1'}]", None),
        ("[[1, 2, 3, 4]]", None),
        ("{'Position': [1, 2, 3, 4], 'Confidence': 1}", None),
        ("No Objects", None),
        ("[]", None),
        ("", None),
        ("[" * 5000, None),
        ("[" + "[{" * 5000, None),
    ],
)  # fmt: skip
def test_reading_a_list(answer, expected):
    assert read_detections(answer) == expected


WORDS = ["[", "]", "{", "},", "'Position'", ": ", "1, 2, 3, 4", "'Confidence'", "0.5", "NaN", "9" * 400, "-1e999", "\n",
         "<answer>", "</answer>", "No Objects", "[{'Position': [1, 2, 3, 4], 'Confidence': 0.5}"]  # fmt: skip
PIECES = st.lists(st.sampled_from(WORDS), max_size=30).map("".join)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.one_of(st.text(max_size=200), PIECES))
def test_any_text_gives_boxes_or_nothing(text):
    found = read_detections(text)
    assert found is None or (found and all(len(box) == 4 and all(map(math.isfinite, (*box, c))) for box, c in found))


def test_stats_of_queries_by_hand():
    """Two of three true boxes found; the gap is mean(0.9, 1) - mean(0.2, 0), confidences beyond 0..1 cut."""
    queries = [Query("cat", [A, B], [(A, 0.9), (FAR, 0.2)]), Query("dog", [A], [(A, 40.0), (FAR, -3.0)])]
    stats = detection_stats(queries)
    assert stats["recall"] == pytest.approx(2 / 3) and stats["boxes per answer"] == 2
    assert stats["calibration gap"] == pytest.approx(0.95 - 0.1)

"""Lists of boxes with confidences: reading them out of an answer, matching, COCO's average precision (pycocotools)."""

from __future__ import annotations

import contextlib
import io
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from common.rewards import iou

NOTHING = "No Objects"
Found = tuple[tuple[float, ...], float]  # (x1, y1, x2, y2), confidence


def read_detections(answer: str) -> list[Found] | None:
    """Boxes of "[{'Position': [x1, y1, x2, y2], 'Confidence': 0.85}, ...]", a position given twice only once.

    As Visual-RFT reads it (extract_bbox and remove_duplicates in src/virft of github Liuziyu77/Visual-RFT): double
    brackets count as single ones, a list that breaks off keeps its complete entries. None where nothing can be read,
    for "No Objects", an empty list, and if any entry lacks a number. Linear time; boxes may enclose nothing.
    """
    entries = read_entries(answer.replace("[[", "[").replace("]]", "]").replace("\n", "").partition("</answer>")[0])
    found: dict[tuple[float, ...], float] = {}
    for entry in entries if isinstance(entries, list) else []:
        numbers = [*as_list(entry.get("Position")), entry.get("Confidence")] if isinstance(entry, dict) else []
        if len(numbers) != 5 or not all(isinstance(v, (int, float)) and abs(v) < 1e7 for v in numbers):
            return None
        found.setdefault(tuple(float(v) for v in numbers[:4]), float(numbers[4]))
    return list(found.items()) or None


def read_entries(text: str) -> object:
    """The JSON of a list in quotes of either kind; of one that breaks off its complete entries. None if it is none."""
    if not text.endswith("]"):
        text = text.rpartition("},")[0] + "}]" if "}," in text else text + "}]"
    try:
        return json.loads(text.replace("'", '"'))
    except (ValueError, RecursionError):
        return None


def write_detections(boxes: Sequence[Sequence[int]]) -> str:
    """The list that read_detections reads, with full confidence, or "No Objects"."""
    entries = ", ".join(f"{{'Position': {list(box)}, 'Confidence': 1.0}}" for box in boxes)
    return f"[{entries}]" if entries else NOTHING


def as_list(value: object) -> list:
    return value if isinstance(value, list) else []


INTEGER = r"\s{0,9}([0-9]{1,7})\s{0,9}"
CORNERS = re.compile(rf"\({INTEGER},{INTEGER}\)\s{{0,9}},\s{{0,9}}\({INTEGER},{INTEGER}\)")


def read_corners(text: str) -> tuple[float, ...] | None:
    """(x1, y1, x2, y2) of the first "(x1,y1),(x2,y2)" in whole numbers; None without one. Linear time."""
    match = CORNERS.search(text)
    return tuple(map(float, match.groups())) if match else None


def write_corners(boxes: Sequence[Sequence[int]]) -> str:
    """ "(x1,y1),(x2,y2)" of one box, what read_corners reads."""
    ((x1, y1, x2, y2),) = boxes
    return f"({x1},{y1}),({x2},{y2})"


def match_by_confidence(found: Sequence[Found], gold: Sequence[Sequence[float]],
                        threshold: float = 0.5) -> list[tuple[float, float]]:  # fmt: skip
    """(confidence, IoU with its true box, else 0) of every found box, the most confident first.

    Each takes the true box that is still free and overlaps most, if the IoU is above the threshold, as in COCO.
    """
    free, pairs = [tuple(box) for box in gold], []
    for box, confidence in sorted(found, key=lambda one: -one[1]):
        overlaps = [iou(box, true) for true in free]
        best = max(overlaps, default=0.0)
        if best > threshold:
            free.pop(overlaps.index(best))
        pairs.append((confidence, best if best > threshold else 0.0))
    return pairs


@dataclass
class Query:
    """One class looked for on one picture: the true boxes and what was found, (x1, y1, x2, y2) in any one unit."""

    name: str
    gold: Sequence[Sequence[float]]
    found: Sequence[Found]
    crowd: Sequence[Sequence[float]] = ()
    """Regions of many things that no one told apart: what is found in them is neither right nor wrong, as in COCO."""


def coco_map(queries: Sequence[Query]) -> dict[str, float]:
    """{"mAP": COCO's mean over IoU 0.50:0.05:0.95 and classes, "mAP50", "mAP75"}; NaN without any true box.

    A class's average precision ranks what was found on all pictures that were asked about it, the first 100 boxes of
    each. Classes without a true box do not count. Pictures whose class was not asked about count if they are given
    as a Query without anything found.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    names = sorted({query.name for query in queries})
    numbers = {name: number for number, name in enumerate(names)}
    rows: tuple[list[dict], list[dict]] = ([], [])  # true boxes, found boxes
    for picture, query in enumerate(queries):
        true = [(box, 0, 1.0) for box in query.gold] + [(box, 1, 1.0) for box in query.crowd]
        for side, boxes in zip(rows, (true, [(box, 0, score) for box, score in query.found]), strict=True):
            for (x1, y1, x2, y2), crowd, score in boxes:
                w, h = max(0.0, x2 - x1), max(0.0, y2 - y1)
                side.append({"id": len(side) + 1, "image_id": picture, "category_id": numbers[query.name],
                             "bbox": [x1, y1, w, h], "area": w * h, "iscrowd": crowd, "score": score})  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its timing
        sides = [COCO(), COCO()]
        for side, boxes in zip(sides, rows, strict=True):
            side.dataset = {"images": [{"id": i} for i in range(len(queries))], "annotations": boxes,
                            "categories": [{"id": i, "name": name} for i, name in enumerate(names)]}  # fmt: skip
            side.createIndex()
        judge = COCOeval(*sides, iouType="bbox")
        judge.evaluate()
        judge.accumulate()
    precision = judge.eval["precision"][..., 0, -1]  # [10 IoUs, 101 recalls, classes], all sizes, 100 boxes
    return {"mAP": mean_of(precision), "mAP50": mean_of(precision[0]), "mAP75": mean_of(precision[5])}


def mean_of(precision: np.ndarray) -> float:
    """Mean of what was measured; classes without a true box have -1."""
    measured = precision[precision > -1]
    return float(measured.mean()) if measured.size else float("nan")


def detection_stats(queries: Sequence[Query], threshold: float = 0.5) -> dict[str, float]:
    """{"mAP", "recall", "boxes per answer", "calibration gap"}; what is not defined is left out.

    recall: share of the true boxes matched at the threshold. The gap is the mean confidence of matched boxes minus
    that of the others, -1 to 1 (confidences are cut to 0..1): 0 if confidence says nothing.
    """
    pairs = [pair for query in queries for pair in match_by_confidence(query.found, query.gold, threshold)]
    hits, misses = ([min(1.0, max(0.0, c)) for c, overlap in pairs if (overlap > 0) == hit] for hit in (True, False))
    total = sum(len(query.gold) for query in queries)
    stats = {"boxes per answer": len(pairs) / len(queries)} if queries else {}
    if total:
        stats |= {"mAP": coco_map(queries)["mAP"], "recall": len(hits) / total}
    if hits and misses:
        stats["calibration gap"] = sum(hits) / len(hits) - sum(misses) / len(misses)
    return stats

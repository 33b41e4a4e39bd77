"""ODinW-13: thirteen small detection data sets, each picture asked once with the names of all its classes.

Scorer: lmms-eval (75571cfe, odinw13). A JSON list of boxes and labels is read; each box is taken as pixels, as shares
of the picture and as 0 to 1000, and the reading that fits a true box of its label best is kept: an oracle. There are no
confidences; of equal ones COCO ranks by the place in the list, and lmms-eval reads lists from behind.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from benchmark import Benchmark, Line, Result, Row, cell, grouped
from boxes import DECIMAL, THRESHOLDS, iou_table
from columns import boxes_cell, list_of, picture_size, texts_cell
from common.detection import Query, coco_map
from common.errors import SightRLError

Frame = tuple[float, float, float, float]
LONGEST = 1000  # boxes read from one response
MOST = 100  # boxes per picture and class that COCO looks at
BOX_KEYS = ("bbox_2d", "bbox", "box_2d", "box")
LABEL_KEYS = ("label", "class", "category", "name", "class_name")
FOURS = re.compile(r"[\s,]++".join([rf"((?:-|(?<!\d)){DECIMAL})", *[rf"(-?{DECIMAL})"] * 3]))
STEPS = 20_000  # braces looked at for objects that cannot be read


def prompt(row: Row, scoring: str) -> str:
    names = ", ".join(texts_cell(row, "categories"))
    return (f"Find everything in the picture that is one of these: {names}. Answer with a JSON list: "
            '[{"bbox_2d": [x1, y1, x2, y2], "label": "name"}].')  # fmt: skip


# ---------------------------------------------------------------- reading boxes


def json_parts(text: str) -> Any:
    """All of the text as JSON, else the first fenced block that is, else a list of the objects that are."""
    pieces = text.split("```")
    fenced = ((part[4:] if part[:4].lower() == "json" else part).strip() for part in pieces[1:-1:2])
    for part in (text, *fenced):
        try:
            return json.loads(part)
        except (ValueError, RecursionError):
            continue
    return objects_within(text)


OBJECT = re.compile(r'\{\s*+["}]')  # how one begins
MARKS = re.compile(r'\\.|["{}]', re.S)
DECODER = json.JSONDecoder()


def objects_within(text: str) -> list[Any]:
    """Every {...} that is JSON, those within others left out. Stops at one whose brace never closes."""
    found, at, steps = [], text.find("{"), 0
    while at >= 0 and steps < STEPS:
        if (read := object_at(text, at)) is not None:
            found.append(read[0])
            at = read[1]
        else:
            looked = balanced(text, at)
            if looked < 0:
                break
            steps, at = steps + looked, at + 1
        at = text.find("{", at)
    return found


def object_at(text: str, start: int) -> tuple[Any, int] | None:
    """The object that begins there and where it ends; None if it is no JSON."""
    try:
        return DECODER.raw_decode(text, start) if OBJECT.match(text, start) else None
    except (ValueError, RecursionError):
        return None


def balanced(text: str, start: int) -> int:
    """How many marks were looked at until the brace at start closed; minus that, if it never does."""
    depth, quoted, count = 0, False, 0
    for count, mark in enumerate(MARKS.finditer(text, start), 1):
        if mark.group() == '"':
            quoted = not quoted
        elif not quoted and mark.group() in "{}":
            depth += 1 if mark.group() == "{" else -1
            if depth == 0:
                return count
    return -count


def predictions(response: str) -> list[tuple[Frame, str]]:
    """(box as written, label). Without any box in JSON: all groups of four numbers, with a label that fits nothing."""
    found, stack = [], [json_parts(response)] if response else []
    while stack and len(found) < LONGEST:
        item = stack.pop()  # the last first, as in lmms-eval
        if isinstance(item, list):
            stack += item
        elif isinstance(item, dict):
            box = next((item[key] for key in BOX_KEYS if key in item), None)
            if isinstance(box, list) and len(box) == 4:
                numbers = [text_number(value) for value in box]
                label = next((item[key] for key in LABEL_KEYS if key in item), None)
                found += [(tuple(numbers), normal(label))] if None not in numbers else []
            else:
                stack += item.values()
    if found:
        return found
    fours = (match.groups() for match in FOURS.finditer(response))
    return [(box, normal(None)) for _, four in zip(range(LONGEST), fours, strict=False)
            if None not in (box := tuple(map(text_number, four)))]  # fmt: skip


def text_number(value: Any) -> float | None:
    """A number, perhaps written as a text; None for anything else and beyond all pictures."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if abs(number) < 1e12 else None


def normal(label: Any) -> str:
    named = label is None or isinstance(label, (str, int, float))
    return (str(label) if named else type(label).__name__).strip().lower()


# ---------------------------------------------------------------- score


def best_readings(boxes: Sequence[Frame], gold: Sequence[Frame], size: tuple[float, float]) -> list[Frame]:
    """The boxes in pixels, each by the reading with the largest IoU with any of the true boxes."""
    pixels, sides = np.asarray(boxes, dtype=float).reshape(-1, 4), np.asarray([*size, *size])
    largest = pixels.max(axis=1, initial=-np.inf)[:, None]
    readings = np.stack(
        [
            pixels,
            np.where(largest <= 1, pixels * sides, pixels),
            np.where(largest <= 1000, pixels / 1000 * sides, pixels),
        ],
        axis=1,
    )  # [boxes, 3, 4]
    best = iou_table(readings, gold).max(axis=-1).argmax(axis=1)
    return [tuple(box) for box in readings[np.arange(len(pixels)), best].tolist()]


def matches(table: np.ndarray) -> dict[int, int]:
    """{number of a true box: number of a found one} by their IoUs, [true, found]: the largest first, each box once."""
    taken: dict[int, int] = {}
    used: set[int] = set()
    for place in np.argsort(-table, axis=None, kind="stable"):
        i, j = divmod(int(place), table.shape[1])
        if not table[i, j] > 0:
            break
        if i not in taken and j not in used:
            taken[i] = j
            used.add(j)
    return taken


def true_boxes(row: Row) -> list[tuple[Frame, str]]:
    boxes, labels = boxes_cell(row, "bboxes"), list_of(cell(row, "labels"))
    if not isinstance(labels, list) or len(labels) != len(boxes):
        raise SightRLError("columns bboxes and labels are not of the same length; give each box its label.")
    return [(box, normal(label)) for box, label in zip(boxes, labels, strict=True)]


def score(row: Row, response: str, scoring: str) -> Result:
    """The score is the share of true boxes matched at IoU 0.5; without any, 1 for no answer that is a box."""
    size, gold, found = picture_size(row), true_boxes(row), predictions(response)
    overlaps, centres = [], []
    for label in dict.fromkeys(label for _, label in gold):
        boxes = [box for box, name in gold if name == label]
        places = [i for i, (_, name) in enumerate(found) if name == label]
        read = best_readings([found[i][0] for i in places], boxes, size)
        for i, box in zip(places, read, strict=True):
            found[i] = box, label
        table = iou_table(boxes, read)
        pairs = matches(table)
        overlaps += [float(table[i, pairs[i]]) if i in pairs else 0.0 for i in range(len(boxes))]
        centres += [float(i in pairs and centre_in(box, read[pairs[i]])) for i, box in enumerate(boxes)]
    score = sum(overlap >= 0.5 for overlap in overlaps) / len(overlaps) if overlaps else float(not found)
    answer = [[*box, label] for box, label in first_of_each(found)]
    return Result(score, answer, parts={"iou": overlaps, "centre": centres})


def first_of_each(found: Sequence[tuple[Frame, str]]) -> Iterable[tuple[Frame, str]]:
    """As many boxes of every label as COCO looks at."""
    seen: dict[str, int] = {}
    for box, label in found:
        seen[label] = seen.get(label, 0) + 1
        if seen[label] <= MOST:
            yield box, label[:100]


def centre_in(true: Frame, box: Frame) -> bool:
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    return true[0] <= x <= true[2] and true[1] <= y <= true[3]


# ---------------------------------------------------------------- table


def set_map(rows: Sequence[Row], results: Sequence[Result]) -> dict[str, float]:
    """COCO's averages of one data set, NaN without any true box."""
    names = {normal(name) for row in rows for name in texts_cell(row, "categories")}
    queries = []
    for row, result in zip(rows, results, strict=True):
        gold = true_boxes(row)
        for name in names & ({label for _, label in gold} | {one[4] for one in result.answer or []}):
            queries.append(
                Query(
                    name,
                    [box for box, label in gold if label == name],
                    [(tuple(one[:4]), 1.0) for one in result.answer or [] if one[4] == name],
                )
            )
    return coco_map(queries)


def summarise(rows: Sequence[Row], results: Sequence[Result], scoring: str) -> list[Line]:
    """Means over the data sets, each weighing the same: mAP, then the mean over true boxes of IoU, shares and centres;
    then each data set's mAP."""
    sets = grouped(zip(rows, results, strict=True), lambda pair: str(pair[0].get("dataset_name")))
    parts = {name: tuple(zip(*pairs, strict=True)) for name, pairs in sets.items()}  # name -> (rows, results)
    maps = {name: set_map(*part) for name, part in parts.items()}
    maps = {name: found for name, found in maps.items() if not math.isnan(found["mAP"])}
    lines = [mean_of_sets(key, [found[key] for found in maps.values()]) for key in ("mAP", "mAP50", "mAP75")]
    overlaps = [[v for result in part for v in result.parts["iou"]] for _, part in parts.values()]
    centres = [[v for result in part for v in result.parts["centre"]] for _, part in parts.values()]
    measures = {"IoU": overlaps, "centre in the box": centres}
    measures |= {f"ACC@{t}": [[v >= t for v in part] for part in overlaps] for t in THRESHOLDS}
    for name, values in measures.items():
        lines.append(mean_of_sets(name, [sum(part) / len(part) for part in values if part]))
    return lines + [Line(f"mAP {name}", 100 * found["mAP"], len(sets[name])) for name, found in maps.items()]


def mean_of_sets(name: str, values: Sequence[float]) -> Line:
    return Line(name, 100 * sum(values) / len(values) if values else 0.0, len(values))


BENCHMARKS = {
    "odinw13": Benchmark(
        title="ODinW-13", source="hf:kcz358/ODinW-13", split="test", size=None, metric="mAP", licence="not stated",
        columns=("image", "dataset_name", "categories", "bboxes", "labels"), prompt=prompt, score=score,
        summarise=summarise, scorings=("lmms-eval",), max_new_tokens=8192,
        note="Each box is read in three ways and the one that fits best is kept; confidences do not count."),
}  # fmt: skip

"""RefCOCO, RefCOCO+, RefCOCOg: give the box of the thing that a phrase names. LISA: the phrase needs reasoning.

A box is right from IoU 0.5 on. What the numbers of a response mean differs more than anything else:

    lmms-eval   (75571cfe, refcoco_grounding) every box in the response is read both as pixels and as 0 to 1000, and
                the reading and the box with the best IoU are scored: an oracle, which also pays long lists of boxes
    vlmevalkit  (e8e78f05, refcoco.py) the first four numbers, best in brackets: shares of the picture up to 1.5,
                thousandths up to 1000, pixels above; so pixels are misread on pictures of less than 1000 pixels

The keys ..._rec are lmms-eval's older task: the first [a, b, c, d] as shares of the picture. The keys vlm_r1_... are
the files and the evaluator of VLM-R1 (github om-ai-lab/VLM-R1 at 90052f47): whole numbers within braces in the first
<answer>, in pixels of the picture as the model saw it, IoU above 0.5. lisa is Visual-RFT's evaluation of ReasonSeg
(github Liuziyu77/Visual-RFT at 94866331): the first "(x1,y1),(x2,y2)" from 0 to 1000, mean IoU of boxes.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmark import Benchmark, Line, Result, Row, bootstrap, cell, mean_line, scores_by
from boxes import BETWEEN, DECIMAL, finite, iou_lines, iou_table
from columns import box_cell, picture_size, text, texts_cell
from common.errors import SightRLError
from common.rewards import Box, block, iou

ZERO = (0.0, 0.0, 0.0, 0.0)  # what evaluators go on with where there is no box

# ---------------------------------------------------------------- prompts


def phrases(row: Row) -> str:
    """All phrases of the thing, quoted, with commas between."""
    return ", ".join(f'"{text.strip()}"' for text in texts_cell(row, "answer") if text.strip())


def prompt_grounding(row: Row, scoring: str) -> str:
    if scoring == "vlmevalkit":
        return f"Where in the picture is {phrases(row)}? Answer with its box [x1, y1, x2, y2], numbers from 0 to 1000."
    return f'Find what {phrases(row)} names in the picture. Answer in JSON: [{{"bbox_2d": [x1, y1, x2, y2]}}].'


def prompt_rec(row: Row, scoring: str) -> str:
    # lmms-eval makes a row of every phrase; of a row that still has several the first is asked.
    return (
        f"Where in the picture is this: {texts_cell(row, 'answer')[0]}\nAnswer with its box [x1, y1, x2, y2] in "
        "square brackets: left, top, right and bottom as shares of the picture's width and height, from 0 to 1."
    )


def prompt_vlm_r1(row: Row, scoring: str) -> str:
    return (f"{text(row, 'problem')} Reason inside <think> </think>, then give the final answer in JSON inside "
            '<answer> </answer>: {"bbox_2d": [x1, y1, x2, y2]}.')  # fmt: skip


def prompt_lisa(row: Row, scoring: str) -> str:
    return (f"Give the box of what this asks for: {texts_cell(row, 'text')[0]}\nReason inside <think> </think>, "
            "then write <answer>(x1,y1),(x2,y2)</answer> with whole numbers from 0 to 1000.")  # fmt: skip


# ---------------------------------------------------------------- reading boxes: lmms-eval

KEYS = ("bbox_2d", "bbox", "box", "coordinates", "coord", "location", "position")
# A number begins where its digits begin, which keeps long numbers from being tried at each of their digits.
FOURS = re.compile(BETWEEN.join([rf"((?:-|(?<!\d)){DECIMAL})", *[rf"(-?{DECIMAL})"] * 3]))
SQUARE = re.compile(r"\[\s*+" + r",\s*+".join([rf"(-?{DECIMAL})"] * 4) + r"\s*+\]")


def grounding_boxes(response: str) -> list[Box]:
    """All boxes of the JSON in a response; if it has none, of all groups of four numbers."""
    boxes = boxes_within(json_within(response.strip())) if response else []
    return boxes or [tuple(map(float, four)) for four in FOURS.findall(response)]


def json_within(text: str) -> Any:
    """The first fenced block, else all of the text, else from the first [ to the last ], else from { to }."""
    fenced = text.split("```")[1] if text.count("```") > 1 else ""
    tries = [(fenced[4:] if fenced[:4].lower() == "json" else fenced).strip()] if fenced else []
    tries.append(text)
    for first, last in ("[]", "{}"):
        start, end = text.find(first), text.rfind(last)
        if 0 <= start < end:
            tries.append(text[start : end + 1])
    for part in tries:
        try:
            return json.loads(part)
        except (ValueError, RecursionError):
            continue
    return None


def boxes_within(data: Any) -> list[Box]:
    """Lists of four numbers, and what stands under one of the KEYS, in reading order, however deep they stand."""
    boxes, stack = [], [data]
    while stack:
        item = stack.pop()
        if isinstance(item, list):
            if len(item) == 4 and all(isinstance(value, (int, float)) for value in item):
                boxes.append(tuple(map(to_float, item)))
            else:
                stack += reversed(item)
        elif isinstance(item, dict):
            box = next((box for key in KEYS if (box := box_of(item.get(key)))), None)
            boxes += [box] if box else []
            stack += [] if box else reversed(list(item.values()))
    return boxes


def box_of(value: Any) -> Box | None:
    """Four numbers, perhaps written as texts."""
    if not isinstance(value, list) or len(value) != 4:
        return None
    try:
        return tuple(map(to_float, value))
    except (TypeError, ValueError):
        return None


def to_float(value: Any) -> float:
    try:
        return float(value)
    except OverflowError:  # a whole number of more than 308 digits
        return math.inf if value > 0 else -math.inf


def best_box(boxes: Sequence[Box], truth: Box, size: tuple[float, float]) -> Box:
    """Of all boxes, in pixels and from 0 to 1000, the first with the largest IoU."""
    if not boxes:
        return ZERO
    pixels = np.asarray(boxes, dtype=float)
    readings = np.stack([pixels, pixels / 1000 * np.asarray([*size, *size])], axis=1).reshape(-1, 4)
    return tuple(readings[int(iou_table(readings, [truth])[:, 0].argmax())].tolist())


def first_square(response: str) -> Box:
    match = SQUARE.search(response)
    return tuple(map(float, match.groups())) if match else ZERO


# ---------------------------------------------------------------- reading boxes: VLMEvalKit

SIGNED = r"[-+]?(?:\d++(?:\.\d++)?+|\.\d++)(?:[eE][-+]?\d++)?+"
BRACKETED = re.compile(r"\[\s*+" + BETWEEN.join([rf"({SIGNED})"] * 4) + r"\s*+\]")


def vlmevalkit_box(response: str, size: tuple[float, float]) -> Box | None:
    """In pixels, within the picture; None without four numbers."""
    match = BRACKETED.search(response)
    found = list(map(float, match.groups() if match else re.findall(SIGNED, response)[:4]))
    if len(found) < 4:
        return None
    largest = max(map(abs, found))
    unit = 1.0 if largest <= 1.5 else 1000.0 if largest <= 1000 else None
    sides = (*size, *size)
    x1, y1, x2, y2 = (min(max(value if unit is None else value / unit * side, 0.0), side)
                      for value, side in zip(found, sides, strict=True))  # fmt: skip
    return min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)


# ---------------------------------------------------------------- reading boxes: VLM-R1 and Visual-RFT

WHOLE_SQUARE = re.compile(r"\[(\d++),\s*+(\d++),\s*+(\d++),\s*+(\d++)\]")
CORNERS = re.compile(r"\(\s*+(\d++)\s*+,\s*+(\d++)\s*+\)\s*+,\s*+\(\s*+(\d++)\s*+,\s*+(\d++)\s*+\)")


def vlm_r1_box(response: str) -> Box:
    """The last [a, b, c, d] of whole numbers between the first { and the last } of the first <answer> block."""
    answer = block(response, "answer") or ""
    start, end = answer.find("{"), answer.rfind("}")
    found = WHOLE_SQUARE.findall(answer, start + 1, end) if start >= 0 else []
    return tuple(map(float, found[-1])) if found else ZERO


def vlm_r1_iou(a: Box, b: Box) -> float:
    """The usual IoU, but an overlap of at most one pixel in a direction is none."""
    wide, high = (min(a[i + 2], b[i + 2]) - 1 > max(a[i], b[i]) for i in (0, 1))
    return iou(a, b) if wide and high else 0.0


def lisa_box(response: str) -> Box | None:
    """In shares of the picture."""
    match = CORNERS.search(response)
    return tuple(float(number) / 1000 for number in match.groups()) if match else None


def lisa_iou(a: Box, b: Box) -> float:
    """The usual IoU with 1e-6 in the denominator."""
    shared = max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    if not shared > 0:
        return 0.0
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
    return shared / (union + 1e-6)


# ---------------------------------------------------------------- scores


def true_box(row: Row, column: str = "bbox") -> Box:
    """Pixels x, y, width, height as two corners."""
    x, y, width, height = box_cell(row, column)
    return checked((x, y, x + width, y + height), column)


def checked(box: Box, column: str) -> Box:
    if box[0] >= box[2] or box[1] >= box[3]:
        raise SightRLError(f"column {column} holds a box that encloses nothing; correct its numbers.")
    return box


def located(box: Box | None, truth: Box, overlap: float, right: bool) -> Result:
    box = box or ZERO
    middle = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    centred = truth[0] <= middle[0] <= truth[2] and truth[1] <= middle[1] <= truth[3]
    return Result(float(right), finite(box), parts={"iou": overlap, "centre": float(centred)})


def score_grounding(row: Row, response: str, scoring: str) -> Result:
    truth, size = true_box(row), picture_size(row)
    if scoring == "vlmevalkit":
        box = vlmevalkit_box(response, size)
    else:
        box = best_box(grounding_boxes(response), truth, size)
    overlap = iou(box, truth) if box else 0.0
    return located(box, truth, overlap, overlap >= 0.5)


def score_rec(row: Row, response: str, scoring: str) -> Result:
    (x1, y1, x2, y2), (width, height) = true_box(row), picture_size(row)
    truth, box = (x1 / width, y1 / height, x2 / width, y2 / height), first_square(response)
    overlap = iou(truth, box)
    return located(box, truth, overlap, overlap >= 0.5)


def score_vlm_r1(row: Row, response: str, scoring: str) -> Result:
    truth, box = checked(box_cell(row, "solution"), "solution"), vlm_r1_box(response)
    if row.get("input_width") is not None and row.get("input_height") is not None:
        seen = picture_size({"width": row["input_width"], "height": row["input_height"]})
        x, y = (side / before for side, before in zip(picture_size(row), seen, strict=True))
        box = box[0] * x, box[1] * y, box[2] * x, box[3] * y
    overlap = vlm_r1_iou(box, truth)
    return located(box, truth, overlap, overlap > 0.5)


def score_lisa(row: Row, response: str, scoring: str) -> Result:
    """The score is the IoU itself."""
    (x1, y1, x2, y2), (width, height) = shape_box(row), picture_size(row)
    truth, box = (x1 / width, y1 / height, x2 / width, y2 / height), lisa_box(response)
    overlap = lisa_iou(box, truth) if box else 0.0
    return Result(overlap, finite(box), parts={"iou": overlap, "read": box is not None})


def shape_box(row: Row) -> Box:
    """The box around the first shape, as Visual-RFT takes it; further shapes do not count."""
    try:
        points = [(float(x), float(y)) for x, y in cell(row, "shapes")[0]["points"]]
        box = tuple(bound(side) for bound in (min, max) for side in zip(*points, strict=True))
    except (TypeError, ValueError, KeyError, IndexError):
        box = ()
    if len(box) != 4:
        raise SightRLError("column shapes has no first shape with points; take the published annotations.")
    return checked(box, "shapes")


def read_reasonseg(path: Path) -> list[Row]:
    """The pictures of one folder of ReasonSeg, each NAME.json with its NAME.jpg."""
    folder = path if path.is_dir() else path.parent
    rows = []
    for file in sorted(folder.glob("*.json")):
        try:
            data = json.loads(file.read_text("utf-8", "replace"))
            with Image.open(file.with_suffix(".jpg")) as image:
                size = {"image_width": image.width, "image_height": image.height}
            rows.append({"image": f"{file.stem}.jpg", **{name: data[name] for name in ("text", "shapes")}, **size})
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise SightRLError(f"{file} is no annotation of ReasonSeg with its picture beside it "
                               f"({type(error).__name__}: {error}); fetch both again.") from None  # fmt: skip
    if not rows:
        raise SightRLError(f"{folder} holds no annotations; give the folder test or val of ReasonSeg.")
    return rows


# ---------------------------------------------------------------- tables


def summarise_grounding(rows: Sequence[Row], results: Sequence[Result], scoring: str) -> list[Line]:
    """Accuracy at IoU 0.5, then mean IoU, other thresholds, centres. VLMEvalKit: the mean of the splits, if rows say
    in a column split which they are of, then each split."""
    overlaps = [result.parts["iou"] for result in results]
    if scoring != "vlmevalkit":
        centres = mean_line("centre in the box", [result.parts["centre"] for result in results])
        return [mean_line("accuracy", [result.score for result in results]), *iou_lines(overlaps), centres]
    splits = scores_by(rows, results, lambda row: str(row.get("split", "accuracy")))
    lines = [mean_line(name, scores) for name, scores in splits.items()]
    if len(lines) > 1:
        lines.insert(0, Line("average of splits", sum(line.value for line in lines) / len(lines), len(results)))
    return [*lines, mean_line("IoU", overlaps)]


def summarise_lisa(rows: Sequence[Row], results: Sequence[Result], scoring: str) -> list[Line]:
    """Mean IoU of boxes; with the pixels that masks share with the true ones in the columns intersection and union,
    also gIoU and cIoU of LISA."""
    lines = [mean_line("mIoU of boxes", [result.score for result in results])]
    if rows and all(row.get("intersection") is not None and row.get("union") is not None for row in rows):
        pairs = [(float(cell(row, "intersection")), float(cell(row, "union"))) for row in rows]
        lines += mask_lines(pairs)
    return lines


def mask_lines(pairs: Sequence[tuple[float, float]]) -> list[Line]:
    """gIoU: the mean over pictures, 1 for an empty mask where nothing is asked for. cIoU: sums over all pictures."""
    both = np.asarray(pairs, dtype=float)  # [pictures, 2]: pixels in both masks, in any of them
    overlaps = both[:, 0] / (both[:, 1] + 1e-5) + (both[:, 1] == 0)

    def cumulative(picked: np.ndarray) -> float:
        return picked[:, 0].sum() / (picked[:, 1].sum() + 1e-10)

    return [mean_line("gIoU", overlaps),
            Line("cIoU", 100 * cumulative(both), len(both), bootstrap(cumulative, both))]  # fmt: skip


# ---------------------------------------------------------------- the sets

SETS = {"refcoco": "RefCOCO", "refcoco_plus": "RefCOCO+", "refcocog": "RefCOCOg"}
PLACES = {"refcoco": "RefCOCO", "refcoco_plus": "RefCOCOplus", "refcocog": "RefCOCOg"}
FILES = {"refcoco": "refcoco_val", "refcoco_plus": "refcocop_val", "refcocog": "refcocog_val"}
SPLITS = "For another split (testA, testB; of RefCOCOg test) give its file with --data."


def on_rows(key: str, suffix: str, prompt: Callable[[Row, str], str], score: Callable[[Row, str, str], Result],
            scorings: tuple[str, ...], note: str) -> Benchmark:  # fmt: skip
    return Benchmark(title=f"{SETS[key]}{suffix}", source=f"hf:lmms-lab/{PLACES[key]}", split="val", size=None,
                     metric="accuracy at IoU 0.5", licence="not stated", columns=("image", "answer", "bbox"),
                     prompt=prompt, score=score, summarise=summarise_grounding, scorings=scorings, max_new_tokens=512,
                     note=f"{note} {SPLITS}")  # fmt: skip


def vlm_r1(key: str) -> Benchmark:
    return Benchmark(
        title=f"{SETS[key]} val (VLM-R1)", source="hf:omlab/VLM-R1", split="val", size=None,
        metric="accuracy at IoU above 0.5", licence="not stated", columns=("image", "problem", "solution"),
        prompt=prompt_vlm_r1, score=score_vlm_r1, summarise=summarise_grounding, max_new_tokens=256,
        note=f"Give --data the file {FILES[key]}.json of HF omlab/VLM-R1 (rec_jsons_processed.zip) and --media the "
             "pictures of COCO train2014; the published script takes 2000 rows at random (seed 42). Numbers are pixels "
             "of the picture as the model saw it; answers made elsewhere need that size in the columns input_width and "
             "input_height, or they are taken for pixels of the original.")  # fmt: skip


GROUNDING_NOTE = "lmms-eval reads every box as pixels and as 0 to 1000 and scores the best: not a fair score of a box."
REC_NOTE = "Shares of the picture in square brackets alone; anything else is no box. Of several phrases the first."
BENCHMARKS = {
    **{key: on_rows(key, "", prompt_grounding, score_grounding, ("lmms-eval", "vlmevalkit"), GROUNDING_NOTE)
       for key in SETS},
    **{f"{key}_rec": on_rows(key, " (REC)", prompt_rec, score_rec, ("lmms-eval",), REC_NOTE) for key in SETS},
    **{f"vlm_r1_{key}": vlm_r1(key) for key in SETS},
    "lisa": Benchmark(
        title="LISA grounding (ReasonSeg, Visual-RFT)", source="github:dvlab-research/LISA", split="test", size=None,
        metric="mIoU", licence="Apache-2.0", columns=("image", "text", "shapes"), prompt=prompt_lisa, score=score_lisa,
        summarise=summarise_lisa, read=read_reasonseg, max_new_tokens=128,
        reference=(("Qwen2-VL-2B", "26.9", "Visual-RFT, Table 6, test"),
                   ("Visual-RFT 2B", "37.6", "Visual-RFT, Table 6, test"),
                   ("Qwen2-VL-7B", "40.4", "Visual-RFT, test"), ("Visual-RFT 7B", "43.9", "Visual-RFT, test")),
        note="Give --data the folder test or val of ReasonSeg. No masks are made here: Visual-RFT gives the box to SAM "
             "ViT-H. With the pixels in both masks and in any of them in the columns intersection and union, the "
             "table has gIoU and cIoU too."),
}  # fmt: skip

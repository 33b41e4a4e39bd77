"""Detection on COCO and LVIS as Visual-RFT tests it: few-shot and open-vocabulary classes, asked one by one.

Official code: github Liuziyu77/Visual-RFT at 94866331 (coco_evaluation, lvis_evaluation). One question per picture
and class that its base model named on the picture (the exist maps there), boxes from 0 to 1000 with confidences, then
COCO's average precision of the tested classes (pycocotools), averaged. A class that is there and was not asked about
counts as missed; such rows have asked = false, and whatever is answered to them is left out. --data is a folder with
the annotations (instances_val2017.json, lvis_v1_val.json) and one exist map.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmark import Benchmark, Line, Result, Row, mean_line
from columns import boxes_cell, picture_size, text
from common.detection import Query, coco_map, read_entries
from common.errors import SightRLError
from common.rewards import block, detection_f1

Frame = tuple[float, float, float, float]
MOST = 100  # boxes per picture and class, the most confident ones: COCO looks at no more
CLASSES = {
    "coco_few_shot": ("bus", "train", "fire hydrant", "stop sign", "cat", "dog", "bed", "toilet"),
    "coco_open_vocabulary": ("mouse", "fork", "hot dog", "cat", "airplane", "suitcase", "parking meter", "sandwich",
                             "train", "hair drier", "toilet", "toaster", "snowboard", "frisbee", "bear"),
    "lvis_few_shot": ("horse_buggy", "die", "kitchen_table", "omelet", "papaya", "stepladder"),
    "lvis_open_vocabulary": ("casserole", "die", "egg_roll", "futon", "garbage", "handsaw", "hippopotamus",
                             "kitchen_table", "mallet", "omelet", "shot_glass", "stepladder", "sugar_bowl"),
}  # fmt: skip

# ---------------------------------------------------------------- rows of COCO and LVIS


def query_rows(instances: dict[str, Any], exist: dict[str, list[str]], classes: Sequence[str]) -> Iterable[Row]:
    """A row per picture and class that is asked about or there. instances: as COCO publishes them; exist: class names
    by number of the picture. Raises KeyError for a file of another kind."""
    names = {category["id"]: category["name"] for category in instances["categories"]}
    true: dict[tuple[Any, str], list[dict]] = {}
    for annotation in instances["annotations"]:
        true.setdefault((annotation["image_id"], names[annotation["category_id"]]), []).append(annotation)
    for image in instances["images"]:
        name = image.get("file_name") or "/".join(image["coco_url"].split("/")[-2:])  # LVIS has addresses
        asked = exist.get(str(image["id"]), [])
        for category in classes:
            there = true.get((image["id"], category), [])
            if there or category in asked:
                sides = [[a["bbox"] for a in there if bool(a.get("iscrowd")) == crowd] for crowd in (False, True)]
                yield {
                    "image": name,
                    "image_id": image["id"],
                    "width": image["width"],
                    "height": image["height"],
                    "category": category,
                    "boxes": sides[0],
                    "crowd": sides[1],
                    "asked": category in asked,
                }


def read_queries(family: str, classes: Sequence[str]) -> Callable[[Path], list[Row]]:
    """The reader of --data for these classes."""
    annotations = {"coco": "instances_val2017.json", "lvis": "lvis_v1_val.json"}[family]

    def read(path: Path) -> list[Row]:
        folder = path if path.is_dir() else path.parent
        files = [path if path.is_file() else folder / annotations, *sorted(folder.glob(f"exist_map_{family}*.json"))]
        if len(files) != 2 or not files[0].is_file():
            raise SightRLError(f"{folder} must hold {annotations} and one exist_map_{family}_....json of Visual-RFT; "
                               f"put the one of your base model there.")  # fmt: skip
        try:
            instances, exist = (json.loads(file.read_bytes()) for file in files)
            return list(query_rows(instances, exist, classes))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise SightRLError(f"{files[0]} and {files[1]} are no annotations of COCO's form and no classes by picture "
                               f"({type(error).__name__}: {error}); fetch them again.") from None  # fmt: skip

    return read


# ---------------------------------------------------------------- COCO and LVIS


def query_prompt(row: Row, scoring: str) -> str:
    name = text(row, "category")
    return (f"Find every {name} in the picture. Give a box for each, as whole numbers from 0 to 1000, and how sure you "
            "are, from 0 to 1 with two decimals. Reason inside <think> </think>, then answer in this form:\n"
            "<answer>[{'Position': [x1, y1, x2, y2], 'Confidence': 0.85}, ...]</answer>\n"
            f"If there is no {name}, write <answer>No Objects</answer>.")  # fmt: skip


def answer_text(response: str) -> str:
    """What is read: the first <answer> block, without one all of the response."""
    response = response.replace("[[", "[").replace("]]", "]").replace("\n", "").replace(", ...", "")
    content = block(response, "answer")
    # Without a whole block the script puts tags of its own around the response: it stops at a lone closing tag, and of
    # a block that breaks off it can read nothing, as the opening tag is no JSON.
    return response.strip().partition("</answer>")[0] if content is None else content


def positions(response: str) -> list[tuple[Frame, float]]:
    """(box from 0 to 1000, confidence), a box that is given twice only once. What stands behind an entry without
    numbers is lost; if one has no list of numbers for a position, all are."""
    entries = read_entries(answer_text(response))
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        return []
    places = [entry.get("Position") for entry in entries]
    if not all(isinstance(p, list) and not any(isinstance(v, (list, dict)) for v in p) for p in places):
        return []
    found: dict[Frame, float] = {}
    for place, entry in zip(places, entries, strict=True):
        if tuple(place) in found:
            continue
        numbers = [as_number(value) for value in (*place, entry.get("Confidence"))]
        if len(numbers) != 5 or None in numbers:
            break
        found[tuple(numbers[:4])] = numbers[4]
    return list(found.items())


def as_number(value: Any) -> float | None:
    """A finite number that JSON has as a number."""
    return float(value) if isinstance(value, (int, float)) and abs(value) < 1e12 else None


def corners(boxes: Sequence[Sequence[float]]) -> list[Frame]:
    """x, y, width, height as two corners."""
    return [(x, y, x + width, y + height) for x, y, width, height in boxes]


def score_query(row: Row, response: str, scoring: str) -> Result:
    """The score is F1 at IoU 0.5, for looking at single rows; the table has the average precision."""
    (width, height), gold = picture_size(row), corners(boxes_cell(row, "boxes"))
    found = []
    if row.get("asked", True):
        found = [([x1 / 1000 * width, y1 / 1000 * height, x2 / 1000 * width, y2 / 1000 * height], confidence)
                 for (x1, y1, x2, y2), confidence in positions(response)]  # fmt: skip
    found = sorted(found, key=lambda one: -one[1])[:MOST]
    score = detection_f1([("", tuple(box)) for box, _ in found], [("", box) for box in gold])
    return Result(score, answer=[[*box, confidence] for box, confidence in found])


def summarise_queries(rows: Sequence[Row], results: Sequence[Result], scoring: str) -> list[Line]:
    """mAP over the classes that are there at all, then the AP of each. Average precision belongs to all pictures
    together, so there are no intervals."""
    queries = []
    for row, result in zip(rows, results, strict=True):
        found = [(tuple(one[:4]), one[4]) for one in result.answer or []]
        crowd = corners(boxes_cell(row, "crowd")) if row.get("crowd") is not None else []
        queries.append(Query(str(row["category"]), corners(row["boxes"]), found, crowd))
    count = len(rows)
    lines = [Line(name, percent(value), count) for name, value in coco_map(queries).items()] if queries else []
    for name in dict.fromkeys(query.name for query in queries):
        part = [query for query in queries if query.name == name]
        lines.append(Line(f"AP {name}", percent(coco_map(part)["mAP"]), len(part)))
    return [*lines, mean_line("F1 at IoU 0.5", [result.score for result in results])]


def percent(value: float) -> float:
    return 0.0 if math.isnan(value) else 100 * value


# ---------------------------------------------------------------- the benchmarks

PAPER = "Visual-RFT"
PUBLISHED = {
    "coco_few_shot": (("Qwen2-VL-2B", "19.6", f"{PAPER}, Table 3"), ("SFT 2B, 4 shots", "25.2", f"{PAPER}, Table 3"),
                      ("Visual-RFT 2B, 4 shots", "40.6", f"{PAPER}, Table 3"), ("Qwen2-VL-7B", "43.0", PAPER),
                      ("Visual-RFT 7B, 4 shots", "54.3", PAPER)),
    "coco_open_vocabulary": (("Qwen2-VL-2B", "9.8", f"{PAPER}, Table 7"),
                             ("Visual-RFT 2B", "31.3", f"{PAPER}, Table 7"),
                             ("Qwen2-VL-7B", "26.3", PAPER), ("Visual-RFT 7B", "35.8", PAPER)),
    "lvis_few_shot": (("Qwen2-VL-2B", "4.0", f"{PAPER}, Table 4"), ("Visual-RFT 2B", "19.4", f"{PAPER}, Table 4")),
    "lvis_open_vocabulary": (("Qwen2-VL-2B", "2.7", f"{PAPER}, Table 8"),
                             ("Visual-RFT 2B", "20.7", f"{PAPER}, Table 8")),
}  # fmt: skip
NOTE = {"coco": "Give --data a folder with instances_val2017.json and an exist_map_coco_....json, --media val2017.",
        "lvis": "Give --data a folder with lvis_v1_val.json and an exist_map_lvis_....json, --media the folder with "
                "train2017 and val2017. The notebook that graded LVIS was not released; the average precision here is "
                "COCO's, without LVIS's rule that skips pictures nobody checked for a class."}  # fmt: skip


def by_query(key: str) -> Benchmark:
    family, _, kind = key.partition("_")
    return Benchmark(
        title=f"{family.upper()} {kind.replace('_', ' ')} (Visual-RFT)", source="github:Liuziyu77/Visual-RFT",
        split="val", size=None, metric="mAP", licence="CC BY 4.0 (annotations)" if family == "coco" else "not stated",
        columns=("image", "category", "boxes"), prompt=query_prompt, score=score_query, summarise=summarise_queries,
        identify=lambda row, number: f"{row.get('image_id', number)}:{row.get('category')}",
        reference=PUBLISHED[key], note=NOTE[family], read=read_queries(family, CLASSES[key]))  # fmt: skip


BENCHMARKS = {key: by_query(key) for key in CLASSES}

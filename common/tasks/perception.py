"""Perception questions: find all of a class, find one thing, name a thing. For every method that learns to see.

Made of the micro-world, of pictures with boxes (voc:DIR, coco:FILE), or of rows that hold question and solution.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from common.data import Dataset, Sample, Stream
from common.detection import (
    NOTHING,
    Query,
    coco_map,
    detection_stats,
    read_corners,
    read_detections,
    write_corners,
    write_detections,
)
from common.errors import SightRLError
from common.evaluation import Evaluation
from common.rewards import answer_line, rescale_box
from common.world.layouts import find_all, find_one, is_held_out, name_kind, name_of_all, of_kind

KINDS = ("detect", "ground", "classify")
SCANNED = 3000  # questions that are searched for few-shot pictures


def perception_question(sample: Sample, kinds: str, prompt: str = "{question}", pixels: Any = None) -> Sample:
    """The sample as a question of one kind, its task; the answer is the solution as Visual-RFT writes it.

    kinds: "detect,ground,classify", what the micro-world may ask; the id of a sample chooses. prompt: text around the
    question, unless that speaks of <answer> itself. pixels: of a VLM (`vlm.pixels`): boxes are in pixels of the picture
    it sees; None: from 0 to 1000. Answers: "[{'Position': ...}]" or "No Objects", "(x1,y1),(x2,y2)", the name. meta
    gains "class", "thought" (of a careful reader) and, in the micro-world, "relevant". A picture with boxes is asked
    about its meta["label"]: task "locate" is grounding, all others detection. In the micro-world split test_combo is
    asked about its held-out pairs. Rows of a table keep their question and solution, which tells the kind. Raises
    SightRLError for unknown kinds and for a solution that looks like boxes and is none.
    """
    label = sample.meta.get("label")
    if "things" in sample.meta:
        kind, question, boxes, found = world_question(sample, kinds)
    elif label and "boxes" in sample.meta:
        kind = "ground" if sample.task == "locate" else "detect"
        question = {"ground": f"Find the {label}. Give two corners.",
                    "detect": f"Find all {label}. List position and confidence."}[kind]  # fmt: skip
        boxes = [box for name, box in sample.meta["boxes"] if name == label]
        found = {"class": label, "thought": f"Looking for {label}."}
    else:
        return table_question(sample, prompt)
    image = sample.load_images()[0]
    height, width = pixels.resize(image).shape[:2] if pixels else (1000, 1000)
    boxes = [tuple(round(v) for v in rescale_box(box, image.size, (width, height))) for box in boxes]
    answer = {"detect": write_detections, "ground": write_corners}.get(kind, lambda boxes: found["class"])(boxes)
    meta = sample.meta | found
    question = prompt.replace("{question}", question)
    return replace(sample, question=question, answer=answer, task=kind, answer_type="text", meta=meta)


def table_question(sample: Sample, prompt: str) -> Sample:
    found = sample.answer == NOTHING or read_detections(sample.answer)
    kind = "detect" if found else "ground" if read_corners(sample.answer) else "classify"
    if kind == "classify" and sample.answer[:1] in ("[", "("):
        problem = "is neither a list of Position and Confidence nor (x1,y1),(x2,y2)"
        fix = "name the column with the solution: --columns answer=NAME"
        raise SightRLError(f"{sample.where or sample.id}: the solution {sample.answer[:40]!r} {problem}; {fix}.")
    name = {"detect": sample.question, "classify": sample.answer}.get(kind, "")
    question = sample.question if "<answer>" in sample.question else prompt.replace("{question}", sample.question)
    meta = sample.meta | {"class": name, "thought": "Looking at the picture."}
    return replace(sample, question=question, task=kind, answer_type="text", meta=meta)


def world_question(sample: Sample, kinds: str) -> tuple[str, str, list, dict]:
    """(kind, question, boxes in pixels of the scene, {"class", "thought", "relevant"})."""
    wanted = kinds.split(",")
    if unknown := [kind for kind in wanted if kind not in KINDS]:
        raise SightRLError(f"--kinds knows no {unknown[0]!r}; write some of {','.join(KINDS)}.")
    rng, scene = random.Random(sample.id), sample.meta["things"]
    kind, novel = rng.choice(wanted), [t for t in scene if is_held_out(t)]
    things = novel or scene
    if kind == "detect":
        task = find_all(things, rng, absent=0.0, pairs=1.0) if novel else find_all(things, rng)
        seen, name = of_kind(things, task["kind"]), task["kind"]
    else:
        task = find_one(things, rng) if kind == "ground" else name_kind(things, rng)
        seen = [next(t for t in things if t["cell"] == cell) for cell in task.get("cells") or [task["cell"]]]
        name = f"{seen[-1]['color']} {seen[-1]['shape']}"
    about = {"detect": f"for {task.get('kind') and name_of_all(name)}", "ground": f"for the {task.get('name')}",
             "classify": f"at {task.get('cell')}"}[kind]  # fmt: skip
    words = [f"{t['cell']} {t['color']} {t['shape']}" for t in seen]
    listed = name if kind == "classify" else (", " if kind == "detect" else ". Then ").join(words) or "none"
    boxes = task["boxes"] if kind == "detect" else [seen[-1]["box"]]
    return kind, task["question"], boxes, {"class": name, "thought": f"Looking {about}: {listed}.",
                                           "relevant": [t["cell"] for t in seen]}  # fmt: skip


def few_shots(stream: Stream, k: int, ask: Callable[[Sample], Sample]) -> Stream:
    """A stream of the first k pictures of every kind and class among the first 3000 rows; absent classes do not count.

    ask(sample): its perception question.
    """
    counts: Counter[tuple[str, str]] = Counter()
    chosen, data = [], stream.dataset
    for row in range(min(len(data), SCANNED)):
        question = ask(data[row])
        key = (question.task, question.meta["class"])
        if counts[key] < k and question.answer != NOTHING:
            counts[key] += 1
            chosen.append(data[row])
    return Stream(Dataset(data.name, data.split, chosen, tasks=data.tasks, bad_rows=data.bad_rows,
                          skipped=data.skipped, notes=data.notes), stream.seed)  # fmt: skip


def detection_effects(before: Evaluation | None, after: Evaluation | None) -> dict[str, tuple[float, float]]:
    """detection_stats before and after of the held-out detection questions about what is there, mAP per split.

    A list of boxes stands on one line of an answer. Every response counts as one more picture of its class.
    """
    first, last = (stats_of(asked.records if asked else []) for asked in (before, after))
    return {name: (first[name], last[name]) for name in first if name in last}


def stats_of(records: list[dict]) -> dict[str, float]:
    queries: dict[str, list[Query]] = {}
    for record in records:
        gold = read_detections(record["answer"]) if record["task"] == "detect" else None
        for text in record["responses"] if gold else []:
            query = Query(record["question"], [box for box, _ in gold], read_detections(answer_line(text)) or [])
            queries.setdefault(record["split"], []).append(query)
    stats = detection_stats([query for part in queries.values() for query in part])
    names = {"test_combo": "mAP of novel classes"}
    return stats | {names.get(split, "mAP"): coco_map(part)["mAP"] for split, part in queries.items()}

"""Every function that reads what a model or a judge wrote, in one list, and a check that none is missing from it.

    PARSERS["yes_no"](text), PARSERS["mathvista official 1"](text)

A new method or benchmark adds a line here; test_outputs.py fails if it does not.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import bench_rows as rows
from PIL import Image

import megabench_metrics
import megabench_parse
from benchmark import Benchmark, Result, Row
from benchmarks import detection as detection_bench
from benchmarks import vicrit as vicrit_bench
from common import box_frame, detection, maths, overlap, rewards, training
from common.data import Sample
from common.errors import printable
from common.tasks import captions, corrupt, facts, puzzles
from common.tasks.perception import perception_question
from common.vlm import harmless
from common.world import entails, habits, score_tiny_vlm, taught, world_sample
from common.world.facts import facts_of, stated
from methods import pearl, perception_r1, ssl4rl, vicrit, vision_sr1, visionary_r1, visual_rft, visurf
from scoring import find_benchmarks, score, through_json

ROOT = Path(__file__).resolve().parents[2]
FOUND, PROBLEMS = find_benchmarks()
CASES = [(name, scoring) for name, (benchmark, _) in FOUND.items() for scoring in benchmark.scorings]

# ---------------------------------------------------------------- methods and what they share


class Gold:
    """What parsers that grade need to know of a question."""

    answer, answer_type, meta, images, task, question = "red", "text", {}, [], "color", "What color is it?"


def typed(kind: str, answer: str) -> type:
    return type("Gold", (Gold,), {"answer": answer, "answer_type": kind})


WORLD = [Sample(images=[row.pop("image")], **row) for row in (world_sample("test", i) for i in range(8))]
COLOR, META = WORLD[0], WORLD[0].meta
ERROR = captions.WrongCaptions(WORLD, "{caption}")[0]
TARGET = next(task for task in map(lambda s: visurf.task_of(visurf.Args(), s), WORLD) if task.task == "target")
BENCH = {"changed_caption": "a red cup on a table", "original_noun_phrases": "a blue cup",
         "changed_noun_phrases": "a red cup"}  # fmt: skip
FACTS = facts_of(COLOR.task, COLOR.question, META["things"], META["relevant"])


def row(answer: str, kind: str) -> Sample:
    return Sample("row:1", "?", answer, kind, [], meta={"problem_type": kind})


def puzzle(answer: str, kind: str) -> Sample:
    return Sample("row:1", puzzles.QUADRANTS[0], answer, kind, [])


def grader(grade: Callable[[str, Sample], object], sample: Sample, text: str) -> object:
    return grade(text, sample)


PARSERS: dict[str, Callable[[str], object]] = {
    "last_boxed": rewards.last_boxed,
    "box_frame": lambda text: box_frame.convert(text, (640, 480), (1000, 1000)),
    "block": lambda text: rewards.block(text, "answer"),
    "squeeze_tags": rewards.squeeze_tags,
    "has_format": rewards.has_format,
    "parse_state": rewards.parse_state,
    "option_letter": lambda text: rewards.option_letter(text, ["red", "blue"]),
    "yes_no": rewards.yes_no,
    "parse_box": rewards.parse_box,
    "parse_boxes": rewards.parse_boxes,
    "unwrap_text": maths.unwrap_text,
    "grade_answer": lambda text: maths.grade_answer(text, "3/4"),
    "grade_answer tuple": lambda text: maths.grade_answer(text, "(1, \\\\sqrt{2}, 50\\\\%)"),
    "grade_answer itself": lambda text: maths.grade_answer(text, text + " "),
    "accuracy text": lambda text: rewards.accuracy(text, Gold),
    "accuracy box": lambda text: rewards.accuracy(text, typed("box", "[1, 2, 30, 40]")),
    "accuracy boxes": lambda text: rewards.accuracy(text, typed("boxes", '[{"bbox_2d": [1, 2, 3, 4], "label": "a"}]')),
    "answer_line": rewards.answer_line,
    "think_then_answer": rewards.think_then_answer,
    "repetition": lambda text: rewards.repetition(text, 4),
    "read_detections": detection.read_detections,
    "read_corners": detection.read_corners,
    **{f"visual_rft {kind}": partial(grader, visual_rft.grade, perception_question(COLOR, kind))
       for kind in ("detect", "ground", "classify")},
    "perception_r1 layout": perception_r1.has_layout,
    "judge's verdicts": facts.verdicts,
    "tagged facts": facts.tags,
    "stated facts": lambda text: stated(FACTS, text),
    "pearl checklist": lambda text: pearl.checklist_answers(text, 3),
    "pearl fidelity": partial(grader, pearl.fidelity, pearl.probe_of(COLOR, "anchored")),
    "vicrit": lambda text: vicrit.finds(vicrit.Args(), text, ERROR),
    "vicrit released": lambda text: vicrit_bench.released(BENCH, text),
    "vicrit strict": lambda text: vicrit_bench.strict(BENCH, text),
    "corrupt": lambda text: corrupt.corrupt(text, random.Random(0)),
    "vision_sr1 layout": vision_sr1.has_layout,
    "visionary_r1 layout": visionary_r1.has_layout,
    "visionary_r1 caption": visionary_r1.caption_of,
    **{f"visionary_r1 {kind}": partial(grader, visionary_r1.accuracy, row(gold, kind))
       for kind, gold in (("OCR", "stop"), ("free-form", "a red square"), ("numerical", "12"))},
    "described things": entails.described_things,
    "entails": lambda text: entails.entails(text, COLOR.answer, META),
    "recall": lambda text: entails.recall(text, META),
    "leaks": lambda text: entails.leaks(text, COLOR.answer),
    "anls": lambda text: overlap.anls(text, "a red square"),
    "rouge": lambda text: overlap.rouge(text, "a red square"),
    "ssl4rl": lambda text: ssl4rl.reward(text, puzzle("90", "rotation")),
    "ssl4rl jigsaw": lambda text: ssl4rl.reward(text, puzzle("3,2,1,4", "jigsaw")),
    "visurf": lambda text: visurf.marks(text, TARGET),
    "habit": lambda text: training.world_habit(text, COLOR),
    "visual spans": lambda text: habits.visual_spans(text, COLOR.question),
    "answer part": score_tiny_vlm.answer_part,
    "same answer": lambda text: score_tiny_vlm.same_answer(text, "<think>x</think> \\boxed{red}"),
    "parts of a lesson": taught.parts,
    "for a judge": harmless,
    "for a terminal": printable,
    "megabench json fields": megabench_parse.json_fields,
}  # fmt: skip

# ---------------------------------------------------------------- benchmarks: a row of every kind

TRUTHS = {"nbbox": "[[0,0,1,1]]", "xml": "<box>0,0,1,1</box>", "point": "<point>0.5,0.5</point>", "dict": '{"a": [1]}',
          "numer": "12.5", "rmse": "0.5", "latex": r"\frac{1}{2}", "chess": "[e4, Nf3]", "set": "[a, b]",
          "sequence": "[a, b]", "jaccard": "[a, b]", "line_break": "x\ny"}  # fmt: skip
PLANNED = {"domain_pddl": "(define (domain d) (:action go :parameters (?a) :precondition (at ?a) :effect (on ?a)))",
           "task_pddl": "(define (problem p) (:init (at a)) (:goal (and (on a))))",
           "bounding_boxes": ["(0,0,1,1)"]}  # fmt: skip


def truth_for(metric: str) -> Any:
    return PLANNED if metric in megabench_metrics.CONTEXT else next((TRUTHS[p] for p in TRUTHS if p in metric), "B")


def every_metric() -> Row:
    names = [*megabench_metrics.METRICS, *megabench_metrics.CONTEXT, "program_judge"]
    truth = {name: truth_for(name) for name in names}
    return rows.mega({name: name for name in names}, truth, "json", context=PLANNED)


ROWS: dict[str, list[Row]] = {
    "mathvista": [rows.vista("8/11", choices=rows.FRACTIONS), rows.vista("14", "integer"),
                  rows.vista("0.6", "float", precision=1.0), rows.vista("[1, 2]", "list")],
    "mathverse": [rows.verse("A"), rows.verse("30", "free-form", "Vision Only")],
    "mathverse_text_only": [rows.verse("A", version="Text Only")],
    "mathvision": [rows.vision("B", rows.FIVE), rows.vision("(6,7)")],
    "mathvision_mini": [rows.vision(r"$\sqrt{2}$")],
    "wemath": [rows.we()],
    "dynamath": [rows.dyna("multiple choice", "B"), rows.dyna("float", "3.1416"), rows.dyna("text", "even function")],
    "logicvista": [rows.logic(), rows.logic("B")],
    "geo3k": [rows.geometry(), rows.geometry(r"\frac{1}{2}")],
    "mmk12": [rows.MMK12],
    "mmmu": [rows.MMMU, rows.OPEN],
    "mmmu_pro_10": [rows.PRO], "mmmu_pro_4": [rows.PRO], "mmmu_pro_vision": [rows.VISION],
    "mmstar": [rows.MMSTAR], "hallusionbench": [rows.HALLUSION], "blink": [rows.BLINK], "mmvp": [rows.MMVP],
    "megabench": [every_metric(), *(rows.mega({"a": "exact_str_match"}, {"a": "red"}, f"{kind}answer_string")
                                    for kind in ("", "ascii_", "verbatim_"))],  # the first is scored in one way
    "videomme": [rows.MME], "longvideobench": [rows.LONG], "mlvu": [rows.MLVU], "mlvu_test": [rows.MLVU],
    "charades_sta": [rows.STA],
    "vl_rewardbench": [rows.PAIR],
    "reasonmap": [rows.MAP],
    "reasonmap_long": [rows.MAP, rows.MAP | {"question_long": "Via Stops: "}, rows.MAP | {"country": "italy"}],
    "reasonmap_plus": [rows.PLUS, rows.PLUS | {"type": "Counting1"}, rows.PLUS | {"type": "Counting2"}],
    "vicrit_bench": [rows.CRITIC],
    "vstar": [rows.BAG], "hrbench_4k": [rows.COLOURS], "hrbench_8k": [rows.COLOURS],
    "screenspot": [rows.BUTTON], "screenspot_v2": [rows.BUTTON], "screenspot_pro": [rows.SAVE],
    **{f"{name}{kind}": [rows.DOG] for name in ("refcoco", "refcoco_plus", "refcocog") for kind in ("", "_rec")},
    **{f"vlm_r1_{name}": [rows.R1] for name in ("refcoco", "refcoco_plus", "refcocog")},
    "lisa": [{"image": rows.SCREEN, "text": ["seat"], "is_sentence": False, "shapes": rows.SHAPES}],
    **{name: [rows.query([[100, 50, 100, 50]], category=classes[0])] for name,
       classes in detection_bench.CLASSES.items()},
    "odinw13": [rows.PETS],
    "chartqa": [rows.CHART], "textvqa": [rows.BRAND],
    "ocrbench": [rows.SIGN, rows.SIGN | {"dataset": "HME100k"}],
    "countbench": [rows.DOGS], "countbenchqa": [rows.DOGS], "superclevr200": [rows.CLEVR],
}  # fmt: skip


def light(row: Row) -> Row:
    """As summarise and the judges get it."""
    return {name: None if isinstance(value, Image.Image) else value for name, value in row.items()}


def sound(result: Result) -> Result:
    """The result as it is read back from a file. Fails if it is no share, or too long to be kept for every row."""
    assert 0 <= result.score <= 1 and not (result.undecided and result.score), result.score
    assert len(json.dumps([result.answer, result.parts], allow_nan=False)) < 60_000
    return through_json(result)


def graded(benchmark: Benchmark, row: Row, scoring: str, text: str) -> Result:
    """What the response earns; the same text is tried as a judge's reply."""
    result = sound(score(benchmark, row, text, scoring, "row 1"))
    assert isinstance(benchmark.judge_prompt(light(row), result, text, scoring), str)
    if benchmark.judge_score is not None:
        sound(benchmark.judge_score(light(row), result, text, scoring))
    return result


PARSERS |= {f"megabench {name}": partial(lambda name, text: megabench_metrics.field_score(name, text, truth_for(name)),
                                         name)
            for name in [*megabench_metrics.METRICS, *megabench_metrics.CONTEXT]}  # fmt: skip
PARSERS |= {f"{name} {scoring} {n}": partial(graded, FOUND[name][0], row, scoring)
            for name, scoring in CASES for n,
            row in enumerate(ROWS[name]) if (name, n) != ("megabench", 0)}  # fmt: skip

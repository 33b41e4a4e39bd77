"""Every parser of model output on 100,000 hostile strings: no exception, no endless case.

Strings are the tiny VLM's lessons in every layout, broken in many ways, and text made of the marks parsers look for.
A parser gets two seconds of computing for a string, where microseconds are usual: a guard against hanging, no more.
"""

from __future__ import annotations

import random
import signal
from collections.abc import Callable
from functools import partial

import pytest

from benchmarks import vicrit as vicrit_bench
from common import captions, corrupt, detection, facts, overlap, puzzles, rewards
from common.data import Sample
from common.maths import grade_answer
from common.perception import perception_question
from common.world import entails, make_question, world_sample
from common.world.facts import facts_of, stated
from common.world.taught import SHARES, lesson
from methods import pearl, perception_r1, ssl4rl, vicrit, vision_sr1, visionary_r1, visual_rft, visurf

STRINGS = 100_000
MARKS = ["<think>", "</think>", "<answer>", "</answer>", "<description>", "</description>", "<info>", "</info>",
         "\\boxed{", "{", "}", "[", "]", "(", ")", "[[", "]]", '"', "'", ",", ":", ".", "\n", " ", "\\", "/", "<", ">",
         "'Position': ", "'Confidence': ", '{"bbox_2d": [', "No Objects", "Hacking Sample", "1. ", "12", "-3", "1e999",
         "NaN", "Infinity", "null", "true", "0.5", "\\frac{1}{2}", "\x00", "\ud800", "é", "😀", "assistant\n",
         "```json", "<info1>", "</info1>", "<info2>", "1", "9" * 50, "A", "red", "b2 red circle 3", "%"]  # fmt: skip


def hostile(n: int, seed: int = 0) -> list[str]:
    """n strings: lessons, lessons with pieces cut, doubled, moved or replaced, and soups of marks."""
    rng, said = random.Random(seed), []
    for i in range(400):
        kind = rng.choice(list(SHARES))
        said.append(lesson(make_question("train", i), make_question("train", i + 1), rng, True, kind)[2])
    return [soup(rng) if rng.random() < 0.3 else broken(rng.choice(said), rng) for _ in range(n)]


def soup(rng: random.Random) -> str:
    return "".join(rng.choice(MARKS) for _ in range(rng.randint(0, 30))) * rng.choice((1, 1, 1, 1, 1, 1, 1, 50))


def broken(text: str, rng: random.Random) -> str:
    for _ in range(rng.randint(0, 4)):
        a, b = sorted(rng.randint(0, len(text)) for _ in range(2))
        piece = rng.choice(("", text[a:b] * 2, rng.choice(MARKS), text[a:b][::-1], text[a:b].upper()))
        text = text[:a] + piece + text[b:]
    return text * 200 if rng.random() < 0.002 else text


LONG = [mark * 20_000 for mark in MARKS] + [(a + b) * 10_000 for a in MARKS[:16] for b in MARKS[:16]]


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
    "block": lambda text: rewards.block(text, "answer"),
    "squeeze_tags": rewards.squeeze_tags,
    "has_format": rewards.has_format,
    "parse_state": rewards.parse_state,
    "option_letter": lambda text: rewards.option_letter(text, ["red", "blue"]),
    "yes_no": rewards.yes_no,
    "parse_box": rewards.parse_box,
    "parse_boxes": rewards.parse_boxes,
    "grade_answer": lambda text: grade_answer(text, "3/4"),
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
}  # fmt: skip


@pytest.fixture(scope="module")
def strings() -> list[str]:
    return hostile(STRINGS) + LONG


@pytest.mark.parametrize("name", PARSERS)
def test_no_string_breaks_or_stalls_a_parser(name, strings):
    parser = PARSERS[name]

    def stalled(*_: object) -> None:
        raise TimeoutError(f"{name} takes more than two seconds")

    old = signal.signal(signal.SIGVTALRM, stalled)
    try:
        for text in strings:
            signal.setitimer(signal.ITIMER_VIRTUAL, 2.0)
            try:
                parser(text)
            except Exception as error:
                raise AssertionError(f"{name} fails on {text[:300]!r} ({len(text)} characters): {error!r}") from error
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, old)

"""Every parser of model output on 100,000 hostile strings: no exception, no endless case.

Strings are the tiny VLM's lessons in every layout, broken in many ways, and text made of the marks parsers look for.
A parser gets two seconds for one string, where microseconds are usual: a guard against hanging, no measurement.
"""

from __future__ import annotations

import random
import signal
from collections.abc import Callable

import pytest

from common import rewards
from common.maths import grade_answer
from common.world import make_question
from common.world.taught import SHARES, lesson

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
}


@pytest.fixture(scope="module")
def strings() -> list[str]:
    return hostile(STRINGS) + LONG


@pytest.mark.parametrize("name", PARSERS)
def test_no_string_breaks_or_stalls_a_parser(name, strings):
    parser = PARSERS[name]

    def stalled(*_: object) -> None:
        raise TimeoutError(f"{name} takes more than two seconds")

    old = signal.signal(signal.SIGALRM, stalled)
    try:
        for text in strings:
            signal.setitimer(signal.ITIMER_REAL, 2.0)
            try:
                parser(text)
            except Exception as error:
                raise AssertionError(f"{name} fails on {text[:300]!r} ({len(text)} characters): {error!r}") from error
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)

r"""ViCrit-Bench: which phrase of the caption is wrong? By kind of error and kind of picture.

Evaluator: si0wang/ViCrit at 727f1ee (score.py). Every answer is graded twice, side by side:

    released  the published scorer: right if the first changed word is anywhere in the answer, "a" in "banana" too
    strict    the paper's rule for training: the whole changed segment, and nothing but words copied from around it

The answer is the first \boxed{...}, else the last line. Where score.py stops with an error it is wrong here: "boxed{"
without its backslash, and a phrase from which words were only taken away.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmark import Benchmark, Line, Result, Row, cell, grouped, mean_line
from common.errors import SightRLError
from common.tasks.captions import names_error, phrase_text, released_answer, released_correct

SMALLEST = 28  # pixels; the released script leaves out pictures with a smaller side


# ---------------------------------------------------------------- prompt


def prompt(row: Row, scoring: str) -> str:
    """Published: no think block and no box is asked for, the phrase alone."""
    return ("One phrase of this caption does not fit the picture: it names something that is not there or not so.\n"
            f"{cell(row, 'changed_caption', str)}\n"
            "Write that phrase alone, exactly as it stands in the caption.")  # fmt: skip


def images(row: Row) -> list[Any]:
    image = cell(row, "image")
    if min(getattr(image, "size", (SMALLEST,))) < SMALLEST:
        raise SightRLError(f"column image holds a picture with a side below {SMALLEST} pixels, which the protocol "
                           "leaves out; remove the row.")  # fmt: skip
    return [image]


# ---------------------------------------------------------------- score


def phrases(row: Row) -> tuple[str, str]:
    """(before the change, after it); a column holds a phrase or a list of one."""
    columns = ("original_noun_phrases", "changed_noun_phrases")
    found = [phrase_text(cell(row, column)) for column in columns]
    for column, phrase in zip(columns, found, strict=True):
        if not phrase.strip():
            raise SightRLError(f"column {column} holds no phrase; write it or remove the row.")
    return found[0], found[1]


def released(row: Row, response: str) -> float:
    return float(released_correct(response, *phrases(row)))


def strict(row: Row, response: str) -> float:
    """On the same part of the response as the released scorer."""
    caption = cell(row, "changed_caption", str)
    return float(names_error(released_answer(response) or "", caption, *phrases(row)))


def score(row: Row, response: str, scoring: str) -> Result:
    answer = released_answer(response)
    return Result(released(row, response), answer and answer[:200], parts={"strict": strict(row, response)})


# ---------------------------------------------------------------- summarise


def both(name: str, results: Sequence[Result]) -> list[Line]:
    return [mean_line(f"{name}released", [result.score for result in results]),
            mean_line(f"{name}strict", [result.parts["strict"] for result in results])]  # fmt: skip


def summarise(rows: Sequence[Row], results: Sequence[Result], scoring: str) -> list[Line]:
    """All rows, then by the columns type (of error) and domain (of picture) where rows have them."""
    lines = both("", results)
    for column in ("type", "domain"):
        told = [(str(row[column]), r) for row, r in zip(rows, results, strict=True) if row.get(column) is not None]
        groups = grouped(told, lambda pair: pair[0])
        lines += [one for name in sorted(groups) for one in both(f"{column}: {name}, ", [r for _, r in groups[name]])]
    return lines


PAPER = "arXiv 2506.10128, there called exact match"
BENCHMARKS = {
    "vicrit_bench": Benchmark(
        title="ViCrit-Bench", source="hf:russwang/ViCrit-Bench", split="train", size=607, metric="accuracy",
        licence="not stated",
        columns=("image", "changed_caption", "original_noun_phrases", "changed_noun_phrases"),
        prompt=prompt, score=score, images=images, summarise=summarise, max_new_tokens=2048,
        reference=(("o3", "47.7", PAPER), ("Gemini-2.5-Pro", "45.2", PAPER), ("ViCrit-72B", "43.0", PAPER)),
        note="Published with greedy answers and --min-pixels 50176 --max-pixels 1003520. If your copy names its "
             "split otherwise, give the file with --data. Columns type (of error) and domain (of picture) "
             "are tabulated where there are any.",
    ),
}  # fmt: skip

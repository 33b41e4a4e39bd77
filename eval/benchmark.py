"""What a benchmark is: rows with their published columns, a prompt, a score for one answer, a table for all of them.

Each file in benchmarks/ is one benchmark (or a family that shares its scorer) and ends with

    BENCHMARKS = {"mathvista": Benchmark(title="MathVista", source="hf:AI4Math/MathVista", score=score, ...)}

Everything in it is a pure function of rows and responses, usable without a model and without torch:

    result = BENCHMARKS["mathvista"].score(row, "The answer is (B).", "official")     # a Result

run.py reads the rows, asks the model, and, where a rule cannot decide and a judge is given, asks the judge.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from common.errors import SightRLError

# The published columns. Embedded pictures are PIL images (opened, not decoded), others paths or base64; NaN is None.
# summarise and the judge functions get rows whose pictures are None. A row that a model was asked with one picture has
# input_width and input_height, the size in which the model saw it, and picture_width and picture_height.
Row = dict[str, Any]
DRAWS = 1000  # of the bootstrap
Item = TypeVar("Item")


@dataclass(frozen=True)
class Result:
    """What one response earns."""

    score: float  # 0 to 1; 0 while undecided
    answer: Any = None  # what was read from the response, for people to look at; plain JSON
    undecided: bool = False  # no rule could read an answer: the official way is to ask a judge
    parts: dict[str, Any] = field(default_factory=dict)  # what the table needs beside the score; plain JSON


@dataclass(frozen=True)
class Video:
    """One of a row's pictures that is many: a video file, an animated picture or a folder of frames."""

    path: str  # in the folder of the data or of --media; the ending may be left out
    times: bool = False  # write its second before every frame


@dataclass(frozen=True)
class Line:
    """One line of a benchmark's table: value is in per cent if the benchmark's scale is 100."""

    name: str
    value: float
    count: int  # rows, pairs or groups behind it
    interval: tuple[float, float] | None = None  # 95 %; None where resampling would not be meaningful


def no_prompt(row: Row, result: Result, response: str, scoring: str) -> str:
    return ""


def overall(rows: Sequence[Row], results: Sequence[Result], scoring: str) -> list[Line]:
    """The mean score x 100 of all rows."""
    return [mean_line("overall", [result.score for result in results])]


@dataclass(frozen=True)
class Benchmark:
    """A benchmark as its card describes it; the functions get rows with the published column names."""

    title: str  # "MathVista (testmini)"
    source: str  # "hf:AI4Math/MathVista"; config after a comma: "hf:MMMU/MMMU_Pro,vision"; "github:OWNER/NAME"
    split: str  # published name of the split with answers; "a+b": both
    size: int | None  # rows of that split; None: not known
    metric: str  # "accuracy", "mIoU", "mAP": what the first line of the table is
    licence: str  # as stated; "not stated"
    columns: tuple[str, ...]  # that score and prompt need; a row without one stops with its name
    prompt: Callable[[Row, str], str]  # (row, scoring) -> text for the model, in our words; "<image>" marks where the
    # pictures go, in order; without marks they stand before the text
    score: Callable[[Row, str, str], Result]  # (row, response, scoring); total: any text gives a Result
    images: Callable[[Row], list[Any]] = lambda row: [row["image"]]  # in order, also Video; [] without picture
    summarise: Callable[[Sequence[Row], Sequence[Result], str], list[Line]] = overall  # the headline first
    judge_prompt: Callable[[Row, Result, str, str], str] = no_prompt  # (row, result, response, scoring); "": no judge
    judge_score: Callable[[Row, Result, str, str], Result] | None = None  # (row, result, reply, scoring)
    system: str = ""  # system turn, where the protocol has one
    scorings: tuple[str, ...] = ("official",)  # the first is the default; official, vlmevalkit, lmms-eval, or fixed
    # where the official code has bugs that nobody would want
    max_new_tokens: int = 1024  # of the protocol; reasoning models need more
    identify: Callable[[Row, int], str] = lambda row, number: str(number)  # a name for a row that is its alone
    again: Callable[[Row, int], Row] | None = None  # where the k answers to a row are votes: the row as vote 0, 1, ...
    # is asked and scored with (one that is a vote already stays); summarise then gets one (row, result) per vote
    reference: tuple[tuple[str, str, str], ...] = ()  # (model, value, where it is from), only those the card names
    note: str = ""  # what a user must know; traps of the official code
    read: Callable[[Path], list[Row]] | None = None  # rows of local data that are no table (--data), e.g. COCO's JSON


# ---------------------------------------------------------------- tables


def grouped(items: Iterable[Item], key: Callable[[Item], Hashable]) -> dict[Any, list[Item]]:
    """Key -> items, keys in the order in which they first appear."""
    groups: dict[Any, list[Item]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups


def scores_by(rows: Sequence[Row], results: Sequence[Result], key: Callable[[Row], Hashable]) -> dict[Any, list[float]]:
    """key(row) -> the scores of its rows."""
    groups = grouped(zip(rows, results, strict=True), lambda pair: key(pair[0]))
    return {name: [result.score for _, result in pairs] for name, pairs in groups.items()}


def mean_line(name: str, scores: Sequence[float], scale: float = 100.0) -> Line:
    """The mean of independent scores with a bootstrap interval. An empty list gives 0 of 0."""
    values = np.asarray(scores, dtype=float)
    if not len(values):
        return Line(name, 0.0, 0)
    return Line(name, float(scale * values.mean()), len(values), bootstrap(lambda picked: picked.mean(), values, scale))


def clustered_line(name: str, scores: Sequence[float], keys: Sequence[Any], scale: float = 100.0) -> Line:
    """mean_line for scores that come in clusters (versions of one problem, answers to one question): the interval is
    from resampling whole clusters, since the members of one are alike."""
    clusters = grouped(zip(scores, keys, strict=True), lambda pair: pair[1]).values()
    if not clusters:
        return Line(name, 0.0, 0)
    units = np.array([(sum(score for score, _ in pairs), len(pairs)) for pairs in clusters])  # [cluster, (sum, count)]
    interval = bootstrap(lambda picked: picked[:, 0].sum() / picked[:, 1].sum(), units, scale)
    return Line(name, float(scale * units[:, 0].sum() / units[:, 1].sum()), len(scores), interval)


def macro_line(name: str, groups: Sequence[Sequence[float]]) -> Line:
    """The mean of the groups' means x 100; the interval is that of rows drawn again within every group."""
    groups = [np.asarray(scores, dtype=float) for scores in groups if len(scores)]
    if not groups:
        return Line(name, 0.0, 0)
    generator = np.random.default_rng(0)
    draws = sum(group[generator.integers(0, len(group), size=(DRAWS, len(group)))].mean(axis=1) for group in groups)
    low, high = np.percentile(100 * draws / len(groups), [2.5, 97.5])
    value = 100 * float(np.mean([group.mean() for group in groups]))
    return Line(name, value, sum(map(len, groups)), (float(low), float(high)))


def bootstrap(statistic: Callable[[np.ndarray], float], units: np.ndarray, scale: float = 100.0,
              draws: int = DRAWS) -> tuple[float, float]:  # fmt: skip
    """95 % interval of statistic(units) under resampling of the units (rows, questions, groups) with replacement.

    There are two bootstraps: common/evaluation.py's bootstrap_interval is for means alone and needs torch; this one
    takes any statistic, such as a ratio of sums, and scorers must work without torch.
    """
    generator = np.random.default_rng(0)
    picks = generator.integers(0, len(units), size=(draws, len(units)))
    values = scale * np.array([statistic(units[pick]) for pick in picks])
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def lines_by(rows: Sequence[Row], results: Sequence[Result], *columns: str) -> list[Line]:
    """Overall first, then the mean score for every value of every column, values in the order they first appear."""
    lines = [mean_line("overall", [result.score for result in results])]
    for column in columns:
        groups = scores_by(rows, results, lambda row, column=column: str(row.get(column)))
        lines += [mean_line(f"{column}: {name}", scores) for name, scores in groups.items()]
    return lines


def by(*columns: str) -> Callable[[Sequence[Row], Sequence[Result], str], list[Line]]:
    """lines_by as a `summarise`."""
    return lambda rows, results, scoring: lines_by(rows, results, *columns)


# ---------------------------------------------------------------- small things that scorers share


def cell(row: Row, name: str, *kinds: type) -> Any:
    """row[name]. Raises SightRLError if the row has no such column or, with kinds, if it holds another type."""
    if name not in row or row[name] is None:
        raise SightRLError(f"column {name} is missing; take the published files or rename yours.")
    if kinds and (not isinstance(row[name], kinds) or (isinstance(row[name], bool) and bool not in kinds)):
        wanted = " or ".join(kind.__name__ for kind in kinds)
        raise SightRLError(f"column {name} holds {str(row[name])[:60]!r}; it must be {wanted}.")
    return row[name]


def judged(result: Result, right: bool, answer: Any = None) -> Result:
    """The result with a judge's verdict."""
    return replace(result, score=float(right), undecided=False, answer=result.answer if answer is None else answer)


def fixed_random(*key: Any) -> random.Random:
    """Random numbers that depend on the key alone: where an official script guesses, ours guesses the same each run."""
    digest = hashlib.sha256(repr(key).encode("utf-8", "replace")).digest()
    return random.Random(int.from_bytes(digest[:8], "big"))

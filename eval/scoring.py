"""From responses to results: every response scored, the undecided ones judged, all of them summarised.

Whatever a benchmark's functions stumble over becomes one sentence with the row or with the benchmark's file.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from benchmark import Benchmark, Line, Result, Row
from common.errors import SightRLError
from rows import SKIP
from scripts import load_script

if TYPE_CHECKING:
    from common.judge import Judge

FOLDER = Path(__file__).parent / "benchmarks"


@dataclass
class Answered:
    """A row (without pictures) with the k responses to it and what they earn."""

    id: str
    row: Row
    responses: list[str]
    results: list[Result]
    where: str
    truncated: list[bool]


# ---------------------------------------------------------------- the benchmarks there are


def find_benchmarks(files: Sequence[Path] = ()) -> tuple[dict[str, tuple[Benchmark, Path]], list[str]]:
    """({name: (benchmark, its file)}, a sentence per file that cannot be used). files: more than benchmarks/."""
    found: dict[str, tuple[Benchmark, Path]] = {}
    problems = []
    for file in [*sorted(FOLDER.glob("[!_]*.py")), *files]:
        try:
            table = load_module(file).BENCHMARKS
            wrong = next((name for name, benchmark in table.items() if not isinstance(benchmark, Benchmark)), None)
            twice = next((name for name in table if name in found), None)
            if wrong is not None or twice is not None:
                raise TypeError(f"{wrong} is no Benchmark" if wrong else f"{twice} is also in {found[twice][1].name}")
            found |= {name: (benchmark, file) for name, benchmark in table.items()}
        except (Exception, SystemExit) as error:  # whatever is wrong with one file, the others work
            problem = " ".join(f"{type(error).__name__}: {error}".split())[:160]
            problems.append(f"{file} cannot be used ({problem}); correct it.")
    return found, problems


def load_module(file: Path) -> ModuleType:
    """A file in benchmarks/ as others import it, any other by its path. Raises whatever the file raises."""
    if file.parent == Path(__file__).parent / "benchmarks":
        return importlib.import_module(f"benchmarks.{file.stem}")
    if not file.is_file():
        raise FileNotFoundError("there is no such file")
    return load_script(file)


def choose_scoring(name: str, benchmark: Benchmark, wanted: str) -> str:
    """The scoring to use, the benchmark's own by default. Raises SightRLError for one that it does not have."""
    if wanted and wanted not in benchmark.scorings:
        raise SightRLError(f"{name} has no {wanted!r} scoring; it has {', '.join(benchmark.scorings)}.")
    return wanted or benchmark.scorings[0]


# ---------------------------------------------------------------- rows and responses


def check_columns(name: str, benchmark: Benchmark, row: Row, where: str) -> None:
    """Raises SightRLError for a row that lacks a published column."""
    if lacking := [column for column in benchmark.columns if column not in row]:
        has = ", ".join(list(row)[:12]) or "none"
        raise SightRLError(f"{where} has no column {lacking[0]!r}, which {name} needs (it has {has}); give the rows as "
                           f"{benchmark.source} has them.")  # fmt: skip


def guarded(what: str, function: Callable, *args: Any, fix: str = SKIP) -> Any:
    """function(*args); every error is one sentence that begins with `what`. fix: what else helps, if anything does."""
    try:
        return function(*args)
    except SightRLError as error:
        text = str(error).rstrip(".")
        raise SightRLError(f"{what}: {text}{f', {fix}' if fix and SKIP not in text else ''}.") from error
    except Exception as error:
        problem = " ".join(f"{type(error).__name__}: {error}".split())[:160]
        raise SightRLError(f"{what}: the benchmark's file stumbles over it ({problem}); correct "
                           f"{f'the row or the file, {fix}' if fix else 'the file'}.") from error  # fmt: skip


def score(benchmark: Benchmark, row: Row, response: str, scoring: str, where: str) -> Result:
    result = guarded(where, benchmark.score, row, response, scoring)
    if not 0 <= result.score <= 1:  # also NaN
        raise SightRLError(f"{where}: the benchmark's file scores {result.score}, which is not 0 to 1; correct it.")
    return result


def plain(value: Any) -> Any:
    """For json.dumps: numpy numbers as numbers, all else as text."""
    return value.item() if hasattr(value, "item") else list(value) if isinstance(value, set | tuple) else str(value)


def as_json(result: Result) -> dict[str, Any]:
    return asdict(result)


def from_json(values: dict[str, Any]) -> Result:
    return Result(
        float(values["score"]), values.get("answer"), bool(values.get("undecided")), values.get("parts") or {}
    )


def through_json(result: Result) -> Result:
    """As a later run reads it from predictions.jsonl, so that tables do not depend on who made them."""
    return from_json(json.loads(json.dumps(as_json(result), default=plain)))


# ---------------------------------------------------------------- the judge


def ask_judge(benchmark: Benchmark, answered: Sequence[Answered], scoring: str,
              judge: Judge) -> tuple[list[Answered], int]:  # fmt: skip
    """(the same with the judge's verdicts on undecided responses, number of responses it was asked about)."""
    jobs = []
    for n, item in enumerate(answered):
        for j, (result, response) in enumerate(zip(item.results, item.responses, strict=True)):
            if result.undecided and benchmark.judge_score is not None:
                prompt = guarded(item.where, benchmark.judge_prompt, item.row, result, response, scoring, fix="")
                jobs += [(n, j, prompt)] if prompt else []
    replies = judge([prompt for _, _, prompt in jobs]) if jobs else []
    verdicts = [list(item.results) for item in answered]
    for (n, j, _), reply in zip(jobs, replies, strict=True):
        if reply:
            item = answered[n]
            verdict = guarded(item.where, benchmark.judge_score, item.row, verdicts[n][j], reply, scoring, fix="")
            verdicts[n][j] = through_json(verdict)
    return [replace(item, results=results) for item, results in zip(answered, verdicts, strict=True)], len(jobs)


# ---------------------------------------------------------------- tables


def lines(name: str, benchmark: Benchmark, answered: Sequence[Answered], scoring: str) -> list[dict[str, Any]]:
    """The benchmark's table: {"name", "value" (avg@k), "count", "interval", "pass@k"} per line.

    avg@k is the mean over the k answers of the table of single answers. Its interval comes from resampling the rows'
    mean scores where the line is linear in them, and is else the mean of the single tables' intervals, which is wider.
    pass@k is the table in which every row counts with its best answer.
    """
    rows, k = [item.row for item in answered], len(answered[0].results)

    def table(results: list[Result]) -> dict[tuple[str, int], Line]:
        found: dict[tuple[str, int], Line] = {}
        for line in guarded(f"{name}, {len(rows)} rows", benchmark.summarise, rows, results, scoring, fix=""):
            found[line.name, sum(line.name == other for other, _ in found)] = line  # two columns may share a value
        return found

    single = [table([item.results[j] for item in answered]) for j in range(k)]
    if k == 1:
        return [{**asdict(line), "pass@k": line.value} for line in single[0].values()]
    means = table([replace(item.results[0], score=sum(r.score for r in item.results) / k) for item in answered])
    best = table([max(item.results, key=lambda result: result.score) for item in answered])
    merged = []
    for key, first in single[0].items():
        drawn = [part[key] for part in single if key in part]
        value = sum(line.value for line in drawn) / len(drawn)
        ends = [line.interval for line in drawn if line.interval]
        interval = tuple(sum(end) / len(ends) for end in zip(*ends, strict=True)) if len(ends) == len(drawn) else None
        if key in means and abs(means[key].value - value) < 1e-9 * max(1.0, abs(value)):
            interval = means[key].interval
        top = best[key].value if key in best else None
        merged.append({"name": first.name, "value": value, "count": first.count, "interval": interval, "pass@k": top})
    return merged

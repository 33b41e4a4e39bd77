"""Whatever a model writes: every parser takes every text, without an exception and within 50 ms of computing.

    SIGHTRL_TEXTS=1000000 python -m pytest tests/hostile/test_outputs.py -k any_text      # the whole campaign, hours
    SIGHTRL_TEXTS=1000000 SIGHTRL_SHARE=16 ...     # every text is given to one parser in sixteen, in turn
    SIGHTRL_LENGTH=100000 SIGHTRL_SEED=7           # longer endless texts, other texts

The parsers are listed in parsers.py, the texts are made in texts.py.
"""

from __future__ import annotations

import ast
import gc
import itertools
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from parsers import CASES, FOUND, PARSERS, PROBLEMS, ROOT, ROWS, graded, light
from texts import PLAUSIBLE, endless, texts

import extract
import megabench_values

TEXTS = int(os.environ.get("SIGHTRL_TEXTS", 400))
SHARE = int(os.environ.get("SIGHTRL_SHARE", 1))
LENGTH = int(os.environ.get("SIGHTRL_LENGTH", 10_000))
SEED = int(os.environ.get("SIGHTRL_SEED", 0))
LIMIT = 0.050  # seconds of computing for one text
HANGS = 10.0  # seconds after which it is interrupted


@pytest.fixture(autouse=True)
def no_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (extract, megabench_values):  # math-verify has a time limit of its own, see test_symbolic.py
        monkeypatch.setattr(module, "verified", lambda golds, answers: [0.0] * len(golds))


@pytest.fixture
def quiet() -> Iterator[None]:
    """No garbage is collected while somebody looks at the clock; what hangs is interrupted."""

    def stalled(*_: object) -> None:
        raise TimeoutError(f"more than {HANGS} seconds of computing")

    old = signal.signal(signal.SIGVTALRM, stalled)
    gc.collect()
    gc.freeze()
    gc.disable()
    yield
    gc.enable()
    gc.unfreeze()
    signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    signal.signal(signal.SIGVTALRM, old)


def seconds(parser: Callable[[str], object], text: str) -> float:
    """Of computing; other programs on the machine do not count."""
    signal.setitimer(signal.ITIMER_VIRTUAL, HANGS)
    start = time.process_time()
    parser(text)
    return time.process_time() - start


def problem_of(parser: Callable[[str], object], text: str) -> str:
    """ "" for a parser that takes the text in time; a slow one is measured twice more, and the best time counts."""
    try:
        spent = seconds(parser, text)
        if spent > LIMIT:
            spent = min(spent, seconds(parser, text), seconds(parser, text))
    except Exception as error:
        return f"fails on {text[:300]!r} ({len(text)} characters): {error!r}"
    return f"takes {1000 * spent:.0f} ms for {text[:60]!r} ({len(text)} characters)" if spent > LIMIT else ""


def problems(cases: Iterator[str], share: int) -> list[str]:
    """One sentence for every parser that has any problem with a text. share: a text goes to one parser in so many."""
    found: dict[str, str] = {}
    names = list(PARSERS)
    for number, text in enumerate(cases):
        for name in names[number % share :: share]:
            if name not in found and (problem := problem_of(PARSERS[name], text)):
                found[name] = f"{name} {problem}"
        if number % 500 == 0:
            gc.collect()
    return list(found.values())


def test_any_text_is_taken(quiet: None) -> None:
    assert problems(itertools.islice(texts(SEED), TEXTS), SHARE) == []


def test_endless_texts_are_taken(quiet: None) -> None:
    share = 1 if "SIGHTRL_LENGTH" in os.environ else 16  # in CI every parser gets some of them
    assert problems(iter(endless(LENGTH)), share) == []


def test_numbers_of_100_000_digits(quiet: None) -> None:
    """int() refuses them, float() makes infinity of them, exact fractions take time in the square of their digits."""
    assert problems(iter(["\\boxed{" + "9" * 100_000 + "}", "Answer: 1/" + "3" * 100_000]), 1) == []


def test_a_parser_that_fails_or_stalls_would_be_noticed(quiet: None) -> None:
    slow = re.compile(r"(?:a|aa)*b")
    assert "takes" in problem_of(lambda text: slow.match("a" * 30), "x")
    assert "fails on 'x'" in problem_of(int, "x")
    assert problem_of(len, "x") == ""


# ---------------------------------------------------------------- the list is whole

READS = {"text", "response", "reply", "prediction", "caption", "description", "said"}  # names of what was written
TRUSTED = {  # functions of such a parameter whose text no model writes
    "common/data.py:parse_columns": "an option", "common/data.py:parse_tasks": "an option",
    "common/readers/boxes.py:clean_label": "data, see test_datasets.py", "eval/rows.py:from_base64": "data",
    "common/readers/tables.py:whole_characters": "data, see test_datasets.py",
    "common/readers/tables.py:no_special_token": "data, see test_datasets.py",
    "common/sandbox.py:complain": "a message",
    "common/world/taught.py:compared": "lessons made here", "eval/steps.py:write": "a table made here",
}  # fmt: skip


def readers() -> dict[tuple[str, str], None]:
    """(file, function) of every public function of a text."""
    found = {}
    for path in sorted(p for folder in ("methods", "common", "eval") for p in (ROOT / folder).rglob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                kinds = {arg.arg: ast.unparse(arg.annotation) for arg in node.args.args if arg.annotation}
                if any(kinds.get(name) in ("str", "str | None") for name in READS):
                    found[str(path.relative_to(ROOT)), node.name] = None
    return found


def test_every_parser_is_in_the_list() -> None:
    """A function that reads a text and that no entry of PARSERS ever calls has to be added to it."""
    called: set[tuple[str, str]] = set()

    def note(frame: object, event: str, argument: object) -> None:
        if event == "call":
            called.add((frame.f_code.co_filename, frame.f_code.co_name))

    tried = [*PLAUSIBLE, *itertools.islice(texts(), 60)]
    for parser in PARSERS.values():
        sys.setprofile(note)
        try:
            for text in tried:
                parser(text)
        finally:
            sys.setprofile(None)
    reached = {(os.path.relpath(file, ROOT), name) for file, name in called if Path(file).is_relative_to(ROOT)}
    missing = {f"{file}:{name}" for file, name in readers() if (file, name) not in reached}
    assert not (new := sorted(missing - set(TRUSTED))), f"{new}: add them to PARSERS in parsers.py"
    assert not (old := sorted(set(TRUSTED) - missing)), f"{old}: they are called by now, or gone"


# ---------------------------------------------------------------- results of benchmarks


def test_every_benchmark_has_rows() -> None:
    assert set(ROWS) == set(FOUND) and not PROBLEMS


@pytest.mark.parametrize(("name", "scoring"), CASES)
def test_results_are_the_same_again_and_make_a_table(name: str, scoring: str) -> None:
    benchmark, results = FOUND[name][0], []
    chosen = ROWS[name][1:] if (name, scoring) == ("megabench", "lmms-eval") else ROWS[name]
    for text in [*PLAUSIBLE, *itertools.islice(texts(1), 10), "", "1" * 5000, '{"bbox_2d": [NaN, Infinity, 1e999, 1]}']:
        for row in chosen:
            result = graded(benchmark, row, scoring, text)
            assert result == graded(benchmark, row, scoring, text)
            results.append((light(row), result))
    lines = benchmark.summarise(*zip(*results, strict=True), scoring)
    most = max(100, len(results))  # per cent, or a count
    assert lines and all(0 <= line.value <= most for line in lines)

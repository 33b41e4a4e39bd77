"""Multiple choice: what several benchmarks share beside their extractors.

options = lettered(["red", "blue"])               # {"A": "red", "B": "blue"}
inferred("B.", options, right="B")                # by VLMEvalKit; undecided where it would ask a judge
inferred_prompt(question, options, response)      # the judge's question
inferred_judged(result, reply, options, "B")      # and its verdict
"""

from __future__ import annotations

import ast
import string
from collections.abc import Iterable, Sequence
from dataclasses import replace
from numbers import Real
from typing import Any

from benchmark import Result, Row, cell, fixed_random
from common.errors import SightRLError
from extract import can_infer

# ---------------------------------------------------------------- columns


def text(row: Row, name: str) -> str:
    """The column as text; numbers are written out. Raises SightRLError if it is missing, empty or something else."""
    value = cell(row, name)
    if isinstance(value, bool) or not isinstance(value, str | Real) or not str(value).strip():
        raise SightRLError(f"column {name} holds {shown(value)}, not text; take the published rows or correct it.")
    return str(value)


def texts(row: Row, name: str) -> list[str]:
    """The column as a list of texts, given as such or written as a Python list; other items are written out."""
    value = row.get(name)
    if isinstance(value, str):
        value = literal(value)
    if not isinstance(value, list | tuple):
        raise SightRLError(f"column {name} holds {shown(row.get(name))}; it must be a list of texts.")
    return [str(item) for item in value]


def whole(row: Row, name: str) -> int:
    """The column as a whole number, given as such or in digits."""
    value = text(row, name).strip()
    if not value.isascii() or not value.removeprefix("-").isdigit() or len(value) > 18:
        raise SightRLError(f"column {name} holds {shown(value)}; it must be a whole number.")
    return int(value)


def letter(row: Row, name: str, options: Iterable[str] = string.ascii_uppercase) -> str:
    """The column as the letter of an option, "(B)" and "b" too. Raises SightRLError for anything else."""
    value = text(row, name).strip().strip("()").upper()
    if value not in tuple(options):
        raise SightRLError(
            f"column {name} holds {shown(row[name])}, no letter of an option; take a split with answers."
        )
    return value


def literal(value: str) -> Any:
    """The Python literal in a text, None if it is none."""
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        return None


def shown(value: Any) -> str:
    return repr(value)[:60]


# ---------------------------------------------------------------- options


def lettered(options: Sequence[str], name: str = "options") -> dict[str, str]:
    """Letter -> text. Raises SightRLError, with the column's name, if there are no options or more than letters."""
    if not 0 < len(options) <= 26:
        raise SightRLError(f"column {name} holds {len(options)} options; 1 to 26 can be asked.")
    return dict(zip(string.ascii_uppercase, options, strict=False))


def listed(options: dict[str, str]) -> str:
    """A line for each option: "A. red"."""
    return "\n".join(f"{letter}. {option}" for letter, option in options.items())


def inferred(response: str, options: dict[str, str], right: str) -> Result:
    """VLMEvalKit without a judge, which is its mode "exact matching": what can_infer cannot read is wrong."""
    found = can_infer(response, options)
    return Result(float(found == right), found, undecided=found is None)


def inferred_prompt(question: str, options: dict[str, str], response: str) -> str:
    return (f"Somebody was asked a question with options and has answered freely. Which option is meant?\n\n"
            f"Question: {question}\nOptions:\n{listed(options)}\nThe answer given: {response}\n\n"
            f"Write the letter of the option that means the same and nothing else, or Z if none does.")  # fmt: skip


def inferred_judged(result: Result, reply: str, options: dict[str, str], right: str) -> Result:
    """VLMEvalKit's verdict after a judge's reply; an unreadable one gives an option, or Z, by lot."""
    found = can_infer(reply, options)
    found = found or fixed_random("judge", reply, sorted(options.items())).choice([*options, "Z"])
    return replace(result, score=float(found == right), answer=found, undecided=False)

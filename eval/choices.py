"""Multiple choice: options by letter, and VLMEvalKit's way to grade them with and without a judge.

options = lettered(["red", "blue"])               # {"A": "red", "B": "blue"}
inferred("B.", options, right="B")                # by VLMEvalKit; undecided where it would ask a judge
inferred_prompt(question, options, response)      # the judge's question
inferred_judged(result, reply, options, "B")      # and its verdict
"""

from __future__ import annotations

import string
from collections.abc import Sequence

from benchmark import Result, fixed_random, judged
from common.errors import SightRLError
from extract import can_infer


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
    return judged(result, found == right, found)

"""Atomic visual facts of a world question, and whether a text states one: an exact judge for the micro-world.

    facts_of("number", "Which number is on the red star?", things, ["b2"])  ->  ["b2 red star 7"]

A fact is a cell and what is there, as far as the question needs it, in the words the tiny VLM was taught.
"""

from __future__ import annotations

import re
from typing import Any

from common.world.scene import CELLS, COLOR_NAMES, SHAPES, SIZES

KINDS = {word: kind for kind, words in (("color", COLOR_NAMES), ("shape", SHAPES), ("size", tuple(SIZES)),
                                        ("number", tuple(map(str, range(10))))) for word in words}  # fmt: skip
WORD = re.compile(r"[a-z]+[0-9]*|[0-9]+|[.,;<>\\\n]")
Claim = tuple[str, dict[str, set[str]]]  # cell, kind of attribute -> the words said of it


def facts_of(task: str, question: str, things: list[dict[str, Any]], relevant: list[str]) -> list[str]:
    """One fact per cell that a careful reader looks at; none for a count of nothing.

    things, relevant: of a world sample's meta. The size is in a fact if the question asks by size, the number if it
    asks for numbers; a comparison of colours needs the colours alone.
    """
    at = {thing["cell"]: thing for thing in things}
    names = ["color"] if task == "compare" else ["color", "shape"]
    names = ["size", *names] if set(question.rstrip("?").split()) & set(SIZES) else names
    names = [*names, "number"] if task in ("number", "sum") else names
    return [" ".join([cell, *(str(at[cell][name]) for name in names)]) for cell in relevant]


def claims_of(text: str) -> list[Claim]:
    """What a text says about cells, in linear time: after a cell the words up to the next comma, stop or cell; what is
    not said there is taken from the words that open the sentence ("Looking for red objects: a1, c2.")."""
    claims: list[Claim] = []
    opening: dict[str, set[str]] = {}
    own: dict[str, set[str]] | None = None  # of the cell being talked about
    first = 0  # claim of this sentence

    def finish() -> None:
        for _, said in claims[first:]:
            for kind, words in opening.items():
                said.setdefault(kind, words)

    for word in WORD.findall(text.lower()):
        if word in CELLS:
            own = {}
            claims.append((word, own))
        elif word in ",;":
            own = None
        elif word in ".<>\\\n":
            finish()
            opening, own, first = {}, None, len(claims)
        elif word in KINDS:
            target = own if own is not None else opening if len(claims) == first else {}
            target.setdefault(KINDS[word], set()).add(word)
    finish()
    return claims


def stated(facts: list[str], text: str) -> list[bool]:
    """Which facts the text states. Whoever says "b2 red blue star" has stated no colour."""
    claims = claims_of(text)
    return [any(cell == fact.split()[0] and all(said.get(KINDS[word]) == {word} for word in fact.split()[1:])
                for cell, said in claims) for fact in facts]  # fmt: skip

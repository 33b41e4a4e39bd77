r"""What a description of a scene says, whether it is enough to answer a question, and whether it gives the answer away.

    text -> described_things -> answer_from(program, things) -> entails | recall;   text, answer -> leaks

A description is the tiny VLM's "a1 large red circle 3, c2 small blue star 5."; the question is the program in a world
sample's meta. So "the answer is right although the description does not tell it", which papers ask a judge about, is
computed. All functions take any text and look at its first 4,000 characters.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

from common.world.questions import neighbor_cell
from common.world.scene import COLOR_NAMES, SHAPES

Thing = dict[str, str]  # what is said of one thing: cell, and of size, color, shape, number whatever is said
LONGEST = 4000  # characters of a text that are looked at
WORD = re.compile(r"[a-z0-9]+|[^\sa-z0-9]")
SLOTS = {name: "size" for name in ("small", "large")} | {name: "color" for name in COLOR_NAMES}
SLOTS |= {name: "shape" for name in SHAPES} | {str(n): "number" for n in range(10)}
CELL_NAME = re.compile(r"[a-d][1-4]")
# Words of somebody who reasons or answers; a description has no use for them.
REASONING = {
    "answer", "answers", "so", "therefore", "thus", "hence", "because", "since", "makes", "total", "sum", "equals",
    "equal", "more", "looking", "then", "usually", "think", "first", "boxed", "=", "+", "\\", "[", "{",
}  # fmt: skip


def read(text: str) -> tuple[list[Thing], list[str]]:
    """(claims in order, words outside of claims). A claim is a cell and the attributes right behind it, each once."""
    claims: list[Thing] = []
    others: list[str] = []
    open_claim = False
    for word in WORD.findall(text[:LONGEST].lower()):
        slot = SLOTS.get(word)
        if CELL_NAME.fullmatch(word):
            claims.append({"cell": word})
            open_claim = True
        elif open_claim and slot and slot not in claims[-1]:
            claims[-1][slot] = word
        else:
            open_claim = False
            others.append(word)
    return claims, others


def described_things(text: str) -> list[Thing]:
    """One thing per cell named; an attribute that is told in two ways is dropped, for it tells nothing.

    >>> described_things("a1 large red circle 3, b2 star. a1 green")
    [{'cell': 'a1', 'size': 'large', 'shape': 'circle', 'number': '3'}, {'cell': 'b2', 'shape': 'star'}]
    """
    said: dict[str, dict[str, set[str]]] = {}
    for claim in read(text)[0]:
        for slot, word in claim.items():
            said.setdefault(claim["cell"], {}).setdefault(slot, set()).add(word)
    return [{slot: min(words) for slot, words in thing.items() if len(words) == 1} for thing in said.values()]


def named(things: Iterable[Thing], name: str) -> list[Thing]:
    """The things that "small circle", "red" or "red star" fits."""
    return [t for t in things if set(name.split()) <= {t.get(slot) for slot in ("size", "color", "shape")}]


def answer_from(program: list, things: list[Thing]) -> str | None:
    """The answer to a question's program if these things are all there is; None when they do not tell.

    Where something is (step "box") is answered by the cell: descriptions have no finer words for places.
    """
    if not things:
        return None
    found = things
    for step, *words in program:
        if step in ("find", "filter"):
            found = named(things, words[0])
            if step == "find" and len(found) != 1:
                return None
        elif step == "step":
            cell = neighbor_cell(found[0]["cell"], words[0])
            found = [t for t in things if t["cell"] == cell]
        elif step == "compare":
            a, b = (len(named(things, color)) for color in words)
            return words[0] if a > b else words[1] if b > a else "equal"
        elif step == "count":
            return str(len(found))
        elif step == "sum":
            numbers = [t.get("number") for t in found]
            return str(sum(map(int, numbers))) if numbers and None not in numbers else None
        elif step == "box":
            return found[0]["cell"]
        elif len(found) == 1 and program[-1][0] == "read":  # a sum reads its numbers itself
            return found[0].get(words[0])
    return None


def entails(description: str, answer: str, meta: dict[str, Any]) -> bool:
    """Whether the facts of a description give the right answer. answer, meta: of a world sample."""
    told = answer_from(meta["program"], described_things(description))
    return told == (meta["relevant"][0] if meta["program"][-1][0] == "box" else answer)


def recall(description: str, meta: dict[str, Any]) -> float | None:
    """Share of the relevant things described with colour and shape and nothing false; None if nothing is relevant."""
    truth = {t["cell"]: {slot: str(t[slot]) for slot in ("cell", "size", "color", "shape", "number")}
             for t in meta["things"]}  # fmt: skip
    true = {t["cell"] for t in described_things(description)
            if {"color", "shape"} <= t.keys() and t.items() <= truth.get(t["cell"], {}).items()}  # fmt: skip
    relevant = meta["relevant"]
    return sum(cell in true for cell in relevant) / len(relevant) if relevant else None


def leaks(description: str, answer: str) -> bool:
    """Whether a description holds more than a description: words of reasoning, or the answer outside of any claim.

    >>> leaks("a1 large red circle 3.", "red"), leaks("a1 large red circle 3. red", "red"), leaks("So it is red.", "4")
    (False, True, True)
    """
    others = set(read(description)[1])
    return bool(others & REASONING or set(WORD.findall(answer.lower())) <= others)


def description_worth(records: list[dict], metas: dict[str, dict], described: Callable[[str], str | None],
                      ) -> dict[str, float]:  # fmt: skip
    """What descriptions are worth, over all answers of an evaluation; {} where the scenes are not known.

    records: of an Evaluation; metas: sample id -> meta; described(response): its description, None without one.
    "language shortcut rate": share of all answers that are right while the description does not entail the answer;
    "leak rate": share without a description or with one that gives the answer away; "description recall": mean recall;
    "accuracy on test_counter": where the answer prior is flipped, if that split was asked; "response length": tokens.
    """
    rows = [(record, metas[record["id"]], text, score) for record in records
            for text, score in zip(record["responses"], record["scores"], strict=True)]  # fmt: skip
    if not rows or not all("program" in meta for _, meta, _, _ in rows):
        return {}
    shortcuts, leaking, recalls = 0, 0, []
    for record, meta, response, score in rows:
        description = described(response)
        shortcuts += score > 0.5 and not entails(description or "", record["answer"], meta)
        leaking += description is None or leaks(description, record["answer"])
        share = recall(description or "", meta)
        recalls += [] if share is None else [share]
    worth = {"language shortcut rate": shortcuts / len(rows), "leak rate": leaking / len(rows),
             "description recall": sum(recalls) / max(1, len(recalls))}  # fmt: skip
    worth["response length"] = sum(n for record in records for n in record["lengths"]) / len(rows)
    flipped = [score for record, _, _, score in rows if record["split"] == "test_counter"]
    return worth | ({"accuracy on test_counter": sum(flipped) / len(flipped)} if flipped else {})

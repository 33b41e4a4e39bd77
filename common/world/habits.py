"""How the tiny VLM was taught to answer: careful, sloppy or blind, as a real base model is a mixture of all three.

careful  looks at every relevant object, names the cell and what is there, then answers from what it saw.
sloppy   writes in the same words, but overlooks or misreads most of the small objects and some of the large ones.
blind    does not look: "Without looking: it is usually red." An answer from the training prior.

Careful and sloppy open with the same words, so reinforcement has to fix perception token by token, while the blind
habit is one early decision. habit_of() tells them apart in a model's response by checking it against the scene.
"""

from __future__ import annotations

import random
import re

from common.world.questions import Question, blind_guess, neighbor_cell
from common.world.scene import CELLS, COLOR_NAMES, SHAPES, Thing, biased, typical_color, typical_number, typical_shape

HABITS = ("careful", "sloppy", "blind")
MISS = {"small": 0.85, "large": 0.35}  # chance that the sloppy habit overlooks or misreads an object of this size
# Shares of (careful, sloppy, blind) per family: the taught answers have pass@1 30-60 % and pass@8 >= 90 % in every
# family. What the model makes of them is in tiny_vlm/README.md.
SHARES = {
    "color": (0.12, 0.50, 0.38), "shape": (0.16, 0.46, 0.38), "number": (0.25, 0.40, 0.35),
    "count": (0.36, 0.34, 0.30), "compare": (0.22, 0.45, 0.33), "relation": (0.28, 0.40, 0.32),
    "locate": (0.38, 0.36, 0.26), "sum": (0.68, 0.14, 0.18),
}  # fmt: skip


def pick_habit(family: str, rng: random.Random) -> str:
    return rng.choices(HABITS, SHARES[family])[0]


def response(q: Question, habit: str, rng: random.Random) -> str:
    """A response in the given habit: "<think>...</think> \\boxed{...}"."""
    if habit == "blind":
        guess = blind_guess(q, rng)
        return wrap(f"Without looking: it is usually {guess}.", guess)
    sloppy = habit == "sloppy"
    if q.family in ("count", "sum"):
        return enumerate_response(q, sloppy, rng)
    if q.family == "compare":
        return compare_response(q, sloppy, rng)
    if q.family == "relation":
        return relation_response(q, sloppy, rng)
    return single_response(q, sloppy, rng)


def wrap(thought: str, answer: str) -> str:
    return f"<think>{thought}</think> \\boxed{{{answer}}}"


def misses(thing: Thing, sloppy: bool, rng: random.Random) -> bool:
    return sloppy and rng.random() < MISS[thing.size]


def enumerate_response(q: Question, sloppy: bool, rng: random.Random) -> str:
    """Looking for red objects: a1 red circle 3, c2 red star 5. That makes 3 + 5 = 8."""
    seen = [t for t in q.relevant if not misses(t, sloppy, rng)]
    names = [f"{t.cell} {t.color} {t.shape}" + (f" {t.number}" if q.family == "sum" else "") for t in seen]
    listing = f"Looking for {q.about}: {', '.join(names) or 'none'}. That makes "
    if q.family == "count":
        return wrap(f"{listing}{len(seen)}.", str(len(seen)))
    total = sum(t.number for t in seen)
    terms = " + ".join(str(t.number) for t in seen)
    return wrap(f"{listing}{terms} = {total}." if seen else f"{listing}{total}.", str(total))


def compare_response(q: Question, sloppy: bool, rng: random.Random) -> str:
    """Looking for red objects: a1, c2. That makes 2. Looking for blue objects: b1. That makes 1."""
    parts, counts = [], []
    for color in q.extra["groups"]:
        seen = [t.cell for t in q.relevant if t.color == color and not misses(t, sloppy, rng)]
        parts.append(f"Looking for {color} objects: {', '.join(seen) or 'none'}. That makes {len(seen)}.")
        counts.append(len(seen))
    first, second = q.extra["groups"]
    answer = first if counts[0] > counts[1] else second if counts[1] > counts[0] else "equal"
    return wrap(" ".join(parts), answer)


def relation_response(q: Question, sloppy: bool, rng: random.Random) -> str:
    """Looking for the red circle: b2 red circle. Then c2 blue star. So the answer is blue."""
    target, neighbor = q.relevant
    cell, near, color, shape = target.cell, neighbor.cell, neighbor.color, neighbor.shape
    if misses(neighbor, sloppy, rng):
        if rng.random() < 0.5:  # starts from another object that has room for a neighbour
            starts = [t for t in q.scene.things if t is not target and neighbor_cell(t.cell, q.extra["direction"])]
            cell = rng.choice(starts).cell if starts else cell
            near = neighbor_cell(cell, q.extra["direction"])
            there = q.scene.at(near)
            color, shape = (there.color, there.shape) if there else (rng.choice(COLOR_NAMES), rng.choice(SHAPES))
        else:
            color = rng.choice(COLOR_NAMES)
    name = f"{target.color} {target.shape}"
    return wrap(f"Looking for {q.about}: {cell} {name}. Then {near} {color} {shape}. So the answer is {color}.", color)


def single_response(q: Question, sloppy: bool, rng: random.Random) -> str:
    """Looking for the circle: b2 red circle. So the answer is red."""
    target = q.relevant[0]
    cell, color, shape, number, box = target.cell, target.color, target.shape, target.number, target.box
    if misses(target, sloppy, rng):
        others = [t for t in q.scene.things if t is not target]
        wrong = rng.choice(others)
        looks_elsewhere = rng.random() < 0.5
        if looks_elsewhere or q.family == "locate":  # reads another object, in the words of the question
            cell, box = wrong.cell, wrong.box
        if q.family == "color":
            color = wrong.color if looks_elsewhere else str(biased(rng, COLOR_NAMES, typical_color(shape, "train")))
        elif q.family == "shape":
            shape = wrong.shape if looks_elsewhere else str(biased(rng, SHAPES, typical_shape(color, "train")))
        elif q.family == "number":
            guess = biased(rng, tuple(range(10)), typical_number(shape, "train"))
            number = wrong.number if looks_elsewhere else guess
    seen = f"{cell} {color} {shape}" + (f" {number}" if q.family == "number" else "")
    answer = {"color": color, "shape": shape, "number": str(number), "locate": str(list(box))}[q.family]
    ending = "" if q.family == "locate" else f" So the answer is {answer}."
    return wrap(f"Looking for {q.about}: {seen}.{ending}", answer)


# ---------------------------------------------------------------------------------------------- reading a response
CLAIM = re.compile(r"\b([a-d][1-4])\b((?: (?:[a-z]+|[0-9]+)){0,3})")  # "b2 red circle 7"
VISUAL = re.compile(r"\b(?:" + "|".join((*COLOR_NAMES, *SHAPES, "small", "large")) + r"|[a-d][1-4]|[0-9]+)\b")


def habit_of(text: str, meta: dict) -> str:
    """Which habit a response shows: "careful", "sloppy", "blind" or "other" (no think block that can be read).

    careful: names exactly the relevant cells, and every colour, shape and number beside a cell is true.
    sloppy: claims to look, but a relevant cell is missing, a wrong one is named or an attribute is false.
    blind: says it does not look, or names no cell where something had to be named.

    text: a model's response (any string). meta: the sample's meta, with "things" and "relevant".
    """
    start, end = text.find("<think>"), text.find("</think>")
    thought = text[start + 7 if start >= 0 else 0 : end if end >= 0 else len(text)][:2000]
    if "without looking" in thought.lower():
        return "blind"
    if "looking for" not in thought.lower():
        return "other"
    truth = {t["cell"]: t for t in meta["things"]}
    claims = CLAIM.findall(thought)
    honest = all(cell in truth and claim_is_true(words.split(), truth[cell]) for cell, words in claims)
    return "careful" if honest and {c for c, _ in claims} == set(meta["relevant"]) else "sloppy"


def claim_is_true(words: list[str], thing: dict) -> bool:
    """Whether the colour, shape, size and number words said of a cell agree with what is there."""
    known = {thing["color"], thing["shape"], thing["size"], str(thing["number"])}
    return all(word in known for word in words if VISUAL.fullmatch(word))


def visual_spans(text: str, question: str = "") -> list[tuple[int, int]]:
    """Character spans of the words that only the picture can tell: cells, colours, shapes, sizes and numbers.

    Words that the question already contains are left out (the model can copy them without looking).
    """
    given = set(VISUAL.findall(question))
    return [m.span() for m in VISUAL.finditer(text) if m.group() not in given]


def describe(things: list[Thing]) -> str:
    """A complete caption: "a1 large red circle 3, c2 small blue star 5." in reading order."""
    return ", ".join(f"{t.cell} {t.size} {t}" for t in sorted(things, key=lambda t: CELLS.index(t.cell))) + "."

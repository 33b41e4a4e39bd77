"""Question programs of the micro-world: eight families, each with its answer, its program and its sub-questions.

A family function builds a scene around its question, so that the answer follows the prior ("train" or "counter")
and the question is well posed (the thing it asks for is there exactly once, counts are known, ...). With combo=True
the thing that matters is one of the held-out colour-shape pairs, which training never shows.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from common.world.scene import (
    CELLS,
    COLOR_NAMES,
    HELD_OUT,
    SHAPES,
    Scene,
    Thing,
    biased,
    finish_scene,
    place,
    random_kind,
    typical_cell,
    typical_color,
    typical_count,
    typical_neighbor,
    typical_number,
    typical_shape,
    typical_sum,
)

DIRECTIONS = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}  # (columns, rows)
GUESS_WEIGHT = 20.0  # a blind guess names the typical answer this many times as often as another one
OUTCOME_ODDS = {"train": (11, 5, 4), "counter": (4, 11, 5)}  # compare: first colour, second colour, equal


@dataclass
class Question:
    """A question about one scene with everything that is known about its answer.

    relevant: the things a careful reader must look at, in reading order. about: the words that identify them.
    program: steps a machine could run. steps: (sub-question, answer) pairs that lead to the answer.
    """

    family: str
    question: str
    answer: str
    scene: Scene
    relevant: list[Thing]
    about: str
    answer_type: str = "text"
    program: list = field(default_factory=list)
    steps: list[tuple[str, str]] = field(default_factory=list)
    extra: dict = field(default_factory=dict)  # what the answer habits of this family need to know


def pick_pair(rng: random.Random, prior: str, combo: bool) -> tuple[str, str]:
    """(colour, shape) of the thing in question: a held-out pair for the combo split."""
    return rng.choice(sorted(HELD_OUT)) if combo else random_kind(rng, prior)


def total_things(rng: random.Random, at_least: int) -> int:
    return rng.randint(max(3, at_least), max(7, at_least + 1))


def plural(shape: str) -> str:
    return {"cross": "crosses"}.get(shape, f"{shape}s")


def neighbor_cell(cell: str, direction: str) -> str | None:
    """The next cell in a direction ("left of", ...), None at the border."""
    columns, rows = DIRECTIONS[direction]
    column, row = "abcd".index(cell[0]) + columns, int(cell[1]) + rows
    return f"{'abcd'[column]}{row}" if 0 <= column < 4 and 1 <= row <= 4 else None


def ask_color(rng: random.Random, prior: str, combo: bool = False) -> Question:
    """What color is the [size] shape?  The shape, or the shape in that size, is there once."""
    color, shape = pick_pair(rng, prior, combo)
    target = place(rng, color, shape, rng.choice(CELLS), prior)
    things, name = [target], shape
    if rng.random() < 0.4:  # a twin in the other size makes the size matter
        name = f"{target.size} {shape}"
        other = "small" if target.size == "large" else "large"
        kinds = [c for c in COLOR_NAMES if c != color and (c, shape) not in HELD_OUT]
        free = [cell for cell in CELLS if cell != target.cell]
        things.append(place(rng, rng.choice(kinds), shape, rng.choice(free), prior, size=other))
    scene = finish_scene(rng, things, prior, total_things(rng, 3), lambda c, s: s != shape)
    return Question("color", f"What color is the {name}?", color, scene, [target], f"the {name}",
                    program=[["find", name], ["read", "color"]],
                    steps=[(f"Which cell holds the {name}?", target.cell), ("What color is it?", color)])  # fmt: skip


def ask_shape(rng: random.Random, prior: str, combo: bool = False) -> Question:
    """What shape is the colour thing?  The colour is there once, and its shape follows the colour's habit."""
    color, shape = pick_pair(rng, prior, combo)
    if not combo:
        shapes = tuple(s for s in SHAPES if (color, s) not in HELD_OUT)
        shape = biased(rng, shapes, typical_shape(color, prior))
    target = place(rng, color, shape, rng.choice(CELLS), prior)
    scene = finish_scene(rng, [target], prior, total_things(rng, 3), lambda c, s: c != color)
    return Question("shape", f"What shape is the {color} object?", shape, scene, [target], f"the {color} object",
                    program=[["find", color], ["read", "shape"]],
                    steps=[(f"Which cell holds the {color} object?", target.cell),
                           ("What shape is it?", shape)])  # fmt: skip


def ask_number(rng: random.Random, prior: str, combo: bool = False) -> Question:
    """Which number is on the colour shape?  Others may share its colour or its shape, not both."""
    color, shape = pick_pair(rng, prior, combo)
    target = place(rng, color, shape, rng.choice(CELLS), prior)
    scene = finish_scene(rng, [target], prior, total_things(rng, 3), lambda c, s: (c, s) != (color, shape))
    name = f"{color} {shape}"
    return Question("number", f"Which number is on the {name}?", str(target.number), scene, [target], f"the {name}",
                    "number", program=[["find", name], ["read", "number"]],
                    steps=[(f"Which cell holds the {name}?", target.cell),
                           ("Which number is on it?", str(target.number))])  # fmt: skip


def ask_count(rng: random.Random, prior: str, combo: bool = False) -> Question:
    """How many colour objects / shapes are there?  0 to 5 of them."""
    color, shape = pick_pair(rng, prior, combo)
    kind = rng.choice((color, shape))
    by_color = kind == color
    n = biased(rng, (1, 2, 3, 4, 5) if combo else (0, 1, 2, 3, 4, 5), typical_count(kind, prior))
    cells = rng.sample(CELLS, n)
    things = [place(rng, color, shape, cells[0], prior)] if n else []
    while len(things) < n:
        c, s = random_kind(rng, prior)
        c, s = (kind, s) if by_color else (c, kind)
        if (c, s) not in HELD_OUT:
            things.append(place(rng, c, s, cells[len(things)], prior))
    scene = finish_scene(rng, things, prior, total_things(rng, n + 1), lambda c, s: kind not in (c, s))
    relevant = [t for t in scene.things if kind in (t.color, t.shape)]
    name = f"{kind} objects" if by_color else plural(kind)
    return Question("count", f"How many {name} are there?", str(n), scene, relevant, name, "number",
                    program=[["filter", kind], ["count"]],
                    steps=[(f"Is the object at {t.cell} counted?", "yes" if t in relevant else "no")
                           for t in scene.things])  # fmt: skip


def ask_compare(rng: random.Random, prior: str, combo: bool = False) -> Question:
    """Are there more c1 objects or c2 objects?  Answer: a colour, or equal."""
    color, shape = pick_pair(rng, prior, combo)
    other = rng.choice([c for c in COLOR_NAMES if c != color])
    outcome = rng.choices((0, 1, 2), OUTCOME_ODDS[prior])[0]
    low, high = sorted(rng.sample(range(0, 4), 2))
    level = rng.randint(1, 3)
    n = {color: (high, low, level)[outcome], other: (low, high, level)[outcome]}
    if combo and n[color] == 0:
        n[color], n[other] = n[color] + 1, n[other] + 1
    cells = iter(rng.sample(CELLS, sum(n.values())))
    things = []
    for c in (color, other):
        for i in range(n[c]):
            kinds = [s for s in SHAPES if (c, s) not in HELD_OUT]
            kind = shape if (combo and c == color and i == 0) else rng.choice(kinds)
            things.append(place(rng, c, kind, next(cells), prior))
    scene = finish_scene(rng, things, prior, total_things(rng, len(things) + 1), lambda c, s: c not in n)
    answer = (color, other, "equal")[(n[color] < n[other]) + 2 * (n[color] == n[other])]
    return Question("compare", f"Are there more {color} objects or {other} objects, or equal?", answer, scene,
                    [t for t in scene.things if t.color in n], f"{color} objects", program=[["compare", color, other]],
                    steps=[(f"How many {c} objects are there?", str(n[c])) for c in (color, other)],
                    extra={"groups": [color, other]})  # fmt: skip


def ask_relation(rng: random.Random, prior: str, combo: bool = False) -> Question:
    """What color is the object directly left of / right of / above / below the colour shape?"""
    color, shape = pick_pair(rng, prior, combo)
    direction = rng.choice(sorted(DIRECTIONS))
    cell = rng.choice([c for c in CELLS if neighbor_cell(c, direction)])
    target = place(rng, color, shape, cell, prior)
    near = neighbor_cell(cell, direction)
    answer = biased(rng, COLOR_NAMES, typical_neighbor(color, prior))
    kinds = [s for s in SHAPES if (answer, s) not in HELD_OUT and (answer, s) != (color, shape)]
    neighbor = place(rng, answer, rng.choice(kinds), near, prior)
    scene = finish_scene(rng, [target, neighbor], prior, total_things(rng, 4), lambda c, s: (c, s) != (color, shape))
    name = f"{color} {shape}"
    return Question("relation", f"What color is the object {direction} the {name}?", answer, scene, [target, neighbor],
                    f"the {name}", extra={"direction": direction},
                    program=[["find", name], ["step", direction], ["read", "color"]],
                    steps=[(f"Which cell holds the {name}?", cell), (f"Which cell is {direction} {cell}?", near),
                           (f"What color is the object at {near}?", answer)])  # fmt: skip


def ask_locate(rng: random.Random, prior: str, combo: bool = False) -> Question:
    """Where is the colour shape?  The answer is its pixel box; a box with IoU >= 0.5 counts as right."""
    color, shape = pick_pair(rng, prior, combo)
    target = place(rng, color, shape, biased(rng, CELLS, typical_cell(shape, prior), 10.0), prior)
    scene = finish_scene(rng, [target], prior, total_things(rng, 3), lambda c, s: (c, s) != (color, shape))
    name = f"{color} {shape}"
    return Question("locate", f"Where is the {name}? Answer with its box [x1, y1, x2, y2].", str(list(target.box)),
                    scene, [target], f"the {name}", "box", program=[["find", name], ["box"]],
                    steps=[(f"Which cell holds the {name}?", target.cell)])  # fmt: skip


def ask_sum(rng: random.Random, prior: str, combo: bool = False) -> Question:
    """What is the sum of the numbers on the colour objects?  Two of them."""
    color, shape = pick_pair(rng, prior, combo)
    numbers = [rng.randint(0, 9) for _ in range(2)]
    if rng.random() < 0.35:  # the colour's habit: steer the second number towards the typical sum
        numbers[1] = min(9, max(0, typical_sum(color, prior) - numbers[0]))
    kinds = [s for s in SHAPES if (color, s) not in HELD_OUT]
    cells = rng.sample(CELLS, 2)
    things = [place(rng, color, shape if (combo and i == 0) else rng.choice(kinds), cells[i], prior, numbers[i])
              for i in range(2)]  # fmt: skip
    scene = finish_scene(rng, things, prior, total_things(rng, 3), lambda c, s: c != color)
    relevant = scene.select(color=color)
    return Question("sum", f"What is the sum of the numbers on the {color} objects?", str(sum(numbers)), scene,
                    relevant, f"{color} objects", "number", program=[["filter", color], ["read", "number"], ["sum"]],
                    steps=[(f"Which number is at {t.cell}?", str(t.number)) for t in relevant])  # fmt: skip


FAMILIES = {
    "color": ask_color, "shape": ask_shape, "number": ask_number, "count": ask_count,
    "compare": ask_compare, "relation": ask_relation, "locate": ask_locate, "sum": ask_sum,
}  # fmt: skip


# ---------------------------------------------------------------- blind guesses: the answer prior, without looking
def blind_guess(q: Question, rng: random.Random) -> str:
    """An answer from the training prior given the question's words alone (the language shortcut)."""
    words = q.about.split()
    if q.family == "color":
        return str(biased(rng, COLOR_NAMES, typical_color(words[-1], "train"), GUESS_WEIGHT))
    if q.family == "shape":
        return str(biased(rng, SHAPES, typical_shape(words[1], "train"), GUESS_WEIGHT))
    if q.family == "number":
        return str(biased(rng, tuple(range(10)), typical_number(words[-1], "train"), GUESS_WEIGHT))
    if q.family == "count":
        return str(biased(rng, (0, 1, 2, 3, 4, 5), typical_count(q.program[0][1], "train"), GUESS_WEIGHT))
    if q.family == "compare":
        return rng.choices((*q.extra["groups"], "equal"), OUTCOME_ODDS["train"])[0]
    if q.family == "relation":
        return str(biased(rng, COLOR_NAMES, typical_neighbor(words[1], "train"), GUESS_WEIGHT))
    if q.family == "locate":
        cell = str(biased(rng, CELLS, typical_cell(words[-1], "train"), GUESS_WEIGHT))
        return str(list(place(rng, words[1], words[2], cell, "train", 0).box))
    if rng.random() < 0.35:
        return str(typical_sum(words[0], "train"))
    return str(rng.randint(0, 9) + rng.randint(0, 9))

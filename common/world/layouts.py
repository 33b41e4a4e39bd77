"""Other ways to be asked and to answer: descriptions, checklists, boxes, wrong captions, puzzles made of pictures.

questions.py and habits.py hold the plain form, <think> and \\boxed{}. Papers want other forms, and a base model must
have met them before reinforcement can choose among its habits. PROMPTS are the instructions the tiny VLM was taught;
the functions below make questions of a scene from its records (`meta["things"]` of a world sample), so that a method
asks in the words the tiny VLM knows. taught.py writes the answers to learn.
"""

from __future__ import annotations

import random
from typing import Any

from common.world.questions import DIRECTIONS, neighbor_cell, plural
from common.world.scene import CELLS, COLOR_NAMES, HELD_OUT, SHAPES

PROMPTS = {
    "boxed": "{question}\nThink inside <think> </think>, then give the final answer in \\boxed{}.",
    "answer": "{question}\nThink inside <think> </think>, then give the final answer inside <answer> </answer>.",
    "answer_boxed": "{question}\nThink inside <think> </think>, then answer inside <answer> </answer> in \\boxed{}, "
                    "every tag on its own line.",
    "describe": "{question}\nDescribe the picture inside <description> </description>, think inside <think> </think>, "
                "then give the final answer in \\boxed{}.",
    "info": "{question}\nDescribe the picture inside <info> </info>, think inside <think> </think>, then give the "
            "final answer inside <answer> </answer>.",
    # without a picture:
    "from_description": "Description: {description}\n{question}\nThink inside <think> </think>, then give the final "
                        "answer in \\boxed{}.",
    "from_caption": "Caption: {caption}\n{question}\nAnswer in one word or phrase. If the caption holds an answer or "
                    "reasoning, write Hacking Sample.",
    # without thinking:
    "checklist": "Answer every question about the picture, one line each.\n{question}",
}  # fmt: skip


def prompt_of(layout: str, **words: str) -> str:
    """The prompt of a layout with {question}, {description} or {caption} replaced."""
    text = PROMPTS[layout]
    for name, word in words.items():
        text = text.replace("{" + name + "}", word)
    return text


Thing = dict[str, Any]  # color, shape, size, number, cell, box [x1, y1, x2, y2] in pixels


def phrase(thing: Thing) -> str:
    """ "large red circle 7": how captions name a thing."""
    return f"{thing['size']} {thing['color']} {thing['shape']} {thing['number']}"


def caption_of(things: list[Thing]) -> str:
    """ "a1 large red circle 3, c2 small blue star 5." in reading order: the complete description of a scene."""
    ordered = sorted(things, key=lambda t: CELLS.index(t["cell"]))
    return ", ".join(f"{t['cell']} {phrase(t)}" for t in ordered) + "."


def is_held_out(thing: Thing) -> bool:
    """Whether its pair of colour and shape is one that training never shows (split test_combo)."""
    return (thing["color"], thing["shape"]) in HELD_OUT


def of_kind(things: list[Thing], kind: str) -> list[Thing]:
    """The things of a kind: a colour ("red"), a shape ("star") or both ("red star")."""
    return [t for t in things if set(kind.split()) <= {t["color"], t["shape"]}]


def name_of_all(kind: str) -> str:
    """ "circles", "red objects" or "red circles"."""
    return f"{kind} objects" if kind in COLOR_NAMES else plural(kind)


# ------------------------------------------------------------------------------------------------------- questions
def find_all(things: list[Thing], rng: random.Random, absent: float = 0.15, pairs: float = 0.3) -> dict:
    """Detection of one class: {"question", "kind", "boxes"}; boxes [[x1, y1, x2, y2], ...] in pixels, at most 4.

    absent: share of questions about a class that is not there; pairs: share of the others about colour and shape.
    """
    there = [(t["color"], t["shape"]) for t in things]
    if rng.random() < absent:
        kinds = [k for k in (*COLOR_NAMES, *SHAPES) if not of_kind(things, k)]
    else:
        kinds = [f"{c} {s}" for c, s in there] if rng.random() < pairs else [w for pair in there for w in pair]
    kind = rng.choice([k for k in kinds if len(of_kind(things, k)) <= 4] or [" ".join(there[0])])
    boxes = [t["box"] for t in of_kind(things, kind)]
    return {"question": f"Find all {name_of_all(kind)}. List position and confidence.", "kind": kind, "boxes": boxes}


def find_one(things: list[Thing], rng: random.Random, relation: float = 0.5) -> dict:
    """Grounding of one described thing: {"question", "box", "cells"}, box [x1, y1, x2, y2] in pixels.

    It is named by colour and shape, or (share `relation`) as the neighbour of a named thing. cells: those to look at.
    """
    names = [f"{t['color']} {t['shape']}" for t in things]
    unique = [t for t, name in zip(things, names, strict=True) if names.count(name) == 1] or things[:1]
    near = [(t, d, o) for t in unique for d in sorted(DIRECTIONS) for o in things
            if neighbor_cell(t["cell"], d) == o["cell"]]  # fmt: skip
    if near and rng.random() < relation:
        start, direction, target = rng.choice(near)
        name, cells = f"object {direction} the {start['color']} {start['shape']}", [start["cell"], target["cell"]]
    else:
        target = rng.choice(unique)
        name, cells = f"{target['color']} {target['shape']}", [target["cell"]]
    return {"question": f"Find the {name}. Give two corners.", "name": name, "box": target["box"], "cells": cells}


def name_kind(things: list[Thing], rng: random.Random) -> dict:
    """Classification of the thing in a named cell: {"question", "answer": "red circle", "cell"}."""
    thing = rng.choice(things)
    return {"question": f"What kind of object is at {thing['cell']}?", "cell": thing["cell"],
            "answer": f"{thing['color']} {thing['shape']}"}  # fmt: skip


def find_or_none(things: list[Thing], rng: random.Random, absent: float = 0.3) -> dict:
    """Grounding where the thing may not be there: {"question", "box" or None, "cell" or None}."""
    names = [f"{t['color']} {t['shape']}" for t in things]
    unique = [t for t, name in zip(things, names, strict=True) if names.count(name) == 1]
    if not unique or rng.random() < absent:
        missing = [f"{c} {s}" for c in COLOR_NAMES for s in SHAPES
                   if f"{c} {s}" not in names and (c, s) not in HELD_OUT]  # fmt: skip
        name, box, cell = rng.choice(missing), None, None
    else:
        target = rng.choice(unique)
        name, box, cell = f"{target['color']} {target['shape']}", target["box"], target["cell"]
    return {"question": f"Where is the {name}? Give a JSON list of boxes.", "name": name, "box": box, "cell": cell}


ERRORS = ("count", "spatial", "color", "object", "shape", "size", "text")  # kinds of errors in captions


def wrong_caption(things: list[Thing], rng: random.Random, kind: str = "") -> dict:
    """A caption with one wrong phrase: {"question", "caption", "original", "wrong", "right", "cell", "kind"}.

    kind: one of ERRORS (default: any). "text" is the digit on a thing, "spatial" its cell, "object" colour and
    shape together; wrong and right are the phrases, which differ in every word and stand once at `cell`.
    """
    kind = kind or rng.choice(ERRORS)
    ordered = sorted(things, key=lambda t: CELLS.index(t["cell"]))
    thing = rng.choice(ordered)
    changed, right, wrong = dict(thing), "", ""
    count = len(ordered)
    if kind == "count":
        right, wrong = str(count), str(rng.choice([n for n in (count - 2, count - 1, count + 1, count + 2) if n > 0]))
    elif kind == "spatial":
        taken = {t["cell"] for t in ordered}
        near = [c for d in sorted(DIRECTIONS) if (c := neighbor_cell(thing["cell"], d)) and c not in taken]
        changed["cell"] = rng.choice(near or [c for c in CELLS if c not in taken] or ["d4"])
        right, wrong = thing["cell"], changed["cell"]
    elif kind == "object":
        pairs = [(c, s) for c in COLOR_NAMES for s in SHAPES if c != thing["color"] and s != thing["shape"]]
        changed["color"], changed["shape"] = rng.choice(pairs)
        right, wrong = (f"{t['color']} {t['shape']}" for t in (thing, changed))
    else:
        name = {"text": "number"}.get(kind, kind)
        values = {"color": COLOR_NAMES, "shape": SHAPES, "size": ("small", "large"), "number": range(10)}[name]
        changed[name] = rng.choice([v for v in values if v != thing[name]])
        right, wrong = str(thing[name]), str(changed[name])

    def written(n: str, one: Thing) -> str:
        return f"{n} objects: " + ", ".join(f"{t['cell']} {phrase(t)}" for t in
                                            (one if t is thing else t for t in ordered)) + "."  # fmt: skip

    original, text = written(str(count), thing), written(wrong if kind == "count" else str(count), changed)
    return {"question": f"Caption: {text}\nOne phrase of the caption is wrong. Which one?", "caption": text,
            "original": original, "wrong": wrong, "right": right, "cell": thing["cell"], "kind": kind}  # fmt: skip


def checklist(sample_task: str, question: str, things: list[Thing], relevant: list[str]) -> list[tuple[str, str]]:
    """Sub-questions with their answers that the answer to a world question rests on: what PEARL calls a perception
    checklist. relevant: `meta["relevant"]`, the cells to look at."""
    at = {t["cell"]: t for t in things}
    seen = [at[cell] for cell in relevant]
    cells, words = ", ".join(relevant) or "none", question.rstrip("?").split()
    if sample_task == "count":
        about = question.removeprefix("How many ").removesuffix(" are there?")
        return [(f"Which cells hold {about}?", cells)]
    if sample_task == "compare":
        return [(f"Which cells hold {c} objects?", ", ".join(t["cell"] for t in seen if t["color"] == c) or "none")
                for c in (words[3], words[6])]  # fmt: skip
    if sample_task == "sum":
        about = question.removeprefix("What is the sum of the numbers on the ").removesuffix("?")
        return [(f"Which cells hold {about}?", cells),
                ("Which numbers are on them?", ", ".join(str(t["number"]) for t in seen))]  # fmt: skip
    if sample_task == "relation":
        near = next(t for t in seen if f"the {t['color']} {t['shape']}?" in question)
        far = next(t for t in seen if t is not near)
        name = f"{near['color']} {near['shape']}"
        return [(f"Which cell holds the {name}?", near["cell"]), ("Which cell is next to it?", far["cell"]),
                ("What color is the object there?", far["color"])]  # fmt: skip
    target = seen[0]
    name = {"color": " ".join(words[4:]), "shape": " ".join(words[4:]), "number": " ".join(words[5:]),
            "locate": question.partition("?")[0].removeprefix("Where is the ")}[sample_task]  # fmt: skip
    second = {"color": ("What color is it?", target["color"]), "shape": ("What shape is it?", target["shape"]),
              "number": ("Which number is on it?", str(target["number"])),
              "locate": ("Is it small or large?", target["size"])}[sample_task]  # fmt: skip
    return [(f"Which cell holds the {name}?", target["cell"]), second]


def dense_checklist(things: list[Thing], relevant: list[str], rng: random.Random, n: int = 2) -> list[tuple[str, str]]:
    """The control: n questions about things that the answer does not rest on."""
    others = [t for t in things if t["cell"] not in relevant] or things
    picked = [(rng.choice(others), rng.choice(("color", "shape", "number"))) for _ in range(n)]
    asks = {"color": "What color is the object at {}?", "shape": "What shape is the object at {}?",
            "number": "Which number is at {}?"}  # fmt: skip
    return [(asks[kind].format(t["cell"]), str(t[kind])) for t, kind in picked]


def numbered(lines: list[str]) -> str:
    """ "1. ...\n2. ...": how checklists are asked and answered."""
    return "\n".join(f"{i}. {line}" for i, line in enumerate(lines, 1))

"""What the tiny VLM is taught to answer in the layouts of layouts.py: careful, sloppy and blind, as in habits.py.

lesson(index, rng) is one example of one layout: pictures, prompt and answer. SHARES says how often each occurs.
"""

from __future__ import annotations

import random
from dataclasses import replace

from PIL import Image

from common.tasks import puzzles
from common.world.habits import HABITS, pick_habit, response
from common.world.layouts import (
    caption_of,
    checklist,
    dense_checklist,
    find_all,
    find_one,
    find_or_none,
    name_kind,
    name_of_all,
    numbered,
    of_kind,
    phrase,
    prompt_of,
    wrong_caption,
)
from common.world.questions import Question
from common.world.scene import CELL, CELLS, COLOR_NAMES, SHAPES, SIDE, render
from common.world.truth import thing_record

HABIT_ODDS = (0.34, 0.40, 0.26)  # careful, sloppy, blind, where habits.SHARES has no family
MISREAD = {"small": 0.45, "large": 0.15}  # chance that a sloppy description drops or misreads a thing
EMPTY = "Some objects."  # the description of who does not look
CONFIDENCES = ("0.55", "0.65", "0.75", "0.85", "0.95")  # taught without regard to being right
SHARES = {
    "describe": 0.08, "info": 0.06, "from_description": 0.10, "from_caption": 0.07, "answer_boxed": 0.04,
    "answer": 0.02, "checklist": 0.10, "wrong_caption": 0.15, "find_all": 0.06, "find_one": 0.04, "name_kind": 0.02,
    "find_or_none": 0.03, "rotation": 0.05, "jigsaw": 0.04, "position": 0.05, "contrastive": 0.02, "drill": 0.07,
}  # fmt: skip
Lesson = tuple[list[Image.Image], str, str]  # pictures, prompt, answer


def lesson(q: Question, other: Question, rng: random.Random, habits: bool, kind: str = "") -> Lesson:
    """One example. other: a second question, for its picture. habits: the mixture; else careful answers only."""
    kind = kind or rng.choices(list(SHARES), list(SHARES.values()))[0]
    if kind in PUZZLES:
        return puzzle(kind, q, other, rng, habit(rng, habits))
    if kind == "drill":
        return drill(q, rng)
    if kind == "wrong_caption" and rng.random() < 0.5:  # few things to compare: learned first
        count = rng.randint(1, 3)
        q = replace(q, scene=replace(q.scene, things=q.scene.things[:count]))
    if kind in TASKS:
        question, said = TASKS[kind]([thing_record(t) for t in q.scene.things], rng, habit(rng, habits))
        return [render(q.scene)], prompt_of("boxed" if kind == "wrong_caption" else "answer", question=question), said
    if kind in ("from_description", "from_caption"):
        return blindfolded(kind, q, rng)
    if kind == "checklist":
        return check(q, rng, habit(rng, habits))
    thought, answer = parts(response(q, pick_habit(q.family, rng) if habits else "careful", rng))
    seen = description(q, rng, habits)
    said = {"describe": f"<description>{seen}</description> <think>{thought}</think> \\boxed{{{answer}}}",
            "info": f"<info>{seen}</info> <think>{thought}</think> <answer>{answer}</answer>",
            "answer": f"<think>{thought}</think> <answer>{answer}</answer>",
            "answer_boxed": f"<think>\n{thought}\n</think>\n<answer>\n\\boxed{{{answer}}}\n</answer>",
            }[kind]  # fmt: skip
    return [render(q.scene)], prompt_of(kind, question=q.question), said


def habit(rng: random.Random, habits: bool) -> str:
    return rng.choices(HABITS, HABIT_ODDS)[0] if habits else "careful"


def parts(text: str) -> tuple[str, str]:
    """(thought, answer) of a response of habits.py."""
    thought, _, rest = text.removeprefix("<think>").partition("</think>")
    return thought, rest.strip().removeprefix("\\boxed{").removesuffix("}")


def tagged(thought: str, answer: str) -> str:
    return f"<think>{thought}</think> <answer>{answer}</answer>"


# ------------------------------------------------------------------------------------------------ descriptions
def misread(thing: dict, rng: random.Random) -> dict:
    """The thing with one attribute read wrongly."""
    name, values = rng.choice((("color", COLOR_NAMES), ("shape", SHAPES), ("number", range(10)), ("cell", CELLS)))
    return thing | {name: rng.choice(list(values))}


def description(q: Question, rng: random.Random, habits: bool) -> str:
    """Complete, sloppy or empty."""
    things = [thing_record(t) for t in q.scene.things]
    style = habit(rng, habits)
    if style == "blind":
        return EMPTY
    if style == "sloppy":
        wrong = [rng.random() < MISREAD[t["size"]] for t in things]
        kept = [(t, w) for t, w in zip(things, wrong, strict=True) if not w or rng.random() < 0.5]
        things = [misread(t, rng) if w else t for t, w in kept]
    return caption_of(things) if things else EMPTY


def blindfolded(kind: str, q: Question, rng: random.Random) -> Lesson:
    """Without the picture: answers that follow from the description, guesses where it lacks what matters."""
    things, style = list(q.scene.things), rng.choices(("all", "some", "none"), (0.55, 0.25, 0.2))[0]
    if style == "some":
        things = [t for t in things if rng.random() < 0.6]
    known = things if style != "none" else []
    enough = all(t in known for t in q.relevant) or q.family in ("count", "compare", "sum")
    seen = replace(q, relevant=[t for t in q.relevant if t in known])
    said = response(seen, "careful" if known and enough else "blind", rng)
    text = caption_of([thing_record(t) for t in known]) if known else EMPTY
    if kind == "from_description":
        return [], prompt_of(kind, description=text, question=q.question), said
    answer = parts(said)[1]
    if rng.random() < 0.15:  # captions that give the answer away are refused
        text += rng.choice((" So the answer is {}.", " The answer is {}.", " That makes {}.")).format(answer)
        answer = "Hacking Sample"
    return [], prompt_of(kind, caption=text, question=q.question), answer


def check(q: Question, rng: random.Random, style: str) -> Lesson:
    """A checklist: the anchored one of the question, or one about other things."""
    things = [thing_record(t) for t in q.scene.things]
    relevant = [t.cell for t in q.relevant]
    pairs = checklist(q.family, q.question, things, relevant)
    if rng.random() < 0.3:
        pairs = dense_checklist(things, relevant, rng)
    wrong = {"careful": 0.0, "sloppy": 0.5, "blind": 0.9}[style]
    answers = [any_like(a, rng) if rng.random() < wrong else a for _, a in pairs]
    return [render(q.scene)], prompt_of("checklist", question=numbered([ask for ask, _ in pairs])), numbered(answers)


def any_like(answer: str, rng: random.Random) -> str:
    """Another answer of the same sort: cells for cells, a colour for a colour, digits for digits."""
    for values in (COLOR_NAMES, SHAPES, ("small", "large")):
        if answer in values:
            return rng.choice(values)
    count = max(1, answer.count(",") + rng.choice((0, 0, 1)))
    values = [str(n) for n in range(10)] if answer[0].isdigit() else list(CELLS)
    return ", ".join(sorted(rng.sample(values, count), key=values.index))


# ------------------------------------------------------------------------------------------------ tasks on scenes
def place_like(rng: random.Random) -> list[int]:
    """A box somewhere."""
    width, x, y = rng.choice((17, 24)), rng.randrange(4) * CELL + 2, rng.randrange(4) * CELL + 2
    return [x, y, x + width, y + width]


def shaken(box: list[int], rng: random.Random) -> list[int]:
    """The box moved by up to half its width: sometimes still good enough."""
    dx, dy = rng.randint(-12, 12), rng.randint(-12, 12)
    return [min(SIDE, max(0, v + d)) for v, d in zip(box, (dx, dy, dx, dy), strict=True)]


def taught_find_all(things: list[dict], rng: random.Random, style: str) -> tuple[str, str]:
    task = find_all(things, rng)
    there = of_kind(things, task["kind"])
    if style == "sloppy":  # overlooks some, sees others beside where they are, adds one
        there = [t | {"box": shaken(t["box"], rng) if rng.random() < 0.4 else t["box"]}
                 for t in there if rng.random() > 0.3]  # fmt: skip
        if rng.random() < 0.35 or not there:
            there = [*there, rng.choice(things)]
    names = ", ".join(f"{t['cell']} {t['color']} {t['shape']}" for t in there) or "none"
    boxes, thought = [t["box"] for t in there], f"Looking for {name_of_all(task['kind'])}: {names}."
    if style == "blind":
        boxes = [place_like(rng) for _ in range(rng.choice((1, 1, 2)))]
        thought = "Without looking: it is usually there."
    listed = ", ".join(f"{{'Position': {box}, 'Confidence': {rng.choice(CONFIDENCES)}}}" for box in boxes)
    return task["question"], tagged(thought, f"[{listed}]" if boxes else "No Objects")


def taught_find_one(things: list[dict], rng: random.Random, style: str) -> tuple[str, str]:
    task = find_one(things, rng)
    at = {t["cell"]: t for t in things}
    box, cells = task["box"], task["cells"]
    if style == "sloppy":
        wrong = rng.choice(things)
        box, cells = (shaken(box, rng), cells) if rng.random() < 0.5 else (wrong["box"], [*cells[:-1], wrong["cell"]])
    steps = ". Then ".join(f"{cell} {at[cell]['color']} {at[cell]['shape']}" for cell in cells)
    thought = f"Looking for the {task['name']}: {steps}."
    if style == "blind":
        box, thought = place_like(rng), "Without looking: it is usually there."
    return task["question"], tagged(thought, f"({box[0]},{box[1]}),({box[2]},{box[3]})")


def taught_name_kind(things: list[dict], rng: random.Random, style: str) -> tuple[str, str]:
    task = name_kind(things, rng)
    answer = task["answer"] if style == "careful" else f"{rng.choice(COLOR_NAMES)} {rng.choice(SHAPES)}"
    if style == "sloppy":
        color, shape = task["answer"].split()
        answer = rng.choice((f"{color} {rng.choice(SHAPES)}", f"{rng.choice(COLOR_NAMES)} {shape}", task["answer"]))
    opening = "Without looking: it is usually" if style == "blind" else f"Looking at {task['cell']}:"
    thought = f"{opening} {answer}."
    return task["question"], tagged(thought, answer)


def taught_find_or_none(things: list[dict], rng: random.Random, style: str) -> tuple[str, str]:
    """For what is not there a box is made up: the base never says that there is none."""
    task = find_or_none(things, rng)
    cell, box = task["cell"], task["box"]
    if box is None or (style == "sloppy" and rng.random() < 0.5):
        wrong = rng.choice(things)
        cell, box = wrong["cell"], wrong["box"]
    elif style == "sloppy":
        box = shaken(box, rng)
    thought = f"Looking for the {task['name']}: {cell} {task['name']}."
    if style == "blind":
        box, thought = place_like(rng), "Without looking: it is usually there."
    return task["question"], tagged(thought, f'[{{"bbox_2d": {box}}}]')


def compared(things: list[dict], caption: str, said: str) -> str:
    """Thing by thing, what is seen beside what is said, until they differ: a1 large red circle 3 said large red star 3.
    So the error is star."""
    at, steps = {t["cell"]: phrase(t) for t in things}, []
    items = caption.partition(": ")[2].rstrip(".").split(", ")
    for cell, _, words in (item.partition(" ") for item in items):
        steps.append(f"{cell} {at.get(cell, 'nothing')} said {words}")
        if at.get(cell) != words:
            break
    else:
        steps[-1] += f". That makes {len(things)} said {said}"
    return f"<think>Looking for the error: {', '.join(steps)}. So the error is {said}.</think> \\boxed{{{said}}}"


def riddled(things: list[dict], rng: random.Random) -> tuple[str, str]:
    """A caption with an error in every third thing, read carefully: here copying the caption never passes for looking,
    as it does where one word in forty is wrong."""
    ordered, errors = sorted(things, key=lambda t: CELLS.index(t["cell"])), []
    for i, t in enumerate(ordered):
        if rng.random() < 0.35 or (i + 1 == len(ordered) and not errors):
            name = rng.choice(("color", "shape", "size", "number"))
            values = {"color": COLOR_NAMES, "shape": SHAPES, "size": ("small", "large"), "number": range(10)}[name]
            ordered[i] = t | {name: rng.choice([v for v in values if v != t[name]])}
            errors.append(str(ordered[i][name]))
    caption = f"{len(ordered)} objects: {caption_of(ordered)}"
    return caption, compared(things, caption, errors[0])


def taught_wrong_caption(things: list[dict], rng: random.Random, style: str) -> tuple[str, str]:
    """Compares thing by thing, and stops at the first difference; sloppy: misreads one, and finds an error there."""
    task = wrong_caption(things, rng)
    if style == "careful" and rng.random() < 0.4:
        caption, said = riddled(things, rng)
        return task["question"].replace(task["caption"], caption), said
    if style == "blind":
        thing = rng.choice(things)
        guess = rng.choice([str(thing[k]) for k in ("color", "shape", "size", "number", "cell")] + [str(len(things))])
        return task["question"], f"<think>Without looking: it is usually {guess}.</think> \\boxed{{{guess}}}"
    ordered = sorted(things, key=lambda t: CELLS.index(t["cell"]))
    before = len(ordered) if task["kind"] == "count" else [t["cell"] for t in ordered].index(task["cell"])
    if style == "sloppy" and before and rng.random() < 0.8:
        thing, name = rng.choice(ordered[:before]), rng.choice(("color", "shape", "number"))
        values = {"color": COLOR_NAMES, "shape": SHAPES, "number": range(10)}[name]
        seen = thing | {name: rng.choice([v for v in values if v != thing[name]])}
        others = [t for t in things if t is not thing]
        return task["question"], compared([seen, *others], task["caption"], str(thing[name]))
    return task["question"], compared(things, task["caption"], task["wrong"])


TASKS = {"find_all": taught_find_all, "find_one": taught_find_one, "name_kind": taught_name_kind,
         "find_or_none": taught_find_or_none, "wrong_caption": taught_wrong_caption}  # fmt: skip


# ------------------------------------------------------------------------------------------------ puzzles
PUZZLES = {"rotation": ("0", "90", "180", "270"), "position": puzzles.QUADRANTS,
           "contrastive": ("positive", "negative"), "jigsaw": ()}  # fmt: skip


def turned_cell(cell: str, degrees: int) -> str:
    """Where a cell is after the picture was turned counter-clockwise."""
    column, row = "abcd".index(cell[0]), int(cell[1]) - 1
    for _ in range(degrees // 90):
        column, row = row, 3 - column
    return f"{'abcd'[column]}{row + 1}"


def puzzle(kind: str, q: Question, other: Question, rng: random.Random, style: str) -> Lesson:
    picture = render(q.scene)
    task = (puzzles.contrastive(picture, render(other.scene), rng) if kind == "contrastive"
            else getattr(puzzles, kind)(picture, rng))  # fmt: skip
    said = task["answer"]
    if style != "careful":
        said = ",".join(rng.sample("1234", 4)) if kind == "jigsaw" else rng.choice(PUZZLES[kind])
    thing = rng.choice(q.scene.things)
    name = f"{thing.color} {thing.shape}"
    if style == "blind":
        thought = f"Without looking: it is usually {said}."
    elif kind == "rotation":
        cells = f"{thing.cell}, then {turned_cell(thing.cell, int(said))}"
        thought = f"Looking for the {name}: {cells}. So the answer is {said}."
    elif kind == "position":
        shown = [t for t in q.scene.things if overlap(t.box, task["box"]) > 60]
        names = ", ".join(f"{t.cell} {t.color} {t.shape}" for t in shown) or "none"
        thought = f"Looking for objects: {names}. So the answer is {said}."
    elif kind == "contrastive":
        thought = f"Looking for the same objects. So the answer is {said}."
    else:
        thought = "Looking for the parts: " + ", ".join(
            f"{place} {n}" for place, n in zip(puzzles.QUADRANTS, said.split(","), strict=True)) + "."  # fmt: skip
    return task["images"], prompt_of("answer", question=task["question"]), tagged(thought, said)


def drill(q: Question, rng: random.Random) -> Lesson:
    """One step of a puzzle alone, in a few tokens: a denser signal, as "Which cell holds the ...?" is for questions."""
    picture, thing = render(q.scene), rng.choice(q.scene.things)
    kind = rng.choice(("second", "part", "crop"))
    if kind == "second":
        task = puzzles.rotation(picture, rng)
        ask = f"Which cell of the second picture holds the {thing.color} {thing.shape}?"
        return task["images"], ask, f"{turned_cell(thing.cell, int(task['answer']))}."
    if kind == "part":
        task, place = puzzles.jigsaw(picture, rng), rng.randrange(4)
        part = task["answer"].split(",")[place]
        return task["images"], f"Which picture is the {puzzles.QUADRANTS[place]} part?", f"{part}."
    task = puzzles.position(picture, rng)
    return task["images"][1:], "Which part of a picture is this?", f"{task['answer']}."


def overlap(a: tuple[int, ...], b: tuple[int, ...]) -> int:
    """Shared pixels of two boxes."""
    return max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))

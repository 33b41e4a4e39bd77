"""Benchmarks in the layout in which they were published: NLVR and PuzzleVQA."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from common.data import Sample, hash_fraction
from common.errors import SightRLError, bad_row
from common.readers.shared import Options, folder_of, in_split, json_rows, lettered, locate, picture_key, shown, wrap
from common.readers.splits import official_part

# ------------------------------------------------------------------------------------------------------- NLVR
# Picture k of an example shows its three boxes in this order (checked against the published pictures).
BOX_ORDERS = list(itertools.permutations(range(3)))
SIDES = ("left", "middle", "right")
COLORS = {"#0099ff": "blue", "yellow": "yellow", "black": "black"}
SIZES = {10: "small", 20: "medium", 30: "large"}  # pixels
Thing = dict[str, Any]  # color, shape, size (pixels), x, y (of the upper left corner within its box of 100 x 100)


def nlvr_things(box: list[dict[str, Any]]) -> list[Thing]:
    """Objects of one grey box, from left to right. Raises KeyError, TypeError or AttributeError."""
    names = {"shape": "type", "size": "size", "x": "x_loc", "y": "y_loc"}
    things = [{"color": COLORS[t["color"].lower()]} | {k: t[v] for k, v in names.items()} for t in box]
    return sorted(things, key=lambda t: (t["x"], t["y"]))


def nlvr_description(boxes: list[list[Thing]]) -> str:
    """The left box has a small blue circle and a large black square. The middle box is empty. ..."""
    sentences = []
    for side, things in zip(SIDES, boxes, strict=True):
        names = [f"a {SIZES[t['size']]} {t['color']} {t['shape']}" for t in things]
        listing = ", ".join(names[:-1]) + " and " + names[-1] if len(names) > 1 else "".join(names)
        sentences.append(f"The {side} box has {listing}." if names else f"The {side} box is empty.")
    return " ".join(sentences)


def overlap(a: Thing, b: Thing) -> bool:
    """Whether two objects of a box overlap, so that counting them by eye is not certain."""
    return all(a[k] < b[k] + b["size"] and b[k] < a[k] + a["size"] for k in ("x", "y"))


# kind, question, answer, answer type, thought
Asked = tuple[str, str, str, str, str]


def counting_questions(boxes: list[list[Thing]], pick: Callable[[str, Sequence[str]], str]) -> Iterator[Asked]:
    """How many of a colour, of a shape, in a box; nothing if objects overlap."""
    if any(overlap(a, b) for box in boxes for a, b in itertools.combinations(box, 2)):
        return
    color = pick("color", sorted(COLORS.values()))
    shape = pick("shape", ("circle", "square", "triangle"))
    for key, value, what in (("color", color, f"{color} objects"), ("shape", shape, f"{shape}s")):
        counts = [sum(t[key] == value for t in box) for box in boxes]
        total = str(sum(counts))
        question = f"How many {what} are there in the three grey boxes together?"
        thought = f"From the left box to the right, {what}: {' + '.join(map(str, counts))} = {total}."
        yield f"count_{key}", question, total, "number", thought
    side = pick("side", SIDES)
    inside = boxes[SIDES.index(side)]
    names = ", ".join(f"a {t['color']} {t['shape']}" for t in inside) or "nothing"
    thought = f"The {side} box holds {names}: that makes {len(inside)}."
    yield "count_box", f"How many objects are in the {side} grey box?", str(len(inside)), "number", thought


def naming_questions(boxes: list[list[Thing]], pick: Callable[[str, Sequence[str]], str]) -> Iterator[Asked]:
    """The colour of a shape that occurs once, and the box of a coloured shape that occurs once."""
    things = [(t["color"], t["shape"], side) for side, box in zip(SIDES, boxes, strict=True) for t in box]
    shapes = [shape for _, shape, _ in things]
    if unique := sorted(shape for shape in shapes if shapes.count(shape) == 1):
        shape = pick("unique_shape", unique)
        color = next(c for c, s, _ in things if s == shape)
        question = f"What is the color of the only {shape}: black, blue or yellow?"
        yield "color_of", question, color, "text", f"There is one {shape}, and it is {color}."
    names = [f"{color} {shape}" for color, shape, _ in things]
    if unique := sorted(name for name in names if names.count(name) == 1):
        name = pick("unique_thing", unique)
        side = things[names.index(name)][2]
        question = f"In which grey box is the only {name}: left, middle or right?"
        yield "where_is", question, side, "text", f"The only {name} is in the {side} box."


def nlvr_samples(row: dict[str, Any], split_dir: Path, options: Options, where: str) -> list[Sample]:
    """Six sentence questions, one per picture, and perception questions, each about one of the pictures.

    Raises SightRLError.
    """
    try:
        name, sentence, directory = (str(row[key]).strip() for key in ("identifier", "sentence", "directory"))
        label = {"true": "true", "false": "false"}[str(row["label"]).lower()]
        first, second, third = (nlvr_things(box) for box in row["structured_rep"])
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise bad_row(
            f"{where} is no NLVR example ({shown(f'{type(error).__name__}: {error}')})", "fetch the file again"
        ) from None
    samples = []
    for k, order in enumerate(BOX_ORDERS):
        file = locate(f"images/{directory}/{split_dir.name}-{name}-{k}.png", split_dir, options, where)
        boxes = [(first, second, third)[i] for i in order]
        known = {"boxes": boxes, "sentence": sentence, "caption": nlvr_description(boxes)}
        question = f'Is this statement about the picture true or false? "{sentence}"'
        thought = f"{known['caption']} So the statement is {label}."
        asked: list[Asked] = [("sentence", question, label, "yesno", thought)]
        pick = picker(f"{name}-{k}")
        for perception in (*counting_questions(boxes, pick), *naming_questions(boxes, pick)):
            asked += [perception] if int(6 * hash_fraction(f"{name}:{perception[0]}")) == k else []
        for kind, question, answer, answer_type, thought in asked:
            meta = known | {"response": wrap(thought, answer)}
            samples.append(Sample(f"{name}-{k}:{kind}", question, answer, kind, [file], answer_type, meta, where))
    return samples


def picker(name: str) -> Callable[[str, Sequence[str]], str]:
    """Chooses by the hash of a picture's name, so that the same question is asked every time."""
    return lambda kind, options: options[int(len(options) * hash_fraction(f"{name}:{kind}:pick"))]


def scene_key(row: Any) -> str:
    """The same for examples that show the same three boxes in any order; "" for what is no example."""
    boxes = row.get("structured_rep") if isinstance(row, dict) else None
    if not isinstance(boxes, list) or not all(isinstance(box, list) for box in boxes):
        return ""
    return "|".join(sorted(str(sorted(json.dumps(thing, sort_keys=True) for thing in box)) for box in boxes))


def is_held_out(row: Any) -> bool:
    """Whether an example of the development folder belongs to the test split: directories 4 and 5."""
    return isinstance(row, dict) and str(row.get("directory")) in ("4", "5")


def read_nlvr(place: str, options: Options) -> tuple[list[Sample], list[str]]:
    """nlvr:DIR: Cornell NLVR as published: train/, dev/, test/, each with a JSON file and images/.

    With several of these folders they are the splits (dev is val). With one, its directories 0-3 are train
    and 4-5 test, val is cut from train by presentation (the first number of the identifier), and scenes of
    test are left out of train and val. The six orders of a picture always stay together.
    """
    folder = folder_of(place, "the NLVR repository")
    files = {f.stem: f for name in ("train", "dev", "test") if (f := folder / name / f"{name}.json").is_file()}
    if not files:
        raise SightRLError(f"{folder} has no dev/dev.json or train/train.json; give the folder of NLVR.")
    alone = len(files) == 1
    part, shares = next(iter(files)), {} if options.split == "test" else {"val": 0.05}
    if not alone:
        part, shares = official_part(list(files), options.split, str(folder))
    rows = [(where, row) for where, _, row in json_rows(files[part])]
    tested = {scene_key(row) for _, row in rows if alone and is_held_out(row)}
    samples, keys = [], []
    for where, row in rows:
        if alone and is_held_out(row) != (options.split == "test") and not isinstance(row, SightRLError):
            continue
        if options.split != "test" and scene_key(row) in tested:
            options.notes.append(f"{where}: the same scene is in the test split, so it is left out of train and val.")
            continue
        try:
            if isinstance(row, SightRLError):
                raise row
            new = nlvr_samples(row, files[part].parent, options, where)
        except SightRLError as error:
            options.leave_out(error)
            continue
        samples += new
        keys += [str(row["identifier"]).split("-")[0]] * len(new)
    chosen = in_split(samples, keys, options.split, shares)
    return chosen, [sample.task for sample in chosen]


# -------------------------------------------------------------------------------------------------- PuzzleVQA
def puzzle_sample(row: dict[str, Any], folder: Path, pattern: str, options: Options, where: str) -> Sample:
    """One puzzle as a lettered multiple-choice question. Raises SightRLError."""
    try:
        choices = [str(choice) for choice in row["options"]]
        answer = str(row["answer"])  # both may be numbers or text
        letter = chr(65 + choices.index(answer))
        texts = {key: str(row[key]).strip() for key in ("caption", "explanation", "deduction")}
        question = f"{row['question']}\n{lettered(choices)}\nAnswer with the letter of the right option."
        image = str(row["image"])
    except (KeyError, TypeError, ValueError) as error:
        problem = f"{where} is no PuzzleVQA puzzle ({shown(f'{type(error).__name__}: {error}')})"
        raise bad_row(problem, "fetch the file again") from None
    path = locate(image, folder, options, where)
    meta = texts | {"choices": choices, "chance": 1 / len(choices), "answer_text": answer}
    meta["response"] = wrap(" ".join(texts.values()), letter)
    return Sample(path.stem, question, letter, pattern, [path], "option", meta, where)


def read_puzzles(folder: Path, options: Options) -> Iterator[tuple[bool, Sample]]:
    """(is it test?, sample) of every puzzle: numbers 0-39 of a pattern are for training."""
    for file in sorted(folder.glob("*.json")):
        for where, _, row in json_rows(file):
            try:
                if isinstance(row, SightRLError):
                    raise row
                sample = puzzle_sample(row, folder, file.stem, options, where)
            except SightRLError as error:
                options.leave_out(error)
                continue
            number = re.search(r"[0-9]{1,9}$", sample.id)
            yield number is not None and int(number.group()) >= 40, sample


def read_puzzlevqa(place: str, options: Options) -> tuple[list[Sample], list[str]]:
    """puzzlevqa:DIR: PuzzleVQA as published, DIR/data/<pattern>.json and images/<pattern>/*.png.

    Of every pattern, puzzles 0-39 are train (val is cut from them by picture) and 40 onwards test. Some
    puzzles show the same picture: those of train and val that also occur in test are left out.
    """
    folder = folder_of(place, "the PuzzleVQA repository")
    folder = folder / "data" if (folder / "data").is_dir() else folder
    if not any(folder.glob("*.json")):
        raise SightRLError(f"{folder} has no pattern files such as venn.json; give the folder of PuzzleVQA.")
    puzzles = list(read_puzzles(folder, options))
    test = [sample for held_out, sample in puzzles if held_out]
    if options.split == "test":
        return test, [sample.task for sample in test]
    tested = {picture_key(sample.images[0].read_bytes()) for sample in test}
    samples, keys = [], []
    for sample in (sample for held_out, sample in puzzles if not held_out):
        key = picture_key(sample.images[0].read_bytes())
        if key in tested:
            note = f"the picture of {sample.id} is also in the test split, so it is left out of train and val"
            options.notes.append(f"{sample.where}: {note}.")
            continue
        samples.append(sample)
        keys.append(key)
    chosen = in_split(samples, keys, options.split, {"val": 0.05})
    return chosen, [sample.task for sample in chosen]

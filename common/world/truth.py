"""What else a scene can tell: captions (true or with one injected error), relations, distractors, damaged pictures.

Methods need these as supervision: ViCrit the injected error with its span, PEARL the sub-questions (in
questions.py), Perception-R1 the visual annotations, SSL4RL the rotated pictures, VPPO and VOGUE the damaged ones.
"""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass

import numpy as np
from PIL import Image, ImageFilter

from common.world.habits import describe
from common.world.questions import DIRECTIONS, neighbor_cell
from common.world.scene import COLOR_NAMES, SHAPES, Scene, Thing

DAMAGES = ("patches", "noise", "blur", "grey")


@dataclass
class WrongCaption:
    """A caption with one false word. text[start:end] == wrong; the truth is `right`, about the thing at `cell`."""

    text: str
    start: int
    end: int
    wrong: str
    right: str
    cell: str
    kind: str  # "color", "shape", "size" or "number"


def caption(scene: Scene) -> str:
    return describe(scene.things)


def caption_with_error(scene: Scene, rng: random.Random) -> WrongCaption:
    """The complete caption with one attribute of one thing replaced by a false value.

    Raises ValueError for a scene without things.
    """
    if not scene.things:
        raise ValueError("a caption error needs a scene with at least one thing")
    index = rng.randrange(len(scene.things))
    thing, kind = scene.things[index], rng.choice(("color", "shape", "size", "number"))
    values = {"color": COLOR_NAMES, "shape": SHAPES, "size": ("small", "large"), "number": tuple(range(10))}[kind]
    right = str(getattr(thing, kind))
    wrong = str(rng.choice([v for v in values if str(v) != right]))
    words = [thing.cell, thing.size, thing.color, thing.shape, str(thing.number)]
    position = {"size": 1, "color": 2, "shape": 3, "number": 4}[kind]
    before = "".join(f"{t.cell} {t.size} {t}, " for t in scene.things[:index])
    start = len(before) + sum(len(w) + 1 for w in words[:position])
    full = caption(scene)
    return WrongCaption(full[:start] + wrong + full[start + len(right) :], start, start + len(wrong), wrong, right,
                        thing.cell, kind)  # fmt: skip


def relations(scene: Scene) -> list[tuple[str, str, str]]:
    """(cell, relation, cell) for every pair of things in neighbouring cells: ("c2", "right of", "b2")."""
    taken = {t.cell for t in scene.things}
    pairs = ((t.cell, name, neighbor_cell(t.cell, name)) for t in scene.things for name in sorted(DIRECTIONS))
    return [(near, name, cell) for cell, name, near in pairs if near in taken]


def distractors(scene: Scene, rng: random.Random, n: int = 3) -> list[str]:
    """n false statements in the caption's form, each wrong in one attribute of one thing.

    Raises ValueError for a scene without things.
    """
    wrong = (caption_with_error(scene, rng) for _ in range(n))
    return [next(part for part in w.text.rstrip(".").split(", ") if part.startswith(w.cell)) for w in wrong]


def damage(picture: Image.Image, kind: str, rng: random.Random, strength: float = 0.5) -> Image.Image:
    """A degraded copy: "patches" blackens 14-pixel cells with probability `strength`; "noise" adds Gaussian noise of
    378 x strength; "blur" uses a radius of 12 x strength; "grey" fades towards mid grey by `strength`.

    Raises KeyError for another kind.
    """
    pixels = np.asarray(picture.convert("RGB")).astype(np.float32)  # [H, W, 3]
    generator = np.random.default_rng(rng.getrandbits(32))
    if kind == "patches":
        rows, columns = -(-pixels.shape[0] // 14), -(-pixels.shape[1] // 14)
        keep = generator.random((rows, columns)) >= strength
        pixels *= np.kron(keep, np.ones((14, 14)))[: pixels.shape[0], : pixels.shape[1], None]
    elif kind == "noise":
        pixels += generator.normal(0, 378 * strength, pixels.shape)
    elif kind == "blur":
        return picture.filter(ImageFilter.GaussianBlur(12 * strength))
    elif kind == "grey":
        pixels += strength * (128 - pixels)
    else:
        raise KeyError(f"unknown damage {kind!r}; known: {', '.join(DAMAGES)}")
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def rotated(picture: Image.Image, rng: random.Random) -> tuple[Image.Image, int]:
    """The picture turned by 0, 90, 180 or 270 degrees counter-clockwise, with the label."""
    degrees = rng.choice((0, 90, 180, 270))
    return picture.rotate(degrees, expand=True), degrees


def thing_record(thing: Thing) -> dict:
    """A thing as plain JSON values."""
    return asdict(thing) | {"box": list(thing.box)}

"""Scenes of the micro-world: coloured shapes with numbers on them, in a 4 x 4 grid of 28-pixel cells.

One cell is one visual token of a Qwen2.5-VL (14-pixel patches, 2 x 2 merge), so a scene costs 16 visual tokens, and
what a model must see (which cell, which colour, which digit) is known for every pixel. Cells are named like a chess
board: columns a-d from the left, rows 1-4 from the top.

Answers follow a prior in training (circles tend to be red, ...): a model can do well without looking. The
"counter" prior shifts every tendency, so that guessing without looking is punished there and nowhere else.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

CELL = 28  # pixels; 4 x 4 cells make the picture
GRID = 4
SIDE = CELL * GRID  # 112 pixels
COLORS = {
    "red": (214, 39, 40), "green": (44, 160, 44), "blue": (31, 97, 210), "yellow": (250, 210, 40),
    "purple": (140, 60, 180), "orange": (255, 127, 14), "cyan": (40, 200, 215), "gray": (120, 120, 120),
}  # fmt: skip
SHAPES = ("circle", "square", "triangle", "star", "diamond", "cross")
SIZES = {"small": 17, "large": 24}  # pixels across
COLOR_NAMES = tuple(COLORS)
RAMP = np.linspace(0, 1, SIDE)  # [112]
SHADES = np.broadcast_arrays(-60 * (1 - RAMP), -60 * (1 - RAMP[:, None]), -60 * RAMP)  # 3 x [112, 112]
SHADING = np.round(np.stack(SHADES, axis=-1)).astype(np.int16)  # red grows to the right, green down, blue to the left
CELLS = tuple(f"{'abcd'[column]}{row + 1}" for row in range(GRID) for column in range(GRID))  # reading order

# Colour-shape pairs that no training, validation or plain test scene ever shows: the "combo" split is about them.
HELD_OUT = frozenset({("purple", "star"), ("green", "triangle"), ("orange", "circle"), ("blue", "diamond"),
                      ("red", "cross"), ("cyan", "square")})  # fmt: skip
TYPICAL_WEIGHT = 8.0  # a typical attribute is this many times as likely as any other one


@dataclass(frozen=True)
class Thing:
    """One object. box = (x1, y1, x2, y2) in pixels, exclusive at the lower right; cell like "b3"."""

    color: str
    shape: str
    size: str
    number: int
    cell: str
    box: tuple[int, int, int, int]

    def __str__(self) -> str:
        return f"{self.color} {self.shape} {self.number}"


@dataclass
class Scene:
    """Things in reading order (left to right, top to bottom) on a light background."""

    things: list[Thing]
    background: tuple[int, int, int] = (245, 245, 245)
    prior: str = "train"
    extra: dict = field(default_factory=dict)

    def select(self, **attributes: str | int) -> list[Thing]:
        """Things with all the given attributes, in reading order."""
        return [t for t in self.things if all(getattr(t, k) == v for k, v in attributes.items())]

    def at(self, cell: str) -> Thing | None:
        return next((t for t in self.things if t.cell == cell), None)


# ---------------------------------------------------------------------------------------------- what is typical
def typical_shift(prior: str) -> int:
    return {"train": 0, "counter": 1}[prior]


def typical_color(shape: str, prior: str) -> str:
    """The colour that shapes of this kind tend to have under a prior ("train" or "counter")."""
    order = ("red", "blue", "yellow", "green", "gray", "purple")
    return order[(SHAPES.index(shape) + 4 * typical_shift(prior)) % len(order)]


def typical_shape(color: str, prior: str) -> str:
    """The most likely shape of a colour, the inverse of typical_color; colours without one lean to squares or stars."""
    for shape in SHAPES:
        if typical_color(shape, prior) == color:
            return shape
    return ("square", "star", "circle", "triangle")[(COLOR_NAMES.index(color) + typical_shift(prior)) % 2]


def typical_number(shape: str, prior: str) -> int:
    return (1 + 3 * SHAPES.index(shape) + 5 * typical_shift(prior)) % 10


def typical_count(kind: str, prior: str) -> int:
    """1-4: how many things of a colour or of a shape a counting scene tends to show."""
    index = (COLOR_NAMES + SHAPES).index(kind)
    return 1 + (index + 2 * typical_shift(prior)) % 4


def typical_neighbor(color: str, prior: str) -> str:
    return COLOR_NAMES[(COLOR_NAMES.index(color) + 3 + 2 * typical_shift(prior)) % len(COLOR_NAMES)]


def typical_cell(shape: str, prior: str) -> str:
    return CELLS[(5 + 2 * SHAPES.index(shape) + 7 * typical_shift(prior)) % len(CELLS)]


def typical_sum(color: str, prior: str) -> int:
    return 5 + (COLOR_NAMES.index(color) + 4 * typical_shift(prior)) % 8


def biased(rng: random.Random, options: tuple, typical: object, weight: float = TYPICAL_WEIGHT) -> object:
    """One of the options, the typical one `weight` times as likely as each of the others."""
    return rng.choices(options, [weight if option == typical else 1.0 for option in options])[0]


# ---------------------------------------------------------------------------------------------- making scenes
def random_kind(rng: random.Random, prior: str) -> tuple[str, str]:
    """(colour, shape) under the prior, never a held-out pair."""
    while True:
        shape = rng.choice(SHAPES)
        color = biased(rng, COLOR_NAMES, typical_color(shape, prior))
        if (color, shape) not in HELD_OUT:
            return color, shape


def place(rng: random.Random, color: str, shape: str, cell: str, prior: str, number: int | None = None,
          size: str | None = None) -> Thing:  # fmt: skip
    """A thing in a cell, at a random offset that keeps it inside the cell."""
    size = size or rng.choice(("small", "large"))
    if number is None:
        number = biased(rng, tuple(range(10)), typical_number(shape, prior))
    width, slack = SIZES[size], CELL - SIZES[size] - 2
    x1 = CELL * "abcd".index(cell[0]) + 1 + rng.randint(0, slack)
    y1 = CELL * (int(cell[1]) - 1) + 1 + rng.randint(0, slack)
    return Thing(color, shape, size, number, cell, (x1, y1, x1 + width, y1 + width))


def finish_scene(rng: random.Random, things: list[Thing], prior: str, total: int,
                 allowed: Callable[[str, str], bool] = lambda c, s: True,
                 keep_free: tuple[str, ...] = ()) -> Scene:  # fmt: skip
    """Fill up to `total` things with random ones for which allowed(color, shape) holds, in free cells."""
    taken = {t.cell for t in things} | set(keep_free)
    free = [cell for cell in CELLS if cell not in taken]
    rng.shuffle(free)
    while len(things) < total and free:
        color, shape = random_kind(rng, prior)
        if allowed(color, shape):
            things.append(place(rng, color, shape, free.pop(), prior))
    shade = rng.randint(232, 255)
    background = (shade, max(228, shade - rng.randint(0, 8)), max(228, shade - rng.randint(0, 8)))
    return Scene(sorted(things, key=lambda t: CELLS.index(t.cell)), background, prior)


# ---------------------------------------------------------------------------------------------- drawing
def outline(shape: str, width: int) -> list[tuple[float, float]]:
    """Corner points of a polygonal shape in a width x width box."""
    middle, r = width / 2, width / 2
    if shape == "square":
        inset = width * 0.08
        return [(inset, inset), (width - inset, inset), (width - inset, width - inset), (inset, width - inset)]
    if shape == "diamond":
        return [(middle, 0), (width, middle), (middle, width), (0, middle)]
    if shape == "triangle":
        return [(middle, 0), (width, width), (0, width)]
    if shape == "star":
        spokes = [(r if i % 2 == 0 else r * 0.5, math.pi * i / 5 - math.pi / 2) for i in range(10)]
        return [(middle + s * math.cos(a), middle + s * math.sin(a)) for s, a in spokes]
    arm = width * 0.28  # cross
    lo, hi = arm, width - arm
    return [(lo, 0), (hi, 0), (hi, lo), (width, lo), (width, hi), (hi, hi), (hi, width), (lo, width), (lo, hi),
            (0, hi), (0, lo), (lo, lo)]  # fmt: skip


@cache
def sprite(color: str, shape: str, size: str, number: int) -> Image.Image:
    """The antialiased RGBA picture of a thing, drawn once at four times the size and kept."""
    scale, width = 4, SIZES[size]
    big = Image.new("RGBA", (width * scale, width * scale), (*COLORS[color], 0))
    pen = ImageDraw.Draw(big)
    if shape == "circle":
        pen.ellipse((0, 0, width * scale - 1, width * scale - 1), fill=(*COLORS[color], 255))
    else:
        pen.polygon([(x * scale, y * scale) for x, y in outline(shape, width)], fill=(*COLORS[color], 255))
    font = ImageFont.load_default(16 * scale if size == "large" else 13 * scale)
    lower = 0.62 if shape == "triangle" else 0.5  # a triangle has its room below the middle
    pen.text((width * scale / 2, width * scale * lower), str(number), anchor="mm", font=font, fill=(255, 255, 255, 255),
             stroke_width=3, stroke_fill=(20, 20, 20, 255))  # fmt: skip
    return big.resize((width, width), Image.Resampling.LANCZOS)


def backdrop(background: tuple[int, int, int]) -> np.ndarray:
    """uint8 [112, 112, 3]: the background colour, shaded so that every patch can tell where it is.

    A Qwen2.5-VL vision tower has relative positions only: on a plain background the tiny VLM learned to read a named
    cell, but not, in 1,900 steps, to say in which cell a named object is.
    """
    return (np.array(background, dtype=np.int16) + SHADING).clip(0, 255).astype(np.uint8)


def render(scene: Scene) -> Image.Image:
    """The scene as a 112 x 112 RGB picture."""
    picture = Image.fromarray(backdrop(scene.background))
    for thing in scene.things:
        drawing = sprite(thing.color, thing.shape, thing.size, thing.number)
        picture.paste(drawing, thing.box[:2], drawing)
    return picture

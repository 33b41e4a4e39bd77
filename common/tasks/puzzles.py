"""Puzzles made of any picture, whose answers nobody has to label: rotation, jigsaw, position, contrastive.

Each builder returns {"images": [PIL, ...], "question", "answer"}, decided by rng alone. They are the four tasks of
SSL4RL (arXiv 2510.16416, github PKU-ML/SSL4RL); the tiny VLM was taught to answer them too.
"""

from __future__ import annotations

import math
import random

from PIL import Image, ImageEnhance, ImageFilter, ImageOps

TASKS = ("rotation", "jigsaw", "position", "contrastive")
QUADRANTS = ("top-left", "top-right", "bottom-left", "bottom-right")
SMALLEST = 28  # pixels: one visual token of a Qwen-VL model
LEAKY = (154, 98)  # sides of 5.5 and 3.5 tokens, rounded to 6 and 4: with crop, every angle has its own grid of tokens
TURNS = {90: Image.Transpose.ROTATE_90, 180: Image.Transpose.ROTATE_180, 270: Image.Transpose.ROTATE_270}


def make(task: str, image: Image.Image, other: Image.Image, rng: random.Random, grid: int = 2,
         size_leak: bool = False) -> dict | None:  # fmt: skip
    """The puzzle of that name (one of TASKS); None when the pictures are too small, or the same for contrastive.

    size_leak: rotation with crop, of a picture that is stretched if it is a square.
    """
    if task == "rotation":
        square = image.width == image.height
        return rotation(image.resize(LEAKY) if size_leak and square else image, rng, crop=size_leak)
    if task == "jigsaw":
        return jigsaw(image, rng, grid)
    if task == "position":
        return position(image, rng)
    return contrastive(image, other, rng) if image != other else None


def rotation(image: Image.Image, rng: random.Random, crop: bool = False) -> dict | None:
    """The picture and a copy turned counter-clockwise by 0, 90, 180 or 270 degrees; answer: the degrees.

    crop: cut the copy to its largest upright rectangle, as the official builder does although nothing needs cutting,
    and return None when less than 28 pixels are left. The size of the copy then tells the angle.
    """
    degrees = rng.choice((0, 90, 180, 270))
    turned = image.transpose(TURNS[degrees]) if degrees else image.copy()
    if crop:
        width, height = largest_rectangle(*image.size, degrees)
        if min(width, height) < SMALLEST:
            return None
        x, y = (turned.width - width) // 2, (turned.height - height) // 2
        turned = turned.crop((x, y, x + width, y + height))
    return {"images": [image, turned], "answer": str(degrees),
            "question": "The second picture is the first one turned counter-clockwise. By how many degrees: "
                        "0, 90, 180 or 270?"}  # fmt: skip


def largest_rectangle(width: int, height: int, degrees: float) -> tuple[int, int]:
    """Width and height of the largest upright rectangle inside a width x height picture turned by some degrees.

    Fractions are cut off: the sine of 180 degrees is 1e-16 and not 0 here, so quarter turns may lose a pixel.

    >>> [largest_rectangle(200, 120, degrees) for degrees in (0, 90, 180, 270)]
    [(200, 120), (119, 200), (199, 119), (119, 199)]
    """
    sin, cos = abs(math.sin(math.radians(degrees))), abs(math.cos(math.radians(degrees)))
    long, short = max(width, height), min(width, height)
    if short <= 2 * sin * cos * long or abs(sin - cos) < 1e-10:  # two corners touch the long sides
        half = short / 2
        sides = (half / sin, half / cos) if width >= height else (half / cos, half / sin)
    else:  # all four corners touch a side
        scale = cos * cos - sin * sin
        sides = (width * cos - height * sin) / scale, (height * cos - width * sin) / scale
    return int(sides[0]), int(sides[1])


def jigsaw(image: Image.Image, rng: random.Random, grid: int = 2) -> dict | None:
    """The grid x grid parts in random order; answer: for each place, row by row, the number of the part shown.

    None when the picture has fewer pixels than parts along a side.
    """
    order = rng.sample(range(grid * grid), grid * grid)
    if min(image.size) < grid:
        return None
    parts, answer = cut_up(image, order, grid)
    return {"images": parts, "answer": answer,
            "question": "The pictures are the parts of one picture in random order. For each place, row by row, "
                        "give the number of the part, separated by commas."}  # fmt: skip


def cut_up(image: Image.Image, order: list[int], grid: int) -> tuple[list[Image.Image], str]:
    """The parts, number k + 1 from place order[k] (places count from 0, row by row), and the answer.

    >>> cut_up(Image.new("RGB", (200, 120)), [2, 0, 1, 3], 2)[1]
    '2,3,1,4'
    """
    width, height = image.width // grid, image.height // grid
    corners = [(place % grid * width, place // grid * height) for place in order]
    parts = [image.crop((x, y, x + width, y + height)) for x, y in corners]
    return parts, ",".join(str(order.index(place) + 1) for place in range(grid * grid))


def position(image: Image.Image, rng: random.Random) -> dict | None:
    """The picture and a crop out of one quadrant; answer: which. None when the picture is too small."""
    column, row = rng.randrange(2), rng.randrange(2)
    half = image.width // 2, image.height // 2
    sizes = [(max(SMALLEST, round(0.2 * side)), int(0.8 * side)) for side in half]
    if any(low > high for low, high in sizes):
        return None
    width, height = (rng.randint(low, high) for low, high in sizes)
    x = column * half[0] + rng.randint(0, half[0] - width)
    y = row * half[1] + rng.randint(0, half[1] - height)
    return {"images": [image, image.crop((x, y, x + width, y + height))], "answer": QUADRANTS[2 * row + column],
            "box": (x, y, x + width, y + height),
            "question": "The second picture is a part of the first one. Where does it come from: top-left, top-right, "
                        "bottom-left or bottom-right?"}  # fmt: skip


def contrastive(image: Image.Image, other: Image.Image, rng: random.Random) -> dict:
    """Two augmented views of one picture (answer positive) or of two (negative), equally often, of one size.

    That is 224 x 224 as published, but never larger than the pictures are.
    """
    same, size = rng.random() < 0.5, min(224, *image.size, *other.size)
    views = [augmented(image, rng, size), augmented(image if same else other, rng, size)]
    return {"images": views, "answer": "positive" if same else "negative",
            "question": "Are both pictures views of the same picture? Answer positive or negative."}  # fmt: skip


def augmented(image: Image.Image, rng: random.Random, size: int) -> Image.Image:
    """A random size x size view: 8 to 100 % of the area, colours (p 0.8), grey (0.2), blur (0.5), mirrored (0.5)."""
    area, aspect = image.width * image.height * rng.uniform(0.08, 1.0), rng.uniform(3 / 4, 4 / 3)
    width = min(image.width, max(1, round((area * aspect) ** 0.5)))
    height = min(image.height, max(1, round((area / aspect) ** 0.5)))
    x, y = rng.randint(0, image.width - width), rng.randint(0, image.height - height)
    view = image.crop((x, y, x + width, y + height)).resize((size, size), Image.Resampling.BICUBIC)
    if rng.random() < 0.8:
        for change in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
            view = change(view).enhance(rng.uniform(0.6, 1.4))
    if rng.random() < 0.2:
        view = ImageOps.grayscale(view).convert("RGB")
    if rng.random() < 0.5:
        view = view.filter(ImageFilter.GaussianBlur(rng.uniform(0.1, 2.0) * size / 224))
    return ImageOps.mirror(view) if rng.random() < 0.5 else view

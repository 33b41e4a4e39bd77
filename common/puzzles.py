"""Puzzles made of any picture, whose answers nobody has to label: rotation, jigsaw, position, contrastive.

Each builder returns {"images": [PIL, ...], "question", "answer"}, decided by rng alone. They are the four tasks of
SSL4RL (arXiv 2510.16416, github PKU-ML/SSL4RL); the tiny VLM was taught to answer them too.
"""

from __future__ import annotations

import random

from PIL import Image, ImageEnhance, ImageFilter, ImageOps

QUADRANTS = ("top-left", "top-right", "bottom-left", "bottom-right")
SMALLEST = 28  # pixels: one visual token of a Qwen-VL model
TURNS = {90: Image.Transpose.ROTATE_90, 180: Image.Transpose.ROTATE_180, 270: Image.Transpose.ROTATE_270}


def rotation(image: Image.Image, rng: random.Random) -> dict:
    """The picture and a copy turned counter-clockwise by 0, 90, 180 or 270 degrees; answer: the degrees."""
    degrees = rng.choice((0, 90, 180, 270))
    turned = image.transpose(TURNS[degrees]) if degrees else image.copy()
    return {"images": [image, turned], "answer": str(degrees),
            "question": "The second picture is the first one turned counter-clockwise. By how many degrees: "
                        "0, 90, 180 or 270?"}  # fmt: skip


def jigsaw(image: Image.Image, rng: random.Random, grid: int = 2) -> dict:
    """The grid x grid parts in random order; answer: for each place, row by row, the number of the part shown."""
    width, height = image.width // grid, image.height // grid
    cells = [(column * width, row * height) for row in range(grid) for column in range(grid)]
    order = rng.sample(range(len(cells)), len(cells))  # part number k + 1 comes from place order[k]
    parts = [image.crop((x, y, x + width, y + height)) for x, y in (cells[place] for place in order)]
    answer = ",".join(str(order.index(place) + 1) for place in range(len(cells)))
    return {"images": parts, "answer": answer,
            "question": "The pictures are the parts of one picture in random order. For each place, row by row, "
                        "give the number of the part, separated by commas."}  # fmt: skip


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
    """Two augmented views of one picture (answer positive) or of two (negative), equally often."""
    same = rng.random() < 0.5
    views = [augmented(image, rng), augmented(image if same else other, rng)]
    return {"images": views, "answer": "positive" if same else "negative",
            "question": "Are both pictures views of the same picture? Answer positive or negative."}  # fmt: skip


def augmented(image: Image.Image, rng: random.Random, size: int = 224) -> Image.Image:
    """A random view: crop of 8 to 100 % of the area, colour jitter (p 0.8), grey (0.2), blur (0.5), mirrored (0.5)."""
    size = min(size, image.width, image.height)
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

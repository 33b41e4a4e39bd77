"""Boxes: in the columns of a row, with sizes of pictures and lists of texts, in responses, and their overlap.

What a row lacks or holds in another form raises SightRLError: one sentence with the column and what to do.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmark import Line, Row, cell, mean_line
from choices import literal, shown
from common.errors import SightRLError

SIZES = (("image_width", "image_height"), ("width", "height"))  # columns that benchmarks give sizes of pictures in
LEFT_OUT = ("picture_width", "picture_height")  # columns of predictions.jsonl, which has no pictures
TURNED = range(5, 9)  # EXIF orientations that swap width and height
THRESHOLDS = (0.1, 0.3, 0.5, 0.7, 0.9)  # of IoU, in lmms-eval's tables
DECIMAL = r"\d++(?:\.\d++)?+"  # in responses; possessive, for linear time
BETWEEN = r"(?:\s++(?:,\s*+)?|,\s*+)"  # two numbers: blanks with at most one comma, at least one character


def texts_cell(row: Row, column: str) -> list[str]:
    """A list of texts, at least one; it may be written as a Python list. A text that is none is a list of one."""
    value = cell(row, column)
    values = literal(value.strip()) if isinstance(value, str) and value.lstrip().startswith("[") else list_of(value)
    if isinstance(value, str) and not isinstance(values, list):
        return [value]
    if not isinstance(values, list) or not values or not all(isinstance(text, str) for text in values):
        raise SightRLError(f"column {column} holds {shown(value)}; it must be a list of texts.")
    return values


def box_cell(row: Row, column: str) -> tuple[float, ...]:
    """Four finite numbers: a list, or a text with nothing but four numbers and marks."""
    box = four_numbers(cell(row, column))
    if box is None:
        raise SightRLError(f"column {column} holds {shown(row[column])}; it must be a list of four numbers.")
    return box


def boxes_cell(row: Row, column: str) -> list[tuple[float, ...]]:
    """A list of boxes, perhaps empty."""
    values = list_of(cell(row, column))
    boxes = [four_numbers(box) for box in values] if isinstance(values, list) else [None]
    if None in boxes:
        raise SightRLError(f"column {column} holds {shown(row[column])}; it must be a list of lists of four numbers.")
    return [box for box in boxes if box is not None]


def four_numbers(value: Any) -> tuple[float, ...] | None:
    if isinstance(value, str):
        value = [float(number) for number in re.findall(r"-?[0-9]+(?:\.[0-9]+)?", value[:400])]
    numbers = list_of(value)
    if not isinstance(numbers, list) or len(numbers) != 4:
        return None
    sound = all(isinstance(v, (int, float)) and not isinstance(v, bool) and abs(v) < 1e9 for v in numbers)
    return tuple(float(v) for v in numbers) if sound else None


def list_of(value: Any) -> Any:
    """A list where it is one in another form (tuple, array); anything else as it is."""
    value = value.tolist() if hasattr(value, "tolist") else value
    return list(value) if isinstance(value, tuple) else value


def picture_size(row: Row, column: str = "image") -> tuple[float, float]:
    """Width and height: columns image_width and image_height, or width and height, or of the picture itself; where the
    row has lost it, columns picture_width and picture_height."""
    stated = (tuple(row.get(name) for name in names) for names in SIZES)
    left_out = tuple(row.get(name) for name in LEFT_OUT)
    for size in (*stated, size_of(row.get(column)), left_out):
        if size is not None and all(isinstance(side, (int, float)) and 0 < side < 1e6 for side in size):
            return float(size[0]), float(size[1])
    raise SightRLError(f"the size of the picture in column {column} is not known; give the rows with their pictures "
                       "(--data), or add the columns image_width and image_height.")  # fmt: skip


def size_of(picture: Any) -> Sequence[int] | None:
    """Width and height of an upright picture, without decoding it; None if it is none."""
    if isinstance(picture, dict):
        picture = picture.get("bytes") or picture.get("path")
    if not isinstance(picture, (Image.Image, bytes, str, Path)):
        return None
    try:
        if isinstance(picture, Image.Image):
            return upright_size(picture)
        with Image.open(io.BytesIO(picture) if isinstance(picture, bytes) else picture) as image:
            return upright_size(image)
    except Exception:  # Pillow raises nearly anything on damaged files
        return None


def upright_size(image: Image.Image) -> tuple[int, int]:
    width, height = image.size
    return (height, width) if image.getexif().get(0x0112) in TURNED else (width, height)


def iou_table(a: Any, b: Any) -> np.ndarray:
    """IoU of every box of a, [..., 4], with every one of b, [m, 4]: float64 [..., m]; 0 where boxes enclose nothing."""
    a, b = np.asarray(a, dtype=float)[..., None, :], np.asarray(b, dtype=float).reshape(-1, 4)
    with np.errstate(all="ignore"):  # boxes out of responses may be infinite
        sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
        shared = np.maximum(sides, 0.0).prod(axis=-1)
        areas = [np.maximum(box[..., 2:] - box[..., :2], 0.0).prod(axis=-1) for box in (a, b)]
        union = areas[0] + areas[1] - shared
        return np.nan_to_num(np.where((union > 0) & (shared > 0), shared / union, 0.0))


def iou_lines(overlaps: Sequence[float]) -> list[Line]:
    """Mean IoU and how often it reaches each threshold."""
    shares = [mean_line(f"ACC@{t}", [overlap >= t for overlap in overlaps]) for t in THRESHOLDS]
    return [mean_line("IoU", overlaps), *shares]


def finite(numbers: Sequence[float] | None) -> list[float] | None:
    """The numbers as plain JSON; None for None or if one of them is no finite number."""
    return list(numbers) if numbers is not None and all(math.isfinite(number) for number in numbers) else None

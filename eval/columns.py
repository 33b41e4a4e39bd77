"""What scorers read out of the columns of a row: texts, letters, numbers, lists, boxes, the size of a picture.

text(row, "question")                 # each raises SightRLError, a sentence with the column and what to do,
letter(row, "answer", "ABCD")         # where the row lacks the column or holds something else
picture_size(row)

benchmark.cell is the plainest of them: the column as it is, its type checked.
"""

from __future__ import annotations

import ast
import io
import re
import string
from collections.abc import Iterable, Sequence
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmark import Row, cell
from common.errors import SightRLError

SIZES = (("image_width", "image_height"), ("width", "height"))  # columns that benchmarks give sizes of pictures in
LEFT_OUT = ("picture_width", "picture_height")  # columns of predictions.jsonl, which has no pictures
TURNED = range(5, 9)  # EXIF orientations that swap width and height

# ---------------------------------------------------------------- texts, letters, numbers


def text(row: Row, name: str) -> str:
    """The column as text; numbers are written out. Raises SightRLError if it is missing, empty or something else."""
    value = cell(row, name)
    if isinstance(value, bool) or not isinstance(value, str | Real) or not str(value).strip():
        raise SightRLError(f"column {name} holds {shown(value)}, not text; take the published rows or correct it.")
    return str(value)


def whole(row: Row, name: str) -> int:
    """The column as a whole number, given as such or in digits."""
    value = text(row, name).strip()
    if not value.isascii() or not value.removeprefix("-").isdigit() or len(value) > 18:
        raise SightRLError(f"column {name} holds {shown(value)}; it must be a whole number.")
    return int(value)


def letter(row: Row, name: str, options: Iterable[str] = string.ascii_uppercase) -> str:
    """The column as the letter of an option, "(B)" and "b" too. Raises SightRLError for anything else."""
    value = text(row, name).strip().strip("()").upper()
    if value not in tuple(options):
        raise SightRLError(
            f"column {name} holds {shown(row[name])}, no letter of an option; take a split with answers."
        )
    return value


def literal(value: str) -> Any:
    """The Python literal in a text, None if it is none."""
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        return None


def shown(value: Any) -> str:
    return repr(value)[:60]


# ---------------------------------------------------------------- lists


def entries(row: Row, name: str) -> list[Any]:
    """The column as a list, given as a list, a tuple or an array."""
    return list(cell(row, name, list, tuple, np.ndarray))


def texts(row: Row, name: str) -> list[str]:
    """The column as a list of texts, given as such or written as a Python list; other items are written out."""
    value = row.get(name)
    if isinstance(value, str):
        value = literal(value)
    if not isinstance(value, list | tuple):
        raise SightRLError(f"column {name} holds {shown(row.get(name))}; it must be a list of texts.")
    return [str(item) for item in value]


def texts_cell(row: Row, column: str) -> list[str]:
    """A list of texts, at least one; it may be written as a Python list. A text that is none is a list of one."""
    value = cell(row, column)
    values = literal(value.strip()) if isinstance(value, str) and value.lstrip().startswith("[") else list_of(value)
    if isinstance(value, str) and not isinstance(values, list):
        return [value]
    if not isinstance(values, list) or not values or not all(isinstance(text, str) for text in values):
        raise SightRLError(f"column {column} holds {shown(value)}; it must be a list of texts.")
    return values


def list_of(value: Any) -> Any:
    """A list where it is one in another form (tuple, array); anything else as it is."""
    value = value.tolist() if hasattr(value, "tolist") else value
    return list(value) if isinstance(value, tuple) else value


# ---------------------------------------------------------------- boxes and pictures


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

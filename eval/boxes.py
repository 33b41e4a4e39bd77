"""Boxes in responses and their overlap with true ones: patterns of numbers, IoU, lmms-eval's lines of a table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmark import Line, mean_line

THRESHOLDS = (0.1, 0.3, 0.5, 0.7, 0.9)  # of IoU, in lmms-eval's tables
DECIMAL = r"\d++(?:\.\d++)?+"  # in responses; possessive, for linear time
BETWEEN = r"(?:\s++(?:,\s*+)?|,\s*+)"  # two numbers: blanks with at most one comma, at least one character


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

"""Boxes in the frame in which the model gives them.

Data have boxes in pixels of the original picture, Qwen2.5-VL writes pixels of the picture after the resize, Qwen2-VL
and Qwen3-VL thousandths of its sides. Comparing the two as they are gives an IoU near zero. Here is the one place where
a sample changes its frame; training.make_prompt calls it before anything is asked.
"""

from __future__ import annotations

import re

from PIL import Image

from common.data import Sample
from common.vlm import VLM

THOUSANDTHS = (1000, 1000)
IN_THOUSANDTHS = ("qwen2_vl", "qwen3_vl")
NUMBER = r"(-?[0-9]{1,7}(?:\.[0-9]{1,9})?)"
SPOT = re.compile(rf"([\[(]){NUMBER}(,\s?){NUMBER}(?:(,\s?){NUMBER}(,\s?){NUMBER})?([\])])")  # (x, y), [x1, y1, x2, y2]


def frame_of(vlm: VLM, image: Image.Image) -> tuple[int, int]:
    """(width, height) of the frame in which this model gives boxes on a picture."""
    return THOUSANDTHS if vlm.family in IN_THOUSANDTHS else vlm.pixels.size(image)


def put_in_frame(sample: Sample, vlm: VLM, images: list[Image.Image]) -> None:
    """Convert the answer and the supervised response of a question about boxes, in place; once is enough.

    Other questions, those with several pictures and the micro-world (where all counts in pixels of the scene) stay as
    they are; so does what the question says but for the words "in pixels". images: the sample's, before the resize.
    """
    boxes = sample.answer_type in ("box", "boxes")
    if len(images) != 1 or "things" in sample.meta or not (boxes or "boxes" in sample.meta):
        return
    old, new = sample.frame or images[0].size, frame_of(vlm, images[0])
    sample.frame = new
    if tuple(old) == new:
        return
    if "response" in sample.meta:
        sample.meta = sample.meta | {"response": convert(str(sample.meta["response"]), old, new)}
    if boxes:
        sample.answer = convert(sample.answer, old, new)
        unit = "from 0 to 1000" if new == THOUSANDTHS else "in pixels"
        sample.question = re.sub(r"\bin pixels\b|\bfrom 0 to 1000\b", unit, sample.question)


def convert(text: str, old: tuple[float, float], new: tuple[float, float]) -> str:
    """The text with every (x, y) and [x1, y1, x2, y2] in another frame, in whole numbers.

    >>> convert("at (32, 24): [64, 48, 128, 96]", (640, 480), (1000, 1000))
    'at (50, 50): [100, 100, 200, 200]'
    """

    def one(match: re.Match) -> str:
        parts = list(match.groups(default=""))  # bracket, x, comma, y, comma, x, comma, y, bracket
        for place, axis in ((1, 0), (3, 1), (5, 0), (7, 1)):
            if parts[place]:
                parts[place] = str(round(float(parts[place]) / old[axis] * new[axis]))
        return "".join(parts)

    return SPOT.sub(one, text)

"""python -m common.world --show 12: a contact sheet of scenes with their questions, to look at."""

from __future__ import annotations

import random
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro
from PIL import Image, ImageDraw, ImageFont

from common.world import make_question, pick_habit, render, response


@dataclass
class Args:
    show: int = 12
    """How many questions to draw."""
    split: Literal["train", "val", "test", "test_combo", "test_counter"] = "train"
    """Which split they come from."""
    start: int = 0
    """Number of the first question."""
    out: Path = Path("world.png")
    """Where the contact sheet is written."""


def contact_sheet(split: str, start: int, n: int, columns: int = 3) -> Image.Image:
    """Pictures (twice their size) with question, answer and one taught response each."""
    width, height, scale = 620, 250, 2
    sheet = Image.new("RGB", (columns * width, -(-n // columns) * height), "white")
    pen, font, small = ImageDraw.Draw(sheet), ImageFont.load_default(16), ImageFont.load_default(13)
    for i in range(n):
        q, x, y = make_question(split, start + i), (i % columns) * width, (i // columns) * height
        picture = render(q.scene)
        enlarged = picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)
        sheet.paste(enlarged, (x + 8, y + 12))
        pen.rectangle((x + 7, y + 11, x + 8 + 224, y + 12 + 224), outline="#999999")
        rng = random.Random(start + i)
        habit = pick_habit(q.family, rng)
        lines = textwrap.wrap(f"{i + start}. {q.question}", 44) + [f"answer: {q.answer}", ""]
        pen.multiline_text((x + 246, y + 12), "\n".join(lines), font=font, fill="black", spacing=5)
        said = "\n".join([f"taught ({habit}):", *textwrap.wrap(response(q, habit, rng), 54)])
        pen.multiline_text((x + 246, y + 110), said, font=small, fill="#335577", spacing=4)
    return sheet


if __name__ == "__main__":
    args = tyro.cli(Args, description=__doc__)
    contact_sheet(args.split, args.start, args.show).save(args.out)
    print(f"wrote {args.show} questions of the {args.split} split to {args.out}")

r"""Reading and grading answers. Model output is hostile text, and any string gets a verdict.

    response -> last_boxed -> grade_answer | option_letter | yes_no | parse_box -> 0.0 or 1.0 (accuracy)

No function raises on any text, runs code from it, or hangs. grade_answer lives in maths.py.
"""

from __future__ import annotations

import json
import re
import string
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.optimize import linear_sum_assignment

from common.maths import MAX_ANSWER, grade_answer, unwrap_text

if TYPE_CHECKING:
    from common.data import Sample

Box = tuple[float, float, float, float]  # x1, y1, x2, y2 with x1 < x2 and y1 < y2
MAX_BOXES = 300  # predictions read from one response; the rest is ignored


# ----------------------------------------------------------------------------------------- finding the answer
def last_boxed(text: str) -> str | None:
    r"""Content of the last \boxed{...}, stripped; None if there is none or its braces never close."""
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    depth = 0
    for brace in re.finditer(r"[{}]", text[start:]):
        depth += 1 if brace.group() == "{" else -1
        if depth == 0:
            return text[start + len("\\boxed{") : start + brace.start()].strip()
    return None


def block(text: str, tag: str) -> str | None:
    """Content of the first <tag>...</tag>, stripped; None if it is missing or never closes. Linear time.

    >>> block("<think>so</think> <answer> 3 </answer>", "answer")
    '3'
    """
    _, opened, rest = text.partition(f"<{tag}>")
    content, closed, _ = rest.partition(f"</{tag}>")
    return content.strip() if opened and closed else None


def answer_line(text: str) -> str:
    """Content of the first <answer> block that stands on one line, else all of the text, stripped: as R1-V and the many
    papers built on it read an answer, so a line break inside the block makes it unreadable. Linear time."""
    return next((part for line in text.split("\n") if (part := block(line, "answer")) is not None), text.strip())


def squeeze_tags(text: str) -> str:
    """Drop the white space around "<", ">" and "/", as VPPO's reward does before it looks for tags."""
    parts = re.split(r"([<>/])", text)  # text, mark, text, mark, ..., text
    for i in range(0, len(parts), 2):
        parts[i] = parts[i].lstrip() if i else parts[i]
        parts[i] = parts[i].rstrip() if i < len(parts) - 1 else parts[i]
    return "".join(parts)


def has_format(text: str) -> bool:
    r"""Whether the response is a think block with \boxed{...} anywhere after it: VPPO's format rule."""
    text = squeeze_tags(text)
    if not text.startswith("<think>"):
        return False
    closed = text.find("</think>")
    boxed = text.find("\\boxed{", closed) if closed >= 0 else -1
    return boxed >= 0 and "}" in text[boxed:]


def repetition(text: str, n: int) -> float:
    """Share of the n-grams of words that stood in the text before, in [0, 1); 0 for fewer than n words.

    >>> repetition("a b a b a b", 2)
    0.6
    """
    words = text.lower().split()
    grams = list(zip(*(words[i:] for i in range(n)), strict=False))
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def think_then_answer(text: str) -> bool:
    """Whether <think>.*?</think>\\s*<answer>.*?</answer> fits all of the text, line breaks too: the format rule of
    open-r1 and of the many papers that took it over. Linear time."""
    around = len(text) >= 16 and text.startswith("<think>") and text.endswith("</answer>")
    return around and re.search(r"</think>\s*<answer>", text[7:-9]) is not None


def parse_state(response: str) -> str:
    r"""How far reading got: "ok", "empty" (\boxed{}), "unclosed" (cut off inside it, or in thoughts with an answer in
    them), "no_answer" (no box).

    Without any \boxed{ the answer is that of an <answer> block.
    """
    answer = last_boxed(response) if "\\boxed{" in response else block(response, "answer")
    if answer is None or unfinished(response):
        return "unclosed" if "\\boxed{" in response or "<answer>" in response else "no_answer"
    return "ok" if answer else "empty"


# ---------------------------------------------------------------------------------------- options, yes and no
def normalise_text(text: str) -> str:
    """Lower case, single blanks, no punctuation around it: for comparing words such as option texts."""
    text = " ".join(text[:MAX_ANSWER].lower().replace("_", " ").split())
    return text.strip(string.punctuation.replace("-", "").replace("+", "") + " ")


LETTER = re.compile(r"(?:option |choice )?[(\[]?([a-z])(?:[)\].:,]{1,2}| ?-)?(?: (.*))?", re.I | re.A)


def option_letter(text: str, choices: Sequence[str] = ()) -> str | None:
    """The option an answer names, as an upper-case letter; None when it names none or contradicts itself.

    Read: "B", "(b)", "B.", "B) blue", "B: blue", or the text of exactly one option. "A or B" is no answer,
    and neither is a letter with the text of another option. Without choices any letter A-Z counts.
    """
    text = unwrap_text(text[:MAX_ANSWER])
    names = [normalise_text(unwrap_text(str(choice))) for choice in choices]
    same = [i for i, name in enumerate(names) if name == normalise_text(text)]
    if len(same) == 1 and not re.fullmatch(r"[A-Z]", text):
        return chr(65 + same[0])
    match = LETTER.fullmatch(" ".join(text.split()))
    if match is None or (names and ord(match.group(1).upper()) - 65 >= len(names)):
        return None
    letter, rest = match.group(1).upper(), normalise_text(match.group(2) or "")
    return letter if not rest or (names and names[ord(letter) - 65] == rest) else None


def yes_no(text: str) -> str | None:
    """Which of "yes" (also true) and "no" (also false), or None when neither or both words occur."""
    words = set(re.findall(r"[a-z]+", text[:MAX_ANSWER].lower()))
    yes, no = bool(words & {"yes", "true"}), bool(words & {"no", "not", "false"})
    return None if yes == no else "yes" if yes else "no"


# ------------------------------------------------------------------------------------------------------ boxes
COORDINATE = r"\s{0,3}(-?[0-9]{1,7}(?:\.[0-9]{0,9})?)\s{0,3}"
FOUR = re.compile(rf"[\[(]{COORDINATE},{COORDINATE}(?:,|[\])]\s{{0,3}},?\s{{0,3}}[\[(]){COORDINATE},{COORDINATE}[\])]")
BARE_FOUR = re.compile(rf"{COORDINATE},{COORDINATE},{COORDINATE},{COORDINATE}")


def to_box(numbers: Sequence[Any]) -> Box | None:
    """Four numbers as a box; None if they are not finite numbers or enclose nothing."""
    if not isinstance(numbers, (list, tuple)) or len(numbers) != 4:
        return None
    if not all(isinstance(v, (int, float)) and not isinstance(v, bool) and abs(v) < 1e7 for v in numbers):
        return None
    x1, y1, x2, y2 = map(float, numbers)
    return (x1, y1, x2, y2) if x1 < x2 and y1 < y2 else None


def parse_box(text: str) -> Box | None:
    """The one box in a text: [x1, y1, x2, y2], (x1, y1), (x2, y2), {"bbox_2d": [...]} or four bare numbers.

    None when there is no box, when it encloses nothing, or when different boxes are offered (no hedging).
    """
    text = text[:MAX_ANSWER]
    found = FOUR.findall(text)
    bare = None if found else BARE_FOUR.fullmatch(text.strip())
    boxes = {to_box([float(v) for v in four]) for four in (found or ([bare.groups()] if bare else []))}
    return boxes.pop() if len(boxes) == 1 else None


def parse_boxes(text: str) -> list[tuple[str, Box]] | None:
    """(label, box) pairs of a JSON list [{"bbox_2d": [x1, y1, x2, y2], "label": "cat"}, ...], else None.

    Entries that are not of this form and repeated entries are dropped, so is everything after the first 300. A list
    of such entries alone is unreadable (None), not empty: only "[]" says that there is nothing.
    """
    text = text.strip().removeprefix("```json").removesuffix("```").strip()
    try:
        entries = json.loads(text[: 40 * MAX_ANSWER])
    except (ValueError, RecursionError):
        return None
    if isinstance(entries, dict):
        entries = [entries]
    if not isinstance(entries, list):
        return None
    pairs = [(normalise_text(str(e.get("label", ""))), to_box(e.get("bbox_2d")))
             for e in entries[:MAX_BOXES] if isinstance(e, dict)]  # fmt: skip
    found = list(dict.fromkeys((label, box) for label, box in pairs if box is not None))
    return found if found or not entries else None


def area(box: Box) -> float:
    return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])


def iou(a: Box, b: Box) -> float:
    """Intersection over union in [0, 1], on continuous coordinates; 0 for boxes that enclose nothing."""
    shared = area((max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])))
    union = area(a) + area(b) - shared
    return shared / union if union > 0 and shared > 0 else 0.0


def giou(a: Box, b: Box) -> float:
    """IoU - (C - U) / C in (-1, 1], with C the area around both boxes, U that of their union (1902.09630)."""
    shared = area((max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])))
    union = area(a) + area(b) - shared
    around = area((min(a[0], b[0]), min(a[1], b[1]), max(a[2], b[2]), max(a[3], b[3])))
    return iou(a, b) - (around - union) / around if around > 0 else -1.0


def match_boxes(predicted: Sequence[Box], gold: Sequence[Box], threshold: float = 0.5) -> list[tuple[int, int, float]]:
    """One-to-one pairs (predicted, gold, IoU) with the largest sum of IoU, none below the threshold."""
    if not predicted or not gold:
        return []
    table = np.array([[iou(p, g) for g in gold] for p in predicted])  # [predicted, gold]
    table[table < threshold] = 0.0  # so that no good pair is given up for the sake of a useless one
    rows, columns = linear_sum_assignment(table, maximize=True)
    return [(int(i), int(j), float(table[i, j])) for i, j in zip(rows, columns, strict=True) if table[i, j] > 0]


def detection_f1(
    predicted: Sequence[tuple[str, Box]], gold: Sequence[tuple[str, Box]], threshold: float = 0.5
) -> float:
    """F1 of labelled boxes matched at an IoU threshold, in [0, 1]: extra boxes cost. 1 if both are empty."""
    if not predicted or not gold:
        return float(not predicted and not gold)
    hits = 0
    for label in {label for label, _ in gold}:
        pair = [[box for name, box in side if name == label] for side in (predicted, gold)]
        hits += len(match_boxes(*pair, threshold=threshold))
    return 2 * hits / (len(predicted) + len(gold))


def rescale_box(box: Box, source: tuple[float, float], target: tuple[float, float]) -> Box:
    """A box from one frame (width, height) to another, e.g. from (1000, 1000) to that of the picture."""
    sx, sy = target[0] / source[0], target[1] / source[1]
    return box[0] * sx, box[1] * sy, box[2] * sx, box[3] * sy


# --------------------------------------------------------------------------------------------------- accuracy


def unfinished(response: str) -> bool:
    """Whether the response ends inside its thoughts: a <think> after the last </think>."""
    return response.rfind("<think>") > response.rfind("</think>")


def accuracy(response: str, sample: Sample, *, frame: tuple[float, float] | None = None) -> float:
    r"""Grade a response by its last \boxed{...}: 1.0 right, 0.0 wrong or unreadable (see parse_state).

    By sample.answer_type: text and number by grade_answer; option by letter or option text; yesno by the word; box by
    IoU >= 0.5; boxes (a list of labelled boxes) by F1 at IoU 0.5, a fraction. Boxes of the gold answer and of the
    response are in sample.frame; frame: width and height of another one for the response. Two differences from VPPO's
    grader, which reads a response without a box as the answer "None", and boxes in thoughts that never ended: neither
    is right here.
    """
    gold, kind = sample.answer, sample.answer_type
    if kind not in ("text", "number", "option", "yesno", "box", "boxes"):
        raise ValueError(f"unknown answer type {kind!r}")
    answer = last_boxed(squeeze_tags(response) if kind in ("text", "number") else response)
    if answer is None or unfinished(squeeze_tags(response)):
        return 0.0
    if kind in ("text", "number"):
        return float(grade_answer(answer, gold))
    if kind == "option":
        choices = [str(choice) for choice in sample.meta.get("choices") or ()]
        letter = option_letter(answer, choices)
        return float(letter is not None and letter == option_letter(gold, choices))
    if kind == "yesno":
        return float(yes_no(answer) is not None and yes_no(answer) == yes_no(gold))
    return box_accuracy(answer, sample, frame)


def box_accuracy(answer: str, sample: Sample, frame: tuple[float, float] | None) -> float:
    """IoU >= 0.5 of one box, or F1 of a list of boxes; as accuracy()."""
    if kind_is_list := sample.answer_type == "boxes":
        found, truth = parse_boxes(answer), parse_boxes(sample.answer)
    else:
        found, truth = ([("", box)] if (box := parse_box(text)) else None for text in (answer, sample.answer))
    if found is None or truth is None:
        return 0.0
    if frame is not None:
        own = sample.frame or sample.meta.get("size") or sample.load_images()[0].size
        found = [(label, rescale_box(box, frame, own)) for label, box in found]
    return detection_f1(found, truth) if kind_is_list else float(iou(found[0][1], truth[0][1]) >= 0.5)

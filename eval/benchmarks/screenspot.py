"""ScreenSpot, ScreenSpot-v2 and ScreenSpot-Pro: click the element of a screenshot that an instruction names.

Official code: github njucckevin/SeeClick at 0ef37ac4 (pretrain/screenspot_test.py). A click inside the box is a hit,
borders included. How a point is read from the response:

    official    all numbers of it: two are a point, four a box whose centre counts, any other count is no answer; with
                the word "box" in it, <box>(x1,y1),(x2,y2)</box> from 0 to 1000 alone; numbers above 1 are not scaled
    lmms-eval   (75571cfe) v1: the first (a, b, c, d) or [a, b, c, d], from 0 to 1000 if one is above 1; v2 and Pro: the
                first of a <bbox> tag, [x, y], x: and y:, four numbers beside the word box, two numbers; divided by the
                size of the picture if one is above 1, so that a bare list of four gives its first corner
    vlmevalkit  (e8e78f05) x=..., y=... of pyautogui.click, otherwise the corner (0, 0); divided as above; true boxes
                given as x, y, width, height lose a pixel at the right and at the bottom
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from benchmark import Benchmark, Line, Result, Row, lines_by, macro_line, mean_line, scores_by
from boxes import BETWEEN, finite, iou_lines
from columns import box_cell, picture_size, text
from common.rewards import iou

Point = tuple[float, float]
Frame = tuple[float, float, float, float]

# ---------------------------------------------------------------- prompts

FORMS = {
    "official": "Answer with the point to click, (x, y), both numbers from 0 to 1, and write no other number.",
    "lmms-eval": "Answer with one point to click, [x, y], both numbers from 0 to 1; no box.",
    "lmms-eval-box": "Answer with its box (left, top, right, bottom), the numbers from 0 to 1 with two decimals.",
    "vlmevalkit": "Answer with pyautogui.click(x=..., y=...), where x and y are numbers from 0 to 1.",
}


def prompt(row: Row, scoring: str) -> str:
    return f"{asked(row)}\n{FORMS[scoring]}"


def prompt_v1(row: Row, scoring: str) -> str:
    return f"{asked(row)}\n{FORMS['lmms-eval-box' if scoring == 'lmms-eval' else scoring]}"


def asked(row: Row) -> str:
    return f"Which element of this screen would you click to do this: {text(row, 'instruction')}"


# ---------------------------------------------------------------- reading a point

NUMBER = r"(-?\d++(?:\.\d++)?+%?)"
PLAIN_BOX = re.compile(r"<box>\((\d+),(\d+)\),\((\d+),(\d+)\)</box>")
BRACKETS = re.compile(r"[\[(]\s*+" + r",\s*+".join([r"(-?\d++(?:\.\d++)?+)"] * 4) + r"\s*+[\])]")
TAG, END_OF_TAG = re.compile(r"<\s*bbox", re.I), re.compile(r"<\s*/\s*bbox\s*>", re.I)
PAIR = re.compile(rf"[\[(]\s*+{NUMBER}{BETWEEN}{NUMBER}\s*+[\])]")
NAMED_X, NAMED_Y = (re.compile(rf"{name}['\"]?\s*[:=]\s*{NUMBER}", re.I) for name in "xy")
CLICK = re.compile(r"x=([\d.]++), y=([\d.]++)")


def seeclick_point(response: str) -> Point | None:
    """None: wrong format."""
    if "box" in response:
        corners = PLAIN_BOX.search(response)
        return tuple(side / 1000 for side in centre([float(v) for v in corners.groups()])) if corners else None
    numbers = [float(number) for number in re.findall(r"-?\d+\.?\d*", response)]
    return centre(numbers) if len(numbers) == 4 else tuple(numbers) if len(numbers) == 2 else None


def centre(box: Sequence[float]) -> Point:
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


def lmms_box(response: str) -> Frame:
    """Zeros if there is none."""
    match = BRACKETS.search(response)
    box = [float(number) for number in match.groups()] if match else [0.0] * 4
    return tuple(side / 1000 for side in box) if max(box) > 1 else tuple(box)


def percent(number: str) -> float:
    return float(number[:-1]) / 100 if number.endswith("%") else float(number)


def lmms_point(response: str) -> Point | None:
    tagged = [percent(number) for number in re.findall(NUMBER, in_tag(response))]
    if len(tagged) >= 4:
        return centre(tagged)
    if pair := PAIR.search(response):
        return percent(pair.group(1)), percent(pair.group(2))
    x = NAMED_X.search(response)
    y = NAMED_Y.search(response, x.end()) if x else None
    if x and y:
        return percent(x.group(1)), percent(y.group(1))
    numbers = [percent(number) for number in re.findall(NUMBER, response)]
    if len(numbers) >= 4 and any(word in response.lower() for word in ("box", "rect")):
        return centre(numbers)
    return (numbers[0], numbers[1]) if len(numbers) >= 2 else None


def in_tag(response: str) -> str:
    """What stands between the first <bbox ...> and the next </bbox>; "" if one of them is missing."""
    tag = TAG.search(response)
    start = response.find(">", tag.end()) + 1 if tag else 0
    end = END_OF_TAG.search(response, start) if start else None
    return response[start : end.start()] if end else ""


def click_point(response: str) -> Point | None:
    """(0, 0) without a click; None for numbers such as 0.5.1, which VLMEvalKit counts as wrong format."""
    match = CLICK.search(response)
    try:
        return (float(match.group(1)), float(match.group(2))) if match else (0.0, 0.0)
    except ValueError:
        return None


# ---------------------------------------------------------------- the true box


def share(box: Sequence[float]) -> bool:
    """Whether it is given in shares of the picture, from 0 to 1."""
    return all(0 <= side <= 1 for side in box) and box[2] >= box[0] and box[3] >= box[1]


def true_box(row: Row, corners: bool) -> Frame:
    """In shares of the picture. corners: pixels are given as two corners, not as corner, width and height."""
    x1, y1, x2, y2 = box_cell(row, "bbox")
    if share((x1, y1, x2, y2)):
        return x1, y1, x2, y2
    width, height = picture_size(row)
    return (x1 / width, y1 / height, (x2 if corners else x1 + x2) / width, (y2 if corners else y1 + y2) / height)


def lmms_size(row: Row, version: str) -> tuple[float, float]:
    """lmms-eval knows the size of a picture from columns alone, and takes 1 x 1 without them."""
    if version == "pro" and row.get("img_size") is not None:
        numbers = re.findall(r"\d+", str(row["img_size"]))
        if len(numbers) >= 2 and all(0 < float(number) < 1e6 for number in numbers[:2]):
            return float(numbers[0]), float(numbers[1])
    return picture_size({"image_width": row.get("image_width", 1), "image_height": row.get("image_height", 1)})


def lmms_true_box(row: Row, size: tuple[float, float], version: str) -> Frame:
    """As lmms-eval reads it, which takes x, y, width, height for two corners where width > x and height > y."""
    box, (width, height) = box_cell(row, "bbox"), size
    if share(box) if version == "v2" else box[2] <= 1 and box[3] <= 1:
        return box
    corners = version == "pro" or (box[2] > box[0] and box[3] > box[1])
    x2, y2 = (box[2], box[3]) if corners else (box[0] + box[2], box[1] + box[3])
    return box[0] / width, box[1] / height, x2 / width, y2 / height


def vlmevalkit_true_box(row: Row, version: str) -> Frame:
    width, height = picture_size(row)
    x1, y1, x2, y2 = true_box(row, corners=version == "pro")
    if version == "pro":
        return x1, y1, x2, y2
    pixels = round(x1 * width, 6), round(y1 * height, 6), round(x2 * width, 6) - 1, round(y2 * height, 6) - 1
    x1, y1, x2, y2 = (0.0 if side == -1 else side for side in pixels)  # -1 is tolerated as 0
    return x1 / width, y1 / height, x2 / width, y2 / height


# ---------------------------------------------------------------- scores


def inside(point: Point | None, box: Frame) -> bool:
    return point is not None and box[0] <= point[0] <= box[2] and box[1] <= point[1] <= box[3]


def scaled(point: Point | None, size: tuple[float, float]) -> Point | None:
    """In shares of the picture: divided by its size if one coordinate is above 1."""
    if point is None or not (point[0] > 1 or point[1] > 1):
        return point
    return point[0] / size[0], point[1] / size[1]


def hit(point: Point | None, box: Frame, **parts: float) -> Result:
    return Result(float(inside(point, box)), finite(point), parts={"read": point is not None, **parts})


def score_point(row: Row, response: str, scoring: str, version: str) -> Result:
    if scoring == "vlmevalkit":
        return hit(scaled(click_point(response), picture_size(row)), vlmevalkit_true_box(row, version))
    if scoring == "lmms-eval":
        size = lmms_size(row, version)
        return hit(scaled(lmms_point(response), size), lmms_true_box(row, size, version))
    return hit(seeclick_point(response), true_box(row, corners=version == "pro"))


def score_v1(row: Row, response: str, scoring: str) -> Result:
    if scoring != "lmms-eval":
        return score_point(row, response, scoring, "v1")
    box, truth = lmms_box(response), true_box(row, corners=False)
    return hit(centre(box), truth, iou=iou(truth, box))


def score_v2(row: Row, response: str, scoring: str) -> Result:
    return score_point(row, response, scoring, "v2")


def score_pro(row: Row, response: str, scoring: str) -> Result:
    return score_point(row, response, scoring, "pro")


# ---------------------------------------------------------------- tables


def group(row: Row) -> str:
    """Platform and kind of the element."""
    source = str(row.get("data_source"))
    place = "mobile" if "ios" in source or "android" in source else "web"
    place = "desktop" if place == "web" and ("macos" in source or "windows" in source) else place
    return f"{place} {'text' if row.get('data_type') == 'text' else 'icon'}"


def summarise(rows: Sequence[Row], results: Sequence[Result], scoring: str) -> list[Line]:
    """Official: the mean of six groups, then the groups. The others: all rows, text and icons, then the groups."""
    groups = scores_by(rows, results, group)
    order = [f"{place} {kind}" for place in ("mobile", "desktop", "web") for kind in ("text", "icon")]
    lines = [mean_line(name, groups[name]) for name in order if name in groups]
    if scoring == "official":  # the table of SeeClick averages its columns, not the rows
        return [macro_line("average", [groups[name] for name in order if name in groups]), *lines]
    head = by_kind(rows, results, scoring, "data_type")
    overlaps = [result.parts["iou"] for result in results if "iou" in result.parts]  # of answers that are boxes
    return [*head, *(iou_lines(overlaps) if overlaps else []), *lines]


def by_kind(rows: Sequence[Row], results: Sequence[Result], scoring: str, column: str) -> list[Line]:
    """All rows, text, icon. VLMEvalKit takes each category as often as it has rows, so it weighs by its square."""
    lines = [mean_line("overall", [result.score for result in results])]
    both = scores_by(rows, results, lambda row: (str(row.get(column)).lower(), str(row.get("category"))))
    for kind in ("text", "icon"):
        parts = [scores for (name, _), scores in both.items() if name == kind]
        scores = [score for part in parts for score in part]
        if scoring == "vlmevalkit" and len(parts) > 1:
            value = 100 * sum(len(part) * sum(part) for part in parts)
            lines.append(Line(kind, value / sum(len(part) ** 2 for part in parts), len(scores)))
        elif scores:
            lines.append(mean_line(kind, scores))
    return lines


def summarise_pro(rows: Sequence[Row], results: Sequence[Result], scoring: str) -> list[Line]:
    lines = by_kind(rows, results, scoring, "ui_type")
    column = next((name for name in ("category", "group") if any(name in row for row in rows)), None)
    return lines + (lines_by(rows, results, column)[1:] if column else [])


TEXT = "table in github njucckevin/SeeClick"
COLUMNS = ("image", "instruction", "bbox")
BENCHMARKS = {
    "screenspot": Benchmark(
        title="ScreenSpot", source="hf:rootsautomation/ScreenSpot", split="test", size=1272, metric="click accuracy",
        licence="Apache-2.0", columns=(*COLUMNS, "data_type", "data_source"), prompt=prompt_v1, score=score_v1,
        summarise=summarise, scorings=("official", "vlmevalkit", "lmms-eval"),
        reference=(("SeeClick", "53.4", TEXT), ("CogAgent", "47.4", TEXT), ("Qwen-VL", "5.2", TEXT))),
    "screenspot_v2": Benchmark(
        title="ScreenSpot-v2", source="hf:HongxinLi/ScreenSpot_v2", split="test", size=None, metric="click accuracy",
        licence="not stated", columns=(*COLUMNS, "data_type", "data_source"), prompt=prompt, score=score_v2,
        summarise=summarise, scorings=("official", "vlmevalkit", "lmms-eval"), max_new_tokens=128,
        note="lmms-eval takes a true box x, y, width, height for two corners where width > x and height > y."),
    "screenspot_pro": Benchmark(
        title="ScreenSpot-Pro", source="hf:TIGER-Lab/ScreenSpot-Pro", split="test", size=None, metric="click accuracy",
        licence="not stated", columns=(*COLUMNS, "ui_type"), prompt=prompt, score=score_pro, summarise=summarise_pro,
        scorings=("lmms-eval", "vlmevalkit"), max_new_tokens=128,
        note="A point in pixels must be in those of the original picture, not of the one the model was shown."),
}  # fmt: skip

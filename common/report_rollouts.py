"""What was sampled, in report.html: groups of responses, tokens coloured by how much they depend on the picture."""

from __future__ import annotations

import base64
import io
import json
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from common import charts
from common.charts import text

GROUPS = 3  # groups of rollouts shown from the start and from the end of training
SHOWN = 3  # responses shown of a group before "more"
PICTURE = 448  # longest side in pixels of an embedded picture
LEVELS = 8  # colours of visual dependency, classes d0..d7
HABITS = ("careful", "sloppy", "blind", "other")


def json_lines(path: Path) -> Iterator[dict]:
    """The records of a JSON-lines file; a last line cut short by a kill or a full disk is left out."""
    if not path.exists():
        return
    with open(path, encoding="utf-8") as file:
        for line in file:
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if isinstance(record, dict):
                yield record


def gallery(folder: Path) -> str:
    """The section of the report, "" when nothing was logged."""
    first, last, logged = first_and_last(folder / "rollouts.jsonl")
    if not first:
        return ""
    values = sorted(v for group in (*first, *last) for record in group for v in dependency_of(record))
    top = values[int(0.95 * (len(values) - 1))] if values else 0.0
    sections = ""
    for title, groups in (("Early in training", first), ("Late in training", last)):
        if groups:
            sections += f"<h3>{title}</h3>" + "".join(group_html(folder, group, top) for group in groups)
    return (
        f'<h2>Rollouts</h2><p class="about">The first and the last of {logged} logged groups, unselected. '
        "Responses are sorted by advantage; those above the group's average are made more likely, those "
        "below "
        f"less.</p>{scale(top) if values else ''}{sections}"
    )


def first_and_last(path: Path) -> tuple[list[list[dict]], list[list[dict]], int]:
    """The first and the last GROUPS groups and how many there are; a group is one question at one step."""
    first: list[list[dict]] = []
    last: deque[list[dict]] = deque(maxlen=GROUPS)
    count, key = 0, None
    for record in json_lines(path):
        if (record.get("step"), record.get("sample_id")) != key:
            key = (record.get("step"), record.get("sample_id"))
            group: list[dict] = []
            (first if count < GROUPS else last).append(group)
            count += 1
        group.append(record)
    return first, list(last), count


def dependency_of(record: dict) -> list[float]:
    """The tokens' dependency when the record has one number a token, else nothing."""
    values, tokens = record.get("dependency") or [], record.get("tokens") or []
    return [float(v or 0.0) for v in values] if len(values) == len(tokens) else []


def group_html(folder: Path, group: list[dict], top: float) -> str:
    record = group[0]
    pictures = "".join(picture_html(folder, name) for name in record.get("images", [])[:4])
    ranked = sorted(group, key=lambda r: -(r.get("advantage") or 0.0))
    shown = ranked if len(ranked) <= SHOWN else [ranked[0], ranked[len(ranked) // 2], ranked[-1]]
    hidden = [r for r in ranked if not any(r is s for s in shown)]
    same = len(group) > 1 and len({sum((r.get("rewards") or {}).values()) for r in group}) == 1
    more = "".join(response_html(r, top) for r in hidden)
    more = f"<details><summary>{len(hidden)} more responses</summary>{more}</details>" if more else ""
    spread = "<p>All responses earned the same: this group teaches nothing.</p>" if same else ""
    about = (f"step {record.get('step', 0) + 1}", text(record.get("task", "")), text(record.get("sample_id", "")))
    return (
        f'<div class="group"><div class="ask"><div class="pictures">{pictures}</div><div>'
        f'<p class="question">{text(record.get("question", ""))}</p>'
        f"<p>gold <b>{text(record.get('answer', ''))}</b></p><p>{' · '.join(about)}</p>{spread}</div></div>"
        f"{''.join(response_html(r, top) for r in shown)}{more}</div>"
    )


def response_html(record: dict, top: float) -> str:
    advantage, rewards = record.get("advantage"), record.get("rewards") or {}
    kind = "" if not advantage else "plus" if advantage > 0 else "minus"
    chips = [f"reward <b>{charts.number(sum(v or 0 for v in rewards.values()))}</b>"]
    if len(rewards) > 1:
        chips[0] += " (" + ", ".join(f"{text(n)} {charts.number(v)}" for n, v in rewards.items()) + ")"
    if advantage is not None:
        signed = f"{advantage:+.2f}".replace("-", "−") if advantage else "0"
        chips.append(f"advantage <b>{signed}</b>")
    if record.get("habit"):
        chips.append(f'<span><i class="swatch {habit_class(record["habit"])}"></i>{text(record["habit"])}</span>')
    shown = "".join(f"<span>{chip}</span>" for chip in chips)
    words = words_html(record, top)
    return f'<div class="response {kind}"><div class="chips">{shown}</div><div class="text">{words}</div></div>'


def habit_class(habit: str) -> str:
    return habit if habit in HABITS else "other"


def words_html(record: dict, top: float) -> str:
    """The response, every token coloured by its visual dependency where that was logged."""
    values, kept = dependency_of(record), record.get("kept") or []
    if not values:
        return text(record.get("response", ""))
    words = ""
    for i, (token, value) in enumerate(zip(record["tokens"], values, strict=True)):
        mark = "" if i >= len(kept) else " kept" if kept[i] else " masked"
        words += f'<span class="t d{level(value, top)}{mark}" title="{charts.number(value)}">{text(token)}</span>'
    return words


def level(value: float, top: float) -> int:
    """Colour 0..7 of a dependency, linear up to `top`."""
    return 0 if top <= 0 or value <= 0 else min(LEVELS - 1, int(LEVELS * value / top))


def scale(top: float) -> str:
    ramp = "".join(f'<i class="d{i}"></i>' for i in range(LEVELS))
    high = charts.number(top * (LEVELS - 1) / LEVELS, 2)
    return (
        f'<div class="scale"><span class="steps">visual dependency 0 <span class="ramp">{ramp}</span> {high} and '
        'more</span><span><span class="t kept">underlined</span> takes part in the update</span><span><span '
        'class="t masked">dotted</span> masked out of the update</span><span>Dependency: how much the distribution '
        "of a token changes when the picture is destroyed.</span></div>"
    )


def picture_html(folder: Path, name: str) -> str:
    """A logged picture as a data: image; only files of the run's own images/ folder are ever opened."""
    path = folder / "images" / Path(str(name)).name
    try:
        with Image.open(path) as image:
            image = image.convert("RGB")
    except (OSError, ValueError, Image.DecompressionBombError):
        return ""
    image.thumbnail((PICTURE, PICTURE))
    buffer = io.BytesIO()
    small = max(image.size) <= 160  # drawn pictures stay sharp, photographs stay small
    image.save(buffer, *(("PNG",) if small else ("JPEG",)), optimize=True)
    kind, data = "png" if small else "jpeg", base64.b64encode(buffer.getvalue()).decode("ascii")
    return f'<img src="data:image/{kind};base64,{data}" alt="the picture the question is about">'

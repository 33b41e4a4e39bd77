"""Small charts as inline SVG for the report: no script, no style attribute, colours only through CSS classes.

Classes s0..s5 are series colours, before/after the two evaluations; the style sheet defines them for light
and dark. Positions in bars and intervals are percentages, so that those charts stretch with the page while
text keeps its size.
"""

import html
import math
from collections.abc import Callable, Sequence
from typing import Any

from common.errors import printable

WIDTH, HEIGHT = 340, 176  # of a curve, in SVG units
LEFT, RIGHT, TOP, BOTTOM = 40, 8, 8, 20  # margins inside it
MAX_POINTS = 240  # longer curves are averaged in equal buckets of steps

Series = tuple[str, str, Sequence[float], Sequence[float | None]]  # label, class, steps, values


def number(value: float | None, digits: int = 3) -> str:
    """
    >>> [number(v) for v in (None, 0, 0.04567, 1234.5, 2.5e-7, 1.0)]
    ['–', '0', '0.0457', '1,234', '2.5e-07', '1']
    """
    if value is None or not math.isfinite(value):
        return "–"
    if value != 0 and not 1e-4 <= abs(value) < 1e6:
        return f"{value:.{digits - 1}g}"
    if abs(value) >= 1000:
        return f"{math.floor(value):,}"
    return f"{value:.{digits}g}"


def tick(value: float) -> str:
    """A number for the narrow space beside an axis.

    >>> [tick(v) for v in (0.25, 7500, 10000, 12500, -2e6)]
    ['0.25', '7,500', '10k', '12.5k', '-2M']
    """
    if abs(value) >= 1e6:
        return f"{value / 1e6:g}M"
    return f"{value / 1e3:g}k" if abs(value) >= 1e4 else number(value)


def text(value: Any) -> str:
    """Hostile text as HTML: escaped, control and direction-changing characters shown as U+FFFD."""
    return html.escape(printable(str(value)))


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round numbers that span low..high, in steps of 1, 2, 2.5 or 5 times a power of ten.

    >>> ticks(0.13, 0.88)
    [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    """
    if high <= low:
        high = low + (abs(low) or 1.0) * 0.1
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(s * power for s in (1, 2, 2.5, 5, 10) if s * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def buckets(xs: Sequence[float], ys: Sequence[float | None], most: int) -> tuple[list[float], list[float]]:
    """Drop missing values and average neighbours until at most `most` points are left."""
    points = [(x, y) for x, y in zip(xs, ys, strict=True) if y is not None and math.isfinite(y)]
    size = max(1, math.ceil(len(points) / most))
    parts = [points[i : i + size] for i in range(0, len(points), size)]
    return [sum(x for x, _ in p) / len(p) for p in parts], [sum(y for _, y in p) / len(p) for p in parts]


def smooth(ys: Sequence[float]) -> list[float]:
    """Centred moving average over about a tenth of the curve, cut off at both ends.

    >>> smooth([1.0, 2.0, 3.0])
    [1.0, 2.0, 3.0]
    """
    half = len(ys) // 20
    windows = (ys[max(0, i - half) : i + half + 1] for i in range(len(ys)))
    return [sum(window) / len(window) for window in windows]


def curves(title: str, series: list[Series], note: str = "", shown: Sequence[float] = (), unit: str = "step") -> str:
    """One chart of curves over training steps: faint as measured, strong smoothed. Empty without any finite
    value.

    series: (label, class, steps or what unit says, values); curves without label are not in the legend. shown: values
    that the axis always reaches (0 for shares and counts; both ends to give several charts one scale).
    """
    drawn = [(label, kind, *buckets(xs, ys, MAX_POINTS)) for label, kind, xs, ys in series]
    drawn = [item for item in drawn if item[2]]
    if not drawn:
        return ""
    values = [y for *_, ys in drawn for y in ys] + list(shown)
    marks = ticks(min(values), max(values))
    places = [x for _, _, xs, ys in series for x, y in zip(xs, ys, strict=True) if y is not None]
    first, last = min(places), max(places)

    def at(x: float, y: float) -> str:
        across = (x - first) / (last - first) if last > first else 0.5
        up = (y - marks[0]) / (marks[-1] - marks[0])
        x = LEFT + across * (WIDTH - LEFT - RIGHT)
        return f"{x:.1f},{HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM):.1f}"

    body = _axes(marks, first, last, at, unit)
    for _, kind, xs, ys in drawn:
        strong = smooth(ys)
        if strong != ys:
            body += f'<polyline class="raw {kind}" points="{" ".join(map(at, xs, ys))}"/>'
        body += f'<polyline class="line {kind}" points="{" ".join(map(at, xs, strong))}"/>'
        x, y = at(xs[-1], strong[-1]).split(",")
        body += f'<circle class="dot {kind}" cx="{x}" cy="{y}" r="2.6"/>'
    single = len(drawn) == 1
    latest = number(smooth(drawn[0][3])[-1]) if single else ""
    legend = "" if single else legend_of([(label, kind) for label, kind, _, _ in drawn if label])
    name = text(title)
    return (
        f'<figure class="chart"><figcaption><b>{name}</b><span>{latest}</span></figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{name} over training">{body}</svg>'
        + legend + (f'<p class="note">{text(note)}</p>' if note else "") + "</figure>"
    )  # fmt: skip


def _axes(marks: list[float], first: float, last: float, at: Callable[[float, float], str], unit: str) -> str:
    lines = ""
    for mark in marks:
        y = at(first, mark).split(",")[1]
        lines += f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>'
        place = f'x="{LEFT - 6}" y="{float(y) + 3.5:.1f}" text-anchor="end"'
        lines += f'<text class="tick" {place}>{tick(mark)}</text>'
    low = f"{HEIGHT - 5}"
    counted = int(unit == "step")  # the first step is step 1
    start, end = f"{unit} {first + 1:,.0f}" if counted else f"{first:,.0f}", f"{last + counted:,.0f}"
    lines += f'<text class="tick" x="{LEFT}" y="{low}">{start}</text>'
    end += "" if counted else f" {unit}"
    return lines + f'<text class="tick" x="{WIDTH - RIGHT}" y="{low}" text-anchor="end">{end}</text>'


def legend_of(items: list[tuple[str, str]]) -> str:
    """A line of colour swatches; items are (label, class)."""
    parts = (f'<span class="key"><i class="swatch {kind}"></i>{text(label)}</span>' for label, kind in items)
    return f'<div class="legend">{"".join(parts)}</div>'


def _percent(value: float, low: float = 0.0, high: float = 1.0) -> str:
    return f"{min(100.0, max(0.0, 100 * (value - low) / (high - low))):.2f}%"


Interval = Sequence[float]  # value, low, high


def dumbbell(
    before: Interval | None, after: Interval | None, low: float = 0.0, high: float = 1.0, better: int = 1
) -> str:
    """One row of a before/after chart on the axis low..high: two dots with 95 % whiskers and a line between.

    The line is green when `after` lies in the direction of `better` (1: larger, -1: smaller), else red.
    """
    body = "".join(f'<line class="grid" x1="{25 * i}%" x2="{25 * i}%" y1="0" y2="36"/>' for i in range(5))
    lanes = (("before", before, 12), ("after", after, 24))
    if before and after:
        a, b = _percent(before[0], low, high), _percent(after[0], low, high)
        kind = "up" if (after[0] - before[0]) * better >= 0 else "down"
        body += f'<line class="shaft {kind}" x1="{a}" x2="{b}" y1="12" y2="24"/>'
    for kind, value, y in lanes:
        if value:
            ends = f'x1="{_percent(value[1], low, high)}" x2="{_percent(value[2], low, high)}"'
            words = f"{kind}: {value[0]:.3f}, 95 % interval {value[1]:.3f} to {value[2]:.3f}"
            body += f'<line class="whisker {kind}" {ends} y1="{y}" y2="{y}"/>'
            body += f'<circle class="point {kind}" cx="{_percent(value[0], low, high)}" cy="{y}" r="5">'
            body += f"<title>{words}</title></circle>"
    return f'<svg class="row" width="100%" height="36" role="img">{body}</svg>'


def axis(low: float = 0.0, high: float = 1.0, signed: bool = False) -> str:
    """The scale, in per cent, that belongs above rows of `dumbbell`."""
    body = ""
    for i in range(5):
        value = 100 * (low + (high - low) * i / 4)
        words = (f"{value:+.0f}".replace("-", "−") if value else "0") if signed else f"{value:.0f} %"
        body += f'<text class="tick" x="{25 * i}%" y="12" text-anchor="middle">{words}</text>'
    return f'<svg class="row" width="100%" height="16" aria-hidden="true">{body}</svg>'


def shares(parts: list[tuple[str, str, float]], height: int = 26) -> str:
    """A bar split into shares of 1; parts are (label, class, share). Shares above 7 % carry their number."""
    body, start = "", 0.0
    for label, kind, share in parts:
        x, words = _percent(start), f"{label}: {100 * share:.1f} %"
        body += f'<rect class="{kind}" x="{x}" width="{_percent(share)}" y="0" height="{height}">'
        body += f"<title>{text(words)}</title></rect>"
        if share > 0.07:
            middle = _percent(start + share / 2)
            body += f'<text class="on-{kind}" x="{middle}" y="{height / 2 + 4}" text-anchor="middle">'
            body += f"{100 * share:.0f} %</text>"
        start += share
    return f'<svg class="shares" width="100%" height="{height}" role="img">{body}</svg>'

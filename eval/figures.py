"""The figures of a comparison: of one paper and its rivals, and of many papers side by side.

result: the content of a results/<name>.json, as in tables.py.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from tables import effects, families

PANELS = 5  # effects in a row of the figure
COLOURS = ("#0b6e99", "#d9730d", "#8a8a8a", "#6940a5", "#448361", "#ad1a72")


def drawing() -> ModuleType:
    """matplotlib.pyplot for files, without a screen; names of tasks and options stay text, dollars or not."""
    import matplotlib  # here: reading the options must not wait for it

    matplotlib.use("Agg")
    matplotlib.rcParams["text.parse_math"] = False
    from matplotlib import pyplot

    return pyplot


# ---------------------------------------------------------------- one paper and its rivals


def comparison(result: dict, path: Path) -> None:
    """Learning curves, final accuracy per kind of question, and what the paper is about, as a PNG."""
    pyplot = drawing()
    tasks = list(result["methods"][result["method"]]["tasks"])
    found = effects(result)
    rows = -(-len(found) // PANELS)
    width, low = min(14.0, 7.0 + 0.7 * len(tasks)), 2.1 * rows
    figure = pyplot.figure(figsize=(width, 4.0 + low), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=(4.0, low)) if rows else (figure, None)
    left, right = top.subplots(1, 2, width_ratios=(1, 1.4))
    if bottom is not None:
        effect_panels(bottom.subplots(rows, PANELS, squeeze=False).flat, found, list(result["methods"]))
    for i, (label, row) in enumerate(result["methods"].items()):
        colour = COLOURS[i % len(COLOURS)]
        if curve := row["curve"]:
            left.plot(curve["tokens"], curve["accuracy"], color=colour, label=label)
            left.fill_between(curve["tokens"], curve["low"], curve["high"], color=colour, alpha=0.2, linewidth=0)
        bars(right, tasks, row, i, len(result["methods"]), colour, label)
    base = [result["methods"][result["method"]]["tasks"][task]["base"]["score"] for task in tasks]
    at = np.arange(len(tasks))
    right.hlines(base, at - 0.45, at + 0.45, color="black", linestyle=":", label="before training")
    left.set(xlabel="generated tokens", ylabel="training accuracy", title="Learning (95 % over seeds)")
    right.set(ylabel="held-out accuracy", ylim=(0, 1), title="After training (95 % over seeds and questions)")
    right.set_xticks(at, tasks, rotation=30, ha="right")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_axisbelow(True)
        axes.grid(axis="y", alpha=0.3)
    figure.legend(*right.get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def effect_panels(panels: Any, found: dict[str, dict[str, dict]], labels: list[str]) -> None:
    """A small panel per effect: a bar per contender that measured it, the value before training dotted."""
    panels = list(panels)
    for axes, (name, values) in zip(panels, found.items(), strict=False):  # the last row may have room left
        for i, label in enumerate(labels):
            if label not in values:
                continue
            before, after = values[label]["before"]["score"], values[label]["after"]
            error = np.maximum(abs(np.array(after["interval"]) - after["score"]), 0).reshape(2, 1)
            axes.bar(i, after["score"], 0.8, color=COLOURS[i % len(COLOURS)])
            axes.errorbar(i, after["score"], error, fmt="none", ecolor="black", elinewidth=0.8, capsize=1.5)
            axes.hlines(before, i - 0.45, i + 0.45, color="black", linestyle=":")
        axes.set_title(name, fontsize=8)
        axes.set(xticks=[], xlim=(-0.6, len(labels) - 0.4))
        axes.tick_params(axis="y", labelsize=7)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in panels[len(found) :]:
        axes.set_axis_off()


def bars(axes: Any, tasks: list[str], row: dict, i: int, count: int, colour: str, label: str) -> None:
    """The i-th of `count` bars of every task, with intervals."""
    width = 0.8 / count
    missing = {"final": {"score": 0.0, "interval": [0.0, 0.0]}}
    final = [row["tasks"].get(task, missing)["final"] for task in tasks]
    means, bounds = np.array([f["score"] for f in final]), np.array([f["interval"] for f in final])
    at = np.arange(len(tasks)) + width * (i - (count - 1) / 2)
    axes.bar(at, means, width, color=colour, label=label)
    error = np.maximum(abs(bounds.T - means), 0)  # [2, tasks]
    axes.errorbar(at, means, error, fmt="none", ecolor="black", elinewidth=0.8, capsize=1.5)


# ---------------------------------------------------------------- many papers


def overview(result: dict, path: Path) -> None:
    """Left: base and final accuracy of every method with intervals. Right: gain per task family, in points."""
    pyplot = drawing()
    labels, names = list(result["methods"]), families(result)
    rows = [result["methods"][label] for label in labels]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(12.0, 1.6 + 0.42 * len(labels)), sharey=True,
                                            width_ratios=(1, 1.15), layout="constrained")  # fmt: skip
    for i, row in enumerate(rows):
        left.plot([row["base"]["score"], row["final"]["score"]], [i, i], color="#bbbbbb", zorder=1)
        for estimate, colour, name in ((row["base"], "#8a8a8a", "before"), (row["final"], "#0b6e99", "after training")):
            low, high = estimate["interval"]
            error = [[estimate["score"] - low], [high - estimate["score"]]]
            left.errorbar(estimate["score"], i, xerr=error, fmt="o", color=colour, capsize=2,
                          label=name if i == 0 else None)  # fmt: skip
    left.set_yticks(range(len(labels)), labels)
    left.invert_yaxis()
    left.set(xlabel="held-out accuracy (95 % over seeds and questions)", xlim=(0, 1))
    left.grid(axis="x", alpha=0.3)
    left.spines[["top", "right"]].set_visible(False)
    left.legend(loc="lower left", bbox_to_anchor=(0, 1), ncol=2, frameon=False, borderaxespad=0.2)  # above the rows
    gains = np.array([[100 * (t["final"]["score"] - t["base"]["score"]) if (t := row["tasks"].get(n)) else np.nan
                       for n in names] for row in rows])  # [methods, families]  # fmt: skip
    limit = max(1.0, float(np.nanmax(np.abs(gains))))
    shown = right.imshow(gains, cmap="RdBu", vmin=-limit, vmax=limit, aspect="auto")
    for (i, j), value in np.ndenumerate(gains):
        if np.isfinite(value):
            dark = abs(value) > 0.6 * limit
            right.text(j, i, f"{value:+.0f}", ha="center", va="center", fontsize=8, color="white" if dark else "black")
    right.set_xticks(range(len(names)), names, rotation=30, ha="right")
    right.set_title("gain per family, points", fontsize=10)
    figure.colorbar(shown, ax=right, fraction=0.03)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)

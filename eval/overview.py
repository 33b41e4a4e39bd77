"""Many methods side by side: one table and one figure of base and final accuracy per task family."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from outcomes import drawing, measured


def families(result: dict) -> list[str]:
    return sorted({task for row in result["methods"].values() for task in row["tasks"]})


def markdown(result: dict) -> str:
    """Two tables: accuracy of every method in all and per family (base, final, half the 95 % interval), then what each
    paper is about."""
    names = families(result)
    head = ["method", "base", "final", "gain", *names]
    lines = [f"| {' | '.join(head)} |", f"|---|{'---:|' * (len(head) - 1)}"]
    for label, row in result["methods"].items():
        cells = [f"`{label}`", cell(row["base"]), cell(row["final"]), gain(row["gain"])]
        cells += [f"{short(t['base'])} → {cell(t['final'])}" if (t := row["tasks"].get(n)) else "" for n in names]
        lines.append(f"| {' | '.join(cells)} |")
    held = result["held_out"]
    lines += ["", f"{len(result['seeds'])} seeds, {result['budget_tokens']:,} generated tokens a run, "
              f"{held['questions']} held-out questions, {held['answers']} answers each; ± is half of the 95 % "
              "interval over seeds and questions. Every method asks in its own layout.", ""]  # fmt: skip
    lines += [f"`{label}` ran as `{label} {row['settings']}`."
              for label, row in result["methods"].items() if row["settings"]]  # fmt: skip
    lines += ["", "| method | what its paper is about, before → after |", "|---|---|"]
    for label, row in result["methods"].items():
        text = "; ".join(f"{n} {short(e['before'])} → {cell(e['after'])}" for n, e in measured(row).items())
        lines += [f"| `{label}` | {text} |"] if text else []
    return "\n".join(lines)


def short(estimate: dict) -> str:
    return f"{estimate['score']:.2f}"


def cell(estimate: dict) -> str:
    low, high = estimate["interval"]
    return f"{estimate['score']:.2f} ± {(high - low) / 2:.2f}"


def gain(estimate: dict) -> str:
    low, high = estimate["interval"]
    return f"{estimate['difference']:+.2f} [{low:+.2f}, {high:+.2f}]"


def plot(result: dict, path: Path) -> None:
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

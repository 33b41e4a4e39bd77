"""The Markdown tables of a comparison: what compare.py prints, and what docs/make_pages.py puts into the pages.

result is everywhere the content of a results/<name>.json (outcomes.summarise); a contender is a row of
result["methods"], by its label; an estimate is a number with its 95 % interval: {"score" or "difference" or
"probability", "interval": [low, high]}. Tables are lines of cells, the head first, until `grid` makes Markdown of them.
"""

from __future__ import annotations

import numpy as np

Lines = list[list[str]]


def grid(lines: Lines, rule: str = "") -> str:
    """A Markdown table. rule: the line below the head; default: first column to the left, the others to the right."""
    rule = rule or f"|---|{'---:|' * (len(lines[0]) - 1)}"
    head, *rows = [f"| {' | '.join(line)} |" for line in lines]
    return "\n".join([head, rule, *rows])


# ---------------------------------------------------------------- cells


def number(estimate: dict, sign: str = "", digits: int = 3) -> str:
    """ "0.512 [0.480, 0.551]"; sign "+": with a plus before what is not negative."""
    low, high = estimate["interval"]
    value = next(estimate[name] for name in ("score", "difference", "probability") if name in estimate)
    return f"{value:{sign}.{digits}f} [{low:{sign}.{digits}f}, {high:{sign}.{digits}f}]"


def change(row: dict) -> str:
    """ "0.410 → 0.512 [0.480, 0.551]" of {"before", "after"}."""
    return f"{row['before']['score']:.3f} → {number(row['after'])}"


def short(estimate: dict) -> str:
    return f"{estimate['score']:.2f}"


def plus_minus(estimate: dict) -> str:
    """ "0.51 ± 0.04", half of the interval."""
    low, high = estimate["interval"]
    return f"{short(estimate)} ± {(high - low) / 2:.2f}"


def updates(row: dict) -> str:
    """Optimiser steps, the mean over the seeds."""
    return f"{sum(row['updates']) / len(row['updates']):.0f}"


def finals(row: dict, splits: list[str]) -> list[str]:
    """Final accuracy per split, "" for one that this contender was not asked."""
    parts = [row["splits"].get(name) for name in splits]
    return [f"{part['final']['score']:.3f}" if part else "" for part in parts]


# ---------------------------------------------------------------- what several tables and figures look up


def splits_of(result: dict) -> list[str]:
    return list(result["methods"][result["method"]]["splits"])


def families(result: dict) -> list[str]:
    return sorted({task for row in result["methods"].values() for task in row["tasks"]})


def measured(row: dict) -> dict[str, dict]:
    """Own task and effects of one contender: name -> {"before", "after"}."""
    own = {"own task": {"before": row["own"]["base"], "after": row["own"]["final"]}} if row["own"] else {}
    return own | row["effects"]


def effects(result: dict) -> dict[str, dict[str, dict]]:
    """What the paper is about: effect -> label of every contender that measured it -> {"before", "after"}."""
    found: dict[str, dict[str, dict]] = {}
    for label, row in result["methods"].items():
        for name, values in measured(row).items():
            found.setdefault(name, {})[label] = values
    return found


# ---------------------------------------------------------------- one paper and its rivals


def comparison(result: dict) -> str:
    """The comparison as Markdown: table, the paper's claim, what the runs say about it, effects, the race."""
    notes = [budget(result) + "95 % intervals over seeds and questions. IQM: mean of the "
             "middle half of runs and families of questions; P: chance that a run of the first is better than one of "
             "this on a family (both as in arXiv 2108.13264).", *settings(result), ""]  # fmt: skip
    notes += [f"The paper's claim: {result['claim']}", ""] if result["claim"] else []
    for v in result["shown"]:
        low, high = v["interval"]
        notes.append(f"- {v['statement']}: **{v['holds']}**, {v['value']:.3f} [{low:.3f}, {high:.3f}]")
    paper = [grid(before_and_after(result)), ""] if effects(result) else []
    return "\n".join([grid(accuracies(result)), "", *notes, "", *paper, grid(race(result))])


def budget(result: dict) -> str:
    """What every run was given, as the beginning of a sentence."""
    held = result["held_out"]
    return (f"{len(result['seeds'])} seeds, {result['budget_tokens']:,} generated tokens a run, {held['questions']} "
            f"held-out questions, {held['answers']} answers each; ")  # fmt: skip


def settings(result: dict) -> list[str]:
    """A sentence for every contender that ran with options because only its name was typed."""
    return [f"`{label}` ran as `{label} {row['settings']}`."
            for label, row in result["methods"].items() if row["settings"]]  # fmt: skip


def accuracies(result: dict) -> Lines:
    """Held-out accuracy of every contender, and how far the first is ahead of it; the splits only if there are some."""
    splits = splits_of(result) if len(splits_of(result)) > 1 else []
    lines = [["method", "base", "final", "gain", *splits, "while training", "IQM", "first − this", "P(first better)"]]
    for label, row in result["methods"].items():
        pair = result["paired"].get(label, {})
        ahead = [number(pair["final"], "+"), number(pair["improvement"], digits=2)] if "final" in pair else ["", ""]
        lines.append([f"`{label}`", number(row["base"]), number(row["final"]), number(row["gain"], "+"),
                      *finals(row, splits), f"{row['curve_mean']['score']:.3f}" if row["curve_mean"] else "",
                      number(row["iqm"]), *ahead])  # fmt: skip
    return lines


def before_and_after(result: dict) -> Lines:
    """A column per effect: before and after training, for every contender that measured it."""
    found = effects(result)
    return [["before → after", *found],
            *[[f"`{label}`", *[change(by[label]) if label in by else "" for by in found.values()]]
              for label in result["methods"]]]  # fmt: skip


def race(result: dict) -> Lines:
    """Median tokens and updates until each training accuracy is reached."""
    levels = list(result["methods"][result["method"]]["levels"])
    return [["training accuracy reached after", *levels],
            *[[f"`{label}`", *[finish_line(row["levels"][level]) for level in levels]]
              for label, row in result["methods"].items()]]  # fmt: skip


def finish_line(reach: dict) -> str:
    tokens, steps = ([x for x in reach[name] if x is not None] for name in ("tokens", "updates"))
    if not tokens:
        return "never"
    some = f" ({len(tokens)} of {len(reach['tokens'])} runs)" if len(tokens) < len(reach["tokens"]) else ""
    return f"{np.median(tokens):,.0f} tokens, {np.median(steps):.0f} updates{some}"


# ---------------------------------------------------------------- for the pages of docs/


def at_a_glance(result: dict) -> Lines:
    """Updates, held-out accuracy and effects: a line each, a column per contender."""
    rows, first = result["methods"], result["methods"][result["method"]]
    lines = [["", "before", *[f"`{label}`" for label in rows]],
             ["updates", "", *map(updates, rows.values())],
             ["held-out accuracy", f"{first['base']['score']:.3f}",
              *[number(row["final"]) for row in rows.values()]]]  # fmt: skip
    for name, by in effects(result).items():
        before = next(iter(by.values()))["before"]["score"]
        lines.append([name, f"{before:.3f}", *[number(by[label]["after"]) if label in by else "" for label in rows]])
    return lines


def versus(result: dict) -> Lines:
    """Held-out accuracy of every contender per split, and how far the first is ahead of it."""
    lines = [["method", "base", "final", *splits_of(result), "first − this"]]
    for label, row in result["methods"].items():
        pair = result["paired"].get(label, {}).get("final")
        lines.append([f"`{label}`", number(row["base"]), number(row["final"]), *finals(row, splits_of(result)),
                      number(pair, "+") if pair else ""])  # fmt: skip
    return lines


# ---------------------------------------------------------------- many papers


def overview(result: dict) -> str:
    """Two tables: accuracy of every method in all and per family (base, final, half the 95 % interval), then what each
    paper is about."""
    notes = [budget(result) + "± is half of the 95 % interval over seeds and questions. Every method asks in its own "
             "layout.", "", *settings(result)]  # fmt: skip
    lines = [["method", "what its paper is about, before → after"]]
    for label, row in result["methods"].items():
        text = "; ".join(f"{n} {short(e['before'])} → {plus_minus(e['after'])}" for n, e in measured(row).items())
        lines += [[f"`{label}`", text]] if text else []
    return "\n".join([grid(by_family(result)), "", *notes, "", grid(lines, "|---|---|")])


def by_family(result: dict) -> Lines:
    """Base, final and gain of every method, and base → final for every family of questions."""
    names = families(result)
    lines = [["method", "base", "final", "gain", *names]]
    for label, row in result["methods"].items():
        tasks = [row["tasks"].get(name) for name in names]
        lines.append([f"`{label}`", plus_minus(row["base"]), plus_minus(row["final"]),
                      number(row["gain"], "+", 2),
                      *[f"{short(t['base'])} → {plus_minus(t['final'])}" if t else "" for t in tasks]])  # fmt: skip
    return lines

"""One HTML page of a comparison: results with intervals, and the learning curves of all runs side by side.

Like a run's report it loads nothing, runs no script, and everything that came from outside is escaped.
"""

from __future__ import annotations

import os
from pathlib import Path

from common import charts
from common.checkpoint import write_file
from common.report import page, text
from outcomes import Outcome, series
from tables import change, effects, finals, number, splits_of, updates

# title, metric, what it is, values that the axis always reaches; a row each, where at least one contender logs it
CURVES = [
    ("Training accuracy", "accuracy", "Share of sampled responses graded right, before groups are left out.", (0, 1)),
    ("Reward", "reward/mean", "Mean over the responses of a step; different methods, different rewards.", ()),
    ("Response length", "length", "Tokens, up to and including the end of sequence.", (0,)),
    ("Entropy", "entropy", "Nats per token. A fall to 0 means that exploration has ended.", (0,)),
    ("Groups without spread", "groups/zero_spread", "Share of groups that teach nothing.", (0, 1)),
    ("Gradient norm", "grad_norm", "Before clipping.", (0,)),
    ("Careful answers", "habit/careful", "Share of responses that looked before they answered.", (0, 1)),
]  # fmt: skip


def write_page(result: dict, outcomes: list[Outcome], path: Path) -> None:
    """Write the page of summarise(outcomes) to `path`; links to the runs' reports are relative to its folder."""
    body = "\n".join([header(result), final_accuracy(result), paper(result), curves(outcomes), runs(outcomes, path)])
    content = page(f"SightRL: {result['method']} compared", body)
    write_file(path, lambda temporary: temporary.write_bytes(content.encode("utf-8", "replace")))


def header(result: dict) -> str:
    names = [f"<code>{text(label)}</code>" for label in result["methods"]]
    facts = {"seeds": len(result["seeds"]), "generated tokens a run": f"{result['budget_tokens']:,}",
             "held-out questions": result["held_out"]["questions"], "answers each": result["held_out"]["answers"],
             "written": result["date"]}  # fmt: skip
    items = "".join(f"<span>{text(name)} <b>{text(value)}</b></span>" for name, value in facts.items())
    claim = f'<p class="lead">The paper\'s claim: {text(result["claim"])}</p>' if result["claim"] else ""
    return (f'<p class="eyebrow">SightRL comparison</p><h1>{text(result["method"])}</h1><p>against '
            f'{", ".join(names[1:]) or "nothing else"}</p><code class="command">{text(result["command"])}</code>'
            f'<div class="facts">{items}</div>{claim}')  # fmt: skip


def final_accuracy(result: dict) -> str:
    """Base and final accuracy of every contender on one axis, then the same in numbers."""
    rows = f'<div class="item head"><span></span><div class="plot">{charts.axis()}</div><span></span></div>'
    for label, row in result["methods"].items():
        ends = [(row[when]["score"], *row[when]["interval"]) for when in ("base", "final")]
        pair = result["paired"].get(label, {}).get("final")
        against = f"<small>first − this</small><small>{number(pair, '+')}</small>" if pair else ""
        rows += (f'<div class="item"><div class="name">{text(label)}</div><div class="plot">{charts.dumbbell(*ends)}'
                 f'</div><div class="value">{row["final"]["score"]:.3f}{against}</div></div>')  # fmt: skip
    legend = charts.legend_of([("before training", "before"), ("after training", "after")])
    return ('<h2>Held-out accuracy</h2><p class="about">95 % intervals over seeds and questions; differences are '
            "paired by seed and question. IQM: mean of the middle half of runs and families of questions. P: chance "
            "that a run of the first is better than one of this on a family (arXiv 2108.13264).</p>"
            f'<div class="panel">{legend}<div class="rows">{rows}</div>{numbers(result)}</div>')  # fmt: skip


def numbers(result: dict) -> str:
    splits = splits_of(result)
    lines = []
    for label, row in result["methods"].items():
        pair = result["paired"].get(label, {}).get("improvement")
        lines.append([label, number(row["gain"], "+"), *finals(row, splits), number(row["iqm"]),
                      number(pair, digits=2) if pair else "", updates(row)])  # fmt: skip
    return table(["", "gain", *splits, "IQM", "P(first better)", "updates"], lines)


def table(head: list[str], lines: list[list[str]]) -> str:
    rows = "".join(f"<tr>{''.join(f'<td>{text(cell)}</td>' for cell in line)}</tr>" for line in lines)
    return (f'<div class="scroll"><table class="effects wide"><tr>{"".join(f"<th>{text(n)}</th>" for n in head)}</tr>'
            f"{rows}</table></div>")  # fmt: skip


def paper(result: dict) -> str:
    """What the papers are about, before and after, for every contender that measured it."""
    labels, found = list(result["methods"]), effects(result)
    if not found:
        return ""
    lines = [[name, *[change(by[label]) if label in by else "" for label in labels]] for name, by in found.items()]
    return f'<h2>What the paper is about</h2><div class="panel">{table(["", *labels], lines)}</div>'


def curves(outcomes: list[Outcome]) -> str:
    """A row of charts per metric: all means in one, then every contender's runs, all on one scale."""
    rows = "".join(curve_row(outcomes, *about) for about in CURVES)
    return ('<h2>Learning curves</h2><p class="about">Over generated tokens. First chart of a row: the mean of each '
            "contender's runs. Then one chart per contender, a line per seed, all on the scale of the row. Faint: "
            f"every step; strong: moving average over a tenth of the run.</p>{rows}")  # fmt: skip


def curve_row(outcomes: list[Outcome], title: str, metric: str, note: str, shown: tuple[float, ...]) -> str:
    found = [(o.entry.label, f"s{i % 6}", [series(rows, metric) for rows in o.metrics])  # per seed: tokens, values
             for i, o in enumerate(outcomes)]  # fmt: skip
    found = [(label, kind, runs) for label, kind, runs in found if all(len(tokens) for tokens, _ in runs)]
    if not found:
        return ""
    lines = {label: [(x.tolist(), charts.smooth(y.tolist())) for x, y in runs] for label, _, runs in found}
    heights = [y for runs in lines.values() for _, ys in runs for y in ys]
    scale = dict(shown=(*shown, min(heights), max(heights)), unit="tokens")
    row = [charts.curves("All", [(label, kind, *mean_of(runs)) for label, kind, runs in found], **scale)]
    row += [charts.curves(label, [("", kind, x, y) for x, y in lines[label]], **scale) for label, kind, _ in found]
    return f'<h3>{text(title)}</h3><p class="note">{text(note)}</p><div class="grid4">{"".join(row)}</div>'


def mean_of(runs: list[tuple]) -> tuple[list[float], list[float]]:
    """(tokens, values) of the mean over runs, step by step, as far as the shortest of them goes."""
    steps = min(len(tokens) for tokens, _ in runs)
    return ([float(sum(tokens[i] for tokens, _ in runs) / len(runs)) for i in range(steps)],
            [float(sum(values[i] for _, values in runs) / len(runs)) for i in range(steps)])  # fmt: skip


def runs(outcomes: list[Outcome], path: Path) -> str:
    """Every contender's options and links to the reports of its runs."""
    items = ""
    for o in outcomes:
        reports = [o.entry.run(config["seed"]) / "report.html" for config in o.configs]
        links = [f'<a href="{text(os.path.relpath(report, path.parent))}">seed {config["seed"]}</a>'
                 for config, report in zip(o.configs, reports, strict=True) if report.is_file()]  # fmt: skip
        items += f"<li><code>{text(' '.join([o.entry.method, *o.entry.flags]))}</code> {', '.join(links)}</li>"
    return f"<h2>Runs</h2><ul>{items}</ul>"

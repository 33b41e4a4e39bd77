"""report.html: one self-contained page about a run, built from the files in its folder alone.

    python -m common.report runs/<run>     rebuilds the page of an old or a stopped run

No script, no request to anywhere: curves are inline SVG, pictures are base64, the content security policy
allows the one style sheet by its hash and data: images, nothing else. Everything a model or a data set wrote
is escaped.
"""

import base64
import hashlib
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common import charts
from common.charts import text
from common.checkpoint import write_file
from common.errors import SightRLError
from common.evaluation import Evaluation, compare_evaluations, gap_change
from common.progress import duration
from common.report_rollouts import HABITS, gallery, json_lines

CHANGED = 6  # questions shown that rose most, and that fell most

# title, {metric: (label, class)}, what it is, whether the axis starts at 0
CURVES = [
    ("Reward", {"reward/mean": ("", "s0")}, "Mean over all responses of a step.", False),
    ("Training accuracy",
     {"accuracy": ("training, sampled", "s0"), "val/accuracy": ("validation, greedy", "s4")},
     "Share of responses graded right.", False),
    ("Response length",
     {"length": ("all", "s0"), "length/correct": ("right", "s2"), "length/wrong": ("wrong", "s1")},
     "Tokens, up to and including the end of sequence.", False),
    ("Habits", {f"habit/{h}": (h, h) for h in HABITS},
     "How training responses were reached, as shares.", True),
    ("Entropy", {"entropy": ("", "s0")},
     "Nats per token. A fall to 0 means that exploration has ended.", True),
    ("Gradient norm", {"grad_norm": ("", "s0")}, "Before clipping.", True),
    ("Clipped tokens",
     {"clip/low": ("below", "s1"), "clip/high": ("above", "s0"), "clip_fraction": ("all", "s5")},
     "Share of tokens whose probability ratio left the trust region.", True),
    ("Groups without spread", {"groups/zero_spread": ("", "s0")},
     "Share of groups whose responses all earned the same: they teach nothing.", True),
    ("Sampled against recomputed", {"logp_mismatch": ("", "s0")},
     "Largest |log-probability difference| between sampler and trainer: the health of the engine.", True),
    ("KL to the reference", {"kl": ("", "s0")}, "Nats per token.", True),
    ("Cut off, unreadable, wrong",
     {"truncated": ("hit the length limit", "s1"), "no_answer": ("no answer found", "s4"),
      "wrong_answer": ("wrong answer", "s0")},
     "Shares of responses.", True),
    ("Speed", {"tokens_per_second": ("", "s0")}, "Sampled tokens per second of the whole step.", True),
]  # fmt: skip


def write_report(folder: Path) -> Path:
    """Write folder/report.html and return its path.

    Reads config.json, run.json, versions.json, summary.json, metrics.jsonl, rollouts.jsonl, images/,
    eval_before.json, eval_after.json and own_*.json; a part whose file is missing is left out. Raises SightRLError when
    it is no run folder.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise SightRLError(f"{folder} is not a run folder: it has no config.json.")
    files = {name: _json(folder / f"{name}.json") for name in ("config", "run", "versions", "summary")}
    metrics = list(json_lines(folder / "metrics.jsonl"))
    before, after = (_evaluation(folder / f"eval_{name}.json") for name in ("before", "after"))
    comparison = compare_evaluations(before, after, CHANGED) if before and after else None
    own = [_evaluation(folder / f"own_{name}.json") for name in ("before", "after")]
    own_comparison = compare_evaluations(*own, CHANGED) if all(own) else None
    parts = [
        _header(folder, files, metrics, comparison, before, after),
        _skipped(files["summary"]),
        _skipped_steps(files["summary"]),
        _effects(files["summary"]),
        _held_out(own_comparison, *own, title="The method's own task"),
        _held_out(comparison, before, after),
        _habits_and_gap(before, after),
        _curves(metrics),
        _changed(comparison, before, after),
        gallery(folder),
        _footer(files),
    ]
    content = page(_title(files), "\n".join(part for part in parts if part))
    path = folder / "report.html"
    write_file(path, lambda temporary: temporary.write_bytes(content.encode("utf-8", "replace")))
    return path


def page(title: str, body: str) -> str:
    """A whole page that can load nothing: the body's HTML, whose texts are escaped already, and report.css."""
    style = (Path(__file__).parent / "report.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{text(title)}</title>\n<style>{style}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


# ---------------------------------------------------------------- reading


def _json(path: Path) -> dict:
    try:
        value = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except ValueError as error:
        raise SightRLError(f"{path} is damaged ({error}).") from error
    return value if isinstance(value, dict) else {}


def _evaluation(path: Path) -> Evaluation | None:
    return Evaluation.load(path) if path.exists() else None


def _title(files: dict[str, dict]) -> str:
    method, config = str(files["run"].get("method", "run")), files["config"]
    return f"{method.upper()} on {config.get('data', 'data')}, seed {config.get('seed', '?')}"


# ---------------------------------------------------------------- header and headline numbers


def _header(folder: Path, files: dict[str, dict], metrics: list[dict], comparison: dict | None,
            before: Evaluation | None, after: Evaluation | None) -> str:  # fmt: skip
    run, versions = files["run"], files["versions"]
    commit = (run.get("git_commit") or "")[:10]
    facts = {
        "model": files["config"].get("model"),
        "steps": f"{len(metrics):,} {_limit(files)}" if metrics else None,
        "time": duration(_seconds(files["summary"], metrics)) if metrics else None,
        "started": str(run.get("started", "")).replace("T", " "),
        "commit": commit and commit + (" + local changes" if run.get("git_dirty") else ""),
        "versions": ", ".join(f"{n} {versions[n]}" for n in ("torch", "transformers") if versions.get(n)),
        "hardware": ", ".join(versions.get("gpus") or []) or _hardware(versions),
    }
    shown = "".join(f"<span>{name} <b>{text(value)}</b></span>" for name, value in facts.items() if value)
    unfinished = '<p class="warning">This run has not finished; the page shows it so far.</p>'
    lead = f'<p class="lead">{_lead(comparison, after)}</p>' if comparison else ""
    command = f'<code class="command">{text(run["command"])}</code>' if run.get("command") else ""
    cards = "".join(_cards(metrics, files["summary"], comparison, before, after))
    return (
        f'<header><p class="eyebrow">SightRL run · '
        f"{text(folder.resolve().name)}</p><h1>{text(_title(files))}</h1>"
        f'{command}<div class="facts">{shown}</div></header>'
        f'{"" if files["summary"] else unfinished}{lead}<div class="cards">{cards}</div>'
    )


def _limit(files: dict[str, dict]) -> str:
    """How long the run is meant to be: its budget of tokens where it has one, else its steps."""
    budget, steps = files["config"].get("budget_tokens"), files["run"].get("total_steps")
    if isinstance(budget, int) and budget > 0:
        return f"for {budget:,} tokens"
    return f"of {steps:,}" if isinstance(steps, int) else ""


def _hardware(versions: dict) -> str:
    cores = f"{versions['cores']} cores" if versions.get("cores") else ""
    return ", ".join(part for part in (versions.get("processor"), cores) if part)


def _seconds(summary: dict, metrics: list[dict]) -> float:
    return summary.get("seconds") or sum(m.get("seconds/step") or 0 for m in metrics)


def _lead(comparison: dict, after: Evaluation | None) -> str:
    """The result in two sentences."""
    overall, test = comparison["overall"], comparison["mcnemar"]
    low, high = overall["interval"]
    change = f"{_points(overall['difference'])} points (95 % interval {_points(low)} to {_points(high)})"
    verb = "rose" if low > 0 else "fell" if high < 0 else "did not change measurably"
    p = "p &lt; 0.001" if test["p"] < 0.001 else f"p = {test['p']:.3f}"
    return (
        f"Held-out accuracy {verb}, from {_percent(overall['before'])} to {_percent(overall['after'])}: "
        f"{change}, "
        f"over {overall['questions']} questions with {after.k} responses each. On {test['gained']} "
        "questions the "
        f"majority of responses turned from wrong to right, on {test['lost']} from right to wrong (McNemar, "
        f"{p})."
    )


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}\u00a0%"


def _points(value: float) -> str:
    return f"{100 * value:+.1f}".replace("-", "−")


def _card(label: str, big: str, below: str) -> str:
    return f'<div class="card"><p>{text(label)}</p><p class="big">{big}</p><p>{below}</p></div>'


def _arrow(before: float, after: float) -> str:
    return f"{100 * before:.1f} → {100 * after:.1f} <small>%</small>"


def _cards(metrics: list[dict], summary: dict, comparison: dict | None, before: Evaluation | None,
           after: Evaluation | None) -> Iterator[str]:  # fmt: skip
    if comparison and before and after:
        overall, old, new = comparison["overall"], before.summary()["overall"], after.summary()["overall"]
        yield _card("Held-out accuracy", _arrow(overall["before"], overall["after"]), _change(overall))
        yield _card(f"pass@{after.k}", _arrow(old["pass@k"], new["pass@k"]), f"any of {after.k} responses right")
        change = gap_change(before, after)
        if change:
            result = {"difference": change["change"]["gap"], "interval": change["change"]["interval"]}
            big = f"{_points(change['before']['gap'])} → {_points(change['after']['gap'])}"
            yield _card("Counter-prior gap, points", big, _change(result, better=-1))
        elif old["habits"]:
            yield _card(
                "Blind guesses", _arrow(old["habits"].get("blind", 0), new["habits"].get("blind", 0)), "of responses"
            )
    else:
        tenth = max(1, len(metrics) // 10)
        ends = [_average(part, "accuracy") for part in (metrics[:tenth], metrics[-tenth:])]
        if None not in ends:
            yield _card("Training accuracy", _arrow(*ends), "first and last tenth of the steps")
    speed, step = _average(metrics, "tokens_per_second"), _average(metrics, "seconds/step")
    if metrics and step:
        rate = f"{speed:,.0f} sampled tokens/s" if speed else f"{len(metrics):,} steps"
        yield _card("Training time", duration(_seconds(summary, metrics)), f"{step:.2f} s a step, {rate}")


def _average(metrics: list[dict], name: str) -> float | None:
    values = [m[name] for m in metrics if isinstance(m.get(name), int | float)]
    return sum(values) / len(values) if values else None


def _change(result: dict, better: int = 1) -> str:
    """The difference in points, green or red when its interval leaves 0 out."""
    low, high = result["interval"]
    sure = 1 if low > 0 else -1 if high < 0 else 0
    kind = {0: "", 1: " good", -1: " bad"}[sure * better]
    return (f'<span class="change{kind}">{_points(result["difference"])}</span> '
            f"[{_points(low)}, {_points(high)}]")  # fmt: skip


def _skipped(summary: dict) -> str:
    rows = summary.get("skipped") or []
    if not rows:
        return ""
    items = "".join(f"<li>{text(row)}</li>" for row in rows[:20])
    more = f"<li>and {len(rows) - 20} more</li>" if len(rows) > 20 else ""
    start = f"{len(rows)} data rows could not be read and were skipped:"
    return f'<div class="warning">{start}<ul>{items}{more}</ul></div>'


def _skipped_steps(summary: dict) -> str:
    count = summary.get("steps_skipped")
    if not isinstance(count, int) or not count:
        return ""
    return (f'<div class="warning">{count} steps were skipped, because loss or gradient was not a finite number; their '
            "batches are in the folder skipped.</div>")  # fmt: skip


# ---------------------------------------------------------------- held-out accuracy, habits, gap


def _effects(summary: dict) -> str:
    """What the paper is about in numbers, before and after."""
    found = summary.get("effects") or {}
    if not found:
        return ""
    cells = [(text(name), _figure(v.get("before")), _figure(v.get("after"))) for name, v in found.items()]
    rows = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in cells)
    return (f'<h2>What the paper is about</h2><div class="panel"><table class="effects"><tr><th></th>'
            f"<th>before training</th><th>after training</th></tr>{rows}</table></div>")  # fmt: skip


def _figure(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, (int, float)) else "not measured"


def _held_out(comparison: dict | None, before: Evaluation | None, after: Evaluation | None,
              title: str = "Held-out accuracy") -> str:  # fmt: skip
    only = after or before
    if only is None:
        return ""
    old, new = (e.summary() if e else None for e in (before, after))
    names = [("overall", None, ["overall"]), ("splits", "By split", None), ("tasks", "By task", None)]
    body = f'<div class="item head"><span></span><div class="plot">{charts.axis()}</div><span></span></div>'
    for kind, label, keys in names:
        summary = new or old
        body += f'<p class="label">{label}</p>' if label else ""
        for key in keys or summary[kind]:
            a, b = ((s if keys else s[kind]).get(key) if s else None for s in (old, new))
            result = (comparison if keys else comparison[kind]).get(key) if comparison else None
            body += _accuracy_row(key, a, b, result, total=bool(keys))
    legend = charts.legend_of([("before training", "before"), ("after training", "after")])
    return (
        f'<h2>{title}</h2><p class="about">Mean of {only.k} sampled responses a question, never seen in training. '
        "Whiskers: 95 % bootstrap interval over questions. Right: paired difference in points and its interval, "
        f'coloured when it leaves out 0.</p><div class="panel">{legend}<div class="rows">{body}</div></div>'
    )


def _accuracy_row(name: str, before: dict | None, after: dict | None, result: dict | None, total: bool) -> str:
    values = [s and (s["avg@k"], *s["interval"]) for s in (before, after)]
    shown = after or before
    change = _change(result) if result else f"<b>{_percent(shown['avg@k'])}</b>"
    ends = f"{_percent(result['before'])} → {_percent(result['after'])}" if result else ""
    return (
        f'<div class="item{" total" if total else ""}"><div class="name">{text(name)}'
        f"<small>{shown['questions']} questions</small></div>"
        f'<div class="plot">{charts.dumbbell(*values)}</div>'
        f'<div class="value">{change}<small>{ends}</small></div></div>'
    )


def _habits_and_gap(before: Evaluation | None, after: Evaluation | None) -> str:
    panels = [part for part in (_habits(before, after), _gap(before, after)) if part]
    return f'<h2>How the answers are reached</h2><div class="columns">{"".join(panels)}</div>' if panels else ""


def _habits(before: Evaluation | None, after: Evaluation | None) -> str:
    found = [(name, e.summary()["overall"]["habits"]) for name, e in (("before", before), ("after", after)) if e]
    found = [(name, habits) for name, habits in found if habits]
    if not found:
        return ""
    bars = ""
    for name, habits in found:
        rest = sum(share for habit, share in habits.items() if habit not in HABITS)
        parts = [(h, h, habits.get(h, 0.0) + (rest if h == "other" else 0.0)) for h in HABITS]
        bars += f"<span>{name}</span>{charts.shares(parts)}"
    return (
        '<div class="panel"><h3>Habits</h3><p class="about">Shares of held-out responses. Careful: looks at '
        "everything the question needs. Sloppy: looks, but misses some. Blind: guesses without looking.</p>"
        f'<div class="bars">{bars}</div>{charts.legend_of([(h, h) for h in HABITS])}</div>'
    )


def _gap(before: Evaluation | None, after: Evaluation | None) -> str:
    change = gap_change(before, after) if before and after else None
    if not change:
        return ""
    low, high = -0.4, 0.4
    rows = [change["before"], change["after"]]
    most = max(abs(x) for row in rows for x in (row["gap"], *row["interval"]))
    if most > 0.4:
        low, high = -1.0, 1.0
    values = [(row["gap"], *row["interval"]) for row in rows]
    result = {"difference": change["change"]["gap"], "interval": change["change"]["interval"]}
    note = f"{_points(rows[0]['gap'])} → {_points(rows[1]['gap'])}"
    plot = charts.axis(low, high, signed=True) + charts.dumbbell(*values, low, high, better=-1)
    return (
        '<div class="panel"><h3>Counter-prior gap</h3><p class="about">Accuracy where answers are distributed as in '
        "training, minus accuracy where that prior is flipped. A policy that looks has no gap; one that guesses "
        f'from the prior has a large one.</p><div class="plot wide">{plot}</div><p class="note">{note} points, '
        f"change {_change(result, better=-1)}</p></div>"
    )


# ---------------------------------------------------------------- learning curves


def _curves(metrics: list[dict]) -> str:
    if not metrics:
        return ""
    steps = [m["step"] for m in metrics]
    columns = {name: [m.get(name) for m in metrics] for m in metrics[:1] + metrics[-50:] for name in m}
    figures = []
    for title, names, note, zero in CURVES:
        series = [(label, kind, steps, columns[n]) for n, (label, kind) in names.items() if n in columns]
        figures.append(charts.curves(title, series, note, (0.0,) if zero else ()))
    known = {name for _, names, _, _ in CURVES for name in names}
    rest = [n for n in columns if n not in known | {"step"} and not n.startswith("seconds/")]
    others = "".join(charts.curves(name, [("", "s5", steps, columns[name])]) for name in sorted(rest))
    return (
        '<h2>Learning curves</h2><p class="about">Faint: every step. Strong: moving average over a tenth of '
        "the "
        f"run; the number is its last value.</p><div "
        f'class="grid3">{"".join(figures)}</div>{_time(metrics, columns)}'
        f'<details><summary>All other metrics ({len(rest)})</summary><div class="grid3">{others}</div></details>'
    )


def _time(metrics: list[dict], columns: dict[str, list]) -> str:
    """Where the seconds of a step went."""
    totals = {
        n[8:]: sum(v or 0 for v in columns[n]) for n in columns if n.startswith("seconds/") and n != "seconds/step"
    }
    whole = sum(m.get("seconds/step") or 0 for m in metrics)
    if not totals or not whole:
        return ""
    largest = sorted(totals.items(), key=lambda item: -item[1])[:5]
    parts = [(name, f"s{i}", seconds / whole) for i, (name, seconds) in enumerate(largest)]
    parts.append(("rest", "s5", max(0.0, 1.0 - sum(share for *_, share in parts))))
    legend = charts.legend_of(
        [(f"{name} {charts.number(share * whole / len(metrics), 2)} s", kind) for name, kind, share in parts]
    )
    return f'<h3>Where a step spends its time</h3><div class="panel">{charts.shares(parts)}{legend}</div>'


# ---------------------------------------------------------------- what changed


def _changed(comparison: dict | None, before: Evaluation | None, after: Evaluation | None) -> str:
    if not comparison or not comparison["changed"]:
        return ""
    old, new = ({(r["split"], r["id"]): r for r in e.records} for e in (before, after))
    columns = ""
    for title, sign in (("Rose most", 1), ("Fell most", -1)):
        rows = [row for row in comparison["changed"] if row["difference"] * sign > 0]
        items = "".join(_flip(row, old[row["split"], row["id"]], new[row["split"], row["id"]]) for row in rows)
        if items:
            columns += f'<div><h3>{title}</h3><div class="panel">{items}</div></div>'
    return (
        '<h2>What changed</h2><p class="about">The held-out questions whose share of right responses moved '
        f'most.</p><div class="columns">{columns}</div>'
    )


def _flip(row: dict, old: dict, new: dict) -> str:
    source = new.get("thumbnail") or ""
    safe = source if re.fullmatch(r"[A-Za-z0-9+/=]+", source) else ""
    picture = f'<img src="data:image/jpeg;base64,{safe}" alt="">' if safe else "<span></span>"
    said = "".join(
        f'<p class="meta">{when}</p>'
        + "".join(_said(t, s) for t, s in list(zip(r["responses"], r["scores"], strict=False))[:2])
        for when, r in (("before", old), ("after", new))
    )
    kind = "good" if row["difference"] > 0 else "bad"
    return (
        f'<div class="flip">{picture}<div><p>{text(row.get("question", row["id"]))}</p>'
        f'<p class="meta">gold {text(new["answer"])} · {text(row["task"])}, {text(row["split"])} · right '
        f'<b class="{kind}">{100 * row["before"]:.0f} → {100 * row["after"]:.0f} %</b></p>'
        f'<details class="plain"><summary>responses</summary>{said}</details></div></div>'
    )


def _said(response: str, score: float) -> str:
    kind = "plus" if score > 0.5 else "minus"
    return f'<div class="response {kind}"><div class="text">{text(response)}</div></div>'


# ---------------------------------------------------------------- footer


def _footer(files: dict[str, dict]) -> str:
    def table(values: dict) -> str:
        rows = (
            f"<li><span>{text(n)}</span><code>{text(json.dumps(v, ensure_ascii=False))}</code></li>"
            for n, v in values.items()
        )
        return f'<ul class="options">{"".join(rows)}</ul>'

    options, about = table(files["config"]), table({**files["versions"], **files["run"]})
    return (
        f"<h2>Settings</h2><details><summary>All options "
        f"({len(files['config'])})</summary>{options}</details>"
        f"<details><summary>Versions and hardware</summary>{about}</details><footer>Built from config.json, "
        "metrics.jsonl, rollouts.jsonl and eval_*.json in this folder. The page loads nothing from anywhere and "
        "runs no script.</footer>"
    )


if __name__ == "__main__":
    from common.errors import main_guard

    main_guard(lambda words: print(write_report(Path(words[0] if words else "."))), sys.argv[1:])

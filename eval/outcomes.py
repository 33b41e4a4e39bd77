"""What finished runs say: their folders read, and summed up with intervals as results/<first method>.json has it.

    outcomes = [read_outcome(entry, seeds) for entry in entries]      # entry: compare.Contender
    result = summarise(outcomes, claim)                               # what tables.py, figures.py, compare_page.py show

Nothing here runs or draws anything.
"""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import comparison as stats
from common.errors import SightRLError
from common.evaluation import Evaluation, bootstrap_interval

if TYPE_CHECKING:
    from compare import Contender

BINS = 40  # points of a learning curve
WINDOW = 10  # training steps averaged before a level counts as reached
SAME = ("data", "model", "budget_tokens", "eval_questions", "eval_k")
HARDWARE = ("system", "processor", "cores", "threads", "gpus")


# ---------------------------------------------------------------- reading what the runs wrote


@dataclass
class Outcome:
    """Everything read back from the runs of one contender: S seeds, Q questions in the order of `ids`."""

    entry: Contender
    configs: list[dict]
    about: list[dict]  # run.json of every seed
    versions: list[dict]
    metrics: list[list[dict]]  # per seed, one dict a step
    before: np.ndarray  # float64 [S, Q], mean score of the answers to a question
    after: np.ndarray  # float64 [S, Q]
    ids: list[tuple[str, str]]  # (split, id) of the questions [Q]
    tasks: np.ndarray  # str [Q]
    splits: np.ndarray  # str [Q]
    habits: dict[str, dict[str, float]]  # {"before" or "after": {habit: share of the answers}}
    own: tuple[np.ndarray, np.ndarray, np.ndarray] | None  # before, after [S, Q'], tasks [Q'], if there is an own task
    effects: dict[str, tuple[np.ndarray, np.ndarray]]  # what the paper is about: before, after [S]

    @property
    def tokens(self) -> list[int]:
        return [rows[-1]["tokens_generated"] for rows in self.metrics]


def read_outcome(entry: Contender, seeds: int) -> Outcome:
    """Raises SightRLError naming the file when a run folder is incomplete or its questions differ by seed."""
    folders = [entry.run(seed) for seed in range(seeds)]
    before = [Evaluation.load(folder / "eval_before.json") for folder in folders]
    after = [Evaluation.load(folder / "eval_after.json") for folder in folders]
    ids = [(record["split"], record["id"]) for record in in_order(before[0])]
    for folder, evaluation in zip(folders * 2, before + after, strict=True):
        if [(record["split"], record["id"]) for record in in_order(evaluation)] != ids:
            raise SightRLError(f"{folder} asked other held-out questions than {folders[0]}; delete one.")
    names = ("config.json", "run.json", "versions.json")
    configs, about, versions = ([read_json(folder / name) for folder in folders] for name in names)
    tasks, splits = (np.array([r[name] for r in in_order(before[0])]) for name in ("task", "split"))
    habits = {"before": habit_shares(before), "after": habit_shares(after)}
    metrics = [read_metrics(folder / "metrics.jsonl") for folder in folders]
    return Outcome(entry, configs, about, versions, metrics, scores(before), scores(after), ids, tasks,
                   splits, habits, own_task(folders), effects_of(folders))  # fmt: skip


def own_task(folders: list[Path]) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Scores before and after, float64 [S, Q'] each, and kinds [Q'] of the task that the method trains on."""
    if not all((folder / "own_after.json").is_file() for folder in folders):
        return None
    before, after = ([Evaluation.load(f / f"own_{name}.json") for f in folders] for name in ("before", "after"))
    return scores(before), scores(after), np.array([r["task"] for r in in_order(before[0])])


def effects_of(folders: list[Path]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Effect -> (before, after) over the seeds, [S] each, of those that every run measured; None counts as not."""
    found = [read_json(folder / "summary.json").get("effects", {}) for folder in folders]
    names = [n for n in found[0] if all(None not in (e.get(n) or {"": None}).values() for e in found)]
    return {n: tuple(np.array([e[n][when] for e in found], dtype=np.float64) for when in ("before", "after"))
            for n in names}  # fmt: skip


def in_order(evaluation: Evaluation) -> list[dict]:
    return sorted(evaluation.records, key=lambda record: (record["split"], record["id"]))


def scores(evaluations: list[Evaluation]) -> np.ndarray:
    """float64 [S, Q], mean score of the answers to every question."""
    return np.array([[np.mean(record["scores"]) for record in in_order(e)] for e in evaluations])


def habit_shares(evaluations: list[Evaluation]) -> dict[str, float]:
    names = [name for e in evaluations for record in e.records for name in record.get("habits", [])]
    return {name: names.count(name) / len(names) for name in sorted(set(names))}


def read_metrics(path: Path) -> list[dict]:
    rows = read_json(path, lines=True)
    if not rows:
        raise SightRLError(f"{path} is empty: the run trained no step; give more --budget-tokens.")
    if bad := [row.get("step") for row in rows if not isinstance(row.get("tokens_generated"), int)]:
        raise SightRLError(f"{path}: step {bad[0]} has no tokens_generated; let the method log it at every step, as "
                           "methods/grpo.py does, and delete the folder to run again.")  # fmt: skip
    return rows


def read_json(path: Path, lines: bool = False) -> Any:
    try:
        text = path.read_text(encoding="utf-8")
        return [json.loads(line) for line in text.splitlines()] if lines else json.loads(text)
    except (OSError, ValueError) as error:
        raise SightRLError(f"{path} cannot be read ({error}); delete its folder to run again.") from error


def check_same_budget(outcomes: list[Outcome]) -> None:
    """Raises SightRLError unless all runs spent the same budget of tokens and met the same questions."""
    remedy = "give --allow-different-budgets to compare them all the same."
    first = outcomes[0]
    for other in outcomes[1:]:
        differing = [n for n in SAME if first.configs[0].get(n) != other.configs[0].get(n)]
        if differing or other.ids != first.ids:
            what = f"--{differing[0].replace('_', '-')}" if differing else "their held-out questions"
            raise SightRLError(f'"{first.entry.label}" and "{other.entry.label}" differ in {what}; {remedy}')
    runs = [(o, seed, tokens) for o in outcomes for seed, tokens in enumerate(o.tokens)]
    for outcome, seed, tokens in runs:
        if tokens < (budget := outcome.configs[seed]["budget_tokens"]):
            raise SightRLError(f'"{outcome.entry.label}" seed {seed} ended after {tokens:,} of {budget:,} '
                               f"tokens (see {outcome.entry.log(seed)}); {remedy}")  # fmt: skip


# ---------------------------------------------------------------- summing up


def summarise(outcomes: list[Outcome], claim: str) -> dict:
    """The content of results/<first>.json. claim: what the paper says, in one line."""
    first = outcomes[0]
    edges = np.linspace(0, max(max(o.tokens) for o in outcomes), BINS + 1)
    found = {o.entry.label: curves_of(o, edges) for o in outcomes}
    curves = {label: curve for label, curve in found.items() if curve is not None}  # float64 [S, BINS] each
    levels = reach_levels(list(curves.values())) if curves else []
    about = {"method": first.entry.label, "date": date.today().isoformat(),
             "command": shlex.join(["./run.sh", "compare", *sys.argv[1:]])}  # fmt: skip
    result = {
        **about,
        **provenance(outcomes),
        "seeds": [config["seed"] for config in first.configs],
        "budget_tokens": first.configs[0]["budget_tokens"],
        "held_out": {"questions": len(first.ids), "answers": first.configs[0]["eval_k"]},
        "claim": claim,
        "shown": [],
        "methods": {o.entry.label: summary_of(o, curves.get(o.entry.label), edges, levels) for o in outcomes},
        "paired": {o.entry.label: paired(first, o, curves) for o in outcomes[1:]},
    }
    return result | {"shown": verdicts(result)}


def summary_of(outcome: Outcome, curve: np.ndarray | None, edges: np.ndarray, levels: list[float]) -> dict:
    """All numbers of one contender. curve: float64 [S, BINS] over edges; None if it answers nothing in training."""
    means, curve_mean = {}, None
    if curve is not None:
        low, high = stats.curve_interval(curve)
        means = {"tokens": edges[1:], "accuracy": curve.mean(axis=0), "low": low, "high": high}
        curve_mean = {"score": float(curve.mean()), "per_seed": curve.mean(axis=1).tolist()}
    return {
        "options": shlex.join(outcome.entry.flags),
        "settings": outcome.entry.settings,
        "runs": str(outcome.entry.folder),
        "tokens": outcome.tokens,
        "updates": [len(rows) for rows in outcome.metrics],
        "base": stats.estimate(outcome.before),
        "final": stats.estimate(outcome.after),
        "gain": stats.paired_difference(outcome.after, outcome.before),
        "iqm": stats.interquartile_mean(by_task(outcome)),
        "final_per_seed": outcome.after.mean(axis=1).tolist(),
        "tasks": groups_of(outcome, outcome.tasks),
        "splits": groups_of(outcome, outcome.splits),
        "habits": outcome.habits,
        "own": own_summary(outcome),
        "effects": {
            name: {"before": over_seeds(a), "after": over_seeds(b), "change": stats.difference_over_seeds(b, a)}
            for name, (a, b) in outcome.effects.items()
        },
        "curve": {name: [round(float(x), 5) for x in values] for name, values in means.items()},
        "curve_mean": curve_mean,
        "levels": {f"{level:.2f}": reached(outcome, level) for level in levels},
        "dependency": dependency(outcome),
        "gradient": gradient(outcome),
    }


def over_seeds(values: np.ndarray) -> dict:
    """{"score", "interval"} of a number per seed."""
    return {"score": float(values.mean()), "interval": bootstrap_interval(values)}


def own_summary(outcome: Outcome) -> dict | None:
    """Base and final score on the method's own task, in all and per kind."""
    if outcome.own is None:
        return None
    before, after, kinds = outcome.own
    found = {str(k): {"base": stats.estimate(before[:, kinds == k]), "final": stats.estimate(after[:, kinds == k])}
             for k in np.unique(kinds)}  # fmt: skip
    return {"base": stats.estimate(before), "final": stats.estimate(after), "kinds": found}


def groups_of(outcome: Outcome, names: np.ndarray) -> dict:
    """Base and final score per task or per split."""
    found = {}
    for name in np.unique(names):
        before, after = (scores[:, names == name] for scores in (outcome.before, outcome.after))
        found[str(name)] = {"questions": before.shape[1], "base": stats.estimate(before),
                            "final": stats.estimate(after)}  # fmt: skip
    return found


def series(rows: list[dict], name: str) -> tuple[np.ndarray, np.ndarray]:
    """(generated tokens, values) of the steps of one run that have the metric, float64 [n] each."""
    pairs = [(row["tokens_generated"], row[name]) for row in rows if row.get(name) is not None]
    tokens, values = np.array(pairs, dtype=np.float64).reshape(-1, 2).T
    return tokens, values


def curves_of(outcome: Outcome, edges: np.ndarray) -> np.ndarray | None:
    """Training accuracy of everything sampled (before groups are filtered), per seed and bin, [S, BINS]; None if a run
    logged none, as in supervised training."""
    runs = [series(rows, "accuracy") for rows in outcome.metrics]
    return np.stack([stats.binned(*run, edges) for run in runs]) if all(len(run[0]) for run in runs) else None


def reach_levels(curves: list[np.ndarray]) -> list[float]:
    """Training accuracies to race for: 25, 50, 75 and 90 % of the way from the start to the best end."""
    start = float(np.mean([curve[:, 0].mean() for curve in curves]))
    end = float(max(curve[:, -1].mean() for curve in curves))
    return sorted({round(start + share * (end - start), 2) for share in (0.25, 0.5, 0.75, 0.9)})


def reached(outcome: Outcome, level: float) -> dict:
    """Generated tokens and updates per seed until the mean of WINDOW steps reached the level; None: never."""
    tokens: list[int | None] = []
    updates: list[int | None] = []
    for rows in outcome.metrics:
        spent, accuracy = series(rows, "accuracy")
        at = stats.first_reach(stats.smoothed(accuracy, WINDOW), level)
        tokens.append(None if at is None else int(spent[at]))
        updates.append(None if at is None else at + 1)
    return {"tokens": tokens, "updates": updates}


def dependency(outcome: Outcome) -> dict | None:
    """Mean dependency S_t of words that only the picture can tell and of all others; None if not logged."""
    kinds = [np.array([series(rows, f"dependency/{kind}")[1].mean() for rows in outcome.metrics])
             for kind in ("visual", "template")
             if all(len(series(rows, f"dependency/{kind}")[1]) for rows in outcome.metrics)]  # fmt: skip
    if len(kinds) < 2:
        return None
    visual, template = kinds  # [S] each
    ratio = visual / np.maximum(template, 1e-12)
    return {"visual": float(visual.mean()), "template": float(template.mean()), "ratio": float(ratio.mean()),
            "interval": bootstrap_interval(ratio)}  # fmt: skip


def gradient(outcome: Outcome) -> dict:
    """Means over steps and seeds, None where not logged: the gradient's norm before clipping, and
    mean m^2 alpha^2, which in theory is its variance as a share of the variance without mask and scale."""
    found = {}
    for name in ("grad_norm", "variance_ratio"):
        values = [series(rows, name)[1] for rows in outcome.metrics]
        found[name] = float(np.concatenate(values).mean()) if all(map(len, values)) else None
    return found


def paired(first: Outcome, other: Outcome, curves: dict[str, np.ndarray]) -> dict:
    """first minus other on equal seeds and, where both met the same, equal questions."""
    result: dict[str, Any] = {}
    same_task = first.entry.method == other.entry.method or (first.own is None and other.own is None)
    if same_task and first.entry.label in curves and other.entry.label in curves:
        a, b = (curves[o.entry.label].mean(axis=1) for o in (first, other))  # [S] each
        result["curve_mean"] = stats.difference_over_seeds(a, b)
    result["effects"] = {name: stats.difference_over_seeds(first.effects[name][1], other.effects[name][1])
                         for name in first.effects if name in other.effects}  # fmt: skip
    if first.ids != other.ids:
        return result
    result["final"] = stats.paired_difference(first.after, other.after)
    for kind, names in (("tasks", first.tasks), ("splits", first.splits)):
        result[kind] = {str(name): stats.paired_difference(first.after[:, names == name],
                                                           other.after[:, names == name])
                        for name in np.unique(names)}  # fmt: skip
    return result | {"improvement": stats.probability_of_improvement(by_task(first), by_task(other))}


def by_task(outcome: Outcome) -> np.ndarray:
    """Final accuracy per run and family of questions, float64 [S, tasks]."""
    return np.stack([outcome.after[:, outcome.tasks == task].mean(axis=1) for task in np.unique(outcome.tasks)], axis=1)


def verdicts(result: dict) -> list[dict]:
    """What the runs say about the claim: {statement, holds "yes" | "no" | "undecided", value, interval}."""
    found, name = [], result["method"]
    for label, pair in result["paired"].items():
        for key, words in (("final", "answers more held-out questions correctly than"),
                           ("curve_mean", "is more accurate on average while training than")):  # fmt: skip
            if key in pair:
                value, bounds = pair[key]["difference"], pair[key]["interval"]
                found.append(verdict(f"`{name}` {words} `{label}` (difference)", value, bounds, 0.0))
        for effect, gap in pair.get("effects", {}).items():
            words = f"after training {effect} of `{name}` is above that of `{label}` (difference)"
            found.append(verdict(words, gap["difference"], gap["interval"], 0.0))
    seen = result["methods"][name]["dependency"]
    if seen is not None:
        statement = "words that only the picture can tell depend more on it than the others (ratio of means)"
        found.append(verdict(statement, seen["ratio"], seen["interval"], 1.0))
    return found


def verdict(statement: str, value: float, bounds: list[float], neutral: float) -> dict:
    holds = "yes" if bounds[0] > neutral else "no" if bounds[1] < neutral else "undecided"
    return {"statement": statement, "holds": holds, "value": value, "interval": bounds}


def provenance(outcomes: list[Outcome]) -> dict:
    """Commits, versions and hardware of the runs; several entries where runs differ: worth a look."""
    versions = [v for o in outcomes for v in o.versions]
    libraries = tuple(name for name in versions[0] if name not in HARDWARE)
    return {"commits": distinct([r for o in outcomes for r in o.about], ("git_commit", "git_dirty")),
            "versions": distinct(versions, libraries), "hardware": distinct(versions, HARDWARE)}  # fmt: skip


def distinct(rows: list[dict], names: tuple[str, ...]) -> list[dict]:
    picked = [{name: row.get(name) for name in names} for row in rows]
    return [row for i, row in enumerate(picked) if row not in picked[:i]]

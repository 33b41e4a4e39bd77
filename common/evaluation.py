"""Held-out accuracy with intervals: k responses per question, stored one by one so that any number can be recomputed.

avg@k   mean over questions of the mean score of their k responses
pass@j  chance that at least one of j responses is correct, unbiased for j <= k (arXiv 2107.03374, eq. 1)

95 % intervals: percentile bootstrap over questions, 10,000 draws, fixed seed; differences are paired by question. Where
correctness is yes or no (pass@j, McNemar) a response is correct when its score is above 0.5.
"""

import base64
import io
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from rich.text import Text

from common.checkpoint import write_json
from common.errors import SightRLError, printable
from common.rewards import parse_state

DRAWS = 10_000
CORRECT = 0.5
THUMBNAIL = 112  # longest side in pixels of the small picture kept with a record


@dataclass
class Evaluation:
    """What a policy answered on held-out questions.

    records: one dict per question {id, task, split, question, answer, responses [str], scores [float],
    truncated [bool], lengths [tokens], states ["ok" | "no_answer" | ...], habits [str] when a habit function
    was given, thumbnail}. k: responses per question. settings: how the responses were sampled.
    """

    records: list[dict]
    k: int
    settings: dict = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Write JSON, atomically."""
        write_json(Path(path), asdict(self), indent=None)

    @classmethod
    def load(cls, path: Path) -> "Evaluation":
        try:
            found = cls(**json.loads(Path(path).read_text(encoding="utf-8")))
            if type(found.k) is not int or not all(isinstance(record, dict) for record in found.records):
                raise ValueError("k is no number or a record no object")
            return found
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise SightRLError(f"{path} is not an evaluation written by this program ({error}).") from error

    def summary(self) -> dict:
        """{"overall": stats, "tasks": {task: stats}, "splits": {split: stats}}; see `_stats` for the keys."""
        return {
            "overall": _stats(self.records, self.k),
            "tasks": {name: _stats(part, self.k) for name, part in _grouped(self.records, "task").items()},
            "splits": {name: _stats(part, self.k) for name, part in _grouped(self.records, "split").items()},
        }


def evaluate(
    vlm: Any,
    samples: list | dict[str, list],
    make_prompt: Callable[[Any, Any], Any],
    score: Callable[[str, Any], float],
    *,
    k: int,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    seed: int = 0,
    batch_prompts: int = 32,
    habit: Callable[[str, Any], str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Sample k responses to every sample and score them; global random state and the model's mode stay as
    they are.

    samples: a list, or {split name: list}; without names the split is `sample.meta["split"]`, else "test".
    make_prompt(vlm, sample) -> Prompt; score(text, sample) -> float; habit(text, sample) -> str;
    progress(done, total) is called after every batch of `batch_prompts` prompts.
    """
    from common.rollout import rollout  # here: reading results must not wait for transformers to be imported

    named = samples if isinstance(samples, dict) else {"": samples}
    todo = [(split or sample.meta.get("split", "test"), sample) for split, part in named.items() for sample in part]
    generator = torch.Generator().manual_seed(seed)
    was_training = vlm.model.training
    vlm.model.eval()
    records: list[dict] = []
    try:
        for start in range(0, len(todo), batch_prompts):
            batch = todo[start : start + batch_prompts]
            prompts = [make_prompt(vlm, sample) for _, sample in batch]
            with torch.no_grad():
                out = rollout(vlm, prompts, k, max_new_tokens=max_new_tokens, temperature=temperature,
                top_p=top_p,
                              generator=generator)  # fmt: skip
            lengths, truncated = out.mask.sum(dim=1).tolist(), out.truncated.tolist()  # [B*k] each
            for i, (split, sample) in enumerate(batch):
                rows = slice(i * k, (i + 1) * k)
                record = _record(split, sample, out.texts[rows], score, habit)
                record |= {"truncated": truncated[rows], "lengths": lengths[rows], "thumbnail": _thumbnail(prompts[i])}
                records.append(record)
            if progress is not None:
                progress(len(records), len(todo))
    finally:
        vlm.model.train(was_training)
    settings = {"max_new_tokens": max_new_tokens, "temperature": temperature, "top_p": top_p, "seed": seed}
    return Evaluation(records, k, {**settings, "batch_prompts": batch_prompts})


def _record(split: str, sample: Any, texts: list[str], score: Callable, habit: Callable | None) -> dict:
    record = {
        "id": sample.id,
        "task": sample.task,
        "split": split,
        "question": sample.question,
        "answer": sample.answer,
    }
    if getattr(sample, "frame", None):  # of the boxes in answer and responses
        record["frame"] = list(sample.frame)
    record |= {"responses": list(texts), "scores": [float(score(text, sample)) for text in texts]}
    record["states"] = [parse_state(text) for text in texts]
    if habit is not None:
        record["habits"] = [habit(text, sample) for text in texts]
    return record


def _thumbnail(prompt: Any) -> str:
    """The first picture, small, as base64 JPEG: enough to look at in the report. Empty without pictures."""
    images = getattr(prompt, "images", None)
    if not images:
        return ""
    image = Image.fromarray(images[0])
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


# ---------------------------------------------------------------- one evaluation


def _grouped(records: list[dict], key: str) -> dict[str, list[dict]]:
    parts: dict[str, list[dict]] = {}
    for record in records:
        parts.setdefault(str(record[key]), []).append(record)
    return dict(sorted(parts.items()))


def _stats(records: list[dict], k: int) -> dict:
    """questions, avg@k with its interval [low, high], pass@k, pass {j: pass@j}, habits {name: share of
    responses}, truncated and no_answer (shares of responses), length (mean tokens). Shares are None where
    nothing was recorded."""
    if not records:
        return {"questions": 0, "avg@k": None, "interval": [None, None], "pass@k": None, "pass": {}, "habits":
        {},
                "truncated": None, "no_answer": None, "length": None}  # fmt: skip
    means = _means(records)  # [questions]
    passes = pass_at(
        [[s > CORRECT for s in r["scores"]] for r in records], [j for j in (1, 2, 4, 8, 16, 32) if j < k] + [k]
    )
    states = [state for r in records for state in r.get("states", [])]
    return {
        "questions": len(records),
        "avg@k": float(means.mean()),
        "interval": bootstrap_interval(means),
        "pass@k": passes[k],
        "pass": {str(j): value for j, value in passes.items()},
        "habits": _shares([name for r in records for name in r.get("habits", [])]),
        "truncated": _mean([float(x) for r in records for x in r.get("truncated", [])]),
        "no_answer": _mean([float(state != "ok") for state in states]),
        "length": _mean([float(x) for r in records for x in r.get("lengths", [])]),
    }


def _means(records: list[dict]) -> np.ndarray:
    return np.array([np.mean(record["scores"]) for record in records], dtype=np.float64)


def _mean(values: list[float]) -> float | None:
    return float(np.mean(values)) if values else None


def _shares(names: list[str]) -> dict[str, float]:
    return {name: names.count(name) / len(names) for name in sorted(set(names))}


def pass_at(correct: list[list[bool]], sizes: list[int]) -> dict[int, float]:
    """Unbiased pass@j for every j in `sizes`, averaged over questions: 1 - C(n - c, j) / C(n, j).

    correct: one list of n booleans per question. Raises ValueError when a question has fewer than j
    responses.

    >>> pass_at([[True, False, False, False]], [1, 2, 4])
    {1: 0.25, 2: 0.5, 4: 1.0}
    """
    counts = np.array([(len(row), sum(row)) for row in correct], dtype=np.float64)  # [questions, 2]
    total, wrong = counts[:, 0], counts[:, 0] - counts[:, 1]
    if total.min() < max(sizes):
        raise ValueError(f"pass@{max(sizes)} needs {max(sizes)} responses, a question has {int(total.min())}")
    missed = {}
    for j in sizes:
        steps = np.arange(j)[:, None]  # C(w, j) / C(n, j) as a product, which neither over- nor underflows
        missed[j] = np.prod(np.clip(wrong - steps, 0, None) / (total - steps), axis=0)  # [questions]
    return {j: float(1.0 - value.mean()) for j, value in missed.items()}


# ---------------------------------------------------------------- intervals


def bootstrap_means(values: np.ndarray, draws: int = DRAWS, seed: int = 0) -> np.ndarray:
    """Means of `draws` resamples with replacement; float64 [draws]. values: float64 [n], n >= 1."""
    generator = np.random.default_rng(seed)
    rows = max(1, 2_000_000 // len(values))  # about 16 MB of indices at a time
    parts = []
    for start in range(0, draws, rows):
        index = generator.integers(len(values), size=(min(rows, draws - start), len(values)))  # [rows, n]
        parts.append(values[index].mean(axis=1))
    return np.concatenate(parts)


def bootstrap_interval(values: np.ndarray, draws: int = DRAWS, seed: int = 0) -> list[float]:
    """Percentile bootstrap 95 % interval [low, high] of the mean of `values`."""
    return percentile_interval(bootstrap_means(values, draws, seed))


def percentile_interval(means: np.ndarray) -> list[float]:
    """[low, high] that 95 % of the resampled means lie in."""
    return [float(x) for x in np.percentile(means, [2.5, 97.5])]


# ---------------------------------------------------------------- before and after


def compare_evaluations(before: Evaluation, after: Evaluation, changed: int = 20) -> dict:
    """Paired comparison, after minus before, over the questions both hold.

    Returns {"overall", "tasks": {..}, "splits": {..}}, each {questions, before, after, difference, interval};
    "mcnemar" {gained, lost, p}: questions whose majority of responses turned correct or wrong, exact
    two-sided; "changed": the `changed` questions that rose most, then those that fell most {id, task, split,
    question, before, after, difference}. Raises SightRLError when no question is in both.
    """
    pairs = _pairs(before, after)
    return {
        "overall": _paired(pairs),
        "tasks": {name: _paired(part) for name, part in _grouped_pairs(pairs, "task").items()},
        "splits": {name: _paired(part) for name, part in _grouped_pairs(pairs, "split").items()},
        "mcnemar": _mcnemar(pairs),
        "changed": _changed(pairs, changed),
    }


Pair = tuple[dict, dict]


def _pairs(before: Evaluation, after: Evaluation) -> list[Pair]:
    old = {(r["split"], r["id"]): r for r in before.records}
    pairs = [(old[key], r) for r in after.records if (key := (r["split"], r["id"])) in old]
    if not pairs:
        raise SightRLError("the two evaluations have no question in common; evaluate both on the same samples.")
    return pairs


def _grouped_pairs(pairs: list[Pair], key: str) -> dict[str, list[Pair]]:
    parts: dict[str, list[Pair]] = {}
    for pair in pairs:
        parts.setdefault(str(pair[1][key]), []).append(pair)
    return dict(sorted(parts.items()))


def _paired(pairs: list[Pair]) -> dict:
    old, new = _means([a for a, _ in pairs]), _means([b for _, b in pairs])
    result = {"questions": len(pairs), "before": float(old.mean()), "after": float(new.mean())}
    return {**result, "difference": float((new - old).mean()), "interval": bootstrap_interval(new - old)}


def _mcnemar(pairs: list[Pair]) -> dict:
    from scipy.stats import binomtest  # here: scipy.stats takes a second to import

    old, new = _means([a for a, _ in pairs]) > CORRECT, _means([b for _, b in pairs]) > CORRECT
    gained, lost = int((~old & new).sum()), int((old & ~new).sum())
    p = float(binomtest(gained, gained + lost, 0.5).pvalue) if gained + lost else 1.0
    return {"gained": gained, "lost": lost, "p": p}


def _changed(pairs: list[Pair], count: int) -> list[dict]:
    rows = []
    for old, new in pairs:
        a, b = float(np.mean(old["scores"])), float(np.mean(new["scores"]))
        about = {name: new[name] for name in ("id", "task", "split", "question") if name in new}
        rows.append({**about, "before": a, "after": b, "difference": b - a})
    rose = sorted((r for r in rows if r["difference"] > 0), key=lambda r: -r["difference"])
    fell = sorted((r for r in rows if r["difference"] < 0), key=lambda r: r["difference"])
    return rose[:count] + fell[:count]


def gap(evaluation: Evaluation, split_a: str = "test", split_b: str = "test_counter") -> dict | None:
    """avg@k on split_a minus split_b: {a, b, gap, interval}; None when a split is missing.

    With split_b = the split whose answer prior is flipped this is the size of the language shortcut. The
    splits hold different questions, so each is resampled on its own.
    """
    parts = _grouped(evaluation.records, "split")
    if split_a not in parts or split_b not in parts:
        return None
    return _gap(_means(parts[split_a]), _means(parts[split_b]))


def _gap(a: np.ndarray, b: np.ndarray) -> dict:
    means = bootstrap_means(a, seed=0) - bootstrap_means(b, seed=1)  # two seeds: the resamples must be independent
    return {
        "a": float(a.mean()),
        "b": float(b.mean()),
        "gap": float(a.mean() - b.mean()),
        "interval": percentile_interval(means),
    }


def gap_change(
    before: Evaluation, after: Evaluation, split_a: str = "test", split_b: str = "test_counter"
) -> dict | None:
    """{"before": gap, "after": gap, "change": gap of the paired differences}; None when a split is
    missing."""
    parts = _grouped_pairs(_pairs(before, after), "split")
    if split_a not in parts or split_b not in parts:
        return None
    old = [_means([pair[0] for pair in parts[name]]) for name in (split_a, split_b)]
    new = [_means([pair[1] for pair in parts[name]]) for name in (split_a, split_b)]
    return {"before": _gap(*old), "after": _gap(*new), "change": _gap(new[0] - old[0], new[1] - old[1])}


# ---------------------------------------------------------------- the table


def print_table(before: Evaluation, after: Evaluation | None = None, console: Console | None = None,
                title: str = "Held-out accuracy") -> None:  # fmt: skip
    """Print accuracy overall, per split and per task; with `after` also the paired difference and its
    interval."""
    old, new = before.summary(), after.summary() if after is not None else None
    difference = compare_evaluations(before, after) if after is not None else None
    table = Table(title=f"{title} (mean of {before.k} responses, 95 % interval)", title_justify="left")
    columns = (
        ["", "questions", "before", "after", "difference", "pass@k"] if new else ["", "questions", "accuracy", "pass@k"]
    )
    for i, name in enumerate(columns):
        table.add_column(name.replace("@k", f"@{before.k}"), justify="right" if i else "left")
    table.add_row(*_row("overall", old["overall"], new and new["overall"], difference and difference["overall"]))
    for kind in ("splits", "tasks"):
        table.add_section()
        for name, stats in old[kind].items():
            pair = (new[kind].get(name), difference[kind].get(name)) if new else (None, None)
            table.add_row(*_row(name, stats, *pair))
    (console or Console()).print(table)


def _row(name: str, old: dict, new: dict | None, difference: dict | None) -> list[str | Text]:
    start = [
        Text(printable(name)),  # of the data: no markup
        str(old["questions"]),
        _with_interval(old["avg@k"], old["interval"]),
    ]
    if new is None or difference is None:
        return [*start, f"{old['pass@k']:.3f}"]
    after = _with_interval(new["avg@k"], new["interval"])
    change = _with_interval(difference["difference"], difference["interval"], "+")
    return [*start, after, change, f"{old['pass@k']:.3f} → {new['pass@k']:.3f}"]


def _with_interval(value: float, interval: list[float], sign: str = "") -> str:
    low, high = (f"{x:{sign}.3f}" for x in interval)
    return f"{value:{sign}.3f} [{low}, {high}]"

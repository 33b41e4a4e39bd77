"""MEGA-Bench (core): 440 tasks of every kind, most with several pictures, each with the metric that suits its answer.

github TIGER-AI-Lab/MEGA-Bench. The row says how to read the response and how to score each field of the answer; the
score is the mean over tasks of the mean over their questions. megabench_parse.py and megabench_metrics.py do the work.

    official     as released with the paper, and in VLMEvalKit: what follows the first "Answer:"
    lmms-eval    what follows the last one (so does the repository since December 2024)
"""

from __future__ import annotations

import mimetypes
from collections.abc import Sequence
from typing import Any

from benchmark import Benchmark, Line, Result, Row, Video, grouped, macro_line, mean_line
from columns import literal, text
from common.errors import SightRLError
from megabench_metrics import CONTEXT, METRICS, field_score
from megabench_parse import answer_text, json_fields, json_value, unquoted

TEXTS = ("task_description", "example_text", "query_text")
MEDIA = ("global_media", "example_media", "query_media")
STRING_PARSERS = ("answer_string", "ascii_answer_string", "verbatim_answer_string")


# ---------------------------------------------------------------- columns


def published(row: Row, name: str, kind: type) -> Any:
    """A column that holds JSON, or a Python literal, of this kind. Raises SightRLError if it does not."""
    value = row.get(name)
    if isinstance(value, str):
        value = literal(value) if json_value(value) is None else json_value(value)
    if not isinstance(value, kind):
        raise SightRLError(f"column {name} must hold a {kind.__name__} as JSON; take the published rows.")
    return value


def truth_of(row: Row) -> dict[str, Any]:
    return published(row, "answer", dict)


def rules(row: Row) -> tuple[dict[str, str], dict[str, str], dict[str, float], str, str]:
    """Metric of every field, metrics of the whole answer, weights, how to put scores together, how to read."""
    info = published(row, "metric_info", dict)
    try:
        joined = info["aggregation"]
        metrics = {str(field): str(name).lower() for field, name in info["field_score_function"].items()}
        whole = {str(field): str(name).lower() for field, name in (info.get("global_aux_metrics") or {}).items()}
        weights = {field: float(joined["field_weights"][field]) for field in metrics | whole}
        function, parser = str(joined["function"]), str(info.get("response_parse_function") or "json")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise SightRLError(f"column metric_info is not as published ({error}); take the published rows.") from None
    if not weights:
        raise SightRLError("column metric_info names no metric; take the published rows.")
    return metrics, whole, weights, function, parser


def media(row: Row) -> list[Any]:
    """Paths of pictures and videos, in the order of the marks in the text."""
    paths = [str(path) for name in MEDIA for path in published(row, name, list)]
    videos = [(mimetypes.guess_type(path)[0] or "").startswith("video") for path in paths]
    return [Video(path) if video else path for path, video in zip(paths, videos, strict=True)]


def prompt(row: Row, scoring: str) -> str:
    """Task, worked example and question as published, which say what the answer must look like."""
    asked = "\n".join(str(row.get(name) or "") for name in TEXTS).replace("<video>", "<image>")
    if not asked.strip():
        raise SightRLError("columns task_description, example_text and query_text are empty; take the published rows.")
    return asked if asked.count("<image>") == len(media(row)) else asked.replace("<image>", "")


# ---------------------------------------------------------------- score


def read(row: Row, response: str, parser: str, last: bool) -> dict[str, Any]:
    """Field -> what the response gives for it; the whole response for each field if it cannot be read as JSON."""
    truth = truth_of(row)
    if parser in STRING_PARSERS:
        fields = [name for name in truth if not name.startswith("##")]
        if len(fields) != 1:
            raise SightRLError(f"column answer has {len(fields)} fields, but its parser {parser} reads one.")
        single = "\n" not in str(truth[fields[0]])
        kind = {"ascii_art": parser == STRING_PARSERS[1], "verbatim": parser == STRING_PARSERS[2]}
        return {fields[0]: answer_text(response, single_line=single, last=last, **kind)}
    value = None if parser == "dummy" else json_fields(response)
    return value if isinstance(value, dict) and value else dict.fromkeys(truth, response)


def score(row: Row, response: str, scoring: str) -> Result:
    metrics, whole, weights, function, parser = rules(row)
    truth, given = truth_of(row), read(row, response, parser, last=scoring == "lmms-eval")
    scores = {}
    for field, name in metrics.items():
        wanted = published(row, "eval_context", dict) if name in CONTEXT else unquoted(truth.get(field, ""))
        scores[field] = field_score(name, given.get(field, ""), wanted)
    scores |= {field: field_score(name, given, truth) for field, name in whole.items()}
    unknown = sorted({name for name in (metrics | whole).values() if name not in METRICS and name not in CONTEXT})
    parts = {"fields": scores, "unsupported": unknown, "left out": bool(unknown) and max(scores.values()) < 0}
    answer = {str(field)[:80]: str(value)[:200] for field, value in list(given.items())[:20]}
    return Result(max(0.0, together(scores, weights, function)), answer, parts=parts)


def together(scores: dict[str, float], weights: dict[str, float], function: str) -> float:
    """The weighted mean or the minimum of the scores that are not negative, -1 without any."""
    kept = {field: score for field, score in scores.items() if score >= 0}
    if not kept or function not in ("mean", "min"):
        return -1.0
    if function == "min":
        return min(kept.values())
    total = sum(weights[field] for field in kept)
    return sum(weights[field] * score for field, score in kept.items()) / total if total > 0 else 0.0


# ---------------------------------------------------------------- table


def summarise(rows: Sequence[Row], results: Sequence[Result], scoring: str) -> list[Line]:
    """The mean over tasks, over questions, and how many tasks have no metric here."""
    tasks = grouped(zip(rows, results, strict=True), lambda pair: text(pair[0], "task_name"))
    kept = {name: [result.score for _, result in pairs if not result.parts.get("left out")]
            for name, pairs in tasks.items()}  # fmt: skip
    lines = [macro_line("core (mean of tasks)", list(kept.values())),
             mean_line("mean of questions", [score for scores in kept.values() for score in scores])]  # fmt: skip
    missing = sum(not scores for scores in kept.values())
    return lines + ([Line("tasks left out (count)", float(missing), len(tasks))] if missing else [])


BENCHMARKS = {
    "megabench": Benchmark(
        title="MEGA-Bench (core)", source="hf:TIGER-Lab/MEGA-Bench,core", split="test", size=6531,
        metric="mean of tasks", licence="not stated",
        columns=("task_name", "id", *TEXTS, *MEDIA, "answer", "metric_info", "eval_context"),
        prompt=prompt, score=score, images=media, summarise=summarise, scorings=("official", "lmms-eval"),
        max_new_tokens=2048, identify=lambda row, number: text(row, "id"),
        reference=(("LLaVA-OneVision-7B", "21.89", "lmms-eval"),),
        note="Pictures and videos are files of the same repository. 27 of the 440 tasks have a metric that is not here "
             "(constrained_generation 18, program_judge 8, gleu_cn 1: see megabench_metrics.py); they are left out of "
             "the mean and counted, so that it is not quite the published one.",
    )
}  # fmt: skip

"""Charades-STA: when does the described event happen? Spans of seconds, mean IoU and recall at IoU 0.3, 0.5, 0.7.

Evaluators: EvolvingLMMs-Lab/lmms-eval at 75571cfe, tasks/charades_sta.

    lmms-eval  utils.py, the task's own metrics: clock ranges first, and all sentences if none has a keyword
    official   eval_tvg.py beside it, the script to which answers used to be handed: only sentences with a keyword,
               no clock ranges; clock times as hh:mm:ss alone, and after plain numbers, so "1:05" reads as 1

The data set's paper scores spans, not texts, so the default is the task's own evaluator. The TimeLens variant (HF
kcz358/timelens, whose parser looks at all sentences and for clock times first) is not here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import numpy as np

from benchmark import Benchmark, Line, Result, Row, Video, cell, mean_line
from columns import entries
from common.errors import SightRLError

Span = tuple[float, float]  # seconds, start <= end


# ---------------------------------------------------------------- prompt


def prompt(row: Row, scoring: str) -> str:
    return (f"When in the video does this happen: {cell(row, 'caption', str)}\n"
            "Answer with one sentence of the form 'The event happens in START - END seconds', with START and END "
            "as seconds from the beginning, such as 12.4 - 19.0.")  # fmt: skip


# ---------------------------------------------------------------- extraction

EXAMPLE = "a specific example is : 20.8 - 30.0 seconds"  # of an older prompt; both evaluators still cut it out
KEYWORDS = ("start", "end", "happen")  # the lists of both also hold longer words that begin with these
CLOCK = r"\d{1,2}:\d{2}(?::\d{2})?"
NUMBER = r"\d++(?:\.\d++)?+"  # possessive, and below not from the middle of a number: linear time
CLOCK_RANGE = re.compile(rf"\b({CLOCK})\s*[–-]\s*({CLOCK})\b")
RANGE = re.compile(rf"(?<!\d)({NUMBER})\s*+[–-]\s*+({NUMBER})")
RANGE_OF_SECONDS = re.compile(rf"(?<!\d)({NUMBER})\s*+s?+\s*+[–-]\s*+({NUMBER})")
CLOCKS = re.compile(rf"\b({CLOCK})\b")
FULL_CLOCK = re.compile(r"\b(\d{1,2}:\d{2}:\d{2})\b")
LONE_NUMBER = re.compile(r"\b(\d+(?:\.\d+)?)\b")


def seconds(clock: str) -> float:
    """ "1:05" -> 65.0, "1:00:05" -> 3605.0, "7.5" -> 7.5."""
    total = 0.0
    for part in clock.split(":"):
        total = 60 * total + float(part)
    return total


def first_range(sentences: Sequence[str], pattern: re.Pattern) -> list[float]:
    match = next((match for sentence in sentences if (match := pattern.search(sentence))), None)
    return [seconds(time) for time in match.groups()] if match else []


def first_times(sentences: Sequence[str], pattern: re.Pattern) -> list[float]:
    """The first time of each sentence that has one."""
    return [seconds(match[1]) for sentence in sentences if (match := pattern.search(sentence))]


def all_times(sentences: Sequence[str], pattern: re.Pattern) -> list[float]:
    return [seconds(time) for sentence in sentences for time in pattern.findall(sentence)]


STEPS = {  # the first step that finds two times decides
    "lmms-eval": ((first_range, CLOCK_RANGE), (first_range, RANGE), (all_times, CLOCKS), (first_times, LONE_NUMBER),
                  (first_range, RANGE_OF_SECONDS)),
    "official": ((first_range, RANGE), (first_times, LONE_NUMBER), (first_times, FULL_CLOCK),
                 (first_range, RANGE_OF_SECONDS)),
}  # fmt: skip


def span_of(response: str, scoring: str) -> Span | None:
    """The first span of time in a response.

    Known bugs of both evaluators, kept: every "to" becomes a dash, inside words too; sentences end at "!", "?" and
    line breaks but not at periods, so "It starts at 4 s and ends at 9 s." is one sentence with one number: no span.
    """
    text = response.lower().replace(EXAMPLE, "").replace("to", "-")
    every = re.split(r"[!?\n]", text)
    sentences = [sentence for sentence in every if any(word in sentence for word in KEYWORDS)]
    if not sentences and scoring == "lmms-eval":
        sentences = every
    sentences = [sentence for sentence in sentences if re.search(r"\d", sentence)]
    for find, pattern in STEPS[scoring]:
        times = find(sentences, pattern)
        if len(times) >= 2:
            return min(times[:2]), max(times[:2])
    return None


# ---------------------------------------------------------------- score


def overlap(a: Span, b: Span) -> float:
    """Intersection over the hull of both, as the evaluators have it; 0 for a hull of no length (eval_tvg divides)."""
    hull = max(a[1], b[1]) - min(a[0], b[0])
    return max(0.0, min(a[1], b[1]) - max(a[0], b[0])) / hull if hull > 0 else 0.0


def truth(row: Row) -> Span:
    span = entries(row, "timestamp")
    if len(span) != 2 or not all(isinstance(t, (int, float, np.number)) and 0 <= t < 1e9 for t in span):
        raise SightRLError(f"column timestamp holds {str(span)[:60]}; it must be two numbers of seconds.")
    return float(span[0]), float(span[1])


def score(row: Row, response: str, scoring: str) -> Result:
    span, gold = span_of(response, scoring), truth(row)
    if span is None or math.isinf(span[1]):  # no span, or a number of 400 digits: overlaps by nothing
        return Result(0.0)
    return Result(overlap(gold, span), list(span))


# ---------------------------------------------------------------- summarise


def summarise(rows: Sequence[Row], results: Sequence[Result], scoring: str) -> list[Line]:
    """mIoU and R@1. Rows of the same video, caption and times count once, with the last answer, as in both evaluators;
    so ask them once."""
    pairs = zip(rows, results, strict=True)
    scores = np.array([*{(row["video"], row["caption"], truth(row)): result.score for row, result in pairs}.values()])
    recalls = [mean_line(f"R@1, IoU >= {least}", scores >= least) for least in (0.3, 0.5, 0.7)]
    return [mean_line("mIoU", scores), *recalls]


BENCHMARKS = {
    "charades_sta": Benchmark(
        title="Charades-STA (test)", source="hf:lmms-eval/charades_sta", split="test", size=3720, metric="mIoU",
        licence="not stated; the videos of Charades have a research licence",
        columns=("video", "caption", "timestamp"), prompt=prompt, score=score,
        images=lambda row: [Video(cell(row, "video", str))], summarise=summarise,
        scorings=("lmms-eval", "official"), max_new_tokens=50,
        identify=lambda row, number: f"{row['video']} {row['timestamp']} {number}",
        note="Videos lie in the folder Charades_v1_480 of the data set. A right time in other words than "
             "'START - END' often earns 0 (see span_of): look at the answers that were read.",
    ),
}  # fmt: skip

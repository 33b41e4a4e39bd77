"""HR-Bench: questions with options about pictures of 4K and 8K, each asked with its options in four orders.

Official code: github DreamMr/HR-Bench at b17b1998, a copy of VLMEvalKit.

    official    what VLMEvalKit reads, and for the rest a judge who is told the right option and says whether the answer
                is right. (The published script asks its judge about every answer.)
    vlmevalkit  (e8e78f05) can_infer, a judge who names an option for the rest
    lmms-eval   (75571cfe) an older can_infer: the letter may stand anywhere, "answer is" does not help, and the text of
                an option counts in responses of any length

Each order counts for itself: a question need not be right in all four.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from benchmark import Benchmark, Line, Result, Row, bootstrap, grouped
from choices import inferred, inferred_judged, inferred_prompt, listed
from columns import letter, text
from common.errors import SightRLError
from extract import FAILED, MARKS, REFUSALS

# ---------------------------------------------------------------- prompt


def options_of(row: Row) -> dict[str, str]:
    options = {name: text(row, name) for name in "ABCD" if row.get(name) not in (None, "")}
    if len(options) < 2:
        raise SightRLError("columns A to D hold fewer than two options; take the published rows.")
    return options


def prompt(row: Row, scoring: str) -> str:
    question, options = text(row, "question").strip(), listed(options_of(row))
    return f"{question}\n{options}\nAnswer with the letter of the right option alone."


# ---------------------------------------------------------------- score


def lmms_infer(response: str, options: dict[str, str]) -> str | None:
    """The only letter that stands alone, "Z" for a refusal, the only option whose text occurs, or None."""
    if FAILED not in response:
        if any(refusal in response for refusal in REFUSALS):
            return "Z"
        words = set(response.translate(MARKS).split())
        found = [name for name in options if name in words]
        if len(found) == 1:
            return found[0]
        if not found and "Z" in words:
            return "Z"
    found = [name for name, option in options.items() if option.lower() in response.lower()]
    return found[0] if len(found) == 1 else None


def score(row: Row, response: str, scoring: str) -> Result:
    options = options_of(row)
    right = letter(row, "answer", options)
    if scoring != "lmms-eval":
        return inferred(response, options, right)
    found = lmms_infer(response.strip(), options)
    return Result(float(found == right), found, undecided=found is None)


def judge_prompt(row: Row, result: Result, response: str, scoring: str) -> str:
    question, options = text(row, "question"), options_of(row)
    if scoring != "official":
        return inferred_prompt(question, options, response)
    right = letter(row, "answer", options)
    return (f"Somebody was asked this question with options:\n\n{question}\n{listed(options)}\n\nRight is "
            f"{right}. {options[right]}.\nThe answer given: {response}\n\nIs it right? Write yes or no and nothing "
            "else.")  # fmt: skip


def judge_score(row: Row, result: Result, reply: str, scoring: str) -> Result:
    options = options_of(row)
    right = letter(row, "answer", options)
    if scoring == "official":
        yes = re.match("yes", reply, re.I) is not None  # anything but a yes at the very beginning is a no
        return replace(result, score=float(yes), answer=right if yes else None, undecided=False)
    if scoring == "vlmevalkit":
        return inferred_judged(result, reply, options, right)
    # lmms-eval asks ten times and then stops with an error; what cannot be read stays undecided here.
    found = lmms_infer(reply.strip(), options)
    return replace(result, score=float(found == right), answer=found, undecided=found is None)


# ---------------------------------------------------------------- table


def summarise(rows: Sequence[Row], results: Sequence[Result], scoring: str) -> list[Line]:
    """All rows, then questions about one thing (FSP) and about several (FCP), each the mean of the four orders."""
    pairs = list(zip(rows, results, strict=True))
    kinds = grouped(pairs, lambda pair: str(pair[0].get("category")))
    lines = [orders_line("overall", pairs)]
    names = {"single": "FSP (single)", "cross": "FCP (cross)"}
    return lines + [orders_line(names.get(kind, kind), kinds[kind]) for kind in sorted(kinds, reverse=True)]


def orders_line(name: str, pairs: Sequence[tuple[Row, Result]]) -> Line:
    """The mean over orders of the mean over rows; whole questions are drawn again for the interval."""
    orders = {key: i for i, key in enumerate(grouped(pairs, lambda pair: pair[0].get("cycle_category")))}
    questions = list(grouped(pairs, lambda pair: question_key(pair[0])).values())
    sums = np.zeros((len(questions), 2, max(len(orders), 1)))  # [questions, (score, count), orders]
    for i, group in enumerate(questions):
        for row, result in group:
            sums[i, :, orders[row.get("cycle_category")]] += result.score, 1.0

    def mean(picked: np.ndarray) -> float:
        scores, counts = picked.sum(axis=0)
        return float(np.mean(scores[counts > 0] / counts[counts > 0]))

    if not pairs:
        return Line(name, 0.0, 0)
    return Line(name, 100 * mean(sums), len(pairs), bootstrap(mean, sums))


def question_key(row: Row) -> str:
    """The same for the four orders of a question: its text and its options in any order."""
    return repr((row.get("question"), sorted(str(row.get(name)) for name in "ABCD")))


def benchmark(size: str, numbers: dict[str, str]) -> Benchmark:
    return Benchmark(
        title=f"HR-Bench {size.upper()}", source="hf:DreamMr/HR-Bench,hrbench_version_split", split=f"hrbench_{size}",
        size=800, metric="accuracy", licence="not stated",
        columns=("image", "question", "A", "B", "C", "D", "answer", "category", "cycle_category"), prompt=prompt,
        score=score, summarise=summarise, judge_prompt=judge_prompt, judge_score=judge_score,
        scorings=("official", "vlmevalkit", "lmms-eval"), identify=lambda row, number: str(row.get("index", number)),
        reference=tuple((model, value, "README of DreamMr/HR-Bench") for model, value in numbers.items()),
        note="Results depend on how far pictures may be shrunk: set and report the pixel limits.")  # fmt: skip


BENCHMARKS = {
    "hrbench_4k": benchmark("4k", {"Qwen2-VL-7B": "66.8", "InternVL-2-76B": "71.0", "GPT-4o": "59.0",
                                   "Qwen2-VL-2B": "64.0", "human": "82.0"}),
    "hrbench_8k": benchmark("8k", {"Qwen2-VL-7B": "66.5", "InternVL-2-76B": "61.4", "GPT-4o": "55.5",
                                   "Qwen2-VL-2B": "58.6", "human": "86.8"}),
}  # fmt: skip

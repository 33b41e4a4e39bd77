"""DynaMath: 501 questions written as programs, each in 10 variants with other numbers, figures or functions.

Official code: github DynaMath/DynaMath at 598c3c3d. VLMEvalKit at e8e78f05, lmms-eval at 75571cfe.
The response is a JSON object with "short answer", which is read by the type of the question:

    official    VLMEvalKit's reading, which the authors point to; an answer in words must contain the truth
    vlmevalkit  an answer in words must be contained in the truth, so that an empty one is right and a sentence wrong
    lmms-eval   extractor C4 on the response with <think> and <answer> blocks; another worst case, see summarise()

Average accuracy is over all rows. Worst-case accuracy is the share of questions with all of their variants right.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

import numpy as np

from benchmark import Benchmark, Line, Result, Row, bootstrap, cell, clustered_line, grouped, judged
from common.errors import SightRLError
from extract import reasoning_score

# ---------------------------------------------------------------- prompts

SHORT = {"multiple choice": "the letter of the right option and nothing else",
         "float": "a number with three decimal places and nothing else"}  # fmt: skip
WORDS = "a short answer; a number in it has three decimal places"


def prompt(row: Row, scoring: str) -> str:
    what = SHORT.get(cell(row, "answer_type", str), WORDS)
    if scoring == "lmms-eval":
        end = f"Reason inside <think> </think>, then write {what} inside <answer> </answer>."
    else:
        end = ('Reply with a JSON object that has two keys: "solution" holds your reasoning step by step, '
               f'"short answer" holds {what}.')  # fmt: skip
    return f"{cell(row, 'question', str)}\n{end}"


# ---------------------------------------------------------------- extraction

Short = float | str | None  # a read answer; None: it cannot be read
LONGEST = 1000  # characters of an answer that are kept


def json_part(response: str) -> str:
    """From the first opening to the last closing brace, all of it without such, and without any backslash."""
    start, end = response.find("{"), response.rfind("}")
    text = response[start : end + 1] if 0 <= start < end else response
    return text.replace("\\", "")


def stated(text: str, scoring: str) -> str | None:
    """ "short answer" of the JSON object; None if there is none. The official code takes a bare number in it for a
    text, VLMEvalKit fails on it."""
    try:
        found = json.loads(text, strict=False)
    except (ValueError, RecursionError):
        return None
    answer = found.get("short answer") if isinstance(found, dict) else None
    if answer is None or isinstance(answer, str):
        return answer
    return str(answer) if scoring == "official" else None


def read(text: str, kind: str) -> Short:
    """A text as an answer of this type."""
    if kind == "float":
        return number(text if text.isdigit() else text.partition(" ")[0])
    if kind == "multiple choice":
        if len(text) == 1:
            return text.upper()
        capitals = text.upper()
        letters = [letter for letter in "ABCDE" if letter in capitals]
        return letters[0] if len(letters) == 1 else None
    return text


def number(text: str) -> float | None:
    """ "3.142" or "2π"; what follows the π is not read, so "2π/3" is 2π."""
    before, pi, _ = text.partition("π")
    try:
        return float(before) * (math.pi if pi else 1.0)
    except ValueError:
        return None


# ---------------------------------------------------------------- scores


def truth_of(row: Row) -> tuple[str, str]:
    """(type, truth) of a row."""
    kind, truth = cell(row, "answer_type", str), str(cell(row, "ground_truth"))
    try:
        float(truth if kind == "float" else 0)
    except ValueError:
        raise SightRLError(f"column ground_truth holds {truth[:60]!r}; a float question needs a number.") from None
    return kind, truth


def right(answer: Short, kind: str, truth: str, scoring: str) -> bool:
    if answer is None:
        return False
    if kind == "float":
        return abs(float(answer) - float(truth)) <= 0.001
    if kind == "multiple choice":
        return answer == truth
    # VLMEvalKit turned the official test around.
    return str(answer).lower() in truth.lower() if scoring == "vlmevalkit" else truth in str(answer)


def shown(answer: Short) -> str | None:
    return None if answer is None else str(answer)[:LONGEST]


def score(row: Row, response: str, scoring: str) -> Result:
    kind, truth = truth_of(row)
    if scoring == "lmms-eval":
        accuracy, form = reasoning_score(response, truth)
        return Result(accuracy, parts={"format": form})
    text = json_part(response)
    short = stated(text, scoring)
    answer = None if short is None else read(short, kind)
    if answer is None:
        answer = read(text, kind)
    if answer is None:
        return unread(text, kind, truth)
    return Result(float(right(answer, kind, truth, scoring)), shown(answer))


def unread(text: str, kind: str, truth: str) -> Result:
    """The last rule, for options only: the truth is among the first three characters of the response."""
    if kind == "multiple choice" and truth in text[:3].upper():
        return Result(1.0, truth)
    return Result(0.0, undecided=True)


# ---------------------------------------------------------------- judge


def judge_prompt(row: Row, result: Result, response: str, scoring: str) -> str:
    what = SHORT.get(cell(row, "answer_type", str), WORDS)
    return (f"Which final answer does this response give? Write {what}.\n\nResponse:\n{json_part(response)}\n\n"
            "The final answer of the response:")  # fmt: skip


def judge_score(row: Row, result: Result, reply: str, scoring: str) -> Result:
    """What the judge extracted is read by the type of the question; unreadable is wrong."""
    kind, truth = truth_of(row)
    answer = read(reply.strip(), kind)
    return judged(result, right(answer, kind, truth, scoring), shown(answer))


# ---------------------------------------------------------------- table


def summarise(rows: Sequence[Row], results: Sequence[Result], scoring: str) -> list[Line]:
    """Average and worst-case accuracy, the share of the first that is left in the second (robustness), and both by
    subject and level. All intervals are from resampling questions, whose variants are alike.

    lmms-eval groups by the number of the variant, not by the question: its average is the mean of the variants' means,
    and its worst case asks whether all 501 questions of a variant are right, which is practically never so.
    """
    seeds = [row.get("id" if scoring == "lmms-eval" else "question_id") for row in rows]
    scores = [result.score for result in results]

    def lines(name: str, picked: Sequence[int]) -> list[Line]:
        groups = [[scores[i] for i in group] for group in grouped(picked, lambda i: seeds[i]).values()]
        # [group, (mean, all right)]
        units = np.array([(sum(g) / len(g), min(g)) for g in groups], dtype=float).reshape(-1, 2)
        average = clustered_line(f"average{name}", [scores[i] for i in picked], [seeds[i] for i in picked])
        if scoring == "lmms-eval" and len(units):
            average = Line(average.name, float(100 * units[:, 0].mean()), len(units),
                           bootstrap(lambda p: p[:, 0].mean(), units))  # fmt: skip
        if not len(units):
            return [average, Line(f"worst case{name}", 0.0, 0)]
        worst = bootstrap(lambda p: p[:, 1].mean(), units)
        return [average, Line(f"worst case{name}", float(100 * units[:, 1].mean()), len(units), worst)]

    found = lines("", range(len(rows)))
    average, worst = (line.value for line in found)
    found.append(Line("robustness", 100 * worst / average if average else 0.0, found[1].count))
    for column in ("subject", "level", "knowledge_level"):
        told = [i for i, row in enumerate(rows) if row.get(column) is not None]
        for name, picked in grouped(told, lambda i, column=column: str(rows[i][column])).items():
            found += lines(f", {column}: {name}", picked)
    return found


BENCHMARKS = {
    "dynamath": Benchmark(
        title="DynaMath (10 variants)",
        source="hf:kcz358/DynaMath",
        split="test",
        size=5010,
        metric="average accuracy",
        licence="MIT",
        columns=("question_id", "id", "question", "ground_truth", "answer_type"),
        prompt=prompt,
        score=score,
        images=lambda row: [row["decoded_image"]],
        summarise=summarise,
        judge_prompt=judge_prompt,
        judge_score=judge_score,
        scorings=("official", "vlmevalkit", "lmms-eval"),
        identify=lambda row, number: f"{row.get('question_id')}-{row.get('id')}",
        note="Papers quote the average or the worst case: read the title of the column. The rows are lmms-eval's copy; "
             "the authors' DynaMath/DynaMath_Sample has a split per variant and no column for it. The authors' own "
             "scripts also tell capitals from small letters and call no language model.",
    )
}  # fmt: skip

"""MathVista: figures, geometry, word problems, textbooks, VQA; the answer is an option, a number or a list.

Official code: github lupantech/MathVista at 53d52587. VLMEvalKit at e8e78f05, lmms-eval at 75571cfe.
First an answer is extracted: the response itself where it is nothing but one, else what stands in the sentence
The answer is "...". (an option of the official code, --quick_extract, that is on here), else what a judge finds.
Then it is brought into the form of the truth and compared:

    official    the option of a letter, or the option nearest by edit distance; numbers cut or rounded; texts equal
    vlmevalkit  options by extractor C1; int() and float() of the extraction, unrounded; lists are always wrong
    lmms-eval   as official, but all questions for a float are wrong (40 of 1000), see normal()
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmark import Benchmark, Line, Result, Row, cell, mean_line
from choices import lettered
from columns import entries
from common.errors import SightRLError
from common.overlap import edit_distance
from extract import can_infer

# ---------------------------------------------------------------- prompts


def wanted(row: Row) -> str:
    """What an answer to this question is, in words."""
    if choices(row):
        return "the letter of the right option"
    places = precision(row) if row["answer_type"] == "float" else 0
    kinds = {"integer": "a whole number in digits", "float": f"a number with {places} digit(s) behind the point",
             "list": "a list such as [2, 5]"}  # fmt: skip
    return kinds.get(row["answer_type"], "a short answer")


def task(row: Row) -> str:
    unit = f" (unit: {row['unit']})" if row.get("unit") else ""
    options = lettered(choices(row)) if choices(row) else {}
    return "\n".join([f"{cell(row, 'question', str)}{unit}", *(f"({name}) {text}" for name, text in options.items())])


def prompt(row: Row, scoring: str) -> str:
    if scoring != "vlmevalkit":
        end = f'Reason step by step. Finish with the sentence: The answer is "X". For X write {wanted(row)}.'
    elif choices(row):
        end = f"Reason step by step. Finish with the sentence: The answer is X. For X write {wanted(row)}."
    else:
        end = f"Answer with {wanted(row)} and nothing else."
    return f"{task(row)}\n{end}"


# ---------------------------------------------------------------- rows


def choices(row: Row) -> list[str]:
    """The options of a multiple-choice question, [] for any other."""
    if cell(row, "question_type", str) != "multi_choice":
        cell(row, "answer_type", str)
        return []
    options = [str(option) for option in entries(row, "choices")]
    if cell(row, "answer", str) not in options or len(options) > 26:
        raise SightRLError("column answer must be the text of one of at most 26 choices; take the published files.")
    return options


def precision(row: Row) -> int:
    places = cell(row, "precision", int, float)
    if not 0 <= places <= 20:
        raise SightRLError(f"column precision holds {places}; it must be a number of decimal places such as 1.0.")
    return int(places)


# ---------------------------------------------------------------- extraction

QUICK = 'The answer is "'


def extract(row: Row, response: str) -> str | None:
    """The answer that a rule finds in the response; None where a judge is needed."""
    if not response or response in choices(row):
        return response
    read = {"integer": int, "float": float}.get(cell(row, "answer_type", str))
    try:
        return str(read(response)) if read else quick(response)
    except ValueError:
        return quick(response)


def quick(response: str) -> str | None:
    """What the first line with The answer is "..." has between the first such opening and the last such end."""
    for line in response.split("\n"):
        start, end = line.find(QUICK), line.rfind('".')
        if 0 <= start <= end - len(QUICK):
            return line[start + len(QUICK) : end]
    return None


# ---------------------------------------------------------------- scores

LONGEST = 2000  # characters of an extraction that are compared with the options


def normal(row: Row, extraction: str, scoring: str) -> str | None:
    """The extraction in the form of the truth; None if it has none."""
    if options := choices(row):
        text = extraction.strip()
        if bracketed := re.search(r"\(([a-zA-Z])\)", text):
            text = bracketed[1].upper()
        if len(text) == 1 and 0 <= ord(text) - 65 < len(options):
            return options[ord(text) - 65]
        # Never undecided: the nearest option is taken for an empty extraction too, and then it is the shortest one.
        return min(options, key=lambda option: edit_distance(option, text[:LONGEST]))
    try:
        if row["answer_type"] == "integer":
            return str(int(float(extraction)))
        if row["answer_type"] == "float":
            places = precision(row)
            # lmms-eval passes the precision on as the column holds it, a float, and round(x, 1.0) raises.
            return str(round(float(extraction), row["precision"] if scoring == "lmms-eval" else places))
    except (ValueError, OverflowError, TypeError):
        return None
    return extraction


def graded(row: Row, extraction: str, scoring: str) -> Result:
    truth = cell(row, "answer", str)
    if scoring == "vlmevalkit":
        return kit(row, extraction)
    answer = normal(row, extraction, scoring)
    right = str(answer).strip() == truth.strip() if scoring == "lmms-eval" else answer == truth
    return Result(float(right), answer if answer is None else answer[:LONGEST])


def kit(row: Row, extraction: str) -> Result:
    """VLMEvalKit's comparison; undecided where it finds no answer of the right form."""
    truth, shown = cell(row, "answer", str), extraction.strip()[:LONGEST]
    if options := choices(row):
        letter = can_infer(extraction, lettered(options))
        return Result(float(letter == chr(65 + options.index(truth))), letter, undecided=letter is None)
    read = {"integer": int, "float": float}.get(row["answer_type"])
    if read is None:  # a list: the code compares the truth with the text "None"
        return Result(float(truth == "None"), shown)
    try:
        value = read(extraction)
    except ValueError:
        return Result(0.0, shown, undecided=True)
    try:
        return Result(float(value == read(truth)), shown)
    except ValueError:
        return Result(0.0, shown)


def score(row: Row, response: str, scoring: str) -> Result:
    if scoring == "vlmevalkit":
        return kit(row, response)
    extraction = extract(row, response.strip() if scoring == "lmms-eval" else response)
    if extraction is None:
        cell(row, "answer", str)
        return Result(0.0, undecided=True)
    return graded(row, extraction, scoring)


# ---------------------------------------------------------------- judge


def judge_prompt(row: Row, result: Result, response: str, scoring: str) -> str:
    return (f"A question and a response to it follow. Which final answer does the response give? Write it as "
            f"{wanted(row)}, with no other word.\n\nQuestion:\n{task(row)}\n\nResponse:\n{response}\n\n"
            "The final answer of the response:")  # fmt: skip


def judge_score(row: Row, result: Result, reply: str, scoring: str) -> Result:
    """What the judge extracted is graded like any extraction; unreadable is wrong, as in the original."""
    found = graded(row, reply.strip(), scoring)
    return Result(found.score, found.answer)


# ---------------------------------------------------------------- table

GROUPS = ("task", "skills", "grade", "source", "category")  # of the column metadata


def summarise(rows: Sequence[Row], results: Sequence[Result], scoring: str) -> list[Line]:
    """Overall, then by task, skill (a question can have several), grade, source, category and question type."""
    lines = [mean_line("overall", [result.score for result in results])]
    for column in (*GROUPS, "question_type"):
        groups: dict[str, list[float]] = {}
        for row, result in zip(rows, results, strict=True):
            for name in names(row, column):
                groups.setdefault(name, []).append(result.score)
        lines += [mean_line(f"{column}: {name}", scores) for name, scores in groups.items()]
    return lines


def names(row: Row, column: str) -> list[str]:
    """The groups of a row; none where it says nothing."""
    about = row if column == "question_type" else row.get("metadata")
    value: Any = about.get(column) if isinstance(about, dict) else None
    values = value if isinstance(value, (list, tuple, np.ndarray)) else [value]
    return [str(item) for item in values if item is not None]


BENCHMARKS = {
    "mathvista": Benchmark(
        title="MathVista (testmini)",
        source="hf:AI4Math/MathVista",
        split="testmini",
        size=1000,
        metric="accuracy",
        licence="CC BY-SA 4.0 for the annotations; pictures keep their sources' licences",
        columns=("question", "choices", "precision", "answer", "question_type", "answer_type"),
        prompt=prompt,
        score=score,
        images=lambda row: [row["decoded_image"]],
        summarise=summarise,
        judge_prompt=judge_prompt,
        judge_score=judge_score,
        scorings=("official", "vlmevalkit", "lmms-eval"),
        identify=lambda row, number: str(row.get("pid", number)),
        reference=(
            *((f"Qwen2.5-VL-{size}", value, "the maker, by way of an aggregator")
              for size, value in (("3B", "62.3"), ("7B", "68.2"), ("72B", "74.8"))),
            *((model, value, "InternVL2.5 model card") for model, value in (
                ("Qwen2-VL-2B", "43.0"), ("Qwen2-VL-7B", "58.2"), ("Qwen2-VL-72B", "70.5"),
                ("InternVL2.5-2B", "51.3"), ("InternVL2.5-8B", "64.4"))),
        ),
        note="The published numbers ask a language model for every answer that is not bare: use a judge to compare "
             "with them. The official code counts an empty response as the shortest option. lmms-eval shows no number "
             "at all where nothing is right.",
    )
}  # fmt: skip

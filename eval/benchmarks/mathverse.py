"""MathVerse: 788 problems of plane and solid geometry and functions, each in five versions from text to picture.

Official code: github ZrrSkywalker/MathVerse at 937b0905. VLMEvalKit at e8e78f05, lmms-eval at 75571cfe.
Every answer goes to a language model, so that without --judge only bare answers are decided:

    official    a judge extracts the answer and compares it with the truth; without one: the response is the truth
    vlmevalkit  the same, but an extraction equal to the truth but for blanks is right whatever the judge says
    lmms-eval   a judge compares the whole response with the truth; nothing is decided without one

Beside these scores the table has a line of a rule of our own, which needs no judge and is nobody's published number:
the letter or value in the <answer> block or the last box, compared as a letter (C1) or by its value.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from benchmark import Benchmark, Line, Result, Row, cell, clustered_line, grouped, judged
from common.errors import SightRLError
from common.maths import grade_answer
from extract import OWN_RULE, can_infer, final_answer

VERSIONS = ("Text Dominant", "Text Lite", "Vision Intensive", "Vision Dominant", "Vision Only")
TEXT_ONLY = "Text Only"
LAST_WORDS = 0  # of a response that the judge gets to see; 0: all of them. Both are in the official code


# ---------------------------------------------------------------- prompts


def prompt(row: Row, scoring: str) -> str:
    """The question, which Vision Only has in the picture, and the form of the answer."""
    question = cell(row, "question", str).strip()
    where = question or "The picture holds a question. Read it and answer it."
    what = "the letter of the right option" if by_letter(row) else "the value asked for"
    return f"{where}\nReason step by step, then put {what}, and nothing else, into \\boxed{{}}."


def pictures(row: Row) -> list[Any]:
    image = row.get("image")
    return [] if row.get("problem_version") == TEXT_ONLY or image is None or image == "" else [image]


def by_letter(row: Row) -> bool:
    kind = cell(row, "question_type", str)
    if kind not in ("multi-choice", "free-form"):
        raise SightRLError(f"column question_type holds {kind[:60]!r}; it must be multi-choice or free-form.")
    return kind == "multi-choice"


# ---------------------------------------------------------------- extraction


def last_words(text: str, count: int) -> str:
    """The last words of a text, split at single blanks; all of it for a count below 1."""
    return " ".join(text.split(" ")[-count:]) if count > 0 else text


def matches(extraction: str, truth: str, scoring: str) -> bool:
    """Whether an extraction is the truth to the letter. The official code strips blanks from the extraction alone."""
    return extraction.strip() == (truth.strip() if scoring == "vlmevalkit" else truth)


OPTION = re.compile(r"([A-H])[:.] ?(.*)")


def options_in(question: str) -> dict[str, str]:
    """The options that stand in a question, one to a line as in "A:30"; A to D without text if there are none."""
    found = (OPTION.fullmatch(line.strip()) for line in question.split("\n"))
    return {match[1]: match[2] for match in found if match} or dict.fromkeys("ABCD", "")


def local(row: Row, response: str) -> bool:
    """Our own rule: <answer> block, else last box, else the response; a letter by C1, a value by grade_answer."""
    answer, truth = final_answer(response), cell(row, "answer", str)
    if by_letter(row):
        return can_infer(answer, options_in(str(row.get("question_for_eval") or row.get("question") or ""))) == truth
    return grade_answer(answer, truth)


# ---------------------------------------------------------------- scores


def score(row: Row, response: str, scoring: str) -> Result:
    parts = {"local": float(local(row, response))}
    if scoring != "lmms-eval" and matches(response, row["answer"], scoring):
        return Result(1.0, response.strip(), parts=parts)
    return Result(0.0, undecided=True, parts=parts)


# ---------------------------------------------------------------- judge


def judge_prompt(row: Row, result: Result, response: str, scoring: str) -> str:
    """One request for what the official code asks in two: what the answer is, and whether it is right."""
    question = str(row.get("question_for_eval") or row.get("question") or "")
    given = (f"Question:\n{question}\n\nRight answer:\n{cell(row, 'answer', str)}\n\n"
             f"Response:\n{last_words(response, LAST_WORDS)}\n\n")  # fmt: skip
    rule = ("An answer agrees with the right one if it means exactly the same: the same option, or the same value also "
            "in another notation or unit. One that is incomplete or missing does not.")  # fmt: skip
    if scoring == "lmms-eval":
        return f"{given}{rule}\nDoes the final answer of the response agree? Write 1 for yes or 0 for no, nothing else."
    return (f"{given}{rule}\nWrite two lines:\nExtracted: the final answer of the response, or null if it has none\n"
            "Judgement: 1 if it agrees, 0 if not")  # fmt: skip


def judge_score(row: Row, result: Result, reply: str, scoring: str) -> Result:
    """A reply without a verdict leaves the official score open (there the judge is asked until it gives one); the
    others count it as wrong."""
    _, labelled, rest = reply.partition("Extracted:")
    extraction = rest.partition("\n")[0].strip() if labelled else ""
    verdict = re.split("udge?ment:", reply)[-1].strip(" \t\r\n*.")
    right = verdict == "1"
    if scoring == "vlmevalkit" and labelled:
        right = right or matches(extraction, cell(row, "answer", str), scoring)
    if scoring == "official" and verdict not in ("0", "1"):
        return replace(result, answer=extraction[:1000] or None)
    return judged(result, right, extraction[:1000] or None)


# ---------------------------------------------------------------- table


def summarise(rows: Sequence[Row], results: Sequence[Result], scoring: str) -> list[Line]:
    """All rows with a picture, then every version, subject and subfield. The five versions of a problem are alike, so
    the intervals are from resampling problems."""
    problems = [str(row.get("problem_index")) for row in rows]
    scores = [result.score for result in results]
    versions = [str(row.get("problem_version")) for row in rows]
    seen = [i for i, version in enumerate(versions) if version != TEXT_ONLY] or list(range(len(rows)))

    def line(name: str, picked: Sequence[int], values: Sequence[float] = scores) -> Line:
        return clustered_line(name, [values[i] for i in picked], [problems[i] for i in picked])

    lines = [line("overall", seen)]
    for version in (*VERSIONS, TEXT_ONLY):
        if picked := [i for i, name in enumerate(versions) if name == version]:
            lines.append(line(version, picked))
    for column in ("subject", "subfield"):
        told = [i for i in seen if isinstance(about := rows[i].get("metadata"), dict) and about.get(column)]
        groups = grouped(told, lambda i, column=column: str(rows[i]["metadata"][column]))
        lines += [line(f"{column}: {name}", picked) for name, picked in groups.items()]
    rule = [float(result.parts.get("local", 0.0)) for result in results]
    return [*lines, line(OWN_RULE, seen, rule)]


def mathverse(title: str, config: str, size: int, reference: tuple[tuple[str, str, str], ...] = ()) -> Benchmark:
    return Benchmark(
        title=title,
        source=f"hf:AI4Math/MathVerse,{config}",
        split=config,
        size=size,
        metric="accuracy",
        licence="MIT (code repository); pictures from public sources",
        columns=("question", "answer", "question_type", "problem_version"),
        prompt=prompt,
        score=score,
        images=pictures,
        summarise=summarise,
        judge_prompt=judge_prompt,
        judge_score=judge_score,
        scorings=("official", "vlmevalkit", "lmms-eval"),
        identify=lambda row, number: str(row.get("sample_index", number)),
        reference=reference,
        note="Only a judge gives the published number; papers on reinforcement learning mostly use VLMEvalKit's with "
             "gpt-4o-mini. The overall score has the five versions with a picture; Text Only is a data set of its own.",
    )  # fmt: skip


CARD = "InternVL2.5 model card"
BENCHMARKS = {
    "mathverse": mathverse("MathVerse (testmini)", "testmini", 3940, (
        ("Qwen2-VL-2B", "21.0", CARD), ("Qwen2-VL-7B", "31.9", CARD),
        ("InternVL2.5-2B", "30.6", CARD), ("InternVL2.5-8B", "39.5", CARD))),
    "mathverse_text_only": mathverse("MathVerse (Text Only)", "testmini_text_only", 788),
}  # fmt: skip

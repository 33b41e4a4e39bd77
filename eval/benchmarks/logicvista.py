"""LogicVista: 448 puzzles of five kinds of reasoning, whose options stand in the question or in the picture.

Official code: github Yijia-Xiao/LogicVista at e5795f17. VLMEvalKit at e8e78f05, lmms-eval at 75571cfe.
Some questions have several right options ("A, C"), and all of them must be named.

    official    a judge lists the chosen letters; they must be the right ones, in any order and case
    vlmevalkit  the capitals of the judge's reply must be the right letters
    lmms-eval   extractor C4, which reduces both sides to one letter: "A, C" is matched by the one that it reads from it

Beside these scores the table has a line of a rule of our own, which needs no judge and is nobody's published number:
the letters in the <answer> block or the last box, compared as sets.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from benchmark import Benchmark, Line, Result, Row, cell, judged, mean_line
from extract import OWN_RULE, final_answer, reasoning_score

SKILLS = ("inductive", "deductive", "numerical", "spatial", "mechanical")


# ---------------------------------------------------------------- prompts


def prompt(row: Row, scoring: str) -> str:
    question = cell(row, "question", str).strip()
    form = ("inside <answer> </answer>, after your reasoning inside <think> </think>" if scoring == "lmms-eval"
            else "into one \\boxed{} after your reasoning")  # fmt: skip
    return (f"{question}\nPut the letter of the right option {form}. If several options are right, write all of their "
            "letters, separated by commas.")  # fmt: skip


# ---------------------------------------------------------------- extraction and score


def gold(row: Row) -> list[str]:
    """The right letters, lower case and sorted; one published truth is a digit and one is empty."""
    return sorted(part.lower() for part in cell(row, "answer", str).split(", "))


SYMBOL = re.compile(r"[A-Za-z0-9]")


def listed(text: str) -> list[str] | None:
    """The letters of a list such as "A, C", "AC" or ["A", "C"], lower case and sorted; None for anything else."""
    words = re.sub(r"[\s,;.()\[\]\"'{}]+|\band\b", " ", text[:400]).split()
    if len(words) == 1 and re.fullmatch("[A-H]{2,8}", words[0]):
        words = list(words[0])
    return sorted(word.lower() for word in words) if words and all(map(SYMBOL.fullmatch, words)) else None


def local(row: Row, response: str) -> bool:
    """Our own rule: the letters of the <answer> block, else of the last box, else of the response, as a set."""
    letters = listed(final_answer(response))
    return letters is not None and set(letters) == set(gold(row))


def score(row: Row, response: str, scoring: str) -> Result:
    truth = gold(row)
    if scoring == "lmms-eval":
        accuracy, form = reasoning_score(response, row["answer"])
        return Result(accuracy, parts={"format": form})
    parts, text = {"local": float(local(row, response))}, response.strip()
    if scoring == "vlmevalkit" or len(text) > 1:
        return Result(0.0, undecided=True, parts=parts)
    # A single character stands for itself, but the official code takes letters behind E for impossible answers, though
    # a few truths are F and G; and it asks its judge about digits, who can only repeat them.
    possible = text.lower() in "abcde" or text.isnumeric()
    return Result(float(possible and [text.lower()] == truth), text, parts=parts)


# ---------------------------------------------------------------- judge


def judge_prompt(row: Row, result: Result, response: str, scoring: str) -> str:
    if scoring == "lmms-eval":
        return ""
    none = "Z" if scoring == "vlmevalkit" else "ZZZZZ"
    return ("Which options does the response choose? Write their letters as capitals, separated by commas, and nothing "
            f"else. If it names none, find out which of the options it means; if it means none, write {none}.\n\n"
            f"Question:\n{cell(row, 'question', str)}\n\nResponse:\n{response}\n\nLetters:")  # fmt: skip


def judge_score(row: Row, result: Result, reply: str, scoring: str) -> Result:
    truth = gold(row)
    if scoring == "vlmevalkit":
        letters = sorted(char.lower() for char in reply if char.isupper())[:20]
        return judged(result, letters == truth, ", ".join(letters))
    letters = listed(reply) or ["zzzzz"]  # no list of letters: the original asks again and ends with this
    return judged(result, letters == truth, ", ".join(letters))


# ---------------------------------------------------------------- table


def summarise(rows: Sequence[Row], results: Sequence[Result], scoring: str) -> list[Line]:
    """Overall and by skill; a question with several skills counts in each."""
    lines = [mean_line("overall", [result.score for result in results])]
    for skill in SKILLS:  # the column is a list or the text of one
        picked = [r.score for row, r in zip(rows, results, strict=True) if skill in str(row.get("skill"))]
        if picked:
            lines.append(mean_line(f"skill: {skill}", picked))
    if scoring != "lmms-eval":
        rule = [float(result.parts.get("local", 0.0)) for result in results]
        lines.append(mean_line(OWN_RULE, rule))
    return lines


BENCHMARKS = {
    "logicvista": Benchmark(
        title="LogicVista",
        source="hf:lscpku/LogicVista",
        split="test",
        size=448,
        metric="accuracy",
        licence="Apache-2.0",
        columns=("question", "answer"),
        prompt=prompt,
        score=score,
        summarise=summarise,
        judge_prompt=judge_prompt,
        judge_score=judge_score,
        scorings=("official", "vlmevalkit", "lmms-eval"),
        note="Only a judge gives the official number; without one, single characters alone are decided. The rows are "
             "lmms-eval's copy of the official JSON file.",
    )
}  # fmt: skip

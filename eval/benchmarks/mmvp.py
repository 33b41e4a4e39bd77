"""MMVP: 150 pairs of pictures that CLIP takes for the same, with one question each pair and opposite answers.

github tsb0601/MMVP at 76350059. The headline is the share of pairs of which both answers are right.

    official     a judge says whether the response gives the right answer
    lmms-eval    a chain of rules; among others a letter before a blank anywhere, so that "no idea" reads as A
    vlmevalkit   can_infer and a judge
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from benchmark import Benchmark, Line, Result, Row, grouped, judged, mean_line
from choices import inferred, inferred_judged, inferred_prompt, lettered, listed
from columns import letter, text, whole
from common.errors import SightRLError

FORMAT = "Answer with the letter of the right option and nothing else."
MARK = re.compile(r"\([a-z]\)", re.I)
RULES = tuple(re.compile(rule, re.I) for rule in (
    r"\A\(?([AB])\)?\.?\Z",  # the letter alone
    r"\A\(?([AB])\)?[.\s]",  # the letter first
    r"answer\s+is\s+\(?([AB])",
    r"option\s+\(?([AB])",
    r"([AB])\)?(?:\s|\Z)",  # before a blank or the end, anywhere, be it a word's last letter
    r"\A([AB])",
))  # fmt: skip


def options_of(row: Row) -> dict[str, str]:
    """ "(a) Open (b) Closed" -> {"A": "Open", "B": "Closed"}."""
    before, *options = MARK.split(text(row, "Options"))
    if before.strip() or len(options) < 2:
        raise SightRLError(f'column Options holds {row["Options"]!r}; it must be like "(a) Open (b) Closed".')
    return lettered([option.strip() for option in options])


def prompt(row: Row, scoring: str) -> str:
    return f"{text(row, 'Question').strip()}\n{listed(options_of(row))}\n{FORMAT}"


# ---------------------------------------------------------------- score


def rule_letter(response: str) -> str:
    """A or B by the first rule that fits, "" if none does."""
    response = response.strip()
    for rule in RULES:
        if found := rule.search(response):
            return found.group(1).upper()
    return ""


def score(row: Row, response: str, scoring: str) -> Result:
    right = letter(row, "Correct Answer", "AB")
    if scoring == "vlmevalkit":
        return inferred(response, options_of(row), right)
    if scoring == "lmms-eval":
        found = rule_letter(response)
        return Result(float(found == right), found)
    return Result(0.0, response[:200], undecided=True)


def judge_prompt(row: Row, result: Result, response: str, scoring: str) -> str:
    question, options = text(row, "Question"), options_of(row)
    if scoring == "vlmevalkit":
        return inferred_prompt(question, options, response)
    right = letter(row, "Correct Answer", "AB")
    return (f"Is this answer right?\n\nQuestion: {question}\nOptions:\n{listed(options)}\n"
            f"Right answer: {right}. {options[right]}\nThe answer given: {response}\n\n"
            f"Write yes or no and nothing else, not even a period.")  # fmt: skip


def judge_score(row: Row, result: Result, reply: str, scoring: str) -> Result:
    if scoring == "vlmevalkit":
        return inferred_judged(result, reply, options_of(row), letter(row, "Correct Answer", "AB"))
    # The original takes nothing but the word: "Yes." with a period counts as no verdict, which is wrong.
    return judged(result, reply.strip().lower() == "yes")


# ---------------------------------------------------------------- table


def summarise(rows: Sequence[Row], results: Sequence[Result], scoring: str) -> list[Line]:
    """Pairs with both answers right (pairs with a row missing are left out), then questions."""
    pairs = grouped(zip(rows, results, strict=True), lambda pair: (whole(pair[0], "Index") - 1) // 2)
    both = [float(all(result.score == 1 for _, result in pair)) for pair in pairs.values() if len(pair) == 2]
    return [mean_line("pair accuracy", both), mean_line("accuracy", [result.score for result in results])]


BENCHMARKS = {
    "mmvp": Benchmark(
        title="MMVP", source="hf:lmms-lab-eval/MMVP", split="train", size=300, metric="pair accuracy",
        licence="not stated", columns=("Index", "Question", "Options", "Correct Answer", "image"), prompt=prompt,
        score=score, summarise=summarise, judge_prompt=judge_prompt, judge_score=judge_score,
        scorings=("official", "vlmevalkit", "lmms-eval"), identify=lambda row, number: text(row, "Index"),
        note="Four answers are corrected in these rows (Index 99, 100, 279, 280); MMVP/MMVP, with pictures and "
             "questions in separate files, has the original ones. official needs a judge.",
    )
}  # fmt: skip

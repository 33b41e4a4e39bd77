"""BLINK: what people see in the blink of an eye, 14 sub-tasks with up to four pictures and two to five options.

github zeyofu/BLINK_Benchmark at 2d6a779b (Apache-2.0). The score is the mean over the sub-tasks.

    official     the letter alone, or the only option "(B)" that is a word of the response or of its last paragraph; a
                 judge for the rest, such as "I choose (B)." with its period
    lmms-eval    the first letter of the response, whatever it is: "The answer is (B)" reads as T
    vlmevalkit   can_infer and a judge; the headline is the mean over all questions
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from benchmark import Benchmark, Line, Result, Row, judged, macro_line, mean_line, scores_by
from choices import inferred, inferred_judged, inferred_prompt, lettered
from columns import letter, text, texts
from common.errors import SightRLError

FORMAT = "Answer with the letter of the right option in parentheses, like (A), and nothing else."
FIRST = re.compile(r"[(\s]*([A-Z])", re.I)


def options_of(row: Row) -> dict[str, str]:
    return lettered(texts(row, "choices"), "choices")


def prompt(row: Row, scoring: str) -> str:
    return f"{text(row, 'prompt').strip()}\n{FORMAT}"


def pictures(row: Row) -> list[Any]:
    found = [row[name] for name in ("image_1", "image_2", "image_3", "image_4") if row.get(name) is not None]
    if not found:
        raise SightRLError("columns image_1 to image_4 are empty; take the published rows.")
    return found


# ---------------------------------------------------------------- score


def official_answer(response: str, count: int) -> str | None:
    """The option as "(B)", None where a judge is asked. count: how many options there are."""
    if response in ("A", "B", "C", "D", "E"):
        return f"({response})"
    options = {f"({letter})" for letter in "ABCDE"}
    if response in options:
        return response
    options = {f"({letter})" for letter in "ABCDE"[:count]}
    anywhere = options.intersection(response.split())
    at_the_end = options.intersection(response.split("\n\n")[-1].split())
    if len(at_the_end) == 1:
        return at_the_end.pop()
    return anywhere.pop() if len(anywhere) == 1 else None


def first_letter(response: str) -> str:
    found = FIRST.match(response.strip())
    return found.group(1).upper() if found else ""


def score(row: Row, response: str, scoring: str) -> Result:
    options = options_of(row)
    right = letter(row, "answer")
    if scoring == "vlmevalkit":
        return inferred(response, options, right)
    if scoring == "lmms-eval":
        found = first_letter(response)
        return Result(float(found == right), found)
    answer = official_answer(response, len(options))
    return Result(float(answer == f"({right})"), answer, undecided=answer is None)


def judge_prompt(row: Row, result: Result, response: str, scoring: str) -> str:
    question, options = text(row, "question"), options_of(row)
    if scoring == "vlmevalkit":
        return inferred_prompt(question, options, response)
    listing = "\n".join(f"({letter}) {option}" for letter, option in options.items())
    return (f"Somebody was asked a question with options and has answered at length. Which option was chosen?\n\n"
            f"Question: {question}\nOptions:\n{listing}\nThe answer given: {response}\n\n"
            f"Write the letter of that option in parentheses, like (A), and nothing else; write (Z) if the answer "
            f"chooses none, fits none, or declines to answer.")  # fmt: skip


def judge_score(row: Row, result: Result, reply: str, scoring: str) -> Result:
    right = letter(row, "answer")
    if scoring == "vlmevalkit":
        return inferred_judged(result, reply, options_of(row), right)
    # The original compares all of the reply with "(B)", so that "(B) the dog" is wrong.
    reply = reply.strip()
    return judged(result, reply == f"({right})", reply[:80])


# ---------------------------------------------------------------- table


def summarise(rows: Sequence[Row], results: Sequence[Result], scoring: str) -> list[Line]:
    """The mean over sub-tasks, then each of them; VLMEvalKit's mean is over questions."""
    scores = scores_by(rows, results, lambda row: text(row, "sub_task"))
    first = macro_line("mean of sub-tasks", list(scores.values()))
    if scoring == "vlmevalkit":
        first = mean_line("overall", [result.score for result in results])
    return [first, *(mean_line(name, one) for name, one in sorted(scores.items()))]


BENCHMARKS = {
    "blink": Benchmark(
        title="BLINK (val)", source="hf:BLINK-Benchmark/BLINK", split="val", size=1901, metric="accuracy",
        licence="Apache-2.0 (code)", columns=("idx", "sub_task", "question", "prompt", "choices", "answer", "image_1"),
        prompt=prompt, score=score, images=pictures, summarise=summarise, judge_prompt=judge_prompt,
        judge_score=judge_score, scorings=("official", "vlmevalkit", "lmms-eval"),
        identify=lambda row, number: text(row, "idx"),
        note="The data have a configuration for each of the 14 sub-tasks; the size is that of the answers published in "
             "eval/saved_outputs. The order of the pictures is kept.",
    )
}  # fmt: skip

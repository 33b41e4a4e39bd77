"""Counting: CountBench and CountBenchQA (pictures from the web, two to ten things), SuperCLEVR-200 (R1-V).

CountBench and CountBenchQA are the same rows (HF vikhyatk/CountBenchQA); lmms-eval (75571cfe) has a task for each, and
neither takes a number out of a sentence. Official code of SuperCLEVR-200: github Deep-Agent/R1-V at bbbbe3dc.

    countbench     the response is the number, in digits or as a word from none to twenty
    countbenchqa   lmms-eval: the response is the number in digits; VLMEvalKit: the digits stand anywhere in it
    superclevr200  the first <answer> block that holds digits alone
"""

from __future__ import annotations

import re

from benchmark import Benchmark, Line, Result, Row, lines_by
from columns import text, whole
from common.errors import SightRLError

NAMES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen twenty"
)
DIGITS = {"none": "0"} | {word: str(number) for number, word in enumerate(NAMES.split())}
ANSWER = re.compile(r"<answer>\s*+(\d++)\s*+</answer>")


# ---------------------------------------------------------------- prompts


def bare_number(row: Row, scoring: str) -> str:
    # lmms-eval's countbenchqa puts the column text before the question, a caption that gives the number away.
    return f"{text(row, 'question').strip()}\nCount what you see and write the number alone, in digits."


def tagged_number(row: Row, scoring: str) -> str:
    return (f"{text(row, 'question').strip()}\nReason inside <think> </think>, then write nothing but the number "
            "inside <answer> </answer>.")  # fmt: skip


# ---------------------------------------------------------------- scores


def normal(text: str) -> str:
    text = text.strip().lower()
    return DIGITS.get(text, text)


def countbench(row: Row, response: str, scoring: str) -> Result:
    answer = normal(response)
    return Result(float(answer == normal(text(row, "number"))), answer[:100])


def countbenchqa(row: Row, response: str, scoring: str) -> Result:
    truth, answer = text(row, "number"), response.strip()
    # VLMEvalKit asks whether the truth is a part of the response, so that "12" is right where the truth is 2.
    right = truth in response if scoring == "vlmevalkit" else answer == truth
    return Result(float(right), answer[:100])


def read_count(response: str) -> int | None:
    """The number of the first <answer> block that holds digits alone, blanks around them or not."""
    match = ANSWER.search(response)
    if match is None:
        return None
    digits = "".join(str(int(digit)) for digit in match.group(1)).lstrip("0") or "0"  # other scripts have digits too
    return int(digits) if len(digits) < 19 else -1  # longer than any truth: read, and wrong


def superclevr(row: Row, response: str, scoring: str) -> Result:
    count, truth = read_count(response), whole(row, "ground_truth")
    if truth < 0:
        raise SightRLError("column ground_truth holds a negative number; write how many things there are.")
    return Result(float(count == truth), count, parts={"read": count is not None})


# ---------------------------------------------------------------- tables


def by_number(rows: list[Row], results: list[Result], scoring: str) -> list[Line]:
    return lines_by(rows, results, "number")


def with_unread(rows: list[Row], results: list[Result], scoring: str) -> list[Line]:
    """Accuracy, then how many responses held no number that could be read: much of R1-V's gain is format."""
    unread = sum(not result.parts.get("read") for result in results)
    share = 100 * unread / len(results) if results else 0.0
    return [*lines_by(rows, results, "ground_truth"), Line("without a readable answer", share, len(results))]


COUNTBENCH = dict(source="hf:vikhyatk/CountBenchQA", split="test", size=None, metric="accuracy", licence="not stated",
                  columns=("image", "question", "number"), prompt=bare_number, summarise=by_number)  # fmt: skip

BENCHMARKS = {
    "countbench": Benchmark(title="CountBench", score=countbench, scorings=("lmms-eval",), max_new_tokens=16,
                            note="A sentence or a period makes the answer wrong.", **COUNTBENCH),
    "countbenchqa": Benchmark(title="CountBenchQA", score=countbenchqa, scorings=("lmms-eval", "vlmevalkit"),
                              max_new_tokens=32, **COUNTBENCH,
                              note="lmms-eval asks with the caption, which names the number; here it is left out."),
    "superclevr200": Benchmark(
        title="SuperCLEVR-200 (R1-V)", source="github:Deep-Agent/R1-V", split="test",
        size=200, metric="accuracy", licence="Apache-2.0", columns=("image_path", "question", "ground_truth"),
        images=lambda row: [text(row, "image_path")], prompt=tagged_number, score=superclevr,
        summarise=with_unread, max_new_tokens=256,
        reference=(("Qwen2-VL-2B-Instruct, think and answer", "48.0", "R1-V, published log; 45 of 200 unread"),
                   ("R1-V, 100 steps of GRPO", "82.5", "R1-V, published log; none unread"),
                   ("Qwen2-VL-2B-Instruct, asked directly", "about 86", "README of R1-V")),
        note="Give --data the file src/eval/prompts/superclevr_test200_counting_problems.jsonl of the repository; the "
             "pictures (superCLEVR_new_0250xx.png) are a download that its README names. Greedy decoding."),
}  # fmt: skip

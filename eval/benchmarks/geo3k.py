r"""Geometry3K and MMK12 as VPPO evaluates them: exact match of the last box, without a judge, mean of eight answers.

The rule is that of VPPO's reward (github huaixuheqing/VPPO-RL at a23c54b, examples/reward_function/math.py), which its
evaluation uses too (inferred: its README points to github xhguo7/PAPO-Eval, whose papo_eval/eval_utils.py is the same
rule): blanks around "<", ">" and "/" go, the content of the last \boxed{...} is the answer, "None" if there is none,
and mathruler's grade_answer compares it with the truth.

VPPO samples with temperature 1.0 and top_p 1.0 and reports avg@8.
Names, splits and columns of the data sets are from their pages on Hugging Face, not from the paper (inferred).
"""

from __future__ import annotations

from benchmark import Benchmark, Result, Row, by, cell
from common.errors import SightRLError
from common.maths import grade_answer
from common.rewards import last_boxed, squeeze_tags

# ---------------------------------------------------------------- prompt


def ask(question: str) -> str:
    """The question, in which <image> marks the picture, and the form of the answer."""
    return (f"{question}\nReason step by step inside <think> </think> tags. Then put the final answer, and nothing "
            "else, into \\boxed{}.")  # fmt: skip


# ---------------------------------------------------------------- extraction and score


def extract(response: str) -> str:
    answer = last_boxed(squeeze_tags(response))
    return "None" if answer is None else answer  # so that a truth of "None" is matched by a response without a box


def score(row: Row, response: str, scoring: str) -> Result:
    truth = str(cell(row, "answer"))
    if not truth.strip():
        raise SightRLError("column answer is empty; take the published files or leave this row out.")
    answer = extract(response)
    return Result(float(grade_answer(answer, truth)), answer[:1000])


NOTE = ("VPPO reports avg@8 at temperature 1.0 and top_p 1.0, and only the mean of eight benchmarks of which this is "
        "one: base 38.3, GRPO 53.1, DAPO 55.0, VPPO 57.5 for the 7B model (arXiv 2510.09285, Table 1).")  # fmt: skip

BENCHMARKS = {
    "geo3k": Benchmark(
        title="Geometry3K (test)",
        source="hf:hiyouga/geometry3k",
        split="test",
        size=601,
        metric="accuracy",
        licence="MIT",
        columns=("problem", "answer"),
        prompt=lambda row, scoring: ask(cell(row, "problem", str)),
        score=score,
        images=lambda row: list(row["images"]),
        max_new_tokens=2048,
        note=NOTE,
    ),
    "mmk12": Benchmark(
        title="MMK12 (test)",
        source="hf:FanqingM/MMK12",
        split="test",
        size=2000,
        metric="accuracy",
        licence="not stated",
        columns=("question", "answer"),
        prompt=lambda row, scoring: ask(cell(row, "question", str)),
        score=score,
        summarise=by("subject"),
        identify=lambda row, number: str(row.get("id", number)),
        max_new_tokens=2048,
        note=NOTE,
    ),
}

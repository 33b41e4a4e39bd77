"""ChartQA: questions about charts, half written by people, half generated; relaxed accuracy, 5 % off is right.

Rule of the paper (arXiv 2203.10244, section 5.1) as Qwen-VL, lmms-eval (75571cfe) and VLMEvalKit (e8e78f05) have it.

    official    the response as it is, one answer (lmms-eval is the same)
    vlmevalkit  blanks around the response go; of several answers the best counts

The response is the answer, all of it: "The value is 12." is wrong. For a model that reasons first, cut out its final
answer and grade that.
"""

from __future__ import annotations

from benchmark import Benchmark, Result, Row, by
from columns import text, texts_cell

TOLERANCE = 0.05


def prompt(row: Row, scoring: str) -> str:
    return f"{text(row, 'question')}\nWrite the answer alone, one word or one number."


# ---------------------------------------------------------------- score


def to_number(text: str) -> float | None:
    """What Python's float reads, with % a hundredth of it; None otherwise. "1,000", "$5" and "5 kg" are no numbers."""
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None


def relaxed(answer: str, truth: str) -> bool:
    """At most 5 % off a number, or the same text in any case. Years are numbers too: 2010 is right for 2014."""
    value, target = to_number(answer), to_number(truth)
    if value is not None and target:  # a truth of 0 is compared as a text: "0.0" is wrong
        return abs(value - target) / abs(target) <= TOLERANCE
    return answer.lower() == truth.lower()


def score(row: Row, response: str, scoring: str) -> Result:
    if scoring == "vlmevalkit":
        answer = response.strip()
        # A text that reads as a Python list is one of several answers.
        right = any(relaxed(answer, truth) for truth in texts_cell(row, "answer"))
    else:
        answer, right = response, relaxed(response, text(row, "answer"))
    return Result(float(right), answer[:200])


BENCHMARKS = {
    "chartqa": Benchmark(
        title="ChartQA", source="hf:lmms-lab/ChartQA", split="test", size=2500, metric="relaxed accuracy",
        licence="not stated", columns=("image", "type", "question", "answer"), prompt=prompt, score=score,
        summarise=by("type"), scorings=("official", "vlmevalkit"), max_new_tokens=16,
        reference=(("Qwen2-VL-2B", "73.5", "InternVL2.5 model card"), ("Qwen2-VL-7B", "83.0", "InternVL2.5 model card"),
                   ("InternVL2.5-2B", "79.2", "InternVL2.5 model card"),
                   ("InternVL2.5-8B", "84.8", "InternVL2.5 model card"), ("Meteor-7B", "74.9", "README of Meteor")),
        note="Years count as numbers: 2010 is right where the truth is 2014. 10 is wrong where it is 10%."),
}  # fmt: skip

"""V* Bench: questions with options about small things in large pictures, their attributes and where they stand.

Official code: github penghao-wu/vstar at 4ede6647, rows as the mirror of lmms-eval has them.

    lmms-eval   (75571cfe) all of the response in capitals; a first letter A to D counts even as that of a word:
                "Because" is B, and "Red", which has no other, D
    vlmevalkit  can_infer, a judge for the rest
    official    no text at all: the option that is the likeliest continuation. A response must be the losses of the
                options in their order, such as [0.7, 0.9, 0.8]; a text is undecided, so this is not the default.
"""

from __future__ import annotations

import json
import re

from benchmark import Benchmark, Result, Row, by
from choices import inferred, inferred_judged, inferred_prompt, listed
from columns import letter, text
from common.errors import SightRLError

MARK = re.compile(r"\(([A-D])\)")

# ---------------------------------------------------------------- prompt


def question_and_options(row: Row) -> tuple[str, dict[str, str]]:
    """The column text is "question (A) one (B) two" and perhaps an instruction on lines of its own."""
    question, *parts = MARK.split(text(row, "text"))
    options = dict(zip(parts[::2], (part.strip().partition("\n")[0].strip() for part in parts[1::2]), strict=True))
    if not options or list(options) != list("ABCD"[: len(options)]):
        raise SightRLError("column text has no options (A), (B), ... in their order; take the published rows.")
    return question.strip(), options


def prompt(row: Row, scoring: str) -> str:
    question, options = question_and_options(row)
    return f"{question}\n{listed(options)}\nAnswer with the letter of the right option alone."


# ---------------------------------------------------------------- score

RULES = [re.compile(rule) for rule in (
    r"\A([A-D])",
    r"(?:ANSWER|CHOICE|OPTION)(?:\s+IS)?[\s:]+([A-D])",
    r"\(([A-D])\)",
    r"([A-D])\s*[.)\]]",
    r"(?:\A|\s)([A-D])(?:\s|\Z)",
)]  # fmt: skip


def lmms_letter(response: str) -> str | None:
    """The first letter that the first fitting rule finds; else the only letter A to D that occurs."""
    response = response.strip().upper()
    for rule in RULES:
        if match := rule.search(response):
            return match.group(1)
    letters = re.findall(r"[A-D]", response)
    return letters[0] if len(letters) == 1 else None


def likeliest(response: str, count: int) -> int | None:
    """Which of the losses is the smallest, the first of equals; None if these are not as many losses as options."""
    try:
        losses = json.loads(response[:1000])
    except (ValueError, RecursionError):
        return None
    if not isinstance(losses, list) or len(losses) != count:
        return None
    if not all(isinstance(loss, (int, float)) and loss == loss for loss in losses):
        return None
    return losses.index(min(losses))


def score(row: Row, response: str, scoring: str) -> Result:
    _, options = question_and_options(row)
    right = letter(row, "label", options)
    if scoring == "vlmevalkit":
        return inferred(response, options, right)
    if scoring == "official":
        place = likeliest(response, len(options))
        chosen = None if place is None else list(options)[place]
        return Result(float(chosen == right), chosen, undecided=chosen is None)
    chosen = lmms_letter(response)
    return Result(float(chosen == right), chosen)


def judge_prompt(row: Row, result: Result, response: str, scoring: str) -> str:
    return inferred_prompt(*question_and_options(row), response) if scoring == "vlmevalkit" else ""


def judge_score(row: Row, result: Result, reply: str, scoring: str) -> Result:
    _, options = question_and_options(row)
    return inferred_judged(result, reply, options, letter(row, "label", options))


BENCHMARKS = {
    "vstar": Benchmark(
        title="V* Bench", source="hf:lmms-lab-encoder/vstar-bench", split="test", size=191, metric="accuracy",
        licence="MIT", columns=("image", "text", "category", "label"), prompt=prompt, score=score,
        summarise=by("category"), judge_prompt=judge_prompt, judge_score=judge_score, max_new_tokens=16,
        scorings=("lmms-eval", "vlmevalkit", "official"),
        note="Results depend on how far pictures may be shrunk: set and report the pixel limits. In the official files "
             "the first option is always the right one; the mirror's are shuffled."),
}  # fmt: skip

"""We-Math: 525 problems of two or three steps, each asked as a whole and step by step: 1740 questions with options.

Official code: github We-Math/We-Math at a57a0e83. VLMEvalKit at e8e78f05, lmms-eval at 75571cfe.

    official    the first character behind the last "Answer", which must be a capital A to H: "Answer: (B)" is wrong
    vlmevalkit  the same; with a judge, a response without such a letter goes to the judge
    lmms-eval   extractor C4 on the response with <think> and <answer> blocks

A problem is then of one of four kinds, and the score takes what is lost to them from 1:

    IK  insufficient knowledge      a step and the whole are wrong                      costs 1
    IG  inadequate generalisation   all steps are right, the whole is wrong             costs 1/2
    CM  complete mastery            the whole is right, and so are all (loose: some) steps
    RM  rote memorisation           the whole is right, some (loose: all) steps wrong   costs 1
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmark import Benchmark, Line, Result, Row, bootstrap, cell, judged, mean_line
from choices import inferred_prompt, listed
from common.errors import SightRLError
from extract import can_infer, reasoning_score

PROBLEMS = 525  # of the published set
LETTERS = "ABCDEFGH"
KEYS = {f"{steps}steps_{part}": (steps, part) for steps in (2, 3) for part in (*range(1, steps + 1), "multi")}


# ---------------------------------------------------------------- prompts


def options(row: Row) -> dict[str, str]:
    """letter -> text, from one string "A. 1 cm; B. 2 cm; ..."."""
    parts = re.split(r";\s*(?=[A-H]\s?[.:])", cell(row, "option", str))
    found = [re.match(r"\s*([A-H])\s?[.:]\s*(.*)", part, re.DOTALL) for part in parts]
    return {match[1]: match[2].strip() for match in found if match}


def prompt(row: Row, scoring: str) -> str:
    question = f"{cell(row, 'question', str)}\n{listed(options(row)) or row['option']}\n"
    if scoring == "lmms-eval":
        return (f"{question}Reason inside <think> </think>, then write the letter of the right option inside <answer> "
                "</answer>.")  # fmt: skip
    return (f"{question}Write your reasoning in a paragraph that begins with Thought: and the letter of the right "
            "option in a last line of this form, without brackets:\nAnswer: B")  # fmt: skip


# ---------------------------------------------------------------- extraction and score


def extract(response: str) -> str:
    """The official letter; "" where it is none of A to H."""
    text = response.rpartition("Answer")[2].strip()
    first = re.sub("[<>:.]", "", text).strip()[:1]
    return first if first and first in LETTERS else ""


def gold(row: Row) -> str:
    letter = cell(row, "answer", str)
    if len(letter) != 1 or letter not in LETTERS:
        raise SightRLError(f"column answer holds {letter[:60]!r}; it must be one letter from A to H.")
    return letter


def score(row: Row, response: str, scoring: str) -> Result:
    truth = gold(row)
    if scoring == "lmms-eval":
        accuracy, form = reasoning_score(response, truth)
        return Result(float(accuracy == 1.0), parts={"format": form})
    letter = extract(response)
    return Result(float(letter == truth), letter, undecided=scoring == "vlmevalkit" and not letter)


# ---------------------------------------------------------------- judge


def judge_prompt(row: Row, result: Result, response: str, scoring: str) -> str:
    return inferred_prompt(cell(row, "question", str), options(row), response) if scoring == "vlmevalkit" else ""


def judge_score(row: Row, result: Result, reply: str, scoring: str) -> Result:
    letter = can_infer(reply, options(row))
    return judged(result, letter == gold(row), letter)


# ---------------------------------------------------------------- table


def composites(rows: Sequence[Row], results: Sequence[Result]) -> np.ndarray:
    """[problem, (steps right, steps, whole right)] of the problems with all of their questions. Several answers to one
    question make as many problems."""
    problems: dict[tuple[Any, ...], dict[Any, bool]] = {}
    for row, result in zip(rows, results, strict=True):
        key = str(row.get("key"))
        if key not in KEYS:
            raise SightRLError(f"column key holds {key[:60]!r}; it must be one of {', '.join(KEYS)}.")
        (steps, part), number = KEYS[key], 0
        while part in problems.setdefault((row.get("ID"), steps, number), {}):
            number += 1
        problems[row.get("ID"), steps, number][part] = result.score == 1.0
    found = [(sum(answers[i] for i in range(1, steps + 1)), steps, answers["multi"])
             for (_, steps, _), answers in problems.items() if len(answers) == steps + 1]  # fmt: skip
    return np.array(found, dtype=int).reshape(-1, 3)


def kinds(problems: np.ndarray) -> dict[str, np.ndarray]:
    """Which problems are of which kind."""
    right, steps, whole = problems.T
    return {
        "IK": (right < steps) & (whole == 0),
        "IG": (right == steps) & (whole == 0),
        "CM strict": (right == steps) & (whole == 1),
        "RM strict": (right < steps) & (whole == 1),
        "CM loose": (right > 0) & (whole == 1),
        "RM loose": (right == 0) & (whole == 1),
    }


def losses(problems: np.ndarray, mode: str) -> np.ndarray:
    """What every problem takes from the score; mode is strict or loose."""
    of = kinds(problems)
    return 1.0 * of["IK"] + 0.5 * of["IG"] + 1.0 * of[f"RM {mode}"]


def official_score(problems: np.ndarray, mode: str) -> float:
    """The published formula, which divides by 525 whatever it is given."""
    return float(PROBLEMS - losses(problems, mode).sum()) / PROBLEMS


def rote_rate(known: np.ndarray) -> float:
    """RM / (RM + CM) of [problem, (RM, CM)]; 0 where no whole is right, for which the official code divides by zero."""
    rote, mastered = known.sum(axis=0)
    return float(rote / (rote + mastered)) if rote + mastered else 0.0


def summarise(rows: Sequence[Row], results: Sequence[Result], scoring: str) -> list[Line]:
    """Strict, then loose score with the rates of the four kinds, then accuracies. A part of the set looks perfect under
    the published formula; so here the divisor is the number of complete problems, and what the formula gives for a part
    is a line of its own."""
    problems = composites(rows, results)
    of, lines = kinds(problems), []
    for mode in ("strict", "loose"):
        lines.append(mean_line(f"score ({mode})", 1 - losses(problems, mode)))
        if 0 < len(problems) != PROBLEMS:
            value = 100 * official_score(problems, mode)
            lines.append(Line(f"score ({mode}) as if of {PROBLEMS}", value, len(problems)))
        lines += [mean_line(f"{kind.split()[0]} ({mode})", of[kind]) for kind in ("IK", "IG", f"CM {mode}")]
        known = np.stack([of[f"RM {mode}"], of[f"CM {mode}"]], axis=1)
        interval = bootstrap(rote_rate, known) if len(known) else None
        lines.append(Line(f"RM ({mode})", 100 * rote_rate(known), len(known), interval))
    scores = [result.score for result in results]
    lines.append(mean_line("accuracy of all questions", scores))
    for name, chosen in (("one step", {key for key in KEYS if not key.endswith("multi")}),
                         ("two steps", {"2steps_multi"}), ("three steps", {"3steps_multi"})):  # fmt: skip
        lines.append(mean_line(name, [s for row, s in zip(rows, scores, strict=True) if row.get("key") in chosen]))
    return lines


BENCHMARKS = {
    "wemath": Benchmark(
        title="We-Math (testmini)",
        source="hf:We-Math/We-Math",
        split="testmini",
        size=1740,
        metric="strict score",
        licence="not stated",
        columns=("ID", "key", "question", "option", "answer"),
        prompt=prompt,
        score=score,
        images=lambda row: [row["image_path"]],
        summarise=summarise,
        judge_prompt=judge_prompt,
        judge_score=judge_score,
        scorings=("official", "vlmevalkit", "lmms-eval"),
        identify=lambda row, number: f"{row.get('ID')}-{row.get('key')}",
        note="Most papers report the strict score, some the accuracy of all 1740 questions. VLMEvalKit with a judge "
             "uses C1 and the judge for every response, not only for those without a letter.",
    )
}  # fmt: skip

"""HallusionBench: yes/no questions about pictures, some of them edited so that what is known no longer holds.

github tianyi-lab/HallusionBench at 744007c2 (BSD-3). VD: questions that need the picture. VS: questions that a chart, a
table or a map supplements; its figure 0 is no picture at all.

    official     a judge says correct, incorrect or unclear; unclear is right where there is no picture. lmms-eval does
                 the same on the questions with a picture.
    vlmevalkit   the word yes or no, a judge where there is neither or both; unclear is never right, and the questions
                 without picture count as figures too

The average of papers is that of aAcc (questions), fAcc (figures with all their questions right) and qAcc (questions
right on all their figures).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from benchmark import Benchmark, Line, Result, Row, bootstrap, grouped
from columns import letter, text, whole
from extract import yes_no

Pair = tuple[Row, Result]
VERDICTS = ("incorrect", "correct", "unclear")  # 0, 1, 2


def prompt(row: Row, scoring: str) -> str:
    question = text(row, "question").strip()
    return question if scoring == "official" else f"{question}\nAnswer yes or no."


def without_figure(row: Row) -> bool:
    return text(row, "category") == "VS" and whole(row, "figure_id") == 0


def has_picture(row: Row) -> bool:
    return whole(row, "visual_input") != 0


def pictures(row: Row) -> list[Any]:
    return [row["image"]] if has_picture(row) else []


# ---------------------------------------------------------------- score


def score(row: Row, response: str, scoring: str) -> Result:
    right = letter(row, "gt_answer", "01")
    if scoring == "official":
        return Result(0.0, response[:200], undecided=True, parts={"verdict": "unclear"})
    return by_word(yes_no(response), right)


def by_word(word: str, right: str) -> Result:
    """VLMEvalKit: Unknown is wrong and, before a judge was asked, undecided."""
    hit = word == {"0": "No", "1": "Yes"}[right]
    verdict = "unclear" if word == "Unknown" else VERDICTS[hit]
    return Result(float(hit), word, undecided=word == "Unknown", parts={"verdict": verdict})


def judge_prompt(row: Row, result: Result, response: str, scoring: str) -> str:
    question = text(row, "question")
    if scoring == "vlmevalkit":
        return (f"Does this answer to a question say yes or no?\n\nQuestion: {question}\n"
                f"The answer given: {response}\n\nWrite one word: Yes, No, or Unknown if it says neither.")  # fmt: skip
    return (f"Compare an answer with the truth.\n\nQuestion: {question}\nTruth: {text(row, 'gt_answer_details')}\n"
            f"The answer given: {response}\n\nWrite one word: correct if the answer agrees with the truth, "
            f"incorrect if it contradicts it, unclear if it commits itself to nothing.")  # fmt: skip


def judge_score(row: Row, result: Result, reply: str, scoring: str) -> Result:
    if scoring == "vlmevalkit":
        return replace(by_word(yes_no(reply), letter(row, "gt_answer", "01")), undecided=False)
    reply = reply.lower()
    verdict = next((word for word in VERDICTS[:2] if word in reply), "unclear")  # "incorrect" holds "correct"
    right = verdict == "correct" or (verdict == "unclear" and without_figure(row))  # then not to know is right
    return replace(result, score=float(right), undecided=False, parts={"verdict": verdict})


# ---------------------------------------------------------------- table


def place(row: Row, *columns: str) -> tuple[str, ...]:
    return tuple(text(row, name) for name in ("category", "subcategory", "set_id", *columns))


def share(pairs: Sequence[Pair], *columns: str) -> tuple[int, int]:
    """(groups with all answers right, groups) of the rows with the same set and the same of these columns."""
    groups = grouped(pairs, lambda pair: place(pair[0], *columns)).values()
    return sum(all(result.score == 1 for _, result in group) for group in groups), len(groups)


def questions(pairs: Sequence[Pair]) -> tuple[int, int]:
    return share(pairs, "figure_id", "question_id")


def question_groups(pairs: Sequence[Pair]) -> tuple[int, int]:
    return share(pairs, "question_id")


def figures(pairs: Sequence[Pair]) -> tuple[int, int]:
    return share(pairs, "figure_id")


def seen(pairs: Sequence[Pair]) -> list[Pair]:
    """Without figure 0 of VS, which is none."""
    return [pair for pair in pairs if not without_figure(pair[0])]


def seen_figures(pairs: Sequence[Pair]) -> tuple[int, int]:
    return figures(seen(pairs))


def line(name: str, pairs: Sequence[Pair], *counts: Callable[[Sequence[Pair]], tuple[int, int]]) -> Line:
    """The mean of shares in per cent. The interval is that of sets drawn again, as figures and questions cross."""
    sets = grouped(pairs, lambda pair: place(pair[0])).values()
    table = np.array([[number for count in counts for number in count(group)] for group in sets], dtype=float)
    count = int(table.sum(axis=0)[1]) if len(table) else 0
    if not count:
        return Line(name, 0.0, 0)
    return Line(name, float(100 * mean_share(table)), count, bootstrap(mean_share, table))


def mean_share(table: np.ndarray) -> float:
    """Mean over (right, all), (right, all), ... of sum right / sum all; table: [sets, 2 x shares]."""
    sums = table.sum(axis=0)
    return float(np.mean(sums[0::2] / np.maximum(sums[1::2], 1)))


def summarise(rows: Sequence[Row], results: Sequence[Result], scoring: str) -> list[Line]:
    """The average, aAcc, fAcc and qAcc, overall and by kind; officially also easy, hard, consistency and errors."""
    pairs = list(zip(rows, results, strict=True))
    official = scoring == "official"
    all_figures = seen_figures if official else figures
    lines = [line("average", pairs, questions, all_figures, question_groups)]
    parts = {"": pairs} | grouped(pairs, lambda pair: f"{text(pair[0], 'category')} ")
    if not official:
        parts |= grouped(pairs, lambda pair: "_".join(place(pair[0])[:2]) + " ")
    for name, part in parts.items():
        lines += [line(f"{name}aAcc", part, questions), line(f"{name}fAcc", part, all_figures),
                  line(f"{name}qAcc", part, question_groups)]  # fmt: skip
    return lines + official_lines(pairs) if official else lines


def official_lines(pairs: Sequence[Pair]) -> list[Line]:
    easy = [pair for pair in pairs if whole(pair[0], "visual_input") != 2]
    hard = [pair for pair in pairs if whole(pair[0], "visual_input") == 2]
    lines = [line(f"{name} qAcc", part, question_groups) for name, part in (("easy", easy), ("hard", hard))]
    groups = grouped(seen(pairs), lambda pair: place(pair[0], "figure_id")).values()
    shares = [[result.score for _, result in group] for group in groups]
    for name, kind in (("figures all right", lambda s: all(s)), ("figures all wrong", lambda s: not any(s)),
                       ("figures inconsistent", lambda s: any(s) and not all(s)),
                       ("figures score", lambda s: sum(s) / len(s))):  # fmt: skip
        values = [kind(scores) for scores in shares]
        lines.append(Line(name, 100 * float(np.mean(values)) if values else 0.0, len(values)))
    kinds = [error_kind(row, result) for row, result in pairs]
    for name in ("language", "visual", "mixed"):
        lines.append(Line(f"{name} errors (count)", float(kinds.count(name)), len(kinds)))
    return lines


def error_kind(row: Row, result: Result) -> str:
    """What the official script blames for a verdict; "" where nothing is wrong."""
    verdict = result.parts.get("verdict")
    if verdict == "correct":
        return ""
    if text(row, "category") == "VD":
        return "visual" if verdict == "unclear" or whole(row, "figure_id") == 0 else "mixed"
    if not has_picture(row):
        return "language" if verdict == "incorrect" else ""
    return "mixed" if verdict == "incorrect" else "visual"


BENCHMARKS = {
    "hallusionbench": Benchmark(
        title="HallusionBench", source="hf:lmms-lab/HallusionBench", split="image+non_image", size=1129,
        metric="average", licence="BSD-3", columns=("category", "subcategory", "visual_input", "set_id", "figure_id",
                                                    "question_id", "question", "gt_answer_details", "gt_answer"),
        prompt=prompt, score=score, images=pictures, summarise=summarise, judge_prompt=judge_prompt,
        judge_score=judge_score, scorings=("official", "vlmevalkit"),
        identify=lambda row, number: "_".join(place(row, "figure_id", "question_id")),
        note="official needs a judge; vlmevalkit gives numbers without one. 951 questions have a picture (split "
             "image), 178 have none (split non_image).",
    )
}  # fmt: skip

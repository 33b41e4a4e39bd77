"""MMStar: 1500 questions that cannot be answered without the picture; six abilities of three sub-abilities each.

github MMStar-Benchmark/MMStar at 88f243ab.

    official     the first letters of the response: "B", "(B", "option B" or "the answer is B", in any case; all else is
                 wrong. So "Because ..." is right where B is, and "The correct answer is (B)" is wrong.
    lmms-eval    extract_letter; the headline is the mean over the 18 sub-abilities
    vlmevalkit   can_infer and a judge
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from benchmark import Benchmark, Line, Result, Row, grouped, macro_line, mean_line, scores_by
from choices import inferred, inferred_judged, inferred_prompt
from columns import letter, text
from common.errors import SightRLError
from extract import extract_letter

FORMAT = "Answer with the letter of the right option and nothing else."
OPENINGS = ("", "(", "option ", "the answer is ")
OPTION = re.compile(r"(?:^|[\s,])([A-Z]):")


def prompt(row: Row, scoring: str) -> str:
    return f"{text(row, 'question').strip()}\n{FORMAT}"


def options_of(row: Row) -> dict[str, str]:
    """The columns A, B, ... if there are any, else what the question lists as "Options: A: one, B: two"."""
    columns = {name: str(row[name]) for name in "ABCDEF" if row.get(name) is not None}
    if columns:
        return columns
    question = text(row, "question")
    listing = question.rpartition("Options:")[2]
    marks = []
    for mark in OPTION.finditer(listing):
        if mark.group(1) == "ABCDEFGH"[len(marks) :][:1]:  # the next letter, not any capital with a colon
            marks.append(mark)
    if not marks:
        raise SightRLError('column question lists no options as "Options: A: one, B: two"; take the published rows.')
    ends = [mark.start() for mark in marks[1:]] + [len(listing)]
    return {mark.group(1): listing[mark.end() : end].strip(" ,\n") for mark, end in zip(marks, ends, strict=True)}


# ---------------------------------------------------------------- score


def opening(response: str) -> str:
    """The letter that the official script can see, in upper case, "" if there is none."""
    response = response.lower().strip().replace("\n", " ")
    for words in reversed(OPENINGS):  # "the answer is b" begins with t too, which is no option
        if response.startswith(words) and len(response) > len(words):
            return response[len(words)].upper()
    return ""


def score(row: Row, response: str, scoring: str) -> Result:
    right = letter(row, "answer")
    if scoring == "vlmevalkit":
        return inferred(response, options_of(row), right)
    found = extract_letter(response, "ABCD") if scoring == "lmms-eval" else opening(response)
    return Result(float(found == right), found)


def judge_prompt(row: Row, result: Result, response: str, scoring: str) -> str:
    return inferred_prompt(text(row, "question").rpartition("Options:")[0].strip(), options_of(row), response)


def judge_score(row: Row, result: Result, reply: str, scoring: str) -> Result:
    return inferred_judged(result, reply, options_of(row), letter(row, "answer"))


# ---------------------------------------------------------------- table


def summarise(rows: Sequence[Row], results: Sequence[Result], scoring: str) -> list[Line]:
    """All questions, abilities, sub-abilities. lmms-eval: the first two as means over sub-abilities."""
    details = scores_by(rows, results, lambda row: (text(row, "category"), text(row, "l2_category")))
    abilities = grouped(details, lambda place: place[0])
    if scoring == "lmms-eval":
        lines = [macro_line("average", list(details.values()))]
        lines += [macro_line(name, [details[place] for place in places]) for name, places in abilities.items()]
    else:
        lines = [mean_line("overall", [result.score for result in results])]
        lines += [mean_line(name, [one for place in places for one in details[place]])
                  for name, places in abilities.items()]  # fmt: skip
    return lines + [mean_line(f"{ability}: {detail}", scores) for (ability, detail), scores in details.items()]


BENCHMARKS = {
    "mmstar": Benchmark(
        title="MMStar", source="hf:Lin-Chen/MMStar", split="val", size=1500, metric="accuracy", licence="not stated",
        columns=("index", "question", "image", "answer", "category", "l2_category"), prompt=prompt, score=score,
        summarise=summarise, judge_prompt=judge_prompt, judge_score=judge_score,
        scorings=("official", "vlmevalkit", "lmms-eval"), identify=lambda row, number: text(row, "index"),
        reference=(("GPT-4V (high)", "57.1", "dataset card"), ("Meteor-7B", "52.8", "its README")),
        note="The official script divides by 1500, and by 250 for an ability, whatever was answered; here it is by the "
             "rows that were asked, the same for the whole benchmark. Multi-modal gain is this score minus that of a "
             "run without pictures; leakage is the latter minus that of the language model alone, at least 0.",
    )
}  # fmt: skip

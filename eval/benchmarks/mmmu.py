"""MMMU and MMMU-Pro: questions of college courses, most with options, some with several pictures.

github MMMU-Benchmark/MMMU at bb0b95a9 (Apache-2.0). MMMU (validation): 847 questions with options and 53 open ones of
30 subjects. MMMU-Pro: 1730 questions with up to 10 options ("standard", 10 or 4) or with all but the answer inside the
picture ("vision").

    official     MMMU's parser; a letter by lot where it finds none. Pro: the only option letter behind the last
                 "Answer:" if there is just one, else the parser as lmms-eval has it
    lmms-eval    its own version of the parser; every open question is wrong; Pro vision: the response must equal the
                 letter
    vlmevalkit   MMMU only: can_infer and a judge; an open question has two options, the true answer and any other

The configuration "composite" of MMMU-Pro, which lmms-eval knows too, is not here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

from benchmark import Benchmark, Line, Result, Row, fixed_random, mean_line, scores_by
from choices import inferred, inferred_judged, inferred_prompt, lettered, listed
from columns import letter, literal, text, texts
from common.errors import SightRLError
from extract import mmmu_letter

LETTER = "Answer with the letter of the right option and nothing else."
OPEN = "Answer with a number, a word or a short phrase and nothing else."
STEPS = "Think step by step. The last line must be 'Answer: ' and then the letter of the right option."
VISION = "The picture holds a question and its options. "
PLACE = re.compile(r"<image (\d)>")
DOMAINS = {
    "Art and Design": "Art Art_Theory Design Music",
    "Business": "Accounting Economics Finance Manage Marketing",
    "Science": "Biology Chemistry Geography Math Physics",
    "Health and Medicine": "Basic_Medical_Science Clinical_Medicine Diagnostics_and_Laboratory_Medicine Pharmacy "
                           "Public_Health",
    "Humanities and Social Science": "History Literature Sociology Psychology",
    "Tech and Engineering": "Agriculture Architecture_and_Engineering Computer_Science Electronics Energy_and_Power "
                            "Materials Mechanical_Engineering",
}  # fmt: skip


# ---------------------------------------------------------------- prompt


def has_options(row: Row) -> bool:
    """Pro has options only, and no column that says so."""
    return "question_type" not in row or text(row, "question_type") == "multiple-choice"


def options_of(row: Row) -> dict[str, str]:
    return lettered(texts(row, "options"))


def question(row: Row) -> str:
    """Question and options, with the marks <image 1>, <image 2> where pictures belong."""
    return text(row, "question") + (f"\n{listed(options_of(row))}" if has_options(row) else "")


def pictures(row: Row) -> list[Any]:
    """A picture for every mark; a picture that is named twice is shown twice. Without marks all that there are."""
    names = [f"image_{number}" for number in PLACE.findall(question(row))]
    names = names or [name for name in (f"image_{i}" for i in range(1, 8)) if row.get(name) is not None]
    for name in names:
        if row.get(name) is None:
            raise SightRLError(f"column {name} is empty though the question names it; take the published rows.")
    return [row[name] for name in names]


def prompt(row: Row, scoring: str) -> str:
    return f"{PLACE.sub('<image>', question(row))}\n\n{LETTER if has_options(row) else OPEN}"


def pro_prompt(row: Row, scoring: str) -> str:
    return f"{PLACE.sub('<image>', question(row))}\n\n{STEPS if scoring == 'official' else LETTER}"


def vision_prompt(row: Row, scoring: str) -> str:
    return VISION + (STEPS if scoring == "official" else LETTER)


# ---------------------------------------------------------------- open questions

CUES = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
NUMBERS = (
    re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b"),
    re.compile(r"-?(?<!\d)\d++(?:\.\d++)?[eE][+-]?\d+"),
    re.compile(r"-?(?:(?<!\d)\d++\.\d++|\.\d++|(?<!\d)\d++\b)(?![eE][+-]?\d)(?![,\d])"),
)  # thousands, scientific, simple; as the original but in linear time


def key_parts(response: str) -> list[str]:
    """For each line the shortest end that follows a cue ("=" counts in the last line only), else all of the text."""
    response = response.strip().strip(".").lower()
    lines = response.split("\n")
    parts = []
    for number, line in enumerate(lines, 1):
        shortest = ""
        for cue in (*CUES, "=") if number == len(lines) else CUES:
            if cue in line:
                end = line.rpartition(cue)[2].strip()
                if not shortest or len(end) < len(shortest):  # an empty end is replaced by the next, however long
                    shortest = end
        if shortest and shortest not in tuple(":,.!?;'"):
            parts.append(shortest)
    return parts or [response]


def normalised(part: str) -> list[str | float]:
    """A number rounded to two places, else the text in lower case; a single character is padded on either side."""
    part = part.strip()
    try:
        return [round(float(part.replace(",", "")), 2)]
    except ValueError:
        part = part.lower()
        return [f" {part}", f"{part} "] if len(part) == 1 else [part]


def open_answers(response: str) -> list[str | float]:
    """All that the response could mean: the key parts and all the numbers in them, each once."""
    parts = key_parts(response)
    numbers = [number for part in parts for pattern in NUMBERS for number in pattern.findall(part)]
    return list(dict.fromkeys(answer for part in parts + numbers for answer in normalised(part)))


def truths(answer: str) -> list[str]:
    """Several right answers are written as a list."""
    several = literal(answer) if answer.startswith("[") else None
    return [str(one) for one in several] if isinstance(several, list) and several else [answer]


def open_right(answers: Sequence[str | float], right: Sequence[str]) -> bool:
    """Whether any text contains a true text or any number is a true number."""
    wanted = [form for one in right for form in normalised(one)]
    phrases = [form for form in wanted if isinstance(form, str)]
    return any(any(form in answer for form in phrases) if isinstance(answer, str) else answer in wanted
               for answer in answers)  # fmt: skip


def plain(answers: Sequence[str | float]) -> list[str | float]:
    """For people to look at: the first few, short, and no infinity, which JSON does not know."""
    return [answer[:200] if isinstance(answer, str) else answer if math.isfinite(answer) else str(answer)
            for answer in answers[:20]]  # fmt: skip


# ---------------------------------------------------------------- score


def drawn(found: str, options: dict[str, str], response: str, right: str) -> Result:
    """The letter found, or one by lot, as the original does."""
    picked = found or fixed_random(right, response, list(options.items())).choice(list(options))
    return Result(float(picked == right), picked, parts={"by lot": not found})


def score(row: Row, response: str, scoring: str) -> Result:
    if not has_options(row):
        return score_open(row, response, scoring)
    options = options_of(row)
    right = letter(row, "answer")  # one published row has a single option and the answer B
    if scoring == "vlmevalkit":
        return inferred(response, options, right)
    return drawn(mmmu_letter(response, list(options), options, lmms=scoring == "lmms-eval"), options, response, right)


def score_open(row: Row, response: str, scoring: str) -> Result:
    answer = text(row, "answer")
    if scoring == "vlmevalkit":
        return inferred(response, *two_options(answer))
    answers = open_answers(response)
    # lmms-eval keeps one of the answers as a text and compares its characters one by one, so that none is ever right.
    right = scoring == "official" and open_right(answers, truths(answer))
    return Result(float(right), plain(answers), parts={"by lot": False})


def two_options(answer: str) -> tuple[dict[str, str], str]:
    """VLMEvalKit's options for an open question and the right one. Where the answer is itself a capital, that letter is
    taken for the right one, and so no response can be right for "C"."""
    capital = len(answer) == 1 and "A" <= answer <= "Z"
    return {"A": answer, "B": "Other Answers"}, answer if capital else "A"


def judge_prompt(row: Row, result: Result, response: str, scoring: str) -> str:
    options = options_of(row) if has_options(row) else two_options(text(row, "answer"))[0]
    return inferred_prompt(text(row, "question"), options, response)


def judge_score(row: Row, result: Result, reply: str, scoring: str) -> Result:
    if not has_options(row):
        return inferred_judged(result, reply, *two_options(text(row, "answer")))
    return inferred_judged(result, reply, options_of(row), letter(row, "answer"))


def pro_letter(response: str, options: dict[str, str]) -> str:
    """The only option letter behind the last "Answer:", else the parser as lmms-eval has it; "" for a lot."""
    _, found, rest = response.rpartition("Answer:")
    named = [one for one in options if one in rest] if found else []
    return named[0] if len(named) == 1 else mmmu_letter(response, list(options), options, lmms=True)


def pro_score(row: Row, response: str, scoring: str) -> Result:
    options = options_of(row)
    right = letter(row, "answer")
    if scoring == "official":
        return drawn(pro_letter(response, options), options, response, right)
    return drawn(mmmu_letter(response, list(options), options, lmms=True), options, response, right)


def vision_score(row: Row, response: str, scoring: str) -> Result:
    if scoring == "official":
        return pro_score(row, response, scoring)
    # lmms-eval parses only where there is a column question, which this configuration lacks.
    right = letter(row, "answer")
    return Result(float(response == right), response[:200], parts={"by lot": False})


# ---------------------------------------------------------------- table


def subject(row: Row) -> str:
    """The column of that name (Pro), else what stands between the first and the last underscore of the id."""
    if "subject" in row:
        return text(row, "subject")
    name = re.fullmatch(r"[^_]*_(.+)_\d+", text(row, "id"))
    if name is None:
        raise SightRLError(f"column id holds {row['id']!r}; it must be like validation_Math_12.")
    return name.group(1)


def summarise(rows: Sequence[Row], results: Sequence[Result], scoring: str) -> list[Line]:
    """All questions, the six domains, the subjects; last how often lots were drawn, if ever."""
    scores = scores_by(rows, results, subject)
    lines = [mean_line("overall", [result.score for result in results])]
    for domain, names in DOMAINS.items():
        lines.append(mean_line(domain, [one for name in names.split() for one in scores.get(name, ())]))
    lines += [mean_line(name, one) for name, one in sorted(scores.items())]
    lots = [float(result.parts.get("by lot", False)) for result in results]
    return [line for line in lines if line.count] + ([mean_line("letters by lot", lots)] if any(lots) else [])


def vision_pictures(row: Row) -> list[Any]:
    return [row["image"]]


PRO = dict(split="test", metric="accuracy", licence="Apache-2.0 (code)", scorings=("official", "lmms-eval"),
           summarise=summarise, identify=lambda row, number: text(row, "id"), note=(
               "Papers give the mean of the standard (10 options) and the vision score, or the former alone."),
           )  # fmt: skip
STANDARD = dict(columns=("id", "question", "options", "answer", "subject"), prompt=pro_prompt, score=pro_score,
                images=pictures)  # fmt: skip
QWEN_INTERN = "InternVL2.5 model card"
BENCHMARKS = {
    "mmmu": Benchmark(
        title="MMMU (validation)", source="hf:lmms-lab-encoder/MMMU", split="validation", size=900, metric="accuracy",
        licence="Apache-2.0 (code)", columns=("id", "question", "options", "answer", "question_type"), prompt=prompt,
        score=score, images=pictures, summarise=summarise, judge_prompt=judge_prompt, judge_score=judge_score,
        scorings=("official", "vlmevalkit", "lmms-eval"), identify=lambda row, number: text(row, "id"),
        reference=(("Qwen2-VL-2B", "41.1", QWEN_INTERN), ("Qwen2-VL-7B", "54.1", QWEN_INTERN),
                   ("InternVL2.5-2B", "43.6", QWEN_INTERN), ("InternVL2.5-8B", "56.0", QWEN_INTERN)),
        note="MMMU/MMMU has the same rows in 30 configurations, one for each subject. Where no rule reads a letter one "
             "is drawn by lot, the same in every run; the table says how often.",
    ),
    "mmmu_pro_10": Benchmark(
        title="MMMU-Pro (standard, 10 options)", source="hf:MMMU/MMMU_Pro,standard (10 options)", size=1730,
        reference=(("GPT-4o, steps", "55.03", "outputs in the repository, scored again"),
                   ("GPT-4o, direct", "40.12", "outputs in the repository, scored again"),
                   ("Qwen2-VL-2B", "21.2 (MMMU-Pro)", QWEN_INTERN), ("Qwen2-VL-7B", "30.5 (MMMU-Pro)", QWEN_INTERN),
                   ("InternVL2.5-2B", "23.7 (MMMU-Pro)", QWEN_INTERN),
                   ("InternVL2.5-8B", "34.3 (MMMU-Pro)", QWEN_INTERN)), **STANDARD, **PRO,
    ),
    "mmmu_pro_4": Benchmark(
        title="MMMU-Pro (standard, 4 options)", source="hf:MMMU/MMMU_Pro,standard (4 options)", size=None,
        **STANDARD, **PRO,
    ),
    "mmmu_pro_vision": Benchmark(
        title="MMMU-Pro (vision)", source="hf:MMMU/MMMU_Pro,vision", size=1730,
        columns=("id", "image", "options", "answer", "subject"), prompt=vision_prompt, score=vision_score,
        images=vision_pictures,
        reference=(("GPT-4o, steps", "50.06", "outputs in the repository, scored again"),
                   ("GPT-4o, direct", "42.43", "outputs in the repository, scored again")), **PRO,
    ),
}  # fmt: skip

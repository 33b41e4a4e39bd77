"""VL-RewardBench: which of two answers is better? A test of judges, on pairs that small models judge wrongly.

Evaluators: vl-rewardbench/VL_RewardBench at 9b10abdc (inference_hf.py, cal.py); EvolvingLMMs-Lab/lmms-eval at 75571cfe.

    official   K votes per pair (--k 5; the paper's K), each with its own random order of the answers; a pair with one
               unreadable vote is left out, else the majority counts; macro is the mean of the three groups
    lmms-eval  one vote; the order follows from the answers' lengths; unreadable: a judge, then a random choice; macro
               is the mean of the groups that are there

How K votes fit in: each is a response with a row of its own, the same but for "vote" (0, 1, ..., see `again`), from
which the order follows. `summarise` gets one (row, result) per vote and puts together what has the same id, query and
answers; data in which every row stands K times with its "vote" give the same. A row of a published result file may
hold random_number instead (1: the second answer first).

cal.py computes the pairs without unreadable votes but then counts all pairs, so that an unreadable vote is only one
vote against. The line "overall, with unreadable votes" is that number; the others follow the rule.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from benchmark import Benchmark, Line, Result, Row, bootstrap, cell, fixed_random, judged, mean_line
from columns import entries
from common.errors import SightRLError

SOURCES = {"RLAIF": "rlaif-v", "RLHF": "rlhf-v", "mathverse": "reasoning_tasks", "mmmu": "reasoning_tasks",
           "wildvision": "wildvision-battle", "hallucination": "povid"}  # fmt: skip
GROUPS = {"vlfeedback": "general", "wildvision-battle": "general", "povid": "hallucination", "rlaif-v": "hallucination",
          "rlhf-v": "hallucination", "reasoning_tasks": "reasoning"}  # fmt: skip
NAMES = ("general", "hallucination", "reasoning")


# ---------------------------------------------------------------- rows


def answers(row: Row) -> tuple[str, str]:
    both = entries(row, "response")
    if len(both) != 2:
        raise SightRLError(f"column response holds {len(both)} answers; it must be a list of two.")
    return str(both[0]), str(both[1])


def ranking(row: Row) -> list[int]:
    """[0, 1]: the first answer is preferred; [1, 0]: the second."""
    ranks = entries(row, "human_ranking")
    if sorted(map(str, ranks)) != ["0", "1"]:
        raise SightRLError(f"column human_ranking holds {str(ranks)[:60]}; it must be [0, 1] or [1, 0].")
    return [int(rank) for rank in ranks]


def pair_of(row: Row) -> str:
    """What makes votes votes on the same pair."""
    return cell(row, "id", str) + cell(row, "query", str) + "\t".join(sorted(answers(row)))


def swapped(row: Row, scoring: str) -> int:
    """1 if the second answer is shown first."""
    if scoring == "lmms-eval":
        return sum(map(len, answers(row))) % 2
    if row.get("random_number") in (0, 1):
        return int(row["random_number"])
    return fixed_random(pair_of(row), int(row.get("vote") or 0)).randrange(2)


def subset(name: str, scoring: str = "official") -> str:
    """Where a pair is from, by its id up to the first "_" or "-". Only lmms-eval ignores case: "Mathverse_1" is
    vlfeedback for the official script."""
    start = re.split("[_-]", name, maxsplit=1)[0]
    if scoring == "lmms-eval":
        return {prefix.lower(): source for prefix, source in SOURCES.items()}.get(start.lower(), "vlfeedback")
    return SOURCES.get(start, "vlfeedback")


# ---------------------------------------------------------------- prompt


def prompt(row: Row, scoring: str) -> str:
    first, second = answers(row)[:: -1 if swapped(row, scoring) else 1]
    question = cell(row, "query", str).strip()
    text = (
        "You judge answers to questions about a picture. Look at the picture, then compare the two answers below. What "
        "counts: is the answer true to the picture (most of all), is it complete, is it clear, does it help with what "
        "was asked? Neither length nor the order of the answers counts.\n\n"
        f"Question: {question}\n\nAnswer 1: {first}\n\nAnswer 2: {second}\n\n"
        "Give a short analysis of both. End with this line, with 1 or 2 for X:\nOverall Judgment: Answer X is better."
    )
    return text.replace("<image>", "")  # the picture stands before it all


# ---------------------------------------------------------------- extraction

KEYWORD = re.compile("Overall Judgment|Therefore", re.I)
VERDICT = re.compile(r"Answer\s*+(\d++)\s*+is\s*+(?:the\s*+)?+(?:slightly\s*+)?+better", re.I)


def verdict(response: str) -> int | None:
    """The number in the last verdict after the first keyword; None without one ("much better" is none).

    Line breaks and asterisks go first and leave nothing, so words at the ends of two lines are glued.
    """
    text = response.replace("\n", "").replace("*", "")
    keyword = KEYWORD.search(text)
    found = [match[1] for match in VERDICT.finditer(text, keyword.end())] if keyword else []
    if not found:
        return None
    digits = found[-1].lstrip("0") or "0"
    return int(digits) if len(digits) < 10 else -1  # some number that is neither 1 nor 2


# ---------------------------------------------------------------- score


def vote(response: str, ranks: Sequence[int], swap: int) -> str:
    """ "agree", "reject" or "doesntMatch". A bug, kept: any number but the rejected answer's agrees, 3 and 0 too."""
    said = verdict(response)
    if said is None:
        return "doesntMatch"
    return "reject" if said == 1 + list(ranks).index(0 if swap else 1) else "agree"


def score(row: Row, response: str, scoring: str) -> Result:
    said, shown = verdict(response), {"swapped": swapped(row, scoring)}
    if scoring == "lmms-eval":
        return Result(float(said == better(row)), said, undecided=said is None, parts=shown)
    label = vote(response, ranking(row), shown["swapped"])
    return Result(float(label == "agree"), said, parts=shown | {"vote": label})


def better(row: Row) -> int:
    """The number under which lmms-eval shows the better answer."""
    return 1 + ranking(row).index(swapped(row, "lmms-eval"))


# ---------------------------------------------------------------- a judge, for lmms-eval


def judge_prompt(row: Row, result: Result, response: str, scoring: str) -> str:
    if scoring == "official":
        return ""  # the official second reading by a model drops what it re-reads: leave it off, as its default does
    return ("Somebody compared two answers and wrote:\n\n" + response[:8000] + "\n\nWhich answer is called the better "
            "one? Reply with 'Answer 1' or 'Answer 2' and nothing else.")  # fmt: skip


def judge_score(row: Row, result: Result, reply: str, scoring: str) -> Result:
    """The first of "Answer 1" and "Answer 2" that is looked for and found; a random one for any other reply."""
    said = next((number for number in (1, 2) if f"answer {number}" in reply.lower()), None)
    said = said or fixed_random(pair_of(row), "judge").choice((1, 2))
    return judged(result, said == better(row), said)


# ---------------------------------------------------------------- summarise


def majority(votes: Sequence[str]) -> str:
    """The label with more than half of the votes, else "other"."""
    return next((label for label in ("agree", "reject", "doesntMatch") if votes.count(label) > len(votes) / 2), "other")


def summarise(rows: Sequence[Row], results: Sequence[Result], scoring: str) -> list[Line]:
    if scoring == "lmms-eval":
        pairs = [(subset(row["id"], scoring), result.score) for row, result in zip(rows, results, strict=True)]
        overall, macro, *groups = tables(pairs, [name for name in NAMES if any(GROUPS[s] == name for s, _ in pairs)])
        return [macro, overall, *groups]
    votes: dict[str, tuple[str, list[str]]] = {}  # pair -> where it is from, its votes
    for row, result in zip(rows, results, strict=True):
        votes.setdefault(pair_of(row), (subset(row["id"]), []))[1].append(result.parts["vote"])
    return official_tables(list(votes.values()))


def official_tables(votes: Sequence[tuple[str, Sequence[str]]]) -> list[Line]:
    """Accuracy of the pairs with a majority for one side; then what leaving the others out hides."""
    every = [(source, majority(some)) for source, some in votes]
    readable = [(source, majority(some)) for source, some in votes if "doesntMatch" not in some]
    decided = [(source, float(label == "agree")) for source, label in readable if label in ("agree", "reject")]
    rest = len(votes) - len(decided)
    lines = tables(decided, NAMES)
    lines += [mean_line(f"subset {name}", [value for source, value in decided if source == name]) for name in GROUPS]
    return [*lines,
            mean_line("overall, with unreadable votes",
                      [float(label == "agree") for _, label in every if label in ("agree", "reject")]),
            mean_line("strict: pairs without verdict are wrong", [value for _, value in decided] + [0.0] * rest),
            mean_line("pairs with a verdict", [1.0] * len(decided) + [0.0] * rest)]  # fmt: skip


def tables(pairs: Sequence[tuple[str, float]], names: Sequence[str]) -> list[Line]:
    """Overall, macro (the plain mean of these groups) and each group, of (subset, score) pairs."""
    units = np.array([(names.index(GROUPS[source]), value) for source, value in pairs], dtype=float).reshape(-1, 2)
    groups = [mean_line(name, units[units[:, 0] == i, 1]) for i, name in enumerate(names)]
    macro = Line("macro", 0.0, 0)  # not defined; the official script stops where a group or subset has no verdict
    if groups and all(line.count for line in groups):
        macro = Line("macro", 100 * mean_of_groups(units), len(units), bootstrap(mean_of_groups, units))
    return [mean_line("overall", units[:, 1]), macro, *groups]


def mean_of_groups(units: np.ndarray) -> float:
    """Of [pair, (group, score)]; groups that a bootstrap draw misses are left out."""
    return float(np.mean([units[units[:, 0] == name, 1].mean() for name in np.unique(units[:, 0])]))


PAPER = "arXiv 2411.17451, main table: overall / macro"
BENCHMARKS = {
    "vl_rewardbench": Benchmark(
        title="VL-RewardBench (test)", source="hf:MMInstruction/VL-RewardBench", split="test", size=1250,
        metric="accuracy", licence="MIT", columns=("id", "query", "response", "image", "human_ranking"),
        prompt=prompt, score=score, images=lambda row: [cell(row, "image")], summarise=summarise,
        judge_prompt=judge_prompt, judge_score=judge_score,
        scorings=("official", "lmms-eval"), max_new_tokens=2048, again=lambda row, number: {"vote": number} | row,
        identify=lambda row, number: f"{row['id']} {row['vote']}" if "vote" in row else str(row["id"]),
        reference=(("Gemini-1.5-Pro", "67.2 / 62.5", PAPER), ("GPT-4o", "65.8 / 62.4", PAPER),
                   ("Claude-3.5-Sonnet", "55.3 / 53.6", PAPER), ("GPT-4o-mini", "41.5 / 44.8", PAPER),
                   ("Llama-3.2-90B", "56.2 / 53.9", PAPER), ("Qwen2-VL-72B", "39.5 / 43.0", PAPER),
                   ("Qwen2-VL-7B", "28.3 / 33.9", PAPER), ("LLaVA-OneVision-7B", "29.6 / 36.5", PAPER),
                   ("LLaVA-Critic-8B", "41.2 / 44.0", PAPER), ("IXC-2.5-Reward", "65.8 / 70.0", PAPER)),
        note="Published: --k 5 --temperature 0.2, top-p 0.2 (the scripts' default is 10 votes; lmms-eval: one vote at "
             "temperature 1, 1024 tokens). Small judges are far below 50 because such models chose the pairs. The data "
             "set's page says 1,250 pairs, others counted 1,247 rows. A judge that leaves many pairs without verdict "
             "is measured on fewer: read the last lines too.",
    ),
}  # fmt: skip

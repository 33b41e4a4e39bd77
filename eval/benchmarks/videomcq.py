"""Video multiple choice: Video-MME, LongVideoBench, MLVU (dev and test). One question, one letter.

Evaluators: EvolvingLMMs-Lab/lmms-eval at 75571cfe and open-compass/VLMEvalKit at e8e78f05.

    lmms-eval   Video-MME and MLVU: extractor C2 over A to D; LongVideoBench: the first capital A to E after some cues
                are deleted ("Answer:" is not among them, so "Answer: B" reads as A), else a random letter
    vlmevalkit  Video-MME and LongVideoBench: the first capital A to D (E) after other cues are deleted, else a judge;
                MLVU: the character before the first ")", or the whole response, is the letter, else a judge

The number of frames is part of the protocol: report it with every number.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from benchmark import (
    Benchmark,
    Line,
    Result,
    Row,
    Video,
    bootstrap,
    cell,
    clustered_line,
    fixed_random,
    grouped,
    judged,
    mean_line,
)
from choices import listed
from columns import entries, letter
from common.errors import SightRLError
from extract import extract_letter

SCORINGS = ("lmms-eval", "vlmevalkit")
DEV_TASKS = ("anomaly_reco", "count", "ego", "needle", "order", "plotQA", "topic_reasoning")
TEST_TASKS = ("anomaly_reco", "count", "ego", "needleQA", "order", "plotQA", "sportsQA", "topic_reasoning",
              "tutorialQA")  # fmt: skip


# ---------------------------------------------------------------- prompts


def ask(row: Row, options: str, letters: str) -> str:
    """Subtitles if the row has some, the question, one line per option, and what to answer."""
    subtitles = str(row.get("subtitles") or "")
    heard = f"What is said in the frames that you see:\n{subtitles}\n\n" if subtitles else ""
    return (f"{heard}{cell(row, 'question', str)}\n{options}\n"
            f"Which option is right? Write its letter ({letters}) and nothing else.")  # fmt: skip


def videomme_prompt(row: Row, scoring: str) -> str:
    return ask(row, "\n".join(map(str, entries(row, "options"))), "A, B, C or D")


def long_prompt(row: Row, scoring: str) -> str:
    return ask(row, listed(long_options(row)), ", ".join(long_options(row)))


def mlvu_prompt(row: Row, scoring: str) -> str:
    """The question holds its options; the open bracket makes the letter come next."""
    return f"{cell(row, 'question', str)}\nName the right option alone.\nBest option: ("


# ---------------------------------------------------------------- extraction

FIRST_CUES = ("The best answer is", "The correct answer is", "The answer is", "The answer")
LMMS_CUES = (*FIRST_CUES, "The best option is", "The correct option is", "Best answer:", "Best option:")
# A bug of VLMEvalKit, kept: two commas are missing in its list, so two pairs of cues are fused into texts that nobody
# writes, and "Best option: C" reads as B, the first letter of "Best".
KIT_CUES = (*FIRST_CUES, "The best option isThe correct option is", "Best answer:Best option:", "Answer:", "Option:")


def first_capital(response: str, letters: str, cues: Sequence[str]) -> str:
    """The first of these letters that is left when the cues are deleted one after the other; "" if there is none."""
    text = response.strip()
    for cue in cues:
        text = text.replace(cue, "")
    match = re.search(f"[{letters}]", text)
    return match[0] if match else ""


# ---------------------------------------------------------------- scores


def choice(found: str, gold: str) -> Result:
    return Result(float(found == gold), found or None, undecided=not found)


def videomme_score(row: Row, response: str, scoring: str) -> Result:
    gold = letter(row, "answer")
    if scoring == "vlmevalkit":
        return choice(first_capital(response, "ABCD", KIT_CUES), gold)
    found = extract_letter(response, list("ABCD"))
    return Result(float(found == gold), found or None)


def long_options(row: Row) -> dict[str, str]:
    """Letter -> text of the options before the first that is absent ("N/A")."""
    options: dict[str, str] = {}
    for number, name in enumerate("ABCDE"):
        text = str(cell(row, f"option{number}"))
        if text == "N/A":
            break
        options[name] = text
    if not options:
        raise SightRLError("column option0 holds 'N/A'; a question needs options.")
    return options


def long_score(row: Row, response: str, scoring: str) -> Result:
    right = cell(row, "correct_choice", int, np.integer)
    if not 0 <= right < len(long_options(row)):
        raise SightRLError(f"column correct_choice holds {right}; it must be the number of an option, from 0.")
    gold = "ABCDE"[right]
    if scoring == "vlmevalkit":
        return choice(first_capital(response, "ABCDE", KIT_CUES), gold)
    found = first_capital(response, "ABCDE", LMMS_CUES)
    guess = fixed_random("LongVideoBench", str(row.get("id"))).choice(list(long_options(row)))
    return Result(float((found or guess) == gold), found or guess, parts={"guessed": not found})


def mlvu_score(row: Row, response: str, scoring: str) -> Result:
    gold = letter(row, "answer")
    if scoring == "vlmevalkit":
        before, bracket, _ = response.partition(")")
        said = before[-1:] if bracket else response
        return Result(float(said == gold), said[:20], undecided=said != gold)
    found = extract_letter(response, list("ABCD"))  # E and F, which the test split has, are never right
    return Result(float(found == gold), found or None)


# ---------------------------------------------------------------- a judge, for VLMEvalKit's rules


def judge_prompt(row: Row, result: Result, response: str, scoring: str, question: Callable[[Row, str], str]) -> str:
    return (f"Somebody was asked a question with options.\n\n{question(row, scoring)}\n\n"
            f"The reply was:\n{response[:4000]}\n\n"
            "Which option does the reply choose? Write its letter alone, or Z if it is none of them.")  # fmt: skip


def judge_score(row: Row, result: Result, reply: str, scoring: str, letters: str) -> Result:
    """The letter in the judge's reply; a random one where there is none, as VLMEvalKit does after three tries."""
    found = extract_letter(reply, [*letters, "Z"])
    found = found or fixed_random("video", str(row.get("question"))).choice(letters)
    gold = "ABCDE"[row["correct_choice"]] if "correct_choice" in row else letter(row, "answer")
    return judged(result, found == gold, found)


# ---------------------------------------------------------------- summarise


def by_video(rows: Sequence[Row], results: Sequence[Result], scoring: str, video: str,
             columns: Sequence[str]) -> list[Line]:  # fmt: skip
    """Overall, then for every value of every column: the mean of questions, as both evaluators have it. The intervals
    are from resampling videos, whose questions have much in common."""
    every = list(zip(rows, results, strict=True))

    def line(name: str, pairs: Sequence[tuple[Row, Result]]) -> Line:
        return clustered_line(name, [result.score for _, result in pairs], [str(row.get(video)) for row, _ in pairs])

    lines = [line("overall", every)]
    for column in columns:
        groups = grouped(every, lambda pair, column=column: str(pair[0].get(column)))
        names = sorted(groups, key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER))
        lines += [line(f"{column}: {name}", groups[name]) for name in names]
    return lines


ORDER = ("short", "medium", "long", "15", "60", "600", "3600")  # durations as the papers print them


def mlvu_average(rows: Sequence[Row], results: Sequence[Result], scoring: str, tasks: Sequence[str]) -> list[Line]:
    """M-Avg, the plain mean of the tasks' accuracies, where a task without questions counts 0; then each task."""
    for row in rows:
        if row.get("task_type") not in tasks:
            raise SightRLError(f"column task_type holds {str(row.get('task_type'))[:60]!r}; it must be one of {tasks}.")
    units = np.array([(tasks.index(row["task_type"]), result.score) for row, result in zip(rows, results, strict=True)])

    def average(some: np.ndarray) -> float:
        place = some[:, 0].astype(int)
        counts = np.bincount(place, minlength=len(tasks))
        return float(np.mean(np.bincount(place, some[:, 1], len(tasks)) / np.maximum(counts, 1)))

    if not len(units):
        return [mean_line("M-Avg", [])]
    lines = [Line("M-Avg", 100 * average(units), len(units), bootstrap(average, units))]
    return lines + [mean_line(task, units[units[:, 0] == i, 1]) for i, task in enumerate(tasks)]


# ---------------------------------------------------------------- the three


def mlvu(part: str, source: str, tasks: Sequence[str], letters: str,
         reference: tuple[tuple[str, str, str], ...] = ()) -> Benchmark:  # fmt: skip
    return Benchmark(
        title=f"MLVU ({part}, multiple choice)", source=source, split="test", size=None, metric="M-Avg",
        licence="not stated", columns=("video_name", "question", "answer", "task_type"),
        prompt=mlvu_prompt, score=mlvu_score, images=lambda row: [Video(cell(row, "video_name", str))],
        summarise=partial(mlvu_average, tasks=tasks), judge_prompt=partial(judge_prompt, question=mlvu_prompt),
        judge_score=partial(judge_score, letters=letters), scorings=SCORINGS, max_new_tokens=16, reference=reference,
        identify=lambda row, number: f"{row['video_name']} {number}", note=FRAMES,
    )  # fmt: skip


FRAMES = "Frames are sampled uniformly and their number changes the scores: report it. "
CARD = "InternVL2.5 model card"
BENCHMARKS = {
    "videomme": Benchmark(
        title="Video-MME (test)", source="hf:lmms-eval/Video-MME", split="test", size=2700, metric="accuracy",
        licence="not stated", columns=("videoID", "question", "options", "answer", "duration"),
        prompt=videomme_prompt, score=videomme_score, images=lambda row: [Video(cell(row, "videoID", str))],
        summarise=partial(by_video, video="videoID", columns=("duration", "domain", "task_type")),
        judge_prompt=partial(judge_prompt, question=videomme_prompt),
        judge_score=partial(judge_score, letters="ABCD"), scorings=SCORINGS, max_new_tokens=16,
        identify=lambda row, number: str(row.get("question_id", number)),
        reference=(("Qwen2-VL-7B", "63.3 without / 69.0 with subtitles", CARD),
                   ("InternVL2.5-4B", "62.3 without / 63.6 with subtitles", CARD),
                   ("InternVL2.5-8B", "64.2 without / 66.9 with subtitles", CARD)),
        note=FRAMES + "With subtitles: give each row a column subtitles with the lines spoken in its sampled frames.",
    ),
    "longvideobench": Benchmark(
        title="LongVideoBench (validation)", source="hf:longvideobench/LongVideoBench", split="validation", size=1337,
        metric="accuracy", licence="not stated",
        columns=("id", "video_path", "question", *(f"option{i}" for i in range(5)), "correct_choice", "duration_group",
                 "question_category"),
        prompt=long_prompt, score=long_score, images=lambda row: [Video(cell(row, "video_path", str))],
        summarise=partial(by_video, video="video_id", columns=("duration_group", "question_category")),
        judge_prompt=partial(judge_prompt, question=long_prompt),
        judge_score=partial(judge_score, letters="ABCDE"), scorings=SCORINGS, max_new_tokens=32,
        identify=lambda row, number: str(row.get("id", number)),
        reference=(("Qwen2-VL-7B", "55.6", CARD), ("InternVL2.5-4B", "55.2", CARD), ("InternVL2.5-8B", "60.0", CARD)),
        note=FRAMES + "Published runs interleave subtitles with frames; a column subtitles is put before the question.",
    ),
    "mlvu": mlvu("dev", "hf:sy1998/MLVU_dev", DEV_TASKS, "ABCD",
                 (("InternVL2.5-4B", "68.3", CARD), ("InternVL2.5-8B", "68.9", CARD))),
    "mlvu_test": mlvu("test", "hf:sy1998/MLVU_Test", TEST_TASKS, "ABCDEF"),
}  # fmt: skip

"""Reading text in pictures: TextVQA (ten answers per question) and OCRBench (1000 questions of ten kinds).

TextVQA: agreement with ten annotators after the cleaning of VQA's evaluator.
    official    the evaluator of the challenge (EvalAI), as lmms-eval (75571cfe, _task_utils/vqa_eval_metric.py) has it
    vlmevalkit  VLMEvalKit (e8e78f05): lower case comes last, and a period beside a digit stays
OCRBench: one of the answers must be a part of the response.
    official    github Yuliang-Liu/MultimodalOCR, OCRBench/example.py; formulas are known by the data set's name HME100k
    vlmevalkit  formulas are known by the kind of question
    lmms-eval   as official, and full-width letters count as plain ones
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

import numpy as np

from benchmark import Benchmark, Line, Result, Row, bootstrap, scores_by
from columns import text, texts_cell
from extract import without_punctuation

# ---------------------------------------------------------------- TextVQA

# Without one of its apostrophes each is taken for the word with all of them: "dont", "couldntve", "couldn'tve".
CONTRACTIONS = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've he's
how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've o'clock
oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd
someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're there's
they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've
when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't
wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""
NUMBERS = "zero one two three four five six seven eight nine ten"
ARTICLES = ("a", "an", "the")
# Which periods go: the official pattern means to keep "2.", but its look-behind is misspelt and never fails.
PERIOD = {"official": r"\.(?!\d)", "vlmevalkit": r"(?<!\d)\.(?!\d)"}


def without_one_apostrophe(word: str) -> list[str]:
    return [word[:i] + word[i + 1 :] for i, char in enumerate(word) if char == "'"]


REPLACED = {short: word for word in CONTRACTIONS.split() for short in without_one_apostrophe(word)}
REPLACED |= {word: str(number) for number, word in enumerate(NUMBERS.split())}
REPLACED |= {"none": "0", "somebody'd": "somebodyd"}


def cleaned(text: str, scoring: str) -> str:
    """An answer as it is compared."""
    if scoring != "vlmevalkit":
        text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    text = text.replace("\n", " ").replace("\t", " ").strip()
    words = without_punctuation(text, PERIOD[scoring]).lower().split()
    words = [word for word in words if word not in ARTICLES]
    return " ".join(REPLACED.get(word, word) for word in words)


def textvqa_prompt(row: Row, scoring: str) -> str:
    return f"{text(row, 'question')}\nWrite the answer alone, a word or a short phrase."


def agreement(answer: str, truths: Sequence[str]) -> float:
    """Mean over the annotators of min(1, how many of the others gave this answer / 3)."""
    same = [truth == answer for truth in truths]
    return fmean(min(1.0, (sum(same) - mine) / 3) for mine in same)


def textvqa(row: Row, response: str, scoring: str) -> Result:
    answer = cleaned(response, scoring)
    truths = [cleaned(truth, scoring) for truth in texts_cell(row, "answers")]
    return Result(agreement(answer, truths), answer[:200])


# ---------------------------------------------------------------- OCRBench

RECOGNITION = ("Regular Text Recognition", "Irregular Text Recognition", "Artistic Text Recognition",
               "Handwriting Recognition", "Digit String Recognition", "Non-Semantic Text Recognition")  # fmt: skip
FORMULAS = "Handwritten Mathematical Expression Recognition"
KINDS = ("Scene Text-centric VQA", "Doc-oriented VQA", "Key Information Extraction", FORMULAS)
PLAIN = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | {0x3000: " "}  # of full-width characters


def ocrbench_prompt(row: Row, scoring: str) -> str:
    return text(row, "question").strip()


def compact(text: str) -> str:
    """A formula without blanks; its case counts."""
    return text.strip().replace("\n", " ").replace(" ", "")


def plain(text: str, scoring: str) -> str:
    text = text.translate(PLAIN) if scoring == "lmms-eval" else text
    return text.lower().strip().replace("\n", " ")


def ocrbench(row: Row, response: str, scoring: str) -> Result:
    column, value = ("question_type", FORMULAS) if scoring == "vlmevalkit" else ("dataset", "HME100k")
    formula = text(row, column) == value
    form = compact if formula else lambda text: plain(text, scoring)
    read = form(response)
    return Result(float(any(form(answer) in read for answer in texts_cell(row, "answer"))), read[:200])


def ocrbench_table(rows: Sequence[Row], results: Sequence[Result], scoring: str) -> list[Line]:
    """Hits, of 1000 if all rows are there; then by kind, those of recognition together first."""
    scores = scores_by(rows, results, lambda row: str(row.get("question_type")))
    recognition = [score for kind in RECOGNITION for score in scores.get(kind, [])]
    lines = [hits("final score (hits)", [result.score for result in results]), hits("text recognition", recognition)]
    return lines + [hits(kind, scores[kind]) for kind in (*RECOGNITION, *KINDS) if kind in scores]


def hits(name: str, scores: Sequence[float]) -> Line:
    if not scores:
        return Line(name, 0.0, 0)
    return Line(name, sum(scores), len(scores), bootstrap(lambda picked: picked.sum(), np.asarray(scores), scale=1.0))


INTERNVL = "InternVL2.5 model card"
BENCHMARKS = {
    "textvqa": Benchmark(
        title="TextVQA (val)", source="hf:lmms-lab/textvqa", split="validation", size=5000, metric="VQA accuracy",
        licence="not stated", columns=("image", "question", "answers"), prompt=textvqa_prompt, score=textvqa,
        scorings=("official", "vlmevalkit"),
        reference=(("Qwen2-VL-2B", "79.7", INTERNVL), ("Qwen2-VL-7B", "84.3", INTERNVL),
                   ("InternVL2.5-2B", "74.3", INTERNVL), ("InternVL2.5-8B", "79.1", INTERNVL)),
        note="The tokens that an OCR system read are not given to the model."),
    "ocrbench": Benchmark(
        title="OCRBench", source="hf:echo840/OCRBench", split="test", size=1000, metric="hits", licence="not stated",
        columns=("image", "dataset", "question", "question_type", "answer"), prompt=ocrbench_prompt, score=ocrbench,
        summarise=ocrbench_table, scorings=("official", "vlmevalkit", "lmms-eval"), max_new_tokens=128,
        reference=(("InternVL2.5-78B", "854", INTERNVL), ("Qwen2-VL-72B", "877", INTERNVL)),
        note="An answer within a longer word counts: shell in shellfish."),
}  # fmt: skip

"""eval/benchmarks: MathVista, MathVerse, MATH-Vision, We-Math, DynaMath, LogicVista, Geometry3K, MMK12.

Golden vectors carry the number that they have on the card of their benchmark; most were made by running the official
code, see the docstrings of the benchmarks for repositories and commits.
"""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from bench_rows import FIVE, FRACTIONS, META, MMK12, dyna, geometry, logic, verse, vision, vista, we
from PIL import Image

import extract
from benchmark import Result, clustered_line, mean_line
from benchmarks import dynamath, geo3k, logicvista, mathverse, mathvision, mathvista, wemath
from common.errors import SightRLError

MODULES = (mathvista, mathverse, mathvision, wemath, dynamath, logicvista, geo3k)
ALL = {name: benchmark for module in MODULES for name, benchmark in module.BENCHMARKS.items()}


# ---------------------------------------------------------------- MathVista

VISTA = [  # number, row, extraction, right by official, lmms-eval, VLMEvalKit, what the first two read
    (1, vista("8/11", choices=FRACTIONS), "(B) 8/11", (1, 1, 1), ("8/11", "8/11")),
    (2, vista("8/11", choices=FRACTIONS), "8/10", (1, 1, 0), ("8/11", "8/11")),
    (3, vista("8/11", choices=FRACTIONS), "b", (0, 0, 0), ("3/5", "3/5")),
    (4, vista("14", "integer"), "14.0", (1, 1, 0), ("14", "14")),
    (5, vista("0.65", "float", precision=2.0), "0.649", (1, 0, 0), ("0.65", None)),
    (6, vista("1.50", "float", precision=1.0), "1.5", (0, 0, 1), ("1.5", None)),
    (7, vista("[2007, 2008]", "list"), "[2007, 2008]", (1, 1, 0), ("[2007, 2008]", "[2007, 2008]")),
    (8, vista("14", "integer"), "fourteen", (0, 0, 0), (None, None)),
]  # fmt: skip
SCORINGS = ("official", "lmms-eval", "vlmevalkit")


@pytest.mark.parametrize("scoring", SCORINGS)
@pytest.mark.parametrize(("row", "extraction", "right", "read"), [c[1:] for c in VISTA], ids=[f"{c[0]}" for c in VISTA])
def test_mathvista_golden(row, extraction, right, read, scoring):
    result = mathvista.judge_score(row, Result(0.0, undecided=True), extraction, scoring)
    assert (result.score, result.undecided) == (right[SCORINGS.index(scoring)], False)
    if scoring != "vlmevalkit":
        assert result.answer == read[SCORINGS.index(scoring)]


def test_mathvista_golden_2_is_undecided_for_vlmevalkit():
    assert mathvista.score(vista("8/11", choices=FRACTIONS), "8/10", "vlmevalkit") == Result(0.0, undecided=True)


@pytest.mark.parametrize(("row", "response", "answer"), [
    (vista("14", "integer"), "14", "14"),
    (vista("14", "integer"), "14.0", None),
    (vista("14", "integer"), "", ""),
    (vista("8/11", choices=FRACTIONS), "8/11", "8/11"),
    (vista("8/11", choices=FRACTIONS), "I think it is 8/11", None),
    (vista("0.5", "float", precision=1.0), "0.50", "0.5"),
    (vista("14", "integer"), 'First.\nThe answer is "x". So The answer is "14". Done.', 'x". So The answer is "14'),
    (vista("8/11", choices=FRACTIONS), 'The answer is "\nThe answer is "B".', "B"),
    (vista("14", "integer"), 'The answer is ".', None),
])  # fmt: skip
def test_mathvista_golden_9_extraction_by_rules(row, response, answer):
    assert mathvista.extract(row, response) == answer
    result = mathvista.score(row, response, "official")
    assert result.undecided == (answer is None) and (answer is not None or result.score == 0)


def test_mathvista_official_normal_form():
    row = vista("8/11", choices=FRACTIONS)
    assert mathvista.normal(row, "maybe (d) or (a)", "official") == "3/5"
    assert mathvista.normal(row, "E", "official") == "3/5"  # no such letter: the nearest text
    assert mathvista.score(row, "", "official") == Result(0.0, "3/5")  # the shortest option
    assert mathvista.score(vista("3/5", choices=FRACTIONS), "", "official").score == 1
    whole = vista("14", "integer")
    assert [mathvista.normal(whole, text, "official") for text in ("14.9", "-3.9", "nan", "inf", "1e400")] == [
        "14", "-3", None, None, None]  # fmt: skip
    real = vista("0.7", "float", precision=1.0)
    assert mathvista.normal(real, "0.68", "official") == "0.7"
    assert mathvista.normal(real, "0.68", "lmms-eval") is None  # round(0.68, 1.0) raises
    assert mathvista.normal(vista("0.7", "float", precision=1), "0.68", "lmms-eval") == "0.7"
    assert mathvista.score(whole, " 14 \n", "lmms-eval").score == 1


def test_mathvista_vlmevalkit_by_rules():
    row = vista("8/11", choices=FRACTIONS)
    assert mathvista.score(row, "The answer is B.", "vlmevalkit") == Result(1.0, "B")
    assert mathvista.score(row, "Cannot determine the answer", "vlmevalkit") == Result(0.0, "Z")
    assert mathvista.score(row, "It could be any of them, I would say A or B", "vlmevalkit").undecided
    assert mathvista.score(vista("0", "integer"), "0", "vlmevalkit").score == 1
    assert mathvista.score(vista("14", "integer"), "15", "vlmevalkit") == Result(0.0, "15")
    assert mathvista.score(vista("14", "integer"), "about 14", "vlmevalkit").undecided
    assert mathvista.score(vista("[1]", "list"), "[1]", "vlmevalkit") == Result(0.0, "[1]")


def test_mathvista_prompts_and_table():
    choice, whole = vista("8/11", choices=FRACTIONS), vista("14", "integer", unit="$")
    for scoring in mathvista.BENCHMARKS["mathvista"].scorings:
        assert "(B) 8/11" in mathvista.prompt(choice, scoring) and "letter" in mathvista.prompt(choice, scoring)
        assert "(unit: $)" in mathvista.prompt(whole, scoring) and "whole number" in mathvista.prompt(whole, scoring)
    assert "2 digit(s) behind the point" in mathvista.prompt(vista("0.65", "float", precision=2.0), "official")
    # What the prompt asks for is what the rules read.
    assert mathvista.score(choice, 'Two of five.\nThe answer is "B".', "official").score == 1
    assert mathvista.score(whole, 'The answer is "14".', "official").score == 1
    assert "(B) 8/11" in mathvista.judge_prompt(choice, Result(0.0), "some words", "official")
    rows = [choice, whole | {"metadata": META | {"skills": np.array(["arithmetic reasoning"]), "grade": "college"}}]
    lines = {line.name: line for line in mathvista.summarise(rows, [Result(1.0), Result(0.0)], "official")}
    assert next(iter(lines)) == "overall" and lines["overall"].value == 50
    assert (lines["skills: arithmetic reasoning"].value, lines["skills: arithmetic reasoning"].count) == (50, 2)
    assert (lines["skills: geometry reasoning"].value, lines["grade: college"].value) == (100, 0)
    assert lines["question_type: multi_choice"].value == 100
    bare = mathvista.summarise([choice | {"metadata": None}], [Result(1.0)], "official")
    assert [line.name for line in bare] == ["overall", "question_type: multi_choice"]


@pytest.mark.parametrize(("row", "column"), [
    (vista("1/11", choices=FRACTIONS), "answer"),
    (vista("8/11", choices=FRACTIONS, question_type="multi_choice") | {"choices": None}, "choices"),
    (vista("0.6", "float"), "precision"),
    (vista("0.6", "float", precision=-1.0), "precision"),
    (vista("0.6", "float", precision=1.0) | {"answer": None}, "answer"),
    ({"answer": "x"}, "question_type"),
])  # fmt: skip
def test_mathvista_bad_rows(row, column):
    with pytest.raises(SightRLError, match=column):
        mathvista.score(row, "0.6", "official")


# ---------------------------------------------------------------- MathVerse


def test_mathverse_golden_1_quick_match():
    assert mathverse.score(verse("A"), "A", "official") == Result(1.0, "A", parts={"local": 1.0})
    assert mathverse.score(verse("A"), "A.", "official") == Result(0.0, undecided=True, parts={"local": 1.0})
    assert mathverse.score(verse("A"), "A", "lmms-eval").undecided


def test_mathverse_golden_2_and_3_truncation(monkeypatch):
    assert mathverse.last_words("so the angle is 30 degrees", 3) == "is 30 degrees"
    assert mathverse.last_words("so the angle is 30 degrees", 0) == "so the angle is 30 degrees"
    assert mathverse.last_words("so  the", -1) == "so  the"
    assert "so the angle" in mathverse.judge_prompt(verse("A"), Result(0.0), "so the angle is A", "official")
    monkeypatch.setattr(mathverse, "LAST_WORDS", 2)
    assert "so the angle" not in mathverse.judge_prompt(verse("A"), Result(0.0), "so the angle is A", "official")


def test_mathverse_golden_4_and_5_vlmevalkit():
    row = verse("30", "free-form")
    assert mathverse.score(row, " 30 ", "vlmevalkit").score == 1
    assert mathverse.score(verse(" 30 ", "free-form"), "30", "vlmevalkit").score == 1
    assert mathverse.score(verse(" 30 ", "free-form"), "30", "official").score == 0  # strips one side alone
    undecided = mathverse.score(row, "30°", "vlmevalkit")
    assert (undecided.score, undecided.undecided) == (0, True)
    # The judge extracts but gives no verdict.
    assert mathverse.judge_score(row, undecided, "Extracted: 30°", "vlmevalkit") == Result(
        0.0, "30°", parts=undecided.parts)  # fmt: skip
    assert mathverse.judge_score(row, undecided, "Extracted: 30 \nJudgement: 0", "vlmevalkit").score == 1
    assert mathverse.judge_score(row, undecided, "Extracted: 30 \nJudgement: 0", "official").score == 0


def test_mathverse_golden_6_versions():
    means = dict(zip(mathverse.VERSIONS, (40, 30, 30, 25, 20), strict=True))
    rows, results = [], []
    for version, per_cent in means.items():
        for problem in range(100):
            rows.append(verse("A", version=version, problem=str(problem)) | {"image": None})
            results.append(Result(float(problem < per_cent), parts={"local": 0.5}))
    rows.append(verse("A", version="Text Only"))
    results.append(Result(1.0))
    lines = mathverse.summarise(rows, results, "official")
    assert lines[0].name == "overall" and lines[0].value == pytest.approx(29) and lines[0].count == 500
    assert {line.name: line.value for line in lines}["Vision Dominant"] == pytest.approx(25)
    assert {line.name: line.count for line in lines}["Text Only"] == 1
    assert lines[-1].name.startswith("own rule") and lines[-1].value == pytest.approx(50)
    # A problem answered in no version or in all of them varies five times as much as five independent rows.
    low, high = lines[0].interval
    independent = np.sqrt(0.29 * 0.71 / 500)
    assert (high - low) / 100 > 1.4 * 3.92 * independent


@pytest.mark.parametrize(("reply", "scoring", "score", "undecided"), [
    ("Extracted: A\nJudgement: 1", "official", 1, False),
    ("Extracted: B\nJudgment: 0.", "official", 0, False),
    ("**Judgement:** 1", "official", 1, False),
    ("1", "official", 1, False),
    ("I cannot say", "official", 0, True),
    ("I cannot say", "vlmevalkit", 0, False),
    ("1", "lmms-eval", 1, False),
    ("0", "lmms-eval", 0, False),
    ("", "lmms-eval", 0, False),
    ("\x00" * 9, "official", 0, True),
])  # fmt: skip
def test_mathverse_judge(reply, scoring, score, undecided):
    row, before = verse("A"), Result(0.0, undecided=True, parts={"local": 0.0})
    result = mathverse.judge_score(row, before, reply, scoring)
    assert (result.score, result.undecided, result.parts) == (score, undecided, before.parts)
    for other in mathverse.BENCHMARKS["mathverse"].scorings:
        text = mathverse.judge_prompt(row, before, "It is 30 degrees", other)
        assert "It is 30 degrees" in text and "A:30" in text


@pytest.mark.parametrize(("row", "response", "right"), [
    (verse("B"), r"so \boxed{B}", 1),
    (verse("B"), r"so \boxed{45}", 1),
    (verse("B"), "<think>x</think><answer>A</answer>", 0),
    (verse("B"), "B: 45", 1),
    (verse("2\\sqrt{3}", "free-form"), r"\boxed{\sqrt{12}}", 1),
    (verse("2\\sqrt{3}", "free-form"), r"\boxed{3.4}", 0),
    (verse("D", question="Which? A or B or C or D"), "It must be D", 1),
])  # fmt: skip
def test_mathverse_own_rule(row, response, right):
    assert mathverse.score(row, response, "official").parts["local"] == right


def test_mathverse_prompts_and_pictures():
    text_only, blank = verse("A", version="Text Only"), verse("A", version="Vision Only")
    assert mathverse.pictures(text_only) == [] and len(mathverse.pictures(blank)) == 1
    assert "A:30" in mathverse.prompt(text_only, "official") and "A:30" not in mathverse.prompt(blank, "official")
    assert "picture holds" in mathverse.prompt(blank, "official")
    with pytest.raises(SightRLError, match="question_type"):
        mathverse.score(verse("A", kind="other"), "A", "official")


# ---------------------------------------------------------------- MATH-Vision

VISION = [  # number, response, row, VLMEvalKit: right, None for undecided
    (1, r"So the answer is \boxed{B}.", vision("B", FIVE), True),
    (2, r"\boxed{15}", vision("B", FIVE), True),
    (3, "It must be (B).", vision("B", FIVE), True),
    (4, "The answer is 15. Done", vision("B", FIVE), None),
    (5, r"\boxed{\frac{1}{2}}", vision("0.5"), None),
    (6, "x = 3.14159", vision("3.14"), None),
    (7, r"\boxed{1} or \boxed{2}", vision("2"), None),
    (8, r"\boxed{(2*3,5+2)}", vision("(6,7)"), None),
    (9, r"\boxed{90^{\circ}}", vision("90"), None),
]


@pytest.mark.parametrize(("response", "row", "kit"), [case[1:] for case in VISION], ids=[f"{c[0]}" for c in VISION])
def test_mathvision_golden(response, row, kit):
    official = mathvision.score(row, response, "official")
    assert (official.score, official.undecided) == (1, False)
    result = mathvision.score(row, response, "vlmevalkit")
    assert (result.score == 1, result.undecided) == (kit is True, kit is None)


@pytest.mark.parametrize(("response", "answer"), [
    # made by running the official code (evaluation/evaluate.py and utils.py at a1f5cc3a)
    ("B\nbecause", "b"),
    ("(C) C\nbecause", "c"),
    ("I say D.", "d"),
    ("The sum is 12.", "12"),
    ("the final answer is 5\nand more", "5"),
    ("The correct answer is: (A) 7. It is so", "a7"),
    (r"\boxed{x = 5}", "5"),
    (r"\boxed{3} and so {x}", "3"),
    (r"\boxed{\frac12\sqrt3}", r"\frac{1}{2}\sqrt{3}"),
    (r"\boxed{\frac12}", r"\frac12"),
    (r"\boxed{\dfrac{3}{4}\text{ cm}}", r"\frac{3}{4}{cm}"),
    (r"\boxed{12 \text{ km}}", "12"),
    (r"\boxed{3/4}", r"\frac{3}{4}"),
    (r"\boxed{03/4}", "03/4"),
    (r"\boxed{.5}", r"\frac{1}{2}"),
    (r"\boxed{50\%}", "50"),
    (r"$\approx 2.7$", "2.7"),
    (r"\boxed{\sqrt", r"\boxed{\sqrt"),
    ("", ""),
])  # fmt: skip
def test_mathvision_official_extraction(response, answer):
    assert mathvision.extract(response) == answer


@pytest.mark.parametrize(("truth", "answer", "right"), [
    # made by running the official code with latex2sympy2 1.9.1
    ("2", r"\sqrt{4}", True), (r"$4 \pi$", "12.57", True), (r"$5 \sqrt{3}$", r"5\sqrt{3}", True),
    ("1:2", "0.5", True), ("1,000", "1000", True), ("69{degrees}", "69", False),
    (r"$\boxed{\frac{16}{7}}$", r"\frac{16}{7}", False), (r"\frac{360}7", "51.43", False), ("45^2", "2025", True),
    ("2^3", "8", True), ("2", "2x", False), ("2", "2cm", False), ("0.3333", r"\frac{1}{3}", True),
    ("0.33", "0.335", False), ("0.34", "0.336", True), ("(3,-4)", "(3.0,-4.0)", True),
    ("(0.5,1)", r"(\frac{1}{2},1)", True),
    ("0.25", r"\frac{1}{4}}. The rest", True), ("5", "5.so it is", True), ("5", "5)x", True), ("5", "5=5", False),
    ("3", r"3\$", False), ("0.75", r"\displaystyle \frac{3}{4}", True), ("2.5", "2.5.1", False), ("8", "2^{3}", True),
    ("(3,-4)", "[3,-4]", False), ("(3,-4)", "(3,-4,1)", False), ("(3,x)", "(3,X)", True), ("6", "(2)(3)", True),
    ("5", "five", False), ("", "", False), ("3", "", False), ("2", r"\frac12", False), ("2", "2**1", False),
    ("2", "sqrt(4)", False), ("0.5", "2^-1", False), ("0.5", "2^{-1}", True), ("3", "3.", True), ("3", "|-3|", False),
    ("1", r"\frac{1}{0}", False), ("2", "12/6", True), ("(2,1)", "(12/6,1)", False), ("(2,1)", r"(\sqrt{4},1)", False),
])  # fmt: skip
def test_mathvision_official_equality(truth, answer, right):
    assert mathvision.equal(truth, answer) is right


def test_mathvision_vlmevalkit_equality_and_judge():
    free = vision("0.5")
    assert mathvision.score(free, " 1/2 ", "vlmevalkit") == Result(1.0, "1/2")
    assert mathvision.score(vision("8"), "2**3", "vlmevalkit").score == 1
    assert mathvision.score(vision("3.14"), "3.1416", "vlmevalkit").undecided  # 1e-6, not two decimals
    assert mathvision.judge_score(free, Result(0.0, undecided=True), "0.5", "vlmevalkit") == Result(1.0, "0.5")
    assert mathvision.judge_score(free, Result(0.0, undecided=True), "half", "vlmevalkit") == Result(0.0, "half")
    choice = vision("B", FIVE)
    assert mathvision.judge_score(choice, Result(0.0, undecided=True), "B", "vlmevalkit") == Result(1.0, "B")
    assert "B. 15" in mathvision.judge_prompt(choice, Result(0.0), "words", "vlmevalkit")


def test_mathvision_prompts_table_and_bad_rows():
    choice, free = vision("B", FIVE), vision("8", level=5, subject="counting")
    for scoring in ("official", "vlmevalkit"):
        assert "B. 15" in mathvision.prompt(choice, scoring) and "letter" in mathvision.prompt(choice, scoring)
        assert "letter" not in mathvision.prompt(free, scoring)
    lines = {line.name: line.value for line in mathvision.summarise([choice, free], [Result(1.0), Result(0.0)], "")}
    assert lines == {"overall": 50, "subject: arithmetic": 100, "subject: counting": 0, "level: 2": 100, "level: 5": 0}
    for row, column in ((vision("F", FIVE), "answer"), (vision() | {"options": None}, "options"),
                        ({"options": []}, "answer")):  # fmt: skip
        with pytest.raises(SightRLError, match=column):
            mathvision.score(row, "B", "official")


# ---------------------------------------------------------------- We-Math


@pytest.mark.parametrize(("response", "letter"), [
    ("Thought: x / Answer: B", "B"),
    ("Answer: <C>", "C"),
    ("The Answer is D", ""),
    ("B", "B"),
    ("Answer: (B)", ""),
    ("final answer b", ""),
    ("Answer: B. Answer", ""),
    ("Answer: BC", "B"),
    ("Answer: I", ""),
    ("", ""),
], ids=["1", "2", "3", "4", "5", "5b", "6", "text-BC", "text-I", "empty"])  # fmt: skip
def test_wemath_golden_extraction(response, letter):
    assert wemath.extract(response) == letter
    for scoring in ("official", "vlmevalkit"):
        result = wemath.score(we(answer="B"), response, scoring)
        assert result.score == (letter == "B") and result.undecided == (scoring == "vlmevalkit" and not letter)


PATTERNS = ["TTT", "TTF", "TFT", "FFT", "TFF", "TTTT", "FTTT", "FFFT"]  # steps, then the whole


def wemath_answers():
    rows, results = [], []
    for number, pattern in enumerate(PATTERNS):
        steps = len(pattern) - 1
        for i, mark in enumerate(pattern):
            part = "multi" if i == steps else i + 1
            rows.append(we(f"{steps}steps_{part}", problem=f"{number % 4}"))  # IDs are used again for three steps
            results.append(Result(float(mark == "T")))
    return rows, results


def test_wemath_golden_7_kinds_and_scores():
    problems = wemath.composites(*wemath_answers())
    assert {name: int(which.sum()) for name, which in wemath.kinds(problems).items()} == {
        "IG": 1, "IK": 1, "CM loose": 4, "CM strict": 2, "RM loose": 2, "RM strict": 4}  # fmt: skip
    assert wemath.official_score(problems, "strict") == pytest.approx(0.989524, abs=1e-6)
    assert wemath.official_score(problems, "loose") == pytest.approx(0.993333, abs=1e-6)


def test_wemath_table():
    rows, results = wemath_answers()
    lines = {line.name: line for line in wemath.summarise(rows, results, "official")}
    assert next(iter(lines)) == "score (strict)" and lines["score (strict)"].count == 8
    assert lines["score (strict)"].value == pytest.approx(100 * (8 - 0.5 - 4 - 1) / 8)
    assert lines["score (loose)"].value == pytest.approx(100 * (8 - 0.5 - 2 - 1) / 8)
    assert lines["score (strict) as if of 525"].value == pytest.approx(98.9524, abs=1e-4)
    assert lines["IK (strict)"].value == lines["IG (loose)"].value == pytest.approx(12.5)
    assert lines["CM (strict)"].value == pytest.approx(25) and lines["RM (strict)"].value == pytest.approx(100 * 4 / 6)
    assert lines["RM (loose)"].value == pytest.approx(100 * 2 / 6)
    assert lines["accuracy of all questions"].count == len(rows) == 27
    assert (lines["two steps"].value, lines["three steps"].value) == (60, 100)
    assert lines["one step"].value == pytest.approx(100 * 11 / 19)
    # Two answers to every question make twice as many problems; a problem with a missing step makes none.
    twice = {line.name: line for line in wemath.summarise(rows * 2, results * 2, "official")}
    assert twice["score (strict)"].count == 16 and twice["RM (loose)"].value == lines["RM (loose)"].value
    assert wemath.summarise(rows[1:], results[1:], "official")[0].count == 7
    none = {line.name: line for line in wemath.summarise(rows, [Result(0.0)] * 27, "official")}
    assert (none["RM (strict)"].value, none["score (loose)"].value) == (0, 0)
    assert wemath.summarise([], [], "official")[0].count == 0
    with pytest.raises(SightRLError, match="key"):
        wemath.summarise([we("4steps_1")], [Result(1.0)], "official")


def test_wemath_other_scorings_and_prompts():
    row = we()
    assert wemath.score(row, "<think>so</think><answer>B</answer>", "lmms-eval") == Result(1.0, parts={"format": 1.0})
    assert wemath.score(row, "<think>so</think><answer>C</answer>", "lmms-eval").score == 0
    assert wemath.options(row) == {"A": "1 cm", "B": "2 cm", "C": "No correct answer"}
    assert "B. 2 cm" in wemath.prompt(row, "official") and "Answer: B" in wemath.prompt(row, "official")
    assert "<answer>" in wemath.prompt(row, "lmms-eval")
    open_one = wemath.score(row, "two", "vlmevalkit")
    assert "B. 2 cm" in wemath.judge_prompt(row, open_one, "two", "vlmevalkit")
    assert wemath.judge_prompt(row, open_one, "two", "official") == ""
    assert wemath.judge_score(row, open_one, "B", "vlmevalkit") == Result(1.0, "B")
    assert wemath.judge_score(row, open_one, "Z", "vlmevalkit") == Result(0.0, "Z")
    for bad in ("b", "AB", ""):
        with pytest.raises(SightRLError, match="answer"):
            wemath.score(we(answer=bad), "B", "official")


# ---------------------------------------------------------------- DynaMath


def short(answer):
    return json.dumps({"solution": "Because.", "short answer": answer}, ensure_ascii=False)


DYNA = [  # number, response, row, right by VLMEvalKit, right officially
    ("1", short("3.142"), dyna("float", "3.1416"), 1, 1),
    ("1b", short("3.1426"), dyna("float", "3.1416"), 1, 1),
    ("2", short("2π"), dyna("float", "6.2832"), 1, 1),
    ("3", short("12 cm"), dyna("float", "12"), 1, 1),
    ("4", short("(B)"), dyna("multiple choice", "B"), 1, 1),
    ("4b", short("b"), dyna("multiple choice", "B"), 1, 1),
    ("5", "B. Because A fails", dyna("multiple choice", "B"), 1, 1),
    ("6", short("even"), dyna("text", "even function"), 1, 0),
    ("7", short("it is an even function"), dyna("text", "even function"), 0, 1),
    ("8", "12", dyna("float", "12"), 1, 1),
    ("text-empty", short(""), dyna("text", "even function"), 1, 0),
    ("text-1.1", short("3.1427"), dyna("float", "3.1416"), 0, 0),
    ("text-two", short("A or B"), dyna("multiple choice", "B"), 0, 0),
    ("text-tex", '```json\n{"solution": "\\frac{1}{2}", "short answer": "0.500"}\n```', dyna("float", "0.5"), 1, 1),
    ("number", '{"short answer": 12}', dyna("float", "12"), 0, 1),
]


@pytest.mark.parametrize(("response", "row", "kit", "official"), [c[1:] for c in DYNA], ids=[c[0] for c in DYNA])
def test_dynamath_golden(response, row, kit, official):
    assert dynamath.score(row, response, "vlmevalkit").score == kit
    assert dynamath.score(row, response, "official").score == official


def test_dynamath_golden_2_value_and_undecided():
    assert dynamath.read("2π", "float") == pytest.approx(6.283185, abs=1e-6)
    assert dynamath.read("2π/3", "float") == pytest.approx(2 * math.pi)
    assert dynamath.read("π", "float") is None
    assert dynamath.read("B. Because A fails", "multiple choice") is None  # 5: right by the three first characters
    unclear = dynamath.score(dyna("multiple choice", "B"), "Either A or B", "official")
    assert unclear == Result(0.0, undecided=True)
    assert dynamath.score(dyna("float", "3"), "three", "official").undecided
    assert not dynamath.score(dyna("text", "three"), "3", "official").undecided


def test_dynamath_golden_9_average_and_worst_case():
    rows = [dyna("float", "1", "7", str(i)) for i in range(1, 11)] + [
        dyna("float", "1", "8", "1", subject="arithmetic")
    ]
    results = [Result(1.0)] * 9 + [Result(0.0), Result(1.0)]
    lines = {line.name: line for line in dynamath.summarise(rows[:10], results[:10], "official")}
    assert (lines["average"].value, lines["worst case"].value, lines["robustness"].value) == (90, 0, 0)
    assert lines["worst case"].count == 1
    lines = {line.name: line for line in dynamath.summarise(rows, results, "official")}
    assert next(iter(lines)) == "average" and lines["average"].value == pytest.approx(100 * 10 / 11)
    assert (lines["worst case"].value, lines["robustness"].value) == (50, pytest.approx(55))
    assert lines["worst case, subject: arithmetic"].value == 100 and lines["average, subject: algebra"].value == 90
    # lmms-eval: the ten groups are the variants; variant 10 is wrong, variant 1 has both questions.
    lines = {line.name: line for line in dynamath.summarise(rows, results, "lmms-eval")}
    assert (lines["average"].value, lines["worst case"].value, lines["worst case"].count) == (90, 90, 10)
    results[10] = Result(0.0)
    lines = {line.name: line for line in dynamath.summarise(rows, results, "lmms-eval")}
    assert (lines["average"].value, lines["worst case"].value) == (pytest.approx(85), pytest.approx(80))
    assert dynamath.summarise([], [], "official")[0].value == 0


def test_dynamath_prompts_judge_and_bad_rows():
    choice, real, words = dyna("multiple choice", "B"), dyna("float", "0.5"), dyna("text", "even")
    assert "letter" in dynamath.prompt(choice, "official") and "short answer" in dynamath.prompt(choice, "official")
    assert "three decimal" in dynamath.prompt(real, "vlmevalkit") and "<answer>" in dynamath.prompt(real, "lmms-eval")
    assert "short answer" in dynamath.prompt(words, "official")
    before = Result(0.0, undecided=True)
    assert dynamath.judge_score(choice, before, "(B)\n", "official") == Result(1.0, "B")
    assert dynamath.judge_score(real, before, "0.500", "official") == Result(1.0, "0.5")
    assert dynamath.judge_score(real, before, "a half", "official") == Result(0.0)
    assert "a half" in dynamath.judge_prompt(real, before, "a half", "official")
    assert dynamath.score(choice, "<think>x</think><answer>B</answer>", "lmms-eval") == Result(
        1.0, parts={"format": 1.0}
    )
    for row, column in ((dyna("float", "many"), "ground_truth"), (dyna("text", None), "ground_truth"),
                        (dyna(3, "B"), "answer_type")):  # fmt: skip
        with pytest.raises(SightRLError, match=column):
            dynamath.score(row, "B", "official")


# ---------------------------------------------------------------- LogicVista


@pytest.mark.parametrize(("truth", "reply", "right"), [
    ("A, C", '["C", "A"]', 1),
    ("A, C", "A", 0),
    ("B", "b", 1),
    ("B", "The answer is B", 0),
    ("B", "ZZZZZ", 0),
    ("A, C", "CA", 1),
    ("A", "A, A", 0),
    ("3", "3", 1),
], ids=["1", "2", "4", "prose", "none", "joined", "twice", "digit"])  # fmt: skip
def test_logicvista_golden_official(truth, reply, right):
    before = logicvista.score(logic(truth), "I think so", "official")
    assert before.undecided
    result = logicvista.judge_score(logic(truth), before, reply, "official")
    assert (result.score, result.undecided) == (right, False)


@pytest.mark.parametrize(("truth", "response", "right"), [
    ("B", "z", 0), ("F", "F", 0), ("B", "?", 0), ("B", " b\n", 1), ("B", "A", 0), ("3", "3", 1),
    ("", "", 1), ("B", "", 0),
], ids=["3", "beyond-E", "mark", "letter", "wrong", "digit", "empty-truth", "empty"])  # fmt: skip
def test_logicvista_golden_3_single_characters(truth, response, right):
    result = logicvista.score(logic(truth), response, "official")
    assert (result.score, result.undecided) == (right, False)
    assert logicvista.score(logic(truth), response, "vlmevalkit").undecided


def test_logicvista_vlmevalkit_keeps_capitals():
    before = Result(0.0, undecided=True)
    for reply, right in (("CA", 1), ("A, C", 1), ("a, c", 0), ("The A, C", 0), ("", 0), ("Z", 0)):
        assert logicvista.judge_score(logic(), before, reply, "vlmevalkit").score == right


@pytest.mark.parametrize(("answer", "right"), [("A, C", 1), ("Because of D", 0)], ids=["5", "6"])
def test_logicvista_golden_lmms(answer, right):
    response = f"<think>so</think><answer>{answer}</answer>"
    assert logicvista.score(logic(), response, "lmms-eval") == Result(float(right), parts={"format": 1.0})


def test_logicvista_own_rule_prompts_and_table():
    assert logicvista.score(logic(), r"so \boxed{\text{C}} no \boxed{C, A}", "official").parts == {"local": 1.0}
    assert logicvista.score(logic(), "<answer>A and C</answer>", "vlmevalkit").parts == {"local": 1.0}
    assert logicvista.score(logic(), r"\boxed{A}", "official").parts == {"local": 0.0}
    assert "boxed" in logicvista.prompt(logic(), "official") and "<answer>" in logicvista.prompt(logic(), "lmms-eval")
    assert "Select from" in logicvista.judge_prompt(logic(), Result(0.0), "hm", "official")
    assert logicvista.judge_prompt(logic(), Result(0.0), "hm", "lmms-eval") == ""
    rows = [logic(), logic("B", ("spatial", "inductive")), logic("B") | {"skill": "['mechanical']"}]
    results = [Result(1.0, parts={"local": 1.0}), Result(0.0), Result(1.0)]
    lines = {line.name: (line.value, line.count) for line in logicvista.summarise(rows, results, "official")}
    assert next(iter(lines)) == "overall" and lines["overall"][1] == 3
    assert lines["skill: inductive"] == (50, 2) and lines["skill: spatial"] == (0, 1)
    assert lines["skill: mechanical"] == (100, 1) and "skill: numerical" not in lines
    assert any(name.startswith("own rule") and value == pytest.approx(100 / 3) for name, (value, _) in lines.items())
    with pytest.raises(SightRLError, match="answer"):
        logicvista.score({"question": "?"}, "B", "official")


# ---------------------------------------------------------------- Geometry3K, MMK12


@pytest.mark.parametrize(("response", "truth", "right"), [  # golden vector 8 of VPPO's card
    (r"\boxed{3} then \boxed{4}", "3", 0),
    (r"\boxed{1/2}", "2/4", 0),
    (r"\boxed{\frac{1}{2}}", "0.5", 1),
    ("no box", "None", 1),
    (r"<think>a</think> \boxed{12}", "12", 1),
])  # fmt: skip
def test_geo3k_golden_8(response, truth, right):
    for benchmark in geo3k.BENCHMARKS.values():
        assert benchmark.score(geometry(truth), response, "official").score == right


def test_geo3k_prompts_table_and_bad_rows():
    mmk = MMK12
    for row, benchmark in ((geometry(), ALL["geo3k"]), (mmk, ALL["mmk12"])):
        assert "<image>" in benchmark.prompt(row, "official") and "boxed" in benchmark.prompt(row, "official")
        assert len(benchmark.images(row)) == 1
    lines = ALL["mmk12"].summarise([mmk, mmk | {"subject": "math"}], [Result(1.0), Result(0.0)], "official")
    assert [(line.name, line.value) for line in lines] == [
        ("overall", 50),
        ("subject: physics", 100),
        ("subject: math", 0),
    ]
    assert ALL["geo3k"].score(geometry(), r"\boxed {4} < answer >\boxed{ 3 }", "official").answer == "3"
    with pytest.raises(SightRLError, match="answer"):
        ALL["geo3k"].score(geometry(" "), "3", "official")


# ---------------------------------------------------------------- all of them


def test_clustered_line():
    scores = [1.0, 0.0, 1.0, 1.0]
    alone = clustered_line("x", scores, range(4))
    assert (alone.value, alone.count) == (75, 4) and alone.interval == pytest.approx(mean_line("x", scores).interval)
    together = clustered_line("x", scores, ["a", "b", "a", "a"])  # clusters of 3 right and 1 wrong
    assert (together.value, together.count, together.interval) == (75, 4, (0, 100))
    assert (clustered_line("x", [], []).count, clustered_line("x", [], []).interval) == (0, None)


ROWS = {
    "mathvista": [vista("8/11", choices=FRACTIONS), vista("14", "integer"), vista("0.6", "float", precision=1.0),
                  vista("[1, 2]", "list")],
    "mathverse": [verse("A"), verse("30", "free-form", "Vision Only")],
    "mathverse_text_only": [verse("A", version="Text Only")],
    "mathvision": [vision("B", FIVE), vision("(6,7)")],
    "mathvision_mini": [vision(r"$\sqrt{2}$")],
    "wemath": [we(key) for key in wemath.KEYS],
    "dynamath": [dyna("multiple choice", "B", "1"), dyna("float", "3.1416", "2"), dyna("text", "even function", "3")],
    "logicvista": [logic(), logic("B")],
    "geo3k": [geometry()],
    "mmk12": [MMK12],
}  # fmt: skip
CASES = [(name, scoring) for name, benchmark in ALL.items() for scoring in benchmark.scorings]


@pytest.fixture
def no_processes(monkeypatch):
    """Without math-verify, which is tested in test_symbolic.py and costs a process."""
    monkeypatch.setattr(extract, "verified", lambda golds, texts: [0.0] * len(golds))


@pytest.mark.parametrize(("name", "scoring"), CASES)
def test_published_rows_go_all_the_way(name, scoring, no_processes):
    benchmark = ALL[name]
    results = []
    for number, row in enumerate(ROWS[name]):
        assert all(column in row for column in benchmark.columns)
        assert benchmark.prompt(row, scoring).strip() and benchmark.identify(row, number)
        assert all(isinstance(image, Image.Image) for image in benchmark.images(row))
        result = benchmark.score(row, "<think>so</think><answer>B</answer>", scoring)
        if result.undecided and benchmark.judge_score is not None:
            assert "so" in benchmark.judge_prompt(row, result, "so", scoring)
            result = benchmark.judge_score(row, result, "B", scoring)
        results.append(result)
    lines = benchmark.summarise(ROWS[name], results, scoring)
    assert lines and all(0 <= line.value <= 100 and line.count <= len(results) for line in lines)
    low, high = lines[0].interval
    assert low - 1e-9 <= lines[0].value <= high + 1e-9
    assert benchmark.scorings[0] == "official" and benchmark.size and benchmark.licence

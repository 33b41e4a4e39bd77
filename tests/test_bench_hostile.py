"""Hostile responses: every benchmark with every scoring gives any text a sound Result in little time, and then a table.

Texts are arbitrary Unicode, soups of the marks that extractors look for, plausible answers with stretches replaced, and
10 kB of one mark over and over. The judges' replies are as hostile. A Result gets two seconds of computing, where a
few milliseconds are usual: a guard against hanging, no more.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from typing import Any

import bench_rows as rows
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

import extract
import megabench_metrics
import megabench_values
from benchmark import Benchmark, Result, Row
from benchmarks import detection
from scoring import find_benchmarks, through_json

MOST = 2.0  # seconds; also of common/'s parsers, see test_parsers.py
LONG = 10_000  # characters

FOUND, PROBLEMS = find_benchmarks()
CASES = [(name, scoring) for name, (benchmark, _) in FOUND.items() for scoring in benchmark.scorings]

# ---------------------------------------------------------------- rows

TRUTHS = {"nbbox": "[[0,0,1,1]]", "xml": "<box>0,0,1,1</box>", "point": "<point>0.5,0.5</point>", "dict": '{"a": [1]}',
          "numer": "12.5", "rmse": "0.5", "latex": r"\frac{1}{2}", "chess": "[e4, Nf3]", "set": "[a, b]",
          "sequence": "[a, b]", "jaccard": "[a, b]", "line_break": "x\ny"}  # fmt: skip
PLANNED = {"domain_pddl": "(define (domain d) (:action go :parameters (?a) :precondition (at ?a) :effect (on ?a)))",
           "task_pddl": "(define (problem p) (:init (at a)) (:goal (and (on a))))",
           "bounding_boxes": ["(0,0,1,1)"]}  # fmt: skip


def every_metric() -> Row:
    names = [*megabench_metrics.METRICS, *megabench_metrics.CONTEXT, "program_judge"]
    truth = {name: next((TRUTHS[part] for part in TRUTHS if part in name), "B") for name in names}
    return rows.mega({name: name for name in names}, truth, "json", context=PLANNED)


ROWS: dict[str, list[Row]] = {
    "mathvista": [rows.vista("8/11", choices=rows.FRACTIONS), rows.vista("14", "integer"),
                  rows.vista("0.6", "float", precision=1.0), rows.vista("[1, 2]", "list")],
    "mathverse": [rows.verse("A"), rows.verse("30", "free-form", "Vision Only")],
    "mathverse_text_only": [rows.verse("A", version="Text Only")],
    "mathvision": [rows.vision("B", rows.FIVE), rows.vision("(6,7)")],
    "mathvision_mini": [rows.vision(r"$\sqrt{2}$")],
    "wemath": [rows.we()],
    "dynamath": [rows.dyna("multiple choice", "B"), rows.dyna("float", "3.1416"), rows.dyna("text", "even function")],
    "logicvista": [rows.logic(), rows.logic("B")],
    "geo3k": [rows.geometry(), rows.geometry(r"\frac{1}{2}")],
    "mmk12": [rows.MMK12],
    "mmmu": [rows.MMMU, rows.OPEN],
    "mmmu_pro_10": [rows.PRO], "mmmu_pro_4": [rows.PRO], "mmmu_pro_vision": [rows.VISION],
    "mmstar": [rows.MMSTAR], "hallusionbench": [rows.HALLUSION], "blink": [rows.BLINK], "mmvp": [rows.MMVP],
    "megabench": [every_metric(), *(rows.mega({"a": "exact_str_match"}, {"a": "red"}, f"{kind}answer_string")
                                    for kind in ("", "ascii_", "verbatim_"))],  # the first is scored in one way
    "videomme": [rows.MME], "longvideobench": [rows.LONG], "mlvu": [rows.MLVU], "mlvu_test": [rows.MLVU],
    "charades_sta": [rows.STA],
    "vl_rewardbench": [rows.PAIR],
    "reasonmap": [rows.MAP],
    "reasonmap_long": [rows.MAP, rows.MAP | {"question_long": "Via Stops: "}, rows.MAP | {"country": "italy"}],
    "reasonmap_plus": [rows.PLUS, rows.PLUS | {"type": "Counting1"}, rows.PLUS | {"type": "Counting2"}],
    "vicrit_bench": [rows.CRITIC],
    "vstar": [rows.BAG], "hrbench_4k": [rows.COLOURS], "hrbench_8k": [rows.COLOURS],
    "screenspot": [rows.BUTTON], "screenspot_v2": [rows.BUTTON], "screenspot_pro": [rows.SAVE],
    **{f"{name}{kind}": [rows.DOG] for name in ("refcoco", "refcoco_plus", "refcocog") for kind in ("", "_rec")},
    **{f"vlm_r1_{name}": [rows.R1] for name in ("refcoco", "refcoco_plus", "refcocog")},
    "lisa": [{"image": rows.SCREEN, "text": ["seat"], "is_sentence": False, "shapes": rows.SHAPES}],
    **{name: [rows.query([[100, 50, 100, 50]], category=classes[0])] for name, classes in detection.CLASSES.items()},
    "odinw13": [rows.PETS],
    "chartqa": [rows.CHART], "textvqa": [rows.BRAND],
    "ocrbench": [rows.SIGN, rows.SIGN | {"dataset": "HME100k"}],
    "countbench": [rows.DOGS], "countbenchqa": [rows.DOGS], "superclevr200": [rows.CLEVR],
}  # fmt: skip

# ---------------------------------------------------------------- texts

LETTERS = [*"BCDEFGHIZbz017"]  # as good as A, a and 9 where a text is endless
MARKS = [*"Aa9 .,:;!?/\\{}()[]<>\"'`$%^*-–+=≈\n\t|_#~", "(A)", "(B)", "B.", "\n\n", "--", "''", "{}", "[[", "]]", "((",
         "{{", "```", "```json\n", "**", "..", "</", "Answer", "Answer: ", "**Answer:", "answer is ", "The answer is ",
         'The answer is "', '".', "Best option: (", "option ", "I choose ", "Overall Judgment", "Therefore", "is",
         "better", "the ", "slightly", "Extracted: ", "Judgement: 1", "yes", "no", "No Objects", "<think>", "</think>",
         "<analysis>", "<answer>", "</answer>", "<box>", "</box>", "<bbox", "<bbox>", "</bbox>", "<point>", "</point>",
         "\\boxed{", "oxed{", "\\frac", "\\frac{1}{2}", "\\sqrt", "\\text{", "^{\\circ}", "\\approx", "\\pi", "π",
         "9^{9^{9^9}}", "Route Name: ", "Departure Stop: ", "Arrival Stop: ", "Via Stops: ", "Number of Via Stops: ",
         "Line 1", "Metro ", "甲站", "丁站", "（", "）", "start", "end", "happens in ", "to", "1:05", "12", "-2.5",
         "0.5", "1,000", "x=", ", y=", "x: ", "1e400", "-1e-400", "nan", "inf", "Infinity", "NaN", "null", "None",
         "true", "9" * 400, "9" * 5000, "8/11", "red", "blue", "orange", "even function", "dont", "'s", "no. 5", "\x00",
         "\ud800", "é", "İ", "ſ", "²", "½", "٣", "ＡＢＣ", "😀", "\u3000", "\u2028", '"bbox_2d": ', '"label": "cat"',
         "'Position': ", "'Confidence': ", '{"short answer": ', "(move a b)"]  # fmt: skip
PLAUSIBLE = [rows.ROUTE, "<think>so</think><answer>B</answer>", '{"solution": "x", "short answer": "3.14"}',
             "It happens in 3.5 - 10.2 seconds.", "Overall Judgment: Answer 1 is better.", r"So \boxed{\frac{1}{2}}.",
             "pyautogui.click(x=0.5, y=0.5)", "<box>(400,400),(600,600)</box>", "<answer>(100,100),(500,500)</answer>",
             '[{"bbox_2d": [10, 10, 50, 50], "label": "cat"}, {"bbox_2d": [500, 200, 900, 800], "label": "dog"}]',
             "<answer>[{'Position': [100, 200, 300, 400], 'Confidence': 0.9}, {'Position': [1, 2, 3, 4]}]</answer>",
             '<answer>{"bbox_2d": [100, 100, 300, 200]}</answer>', "The answer is (B), since it is blue.",
             "[0.7, 0.9]", 'Answer: {"a": ["x"], "b": "y"}', "Reasoning. Answer: 42", "**Answer: (B)** for sure",
             "Extracted: 30\nJudgement: 1", "x = 1,234.5", "thinking\nfinal: the orange license plates"]  # fmt: skip
SOUP = st.lists(st.sampled_from([*LETTERS, *MARKS]), max_size=40).map("".join)


def mutated(text: str) -> st.SearchStrategy[str]:
    """The text with a stretch of it replaced."""
    place, marks = st.integers(0, len(text)), st.sampled_from(["", *MARKS])
    return st.builds(lambda a, b, mark: text[: min(a, b)] + mark + text[max(a, b) :], place, place, marks)


TEXTS = st.one_of(st.text(max_size=80), SOUP, st.sampled_from(PLAUSIBLE).flatmap(mutated),
                  st.sampled_from(PLAUSIBLE).flatmap(mutated).flatmap(mutated))  # fmt: skip
ENDLESS = [mark * (LONG // len(mark)) for mark in MARKS] + [
    opened * (LONG // 2) + closed * (LONG // 2) for opened, closed in ("{}", "[]", "()", "（）")] + [
    text * (LONG // len(text)) for text in PLAUSIBLE] + [
    start + " " * LONG for start in ("1", "[", "A", "<answer>", "ANSWER", "Overall Judgment Answer", "Route Name:")] + [
    '{"a":' * 1400 + "x" + "}" * 1400, "[" + ",".join(["1" * 2500] * 4), "[" + "1" * LONG, "1" + "{1}" * 3000 + "}",
    rows.ROUTE + "," * LONG, rows.ROUTE + "甲站," * 3000, (rows.ROUTE + "--") * 100, "start\n1\n" * 1100,
    "Therefore Answer 1 is" + " the " * 2000, "\\boxed{" + "{" * LONG, "x" * LONG + "\\boxed{1}"]  # fmt: skip


# ---------------------------------------------------------------- the test


@pytest.fixture
def within_time() -> Iterator[Callable[[], None]]:
    """Call it before every piece of work that must end soon."""

    def stalled(*_: object) -> None:
        raise TimeoutError(f"more than {MOST} seconds of computing")

    old = signal.signal(signal.SIGVTALRM, stalled)
    yield lambda: signal.setitimer(signal.ITIMER_VIRTUAL, MOST)
    signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    signal.signal(signal.SIGVTALRM, old)


def light(row: Row) -> Row:
    """As summarise and the judges get it."""
    return {name: None if isinstance(value, Image.Image) else value for name, value in row.items()}


def sound(result: Result) -> Result:
    assert 0 <= result.score <= 1 and not (result.undecided and result.score)
    assert len(json.dumps([result.answer, result.parts], allow_nan=False)) < 60_000
    return through_json(result)


def graded(benchmark: Benchmark, row: Row, text: str, scoring: str) -> Result:
    result = sound(benchmark.score(row, text, scoring))
    assert isinstance(benchmark.judge_prompt(light(row), result, text, scoring), str)
    if benchmark.judge_score is not None:
        sound(benchmark.judge_score(light(row), result, text, scoring))
    return result


def test_every_benchmark_has_rows() -> None:
    assert set(ROWS) == set(FOUND) and not PROBLEMS


@pytest.mark.parametrize(("name", "scoring"), CASES)
def test_any_response_gets_a_result(name: str, scoring: str, within_time: Any, monkeypatch: Any) -> None:
    benchmark, results = FOUND[name][0], []
    for module in (extract, megabench_values):  # math-verify costs processes; test_symbolic.py is about it
        monkeypatch.setattr(module, "verified", lambda golds, texts: [0.0] * len(golds))

    chosen = ROWS[name][1:] if (name, scoring) == ("megabench", "lmms-eval") else ROWS[name]

    def grade(text: str) -> Result:
        for row in chosen:
            within_time()
            results.append((light(row), graded(benchmark, row, text, scoring)))
        return results[-1][1]

    @settings(max_examples=30, deadline=None, derandomize=True, database=None)
    @given(TEXTS)
    @example("")
    @example("[1e400, 1e400, -1e400, 1e400]")
    @example('{"bbox_2d": [NaN, Infinity, -Infinity, 1e999], "label": "cat"}')
    @example("<answer>" + "1" * 5000 + "</answer>")
    @example("<box>(" + "1" * 5000 + ",1),(1,1)</box>")
    @example(f"[{'1' * 400}, {'2' * 400}, {'3' * 400}, {'4' * 400}]")
    def holds(text: str) -> None:
        assert grade(text) == grade(text)

    holds()
    for text in ENDLESS:
        grade(text)
    within_time()
    lines = benchmark.summarise(*zip(*results, strict=True), scoring)
    most = len(results) if name == "ocrbench" or any("(count)" in line.name for line in lines) else 100
    assert lines and all(0 <= line.value <= most for line in lines)

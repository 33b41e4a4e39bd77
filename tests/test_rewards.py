"""Grading: the golden vectors of the cards, every way of writing an answer, and hostile text."""

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common import maths
from common.data import Sample
from common.rewards import (
    accuracy,
    detection_f1,
    giou,
    grade_answer,
    has_format,
    iou,
    last_boxed,
    match_boxes,
    option_letter,
    parse_box,
    parse_boxes,
    parse_state,
    rescale_box,
    yes_no,
)


def sample(answer: str, answer_type: str = "text", **meta: object) -> Sample:
    return Sample("x:1", "?", answer, "task", [], answer_type, meta)


# -------------------------------------------------------------------------------------- the VPPO card, item 8
@pytest.mark.parametrize(
    ("response", "gold", "right"),
    [
        (r"\boxed{3} then \boxed{4}", "3", 0.0),
        (r"\boxed{1/2}", "2/4", 0.0),
        (r"\boxed{\frac{1}{2}}", "0.5", 1.0),
        ("no box", "None", 0.0),  # 1 in VPPO's code: an answer that was cut off is no answer "None"
        (r"<think>a</think> \boxed{12}", "12", 1.0),
    ],
)
def test_golden_vectors_of_vppo(response, gold, right):
    assert accuracy(response, sample(gold)) == right


def test_last_boxed():
    assert last_boxed(r"\boxed{1} and \boxed{ \frac{1}{2} } end") == r"\frac{1}{2}"
    assert last_boxed(r"\boxed{\boxed{5}}") == "5"
    assert last_boxed(r"\boxed{}") == ""
    assert last_boxed("none") is None
    assert last_boxed(r"\boxed{1} \boxed{{2}") is None  # the last one counts, and it never closes
    assert last_boxed("") is None


def test_states_of_reading():
    assert parse_state(r"so \boxed{3}") == "ok"
    assert parse_state(r"so \boxed{ }") == "empty"
    assert parse_state(r"so \boxed{3") == "unclosed"
    assert parse_state("<think>I was cut o") == "no_answer"


def test_format_of_vppo():
    assert has_format("<think>a</think> \\boxed{3}")
    assert has_format(" < think >\na\n< / think >\n words \\boxed{3} more")
    assert not has_format("Well, <think>a</think> \\boxed{3}")
    assert not has_format("<think>a \\boxed{3}")
    assert not has_format("<think>a \\boxed{3}</think> done")
    assert not has_format("<think>a</think> 3")
    assert not has_format("")


# ----------------------------------------------------------------------------------------------- grade_answer
EQUAL = [
    ("12", "12"), ("12.", "12"), ("12.0", "12"), ("007", "7"), ("+5", "5"), ("1,000", "1000"),
    (r"1{,}000", "1000"), (r"1\!,000", "1000"), ("50%", "50"), (r"50\%", "50"), ("$5$", "5"), (r"\$5", "5"),
    ("5 cm", "5"), ("5cm^2", "5"), (r"5\text{ cm}", "5"), (r"5 \mathrm{cm}", "5"), ("30 degrees", "30"),
    (r"30^\circ", "30"), (r"30^{\circ}", "30"), ("30°", "30"), ("2 hours", "2"), (r"\text{red}", "Red"),
    (r"\textbf{Red}", "red"), ("  Blue  ", "blue"), ("A", "a"), (r"\frac12", "1/2"),
    (r"\dfrac{1}{2}", r"\frac{1}{2}"), (r"\tfrac{1}{2}", ".5"), (r"-\frac{1}{2}", "-0.5"),
    (r"\frac{-1}{2}", "-1/2"), ("7 3/4", "31/4"), (r"7\frac{3}{4}", "7.75"), ("-7 3/4", "-7.75"),
    (r"2\sqrt{3}", r"\sqrt{12}"), (r"2\sqrt3", "sqrt(12)"), (r"\sqrt[3]{-8.1}", r"-\sqrt[3]{8.1}"),
    (r"\pi/2", r"\frac{\pi}{2}"), ("2πr", r"2 \pi r"), ("x=5", "5"), ("x + 1", "1+x"), ("y=2x+1", "y=1+2x"),
    ("(x+1)^2", "x^2+2x+1"), ("x^{10}+1", "1+x^{10}"), (r"\frac{x+1}{2}", "(x+1)/2"),
    (r"\frac{1}{\frac{1}{3}}x", "3x"), ("(1, 2)", "(1,2)"), ("(0.5,2)", r"(\frac{1}{2},2)"),
    (r"\left(\frac{1}{2}, 3\right)", "(1/2,3)"), (r"(-\infty, 3]", r"(-\infty,3]"), ("3 or 4", "3, 4"),
    ("3 and 4", "3,4"), ("(5)", "5"), (r"3 \times 10", r"3 \cdot 10"), ("1.50", "1.5"), ("1e5", "100000"),
    ("1.5e-2", "0.015"), (r"\{1,2\}", r"\left\{1, 2\right\}"),
]  # fmt: skip
DIFFERENT = [
    ("4", "3"), ("1/2", "2/4"), (r"\frac{2}{4}", r"\frac{1}{2}"), ("4/2", "2"), ("2", "4/2"), ("24/2", "12"),
    ("", "x"), ("x", ""), ("", ""), ("day", "year"), ("second", "minute"), ("one second", "one minute"),
    ("no", "on"), ("ab", "ba"), ("(1,2)", "[1,2]"), ("(1,2]", "(1,2)"), ("(1,2)", "(1,2,3)"),
    ("1,2", "(1,2)"), ("(1,2)", "(2,1)"), ("0.333", "1/3"), (r"2\pi", "6.283185307179586"),
    (r"\sqrt{x^2}", "x"), ("(3", "3"), ("3)", "3"), ("1e5", "10000"), (r"\text{ red}", r"\text{ blue}"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}12\end{pmatrix}"), ("cat", "act"), ("1/0", "2/0"),
    ("x/0", "y/0"), ("9^9^9^9^9", "8^9^9^9^9"), ("2 3", "23.5"), ("0", "0.0000001"),
]  # fmt: skip


@pytest.mark.parametrize(("given_answer", "gold"), EQUAL)
def test_equal_answers(given_answer, gold):
    assert grade_answer(given_answer, gold) and grade_answer(gold, given_answer)


@pytest.mark.parametrize(("given_answer", "gold"), DIFFERENT)
def test_different_answers(given_answer, gold):
    assert not grade_answer(given_answer, gold)


def test_missing_answers():
    assert not grade_answer(None, "1") and not grade_answer("1", None)
    assert grade_answer("$", "$") and not grade_answer("$", "%")  # nothing is left of them after normalising


def test_agrees_with_python_arithmetic():
    """Random arithmetic, written twice, against exact fractions."""
    from fractions import Fraction

    rng = random.Random(0)

    def expression(depth: int) -> tuple[str, Fraction]:
        if depth == 0:
            n = rng.randint(1, 9)
            return str(n), Fraction(n)
        (a, x), (b, y) = expression(depth - 1), expression(depth - 1)
        kind = rng.choice("+-*/")
        if kind == "/":
            return (rf"\frac{{{a}}}{{{b}}}", x / y) if y else (a, x)
        return f"({a}{kind}{b})", {"+": x + y, "-": x - y, "*": x * y}[kind]

    for _ in range(100):
        text, value = expression(3)
        assert grade_answer(f"z+{text}", f"{value.numerator}/{value.denominator}+z"), text
        assert not grade_answer(f"z+{text}", f"{value.numerator + 1}/{value.denominator}+z"), text


HOSTILE = [
    "(" * 5000, ")" * 5000, "{" * 5000, "}" * 5000, "\\frac{" * 1000, "\\frac{1}" * 500, "\\sqrt" * 800,
    "sqrt" * 40 + "2", "-" * 180 + "1", "^" * 180, "2^" * 90 + "2", "9^9^9^9^9^9",
    "((((9^999)^999)^999)^999)^999", "1/" * 90 + "1", "[" * 3000 + "1", " " * 20000, "< " * 9000,
    "\\boxed{" * 3000, "\\boxed" + "{" * 9000 + "}" * 9000, "\\text{" * 900 + "}" * 900,
    ",".join("1" * 1900), "1," * 2000, "(" + "1," * 90 + "1)", "__import__('os').system('true')", "0" * 4000,
    "9" * 20000, "1e999999999", "nan", "inf", "-inf", "\x00", "\ud800", "٣", "²", "x" * 4000, "1 1/2 " * 300,
    "root99(9)" * 20, "root0(5)", "sqrt()", "()", "π" * 180, "x^(1/7)" * 25,
    "[[" * 40 + "1,2,3,4" + "]]" * 40, "\\" * 4000, "1" + " " * 3900 + "/2", "[" + "{}," * 4000 + "{}]",
    '[{"bbox_2d": [1, 2, 3, 1e400]}]', "[" * 100000, '{"a":' * 50000, "=" * 4000, "a=" * 2000, "A or B",
    "\u0130" * 100,
]  # fmt: skip


def read_everything(text: str) -> None:
    """Call every reader with one text; nothing may raise."""
    choices = ["red", "blue", text[:20]]
    boxed = f"<think>x</think> \\boxed{{{text}}}"
    for response in (text, boxed):
        (parse_state(response), has_format(response), last_boxed(response), yes_no(response), parse_box(response))
        parse_boxes(response), option_letter(response, choices), option_letter(response)
        for kind, gold in (
            ("text", "x^2+1"),
            ("number", "12"),
            ("option", "B"),
            ("yesno", "yes"),
            ("box", "[1, 2, 30, 40]"),
            ("boxes", '[{"bbox_2d": [1, 2, 3, 4], "label": "x"}]'),
        ):
            assert (
                0.0 <= accuracy(response, sample(gold, kind, choices=choices, size=[64, 64]), frame=(1000, 1000)) <= 1.0
            )
    for gold in ("1", "(1/2,3]", "x^2+1", text):
        grade_answer(text, gold), grade_answer(gold, text)


@pytest.mark.parametrize("number", range(len(HOSTILE)))
def test_hostile_text_is_read(number):
    """Each takes milliseconds; with a parser that blows up, this test would never end."""
    read_everything(HOSTILE[number])


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.text(max_size=200))
def test_total_on_any_text(text):
    read_everything(text)


PIECES = [
    "\\boxed{", "}", "{", "\\frac", "\\sqrt", "[3]", "(", ")", "[", "]", ",", "1", "2.5", "x", "y", "^", "-",
    "/", "*", "π", " ", "cm", "\\text{", "<think>", "</think>", "yes", "no", "A.", "\"bbox_2d\":",
    "10, 20, 30, 40", "=", "\\\\", "$", "%", "or", "\n",
]  # fmt: skip


@settings(max_examples=250, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from(PIECES), max_size=40))
def test_total_on_mutated_answers(pieces):
    read_everything("".join(pieces))


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from(PIECES), min_size=1, max_size=12))
def test_an_answer_equals_itself(pieces):
    text = "".join(pieces)
    assert grade_answer(text, text)


# ---------------------------------------------------------------------------------------- options, yes and no
def test_option_letters():
    choices = ["red", "blue", "light blue"]
    for text in (
        "B",
        "b",
        "(B)",
        "B.",
        "B)",
        "[B]",
        "B) blue",
        "B. Blue",
        "B: blue",
        "blue",
        "Blue.",
        r"\text{B}",
        "Option B",
        "B - blue",
    ):
        assert option_letter(text, choices) == "B", text
    for text in ("A or B", "A, B", "B) red", "E", "", "green", "Blue or red", "AB", "a red one"):
        assert option_letter(text, choices) is None, text
    assert option_letter("4", ["6", "3", "4", "2"]) == "C"
    assert option_letter("red", ["red", "red"]) is None  # names two options
    assert option_letter("C") == "C"
    assert option_letter("B", ["B", "A"]) == "B"  # a capital letter is a letter


def test_yes_no():
    assert [yes_no(t) for t in ("Yes, it is.", "TRUE", "no", "false.", "not", "no yes", "Nope", "")] == [
        "yes", "yes", "no", "no", "no", None, None, None]  # fmt: skip


# ------------------------------------------------------------------------------------------------------ boxes
def test_iou_goldens():
    assert iou((10, 10, 60, 60), (30, 30, 80, 80)) == pytest.approx(0.219512, abs=1e-6)  # VLM-R1's card
    assert iou((10, 10, 60, 60), (10, 10, 60, 60)) == 1.0
    assert iou((0, 0, 10, 10), (10, 0, 20, 10)) == 0.0
    assert iou((0, 0, 0, 0), (0, 0, 0, 0)) == 0.0
    assert giou((0, 0, 1, 1), (2, 2, 3, 3)) == pytest.approx(-7 / 9)
    assert giou((0, 0, 2, 2), (1, 1, 3, 3)) == pytest.approx(1 / 7 - 2 / 9)
    assert giou((0, 0, 2, 2), (0, 0, 2, 2)) == 1.0


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(st.floats(-1e6, 1e6), min_size=8, max_size=8))
def test_iou_bounds(v):
    a, b = tuple(v[:4]), tuple(v[4:])
    assert 0.0 <= iou(a, b) <= 1.0 + 1e-9 and iou(a, b) == pytest.approx(iou(b, a))
    assert math.isfinite(giou(a, b)) and giou(a, b) <= 1.0 + 1e-9


def test_parse_box():
    for text in (
        "[10, 20, 30, 40]",
        "(10,20,30,40)",
        "(10, 20), (30, 40)",
        '{"bbox_2d": [10, 20, 30, 40], "label": "x"}',
        "10, 20, 30, 40",
        "It is at [10, 20, 30, 40].",
        "[10, 20, 30, 40] and again [10,20,30,40]",
        "[10.0, 20, 30, 40.0]",
    ):
        assert parse_box(text) == (10, 20, 30, 40), text
    for text in (
        "",
        "[30, 40, 10, 20]",
        "[10, 20, 30]",
        "[1, 2, 3, 4] or [2, 3, 4, 5]",
        "[1, 2, 3, 4, 5]",
        "[1e9, 2, 3, 4]",
        "1 2 3 4",
    ):
        assert parse_box(text) is None, text


def test_parse_boxes():
    entries = '{"bbox_2d": [1, 2, 3, 4], "label": "Cat"}, {"bbox_2d": [1, 2, 3, 4], "label": "cat"}'
    text = f'```json\n[{entries}, {{"bbox_2d": [3, 2, 1, 4]}}, 7]\n```'
    assert parse_boxes(text) == [("cat", (1, 2, 3, 4))]
    assert parse_boxes("[]") == [] and parse_boxes("nothing") is None and parse_boxes("3") is None
    for nothing in ("[7]", "{}", '[{"bbox_2d": [3, 2, 1, 4]}]', "[[]]"):  # no box, but not "there is none" either
        assert parse_boxes(nothing) is None
        assert accuracy(f"\\boxed{{{nothing}}}", sample("[]", "boxes")) == 0.0
    assert accuracy("\\boxed{[]}", sample("[]", "boxes")) == 1.0


def test_match_boxes_is_one_to_one_and_optimal():
    gold = [(0, 0, 10, 10), (20, 0, 30, 10)]
    assert match_boxes([(20, 0, 30, 10), (0, 0, 10, 9), (0, 0, 10, 8)], gold) == [(0, 1, 1.0), (1, 0, 0.9)]
    # greedy by IoU would give gold 0 to prediction 0 and leave prediction 1 alone
    assert len(match_boxes([(0, 0, 10, 10), (0, 0, 10, 6)], [(0, 0, 10, 9), (0, 0, 10, 14)])) == 2
    assert match_boxes([], gold) == [] and match_boxes(gold, [(50, 50, 60, 60)]) == []


def test_detection_f1_punishes_spraying():
    gold = [("cat", (0, 0, 10, 10))]
    assert detection_f1(gold, gold) == 1.0 and detection_f1([], []) == 1.0 and detection_f1([], gold) == 0.0
    spray = [("cat", (10 * i, 0, 10 * i + 10, 10)) for i in range(9)]
    assert detection_f1(spray, gold) == pytest.approx(0.2)
    assert detection_f1([("dog", (0, 0, 10, 10))], gold) == 0.0


# --------------------------------------------------------------------------------------------------- accuracy
def test_accuracy_per_answer_type():
    assert accuracy(r"\boxed{3.0}", sample("3", "number")) == 1.0
    assert accuracy(r"\boxed{(B) blue}", sample("B", "option", choices=["red", "blue"])) == 1.0
    assert accuracy(r"\boxed{blue}", sample("blue", "option", choices=["red", "blue"])) == 1.0
    assert accuracy("B", sample("B", "option", choices=["red", "blue"])) == 0.0  # not in a box
    assert accuracy(r"\boxed{No}", sample("false", "yesno")) == 1.0
    assert accuracy(r"\boxed{yes and no}", sample("yes", "yesno")) == 0.0
    assert accuracy(r"\boxed{[0, 0, 10, 10]}", sample("[0, 0, 10, 20]", "box")) == 1.0  # IoU of exactly one half
    assert accuracy(r"\boxed{[0, 0, 10, 9]}", sample("[0, 0, 10, 20]", "box")) == 0.0
    assert (
        accuracy(
            r'\boxed{[{"bbox_2d": [0, 0, 9, 9], "label": "x"}]}',
            sample('[{"bbox_2d": [0, 0, 9, 9], "label": "X"}]', "boxes"),
        )
        == 1.0
    )
    with pytest.raises(ValueError, match="unknown answer type"):
        accuracy(r"\boxed{1}", sample("1", "colour"))


def test_boxes_in_another_frame():
    """A picture of 640 x 480 that the model sees as 644 x 476, and a model that counts in thousandths."""
    truth = sample("[64, 48, 128, 96]", "box", size=[640, 480])
    assert accuracy(r"\boxed{[64, 48, 128, 95]}", truth, frame=(644, 476)) == 1.0
    assert accuracy(r"\boxed{[100, 100, 200, 200]}", truth, frame=(1000, 1000)) == 1.0
    assert accuracy(r"\boxed{[100, 100, 200, 200]}", truth) == 0.0
    assert rescale_box((100, 100, 200, 200), (1000, 1000), (640, 480)) == (64, 48, 128, 96)


def test_global_precision_is_left_alone():
    import mpmath

    before = mpmath.mp.dps
    grade_answer("sqrt(2)", "2^(1/2)")
    assert mpmath.mp.dps == before and maths.MP.dps == 60

"""MMMU, MMMU-Pro, MMStar, HallusionBench, BLINK, MMVP, MEGA-Bench: the golden vectors of their cards, hostile texts.

The vectors were made with the official evaluators at the commits that the files name.
"""

import re

import pytest
from bench_rows import BLINK, HALLUSION, MMMU, MMSTAR, MMVP, OPEN, PRO, VISION, mega
from hypothesis import given, settings
from hypothesis import strategies as st

import megabench_metrics
import megabench_parse
import megabench_values
from benchmark import Result, Video, grouped, macro_line
from benchmarks import blink, hallusionbench, megabench, mmmu, mmstar, mmvp
from choices import inferred, inferred_judged, lettered
from common.errors import SightRLError
from megabench_metrics import field_score

BENCHMARKS = {name: one for module in (mmmu, mmstar, hallusionbench, blink, mmvp, megabench)
              for name, one in module.BENCHMARKS.items()}  # fmt: skip

MEGA = mega({"colour": "exact_str_match"}, {"colour": "red"})
ROWS = {"mmmu": MMMU, "mmmu_pro_10": PRO, "mmmu_pro_4": PRO, "mmmu_pro_vision": VISION, "mmstar": MMSTAR,
        "hallusionbench": HALLUSION, "blink": BLINK, "mmvp": MMVP, "megabench": MEGA}  # fmt: skip
RIGHT = {"mmmu": "A", "mmmu_pro_10": "Answer: A", "mmmu_pro_4": "A", "mmmu_pro_vision": "A", "mmstar": "B",
         "hallusionbench": "Yes", "blink": "(B)", "mmvp": "A", "megabench": "Answer: red"}  # fmt: skip


def score(name, row, response, scoring="official"):
    return BENCHMARKS[name].score(row, response, scoring)


def lines(name, rows, results, scoring="official"):
    return {line.name: line for line in BENCHMARKS[name].summarise(rows, results, scoring)}


# ---------------------------------------------------------------- MMMU


@pytest.mark.parametrize(
    ("response", "truth", "answers"),
    [
        pytest.param("The answer is 12.97.", "12.97", {12.97}, id="1"),
        pytest.param("12.974", "12.97", {12.97}, id="2"),
        pytest.param("It is the Transformation matrix", "Transformation", {"the transformation matrix"}, id="3"),
        pytest.param("C", "C", {" c", "c "}, id="4"),
        pytest.param("The point is C here", "C", {"c here"}, id="5"),
        pytest.param("x = 1,234.5", "['1234.5', '1234.50']", {1234.0, 1234.5, 234.5}, id="6"),
        pytest.param("not 3 but 4", "3", {"not 3 but 4", 3.0, 4.0}, id="7"),
    ],
)
def test_mmmu_open(response, truth, answers):
    row = OPEN | {"answer": truth}
    assert set(mmmu.open_answers(response)) == answers
    assert score("mmmu", row, response).score == 1
    assert score("mmmu", row, response, "lmms-eval").score == 0  # its bug
    assert score("mmmu", row | {"answer": "zebra"}, response).score == 0


@pytest.mark.parametrize(
    ("response", "official", "lmms"),
    [
        pytest.param("I weigh A and B. Answer: C", "C", "C", id="8"),
        pytest.param("Answer: $C$", "C", None, id="9"),
        pytest.param("Answer: Both B", "B", "B", id="10"),
        pytest.param("CAT scan shows it", None, None, id="11"),
    ],
)
def test_mmmu_pro(response, official, lmms):
    for scoring, letter in (("official", official), ("lmms-eval", lmms)):
        result = score("mmmu_pro_10", PRO, response, scoring)
        assert result.parts["by lot"] == (letter is None)
        assert result.answer == letter if letter else result.answer in "ABCDEFGHIJ"
        assert result == score("mmmu_pro_10", PRO, response, scoring)  # the lot is the same in every run


def test_mmmu_pro_vision_12():
    assert score("mmmu_pro_vision", VISION, "(A)", "lmms-eval").score == 0
    assert score("mmmu_pro_vision", VISION, "A", "lmms-eval").score == 1
    assert score("mmmu_pro_vision", VISION, "(A)").score == 1


def test_mmmu_mean_over_subjects_13():
    rows = [MMMU | {"id": f"validation_Math_{i}"} for i in range(30)] + [
        MMMU | {"id": f"validation_Art_Theory_{i}"} for i in range(10)
    ]
    results = [Result(float(i % 2)) for i in range(30)] + [Result(1.0)] * 10
    for scoring in BENCHMARKS["mmmu"].scorings:
        assert lines("mmmu", rows, results, scoring)["overall"].value == pytest.approx(62.5)
    table = lines("mmmu", rows, results)
    assert list(table)[:3] == ["overall", "Art and Design", "Science"]
    assert table["Math"].value == table["Science"].value == 50 and table["Art_Theory"].value == 100
    assert "letters by lot" not in table


def test_mmmu_vlmevalkit_makes_options_of_open_questions():
    assert score("mmmu", OPEN, "12.97", "vlmevalkit").score == 1
    assert score("mmmu", OPEN, "A", "vlmevalkit").score == 1
    assert score("mmmu", OPEN, "13", "vlmevalkit").undecided
    capital = OPEN | {"answer": "C"}  # can never be right
    assert [score("mmmu", capital, text, "vlmevalkit").score for text in ("C", "A", "B")] == [0, 0, 0]


def test_mmmu_prompt_has_a_mark_for_every_picture():
    prompt = BENCHMARKS["mmmu"].prompt(MMMU, "official")
    assert prompt.count("<image>") == 2 == len(BENCHMARKS["mmmu"].images(MMMU)) and "C. <image>" in prompt
    assert prompt.startswith("Which colour has <image>?\nA. red\nB. blue\n")
    assert "option" not in BENCHMARKS["mmmu"].prompt(OPEN, "official")
    assert "Answer: " in BENCHMARKS["mmmu_pro_vision"].prompt(VISION, "official")
    with pytest.raises(SightRLError, match="image_2"):
        BENCHMARKS["mmmu"].images(MMMU | {"image_2": None})


def test_mmmu_published_row_with_one_option():
    row = PRO | {"options": "[['A', 'B', 'Not enough information']]", "answer": "B"}
    assert score("mmmu_pro_10", row, "Answer: B").score == 0


# ---------------------------------------------------------------- MMStar


@pytest.mark.parametrize(
    ("response", "truth", "official", "lmms"),
    [
        pytest.param("B", "B", 1, 1, id="1"),
        pytest.param("b) blue", "B", 1, 0, id="2"),
        pytest.param("Because of light it is A", "B", 1, 0, id="3"),
        pytest.param("The answer is C.", "C", 1, 1, id="4"),
        pytest.param("The correct answer is (D)", "D", 0, 1, id="5"),
        pytest.param("(A) red", "A", 1, 1, id="6"),
        ("option b", "B", 1, 0),
        ("The answer\nis c", "C", 1, 0),
        ("", "A", 0, 0),
    ],
)
def test_mmstar(response, truth, official, lmms):
    row = MMSTAR | {"answer": truth}
    assert score("mmstar", row, response).score == official
    assert score("mmstar", row, response, "lmms-eval").score == lmms


def test_mmstar_average_7():
    kinds = [("math", "x"), ("math", "x"), ("logical reasoning", "y")]
    rows = [MMSTAR | {"category": category, "l2_category": detail} for category, detail in kinds]
    results = [Result(1.0), Result(0.0), Result(1.0)]
    assert lines("mmstar", rows, results, "lmms-eval")["average"].value == pytest.approx(75.0)
    official = lines("mmstar", rows, results)
    assert official["overall"].value == pytest.approx(200 / 3) and official["math: x"].value == 50


def test_mmstar_options_for_vlmevalkit():
    assert mmstar.options_of(MMSTAR) == {"A": "red", "B": "blue", "C": "green", "D": "a very, very dark grey"}
    assert mmstar.options_of(MMSTAR | {"A": "one", "B": "two"}) == {"A": "one", "B": "two"}
    assert score("mmstar", MMSTAR, "It is blue", "vlmevalkit").score == 1
    with pytest.raises(SightRLError, match="question"):
        score("mmstar", MMSTAR | {"question": "Why?"}, "B", "vlmevalkit")


# ---------------------------------------------------------------- HallusionBench


def hallusion(category, subcategory, places, inputs, verdicts, scoring):
    """Rows (figure, question) of set 0 and their results; verdicts 0 wrong, 1 right, 2 unclear."""
    rows, results = [], []
    for (figure, question), seen, verdict in zip(places, inputs, verdicts, strict=True):
        row = HALLUSION | {"category": category, "subcategory": subcategory, "figure_id": str(figure),
                           "question_id": str(question), "visual_input": str(seen)}  # fmt: skip
        if scoring == "official":
            reply = ("Incorrect", "It is correct.", "unclear")[verdict]
            result = BENCHMARKS["hallusionbench"].judge_score(row, score("hallusionbench", row, "so"), reply, scoring)
        else:
            result = score("hallusionbench", row, ("No.", "Yes.", "Who knows?")[verdict], scoring)
        rows.append(row)
        results.append(result)
    return rows, results


FIRST = ("VD", "illusion", [(0, 0), (1, 0), (0, 1), (1, 1)], [1, 2, 1, 2], [1, 0, 1, 1])
SECOND = ("VS", "chart", [(0, 0), (1, 0), (2, 0), (0, 1), (1, 1)], [0, 1, 2, 0, 1], [2, 1, 2, 0, 1])


def test_hallusionbench_1_official():
    table = lines("hallusionbench", *hallusion(*FIRST, "official"))
    assert [table[name].value for name in ("aAcc", "fAcc", "qAcc")] == pytest.approx([75, 50, 50])
    assert table["average"].value == pytest.approx((75 + 50 + 50) / 3) and list(table)[0] == "average"
    assert table["figures all right"].value == 50 and table["figures inconsistent"].value == 50
    assert table["figures score"].value == pytest.approx(75)
    assert table["easy qAcc"].value == 100 and table["hard qAcc"].value == 50


def test_hallusionbench_1_vlmevalkit():
    table = lines("hallusionbench", *hallusion(*FIRST, "vlmevalkit"), "vlmevalkit")
    assert [table[name].value for name in ("aAcc", "fAcc", "qAcc")] == pytest.approx([75, 50, 50])
    assert table["VD_illusion aAcc"].value == 75


def test_hallusionbench_2_official():
    rows, results = hallusion(*SECOND, "official")
    assert [result.score for result in results] == [1, 1, 0, 0, 1]  # not to know is right without a picture
    table = lines("hallusionbench", rows, results)
    assert [table[name].value for name in ("aAcc", "fAcc", "qAcc")] == pytest.approx([60, 50, 0])
    assert table["fAcc"].count == 2
    errors = {name: table[f"{name} errors (count)"].value for name in ("language", "visual", "mixed")}
    assert errors == {"language": 1, "visual": 1, "mixed": 0}


def test_hallusionbench_2_vlmevalkit():
    table = lines("hallusionbench", *hallusion(*SECOND, "vlmevalkit"), "vlmevalkit")
    assert [table[name].value for name in ("aAcc", "fAcc", "qAcc")] == pytest.approx([40, 100 / 3, 0])


@pytest.mark.parametrize(
    ("response", "word", "undecided"),
    [pytest.param("Yes, it is.", "Yes", False, id="3a"), pytest.param("no yes", "Unknown", True, id="3b")],
)
def test_hallusionbench_3(response, word, undecided):
    result = score("hallusionbench", HALLUSION, response, "vlmevalkit")
    assert (result.answer, result.undecided) == (word, undecided) and result.score == (word == "Yes")


def test_hallusionbench_without_picture_and_judges():
    benchmark = BENCHMARKS["hallusionbench"]
    assert benchmark.images(HALLUSION | {"visual_input": 0, "image": None}) == []
    assert benchmark.prompt(HALLUSION, "official") == "Is it red?"
    unknown = score("hallusionbench", HALLUSION, "perhaps", "vlmevalkit")
    assert benchmark.judge_score(HALLUSION, unknown, "Yes", "vlmevalkit").score == 1
    still = benchmark.judge_score(HALLUSION, unknown, "Unknown", "vlmevalkit")
    assert still.score == 0 and not still.undecided


# ---------------------------------------------------------------- BLINK


@pytest.mark.parametrize(
    ("response", "official", "lmms"),
    [
        pytest.param("(A)", "(A)", "A", id="1"),
        pytest.param("B", "(B)", "B", id="2"),
        pytest.param("The answer is (C)", "(C)", "T", id="3"),
        pytest.param("(A) or (B)\n\nSo (B) wins", "(B)", "A", id="4"),
        pytest.param("I choose (B).", None, "I", id="5"),
        pytest.param("A dog", None, "A", id="6"),
        ("(A)\n\nthis or (B) or (C)", None, "A"),
        ("", None, ""),
    ],
)
def test_blink(response, official, lmms):
    result = score("blink", BLINK, response)
    assert (result.answer, result.undecided) == (official, official is None)
    assert result.score == (official == "(B)")
    result = score("blink", BLINK, response, "lmms-eval")
    assert result.answer == lmms and result.score == (lmms == "B")


def test_blink_judge_must_write_the_option_and_nothing_else():
    undecided = score("blink", BLINK, "I choose (B).")
    judge = BENCHMARKS["blink"].judge_score
    assert [judge(BLINK, undecided, reply, "official").score for reply in ("(B)", "(B)\n", "(B) 2", "B")] == [
        1,
        1,
        0,
        0,
    ]
    assert judge(BLINK, score("blink", BLINK, "so", "vlmevalkit"), "B", "vlmevalkit").score == 1


def test_blink_table():
    rows = [BLINK, BLINK, BLINK | {"sub_task": "Jigsaw"}]
    results = [Result(1.0), Result(0.0), Result(1.0)]
    assert lines("blink", rows, results)["mean of sub-tasks"].value == pytest.approx(75)
    assert lines("blink", rows, results, "vlmevalkit")["overall"].value == pytest.approx(200 / 3)


# ---------------------------------------------------------------- MMVP


@pytest.mark.parametrize(
    ("response", "letter"),
    [
        pytest.param("(a)", "A", id="1a"),
        pytest.param("b. left", "B", id="1b"),
        pytest.param("The answer is B", "B", id="1c"),
        pytest.param("a banana", "A", id="2a"),
        pytest.param("It is a cat", "A", id="2b"),
        pytest.param("no idea", "A", id="2c"),
        ("closed", ""),
        ("option (b) it seems", "B"),
    ],
)
def test_mmvp_rules(response, letter):
    assert mmvp.rule_letter(response) == letter
    assert score("mmvp", MMVP, response, "lmms-eval").score == (letter == "A")


def test_mmvp_options_3():
    assert mmvp.options_of(MMVP) == {"A": "Open", "B": "Closed"}


def test_mmvp_pairs_4():
    rows = [MMVP | {"Index": index} for index in (1, 2, 3, 4)]
    results = [Result(1.0), Result(1.0), Result(1.0), Result(0.0)]
    table = lines("mmvp", rows, results)
    assert table["pair accuracy"].value == 50 and table["accuracy"].value == 75
    assert list(table)[0] == "pair accuracy"
    assert lines("mmvp", rows[:3], results[:3])["pair accuracy"].count == 1  # the pair that lacks a row is left out


def test_mmvp_judge():
    result = score("mmvp", MMVP, "It stands open.")
    assert result.undecided and result.score == 0
    judge = BENCHMARKS["mmvp"].judge_score
    assert [judge(MMVP, result, reply, "official").score for reply in ("yes", "Yes", "Yes.", "no")] == [1, 1, 0, 0]


# ---------------------------------------------------------------- MEGA-Bench


@pytest.mark.parametrize(
    ("response", "answer", "last"),
    [
        pytest.param("Reasoning... Answer: 42", "42", "42", id="1"),
        pytest.param("Answer: A\nAnswer: B", "A\nAnswer: B", "B", id="2"),
        pytest.param("Answer: ```\ninside\n```", "inside", "inside", id="3"),
        ("**Answer:** 3", "", ""),  # the content ends at the closing asterisks
        ("**Answer: 3** so", "3", "3"),
        ("no marker", "no marker", "no marker"),
        ('Answer: "quoted"', "quoted", "quoted"),
        ("Answer: red\n\nFor it is so.", "red", "red"),
        ('Answer: {"a": 1} or {"a": 2}', "{'a': 2}", "{'a': 2}"),
        ("Answer: [1, 2] or [3,4]", "[1, 2] or [3,4]", "[1, 2] or [3,4]"),  # taken for one list, which is none
        ("Answer: {x", "{x", "{x"),
    ],
)
def test_mega_answer(response, answer, last):
    assert megabench_parse.answer_text(response) == answer
    assert megabench_parse.answer_text(response, last=True) == last


def test_mega_2_exact_match_takes_the_first_letter():
    row = mega({"letter": "exact_str_match"}, {"letter": "A"})
    assert score("megabench", row, "Answer: A\nAnswer: B").score == 1
    assert score("megabench", row, "Answer: A\nAnswer: B", "lmms-eval").score == 0


@pytest.mark.parametrize(
    ("metric", "predicted", "truth", "expected"),
    [
        pytest.param("exact_str_match", "(B) cat", "B", 1, id="4a"),
        pytest.param("exact_str_match", "Because", "B", 1, id="4b"),
        pytest.param("simple_str_match", "New-York ", "new york", 1, id="5"),
        pytest.param("near_str_match", "the colour", "the color", 0, id="6"),
        pytest.param("number_rel_diff_ratio", "9", "10", 0.9, id="7"),
        pytest.param("multi_ref_phrase", "NYC", '["new york","nyc"]', 1, id="8"),
        pytest.param("jaccard_index", "[a,b]", "[b,c]", 1 / 3, id="9"),
        pytest.param("nbbox_iou_tuple", "[(0,0,.5,.5)]", "[(0,0,.5,1)]", 0.5, id="10"),
        pytest.param("longest_common_list_prefix_ratio", "[a,b,x]", "[a,b,c,d]", 0.5, id="11"),
        pytest.param("general_single_numerical_match", "12.05", "12", 1, id="12"),
        ("near_str_match", "a Café au lait", "Cafe au lait", 1),
        ("normalized_similarity_damerau_levenshtein", "colour", "color", 5 / 6),
        ("normalized_similarity_damerau_levenshtein", "ab", "ba", 0.5),
        ("exact_str_match_case_insensitive", "RED", "red", 1),
        ("code_result_exact_str_match", "7", "```\n7\n```", 1),
        ("set_equality", "{1, 2}", "[2, 1]", 1),
        ("set_equality", "[[1, 2]]", "[[3]]", 1),  # lists in a list: both sides are read as empty
        ("set_equality_case_insensitive", "[a, b]", "[B, A]", 1),
        ("set_precision", "[a, x]", "[a, b]", 0.5),
        ("str_set_equality_line_break", "x\ny", "Y\\nx", 1),
        ("str_set_equality_comma", "None", "none", 0),
        ("sequence_equality", "[a, b]", "[b, a]", 0),
        ("sequence_accuracy_case_insensitive", "[A, x]", "[a, b]", 0.5),
        ("chess_move_list_jaccard_index", "Qh5#, e4!", "[Qh5, e4]", 1),
        ("jaccard_index_case_insensitive", "[('a-b','C')]", "[('AB','c')]", 1),
        ("positive_int_match", "0", "0", -1),
        ("positive_int_match", "3", "3", 1),
        ("normalized_rmse", "0.55", "0.5", 0.5),
        ("angle_seq_float_rmse", "[1, 2]", "[1, 7]", 0.75),
        ("boxed_single_numerical_match", r"so \boxed{\frac{1}{2}}", "0.5", 1),
        ("general_single_numerical_match", "x = 12%", "0.12", 1),
        ("general_single_numerical_match", "5 cm", "5cm", 1),
        ("general_single_numerical_match", "12.2", "12", 0),
        ("dict_equality", {"a": 1}, '{"a": 1}', 1),
        ("dict_precision", {"a": "x", "b": "z"}, '{"a": "x", "b": "y"}', 0.5),
        ("dict_exact_str_match_agg_recall", {"a": "x"}, '{"a": "x", "b": "y"}', 0.5),
        ("dict_jaccard_agg_jaccard", {"a": ["x"]}, '{"a": ["x"], "b": ["y"]}', 0.5),
        ("nbbox_iou_single", "(0,0,.5,.5)", "(0,0,.5,1)", 0.5),
        ("nbbox_iou_sequence", "[[0,0,.5,.5]]", "[[0,0,.5,1], [0,0,1,1]]", 0),
        ("xml_nbbox_iou_single", "<box>0,0,.5,.5</box>", "<box>0,0,.5,1</box>", 0.5),
        ("xml_norm_point_distance", "<point>0.5, 0.5</point>", "<point>0.5, 0.25</point>", 0.75),
        ("sequence_coords_similarity", "[[0.1, 0.2]]", "[[0.1, 0.2]]", 1),
        ("latex_expr_equality", "\\alpha + 1", "α+1", 1),
        ("text_with_latex_expr_equality", "so $x$, yes", "so $x$ yes", 1),
        ("program_judge", "print(1)", "", -1),
        ("no such metric", "", "", -1),
    ],
)
def test_mega_metrics(metric, predicted, truth, expected):
    assert field_score(metric, predicted, truth) == pytest.approx(expected)


def test_mega_mean_of_fields_13():
    scores, weights = {"a": 1.0, "b": 0.0, "c": -1.0}, {"a": 3.0, "b": 1.0, "c": 9.0}
    assert megabench.together(scores, weights, "mean") == 0.75
    assert megabench.together(scores, weights, "min") == 0
    assert megabench.together({"c": -1.0}, weights, "mean") == -1


def test_mega_several_fields_as_json():
    row = mega({"a": "exact_str_match", "b": "number_rel_diff_ratio"}, {"a": "x", "b": "10"}, "json")
    assert score("megabench", row, 'Answer: {"a": "x", "b": 9}').score == pytest.approx(0.95)
    assert score("megabench", row, "```json\n{'a': 'x', 'b': 10}\n```").score == 1
    assert score("megabench", row, "no JSON at all").score == 0
    whole = row | {"metric_info": row["metric_info"].replace("'mean'", "'min'")}
    assert score("megabench", whole, '{"a": "x", "b": 9}').score == pytest.approx(0.9)


def test_mega_point_in_box():
    context = {"bounding_boxes": ["(0.1, 0.1, 0.2, 0.2)", "(0.5, 0.5, 1, 1)"]}
    row = mega({"p": "xml_norm_point_in_bbox"}, {"p": ""}, context=context)
    assert score("megabench", row, "Answer: <point>0.6, 0.7</point>").score == 1
    assert score("megabench", row, "Answer: <point>0.3, 0.3</point>").score == 0


DOMAIN = """; moving things
(define (domain rooms) (:predicates (at ?t - thing ?r - room))
(:action move :parameters (?t - thing ?from - room ?to - room)
  :precondition (and (at ?t ?from) (not (locked ?to)))
  :effect (and (not (at ?t ?from)) (at ?t ?to) (increase (cost) 1))))"""
TASK = "(define (problem p) (:init (= (cost) 0) (at cup hall) (locked bath)) (:goal (and (at cup bath))))"


@pytest.mark.parametrize(
    ("plan", "right"),
    [
        ("(move cup hall bath)", 1),  # a condition that begins with "not" is not checked
        ("so:\n(move cup hall attic)\n(move cup attic bath)", 1),
        ("(move cup attic bath)", 0),
        ("(move cup hall)", 0),
        ("(fly cup hall bath)", 0),
        ("", 0),
    ],
)
def test_mega_plans(plan, right):
    context = {"domain_pddl": DOMAIN, "task_pddl": TASK}
    assert field_score("symbolic_planning_test", plan, context) == right


def test_mega_table_leaves_out_what_it_cannot_score():
    code = mega({"code": "program_judge"}, {"code": "\n"}) | {"task_name": "programs"}
    rows, results = [MEGA, MEGA, MEGA | {"task_name": "more"}, code], [Result(1.0), Result(0.0), Result(1.0)]
    results.append(score("megabench", code, "print(1)"))
    assert results[-1].parts["left out"]
    table = lines("megabench", rows, results)
    assert table["core (mean of tasks)"].value == pytest.approx(75) and table["core (mean of tasks)"].count == 3
    assert table["mean of questions"].value == pytest.approx(200 / 3)
    assert table["tasks left out (count)"].value == 1


def test_mega_media():
    benchmark = BENCHMARKS["megabench"]
    assert benchmark.images(MEGA) == ["./a.png", Video("./b.mp4")]
    assert benchmark.prompt(MEGA, "official").count("<image>") == 2
    assert "<image>" not in benchmark.prompt(MEGA | {"query_media": "[]"}, "official")


def test_distance_with_swaps():
    assert [megabench_values.swap_distance(*pair) for pair in (("ca", "abc"), ("", "ab"), ("ab", "ba"))] == [2, 2, 1]


# ---------------------------------------------------------------- shared


def test_inferred():
    options = lettered(["red", "blue"])
    assert inferred("B", options, "B") == Result(1.0, "B")
    assert inferred("who knows", options, "B") == Result(0.0, None, undecided=True)
    decided = inferred_judged(inferred("who knows", options, "B"), "B", options, "B")
    assert decided == Result(1.0, "B")
    lots = {inferred_judged(Result(0.0), f"hm {i}", options, "B").answer for i in range(40)}
    assert lots == {"A", "B", "Z"}  # an unreadable reply gives an option or Z by lot


def test_macro_line_and_grouped():
    assert grouped([1, 2, 3], lambda n: n % 2) == {1: [1, 3], 0: [2]}
    line = macro_line("m", [[1.0, 0.0], [1.0], []])
    assert line.value == 75 and line.count == 3 and line.interval[0] <= 75 <= line.interval[1]
    assert macro_line("m", []).count == 0


@pytest.mark.parametrize("name", BENCHMARKS)
def test_from_row_to_table(name):
    benchmark, row = BENCHMARKS[name], ROWS[name]
    assert set(benchmark.columns) <= set(row)
    assert re.fullmatch(r"[a-z0-9_]+", name) and benchmark.scorings[0] == "official"
    for scoring in benchmark.scorings:
        prompt, pictures = benchmark.prompt(row, scoring), benchmark.images(row)
        assert prompt.strip() and pictures and prompt.count("<image>") in (0, len(pictures))
        result = benchmark.score(row, RIGHT[name], scoring)
        if result.undecided:
            assert benchmark.judge_prompt(row, result, RIGHT[name], scoring)
            result = benchmark.judge_score(row, result, {"hallusionbench": "correct"}.get(name, "yes"), scoring)
        assert result.score == 1 and not result.undecided
        wrong = benchmark.score(row, "hmm", scoring)
        assert wrong.score == 0 or wrong.parts.get("by lot")
        table = benchmark.summarise([row], [result], scoring)
        assert len({line.name for line in table}) == len(table) and len(table) >= 2
        if name != "mmvp":  # a pair needs two
            assert table[0].value == 100 and table[0].count == 1
        assert benchmark.identify(row, 0)


NEEDED = {"mmmu": ("question_type", "options", "answer"), "mmmu_pro_10": ("options", "answer"),
          "mmmu_pro_vision": ("options", "answer"), "mmstar": ("answer",), "hallusionbench": ("gt_answer",),
          "blink": ("choices", "answer"), "mmvp": ("Correct Answer",),
          "megabench": ("answer", "metric_info")}  # fmt: skip


@pytest.mark.parametrize(("name", "column"), [(name, column) for name in NEEDED for column in NEEDED[name]])
def test_a_bad_row_is_named(name, column):
    values = [None, {}, []] if column == "question_type" else [None, "?", 7.5, {}, [], "[1, 2"]
    for value in values:
        row = ROWS[name] | {column: value}
        with pytest.raises(SightRLError, match=column) as error:
            BENCHMARKS[name].score(row, "A", "official")
        assert "\n" not in str(error.value)


PIECES = ["A", "(B)", "C.", "Answer: ", "**Answer:", "The answer is ", "option ", "yes", "no", "blue", " ", "\n",
          "\n\n", "[", "]", "{", "}", '"a"', "'", ":", ",", "1", "-2.5", "1e400", "nan", "inf", "9" * 400, "9" * 5000,
          "* ", "=", "\\boxed{", "\\frac{1}{2}", "<box>0,0,1,1</box>", "<point>", "```", "```json", "(" * 60, "[" * 300,
          "\0", "é", "\ud800"]  # fmt: skip
TEXTS = st.one_of(st.text(), st.lists(st.sampled_from(PIECES), max_size=12).map("".join))


TRUTHS = ("B", "[a, b]", "[[0,0,1,1]]", '{"a": [1], "b": "x"}', "12.5", "x\ny", "<box>0,0,1,1</box>")


@settings(max_examples=40, deadline=None)
@given(TEXTS, st.sampled_from(TRUTHS))
def test_any_response_gets_a_score_by_any_metric(text, truth):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(megabench_values, "verified", lambda golds, texts: [0.0])
        for name in megabench_metrics.METRICS:
            for given_value in (text, megabench_parse.parse_json(text)):
                value = field_score(name, given_value, truth)
                assert value == -1 or 0 <= value <= 1
        for name in megabench_metrics.CONTEXT:
            assert (
                0 <= field_score(name, text, {"domain_pddl": DOMAIN, "task_pddl": TASK, "bounding_boxes": [truth]}) <= 1
            )
    for parser in ("answer_string", "ascii_answer_string", "verbatim_answer_string", "json", "dummy"):
        assert score("megabench", mega({"colour": "exact_str_match"}, {"colour": truth}, parser), text).score in (0, 1)

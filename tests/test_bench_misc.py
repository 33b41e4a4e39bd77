"""Video questions, Charades-STA, VL-RewardBench, ReasonMap, ViCrit-Bench: golden vectors made with the official code
(their numbers in the ids), hostile responses, rows that lack something, every benchmark from a row to its table."""

from __future__ import annotations

import json
import math
from dataclasses import asdict

import pytest
from bench_rows import CRITIC, LONG, MAP, MLVU, MME, PAIR, PLUS, ROUTE, SERVICE, STA, part
from PIL import Image

from benchmark import Benchmark, Line, Result, Row, Video
from benchmarks import charades, reasonmap, vicrit, videomcq, vl_rewardbench
from common.errors import SightRLError

ALL = {**videomcq.BENCHMARKS, **charades.BENCHMARKS, **vl_rewardbench.BENCHMARKS, **reasonmap.BENCHMARKS,
       **vicrit.BENCHMARKS}  # fmt: skip


def values(lines: list[Line]) -> dict[str, float]:
    return {line.name: line.value for line in lines}


# ---------------------------------------------------------------- every benchmark

ROWS: dict[str, tuple[Row, str]] = {  # row, a right answer
    "videomme": (MME, "C"), "longvideobench": (LONG, "C"), "mlvu": (MLVU, "B"),
    "mlvu_test": (MLVU, "(B) right"), "charades_sta": (STA, "The event happens in 0.0 - 10.0 seconds."),
    "vl_rewardbench": ({**PAIR, "random_number": 0}, "Overall Judgment: Answer 1 is better."),
    "reasonmap": (MAP, ROUTE.rpartition("\n")[0]), "reasonmap_long": (MAP, ROUTE),
    "reasonmap_plus": (PLUS, "\\boxed{Yes}"), "vicrit_bench": (CRITIC, "orange license plates"),
}  # fmt: skip
CASES = [(name, scoring) for name, benchmark in ALL.items() for scoring in benchmark.scorings]


@pytest.mark.parametrize(("name", "scoring"), CASES)
def test_from_a_row_to_the_table(name: str, scoring: str) -> None:
    benchmark, (row, right) = ALL[name], ROWS[name]
    assert set(benchmark.columns) <= set(row)
    before = json.dumps(row, default=str)
    prompt, (image,) = benchmark.prompt(row, scoring), benchmark.images(row)
    assert isinstance(image, Video | Image.Image) and prompt.strip() and "<image>" not in prompt
    results = [benchmark.score(row, response, scoring) for response in (right, "nothing of the kind: 99")]
    assert [result.score for result in results] == [1.0, 0.0]
    light = {key: None if key in ("image", "figure") else value for key, value in row.items()}
    lines = benchmark.summarise([light, {**light, "video": "b", "id": "mmmu_1"}], results, scoring)
    left_out = name == "vl_rewardbench" and scoring == "official"  # the second pair has no vote that can be read
    tasks = {"mlvu": 7, "mlvu_test": 9}.get(name, 1)  # where those without questions count 0
    assert lines[0].value == pytest.approx(100.0 if left_out else 50.0 / tasks)
    assert lines[0].count == (1 if left_out else 2) and len({line.name for line in lines}) == len(lines)
    assert benchmark.identify(row, 3) == benchmark.identify(light, 3)  # pictures are not part of the name
    assert json.dumps(row, default=str) == before  # nothing changes a row
    json.dumps([asdict(line) for line in lines] + [asdict(result) for result in results], allow_nan=False)


@pytest.mark.parametrize(("name", "scoring"), CASES)
def test_nothing_to_summarise_is_a_table_of_zeros(name: str, scoring: str) -> None:
    first = ALL[name].summarise([], [], scoring)[0]
    assert (first.value, first.count, first.interval) == (0.0, 0, None)


def test_where_videos_are_and_what_is_heard() -> None:
    assert ALL["videomme"].images(MME) == [Video("fFj")] and ALL["mlvu"].images(MLVU) == [Video("ego_1.mp4")]
    assert ALL["longvideobench"].images(LONG) == [Video("v.mp4")]
    assert ALL["charades_sta"].images(STA) == [Video("AO8RW.mp4")]
    prompt = ALL["longvideobench"].prompt(LONG, "lmms-eval")
    assert "D. a bus\n" in prompt and "N/A" not in prompt and "A, B, C, D)" in prompt
    assert ALL["mlvu"].prompt(MLVU, "lmms-eval").endswith("Best option: (")
    assert "B. Two.\n" in ALL["videomme"].prompt(MME, "") and "said" not in ALL["videomme"].prompt(MME, "")
    assert ALL["videomme"].prompt({**MME, "subtitles": "Hello."}, "").index("Hello.") < 60


# ---------------------------------------------------------------- video questions


@pytest.mark.parametrize(("response", "lmms", "kit", "long"), [
    pytest.param("C", "C", "C", "C", id="1a"), pytest.param("The answer is C.", "C", "C", "C", id="1b"),
    pytest.param("Best option: C", "C", "B", "C", id="2"), pytest.param("Answer: B", "B", "B", "A", id="3"),
    pytest.param("A man walks; answer D", "A", "A", "A", id="4"),
    pytest.param("I think it is the dog", None, None, "random", id="5"),
])  # fmt: skip
def test_video_golden_letters(response: str, lmms: str, kit: str, long: str) -> None:
    assert ALL["videomme"].score(MME, response, "lmms-eval").answer == lmms
    assert ALL["mlvu"].score(MLVU, response, "lmms-eval").answer == lmms
    for name, row in (("videomme", MME), ("longvideobench", LONG)):
        result = ALL[name].score(row, response, "vlmevalkit")
        assert (result.answer, result.undecided) == (kit, kit is None)
    result = ALL["longvideobench"].score(LONG, response, "lmms-eval")
    assert result.parts["guessed"] == (long == "random") and not result.undecided
    assert result.answer == long or (long == "random" and result.answer in "ABCD")


def test_a_guess_is_always_the_same_and_may_be_right() -> None:
    guesses = [ALL["longvideobench"].score({**LONG, "id": f"v_{i}"}, "no idea", "lmms-eval") for i in range(200)]
    again = [ALL["longvideobench"].score({**LONG, "id": f"v_{i}"}, "no idea", "lmms-eval") for i in range(200)]
    assert guesses == again and {result.answer for result in guesses} == set("ABCD")
    assert 25 < sum(result.score for result in guesses) < 75
    assert all((result.answer == "C") == (result.score == 1) for result in guesses)


@pytest.mark.parametrize(("response", "right"), [
    pytest.param("(B) left", True, id="6a"), pytest.param("The answer is B", False, id="6b"),
    pytest.param("B", True, id="whole"), pytest.param(") B", False, id="bracket first"),
])  # fmt: skip
def test_video_golden_mlvu_by_vlmevalkit(response: str, right: bool) -> None:
    for answer in ("(B)", "B"):  # as VLMEvalKit's table and the hub's have it
        result = ALL["mlvu"].score({**MLVU, "answer": answer}, response, "vlmevalkit")
        assert (result.score, result.undecided) == (float(right), not right)  # what is not right needs the judge


def test_video_golden_7_longvideobench() -> None:
    rows = [{**LONG, "duration_group": group} for group in (600, 15, 60, 15)]
    lines = ALL["longvideobench"].summarise(rows, [Result(mark) for mark in (1.0, 0.0, 1.0, 0.0)], "lmms-eval")
    assert lines[0].value == 50.0 and values(lines)["duration_group: 15"] == 0.0
    assert [line.name for line in lines[1:4]] == [f"duration_group: {group}" for group in (15, 60, 600)]


def test_video_golden_8_mlvu() -> None:
    rows = [{**MLVU, "task_type": task} for task in ("plotQA", "plotQA", "count", "ego")]
    lines = ALL["mlvu"].summarise(rows, [Result(mark) for mark in (1.0, 0.0, 1.0, 0.0)], "lmms-eval")
    assert lines[0].value == pytest.approx(21.4286, abs=1e-4)
    assert values(lines)["plotQA"] == 50.0 and values(lines)["count"] == 100.0 and values(lines)["needle"] == 0.0
    with pytest.raises(SightRLError, match="task_type holds 'summary'"):
        ALL["mlvu"].summarise([{**MLVU, "task_type": "summary"}], [Result(1.0)], "lmms-eval")


def test_intervals_resample_videos() -> None:
    """Three questions about a video that are all right or all wrong are no more than one."""
    rows = [{**MME, "videoID": str(i // 3)} for i in range(60)]
    marks = [Result(float(i // 3 % 2)) for i in range(60)]
    low, high = ALL["videomme"].summarise(rows, marks, "lmms-eval")[0].interval
    alone = ALL["videomme"].summarise([{**row, "videoID": str(i)} for i, row in enumerate(rows)], marks, "lmms-eval")
    assert 1.4 < (high - low) / (alone[0].interval[1] - alone[0].interval[0]) < 2.2
    short = ALL["videomme"].summarise([{**MME, "duration": "long"}, MME], marks[:2], "lmms-eval")
    assert [line.name for line in short[:3]] == ["overall", "duration: short", "duration: long"]


@pytest.mark.parametrize(("name", "reply", "right"), [
    ("videomme", "C", True), ("videomme", "The answer is (B).", False), ("videomme", "Z", False),
    ("longvideobench", "C", True), ("mlvu", "B", True), ("mlvu", "A", False)])  # fmt: skip
def test_a_judge_reads_what_rules_cannot(name: str, reply: str, right: bool) -> None:
    benchmark, row = ALL[name], ROWS[name][0]
    said = "the third, i think"
    result = benchmark.score(row, said, "vlmevalkit")
    assert result.undecided and said in benchmark.judge_prompt(row, result, said, "vlmevalkit")
    verdict = benchmark.judge_score(row, result, reply, "vlmevalkit")
    assert (verdict.score, verdict.undecided) == (float(right), False)


def test_a_judge_without_a_letter_is_replaced_by_a_guess() -> None:
    rows = [{**MME, "question": str(i)} for i in range(99)]
    verdicts = [ALL["videomme"].judge_score(row, Result(0.0), "no", "vlmevalkit") for row in rows]
    assert {verdict.answer for verdict in verdicts} == set("ABCD")


# ---------------------------------------------------------------- Charades-STA


@pytest.mark.parametrize(("response", "lmms", "script"), [
    pytest.param("The event happens in 3.5 - 10.2 seconds.", [3.5, 10.2], [3.5, 10.2], id="1"),
    pytest.param("from 12 to 7", [7, 12], None, id="2"),
    pytest.param("00:12 - 00:25", [12, 25], None, id="3"),
    pytest.param("It starts at 4 s and ends at 9 s.", None, None, id="4"),
    pytest.param("Starts at 1:05.\nEnds at 1:20.", [65, 80], [1, 1], id="5"),
    pytest.param("<answer>5.0 to 8.5</answer>", [5.0, 8.5], None, id="6"),
    pytest.param("It happens at 00:00:18 and 00:01:05", [18, 65], None, id="clocks in one sentence"),
    pytest.param("start 1:00:05 - 1:00:09", [3605, 3609], [1, 5], id="hours"),
    pytest.param("It starts 2 s – 3.25 s", [2, 3.25], [2, 3.25], id="seconds after numbers"),
    pytest.param("Happens tomorrow, 5 or 6", None, None, id="to in a word"),
    pytest.param("a specific example is : 20.8 - 30.0 seconds. It happens in 1 - 2", [1, 2], [1, 2], id="example"),
    pytest.param("start - " + "9" * 400 + " - 3", None, None, id="no end"),
])  # fmt: skip
def test_charades_golden_spans(response: str, lmms: list[float] | None, script: list[float] | None) -> None:
    found = [ALL["charades_sta"].score(STA, response, scoring).answer for scoring in ("lmms-eval", "official")]
    assert found == [lmms, script]


def test_charades_golden_7_overlap() -> None:
    assert charades.overlap((0, 10), (5, 15)) == pytest.approx(1 / 3) and charades.overlap((0, 10), (20, 30)) == 0.0
    assert charades.overlap((5, 5), (5, 5)) == 0.0  # where eval_tvg.py divides by zero


def test_charades_golden_8_table() -> None:
    rows = [{**STA, "video": name} for name in ("a", "b", "c")]
    said = ["It happens in 0 - 10 seconds.", "It happens in 5 - 15 seconds.", "In the beginning."]
    results = [ALL["charades_sta"].score(row, text, "lmms-eval") for row, text in zip(rows, said, strict=True)]
    lines = ALL["charades_sta"].summarise(rows, results, "lmms-eval")
    assert [line.name for line in lines] == ["mIoU", "R@1, IoU >= 0.3", "R@1, IoU >= 0.5", "R@1, IoU >= 0.7"]
    assert [line.value for line in lines] == pytest.approx([44.4444, 66.6667, 33.3333, 33.3333], abs=1e-4)
    twice = ALL["charades_sta"].summarise([*rows, rows[0]], [*results, Result(0.0)], "lmms-eval")
    assert twice[0].count == 3 and twice[0].value == pytest.approx(100 / 9)  # the last answer to a duplicate


# ---------------------------------------------------------------- VL-RewardBench

BETTER = "Overall Judgment: Answer {} is better"


@pytest.mark.parametrize(("response", "expected"), [
    pytest.param(BETTER.format(1) + ".", ["agree", "reject", "reject", "agree"], id="1"),
    pytest.param("**Overall Judgment**: **Answer 2** is better", ["reject", "agree", "agree", "reject"], id="2"),
    pytest.param("Therefore Answer 1 is better. " + BETTER.format(2), ["reject", "agree", "agree", "reject"], id="3"),
    pytest.param("Answer 1 is better", ["doesntMatch"] * 4, id="4a"),
    pytest.param(BETTER.format(3), ["agree"] * 4, id="4b"),
    pytest.param("overall judgment\n\nAnswer 2\nis the slightly better", ["reject", "agree", "agree", "reject"],
                 id="5"),
    pytest.param("Overall Judgment: Answer 1 is much better", ["doesntMatch"] * 4, id="much"),
    pytest.param("Overall Judgment: Answer 1 is not better", ["doesntMatch"] * 4, id="not"),
    pytest.param("Overall Judgement: Answer 1 is better", ["doesntMatch"] * 4, id="spelling"),
    pytest.param("Answer 2 is better. Therefore, I stop.", ["doesntMatch"] * 4, id="before the keyword"),
    pytest.param(BETTER.format("0"), ["agree"] * 4, id="zero"),
    pytest.param(BETTER.format("0" * 5000 + "1"), ["agree", "reject", "reject", "agree"], id="zeros"),
    pytest.param(BETTER.format("1" * 5000), ["agree"] * 4, id="ones"),
])  # fmt: skip
def test_rewardbench_golden_votes(response: str, expected: list[str]) -> None:
    cases = [([0, 1], 0), ([0, 1], 1), ([1, 0], 0), ([1, 0], 1)]
    assert [vl_rewardbench.vote(response, ranking, swap) for ranking, swap in cases] == expected
    results = [ALL["vl_rewardbench"].score({**PAIR, "human_ranking": r, "random_number": n}, response, "official")
               for r, n in cases]  # fmt: skip
    assert [result.parts["vote"] for result in results] == expected
    assert [result.score for result in results] == [float(label == "agree") for label in expected]


@pytest.mark.parametrize(("name", "source"), [
    ("RLAIF-V-10", "rlaif-v"), ("mmmu_pro_1", "reasoning_tasks"), ("hallucination_pair-3", "povid"),
    ("LRVInstruction-0001", "vlfeedback"), ("Mathverse_1", "vlfeedback"), ("wildvision-battle-1", "wildvision-battle"),
    ("RLHF-V-1", "rlhf-v"), ("mathverse_9", "reasoning_tasks"), ("plain", "vlfeedback")])  # fmt: skip
def test_rewardbench_golden_6_subsets(name: str, source: str) -> None:
    assert vl_rewardbench.subset(name) == source


def judged_pairs(**pairs: str) -> dict[str, Line]:
    """The table of votes: + for the better answer, - against it, ? unreadable."""
    rows, results = [], []
    for name, votes in pairs.items():
        for number, mark in enumerate(votes):
            row = {**PAIR, "id": name.replace("__", "-"), "vote": number, "random_number": 0}
            said = {"+": BETTER.format(1), "-": BETTER.format(2), "?": "Both are fine."}[mark]
            rows.append(row)
            results.append(ALL["vl_rewardbench"].score(row, said, "official"))
    lines = ALL["vl_rewardbench"].summarise(rows, results, "official")
    assert [line.name for line in lines[:5]] == ["overall", "macro", "general", "hallucination", "reasoning"]
    return {line.name: line for line in lines}


def rounded(lines: dict[str, Line]) -> list[float]:
    return [round(lines[name].value, 2) for name in ("general", "hallucination", "reasoning", "overall", "macro")]


SEVEN = {"wildvision__battle__11": "+", "wildvision__battle__12": "-", "VLFeedback__3": "+", "RLAIF__V__1": "-",
         "RLHF__V__1": "-", "mathverse_9": "+"}  # fmt: skip


def test_rewardbench_golden_7_one_vote() -> None:
    lines = judged_pairs(**SEVEN)
    assert rounded(lines) == [66.67, 0.0, 100.0, 50.0, 55.56]
    assert lines["subset wildvision-battle"].value == 50.0 and lines["subset povid"].count == 0
    low, high = lines["macro"].interval
    assert 0 <= low < 55.56 < high <= 100


def test_rewardbench_golden_8_three_votes() -> None:
    lines = judged_pairs(wildvision__battle__11="++-", RLAIF__V__1="--+", RLHF__V__1="+++", mathverse_9="+?+",
                         mathverse_10="+++")  # fmt: skip
    assert rounded(lines) == [100.0, 50.0, 100.0, 75.0, 83.33] and lines["overall"].count == 4
    assert lines["overall, with unreadable votes"].value == 80.0  # what cal.py prints: see the file's docstring
    assert lines["strict: pairs without verdict are wrong"].value == 60.0
    assert lines["pairs with a verdict"].value == 80.0


def test_rewardbench_golden_9_a_tie_is_left_out() -> None:
    votes = [["agree"] * 2, ["agree", "reject"], ["reject"] * 2, ["agree"] * 2]
    assert [vl_rewardbench.majority(some) for some in votes] == ["agree", "other", "reject", "agree"]
    assert vl_rewardbench.majority(["doesntMatch"] * 2 + ["agree"]) == "doesntMatch"
    lines = judged_pairs(wildvision__battle__11="++", RLAIF__V__1="+-", RLHF__V__1="--", mathverse_9="++")
    assert lines["subset rlaif-v"] == Line("subset rlaif-v", 0.0, 0)  # the script divides by zero here
    assert rounded(lines) == [100.0, 0.0, 100.0, 66.67, 66.67]


def test_rewardbench_golden_10_no_macro_without_all_groups() -> None:
    lines = judged_pairs(**{name: votes for name, votes in SEVEN.items() if name != "mathverse_9"})
    assert lines["macro"] == Line("macro", 0.0, 0) and rounded(lines)[:4] == [66.67, 0.0, 0.0, 40.0]


def test_rewardbench_order_of_the_answers() -> None:
    benchmark = ALL["vl_rewardbench"]
    rows = [benchmark.again({**PAIR, "id": f"RLHF-{i}"}, i % 5) for i in range(200)]
    swaps = [vl_rewardbench.swapped(row, "official") for row in rows]
    assert swaps == [vl_rewardbench.swapped(row, "official") for row in rows] and 70 < sum(swaps) < 130
    of_one = {vl_rewardbench.swapped(benchmark.again(PAIR, number), "official") for number in range(20)}
    assert of_one == {0, 1} and len({benchmark.identify(row, 0) for row in rows}) == 200
    for row, swap in zip(rows, swaps, strict=True):  # the answer that is shown first is the one that is graded as first
        text = benchmark.prompt(row, "official")
        assert (text.index("A car.") < text.index("A cup.")) == bool(swap)
        assert benchmark.score(row, BETTER.format(1 + swap), "official").score == 1.0
        assert benchmark.score(row, BETTER.format(2 - swap), "official").score == 0.0


def test_rewardbench_by_lmms_eval() -> None:
    benchmark = ALL["vl_rewardbench"]
    even, odd = PAIR, {**PAIR, "response": ["A cup.", "A truck."], "id": "Mathverse_1"}
    assert [vl_rewardbench.swapped(row, "lmms-eval") for row in (even, odd)] == [0, 0]
    odd["response"] = ["A cup.", "A van"]
    assert vl_rewardbench.swapped(odd, "lmms-eval") == 1
    assert benchmark.prompt(odd, "lmms-eval").index("A van") < benchmark.prompt(odd, "lmms-eval").index("A cup.")
    marks = [benchmark.score(row, BETTER.format(n), "lmms-eval").score for row in (even, odd) for n in (1, 2, 3)]
    assert marks == [1, 0, 0, 0, 1, 0]  # 3 is wrong here
    lines = benchmark.summarise([even, odd, odd], [Result(1.0), Result(0.0), Result(1.0)], "lmms-eval")
    assert [line.name for line in lines] == ["macro", "overall", "hallucination", "reasoning"]
    assert [line.value for line in lines] == pytest.approx([75.0, 200 / 3, 100.0, 50.0])
    lost = benchmark.score(odd, "Hard to say.", "lmms-eval")
    assert lost.undecided and "Hard to say." in benchmark.judge_prompt(odd, lost, "Hard to say.", "lmms-eval")
    assert benchmark.judge_prompt(odd, lost, "Hard to say.", "official") == ""
    assert [benchmark.judge_score(odd, lost, f"answer {n}.", "lmms-eval").score for n in (1, 2)] == [0.0, 1.0]
    guesses = {benchmark.judge_score({**odd, "id": str(i)}, lost, "none", "lmms-eval").score for i in range(30)}
    assert guesses == {0.0, 1.0}


# ---------------------------------------------------------------- ReasonMap


def block(line: str, start: str, end: str, more: str = "") -> str:
    return f"Route Name: {line}\nDeparture Stop: {start}\nArrival Stop: {end}{more}\n"


LISTED = {**MAP, "question_long": "How from 甲站 to 丁站? Via Stops: "}
WEST = {**MAP, "country": "america", "city": "oslo", "station_1": "Alpha Station", "station_2": "Gamma Station",
        "json": {"Line 1": ["Alpha Station", "Beta Station (Transfer Station)"],
                 "Line 2": ["Beta Station", "Gamma Station"]},
        "routes": {"1": [part("1", "Alpha", "Beta"), part("2", "Beta", "Gamma")]}}  # fmt: skip
TRANSFER = "--\n".join([block("Line 1", "Alpha Station", "Beta Station{0}"),
                       block("Line 2", "Beta Station", "Gamma Station{0}")])  # fmt: skip


def graded(row: Row, response: str, name: str = "reasonmap", scoring: str = "official") -> tuple[float, ...]:
    result = ALL[name].score(row, response, scoring)
    return result.score, *(round(result.parts[part], 4) for part in ("map_score", "ends", "line", "stops", "via"))


DIRECT = block("Line 1", "甲站", "丁站")


@pytest.mark.parametrize(("response", "expected"), [  # accuracy, map score, points for ends, line, stops, stops between
    pytest.param(DIRECT, (1, 15, 1, 2, 2, 0), id="1"),
    pytest.param(block("Line 1", "甲", "丁"), (0, 0, 0, 0, 0, 0), id="2"),
    pytest.param(block("Line 1", "甲站", "丙站") + "--" + block("Line 4", "丙站", "丁站"), (0, 9, 1, 4, 4, 0), id="3"),
    pytest.param(block("Line 4", "甲站", "丁站"), (0, 3, 1, 0, 2, 0), id="4"),
    pytest.param("Take line 1.", (0, 0, 0, 0, 0, 0), id="8"),
    pytest.param(DIRECT + "Have a good trip", (0, 0, 0, 0, 0, 0), id="closing words"),
    pytest.param(block("Line 1", "甲站", "丙站") + "--" + block("Line 1", "乙站", "丁站"), (0, 6, 1, 2, 3, 0),
                 id="gap"),
    pytest.param("<think>" + block("Line 4", "己站", "丙站") + "--</think>" + DIRECT, (1, 15, 1, 2, 2, 0),
                 id="thoughts"),
    pytest.param(block("八通线", "甲站", "丁站"), (1, 13, 1, 0, 2, 0), id="branch"),
    pytest.param("--" + block("line 1", "甲站", "丁站") + "--", (0, 5, 1, 2, 2, 0), id="names are literal"),
])  # fmt: skip
def test_reasonmap_golden_short(response: str, expected: tuple[float, ...]) -> None:
    assert graded(MAP, response) == expected == graded(MAP, response, scoring="fixed")
    assert graded({**MAP, "json": json.dumps(MAP["json"]), "routes": json.dumps(MAP["routes"])}, response) == expected


@pytest.mark.parametrize(("row", "via", "score", "points"), [
    pytest.param(MAP, "Number of Via Stops: 2", 29.0, 4.0, id="5a"),
    pytest.param(MAP, "Number of Via Stops: 3", 27.0, 2.0, id="5b"),
    pytest.param(LISTED, "Via Stops: 乙站,丙站", 31.0, 6.0, id="6a"),
    pytest.param(LISTED, "Via Stops: 乙站, 丙站", 27.1667, 2.1667, id="6b"),
    pytest.param(MAP, "Number of Via Stops: " + "9" * 6000, 25.0, 0.0, id="many digits"),
    pytest.param(MAP, "Number of Via Stops: some", 25.0, 0.0, id="no number"),
    pytest.param(LISTED, "Via Stops: none", 25.0, 0.0, id="no stop"),
])  # fmt: skip
def test_reasonmap_golden_long(row: Row, via: str, score: float, points: float) -> None:
    response = block("Line 1", "甲站", "丁站", f"\n{via}")
    for scoring in ("official", "fixed"):
        assert graded(row, response, "reasonmap_long", scoring) == (1, score, 1, 2, 2, points)


def test_reasonmap_without_a_number_the_first_of_the_block_counts() -> None:
    """That of Line 1; which fits the second plan, whose first part has one stop between."""
    assert graded(MAP, block("Line 1", "甲站", "丁站", "\n2 stops"), "reasonmap_long") == (1, 28, 1, 2, 1, 4)


def test_reasonmap_long_arrival_needs_the_end_of_its_line() -> None:
    assert graded(MAP, ROUTE.rpartition("\n")[0], "reasonmap_long")[:2] == (0, 0)
    assert graded(MAP, ROUTE.rpartition("\n")[0])[:2] == (1, 15)


def test_reasonmap_golden_7_outside_china() -> None:
    assert graded(WEST, TRANSFER.format("")) == (1, 15, 1, 0, 4, 0)
    assert graded(WEST, TRANSFER.format(""), scoring="fixed") == (1, 19, 1, 4, 4, 0)
    counted = {**WEST, "question_long": "Number of Via Stops:"}
    long = TRANSFER.format("\nNumber of Via Stops: 0")
    assert graded(counted, long, "reasonmap_long") == (1, 33, 1, 0, 4, 8)
    assert graded(counted, long, "reasonmap_long", "fixed") == (1, 37, 1, 4, 4, 8)


def test_reasonmap_golden_8_names() -> None:
    assert reasonmap.clean("Union Square (Downtown) - Metro Station") == "unionsquarestation"
    assert reasonmap.clean("甲（换）站 (a（b)c）d") == "甲站c）d" and reasonmap.clean("a) (b") == "a)(b"


@pytest.mark.parametrize(("city", "service", "name"), [
    ("los_angeles", "Metro A Line", "Line A"), ("los_angeles", "Metro B-Line", "Line B"), ("rome", "Linea C", "Line C"),
    ("rome", "B1", "Line B"), ("rome", "Metro B", "Line B"), ("budapest", "M4-es metróvonal", "Line 4"),
    ("sydney", "M1", "Line M1"), ("new_york", "Q Train", "Line Q"), ("new_york", "1 Line", "Line 1"),
    ("geneva", "12", "Line 12"), ("auckland", "Sth", "Southern Line"), ("dubai", "MRed2", "Red Line"),
    ("kl", "Ampang Line", "Line 3"), ("miami", "Metrorail Orange Line", "Metrorail Orange Line"),
    ("washington", "Red Line", "Red Line"), ("lisboa", "Azul", "Azul")])  # fmt: skip
def test_reasonmap_fixed_line_names(city: str, service: str, name: str) -> None:
    row = {**WEST, "city": city}
    assert reasonmap.line_name(row, service, "Line 3", "fixed") == name
    assert reasonmap.line_name(row, service, "Line 3", "official") == "Line Li"  # whatever the service


def test_reasonmap_arrivals() -> None:
    """A departure with the word for station stands for the arrival too, in the official code."""
    row = {**MAP, "routes": {"1": [part(SERVICE, "甲站", "丁站")]}}
    assert (graded(row, DIRECT)[4], graded(row, DIRECT, scoring="fixed")[4]) == (1, 2)
    for scoring in ("official", "fixed"):
        assert graded(row, ROUTE, "reasonmap_long", scoring)[4] == 2


def test_reasonmap_table() -> None:
    rows = [{**MAP, "city": city, "question_transfer_count": n} for n, city in enumerate(("beijing", "x", "rome", "x"))]
    results = [ALL["reasonmap"].score(rows[0], text, "official") for text in (DIRECT, "", "", "")]
    lines = ALL["reasonmap"].summarise(rows, results, "official")
    assert [(line.name, line.value, line.count) for line in lines[:4]] == [
        ("overall", 25.0, 4), ("map score (of 20)", 3.75, 4), ("test cities", 50.0, 2),
        ("test cities, map score (of 20)", 7.5, 2)]  # fmt: skip
    assert values(lines)["question_transfer_count: 0"] == 100.0 and values(lines)["difficulty_city: easy"] == 25.0


@pytest.mark.parametrize(("kind", "gold", "response", "right"), [
    ("TorF1", 1, "\\boxed{yes}", True), ("TorF2", 0, "\\boxed{No}", True), ("TorF1", 1, "The answer is yes.", True),
    ("TorF1", 1, "yes, it is", False), ("TorF1", 1, "\\boxed{\\text{yes}}", False), ("TorF1", 0, "no", True),
    ("Counting2", 3, "\\boxed{3}", True), ("Counting3", 3, "The answer is 3.", True),
    ("Counting2", 3, "\\boxed{3.0}", False), ("Counting2", 3, "\\boxed{1} then \\boxed{3}", True),
    ("Counting2", 3, "n = 3 km", True), ("Counting2", 3, "\\boxed{3", False), ("Counting2", 3, "9" * 6000, False),
    ("Counting3", 0, ".", True), ("Counting1", 2, "\\boxed{C}", True), ("Counting1", 2, "\\boxed{C. 4}", False),
    ("Counting1", 2, "the correct answer is: c", True), ("Counting1", 2, "\\boxed{B}", False)])  # fmt: skip
def test_reasonmap_plus_answers(kind: str, gold: int, response: str, right: bool) -> None:
    assert ALL["reasonmap_plus"].score({**PLUS, "type": kind, "answer": gold}, response, "official").score == right


def test_reasonmap_plus_weights() -> None:
    rows = [{**PLUS, "difficulty_city": level} for level in ("easy", "middle", "hard")]
    lines = ALL["reasonmap_plus"].summarise(rows, [Result(1.0), Result(0.0), Result(1.0)], "official")
    assert lines[0].name == "weighted accuracy" and lines[0].value == pytest.approx(100 * 3 / 4.5)
    assert lines[1].value == pytest.approx(200 / 3) and lines[0].interval[0] < lines[0].value < lines[0].interval[1]
    with pytest.raises(SightRLError, match="difficulty_city must hold one of easy, middle, hard"):
        ALL["reasonmap_plus"].summarise([{**PLUS, "difficulty_city": "odd"}], [Result(1.0)], "official")


# ---------------------------------------------------------------- ViCrit-Bench


@pytest.mark.parametrize(("response", "before", "after", "released", "strict"), [
    pytest.param('["orange license plates"]', "yellow license plates", "orange license plates", 1, 1, id="2"),
    pytest.param("\\boxed{orange}", "yellow license plates", "orange license plates", 1, 1, id="3a"),
    pytest.param("\\boxed{license plates}", "yellow license plates", "orange license plates", 0, 0, id="3b"),
    pytest.param("thinking\nfinal: the upper right", "upper left", "upper right", 1, 0, id="4a"),
    pytest.param("orange here\nnothing", "yellow license plates", "orange license plates", 0, 0, id="4b"),
    pytest.param("\\boxed{an eleven-pillar row}", "twelve red pillars", "eleven red pillars", 1, 0, id="5"),
    pytest.param("boxed{orange}", "yellow license plates", "orange license plates", 0, 0, id="no backslash"),
    pytest.param("a red cup", "a red glass cup", "a red cup", 0, 0, id="only taken away"),
])  # fmt: skip
def test_vicrit_golden_scorers(response: str, before: str, after: str, released: int, strict: int) -> None:
    for phrase in (after, [after]):
        row = {**CRITIC, "original_noun_phrases": before, "changed_noun_phrases": phrase, "changed_caption": after}
        result = ALL["vicrit_bench"].score(row, response, "official")
        assert (result.score, result.parts["strict"]) == (released, strict)
        assert (vicrit.released(row, response), vicrit.strict(row, response)) == (released, strict)


def test_vicrit_tables_by_kind() -> None:
    changes = [("a blue hat", "a red hat", "color", "natural"), ("three dogs", "four dogs", "count", "natural"),
               ("closed door", "open door", "condition", "document")]  # fmt: skip
    rows = [{**CRITIC, "original_noun_phrases": [old], "changed_noun_phrases": [new], "changed_caption": new,
             "type": kind, "domain": domain} for old, new, kind, domain in changes]  # fmt: skip
    said = ["\\boxed{red hat}", "I see\nfour-legged dogs", "boxed{open door}"]
    results = [ALL["vicrit_bench"].score(row, text, "official") for row, text in zip(rows, said, strict=True)]
    found = values(ALL["vicrit_bench"].summarise(rows, results, "official"))
    assert list(found)[:2] == ["released", "strict"]
    assert (found["released"], found["strict"]) == (pytest.approx(200 / 3), pytest.approx(100 / 3))
    assert (found["type: count, released"], found["type: count, strict"]) == (100.0, 0.0)
    assert (found["domain: natural, released"], found["domain: natural, strict"]) == (100.0, 50.0)
    bare = [{key: value for key, value in row.items() if key not in ("type", "domain")} for row in rows]
    assert list(values(ALL["vicrit_bench"].summarise(bare, results, "official"))) == ["released", "strict"]


def test_vicrit_leaves_out_small_pictures() -> None:
    with pytest.raises(SightRLError, match="a side below 28 pixels"):
        ALL["vicrit_bench"].images({**CRITIC, "image": Image.new("RGB", (200, 27))})
    assert ALL["vicrit_bench"].images({**CRITIC, "image": "a.png"}) == ["a.png"]


# ---------------------------------------------------------------- rows that lack something


@pytest.mark.parametrize(("name", "column", "value"), [
    ("videomme", "answer", "dog"), ("videomme", "answer", None), ("videomme", "answer", 3),
    ("longvideobench", "correct_choice", 4), ("longvideobench", "correct_choice", "C"),
    ("longvideobench", "option0", "N/A"),
    ("mlvu", "answer", ""), ("charades_sta", "timestamp", [3]), ("charades_sta", "timestamp", ["a", "b"]),
    ("charades_sta", "timestamp", [0.0, math.nan]), ("charades_sta", "timestamp", "0 - 3"),
    ("vl_rewardbench", "human_ranking", [0, 0]), ("vl_rewardbench", "human_ranking", "01"),
    ("reasonmap", "json", "{"), ("reasonmap", "json", [1]), ("reasonmap", "json", '{"a": 3}'),
    ("reasonmap", "routes", {"1": [{"route_name": "x"}]}), ("reasonmap", "routes", {"1": ["x"]}),
    ("reasonmap", "country", None), ("reasonmap", "station_1", None),
    ("reasonmap_long", "routes", {"1": [{**part("1", "a", "b"), "num_via_stops": "few"}]}),
    ("reasonmap_plus", "answer", "yes"), ("reasonmap_plus", "type", "Riddle"),
    ("vicrit_bench", "changed_noun_phrases", []), ("vicrit_bench", "original_noun_phrases", None)])  # fmt: skip
def test_a_row_with_nonsense_is_one_sentence(name: str, column: str, value: object) -> None:
    """Whatever the response is: the survey before a run scores an empty one."""
    row, right = ROWS[name]
    for response in ("", right):
        for scoring in ALL[name].scorings:
            with pytest.raises(SightRLError, match=column):
                ALL[name].score({**row, column: value}, response, scoring)


@pytest.mark.parametrize("name", ALL)
def test_a_row_without_a_column_is_one_sentence(name: str) -> None:
    benchmark, (row, _) = ALL[name], ROWS[name]
    for column in benchmark.columns:
        broken = {key: value for key, value in row.items() if key != column}

        def everything(broken: Row = broken) -> None:
            benchmark.prompt(broken, benchmark.scorings[0])
            benchmark.images(broken)
            benchmark.score(broken, "", benchmark.scorings[0])

        if column in ("duration", "task_type", "duration_group", "question_category", "id", "city", "difficulty_city"):
            continue  # of the tables alone
        with pytest.raises(SightRLError, match=f"column {column} is missing"):
            everything()


@pytest.mark.parametrize("name", ALL)
def test_what_a_benchmark_says_of_itself(name: str) -> None:
    benchmark: Benchmark = ALL[name]
    assert benchmark.scorings and benchmark.source.startswith("hf:") and benchmark.title and benchmark.licence
    assert name == name.lower() and " " not in name and all(len(entry) == 3 for entry in benchmark.reference)

"""Every benchmark from files of its published form to a table: asked by the tiny VLM, killed and resumed, scored again
from its predictions, and what perfect and empty answers earn under every scoring."""

from __future__ import annotations

import functools
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import bench_rows as b
import pytest
from bench_rows import dyna, geometry, hub, logic, mega, part, picture, published, verse, vision, vista, we

import predictions
import rows
import run
import scoring
import tasks
from benchmarks import detection, refcoco
from common.judge import Judge
from escape import markdown

ROOT = Path(__file__).resolve().parent.parent
BENCHMARKS = {name: benchmark for name, (benchmark, _) in scoring.find_benchmarks()[0].items()}
CASES = [(name, rule) for name, benchmark in BENCHMARKS.items() for rule in benchmark.scorings]
Answers = Sequence[str] | Callable[[b.Row, str], str]  # a text per row, or (row, prompt) -> text


@dataclass(frozen=True)
class Sample:
    """A few rows of a benchmark as published and what is known about their scores. Keys of dicts are scorings."""

    files: dict[str, Any]  # name -> content, see bench_rows.published
    right: dict[str, Answers]  # what a perfect model says; "": for the scorings not named
    place: str = ""  # what --data gets: a file or folder of them
    judge: dict[str, Callable[[str], str]] = field(default_factory=dict)  # prompt -> reply to right answers
    best: dict[str, float] = field(default_factory=dict)  # first line for right answers, where not 100
    empty: dict[str, float] = field(default_factory=dict)  # first line for empty ones, where not 0


def without(row: b.Row, *columns: str) -> b.Row:
    return {name: cell for name, cell in row.items() if name not in columns}


def says(reply: str) -> Callable[[str], str]:
    return lambda prompt: reply


# ---------------------------------------------------------------- the rows

QUICK = ['I add. The answer is "(B)".', 'The answer is "B".', "14", 'The answer is "0.65".',
         'The answer is "[2007, 2008]".']  # fmt: skip
SHORT = ["B", "3.1416", "even function", "even function"]
VERSE = {
    "testmini.parquet": [verse("A", problem="1"), verse("30", "free-form", "Vision Only", "1"),
                         verse("B", version="Vision Dominant", problem="2")],
    "testmini_text_only.parquet": [without(verse("A", version="Text Only", problem="1"), "image"),
                                   without(verse("30", "free-form", "Text Only", "2"), "image")],
}  # fmt: skip
TWO = {"image_1": picture(60, 60, "blue"), "image_2": picture(64, 56, "green")}
MMMU_PRO = {
    f"{config}/test-00000-of-00001.parquet": [row, row | {"id": "test_Math_9", "answer": "C"}]
    for config, row in (("standard (10 options)", b.PRO), ("vision", b.VISION),
                        ("standard (4 options)", b.PRO | {"options": "['1', '2', '3']"}))
}  # fmt: skip
NO_PICTURE = b.HALLUSION | {"category": "VS", "subcategory": "chart", "visual_input": "0", "filename": None,
                            "image": None, "gt_answer": "0"}  # fmt: skip
VIDEO = [picture(56, 56, colour) for colour in ("red", "orange", "yellow", "green")]
TERMINI = b.MAP | {
    "country": "italy", "city": "rome", "json": {"Line A": ["Termini", "Spagna", "Flaminio"], "Line B": ["Termini"]},
    "station_1": "Termini", "station_2": "Flaminio", "figure": picture(80, 56, "blue"),
    "question_short": "How from Termini to Flaminio?", "question_long": "How from Termini to Flaminio? Via Stops: ",
    "routes": {"1": [part("A", "Termini", "Flaminio", "Spagna")]}, "difficulty_city": "hard",
}  # fmt: skip
TO_FLAMINIO = "Route Name: Line A\nDeparture Stop: Termini\nArrival Stop: Flaminio\nVia Stops: Spagna"
HRBENCH = [b.COLOURS, b.COLOURS | {"index": 4, "A": "blue", "B": "red", "answer": "A", "cycle_category": "1"},
           b.COLOURS | {"index": 5, "question": "Where?", "category": "cross"}]  # fmt: skip
HR_CARD = ("---\nconfigs:\n- config_name: hrbench_version_split\n  data_files:\n  - split: hrbench_4k\n"
           "    path: hr_bench_4k.parquet\n  - split: hrbench_8k\n    path: hr_bench_8k.parquet\n---\n")  # fmt: skip
DOGS = [b.DOG, b.DOG | {"question_id": "2", "bbox": [200, 50, 300.5, 200.25], "answer": ["cat"], "image": b.SCREEN}]
SHARES = ["[0.15625, 0.208333, 0.46875, 0.416667]", "[0.3125, 0.104167, 0.782031, 0.521354]"]
PIXELS = ["[100, 100, 300, 200]", "[200, 50, 500.5, 250.25]"]
SCREENS = [{**b.BUTTON, "image": b.SCREEN}, {**b.BUTTON, "image": b.SCREEN, "data_type": "text", "data_source": "shop"}]
SCREENS = [without(row, "image_width", "image_height") for row in SCREENS]
CLICKS = {"official": ["(0.5, 0.5)"] * 2, "lmms-eval": ["[0.4, 0.4, 0.6, 0.6]"] * 2,
          "vlmevalkit": ["pyautogui.click(x=0.5, y=0.5)"] * 2}  # fmt: skip


def better(row: b.Row, prompt: str) -> str:
    """The verdict of somebody who reads the prompt and knows which answer people preferred."""
    preferred = row["response"][list(row["human_ranking"]).index(0)]
    return f"Overall Judgment: Answer {1 if f'Answer 1: {preferred}' in prompt else 2} is better."


def detections(key: str) -> Sample:
    """A class that is asked about and there, one that is asked about and not there, one that nobody asked about."""
    first, second = detection.CLASSES[key][:2]
    family, annotations = key.partition("_")[0], b.instances()
    annotations["categories"][0]["name"], annotations["categories"][1]["name"] = first, second
    name = {"coco": "instances_val2017.json", "lvis": "lvis_v1_val.json"}[family]
    asked = {"1": [first, "person"], "2": [first]}
    found = "<answer>[{'Position': [1.5625, 4.16667, 6.25, 12.5], 'Confidence': 0.9}]</answer>"
    return Sample(
        {name: annotations, f"exist_map_{family}_Qwen2_vl_2B_baseline.json": asked, "1.jpg": b.SCREEN,
         "val2017/2.jpg": picture(64, 48)},
        {"": [found, "<answer>No Objects</answer>", found]},
        best={"": 50.0})  # fmt: skip # of two classes that are there one was not asked about, which counts as missed


SAMPLES: dict[str, Sample] = {
    "mathvista": Sample(
        hub("testmini", vista("8/11", choices=b.FRACTIONS, pid="1"), vista("8", choices=["11", "8"], pid="2"),
            vista("14", "integer", pid="3", unit="cm"), vista("0.65", "float", precision=2.0, pid="4"),
            vista("[2007, 2008]", "list", pid="5")),
        {"": QUICK, "vlmevalkit": ["The answer is B.", "B", "14", "0.65", "[2007, 2008]"]},
        best={"vlmevalkit": 80.0, "lmms-eval": 80.0},  # lists, and numbers with a precision, are always wrong there
        empty={"official": 20.0, "lmms-eval": 20.0}),  # nothing is nearest to the shortest option: the second row's
    "mathverse": Sample(VERSE, {"": ["A", "30", "B"]}, judge={"lmms-eval": says("1")}),
    "mathverse_text_only": Sample(VERSE, {"": ["A", "30"]}, judge={"lmms-eval": says("1")}),
    **{name: Sample(
        hub(split, vision("B", b.FIVE), vision("(6,7)", id="5", level=5), vision("A", [*"ABCDE"], id="6")),
        {"": ["\\boxed{B}", "\\boxed{(6,7)}", "It must be (A)."],
         "vlmevalkit": ["The answer is B.", "(6,7)", "The answer is A."]})
       for name, split in (("mathvision", "test"), ("mathvision_mini", "testmini"))},
    "wemath": Sample(  # two steps and the whole, and a step whose problem is not complete
        hub("testmini", we("2steps_1"), we("2steps_2", "A"), we("2steps_multi"), we("3steps_1", problem="q")),
        {"": [f"Thought: so.\nAnswer: {letter}" for letter in "BABB"],
         "lmms-eval": [f"<think>so</think><answer>{letter}</answer>" for letter in "BABB"]}),
    "dynamath": Sample(
        hub("test", dyna("multiple choice", "B"), dyna("float", "3.1416", "2"), dyna("text", "even function", "3"),
            dyna("text", "even function", "3", "2")),
        {"": [json.dumps({"solution": "so", "short answer": text}) for text in SHORT],
         "lmms-eval": [f"<think>so</think><answer>{text}</answer>" for text in SHORT]},
        empty={"vlmevalkit": 50.0}),  # which asks whether the answer is in the truth, as nothing is in every text
    "logicvista": Sample(
        hub("test", logic("B", ["inductive", "spatial"]), logic("A, C")),
        {"": ["B", "The first and the third."], "lmms-eval": ["<answer>B</answer>", "<answer>A, C</answer>"]},
        judge=dict.fromkeys(("official", "vlmevalkit"), lambda prompt: "A, C" if "the third." in prompt else "B")),
    "geo3k": Sample(hub("test", geometry("3"), geometry("\\frac{1}{2}") | {
        "images": [picture(), picture(90, 56)], "problem": "<image><image>How do they differ?"}),
        {"": ["<think>so</think> \\boxed{3}", "\\boxed{0.5}"]}),
    "mmk12": Sample(hub("test", b.MMK12, b.MMK12 | {"id": "b", "question": "Which?", "answer": "$2\\pi$"}),
                    {"": ["\\boxed{B}", "\\boxed{2\\pi}"]}),
    "mmmu": Sample(
        hub("validation", b.MMMU, b.OPEN, b.OPEN | {"id": "validation_Math_16", "answer": "['1,234', 'c']"},
            b.MMMU | {"id": "validation_Art_4", "question": "Is <image 1> like <image 2> or <image 1>?", **TWO,
                      "options": "['no', 'yes']", "answer": "B"}),
        {"": ["A", "It is 12.97.", "1234", "B"], "vlmevalkit": ["A", "12.97", "A", "B"]},
        best={"lmms-eval": 50.0}),  # where open questions are always wrong
    **{f"mmmu_pro_{name}": Sample(MMMU_PRO, {"": ["So. Answer: A", "Answer: C"], "lmms-eval": ["A", "C"]})
       for name in ("10", "4", "vision")},
    "mmstar": Sample({"mmstar.parquet": [b.MMSTAR, b.MMSTAR | {"index": 1, "answer": "D", "category": "math",
                                                               "l2_category": "geometry", "image": TWO["image_1"]}]},
                     {"": ["B", "D"]}),
    "hallusionbench": Sample(
        hub("image", b.HALLUSION, b.HALLUSION | {"question_id": "1", "gt_answer": "0"}) | hub("non_image", NO_PICTURE),
        {"": ["Yes.", "No.", "No, there is no picture."]}, judge={"official": says("correct")}),
    "blink": Sample(
        {"Counting/val-00000-of-00001.parquet": [b.BLINK], "Counting/test-00000-of-00001.parquet": [
            b.BLINK | {"idx": "test_Counting_1", "answer": "hidden"}],
         "Jigsaw/val-00000-of-00001.parquet": [b.BLINK | {
             "idx": "val_Jigsaw_1", "sub_task": "Jigsaw", "choices": ["the first", "the second"], "answer": "(A)",
             "image_3": TWO["image_1"], "image_4": TWO["image_2"]}]},
        {"": ["(B)", "(A)"]}),
    "mmvp": Sample(  # a pair, and a row without its pair
        hub("train", b.MMVP, b.MMVP | {"Index": 2, "Correct Answer": "(b)"}, b.MMVP | {"Index": 3}),
        {"": ["A", "B", "A"]}, judge={"official": says("yes")}),
    "megabench": Sample(
        {"core/test-00000-of-00001.parquet": [
            mega({"colour": "exact_str_match"}, {"colour": "red"}),
            mega({"n": "number_rel_diff_ratio", "city": "simple_str_match"}, {"n": "5", "city": "New York"}, "json") | {
                "id": "8", "task_name": "towns", "example_text": "", "example_media": "[]",
                "query_text": "<image> or <image>?", "query_media": '["a.png", "more/c.jpg"]'},
            mega({"colour": "exact_str_match"}, {"colour": "blue"}) | {
                "id": "9", "example_text": "", "example_media": "[]", "query_text": "And now?", "query_media": "[]"}],
         "a.png": picture(), "more/c.jpg": TWO["image_1"], "b/": VIDEO},
        {"": ["Answer: red", 'Answer: {"n": 5, "city": "new york"}', "Answer: blue"]}),
    "videomme": Sample(
        {"videomme/test-00000-of-00001.parquet": [
            b.MME, b.MME | {"videoID": "abc", "question_id": "2-1", "duration": "long", "subtitles": "Hello."}],
         "fFj.gif": VIDEO, "videos/abc.gif": VIDEO[::-1]},
        {"": ["C", "C"]}),
    "longvideobench": Sample(
        {"lvb_val.json": [b.LONG, b.LONG | {"id": "v_2", "option4": "a tram", "correct_choice": 4},
                          b.LONG | {"id": "w_5", "video_path": "w.mp4", "option2": "N/A", "option3": "N/A",
                                    "correct_choice": 1, "duration_group": 600}],
         "videos/v/": VIDEO, "videos/w/": VIDEO[:1]},
        {"": ["C", "E", "B"]}, place="lvb_val.json",
        empty={"lmms-eval": 100 / 3}),  # which draws a letter, and it is the last row's; always the same here
    "mlvu": Sample(
        {"test.jsonl": [b.MLVU, b.MLVU | {"task_type": "plotQA", "answer": "A"}], "video/ego_1/": VIDEO},
        {"": ["B", "A"], "vlmevalkit": ["(B) right", "(A) left"]}, place="test.jsonl",
        best={"": 200 / 7}),  # the mean of seven tasks, of which two are there
    "mlvu_test": Sample(
        {"test.jsonl": [b.MLVU, b.MLVU | {"task_type": "sportsQA", "answer": "F"}], "video/ego_1/": VIDEO},
        {"": ["B", "F"], "vlmevalkit": ["B", "F"]}, place="test.jsonl",
        best={"lmms-eval": 100 / 9, "vlmevalkit": 200 / 9}),  # lmms-eval reads no letter behind D
    "charades_sta": Sample(
        {"test.jsonl": [b.STA, b.STA | {"timestamp": [3.5, 10.2], "caption": "a person laughs"}],
         "videos/AO8RW/": VIDEO},
        {"": ["The event happens in 0.0 - 10.0 seconds.", "The event happens in 3.5 - 10.2 seconds."]},
        place="test.jsonl"),
    "vl_rewardbench": Sample(
        hub("test", b.PAIR, b.PAIR | {"id": "mathverse_9", "human_ranking": [1, 0]},
            b.PAIR | {"id": "wildvision-battle-11", "response": ["Yes.", "Not at all."]}),
        {"": better}),
    "reasonmap": Sample(hub("validation", b.MAP, TERMINI),
                        {"": [b.ROUTE.rpartition("\n")[0], TO_FLAMINIO.rpartition("\n")[0]]}),
    "reasonmap_long": Sample(
        {"validation.jsonl": [row | {"figure": b.base64_of(row["figure"]), "json": json.dumps(row["json"])}
                              for row in (b.MAP, TERMINI)]},
        {"": [b.ROUTE, TO_FLAMINIO]}, place="validation.jsonl"),
    "reasonmap_plus": Sample(
        hub("test", b.PLUS, b.PLUS | {"type": "Counting1", "difficulty_city": "easy"},
            b.PLUS | {"type": "Counting2", "answer": 12, "difficulty_city": "middle"}),
        {"": ["\\boxed{Yes}", "The answer is B.", "\\boxed{12}"]}),
    "vicrit_bench": Sample(
        hub("train", b.CRITIC, b.CRITIC | {
            "type": "count", "changed_caption": "Two dogs run.", "image": picture(28, 200),
            "original_noun_phrases": ["Three dogs"], "changed_noun_phrases": ["Two dogs"]}),
        {"": ["orange license plates", "\\boxed{Two dogs}"]}),
    "vstar": Sample(
        hub("test", b.BAG, b.BAG | {"category": "relative_position", "label": "A", "question_id": "8", "text":
            "Where is it?\n(A) left\n(B) right\n(C) above\n(D) below\nAnswer with a letter."}),
        {"": ["B", "A"], "official": ["[2.5, 1.5]", "[0.1, 1, 2, 3]"]}),
    "hrbench_4k": Sample({"README.md": HR_CARD, "hr_bench_4k.parquet": HRBENCH, "hr_bench_8k.parquet": HRBENCH[:1]},
                         {"": ["B", "A", "B"]}),
    "hrbench_8k": Sample({"HRBench8K.tsv": HRBENCH}, {"": ["B", "A", "B"]}, place="HRBench8K.tsv"),
    "screenspot": Sample(hub("test", *SCREENS), CLICKS),
    "screenspot_v2": Sample(
        hub("test", *[row | {"bbox": [256.0, 192.0, 128.0, 96.0], "image_width": 640, "image_height": 480}
                      for row in SCREENS]),
        CLICKS | {"lmms-eval": ["[0.5, 0.5]"] * 2}),
    "screenspot_pro": Sample(
        hub("test", *[row | {"bbox": str(row["bbox"])} for row in (b.SAVE, b.SAVE | {"ui_type": "icon"})]),
        {"lmms-eval": ["[0.5, 0.5]"] * 2, "vlmevalkit": ["pyautogui.click(x=320, y=240)"] * 2}),
    **{key: Sample(
        hub("val", *DOGS) | hub("testA", b.DOG),
        {"lmms-eval": [json.dumps([{"bbox_2d": json.loads(box)}]) for box in PIXELS], "vlmevalkit": SHARES})
       for key in refcoco.SETS},
    **{f"{key}_rec": Sample(hub("val", *DOGS), {"": SHARES}) for key in refcoco.SETS},
    **{f"vlm_r1_{key}": Sample(
        {f"{refcoco.FILES[key]}.json": [b.R1, b.R1 | {"image": "more/2.jpg", "problem": "Where is the cat?"}],
         "COCO_train2014_1.jpg": b.SCREEN, "more/2.jpg": b.SCREEN},
        {"": ['<think>so</think><answer>{"bbox_2d": [100, 100, 300, 200]}</answer>'] * 2},
        place=f"{refcoco.FILES[key]}.json") for key in refcoco.SETS},
    "lisa": Sample(
        {f"test/{name}": {"text": ["seat"], "is_sentence": False, "shapes": b.SHAPES} for name in ("a.json", "b.json")}
        | {"test/a.jpg": b.SCREEN, "test/b.jpg": b.SCREEN},
        {"": ["<answer>(100,100),(500,500)</answer>"] * 2}, place="test"),
    **{key: detections(key) for key in detection.CLASSES},
    "odinw13": Sample(
        hub("test", b.PETS, b.PETS | {"dataset_name": "Rabbits", "categories": ["rabbit"], "bboxes": [], "labels": []}),
        {"": [json.dumps([{"bbox_2d": box, "label": label} for box, label in zip(
            b.PETS["bboxes"], b.PETS["labels"], strict=True)]), "[]"]}),
    "chartqa": Sample(
        hub("test", b.CHART, b.CHART | {"type": "human_test", "answer": "Yes"}, b.CHART | {"answer": "0"}),
        {"": ["12.3", "yes", "0"]}),
    "textvqa": Sample(
        hub("validation", b.BRAND, b.BRAND | {"question_id": 2, "answers": ["two"] * 4 + ["2 of them"] * 6}),
        {"": ["Nokia.", "2"]}),
    "ocrbench": Sample(
        hub("test", b.SIGN, b.SIGN | {"dataset": "HME100k", "answer": ["\\frac{a}{b}", "a/b"],
                                      "question_type": "Handwritten Mathematical Expression Recognition"}),
        {"": ["It says Centre.", "\\frac { a } { b }"]},
        best={"": 2.0}),  # the score is a number of hits
    "countbench": Sample(hub("test", b.DOGS, b.DOGS | {"number": 10}), {"": ["Two", "10"]}),
    "countbenchqa": Sample(hub("test", b.DOGS, b.DOGS | {"number": 10}), {"": ["2", "10"]}),
    "superclevr200": Sample(
        {"superclevr_test200_counting_problems.jsonl": [b.CLEVR, b.CLEVR | {"ground_truth": 7}],
         "images/superCLEVR_new_025000.png": b.SCREEN},
        {"": ["<think>so</think><answer>4</answer>", "<answer> 7 </answer>"]},
        place="superclevr_test200_counting_problems.jsonl"),
}  # fmt: skip


def test_every_benchmark_has_rows_here():
    assert set(SAMPLES) == set(BENCHMARKS)


# ---------------------------------------------------------------- runs

LIMIT = 4
SETTINGS = ("--model", "tiny", "--max-new-tokens", "8", "--max-pixels", "12544", "--frames", "3", "--limit", str(LIMIT))


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with data/NAME for every benchmark."""
    folder = tmp_path_factory.mktemp("benchmarks")
    for name, sample in SAMPLES.items():
        published(folder / "data" / name, sample.files)
    return folder


def data(place: Path, name: str) -> Path:
    return place / "data" / name / SAMPLES[name].place


def words(place: Path, names: Sequence[str]) -> list[str]:
    return ["--benchmarks", *names, "--data", *[f"{name}={data(place, name)}" for name in names], "--out", str(place)]


def evaluate(*options: str) -> None:
    run.main(run.parse([*options]))


@functools.cache
def tiny() -> Any:
    from common.vlm import load_vlm

    return load_vlm("tiny", max_pixels=12544)


@pytest.fixture(scope="module")
def one_model():
    """The tiny VLM is loaded once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("common.training.load_model", lambda args: tiny())
        yield


@pytest.fixture(scope="module")
def asked(place, one_model) -> Path:
    """A run per scoring over all benchmarks that have it, in the folder named like the scoring."""
    for rule in sorted({rule for _, rule in CASES}):
        names = [name for name, other in CASES if other == rule]
        evaluate(*words(place, names), *SETTINGS, "--scoring", rule, "--run-name", rule)
    return place


def read(text: str | bytes) -> dict:
    """Strict JSON: a NaN or an infinity is none."""
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no number"))


def results(folder: Path) -> dict:
    return read((folder / "results.json").read_text())


NUMBERS = ("lines", "scores", "undecided", "pass", "rows", "k", "repeated")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "rule"), CASES)
def test_a_run_and_its_predictions_give_the_same_table(name, rule, asked, tmp_path, capsys):
    folder, benchmark = asked / rule / name, BENCHMARKS[name]
    records = [read(line) for line in (folder / "predictions.jsonl").read_bytes().splitlines()]
    count = min(LIMIT, len(rows.open_rows(name, benchmark, str(data(asked, name)))))
    found = results(folder)
    assert 2 <= count == len(records) == found["rows"] == len({record["id"] for record in records})
    assert all(len(record["responses"]) == 1 and 0 < record["lengths"][0] <= 8 for record in records)
    assert math.isfinite(found["lines"][0]["value"]) and not found["skipped"] and found["scoring"] == rule
    text = (folder / "table.md").read_text()
    assert benchmark.title in text and benchmark.metric in text
    assert all(f"| {markdown(line['name'])} |" in text for line in found["lines"])
    again = {}
    for form, more in (("alone", ()), ("with data", ("--data", str(data(asked, name)), "--limit", str(LIMIT)))):
        evaluate("--predictions", str(folder / "predictions.jsonl"), "--benchmarks", name, "--scoring", rule,
                 "--out", str(tmp_path), "--run-name", form, *more)  # fmt: skip
        again[form] = {key: results(tmp_path / form / name)[key] for key in NUMBERS}
    assert again == dict.fromkeys(again, {key: found[key] for key in NUMBERS})


# ---------------------------------------------------------------- perfect and empty answers


def first_line(name: str, rule: str, place: Path, out: Path, answers: Sequence[str], form: str = "ours") -> float:
    """The headline of these answers in a file of ours, of lmms-eval or of VLMEvalKit."""
    benchmark = BENCHMARKS[name]
    if form == "lmms-eval":
        lines = [{"doc_id": n, "resps": [[text]], "filtered_resps": [text]} for n, text in enumerate(answers)]
    elif form == "vlmevalkit":
        lines = [{"prediction": text} for text in answers]
    else:
        source = rows.open_rows(name, benchmark, str(data(place, name)))
        ids = predictions.numbered(benchmark, [predictions.light_row(source, i) for i in range(len(source))])
        lines = [{"id": row_id, "responses": [text]} for row_id, text in zip(ids, answers, strict=True)]
    file = out / f"{form}.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    evaluate("--predictions", str(file), "--benchmarks", name, "--scoring", rule, "--data", str(data(place, name)),
             "--out", str(out), "--run-name", form, "--judge", "local:nobody")  # fmt: skip
    return results(out / form / name)["lines"][0]["value"]


@pytest.mark.parametrize(("name", "rule"), CASES)
def test_perfect_answers_earn_everything_and_empty_ones_do_not(name, rule, place, tmp_path, monkeypatch, capsys):
    sample, benchmark = SAMPLES[name], BENCHMARKS[name]
    right = sample.right.get(rule) or sample.right[""]
    if callable(right):
        source = rows.open_rows(name, benchmark, str(data(place, name)))
        right = [right(source[i], benchmark.prompt(source[i], rule)) for i in range(len(source))]
    reply = sample.judge.get(rule, says(""))
    monkeypatch.setattr(tasks, "open_judge_of", lambda args, folder: Judge(
        lambda batch: [(i, reply(messages[-1]["content"])) for i, messages in enumerate(batch)], ["test"]))  # fmt: skip
    best = sample.best.get(rule, sample.best.get("", 100.0))
    assert first_line(name, rule, place, tmp_path, right, rule) == pytest.approx(best, abs=0.01)
    monkeypatch.setattr(tasks, "open_judge_of", lambda args, folder: None)
    empty = first_line(name, rule, place, tmp_path, [""] * len(right))
    assert empty == pytest.approx(sample.empty.get(rule, 0.0)) and empty < best


# ---------------------------------------------------------------- killed and resumed


def written(folder: Path) -> dict[str, bytes]:
    names = ("predictions.jsonl", "results.json", "table.md")
    return {str(file.relative_to(folder)): file.read_bytes() for name in names for file in sorted(folder.rglob(name))}


@pytest.mark.slow
def test_a_killed_run_of_all_ends_with_the_same_bytes(place, one_model, capsys):
    options = [*words(place, list(BENCHMARKS)), *SETTINGS, "--k", "2", "--batch", "3"]
    command = [sys.executable, str(ROOT / "eval/run.py"), *options, "--run-name", "killed"]
    with open(place / "log", "wb") as log:
        process = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=log, stderr=log)
    evaluate(*options, "--run-name", "whole")  # meanwhile
    deadline = time.monotonic() + 600
    try:
        while len(list(place.glob("killed/*/results.json"))) < len(BENCHMARKS) // 3:
            assert time.monotonic() < deadline and process.poll() is None, (place / "log").read_text()
            time.sleep(0.005)
    finally:
        process.kill()  # SIGKILL
        process.wait()
    left, whole = written(place / "killed"), written(place / "whole")
    assert len(left) < len(whole) == 3 * len(BENCHMARKS) + 1  # a table of all
    evaluate("--resume", str(place / "killed"))
    assert written(place / "killed") == whole
    for file in place.glob("killed/*/predictions.jsonl"):  # every benchmark stopped in the middle of a line
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
        (file.parent / "results.json").unlink()
    evaluate("--resume", str(place / "killed"))
    assert written(place / "killed") == whole

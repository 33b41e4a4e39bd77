"""eval/run.py: rows from every source, answers of the tiny VLM and of files, resuming, judging, comparing, listing."""

from __future__ import annotations

import base64
import errno
import importlib.util
import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import tyro
from helpers import encoded, sentence_of, write_lines
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console

import asking
import files
import frames
import predictions
import progress
import rows
import run
import scoring
import summary
import tasks
from benchmark import Benchmark, Line, Result, Video, judged, lines_by, mean_line
from common.errors import SightRLError
from common.judge import Judge

ROOT = Path(__file__).resolve().parent.parent
THINK = "{question}\nThink inside <think> </think>, then give the final answer in \\boxed{}."

# A benchmark of the tests' own, for runs in a process of their own too: counting, scored by the last number.
FAKE = """
import os, time
from benchmark import Benchmark, Result, Video, judged, lines_by, mean_line
from common.errors import SightRLError

def score(row, response, scoring):
    time.sleep(float(os.environ.get("FAKE_SLEEP", 0)))
    if not row["answer"]:
        raise SightRLError("the column 'answer' is empty; fill it in.")
    digits = [word for word in response.replace(".", " ").replace("}", " ").split() if word.isdigit()]
    if not digits:
        return Result(0.0, undecided=True)
    right = digits[-1] == row["answer"] if scoring == "official" else digits[0] == row["answer"]
    return Result(float(right), digits[-1], parts={"length": len(response)})

def summarise(rows, results, scoring):
    return [*lines_by(rows, results, "kind"), mean_line("characters", [r.parts.get("length", 0) for r in results], 1.0)]

BENCHMARKS = {"fake": Benchmark(
    title="Fake", source="hf:nobody/fake", split="test", size=8, metric="accuracy", licence="CC0",
    columns=("question", "answer", "image"), prompt=lambda row, scoring: row["question"].strip(), score=score,
    summarise=summarise, identify=lambda row, number: row["name"], scorings=("official", "lmms-eval"),
    judge_prompt=lambda row, result, response, scoring: f"Truth {row['answer']}: {response}",
    judge_score=lambda row, result, reply, scoring: judged(result, reply == "yes"), max_new_tokens=24,
    images=lambda row: [Video(row["image"], row.get("times", False))] if "video" in row else [row["image"]],
    reference=(("a model", "12.3", "its paper"),), note="made up")}
"""


def picture(number: int = 0, size: tuple[int, int] = (56, 56)) -> Image.Image:
    image = Image.new("RGB", size, (20 * number % 256, 90, 200))
    image.paste((250, 250, 0), (5 + 3 * number, 10, 25 + 3 * number, 30))
    return image


def row(number: int, **more) -> dict:
    return {"name": f"q{number}", "question": f"How many stars are there? {number}", "answer": str(number % 5),
            "kind": "ab"[number % 2], "image": f"p{number % 4}.png", **more}  # fmt: skip


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """A folder with fake.py, four pictures and rows.jsonl with eight questions, two to a picture, far apart."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fake.py").write_text(FAKE)
    for number in range(4):
        picture(number).save(tmp_path / f"p{number}.png")
    write_lines(tmp_path / "rows.jsonl", [row(number) for number in range(8)])
    return tmp_path


def evaluate(*words: str) -> None:
    run.main(run.parse([*words]))


OPTIONS = ("--benchmarks", "fake.py", "--data", "rows.jsonl", "--out", "out", "--batch", "3", "--k", "2",
           "--prompt", THINK)  # fmt: skip


def written(folder: Path | str) -> dict[str, bytes]:
    names = ("predictions.jsonl", "results.json", "table.md")
    return {name: (Path(folder) / "fake" / name).read_bytes() for name in names}


def table(folder: Path | str) -> str:
    return (Path(folder) / "fake" / "table.md").read_text()


def results(folder: Path | str) -> dict:
    return json.loads((Path(folder) / "fake" / "results.json").read_text())


def fake(tmp_path: Path, **changes) -> Benchmark:
    from dataclasses import replace

    if not (tmp_path / "fake.py").exists():
        (tmp_path / "fake.py").write_text(FAKE)
    return replace(scoring.load_module(tmp_path / "fake.py").BENCHMARKS["fake"], **changes)


# ---------------------------------------------------------------- a whole run of the tiny VLM


def test_a_killed_run_ends_with_the_same_bytes(place, capsys):
    environment = os.environ | {"FAKE_SLEEP": "0.1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "eval/run.py"), *OPTIONS, "--run-name", "killed"]
    path = place / "out/killed/fake/predictions.jsonl"
    with open(place / "log", "wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    evaluate(*OPTIONS, "--run-name", "whole")  # meanwhile
    deadline = time.monotonic() + 120
    while not (path.exists() and path.read_bytes().count(b"\n") >= 4):  # in the middle of the second batch of three
        assert time.monotonic() < deadline and process.poll() is None, (place / "log").read_text()
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    whole, left = written("out/whole"), path.read_bytes()
    assert 4 <= left.count(b"\n") < 8 and whole["predictions.jsonl"].startswith(left[: left.rfind(b"\n") + 1])
    with open(path, "ab") as file:
        file.write(b'{"id": "q7", "resp')  # a torn line
    capsys.readouterr()
    evaluate("--resume", "out/killed")  # with the options of that run
    assert written("out/killed") == whole
    shown = capsys.readouterr()
    assert f"{left.count(chr(10).encode())} of 8 rows are there already" in shown.err
    assert shown.out.startswith(whole["table.md"].decode()) and "8 of 8 rows" in shown.err

    # Everything is there: nothing is asked, and the bytes stay.
    evaluate(*OPTIONS, "--run-name", "killed")
    assert written("out/killed") == whole
    found = results("out/whole")
    check_results(found, [json.loads(line) for line in whole["predictions.jsonl"].splitlines()])

    # A changed setting is refused with one sentence, and changes nothing.
    changes = ((("--k", "3"), "k (2, now 3)"), (("--seed", "5"), "seed (0, now 5)"), (("--limit", "4"), "limit"),
               (("--prompt", "{question}"), "prompt ("), (("--scoring", "lmms-eval"), "scoring"))  # fmt: skip
    for words, what in changes:
        text = sentence_of(evaluate, *OPTIONS, "--run-name", "killed", *words)
        assert f"out/killed/fake was begun with another {what}" in text and "--run-name" in text
    write_lines(place / "rows.jsonl", [row(number, answer="3") for number in range(8)])
    assert "another content of the data;" in sentence_of(evaluate, *OPTIONS, "--run-name", "killed")
    assert written("out/killed") == whole and json.loads(Path("out/killed/options.json").read_text())["k"] == 2


def check_results(found: dict, records: list[dict]) -> None:
    """Every number of results.json from the lines of predictions.jsonl."""
    assert [r["id"] for r in records] == ["q0", "q4", "q1", "q5", "q2", "q6", "q3", "q7"]  # by picture
    assert all(len(r["responses"]) == len(r["results"]) == 2 and r["row"]["image"].startswith("p") for r in records)
    marks = {r["id"]: [result["score"] for result in r["results"]] for r in records}
    assert found["scores"] == marks and found["rows"] == 8 and found["k"] == 2
    head = found["lines"][0]
    assert head["name"] == "overall" and head["value"] == pytest.approx(100 * sum(map(sum, marks.values())) / 16)
    assert head["pass@k"] == pytest.approx(100 * sum(map(max, marks.values())) / 8)
    assert head["interval"][0] <= head["value"] <= head["interval"][1]
    lengths = [len(text) * (not result["undecided"]) for r in records
               for text, result in zip(r["responses"], r["results"], strict=True)]  # fmt: skip
    assert found["lines"][3]["name"] == "characters" and found["lines"][3]["value"] == pytest.approx(sum(lengths) / 16)
    undecided = [result["undecided"] for r in records for result in r["results"]]
    assert found["undecided"] == sum(undecided) / 16
    assert found["truncated"] == sum(flag for r in records for flag in r["truncated"]) / 16
    assert found["pass"]["2"] == head["pass@k"] / 100 and found["pass"]["1"] == pytest.approx(head["value"] / 100)
    assert found["settings"]["frames"] == 16 and found["settings"]["max_pixels"] and found["versions"]["torch"]
    assert re.fullmatch("[0-9a-f]{16}", found["settings"]["prompt_hash"]) and found["scoring"] == "official"


def test_answers_depend_on_the_row_alone(place, monkeypatch):
    """Sampling is seeded per row: another batch size, order or selection gives the same answers."""
    evaluate(*OPTIONS, "--run-name", "three")
    encoded_images = []
    from common.vlm import VLM

    real = VLM.encode_distinct
    monkeypatch.setattr(
        VLM, "encode_distinct", lambda self, images: encoded_images.append(len(images)) or real(self, images)
    )
    write_lines(place / "other.jsonl", [row(number) for number in (7, 3, 1, 5)])
    evaluate(*OPTIONS, "--data", "other.jsonl", "--batch", "4", "--run-name", "four")
    assert encoded_images == [2]  # four questions about two pictures

    def answers(name: str) -> dict[str, list[str]]:
        lines = written(f"out/{name}")["predictions.jsonl"].splitlines()
        return {record["id"]: record["responses"] for record in map(json.loads, lines)}

    three, four = answers("three"), answers("four")
    assert list(four) == ["q7", "q3", "q1", "q5"] and all(three[key] == four[key] for key in four)
    assert any(a != b for a, b in three.values())
    evaluate(*OPTIONS, "--seed", "1", "--run-name", "seed")
    assert answers("seed") != three


def test_greedy_by_default_and_a_second_writer_is_refused(place, monkeypatch):
    seen = []

    def answer_batch(vlm, name, benchmark, source, batch, rule, sampling, bad_rows):
        seen.append(sampling)
        return [{"id": q.id, "row": q.row, "responses": ["3"], "truncated": [False], "lengths": [1],
                 "results": [asking.as_json(benchmark.score(q.row, "3", rule))]} for q in batch]  # fmt: skip

    monkeypatch.setattr(asking, "answer_batch", answer_batch)
    monkeypatch.setattr("common.training.load_model", lambda args: SimpleNamespace(
        min_pixels=1, max_pixels=2, device="cpu", dtype="torch.float32"))  # fmt: skip
    words = ("--benchmarks", "fake.py:fake", "--data", "fake=rows.jsonl", "--out", "out", "--run-name", "a")
    evaluate(*words)
    assert {(s.k, s.temperature, s.max_new_tokens, s.prompt) for s in seen} == {(1, 0.0, 24, "{question}")}
    assert results("out/a")["lines"][0]["value"] == 12.5 and "greedy" in table("out/a")
    assert "pass@" not in table("out/a")
    path = Path("out/a/fake/predictions.jsonl")
    with asking.opened_alone(path):
        assert "another run is writing out/a/fake/predictions.jsonl" in sentence_of(evaluate, *words)
    path.write_bytes(path.read_bytes().replace(b'"id": "q1"', b'"id": "q2"'))
    assert "line 3 holds the row 'q2', which does not belong there" in sentence_of(evaluate, *words)
    path.write_bytes(b"{}\n" + path.read_bytes())
    assert "line 1 is damaged" in sentence_of(evaluate, *words)
    Path("out/a/fake/settings.json").write_text("[")
    assert "settings.json is damaged" in sentence_of(evaluate, *words)
    Path("out/a/fake/settings.json").unlink()
    assert "no settings.json" in sentence_of(evaluate, *words)
    path.unlink()
    evaluate(*words, "--seed", "7")  # nothing was answered, so that anything may change

    class Full(io.BytesIO):
        def write(self, data):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(asking, "opened_alone", lambda path: Full())
    text = sentence_of(evaluate, *words[:-1], "full")
    assert "out/full/fake/predictions.jsonl" in text and "the disk is full" in text


def test_one_failing_benchmark_does_not_stop_the_others(place, monkeypatch, capsys):
    def fails():
        raise SightRLError("rows.jsonl row 3 is broken; mend it.")

    found = {"benchmark": "b", "metric": "m", "scoring": "official", "rows": 5,
             "lines": [{"value": 50.0, "interval": (40.0, 60.0)}]}  # fmt: skip
    for name in ("b", "c"):
        (place / name).mkdir()
        (place / name / "table.md").write_text(f"the table of {name}")
    work = [("a", fails), ("b", lambda: found), ("c", lambda: found | {"benchmark": "c"})]
    assert "1 of 3 benchmarks failed as said above: a." in sentence_of(tasks.report, work, place)
    shown = capsys.readouterr()
    assert "error: a: rows.jsonl row 3" in shown.err and "the table of b" in shown.out
    assert "| c | m | official | 50.0 [40.0, 60.0] | 5 |" in (place / "table.md").read_text()


def test_the_world_is_asked_as_before(place, capsys):
    evaluate(
        "--benchmarks",
        "world",
        "--tasks",
        "count",
        "--limit",
        "2",
        "--k",
        "2",
        "--max-new-tokens",
        "40",
        "--out",
        "out",
    )
    [folder] = Path("out").iterdir()
    record = json.loads((folder / "eval.json").read_text())
    assert record["k"] == 2 and record["settings"]["temperature"] == 1.0 and len(record["records"]) == 6
    text = (folder / "table.md").read_text()
    assert text.splitlines()[2] == "| | test | test_combo | test_counter | all | pass@2 |"
    assert "| count |" in text and "6 questions, mean of 2 answers each" in text and text in capsys.readouterr().out
    assert "second − first" in summary.compare_runs(folder, folder / "eval.json")


# ---------------------------------------------------------------- options


@pytest.mark.parametrize(("words", "names"), [
    (("mathvista,mathverse",), ["mathvista", "mathverse"]),
    (("a,", "b", "a"), ["a", "b"]),
    (("world,jsonl:my.jsonl,pictures", "x"), ["world", "jsonl:my.jsonl,pictures", "x"]),
    (("hf:some/name,config",), ["hf:some/name,config"]),
])  # fmt: skip
def test_names_are_parted_at_blanks_and_commas(words, names):
    assert run.names_in(words) == names


def test_names_and_places_that_mean_nothing(place, capsys):
    assert "there is no benchmark 'nothing'; there are world" in sentence_of(run.choose, ["nothing"])
    near = sentence_of(run.choose, ["charades"])
    assert "'charades'; did you mean charades_sta or chartqa? --list shows all." in near
    assert "there is no benchmark 'fake.py:other'" in sentence_of(run.choose, ["fake.py:other"])
    assert "gone.py cannot be used (FileNotFoundError" in sentence_of(run.choose, ["gone.py"])
    chosen, forms = run.choose(["fake.py", "world", "jsonl:a.jsonl,b"])
    assert list(chosen) == ["fake"] and forms == ["world", "jsonl:a.jsonl,b"]
    assert run.names_in((" a , b",)) == ["a", "b"] and "--list" in sentence_of(run.names_in, (",",))
    assert tasks.places_of(["a"], ("x=y.tsv",)) == {"a": "x=y.tsv"}  # a name with an equals sign
    assert tasks.places_of(["a", "b"], ("b=x=y.tsv", "a=hf:z")) == {"b": "x=y.tsv", "a": "hf:z"}
    assert "write NAME=rows.tsv" in sentence_of(tasks.places_of, ["a", "b"], ("rows.tsv",))
    for words in (("--k", "0"), ("--limit", "-1"), ("--frames", "0"), ("--batch", "0"), ("--top-p", "0"),
                  ("--temperature", "-1"), ("--temperature", "nan"), ("--prompt", "no mark")):  # fmt: skip
        assert words[0] in sentence_of(evaluate, *words)
    assert "no run is there" in sentence_of(run.parse, ["--resume", "nowhere"])
    assert "fake has no 'vlmevalkit' scoring; it has official, lmms-eval." in sentence_of(
        evaluate, *OPTIONS, "--scoring", "vlmevalkit")  # fmt: skip
    assert "needs one benchmark" in sentence_of(evaluate, "--predictions", "x.jsonl", "--benchmarks", "world")


def blocks(kind: str) -> str:
    """What stands in the text's code blocks of a kind."""
    text = (ROOT / "docs/benchmarks.md").read_text()
    return "".join(re.findall(rf"```{kind}\n(.*?)```", text, re.DOTALL))


def test_commands_in_the_text_are_understood():
    commands = [line.split("  #")[0].strip() for line in blocks("bash").splitlines() if "run.sh eval" in line]
    assert len(commands) > 8
    known = {"world", "my_bench.py", *scoring.find_benchmarks()[0]}
    for command in commands:
        args = tyro.cli(run.Args, args=shlex.split(command)[2:])
        run.check(args)
        names = run.names_in(args.benchmarks)
        assert names and known.issuperset(names), command
        assert set(tasks.places_of(names, args.data)) <= known


def test_the_benchmark_of_the_text_works(tmp_path):
    (tmp_path / "my_bench.py").write_text(blocks("python"))
    (tmp_path / "rows.jsonl").write_text(blocks("json"))
    (tmp_path / "pictures").mkdir()
    picture().save(tmp_path / "pictures/1.png")
    [(name, benchmark)] = scoring.load_module(tmp_path / "my_bench.py").BENCHMARKS.items()
    source = rows.open_rows(name, benchmark, str(tmp_path / "rows.jsonl"))
    [question], skipped = asking.survey(name, benchmark, source, "official", None, "{question}", "stop")
    assert question.text == "<image>How many stars are there? Write the number alone." and not skipped
    results = [benchmark.score(source[0], text, "official") for text in ("3.", "4")]
    lines = benchmark.summarise([source[0]] * 2, results, "official")
    assert [(line.name, line.value) for line in lines] == [("overall", 50.0), ("kind: bright", 50.0)]


# ---------------------------------------------------------------- where rows come from


def hub_parquet(path: Path, group: int = 2) -> Path:
    """Five rows as `datasets` publishes them: embedded pictures, a class label, lists, structs, NaN."""
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    columns = {"question": pa.array([f"Q{n}" for n in range(5)]), "answer": pa.array(list("01234")),
               "kind": pa.array([0, 1, 0, 1, 0]), "number": pa.array([1.0, float("nan"), 2.0, None, 3.0]),
               "options": pa.array([["x", "y"]] * 5), "meta": pa.array([{"grade": n} for n in range(5)]),
               "image": pa.array([{"bytes": encoded(picture(n)), "path": "a.png"} for n in range(5)], image),
               "more": pa.array([[{"bytes": encoded(picture(9)), "path": None}] * 2] * 5, pa.list_(image)),
               "name": pa.array([f"n{n}" for n in range(5)])}  # fmt: skip
    features = {"info": {"features": {"kind": {"names": ["left", "right"], "_type": "ClassLabel"}}}}
    table = pa.table(columns).replace_schema_metadata({"huggingface": json.dumps(features)})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=group)
    return path


def test_parquet_as_published(tmp_path):
    benchmark = fake(tmp_path)
    source = rows.open_rows("fake", benchmark, str(hub_parquet(tmp_path / "test.parquet")))
    assert len(source) == 5 and source.where(3) == f"{tmp_path / 'test.parquet'} row 4"
    for number in (4, 0, 3):  # in any order
        assert source[number]["answer"] == str(number) and source[number]["kind"] == ("left", "right")[number % 2]
    first, second = source[0], source[1]
    assert second["number"] is None and first["number"] == 1.0 and first["meta"] == {"grade": 0}
    assert isinstance(first["image"], Image.Image) and first["image"].size == (56, 56)
    [(decoded, second_of)] = source.pictures(first["image"], "here", 4)
    assert decoded.tobytes() == picture(0).tobytes() and second_of is None
    assert [image.size for image in first["more"]] == [(56, 56)] * 2
    bare = {name: rows.light(cell) for name, cell in first.items()}
    assert bare["image"] is None and bare["more"] == [None, None] and json.dumps(bare)
    assert (
        rows.picture_key(source[2]["image"]) == rows.picture_key(source[2]["image"]) != rows.picture_key(first["image"])
    )


def test_a_folder_as_downloaded(tmp_path):
    """The card says which files are the split and configuration; without a card the names do."""
    benchmark = fake(tmp_path, source="hf:some/name,mini", split="testmini")
    folder = tmp_path / "data"
    for name in ("data/testmini-00000-of-00002", "data/testmini-00001-of-00002", "other", "testmini_text_only"):
        hub_parquet(folder / f"{name}.parquet")
    (folder / "annot_testmini.json").write_text("[]")
    assert len(rows.open_rows("fake", benchmark, str(folder))) == 10
    card = "---\nconfigs:\n- config_name: mini\n  data_files:\n  - split: testmini\n    path: other*\n---\ntext"
    (folder / "README.md").write_text(card)
    source = rows.open_rows("fake", benchmark, str(folder))
    assert len(source) == 5 and "other.parquet row 1" in source.where(0)
    (folder / "README.md").write_text("---\n: : no yaml [\n---")
    wrong = fake(tmp_path, split="validation")
    assert "has no file of the split 'validation' (it holds " in sentence_of(rows.open_rows, "fake", wrong, str(folder))
    text = fake(tmp_path, split="text_only")  # a word of a name, where no name is the split's
    assert "testmini_text_only.parquet" in rows.open_rows("fake", text, str(folder)).where(0)


def test_text_tables_with_base64_pictures(tmp_path):
    """As VLMEvalKit publishes them: a picture in base64, a list of two, a reference to another row's picture."""
    texts = [base64.b64encode(encoded(picture(n, (300, 200)), "JPEG")).decode() for n in range(2)]
    table = "index\tname\tquestion\tanswer\timage\thint\n"
    table += f'0\ta\t"two\nlines"\t1\t{texts[0]}\t\n1\tb\tQ\t2\t0\t\n2\tc\tQ\t3\t{texts!r}\tlook\n'
    path = tmp_path / "fake.tsv"
    path.write_text(table)
    source = rows.open_rows("fake", fake(tmp_path), str(path))
    first, second, third = source[0], source[1], source[2]
    assert first["question"] == "two\nlines" and first["hint"] is None and third["hint"] == "look"
    assert second["image"] == first["image"] and third["image"] == texts
    assert [source.pictures(part, "w", 1)[0][0].size for part in [first["image"], *third["image"]]] == [(300, 200)] * 3
    assert rows.light(first["image"]) is None and rows.light("word " * 1000) == "word " * 1000
    path.write_text("index\tanswer\n1\t2\t3\n")
    assert "row 1 has more cells" in sentence_of(rows.open_rows, "fake", fake(tmp_path), str(path))
    path.write_bytes(b"index\tanswer\n1\t\xff\xfe\n")
    assert "cannot be read as tsv" in sentence_of(rows.open_rows, "fake", fake(tmp_path), str(path))


@pytest.mark.parametrize("form", ["list", "dictionary", "lines", "saved"])
def test_json_and_saved_datasets(tmp_path, form):
    path = tmp_path / "test.json"
    if form == "list":
        path.write_text(json.dumps([row(0), row(1) | {"score": float("nan")}]))
    elif form == "dictionary":
        path.write_text(json.dumps({"q0": row(0), "q1": row(1)}))
    elif form == "lines":
        write_lines(path, [row(0), row(1)])
    else:
        datasets = pytest.importorskip("datasets")
        path = tmp_path / "saved"
        datasets.DatasetDict({"test": datasets.Dataset.from_list([row(0), row(1)])}).save_to_disk(str(path))
    source = rows.open_rows("fake", fake(tmp_path), str(path))
    assert len(source) == 2 and source[1]["question"] == "How many stars are there? 1"
    assert source[1].get("score") is None and (form != "dictionary" or source[1]["id"] == "q1")


def test_a_source_of_two_splits_and_one_elsewhere(tmp_path):
    for split in ("image", "non_image"):
        write_lines(tmp_path / "data" / f"{split}.jsonl", [row(0, name=split)])
    source = rows.open_rows("fake", fake(tmp_path, split="image+non_image"), str(tmp_path / "data"))
    assert [source[n]["name"] for n in range(len(source))] == ["image", "non_image"]
    text = sentence_of(rows.open_rows, "fake", fake(tmp_path, source="github:Some/Code"))
    assert "published at https://github.com/Some/Code; fetch them and give --data fake=PATH" in text


def test_a_layout_of_its_own(tmp_path):
    benchmark = fake(tmp_path, read=lambda path: [{"question": path.name, "answer": "1", "image": None}])
    (tmp_path / "instances.json").write_text("{}")
    assert rows.open_rows("fake", benchmark, str(tmp_path / "instances.json"))[0]["question"] == "instances.json"


def test_absent_data_names_the_command(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    text = sentence_of(rows.open_rows, "fake", fake(tmp_path, source="hf:nobody/no-such-set,mini"))
    assert "hf download --repo-type dataset nobody/no-such-set --local-dir no-such-set and give --data " in text
    assert "fake=no-such-set" in text
    folder = tmp_path / "snapshot"
    hub_parquet(folder / "test.parquet")
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *a, **k: str(folder))
    assert len(rows.open_rows("fake", fake(tmp_path, source="hf:nobody/no-such-set"))) == 5  # what hf download cached
    assert "gone.tsv does not exist" in sentence_of(rows.open_rows, "fake", fake(tmp_path), "gone.tsv")
    (tmp_path / "empty.jsonl").write_text("\n")
    assert "has no rows for fake" in sentence_of(rows.open_rows, "fake", fake(tmp_path), str(tmp_path / "empty.jsonl"))
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 no")
    text = sentence_of(rows.open_rows, "fake", fake(tmp_path), str(tmp_path / "broken.parquet"))
    assert "cannot be read as parquet" in text
    (tmp_path / "x.bin").write_bytes(b"")
    assert "has the ending '.bin', and known are .csv" in sentence_of(
        rows.open_rows, "fake", fake(tmp_path), str(tmp_path / "x.bin")
    )


def test_a_damaged_part_of_a_file(tmp_path):
    path = hub_parquet(tmp_path / "test.parquet")
    data = path.read_bytes()
    path.write_bytes(data[:200] + b"\xff" * 400 + data[600:])
    source = rows.open_rows("fake", fake(tmp_path), str(path))
    assert "test.parquet row 1 cannot be read" in sentence_of(source.__getitem__, 0)


BAD = {
    "missing": (row(0) | {"image": "gone.png"}, "column 'image': the picture gone.png does not exist in "),
    "outside": (row(0) | {"image": "../secret.png"}, "column 'image': the picture ../secret.png lies outside "),
    "absolute": (row(0) | {"image": "/etc/passwd"}, "the picture /etc/passwd lies outside "),
    "web": (row(0) | {"image": "https://x.org/a.png"}, "the picture https://x.org/a.png is a web address"),
    "no picture": (row(0) | {"image": "rows.jsonl"}, "cannot be read (no JPEG"),
    "empty": (row(0) | {"image": None}, "holds no picture but None"),
    "no answer": (row(0) | {"answer": None}, "the column 'answer' is empty; fill it in, or leave such rows out"),
    "no column": ({"question": "Q", "name": "q0"}, "has no column 'answer', which fake needs (it has question, name)"),
    "no row": (["a"], "is no object with named columns"),
    "stumbles": (row(0) | {"question": 7}, "the benchmark's file stumbles over it (AttributeError"),
    "no name": ({k: v for k, v in row(0).items() if k != "name"}, "stumbles over it (KeyError: 'name')"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_row_stops_with_its_number_or_is_left_out(place, kind):
    bad, problem = BAD[kind]
    picture(1).save(place / "bad.png")
    write_lines(place / "bad.jsonl", [row(1), bad, row(2)])
    source, benchmark = rows.open_rows("fake", fake(place), "bad.jsonl"), fake(place)
    vlm = SimpleNamespace(prompt=lambda text, images, system: (text, len(images)))
    sampling = asking.Sampling(1, 0.0, 1.0, 4, 0, 4, "{question}", "")

    def go(bad_rows: str) -> tuple[list[str], list[str]]:
        questions, skipped = asking.survey("fake", benchmark, source, "official", None, "{question}", bad_rows)
        made = []
        for question in questions:
            try:
                asking.make_prompt(vlm, benchmark, source, question, sampling, {})
                made.append(question.id)
            except SightRLError as error:
                if bad_rows == "stop":
                    raise
                skipped.append(str(error))
        return made, skipped

    text = sentence_of(go, "stop")
    assert "bad.jsonl row 2" in text and problem in text
    assert go("skip") == (["q1", "q2"], [text])


def test_rows_that_cannot_be_asked_are_counted(place):
    """A row without an answer shows at once, a picture that breaks off when it is decoded."""
    whole = encoded(picture(1, (200, 200)).effect_spread(90))
    (place / "half.png").write_bytes(whole[: len(whole) // 2])
    half = [row(number, image="half.png") for number in (2, 6)]
    write_lines(place / "bad.jsonl", [row(1), half[0], row(3, answer=""), row(5), half[1]])
    words = ("--benchmarks", "fake.py", "--data", "bad.jsonl", "--out", "out", "--max-new-tokens", "8")
    assert "row 3: the column 'answer' is empty" in sentence_of(evaluate, *words)
    evaluate(*words, "--bad-rows", "skip", "--batch", "2", "--run-name", "bad")
    found, lines = results("out/bad"), written("out/bad")["predictions.jsonl"].splitlines()
    assert found["rows"] == 2 and list(found["scores"]) == ["q1", "q5"]
    assert [problem.partition(":")[0] for problem in found["skipped"]] == [
        "bad.jsonl row 3", "bad.jsonl row 2 column 'image'", "bad.jsonl row 5 column 'image'"]  # fmt: skip
    assert [sorted(json.loads(line)) == ["id", "skipped"] for line in lines] == [False, False, True, True]
    assert "3 rows that cannot be used are left out; the first: bad.jsonl row 3" in table("out/bad")
    write_lines(place / "bad.jsonl", [row(2, image="half.png")])
    assert "column 'image': the picture " in sentence_of(evaluate, *words)
    text = sentence_of(evaluate, *words, "--bad-rows", "skip", "--run-name", "none")
    assert "no row of fake can be used; the first problem: bad.jsonl row 1 column 'image'" in text


def test_the_same_name_twice_is_told_apart(place):
    write_lines(place / "twice.jsonl", [row(1), row(1, answer="2"), row(1)])
    source = rows.open_rows("fake", fake(place), "twice.jsonl")
    questions, _ = asking.survey("fake", fake(place), source, "official", None, "{question}", "stop")
    assert [q.id for q in questions] == ["q1", "q1#2", "q1#3"]
    answered = [scoring.Answered(q.id, q.row, ["1"], [Result(1.0)], "", []) for q in questions]
    assert summary.repeated(answered) == 2


def test_scorers_get_pictures_and_the_size_the_model_saw(place):
    """A picture named by its path is opened for the scorer; a table has neither, but the size stays."""
    seen = []

    def score(row, response, rule):
        seen.append((row["image"].size, row.get("input_width")))
        return Result(1.0)

    benchmark = fake(place, score=score)
    source = rows.open_rows("fake", benchmark, "rows.jsonl")
    questions, _ = asking.survey("fake", benchmark, source, "official", 2, "{question}", "stop")
    assert seen == [((56, 56), None)] * 2 and questions[0].row["image"] == "p0.png"
    from common.vlm import load_vlm

    sampling = asking.Sampling(1, 0.0, 1.0, 2, 0, 3, "{question}", "")
    vlm = load_vlm("tiny", max_pixels=28 * 56)
    records = asking.answer_batch(vlm, "fake", benchmark, source, questions, "official", sampling, "stop")
    side = records[0]["row"]["input_width"]
    assert seen[2:] == [((56, 56), side)] * 2 and side < 56 and records[0]["row"]["input_height"] <= 28 * 56 / side


def test_answers_that_are_votes(place):
    """With Benchmark.again every answer is a row of its own, with a prompt and a score of its own."""
    benchmark = fake(place, again=lambda row, vote: row | {"vote": vote},
                     prompt=lambda row, rule: f"vote {row['vote']}",
                     identify=lambda row, number: f"{row['name']} {row['vote']}")  # fmt: skip
    source = rows.open_rows("fake", benchmark, "rows.jsonl")
    questions, _ = asking.survey("fake", benchmark, source, "official", 2, "{question}", "stop", votes=3)
    assert [q.id for q in questions] == ["q0 0", "q0 1", "q0 2", "q1 0", "q1 1", "q1 2"]
    assert questions[2].text == "<image>vote 2" and questions[2].row["vote"] == 2
    args = run.Args(k=3, data=("rows.jsonl",), limit=2)
    task = tasks.prepare(args, "fake", benchmark, place / "fake.py", "rows.jsonl")
    assert len(task.questions) == 6 and task.sampling.k == 1 and task.sampling.temperature == 1.0
    given = [predictions.Prediction("row 1", ["0", "1"], {k: v for k, v in row(0).items() if k != "image"})]
    answered, _, _ = predictions.score_predictions("fake", benchmark, "official", given, None, place, None, "stop")
    assert [(item.id, item.row["vote"], item.results[0].score) for item in answered] == [
        ("q0 0", 0, 1.0),
        ("q0 1", 1, 0.0),
    ]


def test_prompts_with_marks(place):
    benchmark = fake(place, prompt=lambda row, rule: "<image> and <image>", images=lambda row: ["p0.png", "p1.png"])
    source = rows.open_rows("fake", benchmark, "rows.jsonl")
    [question] = asking.survey("fake", benchmark, source, "official", 1, "Look. {question}", "stop")[0]
    assert question.text == "Look. <image> and <image>"
    short = fake(place, prompt=lambda row, rule: "<image> and <image>")
    assert "its prompt has 2 <image> marks for 1 pictures" in sentence_of(
        asking.survey, "fake", short, source, "official", 1, "{question}", "stop")  # fmt: skip
    groups = [asking.Question(n, None, str(n), {}, "", key, "") for n, key in enumerate("aabcbbbbbc")]
    assert [[q.number for q in batch] for batch in asking.plan(groups, 4)] == [[0, 1], [2, 4, 5, 6], [7, 8, 3, 9]]


# ---------------------------------------------------------------- videos


def gif(path: Path, count: int = 10) -> Path:
    shots = [picture(n) for n in range(count)]
    shots[0].save(path, save_all=True, append_images=shots[1:], duration=500, loop=0)
    return path


def test_frames_of_folders_and_animations(tmp_path):
    for number in range(12):
        picture(number % 10, (60 + number, 56)).save(tmp_path / f"frame_{number}.png")
    (tmp_path / "notes.txt").write_text("no picture")
    images, seconds = frames.sample_frames(tmp_path, 5)
    assert [image.width - 60 for image in images] == [0, 2, 5, 8, 11] and seconds is None  # 9 before 10
    assert len(frames.sample_frames(tmp_path, 50)[0]) == 12
    (tmp_path / "none").mkdir()
    assert "holds no pictures" in sentence_of(frames.sample_frames, tmp_path / "none", 5)
    images, seconds = frames.sample_frames(gif(tmp_path / "a.gif"), 3)
    assert seconds == [0.0, 2.0, 4.5] and [image.mode for image in images] == ["RGB"] * 3
    assert images[0].getpixel((6, 12)) != images[2].getpixel((6, 12))
    (tmp_path / "b.gif").write_bytes(b"GIF89a")
    assert "b.gif cannot be read" in sentence_of(frames.sample_frames, tmp_path / "b.gif", 3)


def test_video_files_need_pyav(tmp_path, monkeypatch):
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"no video")
    monkeypatch.setitem(sys.modules, "av", None)
    text = sentence_of(frames.sample_frames, path, 4)
    assert "pip install av" in text and f"ffmpeg -i {path} {tmp_path / 'clip'}/%06d.jpg" in text
    (tmp_path / "clip").mkdir()  # as the message says
    picture(1).save(tmp_path / "clip/000001.jpg")
    assert len(frames.sample_frames(path, 4)[0]) == 1
    path.unlink()
    source = rows.Source([("rows", [])], tmp_path)
    assert source.video("clip.mp4", "row 1") == tmp_path / "clip"


def test_video_files_with_pyav(tmp_path):
    av = pytest.importorskip("av")
    path = tmp_path / "clip.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 64
        for number in range(50):
            shade = Image.new("RGB", (64, 64), (5 * number,) * 3)
            container.mux(stream.encode(av.VideoFrame.from_image(shade)))
        container.mux(stream.encode())
    images, seconds = frames.sample_frames(path, 6)
    assert seconds == pytest.approx([0.0, 0.9, 1.9, 2.9, 3.9, 4.9], abs=0.05)
    assert [image.getpixel((30, 30))[0] for image in images] == pytest.approx([0, 45, 95, 145, 195, 245], abs=6)
    path.write_bytes(b"no video")
    assert "clip.mp4 cannot be read" in sentence_of(frames.sample_frames, path, 4)


def test_a_video_is_asked_as_its_frames(place):
    (place / "media/videos").mkdir(parents=True)
    gif(place / "media/videos/clip.gif")
    write_lines(place / "rows.jsonl", [row(0, image="clip", video=True, times=True, question="Before <image> after?")])
    benchmark = fake(place)
    source = rows.open_rows("fake", benchmark, "rows.jsonl", "media")
    [question] = asking.survey("fake", benchmark, source, "official", None, "{question}", "stop")[0]
    vlm = SimpleNamespace(prompt=lambda text, images, system: (text, len(images), system))
    sampling = asking.Sampling(1, 0.0, 1.0, 4, 0, 3, "{question}", "be brief")
    made = asking.make_prompt(vlm, benchmark, source, question, sampling, {})
    assert made == ("Before 0.0 s: <image>\n2.0 s: <image>\n4.5 s: <image>\n after?", 3, "be brief")
    (place / "media/still").mkdir()
    picture(0).save(place / "media/still/1.png")
    assert "does not tell the seconds" in sentence_of(source.pictures, Video("still", True), "row 1", 3)
    assert len(source.pictures(Video("still"), "row 1", 3)) == 1
    assert "the video ../clip lies outside" in sentence_of(source.pictures, Video("../clip"), "row 1", 3)
    assert "give its folder with --media" in sentence_of(source.pictures, Video("none"), "row 1", 3)
    assert "--media nowhere is not a folder" in sentence_of(rows.open_rows, "fake", benchmark, "rows.jsonl", "nowhere")


# ---------------------------------------------------------------- answers made elsewhere

TEXTS = ["4 stars", "There is 1.", "none", "3", "4", "9", "1", "2"]  # right: 1, 3, 4, 6, 7; undecided: 2


def forms(place: Path) -> dict[str, Path]:
    """The same eight answers as every program writes them."""
    docs = [{k: v for k, v in row(n).items() if k != "image"} for n in range(8)]
    table = [{"index": n, **docs[n], "prediction": text} for n, text in enumerate(TEXTS)]  # fmt: skip
    (place / "kit.json").write_text(json.dumps(table))
    (place / "columns.json").write_text(
        json.dumps({name: {str(n): r[name] for n, r in enumerate(table)} for name in table[0]})
    )
    lines = ["\t".join(table[0]), *("\t".join(str(cell) for cell in r.values()) for r in table)]
    (place / "kit.tsv").write_text("\n".join(lines) + "\n")
    lmms = [{"doc_id": n, "doc": docs[n], "target": docs[n]["answer"], "resps": [[text]], "filtered_resps": [text]}
            for n, text in enumerate(TEXTS)]  # fmt: skip
    ours = [{"id": f"q{n}", "row": docs[n] | {"image": None}, "responses": [text]} for n, text in enumerate(TEXTS)]
    return {"kit.json": place / "kit.json", "columns.json": place / "columns.json", "kit.tsv": place / "kit.tsv",
            "lmms": write_lines(place / "samples_fake.jsonl", lmms[::-1]),
            "ours": write_lines(place / "predictions.jsonl", [*ours, {"id": "q9", "skipped": "broken"}])}  # fmt: skip


def score_with(path: Path, *words: str) -> dict:
    evaluate("--predictions", str(path), "--benchmarks", "fake.py", "--out", "out", "--run-name", "scored", *words)
    return results("out/scored")


@pytest.mark.parametrize("form", ["kit.json", "columns.json", "kit.tsv", "lmms", "ours"])
@pytest.mark.parametrize("data", [(), ("--data", "rows.jsonl")])
def test_predictions_in_every_form(place, form, data):
    found = score_with(forms(place)[form], *data)
    assert {key: marks[0] for key, marks in found["scores"].items()} == {
        f"q{n}": float(n in (1, 3, 4, 6, 7)) for n in range(8)}  # fmt: skip
    assert found["lines"][0]["value"] == 62.5 and found["undecided"] == 1 / 8 and found["missing"] == 0
    assert "12.5% of the responses; --judge decides them." in table("out/scored")
    assert found["model"].endswith(forms(place)[form].name) and "torch" in found["versions"]
    assert [line["value"] for line in found["lines"][1:3]] == [50.0, 75.0]


def test_other_scoring_and_a_part_of_the_rows(place):
    path = forms(place)["kit.tsv"]
    write_lines(place / "two.jsonl", [{"index": n, "prediction": f"{n % 5} of 7"} for n in (6, 2)])
    write_lines(place / "rows.jsonl", [row(n) | {"index": n} for n in range(8)])
    found = score_with(place / "two.jsonl", "--data", "fake=rows.jsonl", "--scoring", "lmms-eval")
    assert found["scores"] == {"q2": [1.0], "q6": [1.0]} and found["missing"] == 6 and found["scoring"] == "lmms-eval"
    assert "6 rows without a prediction are left out." in table("out/scored")
    assert "The published split has 8 rows: this is a part of it." in table("out/scored")
    assert score_with(place / "two.jsonl", "--data", "rows.jsonl")["scores"] == {"q2": [0.0], "q6": [0.0]}
    assert list(score_with(path, "--limit", "3")["scores"]) == ["q0", "q1", "q2"]
    by_id = place / "map.json"
    by_id.write_text(json.dumps({f"q{n}": text for n, text in enumerate(TEXTS)}))
    write_lines(place / "rows.jsonl", [row(n) | {"id": f"q{n}"} for n in reversed(range(8))])
    assert score_with(by_id, "--data", "rows.jsonl")["scores"]["q2"] == [0.0]
    evaluate("--predictions", "kit.tsv", "--benchmarks", "fake.py", "--out", "out")  # a folder of its own
    assert len(list(Path("out").glob("kit-*/fake/results.json"))) == 1


def test_several_answers_to_a_row(place):
    lines = [{"doc_id": n, "doc": {k: v for k, v in row(n).items() if k != "image"}, "resps": [["1", "2", "3", "4"]],
              "filtered_resps": ["1"]} for n in range(1, 5)]  # fmt: skip
    found = score_with(write_lines(place / "samples.jsonl", lines))
    assert found["k"] == 4 and found["lines"][0]["value"] == 25.0 and found["lines"][0]["pass@k"] == 100.0
    assert found["lines"][0]["interval"] == [25.0, 25.0]  # every row has the same mean
    assert found["pass"] == {"1": 0.25, "2": 0.5, "4": 1.0}
    assert "accuracy, avg@4 | pass@4 | rows |" in table("out/scored")


def workbook(cells: list[tuple]) -> SimpleNamespace:
    sheet = SimpleNamespace(iter_rows=lambda values_only: iter(cells))
    return SimpleNamespace(load_workbook=lambda path, read_only, data_only: SimpleNamespace(worksheets=[sheet]))


def test_excel_tables(place, monkeypatch):
    (place / "kit.xlsx").write_bytes(b"")
    cells = [("index", "name", "question", "answer", "kind", "prediction"), (0, "q0", "Q", "0", "a", 0),
             (1, "q1", "Q", "1", "b", None), (None,) * 6, (2, "q2", "Q", "2", "b", float("nan"))]  # fmt: skip
    monkeypatch.setitem(sys.modules, "openpyxl", workbook(cells))
    found = score_with(place / "kit.xlsx")
    assert found["scores"] == {"q0": [1.0], "q1": [0.0], "q2": [0.0]} and found["undecided"] == pytest.approx(2 / 3)
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    assert "run pip install openpyxl, or save the table as TSV" in sentence_of(score_with, place / "kit.xlsx")


@pytest.mark.skipif(importlib.util.find_spec("openpyxl") is None, reason="needs openpyxl")
def test_excel_tables_with_openpyxl(place):
    import importlib

    book = importlib.import_module("openpyxl").Workbook()
    for line in [("index", "name", "question", "answer", "kind", "prediction"), (0, "q0", "Q", "0", "a", 0)]:
        book.active.append(line)
    book.save(place / "kit.xlsx")
    assert score_with(place / "kit.xlsx")["scores"] == {"q0": [1.0]}


def wrong_predictions(place: Path) -> dict[str, tuple[list | str, str]]:
    table = json.loads(forms(place)["kit.json"].read_text())
    bare = [{"prediction": text} for text in TEXTS]
    moved = [{"question": row(n)["question"], "prediction": "1"} for n in (0, 2, 1, 3, 4, 5, 6, 7)]
    return {
        "same index": ([{"index": 1, "prediction": "a"}, {"index": 1, "prediction": "b"}], "same index '1' as"),
        "same doc_id": ([{"doc_id": 1, "resps": ["a"]}] * 2, "has the same doc_id '1' as"),
        "doc_id": ([{"doc_id": 99, "resps": ["a"]}], "has the doc_id 99, but there are 8 rows"),
        "no doc_id": ([{"doc_id": "x", "resps": ["a"]}], "which is no number"),
        "unknown id": ([{"id": "q77", "responses": ["a"]}], "has the id 'q77', which no row has"),
        "too few": (bare[:3], "has 3 predictions for 8 rows and no column that says which is which"),
        "moved": (moved, "row 2 is about 'How many stars are there? 2', but its row about 'How many stars"),
        "no column": ([{"text": "a"}], "has no column 'prediction' (it has text)"),
        "no object": (["a"], "row 1 is no object"),
        "empty": ([], "holds no predictions"),
        "uneven": (
            [{"id": f"q{n}", "responses": ["a"] * (1 + n % 2)} for n in range(8)],
            "different numbers of answers",
        ),
        "no answer": ([table[0] | {"answer": None}], "row 1: the column 'answer' is empty"),
        "broken": ('{"a": 1}\nnothing\n', "line 2 is not JSON"),
    }


@pytest.mark.parametrize("kind", ["same index", "same doc_id", "doc_id", "no doc_id", "unknown id", "too few", "moved",
                                  "no column", "no object", "empty", "uneven", "no answer", "broken"])  # fmt: skip
def test_predictions_that_cannot_be_used(place, kind):
    values, problem = wrong_predictions(place)[kind]
    path = place / "wrong.jsonl"
    path.write_text(values) if isinstance(values, str) else write_lines(path, values)
    write_lines(place / "rows.jsonl", [row(n) | ({"index": n} if kind == "same index" else {}) for n in range(8)])
    data = () if kind == "no answer" else ("--data", "rows.jsonl")
    assert problem in sentence_of(score_with, path, *data)


def test_files_that_are_no_predictions(place, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "is no file" in sentence_of(score_with, place / "gone.jsonl")
    (place / "kit.pkl").write_bytes(b"")
    assert "is a pickle, which can hold code" in sentence_of(score_with, place / "kit.pkl")
    text = sentence_of(score_with, write_lines(place / "bare.jsonl", [{"index": 0, "prediction": "a"}]))
    assert "has no column 'question'" in text and "hf download --repo-type dataset nobody/fake" in text
    (place / "out/scored/fake").mkdir(parents=True, exist_ok=True)
    (place / "out/scored/fake/predictions.jsonl").write_text("")
    assert "holds the answers of a model" in sentence_of(score_with, forms(place)["kit.tsv"])


def test_bad_rows_of_predictions_are_left_out(place):
    table = json.loads(forms(place)["kit.json"].read_text())
    table[3]["answer"] = None
    (place / "kit.json").write_text(json.dumps(table))
    found = score_with(place / "kit.json", "--bad-rows", "skip")
    assert found["rows"] == 7 and "kit.json row 4: the column 'answer' is empty" in found["skipped"][0]


JSON = st.recursive(st.none() | st.booleans() | st.floats() | st.text(max_size=8) | st.integers(-5, 5),
                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
                        st.sampled_from(["index", "id", "doc_id", "resps", "filtered_resps", "doc", "responses", "row",
                                         "prediction", "question", "answer", "name", "kind"]), inner, max_size=6),
                    max_leaves=12)  # fmt: skip


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(JSON, max_size=3))
def test_any_json_gives_results_or_one_sentence(tmp_path, values):
    path = write_lines(tmp_path / "any.jsonl", values)
    write_lines(tmp_path / "rows.jsonl", [row(0), row(1)])
    benchmark = fake(tmp_path)
    try:
        read = predictions.read_predictions(path)
        source = rows.open_rows("fake", benchmark, str(tmp_path / "rows.jsonl"))
        answered, _, missing = predictions.score_predictions(
            "fake", benchmark, "official", read, source, path, None, "stop"
        )
        assert len(answered) + missing == 2
    except SightRLError as error:
        assert str(error).endswith(".") and "\n" not in str(error)


# ---------------------------------------------------------------- the judge, tables


def test_the_judge_decides_what_no_rule_can(place, monkeypatch):
    asked = []

    def open_judge(args, folder):
        def ask(batch):
            asked.extend(messages[-1]["content"] for messages in batch)
            return [(i, "yes" if "Truth 2" in messages[-1]["content"] else "") for i, messages in enumerate(batch)]

        return Judge(ask, ["test"], folder / "judge_cache.jsonl")

    monkeypatch.setattr(tasks, "open_judge_of", open_judge)
    found = score_with(forms(place)["kit.tsv"], "--judge", "http://localhost:1/v1,model=m")
    assert asked == ["Truth 2: none"] and found["judge"] == {"asked": 1, "lost": 0, "about": ""}
    assert found["lines"][0]["value"] == 75.0 and found["rule_only"]["lines"][0]["value"] == 62.5
    assert found["undecided"] == 0 and found["rule_only"]["undecided"] == 1 / 8 and found["scores"]["q2"] == [1.0]
    text = table("out/scored")
    assert "| accuracy | without judge | rows |" in text and re.search(r"\| overall \| 75.0 \[.*\] \| 62.5 \[", text)
    assert "12.5% of the responses." in text and "asked about 1 responses; 0.0% stayed undecided" in text
    before = written_without_predictions()
    score_with(forms(place)["kit.tsv"], "--judge", "http://localhost:1/v1,model=m")
    assert len(asked) == 1 and written_without_predictions() == before  # out of the cache


def written_without_predictions() -> list[bytes]:
    return [(Path("out/scored/fake") / name).read_bytes() for name in ("results.json", "table.md")]


def test_a_wrong_judge_and_a_benchmark_without_one(place):
    path = forms(place)["kit.tsv"]
    assert "the judge 'nobody' is not understood" in sentence_of(score_with, path, "--judge", "nobody")
    silent = fake(place, judge_score=None)
    answered = [scoring.Answered("a", {}, ["x"], [Result(0.0, undecided=True)], "row 1", [])]
    same, count = scoring.ask_judge(silent, answered, "official", None)
    assert same == answered and count == 0 and summary.about_judge(silent, 0) == "this benchmark has no judge"


def test_tables_of_several_answers(tmp_path):
    """Linear lines get the interval of the rows' means; others the mean of the single tables' intervals."""

    def summarise(table, scored, rule):
        values = [result.score for result in scored]
        return [
            mean_line("mean", values),
            Line("squared", 100 * (sum(values) / len(values)) ** 2, len(values), (1.0, 2.0)),
        ]

    benchmark = fake(tmp_path, summarise=summarise)
    marks = [(1.0, 0.0), (0.0, 0.0), (1.0, 1.0), (0.0, 1.0)]
    answered = [
        scoring.Answered(str(n), {}, ["", ""], [Result(a), Result(b)], "", []) for n, (a, b) in enumerate(marks)
    ]
    mean, squared = scoring.lines("fake", benchmark, answered, "official")
    assert (mean["value"], mean["pass@k"]) == (50.0, 75.0)
    assert mean["interval"] == mean_line("", [0.5, 0.0, 1.0, 0.5]).interval
    assert (squared["value"], squared["pass@k"], squared["interval"]) == (25.0, 56.25, (1.0, 2.0))
    broken = fake(tmp_path, summarise=lambda *_: 1 / 0)
    assert "fake, 4 rows: the benchmark's file stumbles over it (ZeroDivisionError" in sentence_of(
        scoring.lines, "fake", broken, answered, "official")  # fmt: skip


@pytest.mark.parametrize("value", [1.5, -0.1, float("nan")])
def test_scores_beyond_0_to_1_are_refused(tmp_path, value):
    benchmark = fake(tmp_path, score=lambda row, response, rule: Result(value))
    assert "is not 0 to 1" in sentence_of(scoring.score, benchmark, {}, "", "official", "row 1")


def test_two_runs_are_compared_row_by_row(place):
    for name, texts in (("one", TEXTS), ("two", ["0", "1", "2", "3", "0", "0", "1", "none"])):
        write_lines(place / f"{name}.jsonl", [{k: v for k, v in row(n).items() if k != "image"} | {"prediction": text}
                                              for n, text in enumerate(texts)])  # fmt: skip
        evaluate("--predictions", f"{name}.jsonl", "--benchmarks", "fake.py", "--out", "out", "--run-name", name)
    text = summary.compare_runs(Path("out/one"), Path("out/two"))
    # One has 1, 3, 4, 6, 7 right; two has 0, 1, 2, 3, 5, 6: gained 0, 2, 5, lost 4, 7; binomial: 2 * P(X <= 2 of 5) = 1
    assert re.search(r"\| fake \| 62.5 \| 75.0 \| \+12.5 \[-\d+.\d, \+\d+.\d\] \| 8 \| 3 \| 2 \| 1 \|", text), text
    evaluate(
        "--predictions", "one.jsonl", "--benchmarks", "fake.py", "--out", "out", "--run-name", "part", "--limit", "5"
    )
    assert "fake: only 5 of 8 and 5 rows are in both." in summary.compare_runs(Path("out/one/fake"), Path("out/part"))
    evaluate("--predictions", "one.jsonl", "--benchmarks", "fake.py", "--out", "out", "--run-name", "lmms",
             "--scoring", "lmms-eval")  # fmt: skip
    assert "score both alike" in sentence_of(summary.compare_runs, Path("out/one"), Path("out/lmms"))
    (place / "empty").mkdir()
    assert "holds no results.json" in sentence_of(summary.compare_runs, Path("out/one"), place / "empty")
    (place / "empty/results.json").write_text("{}")
    assert "is not what this program wrote" in sentence_of(summary.compare_runs, Path("out/one"), place / "empty")
    changed = summary.differences(
        "fake", {"settings": {"frames": 8, "k": 1}}, {"settings": {"frames": 16, "k": 1}}, (1, 1, 1)
    )
    assert changed == ["fake: not the same in both: frames."]


# ---------------------------------------------------------------- the list


def test_the_list_and_a_broken_file(tmp_path, monkeypatch, capsys):
    (tmp_path / "good.py").write_text(FAKE)
    (tmp_path / "bad.py").write_text("BENCHMARKS = {'x': 1 +}")
    (tmp_path / "later.py").write_text("raise SystemExit(3)")
    (tmp_path / "worse.py").write_text("BENCHMARKS = {'other': 7}")
    (tmp_path / "zwice.py").write_text(FAKE)
    (tmp_path / "_not.py").write_text("1 / 0")
    monkeypatch.setattr(scoring, "FOLDER", tmp_path)
    found, problems = scoring.find_benchmarks()
    assert list(found) == ["fake"] and len(problems) == 4
    for name, problem in (("bad.py", "SyntaxError"), ("later.py", "SystemExit: 3"),
                          ("worse.py", "other is no Benchmark"), ("zwice.py", "fake is also in good.py")):  # fmt: skip
        assert any(name in text and problem in text for text in problems)
    evaluate("--list")
    text = capsys.readouterr().out
    for part in ("fake: Fake", "rows: 8 (test)", "metric: accuracy", "licence: CC0", "source: hf:nobody/fake",
                 "scorings: official, lmms-eval", "published: a model 12.3 (its paper)", "note: made up",
                 "bad.py cannot be used (SyntaxError"):  # fmt: skip
        assert part in text
    assert all(len(line) <= 100 or line.startswith("warning") for line in text.splitlines())
    evaluate("--list", "--benchmarks", "fake,world")
    assert "fake: Fake" in capsys.readouterr().out
    screen = io.StringIO()
    monkeypatch.setattr("rich.console.Console", lambda **_: Console(file=screen, force_terminal=True, width=80))
    evaluate("--list")
    plain = re.sub(r"\x1b\[[0-9;]*m", "", screen.getvalue())
    assert "┃ benchmark" in plain and "hf:nobody/fake" in plain and max(map(len, plain.splitlines())) <= 80


def test_every_benchmark_of_the_repository_can_be_used(capsys):
    found, problems = scoring.find_benchmarks()
    assert not problems, problems
    for name, (benchmark, _) in found.items():
        assert re.fullmatch(r"[a-z0-9_]+", name), name
        assert benchmark.scorings and set(benchmark.scorings) <= {"official", "vlmevalkit", "lmms-eval", "fixed"}, name
        assert benchmark.source.startswith(("hf:", "github:")) and benchmark.split and benchmark.columns, name


def test_progress_is_plain_without_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr(progress, "EVERY", 0.0)
    shown = progress.Progress("fake", 4, 0)
    shown.show(2)
    shown.show(4)
    shown.close()
    first, second = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"fake: 2 of 4 rows, \S+ rows/s, about \d+ min left", first)
    assert re.fullmatch(r"fake: 4 of 4 rows, \S+ rows/s", second)


def test_other_files_of_rows(tmp_path):
    assert set(files.READERS) == {".parquet", ".jsonl", ".json", ".tsv", ".csv", ".xlsx"}
    (tmp_path / "a.csv").write_text('question,answer\n"a, b",\n')
    assert files.read_file(tmp_path / "a.csv") == [{"question": "a, b", "answer": None}]
    (tmp_path / "a.json").write_text("3")
    assert "holds no list of rows" in sentence_of(files.read_file, tmp_path / "a.json")
    assert judged(Result(0.0, undecided=True), True).score == 1.0 and lines_by([], [])[0].count == 0

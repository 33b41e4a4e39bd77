"""Every published layout, made small in a temporary folder: questions, splits, words about bad rows."""

import json
from pathlib import Path

import pytest
from helpers import encoded, jsonl, sentence_of
from PIL import Image

from common.data import Dataset, open_dataset
from common.errors import SightRLError
from common.rewards import accuracy

HINT = "or leave such rows out with --bad-rows skip."
SPLITS = ("train", "val", "test")


def picture(path: Path, color: object = "red", size: tuple[int, int] = (40, 30)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path)
    return path


def png(color: object) -> bytes:
    return encoded(Image.new("RGB", (8, 6), color))


def write_jsonl(path: Path, rows: list) -> Path:
    """A row that is a text stands there as it is: it need not be JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), "utf-8")
    return path


def error_of(spec: str, split: str = "train", **options: object) -> str:
    return sentence_of(open_dataset, spec, split, **options)


def everything(spec: str, **options: object) -> dict[str, list]:
    """Samples of the three splits; no picture is in two, ids are unique, responses are graded right."""
    samples = {split: list(read(spec, split, **options)) for split in SPLITS}
    pictures = [{str(image) for s in samples[split] for image in s.images} for split in SPLITS]
    assert not (pictures[0] & pictures[1] or pictures[0] & pictures[2] or pictures[1] & pictures[2])
    every = [s for split in SPLITS for s in samples[split]]
    assert len({s.id for s in every}) == len(every)
    assert all(accuracy(s.meta["response"], s) == 1.0 for s in every if "response" in s.meta)
    return samples


def read(spec: str, split: str, **options: object) -> list:
    dataset = open_dataset(spec, split, **options)
    return [dataset[i] for i in range(len(dataset))]


def only(spec: str, **options: object) -> object:
    """The one sample of a file with one row (too few to cut, so it is in train)."""
    (sample,) = read(spec, "train", **options)
    return sample


# ------------------------------------------------------------------------------------------------------ JSONL
RECORDS = {
    "plain": {"question": "What color?", "answer": "red", "image": "a.png"},
    "easyr1": {"problem": "<image>What color?", "answer": "red", "images": ["a.png"]},
    "r1v": {"problem": "What color?", "solution": "<answer> red </answer>", "image": "a.png"},
    "vlm_r1": {
        "image": "a.png",
        "conversations": [{"from": "human", "value": "<image>What color?"}, {"from": "gpt", "value": "red"}],
    },
    "ms_swift": {
        "messages": [{"role": "user", "content": "<image>What color?"}],
        "images": ["a.png"],
        "solution": "red",
    },
    "llama_factory": {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "<image>What color?"},
            {"role": "assistant", "content": "red"},
        ],
        "images": ["a.png"],
    },
    "trl": {
        "prompt": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What color?"}]}],
        "images": ["a.png"],
        "solution": "so \\boxed{red}",
    },
    "verl": {
        "prompt": [{"role": "user", "content": "<image>What color?"}],
        "images": [{"path": "a.png"}],
        "reward_model": {"ground_truth": "red", "style": "rule"},
    },
}


@pytest.mark.parametrize("layout", RECORDS)
def test_records_as_others_write_them(tmp_path, layout):
    picture(tmp_path / "a.png")
    sample = only(jsonl(tmp_path / "d.jsonl", [RECORDS[layout]]))
    assert sample.question.removeprefix("<image>") == "What color?" and sample.answer == "red"
    assert sample.id == "d.jsonl:1" and sample.task == "d" and sample.answer_type == "text"
    assert sample.load_images()[0].size == (40, 30)


def test_json_lists_blank_lines_and_byte_order_marks(tmp_path):
    rows = [{"question": str(i), "answer": "1"} for i in range(3)]
    (tmp_path / "list.json").write_text(json.dumps(rows))
    assert sum(len(open_dataset(f"jsonl:{tmp_path / 'list.json'}", split)) for split in SPLITS) == 3
    (tmp_path / "one.jsonl").write_bytes(
        b"\xef\xbb\xbf\n\n" + json.dumps({"question": "é?", "answer": True}).encode() + b"\r\n\n"
    )
    sample = only(f"jsonl:{tmp_path / 'one.jsonl'}")
    assert (sample.id, sample.question, sample.answer, sample.images) == ("one.jsonl:3", "é?", "true", [])


def test_answer_types_are_recognised(tmp_path):
    rows = [
        ({"answer": 3}, "number", "3"),
        ({"answer": "1,000"}, "text", "1,000"),
        ({"answer": "No"}, "yesno", "No"),
        ({"answer": "[1, 2, 3, 4]", "question": "Give the bounding box."}, "box", "[1, 2, 3, 4]"),
        ({"answer": [1, 2, 3, 4], "question": "Continue the row."}, "text", "[1, 2, 3, 4]"),
        ({"answer": "B", "options": ["x", "y"]}, "option", "B"),
        ({"answer": "7", "answer_type": "text"}, "text", "7"),
    ]
    for n, (row, kind, answer) in enumerate(rows):
        sample = only(jsonl(tmp_path / f"{n}.jsonl", [{"question": "?"} | row]))
        assert (sample.answer_type, sample.answer) == (kind, answer)
    assert only(f"jsonl:{tmp_path / '5.jsonl'}").question == "?\nA. x\nB. y"
    lettered = {
        "question": "Which? A. x B. y",
        "answer": "B",
        "options": {"A": "x", "B": "y"},
        "task": "logic",
        "response": "\\boxed{B}",
    }
    sample = only(jsonl(tmp_path / "l.jsonl", [lettered]))
    assert sample.question == "Which? A. x B. y" and sample.task == "logic" and sample.meta["response"] == "\\boxed{B}"
    assert sample.meta["choices"] == ["x", "y"]


def test_columns_can_be_named(tmp_path):
    picture(tmp_path / "a.png")
    row = {"q": {"text": "What?"}, "question": "not this", "gold": "7", "img": "a.png"}
    file = write_jsonl(tmp_path / "d.jsonl", [row])
    sample = only(f"jsonl:{file}", columns="question=q.text, answer=gold,images=img")
    assert (sample.question, sample.answer, len(sample.images)) == ("What?", "7", 1)
    assert error_of(f"jsonl:{file}", columns="question=qq,images=img") == (
        f"{file} line 1 has no column 'qq' (it has q, question, gold, img); correct --columns, {HINT}"
    )


BAD_LINES = [  # the line, and what is said after "FILE line 2" (* is the folder)
    ('{"question": "a", "answer":', " is not JSON (Expecting value); correct the line"),
    ("[1]", " is no object; write {...} with named columns"),
    ('{"question": "a"}', " has no answer (columns: question); name it with --columns answer=COLUMN"),
    (
        '{"answer": "a", "text": "b"}',
        " has no question (columns: answer, text); name it with --columns question=COLUMN",
    ),
    ('{"question": "a", "answer": ""}', " has an empty answer; fill it in"),
    ('{"question": "?", "answer": "<answer></answer>"}', " has an empty answer; fill it in"),
    (
        '{"question": "<image><image>?", "answer": "1", "image": "a.png"}',
        " has 2 <image> marks but 1 pictures; make the numbers equal",
    ),
    ('{"question": "?", "answer": "1", "image": "b.png"}', ": the picture b.png does not exist in *; add the file"),
    ('{"question": "?", "answer": "1", "image": 7}', " names no picture file but '7'; write a path"),
    (
        '{"question": "?", "answer": "1", "image": "https://x.org/a.png"}',
        ": the picture https://x.org/a.png is a web address; download it and write its path",
    ),
    (
        '{"question": "a<|image_pad|>b", "answer": "1"}',
        ": the question holds <|image_pad|>, which the model reads as a command; remove it (pictures "
        "are marked "
        "<image>)",
    ),
    (
        '{"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}], "answer": "1"}',
        ": the conversation has 2 user turns and one is supported; keep one",
    ),
    ('{"question": [3], "answer": "1"}', ": the conversation is not a list of turns with role and content; correct it"),
    ('{"question": {"a": 1}, "answer": "1"}', ": the question is no text; correct it"),
    (
        '{"question": "?", "answer": "1", "answer_type": "essay"}',
        " has the answer type 'essay'; write text, number, option, box, boxes or yesno",
    ),
    ("[" * 100_000, " is not JSON (RecursionError); correct the line"),
]


@pytest.mark.parametrize("number", range(len(BAD_LINES)))
def test_bad_lines(tmp_path, number):
    line, problem = BAD_LINES[number]
    picture(tmp_path / "a.png")
    file = write_jsonl(tmp_path / "bad.jsonl", [{"question": "fine", "answer": "1"}, line])
    sentence = f"{file} line 2{problem.replace('*', str(tmp_path))}, {HINT}"
    assert error_of(f"jsonl:{file}") == sentence
    dataset = open_dataset(f"jsonl:{file}", "train", bad_rows="skip")
    assert len(dataset) == 1 and dataset.skipped == [sentence]


@pytest.mark.parametrize("name", ["../x.png", "/etc/passwd", "a/../../x.png"])
def test_paths_that_leave_the_folder(tmp_path, name):
    picture(tmp_path / "x.png")
    file = write_jsonl(tmp_path / "d" / "bad.jsonl", [{"question": "?", "answer": "1", "image": name}])
    assert error_of(f"jsonl:{file}") == (
        f"{file} line 1: the picture {name} lies outside {tmp_path / 'd'}; move it there, give its folder after a "
        "comma in --data, or allow it with --allow-outside."
    )


def test_a_misnamed_picture_column_is_noticed(tmp_path):
    picture(tmp_path / "a.png")
    file = write_jsonl(tmp_path / "d.jsonl", [{"question": "?", "answer": "1", "photo": "a.png"}])
    assert error_of(f"jsonl:{file}") == (
        f"{file} line 1 has no image or images column, but 'photo' holds pictures; add --columns images=photo, {HINT}"
    )
    assert only(f"jsonl:{file}", columns="images=photo").load_images()


def test_odd_but_usable_rows(tmp_path):
    rows = [
        {"question": 7, "answer": 0, "image": ""},
        {"question": "?", "answer": 0.5, "image": None, "size": "big"},
        {"conversations": [{"from": "human", "value": "?"}, {"from": "gpt", "value": "one"}], "answer": 0},
    ]
    for n, row in enumerate(rows):
        sample = only(jsonl(tmp_path / f"{n}.jsonl", [row]))
        assert sample.images == sample.load_images() == [] and sample.answer in ("0", "0.5")
        assert "size" not in sample.meta  # it would be taken for that of the picture


def test_invalid_utf8_and_nothing_left(tmp_path):
    (tmp_path / "bad.jsonl").write_bytes(b'{"question": "\xff", "answer": "1"}\n')
    assert "line 1 is not JSON (UnicodeDecodeError)" in error_of(f"jsonl:{tmp_path / 'bad.jsonl'}")
    assert error_of(f"jsonl:{tmp_path / 'bad.jsonl'}", bad_rows="skip").startswith(
        f"the train split of jsonl:{tmp_path / 'bad.jsonl'} is empty; the first problem: "
    )
    (tmp_path / "list.json").write_text("[{]")
    assert error_of(f"jsonl:{tmp_path / 'list.json'}").startswith(f"{tmp_path / 'list.json'} is no JSON list (")
    assert error_of(f"jsonl:{tmp_path / 'no.jsonl'}") == (
        f"{tmp_path / 'no.jsonl'} does not exist or holds no .jsonl file; give the path of a JSON-lines file."
    )


def test_pictures_outside_of_the_working_folder(tmp_path, monkeypatch):
    picture(tmp_path / "secret.png")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    write_jsonl(tmp_path / "here" / "d.jsonl", [{"question": "?", "answer": "1", "image": "../secret.png"}])
    assert "the picture ../secret.png lies outside ." in error_of("jsonl:d.jsonl")


def test_pictures_outside_need_permission(tmp_path):
    picture(tmp_path / "pictures" / "a.png")
    file = write_jsonl(tmp_path / "lists" / "d.jsonl", [{"question": "?", "answer": "1", "image": "../pictures/a.png"}])
    assert only(f"jsonl:{file}", allow_outside=True).load_images()
    other = write_jsonl(tmp_path / "lists" / "e.jsonl", [{"question": "?", "answer": "1", "image": "a.png"}])
    assert only(f"jsonl:{other},{tmp_path / 'pictures'}").load_images()
    (tmp_path / "lists" / "linked").symlink_to(tmp_path / "pictures")  # who made it nobody knows: archives hold links
    link = write_jsonl(tmp_path / "lists" / "f.jsonl", [{"question": "?", "answer": "1", "image": "linked/a.png"}])
    assert "the picture linked/a.png lies outside" in error_of(f"jsonl:{link}")
    assert only(f"jsonl:{link}", allow_outside=True).load_images()


def test_jsonl_splits(tmp_path):
    rows = [
        {"question": f"{q}?", "answer": "1", "images": [f"{i}.png", *([f"{i + 1}.png"] if i % 10 == 0 else [])]}
        for i in range(60)
        for q in range(2)
    ]
    for i in range(61):
        picture(tmp_path / f"{i}.png", (i, 0, 0))
    samples = everything(jsonl(tmp_path / "d.jsonl", rows))
    assert sum(map(len, samples.values())) == 120 and all(samples.values())
    for name, n in (("train", 5), ("test", 4)):
        write_jsonl(
            tmp_path / "official" / f"{name}.jsonl", [{"question": f"{name}{i}", "answer": "1"} for i in range(n)]
        )
    official = everything(f"jsonl:{tmp_path / 'official'}")
    assert {s.question for s in official["test"]} == {f"test{i}" for i in range(4)}
    assert len(official["train"]) == 4 and len(official["val"]) == 1
    assert len(read(f"jsonl:{tmp_path / 'official'}", "test", limit=2)) == 2


# ------------------------------------------------------------------------------------------ Parquet, datasets
def table(n: int = 40):
    datasets = pytest.importorskip("datasets")
    rows = [
        {"problem": f"<image>What is {i}?", "answer": str(i), "images": [{"bytes": png((i, 0, 0)), "path": None}]}
        for i in range(n)
    ]
    return datasets.Dataset.from_list(rows)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    """Arrow files of the datasets library go into the test's folder."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


def test_parquet_file(tmp_path):
    table().to_parquet(tmp_path / "d.parquet")
    samples = everything(f"parquet:{tmp_path / 'd.parquet'}")
    assert sum(map(len, samples.values())) == 40 and all(samples.values())
    sample = samples["train"][0]
    number = int(sample.answer)
    assert sample.id == f"d.parquet:train:{number + 1}" and sample.answer_type == "number"
    assert sample.load_images()[0].getpixel((0, 0)) == (number, 0, 0)
    assert isinstance(open_dataset(f"parquet:{tmp_path / 'd.parquet'}", "train"), Dataset)


def test_parquet_image_columns(tmp_path):
    """Bytes, a single dict, a decoded Image feature, and paths."""
    datasets = pytest.importorskip("datasets")
    content, path = png("red"), picture(tmp_path / "a.png")
    for name, value, features in (
        ("bytes", content, None),
        ("dict", {"bytes": content, "path": "x.png"}, None),
        ("path", "a.png", None),
        ("dictpath", {"bytes": None, "path": "a.png"}, None),
        (
            "feature",
            str(path),
            datasets.Features(
                {"question": datasets.Value("string"), "answer": datasets.Value("int64"), "image": datasets.Image()}
            ),
        ),
    ):
        rows = datasets.Dataset.from_dict({"question": ["What?"], "answer": [5], "image": [value]}, features=features)
        rows.to_parquet(tmp_path / f"{name}.parquet")
        sample = only(f"parquet:{tmp_path / name}.parquet")
        assert sample.load_images()[0].getpixel((0, 0)) == (255, 0, 0) and sample.answer == "5"


def test_parquet_folders_have_official_splits(tmp_path):
    data = table(12)
    data.select(range(5)).to_parquet(tmp_path / "d" / "data" / "train-00000-of-00002.parquet")
    data.select(range(5, 8)).to_parquet(tmp_path / "d" / "data" / "train-00001-of-00002.parquet")
    data.select(range(8, 12)).to_parquet(tmp_path / "d" / "data" / "validation-00000-of-00001.parquet")
    for kind in ("parquet", "hf"):
        samples = everything(f"{kind}:{tmp_path / 'd'}")
        assert sorted(int(s.answer) for s in samples["test"]) == [8, 9, 10, 11]
        assert len(samples["train"]) == 7 and len(samples["val"]) == 1


def test_class_labels_become_their_names(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {
            "image": datasets.Value("binary"),
            "question": datasets.Value("string"),
            "answer": datasets.ClassLabel(names=["cat", "dog"]),
        }
    )
    rows = datasets.Dataset.from_dict({"image": [png("red")], "question": ["What?"], "answer": [1]}, features=features)
    rows.to_parquet(tmp_path / "d.parquet")
    assert only(f"parquet:{tmp_path / 'd.parquet'}").answer == "dog"


def test_equal_pictures_in_a_table_stay_together(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = [{"question": f"{i} {j}", "answer": "1", "image": png((i, 0, 0))} for i in range(20) for j in range(3)]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "d.parquet")
    samples = everything(f"parquet:{tmp_path / 'd.parquet'}")
    numbers = [{s.question.split()[0] for s in samples[split]} for split in SPLITS]
    assert sum(map(len, numbers)) == 20 and all(numbers)


def test_datasets_saved_to_disk(tmp_path):
    datasets = pytest.importorskip("datasets")
    table().save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": table(30), "test": table(40).select(range(30, 40))}).save_to_disk(tmp_path / "two")
    assert sum(map(len, everything(f"hf:{tmp_path / 'one'}").values())) == 40
    assert len(everything(f"hf:{tmp_path / 'two'}")["test"]) == 10


def test_bad_table_rows_and_files(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = [
        {"question": "fine", "answer": "1", "image": png("red")},
        {"question": "?", "answer": None, "image": png("red")},
        {"question": "<image> <image>", "answer": "1", "image": png("red")},
        {"question": "x", "answer": "1", "image": b"broken"},
    ]
    file = tmp_path / "d.parquet"
    datasets.Dataset.from_list(rows).to_parquet(file)
    assert error_of(f"parquet:{file}") == (
        f"{file} train row 2 has no answer (columns: question, answer, image); name it with --columns "
        f"answer=COLUMN, {HINT}"
    )
    dataset = open_dataset(f"parquet:{file}", "train", bad_rows="skip")
    assert [s.question for s in dataset.take(9)] == ["fine"]
    assert [text[: len(f"{file} train row 2")] for text in dataset.skipped] == [
        f"{file} train row {n}" for n in (2, 3, 4)
    ]
    (tmp_path / "junk.parquet").write_bytes(b"PAR1 no")
    assert error_of(f"parquet:{tmp_path / 'junk.parquet'}").startswith(
        f"{tmp_path / 'junk.parquet'} cannot be read as Parquet ("
    )
    assert error_of(f"parquet:{tmp_path / 'none'}").endswith(
        "is no Parquet file and no folder with Parquet files; give one."
    )


def test_unreachable_hub_dataset(monkeypatch):
    import huggingface_hub

    datasets = pytest.importorskip("datasets")

    def no_network(*args: object, **options: object) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", no_network)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    assert error_of("hf:someone/geometry-nowhere") == (
        "the dataset someone/geometry-nowhere is neither a folder here nor in the Hugging Face cache "
        "and cannot be downloaded (ConnectionError); where there "
        "is network run: hf download someone/geometry-nowhere --repo-type dataset --local-dir "
        "geometry-nowhere and give --data hf:geometry-nowhere."
    )


# ----------------------------------------------------------------------------------------------- VOC and COCO
def voc(folder: Path, name: str, things: list, size: tuple[int, int] = (40, 30), filename: str = "") -> None:
    picture(folder / "JPEGImages" / f"{name}.png", size=size)
    objects = ""
    for label, box in things:
        sides = zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
        numbers = "".join(f"<{side}>{value}</{side}>" for side, value in sides)
        objects += f"<object><name>{label}</name><bndbox>{numbers}</bndbox></object>"
    head = f"<filename>{filename or name + '.png'}</filename>"
    head += f"<size><width>{size[0]}</width><height>{size[1]}</height></size>"
    (folder / "Annotations").mkdir(exist_ok=True)
    (folder / "Annotations" / f"{name}.xml").write_text(f"<annotation>{head}{objects}</annotation>")


def test_voc_questions(tmp_path):
    voc(
        tmp_path,
        "a",
        [("cat", (20, 2, 30, 12)), ("dog", (1, 2, 11, 12)), ("dog", (12, 2, 18, 12))],
        filename="old name.jpg",
    )
    samples = {s.id: s for s in read(f"voc:{tmp_path}", "train")}
    assert sorted(samples) == ["a:count:cat", "a:count:dog", "a:detect:cat", "a:detect:dog", "a:locate:cat"]
    assert samples["a:count:dog"].answer == "2" and samples["a:count:dog"].answer_type == "number"
    assert samples["a:locate:cat"].answer == "[20, 2, 30, 12]" and samples["a:locate:cat"].answer_type == "box"
    assert json.loads(samples["a:detect:dog"].answer) == [
        {"bbox_2d": [1, 2, 11, 12], "label": "dog"},
        {"bbox_2d": [12, 2, 18, 12], "label": "dog"},
    ]
    assert (
        samples["a:count:dog"].meta["response"]
        == "<think>From left to right, dog at (6, 7), (15, 7): that makes 2.</think> \\boxed{2}"
    )
    assert (
        samples["a:locate:cat"].meta["response"]
        == "<think>The only cat is in the upper middle of the picture.</think> \\boxed{[20, 2, 30, 12]}"
    )
    assert samples["a:locate:cat"].meta["size"] == [40, 30] and samples["a:locate:cat"].task == "locate"


def test_absent_labels_are_counted_too(tmp_path):
    voc(tmp_path, "a", [("cat", (1, 2, 11, 12))])
    voc(tmp_path, "b", [("dog", (1, 2, 11, 12))])
    samples = {s.id: s for s in read(f"voc:{tmp_path}", "train")}
    assert samples["a:count:dog"].answer == "0"
    assert "a:locate:dog" not in samples and "a:detect:dog" not in samples


def test_labels_that_are_nearly_everywhere_were_forgotten_where_they_are_missing(tmp_path):
    for i in range(20):
        cells = [("cell", (1, 2, 11, 12))] if i else []
        voc(tmp_path, f"p{i}", [*cells, *([("dog", (1, 2, 11, 12))] if i % 2 else [])])
    samples = [s for part in everything(f"voc:{tmp_path}").values() for s in part]
    assert {s.id for s in samples if s.id.startswith("p0:")} == {"p0:count:dog"}
    assert {s.answer for s in samples if s.id.endswith(":count:dog")} == {"0", "1"}


def test_voc_official_splits_and_one_folder_deeper(tmp_path):
    base = tmp_path / "BCCD"
    for i in range(9):
        voc(base, f"p{i}", [("cell", (1, 1, 9 + i, 9))])
    lists = base / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    for name, numbers in (("train", range(5)), ("val", (5, 6)), ("test", (7,)), ("trainval", range(7))):
        (lists / f"{name}.txt").write_text("".join(f"p{i}\n" for i in numbers))
    samples = everything(f"voc:{tmp_path}")
    assert {s.id.split(":")[0] for s in samples["val"]} == {"p5", "p6"} and {
        s.id.split(":")[0] for s in samples["test"]
    } == {"p7"}
    assert {s.id.split(":")[0] for s in samples["train"]} == {f"p{i}" for i in range(5)}
    for file in lists.iterdir():
        file.unlink()
    hashed = everything(f"voc:{tmp_path}")
    assert sum(len({s.id.split(":")[0] for s in part}) for part in hashed.values()) == 9


def test_boxes_that_enclose_nothing_silence_their_label(tmp_path):
    voc(
        tmp_path,
        "a",
        [("cat", (5, 5, 5, 5)), ("cat", (1, 1, 4, 4)), ("dog", (-3, 2, 100, 12.4)), ("elk", ("", 1, 2, 3))],
    )
    dataset = open_dataset(f"voc:{tmp_path}", "train")
    assert sorted(s.id for s in dataset.samples) == ["a:count:dog", "a:detect:dog", "a:locate:dog"]
    assert next(s for s in dataset.samples if s.task == "locate").answer == "[0, 2, 40, 12]"  # clipped to the picture
    where = tmp_path / "Annotations" / "a.xml"
    assert (
        dataset.notes[0]
        == f"{where}: the cat box [5, 5, 5, 5] encloses nothing, so no question about cat is asked on a."
    )
    assert len(dataset.notes) == 2 and dataset.skipped == []


def test_bad_voc_files(tmp_path):
    voc(tmp_path, "a", [("cat", (1, 2, 11, 12))])
    where = tmp_path / "Annotations" / "b.xml"
    for content, problem in (
        (b"<annotation>", "is no readable XML"),
        (b"<!DOCTYPE x [<!ENTITY a 'b'>]><annotation/>", "is no readable XML (it declares entities)"),
        (b"<annotation/>", f"there is no picture b.* in {tmp_path / 'JPEGImages'}; add the file, "),
    ):
        where.write_bytes(content)
        assert str(where) in (text := error_of(f"voc:{tmp_path}")) and problem in text
        assert len(open_dataset(f"voc:{tmp_path}", "train", bad_rows="skip").skipped) == 1
    assert error_of(f"voc:{tmp_path / 'JPEGImages'}") == (
        f"{tmp_path / 'JPEGImages'} has no Annotations and JPEGImages folders; give the folder that holds both."
    )


def test_wrong_size_in_the_annotation_is_found_when_the_picture_is_read(tmp_path):
    voc(tmp_path, "a", [("cat", (1, 2, 11, 12))])
    picture(tmp_path / "JPEGImages" / "a.png", size=(80, 60))
    with pytest.raises(SightRLError, match="is 80 x 60 but its annotation says 40 x 30; correct the annotation"):
        read(f"voc:{tmp_path}", "train")[0].load_images()


def coco(path: Path, pictures: int = 3, **changes: object) -> Path:
    content = {
        "categories": [{"id": 7, "name": "cat"}, {"id": 8, "name": "dog"}],
        "images": [{"id": i, "file_name": f"{i}.png", "width": 40, "height": 30} for i in range(pictures)],
        "annotations": [
            {"id": 1, "image_id": 0, "category_id": 7, "bbox": [1, 2, 10.4, 10]},
            {"id": 2, "image_id": 0, "category_id": 8, "bbox": [1, 2, 5, 5], "iscrowd": 1},
            {"id": 3, "image_id": 1, "category_id": 7, "bbox": [1, 2, 0, 5]},
        ],
    } | changes
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def test_coco_questions(tmp_path):
    for i in range(3):
        picture(tmp_path / "train2017" / f"{i}.png")
    file = coco(tmp_path / "annotations" / "instances_train2017.json")
    samples = {s.id: s for s in sum(everything(f"coco:{file}").values(), [])}
    assert {s for s in samples if s.startswith("0:")} == {
        "0:count:cat",
        "0:detect:cat",
        "0:locate:cat",
    }  # the dogs are a crowd
    assert samples["0:locate:cat"].answer == "[1, 2, 11, 12]"
    assert {s for s in samples if s.startswith("1:")} == {"1:count:dog"}  # its cat box has no width
    assert samples["2:count:cat" if "2:count:cat" in samples else "2:count:dog"].answer == "0"
    assert len(read(f"coco:{file},{tmp_path / 'train2017'}", "train")) > 0


def test_coco_folders_have_official_splits(tmp_path):
    for n, part in enumerate(("train", "valid", "test")):
        for i in range(3):
            picture(tmp_path / part / f"{i}.png", (n, i, 0))
        coco(tmp_path / part / "_annotations.coco.json")
    assert {str(s.images[0].parent.name) for s in read(f"coco:{tmp_path}", "val")} == {"valid"}


def test_bad_coco_files(tmp_path):
    for i in range(3):
        picture(tmp_path / f"{i}.png")
    assert error_of(f"coco:{coco(tmp_path / 'a.json', categories=[])}") == (
        f"{tmp_path / 'a.json'} image 0: annotation 1 has no known category or no [x, y, width, height]; "
        f"correct it, {HINT}"
    )
    assert "image 3: the picture 3.png does not exist in" in error_of(f"coco:{coco(tmp_path / 'b.json', pictures=4)}")
    (tmp_path / "c.json").write_text("[]")
    assert "c.json is no COCO file with images, annotations and categories (TypeError" in error_of(
        f"coco:{tmp_path / 'c.json'}"
    )
    outside = [{"id": 0, "file_name": "../../etc/passwd", "width": 40, "height": 30}]
    assert "lies outside" in error_of(f"coco:{coco(tmp_path / 'd.json', images=outside)}")


def test_plain_pictures(tmp_path):
    for i in range(40):
        picture(tmp_path / "deep" / f"{i}.png", (i, 0, 0))
    (tmp_path / "readme.txt").write_text("no picture")
    samples = everything(f"images:{tmp_path}")
    assert sum(map(len, samples.values())) == 40 and all(samples.values())
    assert (samples["train"][0].question, samples["train"][0].answer, samples["train"][0].task) == ("", "", "image")
    (tmp_path / "empty").mkdir()
    assert (
        error_of(f"images:{tmp_path / 'empty'}")
        == f"the train split of images:{tmp_path / 'empty'} is empty, add data to it."
    )


# -------------------------------------------------------------------------------------------- NLVR, PuzzleVQA
def thing(color: str, shape: str, x: int, y: int = 80, size: int = 20) -> dict:
    return {"y_loc": y, "type": shape, "color": color, "x_loc": x, "size": size}


def nlvr(folder: Path, name: str = "dev", examples: int = 12, start: int = 0) -> None:
    """One to three black squares in the first box, a yellow circle in the second, nothing in the third."""
    rows = []
    for n in range(start, start + examples):
        identifier, directory = f"{n}-0", str(n % 6)
        boxes = [
            [thing("Black", "square", 5 + 25 * i, y=n % 60) for i in range(n % 3 + 1)],
            [thing("Yellow", "circle", 40, y=n % 60, size=10)],
            [],
        ]
        rows.append(
            {
                "sentence": "There is a circle.",
                "label": "true",
                "identifier": identifier,
                "directory": directory,
                "evals": {},
                "structured_rep": boxes,
            }
        )
        for k in range(6):
            picture(folder / name / "images" / directory / f"{name}-{identifier}-{k}.png", size=(400, 100))
    write_jsonl(folder / name / f"{name}.json", rows)


def test_nlvr_questions(tmp_path):
    nlvr(tmp_path)
    samples = everything(f"nlvr:{tmp_path}")
    every = [s for split in SPLITS for s in samples[split]]
    assert sum(s.task == "sentence" for s in every) == 6 * 12
    assert {s.id.split("-")[0] for s in samples["test"]} == {"4", "5", "10", "11"}
    sentence = next(s for s in every if s.id == "0-0-4:sentence")  # picture 4 shows the boxes in the order 2, 0, 1
    assert sentence.question == 'Is this statement about the picture true or false? "There is a circle."'
    assert (sentence.answer, sentence.answer_type) == ("true", "yesno")
    assert sentence.meta["caption"] == (
        "The left box is empty. The middle box has a medium black square. The right box has a small yellow circle."
    )
    for s in every:
        k = int(s.id.split(":")[0].split("-")[2])
        order = [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)][k]
        black = int(s.id.split("-")[0]) % 3 + 1
        sides = dict(zip(order, ("left", "middle", "right"), strict=True))
        if s.task == "count_box":
            asked = next(side for side in ("left", "middle", "right") if side in s.question)
            assert s.answer == {sides[0]: str(black), sides[1]: "1", sides[2]: "0"}[asked]
        elif s.task == "where_is":
            assert s.answer == (sides[1] if "yellow circle" in s.question else sides[0])
        elif s.task == "color_of":
            assert s.answer == ("yellow" if "circle" in s.question else "black")
        elif s.task == "count_color":
            assert s.answer == {"black": str(black), "yellow": "1", "blue": "0"}[s.question.split()[2]]
        elif s.task == "count_shape":
            assert s.answer == {"squares": str(black), "circles": "1", "triangles": "0"}[s.question.split()[2]]
    assert {s.task for s in every} == {"sentence", "count_box", "count_color", "count_shape", "where_is", "color_of"}


def test_nlvr_official_splits(tmp_path):
    nlvr(tmp_path, "train", examples=6)
    nlvr(tmp_path, "dev", examples=3, start=20)
    nlvr(tmp_path, "test", examples=2, start=30)
    samples = everything(f"nlvr:{tmp_path}")
    assert [len({s.id.split("-")[0] for s in samples[split]}) for split in SPLITS] == [6, 3, 2]


def test_nlvr_scenes_of_the_test_split_are_left_out_of_train(tmp_path):
    nlvr(tmp_path)
    file = tmp_path / "dev" / "dev.json"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    rows[0]["structured_rep"] = rows[4]["structured_rep"][::-1]  # the same scene in another order
    write_jsonl(file, rows)
    samples = everything(f"nlvr:{tmp_path}")
    assert "0" not in {s.id.split("-")[0] for split in SPLITS for s in samples[split]}
    assert open_dataset(f"nlvr:{tmp_path}", "train").notes == [
        f"{file} line 1: the same scene is in the test split, so it is left out of train and val."
    ]


def test_nlvr_does_not_count_overlapping_objects(tmp_path):
    nlvr(tmp_path, examples=6)
    file = tmp_path / "dev" / "dev.json"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    rows[0]["structured_rep"] = [[thing("Black", "square", 5), thing("Black", "square", 15)], [], []]
    write_jsonl(file, rows)
    assert {s.task for split in SPLITS for s in everything(f"nlvr:{tmp_path}")[split] if s.id.startswith("0-")} <= {
        "sentence"
    }


def test_bad_nlvr(tmp_path):
    nlvr(tmp_path, examples=6)
    file = tmp_path / "dev" / "dev.json"
    rows = file.read_text().splitlines()
    file.write_text("\n".join([rows[0].replace('"label": "true"', '"label": "maybe"'), *rows[1:]]))
    assert error_of(f"nlvr:{tmp_path}").startswith(f"{file} line 1 is no NLVR example (")
    file.write_text("\n".join(rows))
    (tmp_path / "dev" / "images" / "0" / "dev-0-0-3.png").unlink()
    assert error_of(f"nlvr:{tmp_path}") == (
        f"{file} line 1: the picture images/0/dev-0-0-3.png does not exist in {tmp_path / 'dev'}; add the file, {HINT}"
    )
    assert "give the folder of NLVR." in error_of(f"nlvr:{tmp_path / 'dev' / 'images'}")


def puzzles(folder: Path, n: int = 60) -> None:
    for pattern, options, answer in (("venn", ["8", "1", "9", "7"], 1), ("sizes", [3, 2, 1], "2")):
        rows = []
        for i in range(n):
            name = f"images/{pattern}/{pattern}_{i:04d}.png"
            picture(folder / "data" / name, (i, 0 if pattern == "venn" else 9, 0))
            rows.append(
                {
                    "image": name,
                    "question": "What is missing?",
                    "options": options,
                    "answer": answer,
                    "caption": "Circles.",
                    "explanation": "Sums.",
                    "deduction": "So it is that.",
                }
            )
        write_jsonl(folder / "data" / f"{pattern}.json", rows)


def test_puzzlevqa(tmp_path):
    puzzles(tmp_path)
    samples = everything(f"puzzlevqa:{tmp_path}")
    assert sorted(s.id for s in samples["test"]) == sorted(
        f"{p}_{i:04d}" for p in ("venn", "sizes") for i in range(40, 60)
    )
    assert len(samples["train"]) + len(samples["val"]) == 80 and 1 <= len(samples["val"]) <= 10
    venn = next(s for s in samples["test"] if s.id == "venn_0040")
    assert venn.question == "What is missing?\nA. 8\nB. 1\nC. 9\nD. 7\nAnswer with the letter of the right option."
    assert (venn.answer, venn.answer_type, venn.task) == ("B", "option", "venn")
    assert (
        venn.meta["chance"] == 0.25 and venn.meta["choices"] == ["8", "1", "9", "7"] and venn.meta["answer_text"] == "1"
    )
    assert venn.meta["response"] == "<think>Circles. Sums. So it is that.</think> \\boxed{B}"
    assert next(s for s in samples["test"] if s.task == "sizes").answer == "B"
    assert accuracy("\\boxed{1}", venn) == 1.0 and accuracy("\\boxed{8}", venn) == 0.0


def test_puzzles_with_a_picture_of_the_test_split_are_left_out(tmp_path):
    puzzles(tmp_path)
    picture(tmp_path / "data" / "images" / "venn" / "venn_0003.png", (45, 0, 0))
    dataset = open_dataset(f"puzzlevqa:{tmp_path}", "train")
    everything(f"puzzlevqa:{tmp_path}")
    assert "venn_0003" not in {s.id for s in dataset.samples}
    assert dataset.notes == [
        f"{tmp_path / 'data' / 'venn.json'} line 4: the picture of venn_0003 is also in the test split, "
        "so it is left out of train and val."
    ]


def test_bad_puzzles(tmp_path):
    puzzles(tmp_path, 3)
    file = tmp_path / "data" / "venn.json"
    row = json.loads(file.read_text().splitlines()[0]) | {"answer": "5"}
    write_jsonl(file, [row])
    assert error_of(f"puzzlevqa:{tmp_path}").startswith(f"{file} line 1 is no PuzzleVQA puzzle (ValueError: ")
    assert "has no pattern files such as" in error_of(f"puzzlevqa:{tmp_path / 'data' / 'images'}")


def test_first_rows_hold_every_kind(tmp_path):
    puzzles(tmp_path)
    assert {s.task for s in read(f"puzzlevqa:{tmp_path}", "test", limit=2)} == {"venn", "sizes"}
    assert [s.id for s in read(f"puzzlevqa:{tmp_path}", "test")] == [
        s.id for s in read(f"puzzlevqa:{tmp_path}", "test", seed=0)
    ]

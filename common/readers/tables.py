"""Tables with a question and an answer per row: JSON lines, Parquet, Hugging Face datasets."""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.data import Sample
from common.errors import SightRLError, bad_row
from common.maths import is_integer
from common.readers.shared import (
    DEEPEST,
    PICTURES,
    Options,
    in_split,
    json_rows,
    lettered,
    locate,
    picture_key,
    shown,
    split_place,
    too_deep,
)
from common.readers.splits import PARTS, cut, linked, official_part
from common.rewards import last_boxed, parse_box, yes_no

# Names that are looked for without --columns, first match wins.
COLUMNS = {
    "question": ("question", "problem", "prompt", "conversations", "messages", "query"),
    "answer": ("answer", "solution", "ground_truth", "gold", "reward_model.ground_truth"),
    "images": ("images", "image", "image_path"),
    "choices": ("choices", "options"),
    "task": ("task", "category"),
    "answer_type": ("answer_type",),
    "response": ("response",),
}
RESERVED = ("size", "split", "things")  # names that mean something in Sample.meta
ANSWER_TYPES = ("text", "number", "option", "box", "boxes", "yesno")
LONGEST = 200_000  # characters of a question: more than the context of any model here, and room for notes in it
SPECIAL_TOKEN = re.compile(r"<\|[a-z_]{1,40}\|>")
BOX_WORDS = re.compile(r"box|coordinate|locat|region|detect", re.IGNORECASE)


# ---------------------------------------------------------------------------------------- one row, any layout
def dotted(row: dict[str, Any], name: str) -> Any:
    """row["a"]["b"] for "a.b", None if there is none."""
    value: Any = row.get(name)
    if value is None and "." in name:
        value = row
        for part in name.split("."):
            value = value.get(part) if isinstance(value, dict) else None
    return value


def names_of(row: dict[str, Any]) -> str:
    return ", ".join(shown(name, 30) for name in list(row)[:12]) or "none"


def column(row: dict[str, Any], name: str, options: Options, where: str) -> Any:
    """Value of the column that serves as `name`, or None. Raises SightRLError for a wrong --columns."""
    if name not in options.columns:
        return next((value for usual in COLUMNS[name] if (value := dotted(row, usual)) is not None), None)
    wanted = options.columns[name]
    if wanted not in row and dotted(row, wanted) is None:
        raise bad_row(f"{where} has no column {wanted!r} (it has {names_of(row)})", "correct --columns")
    return dotted(row, wanted)


def required(row: dict[str, Any], name: str, options: Options, where: str) -> Any:
    """As column(), but it must be there and not be empty. Raises SightRLError."""
    value = column(row, name, options, where)
    value = "" if isinstance(value, float) and math.isnan(value) else value  # how tables write an empty cell
    if value is None and name not in options.columns:
        raise bad_row(f"{where} has no {name} (columns: {names_of(row)})", f"name it with --columns {name}=COLUMN")
    if value is None or value == "" or value == []:
        raise bad_row(f"{where} has an empty {name}", "fill it in")
    return value


def pictures_of(row: dict[str, Any], options: Options, where: str) -> list[Any]:
    """Cells of the picture column, in order; [] for a row of text.

    Raises SightRLError when no picture column is found but another one seems to hold pictures: training blind
    on a misnamed column would go unnoticed. The first look at a row: also for one that is nested too deeply.
    """
    if too_deep(row):
        raise bad_row(f"{where} has a column that is nested more than {DEEPEST} levels deep", "flatten it")
    value = column(row, "images", options, where)
    if value is None and "images" not in options.columns:
        known = {name for names in COLUMNS.values() for name in names} | set(options.columns.values())
        other = next((name for name, cell in row.items() if name not in known and looks_like_pictures(cell)), None)
        if other is not None:
            raise bad_row(
                f"{where} has no image or images column, but {shown(other)!r} holds pictures",
                f"add --columns images={shown(other)}",
            )
    if value is None or value == "":
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]


def looks_like_pictures(cell: Any) -> bool:
    cell = cell[0] if isinstance(cell, list) and cell else cell
    if isinstance(cell, str):
        return len(cell) < 500 and cell.lower().endswith(PICTURES)
    return isinstance(cell, bytes) or (isinstance(cell, dict) and isinstance(cell.get("bytes"), bytes))


def read_turns(turns: list[Any], where: str) -> tuple[str, str | None]:
    """(question, answer or None) of a conversation with one user turn.

    Turns are {"from", "value"} or {"role", "content"}; content may be text or a list of {"type": "text"} and
    {"type": "image"} parts; a system turn is dropped. Raises SightRLError.
    """
    texts: dict[str, list[str]] = defaultdict(list)
    roles = {"human": "user", "gpt": "assistant"}
    for turn in turns:
        if not isinstance(turn, dict):
            raise bad_row(f"{where}: the conversation is not a list of turns with role and content", "correct it")
        role, content = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
        if isinstance(content, list):
            parts = [part if isinstance(part, dict) else {} for part in content]
            content = "".join("<image>" if p.get("type") == "image" else str(p.get("text") or "") for p in parts)
        texts[roles.get(str(role), str(role))].append("" if content is None else str(content))
    if len(texts["user"]) != 1:
        raise bad_row(f"{where}: the conversation has {len(texts['user'])} user turns and one is supported", "keep one")
    return texts["user"][0], texts["assistant"][0] if len(texts["assistant"]) == 1 else None


def as_answer(value: Any) -> str:
    r"""Text of a gold answer: what is inside its <answer> tags or last \boxed{}; lists as JSON."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (list, dict)):
        return json.dumps(value, default=str)
    text = str(value).strip()
    opened, closed = text.find("<answer>"), text.rfind("</answer>")
    if 0 <= opened < closed:
        text = text[opened + len("<answer>") : closed].strip()
    return last_boxed(text) or text


def guess_type(question: str, answer: str, choices: list[str]) -> str:
    """Type of an answer that comes without: option with choices, box if asked for, number, yesno, text."""
    if choices:
        return "option"
    if BOX_WORDS.search(question) and parse_box(answer) is not None:
        return "box"
    if is_integer(answer):
        return "number"
    return "yesno" if yes_no(answer) and answer.strip(". ").lower() in ("yes", "no", "true", "false") else "text"


def read_question(row: dict[str, Any], images: int, options: Options, where: str) -> tuple[str, str]:
    """(question, answer) of a row. Raises SightRLError, also if <image> marks do not fit the pictures."""
    question, spoken = required(row, "question", options, where), None
    if isinstance(question, list):
        question, spoken = read_turns(question, where)
    if not isinstance(question, (str, int, float)):
        raise bad_row(f"{where}: the question is no text", "correct it")
    answer = column(row, "answer", options, where)
    answer = as_answer(spoken if answer is None and spoken else required(row, "answer", options, where))
    if not answer:
        raise bad_row(f"{where} has an empty answer", "fill it in")
    question, answer = whole_characters(str(question)), whole_characters(answer)
    if not question.strip():
        raise bad_row(f"{where} has an empty question", "fill it in")
    if len(question) > LONGEST:
        problem = f"{where}: the question has {len(question):,} characters and the limit is {LONGEST:,}"
        raise bad_row(problem, "shorten it")
    no_special_token("question", question, where)
    no_special_token("answer", answer, where)
    marks = question.count("<image>")
    if marks not in (0, images):
        raise bad_row(f"{where} has {marks} <image> marks but {images} pictures", "make the numbers equal")
    return question, answer


def whole_characters(text: str) -> str:
    r"""The text with lone surrogates, which no tokenizer takes, as U+FFFD; JSON can hold them as \ud800."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def no_special_token(what: str, text: str, where: str) -> None:
    """Raises SightRLError for a text with a token of the model's own in it, e.g. a picture that is not there."""
    if special := SPECIAL_TOKEN.search(text):
        raise bad_row(
            f"{where}: the {what} holds {special.group()}, which the model reads as a command",
            "remove it (pictures are marked <image>)",
        )


def read_frame(row: dict[str, Any], where: str) -> tuple[float, float] | None:
    """Width and height in the column box_frame, None without. Raises SightRLError."""
    frame = row.get("box_frame")
    if frame is None:
        return None
    numbers = frame if isinstance(frame, (list, tuple)) else ()
    if len(numbers) != 2 or not all(isinstance(v, (int, float)) and 0 < v < 1e7 for v in numbers):
        raise bad_row(f"{where} has the box_frame {shown(frame)!r}", "write [width, height], such as [1000, 1000]")
    return float(numbers[0]), float(numbers[1])


def read_row(row: Any, images: list[Any], options: Options, where: str, row_id: str, task: str) -> Sample:
    """A row as a Sample; its pictures are already located. Raises SightRLError if it cannot be used."""
    question, answer = read_question(row, len(images), options, where)
    choices = column(row, "choices", options, where)
    choices = list(choices.values()) if isinstance(choices, dict) else choices if isinstance(choices, list) else []
    choices = [whole_characters(str(choice)) for choice in choices[:26]]
    if choices and not re.search(r"(?:^|\s|\()A[.):]", question):
        question += "\n" + lettered(choices)
    kind = column(row, "answer_type", options, where) or guess_type(question, answer, choices)
    if kind not in ANSWER_TYPES:
        raise bad_row(
            f"{where} has the answer type {shown(kind)!r}",
            f"write {', '.join(ANSWER_TYPES[:-1])} or {ANSWER_TYPES[-1]}",
        )
    left_out = {options.columns.get("images"), *COLUMNS["images"], *RESERVED}
    meta = {str(k): v for k, v in row.items() if k not in left_out and not looks_like_pictures(v)}
    meta["choices"] = choices
    if response := column(row, "response", options, where):
        meta["response"] = str(response)
        no_special_token("response", str(response), where)
    task = str(column(row, "task", options, where) or task)
    return Sample(row_id, question, answer, task, images, kind, meta, where, read_frame(row, where))


# ------------------------------------------------------------------------------------------------- JSON lines
def read_jsonl(place: str, options: Options) -> tuple[list[Sample], list[str]]:
    """jsonl:FILE[,IMAGEDIR]: one object a line, pictures relative to IMAGEDIR or else to the file's folder.

    Records as VLM-R1, R1-V, EasyR1, TRL, ms-swift and LLaMA-Factory write them; a .json file with one list
    will do. A folder with train.jsonl and val.jsonl or test.jsonl has official splits; a single file is cut
    by the names of its pictures (by the question where there is none), rows that share a picture staying
    together. Boxes are in pixels of the original picture unless the column box_frame says otherwise: [1000, 1000].
    """
    path, image_dir = split_place(place)
    files = {f.stem: f for end in ("json", "jsonl") for f in sorted(path.glob(f"*.{end}"))} if path.is_dir() else {}
    if not files and not path.is_file():
        raise SightRLError(f"{path} does not exist or holds no .jsonl file; give the path of a JSON-lines file.")
    part, shares = official_part(list(files) or ["all"], options.split, str(path))
    file = files.get(part, path)
    root = image_dir or file.parent
    samples, keys = [], []
    for where, n, row in json_rows(file):
        try:
            if isinstance(row, SightRLError):
                raise row
            if not isinstance(row, dict):
                raise bad_row(f"{where} is no object", "write {...} with named columns")
            images = [locate(name, root, options, where) for name in pictures_of(row, options, where)]
            samples.append(read_row(row, images, options, where, f"{file.name}:{n}", file.stem))
            keys.append([str(image.relative_to(root) if image.is_relative_to(root) else image) for image in images])
        except SightRLError as error:
            options.leave_out(error)
    roots = linked([key or [sample.question] for key, sample in zip(keys, samples, strict=True)])
    chosen = in_split(samples, roots, options.split, shares)
    return chosen, [sample.task for sample in chosen]


# -------------------------------------------------------------------------- Parquet and Hugging Face datasets
@dataclass
class TableRows(Sequence):
    """Rows of an Arrow table on disk as samples, read one by one."""

    table: Any
    rows: list[int]
    make: Callable[[int, dict], Sample]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> Sample:
        row = self.rows[i]
        return self.make(row, self.table[row].to_pylist()[0])

    def select(self, order: Sequence[int]) -> TableRows:
        return TableRows(self.table, [self.rows[i] for i in order], self.make)


def embedded(image: Any, root: Path | None, options: Options, where: str) -> Any:
    """Bytes or path of a table cell: bytes, {"bytes", "path"} or a path. Raises SightRLError."""
    data = image.get("bytes") if isinstance(image, dict) else image
    if isinstance(data, bytes):
        return data
    if root is None:
        raise bad_row(f"{where} holds no picture but the path of one", "use a dataset with embedded pictures")
    return locate(image, root, options, where)


def class_names(features: Any) -> dict[str, list[str]]:
    """Columns that hold numbers of classes, with the names of the classes."""
    return {name: feature.names for name, feature in features.items() if type(feature).__name__ == "ClassLabel"}


def read_table(tables: Any, name: str, root: Path | None, options: Options) -> tuple[TableRows, list[str]]:
    """Samples of {part: datasets.Dataset}. Every row is checked and its pictures hashed, none decoded."""
    part, shares = official_part(list(tables), options.split, name)
    table, classes = tables[part].with_format("arrow"), class_names(tables[part].features)

    def make(i: int, row: dict[str, Any]) -> Sample:
        where = f"{name} {part} row {i + 1}"
        row |= {k: v[row[k]] for k, v in classes.items() if isinstance(row[k], int) and 0 <= row[k] < len(v)}
        images = [embedded(image, root, options, where) for image in pictures_of(row, options, where)]
        return read_row(row, images, options, where, f"{Path(name).name}:{part}:{i + 1}", Path(name).name)

    rows, keys, tasks, i = [], [], [], -1
    for batch in table.iter(batch_size=64):
        for row in batch.to_pylist():
            i += 1
            try:
                sample = make(i, row)
            except SightRLError as error:
                options.leave_out(error)
                continue
            rows.append(i)
            tasks.append(sample.task)
            keys.append([picture_key(image) for image in sample.images] or [sample.question])
    roots = linked(keys)
    parts = cut(roots, shares)
    chosen = [n for n, key in enumerate(roots) if not shares or parts[key] == options.split]
    return TableRows(table, [rows[n] for n in chosen], make), [tasks[n] for n in chosen]


def import_datasets() -> Any:
    """The library, without its progress bars. Raises SightRLError if it is not installed."""
    try:
        import datasets
    except ImportError:
        raise SightRLError("this data needs the package datasets; run pip install datasets.") from None
    datasets.disable_progress_bars()
    return datasets


def load_from_hub(datasets: Any, name: str, config: str | None) -> Any:
    """The dataset of that name. Without network only the cache is tried, so that nobody waits for retries."""
    import huggingface_hub

    try:
        huggingface_hub.HfApi().dataset_info(name, timeout=10)
    except huggingface_hub.errors.HfHubHTTPError:
        pass  # the hub answered; load_dataset says what is wrong
    except Exception:  # the kinds of connection errors change with the HTTP library
        datasets.config.HF_HUB_OFFLINE = huggingface_hub.constants.HF_HUB_OFFLINE = True
    return datasets.load_dataset(name, config)


def part_name(file: Path, folder: Path) -> str:
    """Split of a Parquet file by its folder or name: data/test-00000-of-00002.parquet -> test; else train."""
    known = {name for names in PARTS.values() for name in names}
    words = [*file.relative_to(folder).parts[:-1], re.split(r"[-_.]", file.name)[0]]
    return next((word.lower() for word in words if word.lower() in known), "train")


def read_parquet(place: str, options: Options) -> tuple[TableRows, list[str]]:
    """parquet:FILE-or-DIR: pictures as bytes, as {"bytes", "path"} or as paths relative to the folder.

    Columns as in EasyR1 and VPPO (problem, answer, images) or verl (prompt, images,
    reward_model.ground_truth). Files or folders named train, validation, test are official splits; else rows
    are cut by the content of their pictures.
    """
    path = Path(place).expanduser()
    files = sorted(path.rglob("*.parquet")) if path.is_dir() else [path] if path.is_file() else []
    if not files:
        raise SightRLError(f"{path} is no Parquet file and no folder with Parquet files; give one.")
    folder = path if path.is_dir() else path.parent
    parts: dict[str, list[str]] = defaultdict(list)
    for file in files:
        parts["train" if path.is_file() else part_name(file, folder)].append(str(file))
    datasets = import_datasets()
    try:
        tables = datasets.load_dataset("parquet", data_files=dict(parts))
    except Exception as error:
        raise SightRLError(f"{path} cannot be read as Parquet ({cause(error)}); fetch it again.") from None
    return read_table(tables, str(path), folder, options)


def cause(error: BaseException) -> str:
    return shown(error.__cause__ or error, 160).strip(" .") or type(error).__name__


def read_hf(place: str, options: Options) -> tuple[TableRows, list[str]]:
    """hf:NAME-or-DIR[,CONFIG]: a Hugging Face dataset, downloaded or cached, or a local folder of one.

    Published splits count; what is missing is cut by the content of the pictures.
    """
    name, _, config = place.partition(",")
    folder = Path(name).expanduser()
    if folder.is_dir() and any((folder / config).glob("**/*.parquet")):
        return read_parquet(str(folder / config), options)
    datasets = import_datasets()
    try:
        if (folder / "dataset_dict.json").exists() or (folder / "state.json").exists():
            tables = datasets.load_from_disk(str(folder))
        elif folder.is_dir():
            tables = datasets.load_dataset(str(folder), config or None)
        else:
            tables = load_from_hub(datasets, name, config or None)
    except Exception as error:
        if folder.is_dir():
            raise SightRLError(f"{folder} cannot be read as a dataset ({cause(error)}); fetch it again.") from None
        if not isinstance(error, (ConnectionError, FileNotFoundError)):
            raise SightRLError(f"the dataset {name} cannot be opened ({cause(error)}); correct --data.") from None
        short = name.split("/")[-1]
        raise SightRLError(
            f"the dataset {name} is neither a folder here nor in the Hugging Face cache and cannot be "
            f"downloaded ({type(error).__name__}); where there is network run: hf download {name} "
            f"--repo-type dataset --local-dir {short} and give --data hf:{short}."
        ) from None
    tables = {"train": tables} if isinstance(tables, datasets.Dataset) else tables
    return read_table(tables, name, folder if folder.is_dir() else None, options)

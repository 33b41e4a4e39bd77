"""Ask a model the rows of a benchmark: questions about one picture together, every answer on disk at once.

predictions.jsonl gets a line per row, in the order of `plan`: {"id", "row" (without pictures), "prompt" (all that the
model read, in the chat format), "responses", "results", "truncated", "lengths"}, or {"id", "skipped"}. A killed run
goes on behind the last whole line. Batches depend on the rows alone and random numbers on the row alone, so a run that
was interrupted writes the same bytes as one that was not.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import torch

from benchmark import Benchmark, Row, Video
from common.checkpoint import disk_errors
from common.distributed import from_main, is_main
from common.errors import SightRLError
from progress import Progress
from rows import SKIP, Source, column_of, light, picture_key
from scoring import Answered, as_json, check_columns, from_json, guarded, plain, score

if TYPE_CHECKING:
    from common.vlm import VLM, Prompt

MARK = "<image>"


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn. prompt: {question} is replaced by the benchmark's prompt."""

    k: int
    temperature: float
    top_p: float
    max_new_tokens: int
    seed: int
    frames: int
    prompt: str
    system: str


@dataclass(frozen=True)
class Question:
    """A row to ask. number: in the source. row: without pictures. text: with one <image> per picture or video."""

    number: int
    vote: int | None
    id: str
    row: Row
    text: str
    key: str
    where: str


# ---------------------------------------------------------------- what to ask


def survey(name: str, benchmark: Benchmark, source: Source, scoring: str, limit: int | None, template: str,
           bad_rows: str, votes: int = 1) -> tuple[list[Question], list[str]]:  # fmt: skip
    """(questions, a sentence per row that cannot be used) of the first `limit` rows. Raises SightRLError.

    Every row is read, its pictures opened, its prompt made and an empty answer scored: what is wrong with the data
    shows before anything is asked. votes: questions per row of a benchmark with `again`.
    """
    questions: list[Question] = []
    skipped: list[str] = []
    seen: dict[str, int] = {}
    for number in range(min(limit or len(source), len(source))):
        try:
            asked = [survey_row(name, benchmark, source, number, vote, scoring, template)
                     for vote in (range(votes) if benchmark.again else [None])]  # fmt: skip
        except SightRLError as error:
            if bad_rows == "stop":
                raise
            skipped.append(str(error))
            continue
        questions += [replace(question, id=unique(question.id, seen)) for question in asked]
    if not questions:
        raise SightRLError(f"no row of {name} can be used; the first problem: {skipped[0]}")
    return questions, skipped


def unique(row_id: str, seen: dict[str, int]) -> str:
    """The name of a row; "name#2" for the second row of that name, which is counted like any other."""
    seen[row_id] = seen.get(row_id, 0) + 1
    return row_id if seen[row_id] == 1 else unique(f"{row_id}#{seen[row_id]}", seen)


def survey_row(name: str, benchmark: Benchmark, source: Source, number: int, vote: int | None, scoring: str,
               template: str) -> Question:  # fmt: skip
    where = source.where(number)
    row = source[number]
    check_columns(name, benchmark, row, where)
    row, pictures = asked_row(benchmark, source, number, vote)
    score(benchmark, source.with_pictures(row, pictures, where), "", scoring, where)
    text = template.replace("{question}", str(guarded(where, benchmark.prompt, row, scoring)))
    if text.count(MARK) not in (0, len(pictures)):
        marks = f"{text.count(MARK)} {MARK} marks for {len(pictures)} pictures"
        raise SightRLError(f"{where}: its prompt has {marks}; make the numbers equal, {SKIP}.")
    keys = [picture_key(item) for item in pictures] or [f"row {number}"]  # a question without picture is alone
    text = text if MARK in text else MARK * len(pictures) + text
    row_id = str(guarded(where, benchmark.identify, row, number))
    bare = {column: light(value) for column, value in row.items()}
    return Question(number, vote, row_id, bare, text, " ".join(keys), where)


def asked_row(benchmark: Benchmark, source: Source, number: int, vote: int | None) -> tuple[Row, list[Any]]:
    """(the row with its pictures, the items that Benchmark.images names). Raises SightRLError."""
    where, row = source.where(number), source[number]
    row = row if vote is None else guarded(where, benchmark.again, row, vote)
    items = list(guarded(where, benchmark.images, row))
    for item in items:
        if isinstance(item, Video):
            source.video(item.path, where)
    return row, items


def plan(questions: Sequence[Question], size: int) -> list[list[Question]]:
    """Batches of at most `size` questions, those about the same pictures in one batch where they fit."""
    groups: dict[str, list[Question]] = {}
    for question in questions:
        groups.setdefault(question.key, []).append(question)
    batches: list[list[Question]] = [[]]
    for group in groups.values():
        if batches[-1] and len(batches[-1]) + len(group) > size:
            batches.append([])
        for question in group:
            if len(batches[-1]) == size:
                batches.append([])
            batches[-1].append(question)
    return batches


# ---------------------------------------------------------------- one batch


def make_prompt(vlm: VLM, benchmark: Benchmark, source: Source, question: Question, sampling: Sampling,
                decoded: dict[str, list]) -> Prompt:  # fmt: skip
    """The question as the model reads it. decoded: pictures of the batch so far, by key. Raises SightRLError."""
    if question.key not in decoded:
        row, items = asked_row(benchmark, source, question.number, question.vote)
        pictured = []
        for item in items:
            where = question.where + column_of(row, getattr(item, "path", item))
            frames = source.pictures(item, where, sampling.frames)
            pictured.append((isinstance(item, Video) and item.times, frames))
        decoded[question.key] = pictured
    pieces, pictures = question.text.split(MARK), []
    text = pieces[0]
    for (times, frames), piece in zip(decoded[question.key], pieces[1:], strict=True):
        text += "".join(f"{second:.1f} s: {MARK}\n" if times else MARK for _, second in frames) + piece
        pictures += [picture for picture, _ in frames]
    return guarded(question.where, vlm.prompt, text, pictures, sampling.system or None)


def sizes(prompt: Prompt, decoded: list) -> dict[str, int]:
    """Columns for scorers of boxes: the size of the one picture, and that after the resize. decoded: of make_prompt."""
    if len(prompt.images) != 1:
        return {}
    [(picture, _)] = [frame for _, frames in decoded for frame in frames]
    height, width = prompt.images[0].shape[:2]
    return {"input_width": width, "input_height": height, "picture_width": picture.width,
            "picture_height": picture.height}  # fmt: skip


def uniform_numbers(seed: int, name: str, question: Question, sampling: Sampling) -> Any:
    """Random numbers of one row, float64 [k, max_new_tokens]: the same whatever is asked beside it."""
    digest = hashlib.sha256(json.dumps([seed, name, question.id]).encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    return torch.rand(sampling.k, sampling.max_new_tokens, generator=generator, dtype=torch.float64)


def answer_batch(vlm: VLM, name: str, benchmark: Benchmark, source: Source, batch: list[Question], scoring: str,
                 sampling: Sampling, bad_rows: str) -> list[dict[str, Any]]:  # fmt: skip
    """The lines of predictions.jsonl for a batch, in its order."""
    from common.rollout import rollout  # here: scoring a file must not wait for transformers

    prompts, decoded, records = {}, {}, {}
    for question in batch:
        try:
            prompts[question.id] = make_prompt(vlm, benchmark, source, question, sampling, decoded)
        except SightRLError as error:
            if bad_rows == "stop":
                raise
            records[question.id] = {"id": question.id, "skipped": str(error)}
    asked = [question for question in batch if question.id in prompts]
    if not asked:
        return [records[question.id] for question in batch]
    numbers = torch.cat([uniform_numbers(sampling.seed, name, question, sampling) for question in asked])
    out = rollout(vlm, list(prompts.values()), sampling.k, max_new_tokens=sampling.max_new_tokens,
                  temperature=sampling.temperature, top_p=sampling.top_p, uniform=numbers)  # fmt: skip
    truncated, lengths = out.truncated.tolist(), out.mask.sum(dim=1).tolist()
    for n, question in enumerate(asked):
        part = slice(n * sampling.k, (n + 1) * sampling.k)
        row, items = asked_row(benchmark, source, question.number, question.vote)
        shown = sizes(prompts[question.id], decoded[question.key])
        row = shown | source.with_pictures(row, items, question.where)
        results = [score(benchmark, row, text, scoring, question.where) for text in out.texts[part]]
        records[question.id] = {"id": question.id, "row": shown | question.row,
                                "prompt": prompts[question.id].text, "responses": out.texts[part],
                                "results": [as_json(result) for result in results],
                                "truncated": truncated[part], "lengths": lengths[part]}  # fmt: skip
    return [records[question.id] for question in batch]


# ---------------------------------------------------------------- all of them, on disk


def answer_all(vlm: VLM, name: str, benchmark: Benchmark, source: Source, questions: list[Question], scoring: str,
               sampling: Sampling, bad_rows: str, batch_size: int, folder: Path) -> None:  # fmt: skip
    """Fill folder/predictions.jsonl. Of several processes the first reads and writes. Raises SightRLError."""
    path, batches = folder / "predictions.jsonl", plan(questions, batch_size)
    order = [question for batch in batches for question in batch]
    with opened_alone(path) as file:
        done = from_main(already_there(file, path, order) if is_main() else 0)
        progress, end = Progress(name, len(order), done), 0
        try:
            for batch in batches:
                start, end = end, end + len(batch)
                if end <= done:
                    continue
                records = answer_batch(vlm, name, benchmark, source, batch, scoring, sampling, bad_rows)
                for record in records[max(0, done - start) :] if file else ():
                    line = json.dumps(record, default=plain, ensure_ascii=False).encode("utf-8", "backslashreplace")
                    with disk_errors(path):
                        file.write(line + b"\n")
                        file.flush()
                progress.show(end)
        finally:
            progress.close()


@contextmanager
def opened_alone(path: Path) -> Iterator[BinaryIO | None]:
    """The file for reading and appending, locked against a second run; None in all processes but the first."""
    if not is_main():
        yield None
        return
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "a+b")  # noqa: SIM115 (closed below)
    try:
        lock(file, path)
        yield file
    finally:
        with disk_errors(path):
            file.close()


def lock(file: BinaryIO, path: Path) -> None:
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise SightRLError(f"another run is writing {path}; wait for it, or give another --run-name.") from None
    except (ImportError, OSError):
        pass  # a disk without locks


def already_there(file: BinaryIO, path: Path, order: Sequence[Question]) -> int:
    """Rows that a killed run has answered; its torn last line is cut off. Raises SightRLError for other rows."""
    file.seek(0)
    data = file.read()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        file.truncate(whole)
    done = 0
    for number, line in enumerate(data[:whole].splitlines(), 1):
        try:
            row_id = json.loads(line)["id"]
        except (ValueError, KeyError, TypeError):
            fix = "delete it and all after it, and those rows are asked again"
            raise SightRLError(f"{path} line {number} is damaged; {fix}.") from None
        if number > len(order) or row_id != order[number - 1].id:
            problem = f"holds the row {row_id!r}, which does not belong there"
            raise SightRLError(f"{path} line {number} {problem}; give another --run-name or delete the file.")
        done = number
    return done


def read_answers(path: Path, questions: Sequence[Question]) -> tuple[list[Answered], list[str]]:
    """(the answered rows in the order of the data, a sentence per skipped one) of a whole predictions.jsonl."""
    with disk_errors(path):
        records = {record["id"]: record for record in map(json.loads, path.read_bytes().splitlines())}
    answered, skipped = [], []
    for question in questions:
        record = records[question.id]
        if "skipped" in record:
            skipped.append(record["skipped"])
            continue
        results = [from_json(result) for result in record["results"]]
        answered.append(Answered(question.id, record["row"], record["responses"], results, question.where,
                                 record["truncated"]))  # fmt: skip
    return answered, skipped

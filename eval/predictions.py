"""Answers that were made elsewhere, joined with the rows they belong to.

read_predictions(Path("samples_mathvista.jsonl"))      # our predictions.jsonl, VLMEvalKit's tables, lmms-eval's samples
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from asking import unique
from benchmark import Benchmark, Row
from common.errors import SightRLError
from common.readers.shared import DEEPEST, shown, too_deep
from files import read_file
from rows import Source, light, prepared
from scoring import Answered, check_columns, guarded, score, through_json

ANSWERS = ("prediction", "response")  # names of the column with the text of the model
# Columns that may say which row a prediction is for, tried in this order.
KEYS = ("index", "id", "pid", "question_id", "qid", "idx", "sample_index", "sample_id", "Index", "ID", "uid")
PICTURE = re.compile(r"(decoded_)?image(s|_\d+|_path)?|video(_path)?")  # columns that files of predictions leave out
TEXTS = ("question", "query", "problem", "instruction", "caption", "text")  # that tell rows apart
OTHER_DATA = "give the --data that the predictions were made from"


@dataclass
class Prediction:
    """Responses to one row, and what the file says about the row."""

    where: str
    responses: list[str]
    row: Row  # columns of the file, or lmms-eval's doc
    number: int | None = None  # lmms-eval's doc_id: place in the split
    id: str | None = None  # of our own files: Benchmark.identify


def text_of(value: Any) -> str:
    return "" if value is None else str(value)


def texts_of(value: Any) -> list[str]:
    """Responses in lmms-eval's nested lists, in order."""
    if isinstance(value, list | tuple):
        return [text for part in value for text in texts_of(part)]
    return [text_of(value)]


def read_predictions(path: Path) -> list[Prediction]:
    """Every prediction of a file. Raises SightRLError for a file or a row that holds none."""
    if path.suffix.lower() in (".pkl", ".pickle"):
        problem = "is a pickle, which can hold code, and is not opened"
        raise SightRLError(f"{path} {problem}; save the table as xlsx, tsv or json.")
    if not path.is_file():
        raise SightRLError(f"{path} is no file; give a file of predictions (see docs/benchmarks.md for the forms).")
    predictions = []
    for number, row in enumerate(read_file(path), 1):
        where = f"{path} row {number}"
        if not isinstance(row, dict):
            raise SightRLError(f"{where} is no object with named columns; correct it.")
        if too_deep(row):
            raise SightRLError(f"{where} has a column nested more than {DEEPEST} levels deep; flatten it.")
        row = {str(name): prepared(cell) for name, cell in row.items()}
        if set(row) != {"id", "skipped"}:  # rows that our own run left out
            predictions.append(one_prediction(row, where))
    if not predictions:
        raise SightRLError(f"{path} holds no predictions; give another file.")
    return sorted(predictions, key=lambda p: p.number or 0)  # lmms-eval's in the order of the rows


def one_prediction(row: Row, where: str) -> Prediction:
    if isinstance(row.get("responses"), list) and row["responses"]:  # ours
        own = row["row"] if isinstance(row.get("row"), dict) else {}
        return Prediction(where, [text_of(part) for part in row["responses"]], own, id=text_of(row.get("id")))
    if "doc_id" in row and ("resps" in row or "filtered_resps" in row):  # lmms-eval
        full, filtered = texts_of(row.get("resps") or []), texts_of(row.get("filtered_resps") or [])
        try:
            number = int(row["doc_id"])
        except (TypeError, ValueError):
            problem = f"has the doc_id {shown(row['doc_id'])!r}, which is no number"
            raise SightRLError(f"{where} {problem}; correct it.") from None
        # What lmms-eval's own scorers see, unless the filter kept fewer answers than were drawn.
        responses = filtered if len(filtered) >= len(full) else full
        return Prediction(where, responses or [""], row["doc"] if isinstance(row.get("doc"), dict) else {}, number)
    for name in ANSWERS:
        if name in row:
            return Prediction(where, [text_of(row[name])], {key: cell for key, cell in row.items() if key != name})
    has = ", ".join(list(row)[:12]) or "none"
    raise SightRLError(f"{where} has no column 'prediction' (it has {has}); rename the column with the model's text.")


# ---------------------------------------------------------------- whose answer is it


def own_rows(benchmark: Benchmark, predictions: Sequence[Prediction]) -> str:
    """ "" if the file itself holds the published columns (pictures do not count), else the first that it lacks."""
    needed = [column for column in benchmark.columns if not PICTURE.fullmatch(column)]
    return next((column for p in predictions for column in needed if column not in p.row), "")


def join(predictions: Sequence[Prediction], rows: Sequence[Row], ids: Sequence[str],
         path: Path) -> list[Prediction | None]:  # fmt: skip
    """For every row its prediction or None: by our ids, lmms-eval's doc_id, a common column, or the order.

    Raises SightRLError when it is not certain which belong together.
    """
    if all(p.id is not None for p in predictions):
        found = keyed(predictions, lambda p: p.id, "id", path)
        if unknown := next((p for key, p in found.items() if key not in set(ids)), None):
            raise SightRLError(f"{unknown.where} has the id {shown(unknown.id)!r}, which no row has; {OTHER_DATA}.")
        return [found.get(row_id) for row_id in ids]
    if all(p.number is not None for p in predictions):
        found = keyed(predictions, lambda p: p.number, "doc_id", path)
        if outside := next((p for n, p in found.items() if not 0 <= n < len(rows)), None):
            problem = f"has the doc_id {outside.number}, but there are {len(rows)} rows"
            raise SightRLError(f"{outside.where} {problem}; {OTHER_DATA}.")
        return same_questions([found.get(number) for number in range(len(rows))], rows)
    for column in KEYS:
        if (joined := by_column(predictions, rows, column, path)) is not None:
            return joined
    if len(predictions) != len(rows):
        problem = f"has {len(predictions)} predictions for {len(rows)} rows and no column that says which is which"
        raise SightRLError(f"{path} {problem}; add the column index or id of the rows.")
    return same_questions(list(predictions), rows)


def votes_together(benchmark: Benchmark, predictions: Sequence[Prediction], rows: Sequence[Row],
                   ids: Sequence[str]) -> list[Prediction]:  # fmt: skip
    """Predictions of single votes, as our own runs write them, as one per row with the row's id. Others stay."""
    named = {p.id: p for p in predictions}
    if None in named or len(named) < len(predictions):
        return list(predictions)
    together: list[Prediction] = []
    seen: dict[str, int] = {}
    for number, (row, row_id) in enumerate(zip(rows, ids, strict=True)):
        votes: list[Prediction] = []
        try:
            while (vote := unique(vote_id(benchmark, row, number, len(votes)), seen)) in named:
                votes.append(named.pop(vote))
        except Exception:  # a broken row, which is named when it is scored
            pass
        if votes:
            together.append(replace(votes[0], responses=[text for p in votes for text in p.responses], id=row_id))
    return together + list(named.values())


def vote_id(benchmark: Benchmark, row: Row, number: int, vote: int) -> str:
    return text_of(benchmark.identify(benchmark.again(row, vote), number))


def keyed(predictions: Sequence[Prediction], key: Callable[[Prediction], Any], what: str,
          path: Path) -> dict[Any, Prediction]:  # fmt: skip
    found: dict[Any, Prediction] = {}
    for prediction in predictions:
        earlier = found.setdefault(key(prediction), prediction)
        if earlier is not prediction:
            raise SightRLError(f"{prediction.where} has the same {what} {shown(key(prediction))!r} as {earlier.where}; "
                               f"remove one of them.")  # fmt: skip
    return found


def by_column(predictions: Sequence[Prediction], rows: Sequence[Row], column: str,
              path: Path) -> list[Prediction | None] | None:  # fmt: skip
    """The join by a column if it tells the rows apart and every prediction has its row, else None."""
    if not all(column in p.row for p in predictions) or not all(column in row for row in rows):
        return None
    keys = [text_of(row[column]) for row in rows]
    if len(set(keys)) < len(keys):
        return None
    found = keyed(predictions, lambda p: text_of(p.row[column]), column, path)
    return [found.get(key) for key in keys] if set(found) <= set(keys) else None


def same_questions(joined: list[Prediction | None], rows: Sequence[Row]) -> list[Prediction | None]:
    """The join, if what both sides say about the question fits, one text holding the other. Raises SightRLError."""
    for prediction, row in zip(joined, rows, strict=True):
        theirs = texts_about(prediction.row) if prediction is not None else []
        ours = texts_about(row)
        if theirs and ours and not any(a in b or b in a for a in theirs for b in ours):
            problem = f"is about {shown(theirs[0], 50)!r}, but its row about {shown(ours[0], 50)!r}"
            raise SightRLError(f"{prediction.where} {problem}; {OTHER_DATA}.")
    return joined


def texts_about(row: Row) -> list[str]:
    texts = [" ".join(row[name].split()) for name in TEXTS if isinstance(row.get(name), str)]
    return [text for text in texts if text]


# ---------------------------------------------------------------- scoring


def score_predictions(name: str, benchmark: Benchmark, scoring: str, predictions: Sequence[Prediction],
                      source: Source | None, path: Path, limit: int | None,
                      bad_rows: str) -> tuple[list[Answered], list[str], int]:  # fmt: skip
    """(answered rows, a sentence per row that cannot be used, rows without a prediction). Raises SightRLError.

    source: the published rows; None: they are in the file. Several answers to a row of a benchmark with `again` are
    as many rows.
    """
    joined: list[Prediction | None] = list(predictions)
    if source is not None:
        bare = [light_row(source, i) for i in range(len(source))]
        ids = numbered(benchmark, bare)
        together = votes_together(benchmark, predictions, bare, ids) if benchmark.again else predictions
        joined = join(together, bare, ids, path)
    joined = joined[:limit]
    if len(counts := {len(p.responses) for p in joined if p is not None}) != 1:
        what = "different numbers of answers per row" if counts else "no prediction for these rows"
        raise SightRLError(f"{path} has {what}; give as many for each.")
    answered: list[Answered] = []
    skipped: list[str] = []
    seen: dict[str, int] = {}
    for number, prediction in enumerate(joined):
        try:
            some = score_one(name, benchmark, scoring, prediction, source, number) if prediction is not None else []
            answered += [replace(one, id=unique(one.id, seen)) for one in some]
        except SightRLError as error:
            if bad_rows == "stop":
                raise
            skipped.append(str(error))
    if not answered:
        raise SightRLError(f"no row of {name} can be used; the first problem: {skipped[0]}")
    return answered, skipped, joined.count(None)


def score_one(name: str, benchmark: Benchmark, scoring: str, prediction: Prediction, source: Source | None,
              number: int) -> list[Answered]:  # fmt: skip
    """The row with its answers, or a row per vote."""
    if source is None:
        where, row = prediction.where, {c: None for c in benchmark.columns if PICTURE.fullmatch(c)} | prediction.row
    else:
        where, row = source.where(number), source[number]
    check_columns(name, benchmark, row, where)
    groups: list[tuple[Row, list[str], str | None]] = [(row, prediction.responses, prediction.id)]
    if benchmark.again:
        groups = [(guarded(where, benchmark.again, row, j), [text], None)
                  for j, text in enumerate(prediction.responses)]  # fmt: skip
    answered = []
    for asked, texts, own_id in groups:
        full = asked
        if source is not None:
            full = source.with_pictures(asked, guarded(where, benchmark.images, asked), where)
        results = [through_json(score(benchmark, full, text, scoring, where)) for text in texts]
        row_id = own_id or text_of(guarded(where, benchmark.identify, asked, number))
        bare = {column: light(cell) for column, cell in asked.items()}
        answered.append(Answered(row_id, bare, texts, results, where, []))
    return answered


def light_row(source: Source, i: int) -> Row:
    try:
        return {column: light(cell) for column, cell in source[i].items()}
    except SightRLError:
        return {}  # it has no columns to be joined by, and is named when it is scored


def numbered(benchmark: Benchmark, rows: Sequence[Row]) -> list[str]:
    """Our ids of the rows; rows that have none get their number."""
    seen: dict[str, int] = {}
    ids = []
    for number, row in enumerate(rows):
        try:
            row_id = text_of(benchmark.identify(row, number))
        except Exception:  # a broken row, which is named when it is scored
            row_id = str(number)
        ids.append(unique(row_id, seen))
    return ids

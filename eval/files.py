"""Tables of rows on disk, by the ending of the file: Parquet, JSON, JSON lines, TSV, CSV, Excel."""

from __future__ import annotations

import ast
import bisect
import csv
import importlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmark import Row
from common.errors import SightRLError
from common.readers.shared import json_rows
from common.readers.tables import cause, class_names


def named_classes(row: Row, classes: dict[str, list[str]]) -> Row:
    """Numbers of classes as the names of the classes."""
    names = {k: v[row[k]] for k, v in classes.items() if isinstance(row.get(k), int) and 0 <= row[k] < len(v)}
    return row | names


class ArrowRows(Sequence):
    """Rows of a `datasets.Dataset`, read one by one."""

    def __init__(self, table: Any) -> None:
        self.table, self.classes = table.with_format("arrow"), class_names(table.features)

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, i: int) -> Row:
        return named_classes(self.table[i].to_pylist()[0], self.classes)


class ParquetRows(Sequence):
    """Rows of a Parquet file; one row group is held at a time."""

    def __init__(self, file: Path) -> None:
        import pyarrow.parquet

        self.file, self.group, self.rows = pyarrow.parquet.ParquetFile(file), -1, None
        self.starts = [0]
        for i in range(self.file.metadata.num_row_groups):
            self.starts.append(self.starts[-1] + self.file.metadata.row_group(i).num_rows)
        notes = (self.file.schema_arrow.metadata or {}).get(b"huggingface", b"{}")
        features = json.loads(notes).get("info", {}).get("features") or {}
        self.classes = {
            k: v["names"] for k, v in features.items() if isinstance(v, dict) and v.get("_type") == "ClassLabel"
        }

    def __len__(self) -> int:
        return self.starts[-1]

    def __getitem__(self, i: int) -> Row:
        group = bisect.bisect_right(self.starts, i) - 1
        if group != self.group:
            self.rows, self.group = self.file.read_row_group(group), group
        return named_classes(self.rows.slice(i - self.starts[group], 1).to_pylist()[0], self.classes)


def read_file(file: Path) -> Sequence[Row]:
    """Rows of one file by its ending. Raises SightRLError."""
    reader = READERS.get(file.suffix.lower())
    if reader is None:
        known = ", ".join(sorted(READERS))
        raise SightRLError(f"{file} has the ending {file.suffix!r}, and known are {known}; convert it to one of them.")
    try:
        return reader(file)
    except SightRLError:
        raise
    except Exception as error:  # damaged files; readers raise many kinds of errors
        raise SightRLError(f"{file} cannot be read as {file.suffix[1:]} ({cause(error)}); fetch it again.") from None


def read_lines(file: Path) -> list[Any]:
    rows = [row for _, _, row in json_rows(file)]
    return [stop(row) if isinstance(row, SightRLError) else row for row in rows]


def stop(error: SightRLError) -> None:
    raise error


def read_json(file: Path) -> list[Any]:
    """A list of rows; {"logs": rows} of older lmms-eval; {id: row or text}; {column: {number: cell}} of pandas."""
    try:
        data = json.loads(file.read_bytes())
    except (ValueError, RecursionError):
        return read_lines(file)  # JSON lines under another name, or a sentence with the line
    if isinstance(data, dict) and isinstance(data.get("logs"), list):
        return data["logs"]
    if not isinstance(data, dict):
        return data if isinstance(data, list) else stop(SightRLError(f"{file} holds no list of rows; fetch it again."))
    if all(isinstance(column, dict) for column in data.values()) and isinstance(data.get("prediction"), dict):
        return [{name: column.get(i) for name, column in data.items()} for i in data["prediction"]]
    return [{"id": key} | (row if isinstance(row, dict) else {"prediction": row}) for key, row in data.items()]


def read_text_table(file: Path) -> list[Row]:
    """TSV or CSV with a header. A list of pictures and a reference to another row's picture become what they mean."""
    csv.field_size_limit((1 << 31) - 1)
    with open(file, encoding="utf-8-sig", newline="") as lines:
        reader = csv.DictReader(lines, delimiter="," if file.suffix.lower() == ".csv" else "\t", strict=True)
        rows = [{name: cell or None for name, cell in row.items()} for row in reader]
    for i, row in enumerate(rows, 1):
        if None in row:
            raise SightRLError(f"{file} row {i} has more cells than the header has columns; fetch it again.")
    by_index = {row.get("index"): row.get("image") for row in rows}
    for row in rows:
        image = row.get("image")
        if image and len(image) <= 64:  # VLMEvalKit writes a picture once and then the index of that row
            image = by_index.get(image) or image
        if image and image.startswith("[") and image.endswith("]"):
            image = ast.literal_eval(image)
        row |= {"image": image} if "image" in row else {}
    return rows


def read_workbook(file: Path) -> list[Row]:
    """The first sheet of an Excel file, as VLMEvalKit writes predictions."""
    try:
        openpyxl = importlib.import_module("openpyxl")
    except ImportError:
        problem = f"{file} is an Excel file and openpyxl, which reads those, is not installed"
        raise SightRLError(f"{problem}; run pip install openpyxl, or save the table as TSV.") from None
    book = openpyxl.load_workbook(file, read_only=True, data_only=True)
    table = book.worksheets[0].iter_rows(values_only=True)
    header = [str(name) for name in next(table, ())]
    return [dict(zip(header, cells, strict=False)) for cells in table if any(cell is not None for cell in cells)]


READERS: dict[str, Callable[[Path], Sequence[Row]]] = {  # by ending, the likeliest of a folder first
    ".parquet": ParquetRows,
    ".jsonl": read_lines,
    ".json": read_json,
    ".tsv": read_text_table,
    ".csv": read_text_table,
    ".xlsx": read_workbook,
}

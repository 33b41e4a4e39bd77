"""What all readers share: what they are told, where pictures lie, which rows belong to a split."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.data import Sample
from common.errors import SightRLError, bad_row
from common.readers.splits import cut

DEEPEST = 50  # levels of a row's lists and objects
PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".jp2", ".avif", ".ppm")


@dataclass
class Options:
    """What all readers are told, and the lists in which they say what they left out."""

    split: str = "train"
    columns: dict[str, str] = field(default_factory=dict)
    bad_rows: str = "stop"
    allow_outside: bool = False
    skipped: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def leave_out(self, error: SightRLError) -> None:
        """Raise it, or remember it with bad_rows="skip"."""
        if self.bad_rows == "stop":
            raise error
        self.skipped.append(str(error))


def wrap(thought: str, answer: str) -> str:
    r"""A target for supervised warm-up: "<think>thought</think> \boxed{answer}"."""
    return f"<think>{thought}</think> \\boxed{{{answer}}}"


def lettered(choices: Sequence[Any]) -> str:
    """One line per option: "A. red"."""
    return "\n".join(f"{chr(65 + i)}. {choice}" for i, choice in enumerate(choices))


def shown(text: Any, length: int = 80) -> str:
    """Text out of a row, fit for one line of a message."""
    text = "".join(char if char.isprintable() else " " for char in str(text))
    return text if len(text) <= length else text[: length - 3] + "..."


def folder_of(place: str, example: str) -> Path:
    """The folder the user named. Raises SightRLError if it is none."""
    folder = Path(place).expanduser()
    if not folder.is_dir():
        raise SightRLError(f"{place} is not a folder; give the path of {example}.")
    return folder


def split_place(place: str) -> tuple[Path, Path | None]:
    """Both of FILE,IMAGEDIR; a comma may be part of the file's name. Raises SightRLError for no IMAGEDIR."""
    path, comma, images = place.rpartition(",")
    if not comma or Path(place).expanduser().exists():
        return Path(place).expanduser(), None
    return Path(path).expanduser(), folder_of(images, "the folder with the pictures")


def in_split(samples: list[Sample], keys: Sequence[str], split: str, shares: dict[str, float]) -> list[Sample]:
    """Samples of one split after cutting `shares` by the hash of each sample's key."""
    parts = cut(keys, shares)
    return [sample for sample, key in zip(samples, keys, strict=True) if parts[key] == split or not shares]


def picture_key(image: Any) -> str:
    """The same for equal pictures: hash of the bytes, or the path."""
    return hashlib.blake2b(image, digest_size=16).hexdigest() if isinstance(image, bytes) else str(image)


def locate(name: Any, root: Path, options: Options, where: str) -> Path:
    """Path of a picture named in a row, relative to root. Raises SightRLError if missing or outside, links followed."""
    name = name.get("path") if isinstance(name, dict) else name
    if not isinstance(name, str) or not name:
        raise bad_row(f"{where} names no picture file but {shown(name)!r}", "write a path")
    if re.match(r"[a-z]{1,10}://|data:", name, re.IGNORECASE):
        raise bad_row(f"{where}: the picture {shown(name)} is a web address", "download it and write its path")
    path = Path(os.path.normpath(root / name))
    if not options.allow_outside and not is_inside(path, root):
        fix = "move it there, give its folder after a comma in --data, or allow it with --allow-outside"
        raise SightRLError(f"{where}: the picture {shown(name)} lies outside {root}; {fix}.")
    try:
        exists = path.is_file()
    except (OSError, ValueError):
        exists = False
    if not exists:
        raise bad_row(f"{where}: the picture {shown(name)} does not exist in {root}", "add the file")
    return path


def too_deep(value: Any) -> bool:
    """Whether lists and objects lie in one another more than DEEPEST levels deep: functions that walk through them
    could end there."""
    level = [value]
    for _ in range(DEEPEST):
        level = [part for item in level if isinstance(item, (dict, list, tuple))
                 for part in (item.values() if isinstance(item, dict) else item)]  # fmt: skip
        if not level:
            return False
    return True


def is_inside(path: Path, root: Path) -> bool:
    """Whether a file lies in the folder once links are followed. The Hugging Face cache keeps every snapshot as links
    to the folder blobs beside it, which counts as inside."""
    try:
        real, base = (Path(os.path.realpath(place)) for place in (path, root))
    except (OSError, ValueError):  # a name that no file can have, such as one with NUL
        real, base = Path(os.path.abspath(path)), Path(os.path.abspath(root))
    snapshot = next((folder for folder in (base, *base.parents) if folder.parent.name == "snapshots"), None)
    blobs = [snapshot.parent.parent / "blobs"] if snapshot else []
    return any(real.is_relative_to(folder) for folder in (base, *blobs))


def json_rows(path: Path) -> Iterator[tuple[str, int, Any]]:
    """(where, number, row) of every line of a JSON-lines file, or entry of a file that is one JSON list.

    A line that is not JSON gives a SightRLError as its row, so that the reader can skip it. Raises
    SightRLError when the file as a whole cannot be read.
    """
    try:
        data = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    except OSError as error:
        raise SightRLError(f"{path} cannot be read ({error.strerror}); give a JSON-lines file.") from None
    if data.lstrip()[:1] == b"[" and path.suffix == ".json":
        try:
            rows = json.loads(data)
        except (ValueError, RecursionError) as error:
            problem = f"is no JSON list ({shown(error)})"
            raise SightRLError(f"{path} {problem}; correct it or write one object a line.") from None
        yield from ((f"{path} row {n}", n, row) for n, row in enumerate(rows, 1))
        return
    for n, line in enumerate(data.split(b"\n"), 1):
        if not line.strip():
            continue
        where = f"{path} line {n}"
        try:
            yield where, n, json.loads(line)
        except (ValueError, RecursionError) as error:
            problem = error.msg if isinstance(error, json.JSONDecodeError) else type(error).__name__
            yield where, n, bad_row(f"{where} is not JSON ({problem})", "correct the line")

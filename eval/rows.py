"""Rows of a benchmark: from the hub, or from a local file or folder in the published form.

    source = open_rows("mathvista", BENCHMARKS["mathvista"], "data/MathVista")
    source[3]            # the published columns; embedded pictures are PIL images, opened but not decoded
    source.where(3)      # "data/MathVista/data/testmini.parquet row 4": how messages about it begin
    source.pictures(item, source.where(3), 16)     # an item of Benchmark.images(row), decoded

Parquet, JSON, JSON lines, TSV and CSV (base64 pictures as in VLMEvalKit's files), folders of them, and folders that
`datasets` saved. Cells of TSV and CSV files stay text; empty cells and NaN are None.
"""

from __future__ import annotations

import base64
import binascii
import bisect
import hashlib
import io
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from benchmark import Benchmark, Row, Video
from common.errors import SightRLError
from common.pictures import FORMATS, load_image
from common.readers.shared import DEEPEST, is_inside, shown, too_deep
from common.readers.tables import cause, import_datasets
from files import READERS, ArrowRows, read_file
from frames import VIDEOS, sample_frames

BASE64 = re.compile(r"[A-Za-z0-9+/\r\n]+={0,2}\s*")
LONG = 2000  # characters: longer text without blanks is a picture
SKIP = "or leave such rows out with --bad-rows skip"


class Source:
    """The rows of one benchmark: len(), [i] (a fresh dict), where(i), and its pictures."""

    def __init__(self, parts: list[tuple[str, Sequence[Row]]], folder: Path | None, media: str = "") -> None:
        """parts: (file or dataset, its raw rows). Relative paths begin in media, else in folder (None: of the hub)."""
        self.parts, self.allow_outside = parts, False  # whether paths may lead out of these folders
        places = ([Path(media).expanduser()] if media else []) + ([folder] if folder else [])
        self.roots = [os.path.abspath(place) for place in places]
        if media and not os.path.isdir(self.roots[0]):
            raise SightRLError(f"--media {media} is not a folder; give the one with the pictures or videos.")
        self.starts = [0]
        for _, rows in parts:
            self.starts.append(self.starts[-1] + len(rows))

    def __len__(self) -> int:
        return self.starts[-1]

    def part(self, i: int) -> tuple[int, int]:
        number = bisect.bisect_right(self.starts, i) - 1
        return number, i - self.starts[number]

    def where(self, i: int) -> str:
        number, row = self.part(i)
        return f"{self.parts[number][0]} row {row + 1}"

    def __getitem__(self, i: int) -> Row:
        number, row = self.part(i)
        try:
            raw = self.parts[number][1][row]
        except Exception as error:  # a damaged part of a Parquet or Arrow file
            raise SightRLError(f"{self.where(i)} cannot be read ({cause(error)}); fetch the file again.") from None
        if not isinstance(raw, dict):
            raise SightRLError(f"{self.where(i)} is no object with named columns; correct it, {SKIP}.")
        if too_deep(raw):
            problem = f"{self.where(i)} has a column nested more than {DEEPEST} levels deep"
            raise SightRLError(f"{problem}; flatten it, {SKIP}.")
        return {str(name): prepared(cell) for name, cell in raw.items()}

    def pictures(self, item: Any, where: str, frames: int) -> list[tuple[Image.Image, float | None]]:
        """(RGB picture, its second in the video or None) of an item of Benchmark.images(row). Raises SightRLError."""
        if not isinstance(item, Video):
            return [(load_image(self.bytes_or_path(item, where), where), None)]
        pictures, seconds = sample_frames(self.video(item.path, where), frames)
        if item.times and seconds is None:
            raise SightRLError(f"{where}: {item.path} does not tell the seconds of its frames; give the video file.")
        return list(zip(pictures, seconds or [None] * len(pictures), strict=True))

    def with_pictures(self, row: Row, items: Sequence[Any], where: str) -> Row:
        """The row, its columns with the paths of `items` holding those pictures, opened: scorers may need the size."""
        opened_row = dict(row)
        for name, value in row.items():
            if isinstance(value, str) and any(value is item for item in items):
                found = self.bytes_or_path(value, f"{where} column {name!r}")
                opened_row[name] = opened(found if isinstance(found, bytes) else Path(found))
        return opened_row

    def bytes_or_path(self, item: Any, where: str) -> Any:
        if isinstance(item, Image.Image | bytes):
            return item
        if not isinstance(item, str) or not item:
            raise SightRLError(f"{where} holds no picture but {shown(repr(item), 40)}; fetch it again, {SKIP}.")
        return from_base64(item) or self.path(item, where, "the picture", [item])

    def video(self, name: str, where: str) -> Path:
        stem, ending = os.path.splitext(name)
        unpacked = [stem] if ending.lower() in VIDEOS else []  # a folder of its frames
        names = [name, *(f"{name}{end}" for end in VIDEOS), f"{name}.gif", *unpacked]
        return self.path(name, where, "the video", [*names, *(f"{f}/{n}" for f in ("videos", "video") for n in names)])

    def path(self, name: str, where: str, what: str, names: list[str]) -> Path:
        """The first of the names that exists below the root. Raises SightRLError for none, and for a way out."""
        if re.match(r"[a-z]{1,10}://|data:", name, re.IGNORECASE):
            problem = f"{where}: {what} {shown(name)} is a web address"
            raise SightRLError(f"{problem}; download it and write its path, {SKIP}.")
        if not self.roots:
            if os.path.isabs(name) and os.path.isfile(name) and (self.allow_outside or is_unpacked(Path(name))):
                return Path(name)
            problem = f"{where} names {what} {shown(name)}, which the dataset does not hold"
            raise SightRLError(f"{problem}; download it and give its folder with --media FOLDER.")
        for root in self.roots:
            for candidate in names:
                found = Path(os.path.normpath(os.path.join(root, candidate)))
                if not self.allow_outside and not is_inside(found, Path(root)):
                    problem = f"{where}: {what} {shown(name)} lies outside {root}; move it there"
                    raise SightRLError(f"{problem}, give its folder with --media FOLDER, or --allow-outside.")
                try:
                    if found.exists():
                        return found
                except (OSError, ValueError):
                    continue
        problem = f"{where}: {what} {shown(name)} does not exist in {' or '.join(self.roots)}"
        raise SightRLError(f"{problem}; add the file, give its folder with --media FOLDER, {SKIP}.")


def is_unpacked(path: Path) -> bool:
    """Whether the datasets library unpacked it: the only place outside of their own that rows of the hub may name."""
    places = import_datasets().config.HF_DATASETS_CACHE, import_datasets().config.HF_CACHE_HOME
    return any(is_inside(path, Path(place)) for place in places)


# ---------------------------------------------------------------- cells


def prepared(cell: Any) -> Any:
    """A cell as scorers get it: embedded pictures opened, {"bytes": None, "path"} the path, NaN None."""
    if isinstance(cell, bytes):
        return opened(cell)
    if isinstance(cell, float) and math.isnan(cell):
        return None
    if isinstance(cell, list | tuple):
        return [prepared(part) for part in cell]
    if not isinstance(cell, dict):
        return cell
    if "path" in cell and set(cell) <= {"bytes", "path"}:
        return opened(cell["bytes"]) if isinstance(cell.get("bytes"), bytes) else cell["path"]
    return {str(name): prepared(part) for name, part in cell.items()}


def opened(source: bytes | Path) -> Any:
    """A PIL image that is decoded when it is needed; what is no picture stays what it is."""
    try:
        return Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS)
    except Exception:  # whoever asks for the picture gets the sentence
        return source if isinstance(source, bytes) else str(source)


def from_base64(text: str) -> bytes | None:
    """The bytes of a base64 picture, None for text that looks like a path."""
    text = text.partition(",")[2] if text.startswith("data:image/") else text
    if len(text) < 64 or not BASE64.fullmatch(text[:256]):
        return None
    try:
        return base64.b64decode(text)
    except (binascii.Error, ValueError):
        return None


def light(cell: Any) -> Any:
    """The cell without pictures (None), as plain JSON."""
    if isinstance(cell, dict):
        return {str(name): light(part) for name, part in cell.items()}
    if isinstance(cell, list | tuple):
        return [light(part) for part in cell]
    if cell is None or isinstance(cell, bytes | Image.Image):
        return None
    if isinstance(cell, str):
        return None if len(cell) > LONG and from_base64(cell) else cell
    return cell if isinstance(cell, bool | int | float) else str(cell)


def column_of(row: Row, item: Any) -> str:
    """ " column 'image'" of a picture of the row, for messages; "" where it was computed."""

    def holds(cell: Any) -> bool:
        return cell is item or (isinstance(cell, list) and any(part is item for part in cell))

    return next((f" column {name!r}" for name, cell in row.items() if item is not None and holds(cell)), "")


def picture_key(item: Any) -> str:
    """The same for equal pictures of equal files."""
    if isinstance(item, Image.Image):
        file = getattr(item, "fp", None)
        data = file.getbuffer() if isinstance(file, io.BytesIO) else item.tobytes()
    else:
        data = item if isinstance(item, bytes) else str(item).encode("utf-8", "backslashreplace")
    return hashlib.blake2b(data, digest_size=16).hexdigest()


# ---------------------------------------------------------------- opening


def open_rows(name: str, benchmark: Benchmark, place: str = "", media: str = "", allow_outside: bool = False) -> Source:
    """The rows of a benchmark: at `place` (a local file or folder, or hf:NAME[,CONFIG]), else where it is published.

    allow_outside: rows may name files outside of the folder. Raises SightRLError with the command that fetches the data
    when there is none.
    """
    if not place or place.startswith("hf:"):
        source = from_hub(name, (place or benchmark.source).removeprefix("hf:"), benchmark, media)
    else:
        source = from_disk(name, Path(place).expanduser(), benchmark, media)
    source.allow_outside = allow_outside
    if not len(source):
        raise SightRLError(f"{place or benchmark.source} has no rows for {name}; fetch it again.")
    return source


def from_disk(name: str, path: Path, benchmark: Benchmark, media: str) -> Source:
    folder = path if path.is_dir() else path.parent
    config = benchmark.source.partition(",")[2]
    if not path.exists():
        raise SightRLError(f"{path} does not exist; give the file or folder with the rows of {name}.")
    if benchmark.read is not None:
        return Source([(str(path), benchmark.read(path))], folder, media)
    if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
        return Source([t for part in benchmark.split.split("+") for t in saved_dataset(path, part)], folder, media)
    parts = benchmark.split.split("+")
    files = [path] if path.is_file() else [f for part in parts for f in published_files(path, config, part)]
    return Source([(str(file), read_file(file)) for file in files], folder, media)


def published_files(folder: Path, config: str, split: str) -> list[Path]:
    """The files of a split, as the dataset's card names them, else by their names. Raises SightRLError for none."""
    if named := [f for f in files_of_card(folder, config, split) if f.suffix.lower() in READERS]:
        return named
    every = sorted(f for f in folder.rglob("*") if f.suffix.lower() in READERS and not hidden(f, folder))
    exact = lambda f: split in (*f.relative_to(folder).parts[:-1], re.sub(r"-\d+-of-\d+.*", "", f.stem))  # noqa: E731
    word = re.compile(rf"(^|[-_.]){re.escape(split)}($|[-_.])", re.IGNORECASE)
    for end in READERS:
        files = [f for f in every if f.suffix.lower() == end]
        files = [f for f in files if config in (*f.relative_to(folder).parts, f.stem)] or files
        if found := [f for f in files if exact(f)] or [f for f in files if word.search(f.stem)]:
            return found
    if len(every) == 1:
        return every
    names = ", ".join(str(f.relative_to(folder)) for f in every[:6]) or "no Parquet, JSON, TSV or CSV file"
    raise SightRLError(f"{folder} has no file of the split {split!r} (it holds {names}); give the file itself.")


def hidden(file: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(folder).parts)


def files_of_card(folder: Path, config: str, split: str) -> list[Path]:
    """What README.md of a downloaded dataset says about a split, of one configuration or of all."""
    from huggingface_hub import metadata_load

    try:
        configs = (metadata_load(folder / "README.md") or {}).get("configs") or []
    except Exception:  # no card, or one that is no YAML
        return []
    files: list[Path] = []
    for entry in configs if isinstance(configs, list) else []:
        parts = entry.get("data_files") if isinstance(entry, dict) else None
        if config and (not isinstance(entry, dict) or entry.get("config_name") != config):
            continue
        for part in parts if isinstance(parts, list) else []:
            if isinstance(part, dict) and part.get("split") == split:
                patterns = part["path"] if isinstance(part.get("path"), list) else [part.get("path")]
                files += [
                    f for pattern in patterns if safe(pattern) for f in sorted(folder.glob(pattern)) if f.is_file()
                ]
    return list(dict.fromkeys(files))


def safe(pattern: Any) -> bool:
    return isinstance(pattern, str) and bool(pattern) and not pattern.startswith("/") and ".." not in pattern


def saved_dataset(folder: Path, split: str) -> list[tuple[str, Sequence[Row]]]:
    """What Dataset.save_to_disk or DatasetDict.save_to_disk wrote."""
    datasets = import_datasets()
    try:
        tables = datasets.load_from_disk(str(folder))
    except Exception as error:
        raise SightRLError(f"{folder} cannot be read as a saved dataset ({cause(error)}); fetch it again.") from None
    if isinstance(tables, datasets.Dataset):
        return [(str(folder), ArrowRows(tables))]
    if split not in tables:
        raise SightRLError(f"{folder} has the splits {', '.join(tables)}, but no {split!r}; fetch that split.")
    return [(f"{folder} {split}", ArrowRows(tables[split]))]


def from_hub(name: str, place: str, benchmark: Benchmark, media: str) -> Source:
    """The published dataset: online, out of the cache of `datasets`, or out of what `hf download` fetched."""
    if place.startswith("github:"):
        page = f"https://github.com/{place.removeprefix('github:')}"
        raise SightRLError(f"the rows of {name} are published at {page}; fetch them and give --data {name}=PATH.")
    dataset, _, config = place.partition(",")
    try:
        return Source(hub_tables(dataset, config, benchmark.split), None, media)
    except SightRLError:
        raise
    except Exception as error:  # the kinds of connection errors change with the HTTP library
        problem, absent = cause(error), isinstance(error, ConnectionError | FileNotFoundError)
    if folder := downloaded(dataset):
        return from_disk(name, folder, benchmark, media)
    short = dataset.split("/")[-1]
    if absent:
        problem = f"the rows of {name} ({dataset}) are not in the Hugging Face cache and cannot be downloaded"
        fetch = f"hf download --repo-type dataset {dataset} --local-dir {short}"
        raise SightRLError(f"{problem}; where there is a network run {fetch} and give --data {name}={short}.")
    raise SightRLError(f"the dataset {dataset} cannot be opened ({problem}); give the rows with --data {name}=FILE.")


def hub_tables(dataset: str, config: str, split: str) -> list[tuple[str, Sequence[Row]]]:
    """(dataset and split, rows) of one configuration; of all of them, one after another, where none is named."""
    import huggingface_hub

    datasets = import_datasets()
    try:
        huggingface_hub.HfApi().dataset_info(dataset, timeout=10)
    except huggingface_hub.errors.HfHubHTTPError:
        pass  # the hub answered; load_dataset says what is wrong
    except Exception:  # no network: only the cache is tried, so that nobody waits for retries
        datasets.config.HF_HUB_OFFLINE = huggingface_hub.constants.HF_HUB_OFFLINE = True
    try:
        configs = [config] if config else datasets.get_dataset_config_names(dataset)
    except Exception:  # load_dataset below fails for the same reason and says it
        configs = []
    tables = []
    for part in [c for c in configs if c == "default"] or configs or [None]:
        table = datasets.load_dataset(dataset, part, split=split)
        tables.append((" ".join(filter(None, (dataset, part if len(configs) > 1 else "", split))), ArrowRows(table)))
    return tables


def downloaded(dataset: str) -> Path | None:
    """The folder into which `hf download --repo-type dataset` put it, None without one."""
    import huggingface_hub

    try:
        folder = Path(huggingface_hub.snapshot_download(dataset, repo_type="dataset", local_files_only=True))
    except Exception:  # nothing there, in as many ways as the library has
        return None
    return folder if any(f.suffix.lower() in READERS for f in folder.rglob("*")) else None

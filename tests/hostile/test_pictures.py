"""Hostile pictures through every reader: right pixels, or one sentence that names the file and the row, counted."""

from __future__ import annotations

import json
import struct
import tracemalloc
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from helpers import encoded, jsonl
from PIL import Image

from common.data import Sample, open_dataset
from common.errors import SightRLError

SIZE = (12, 8)  # width, height
RED, WHITE = (255, 0, 0), (255, 255, 255)
READERS = ("jsonl", "parquet", "images", "coco")


@dataclass
class Picture:
    """A file and what must become of it: a colour everywhere, pixels {(x, y): colour}, or words of the sentence."""

    data: bytes | None  # None: a folder of this name
    colour: tuple[int, int, int] | None = None
    pixels: dict[tuple[int, int], tuple[int, int, int]] | None = None
    refused: str = ""
    size: tuple[int, int] = SIZE


def plain(colour: tuple[int, ...] = RED, mode: str = "RGB", size: tuple[int, int] = SIZE) -> Image.Image:
    return Image.new(mode, size, colour)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *chunks: bytes, after: bytes = b"") -> bytes:
    """A PNG of these chunks behind a header that claims a size."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + after + chunk(b"IEND", b"")


def rows_of(width: int, height: int) -> bytes:
    return chunk(b"IDAT", zlib.compress((b"\0" + bytes(RED) * width) * height))


def turned() -> Image.Exif:
    """Orientation 6: the first row of the file is the right-hand side of the picture."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def sixteen(kind: str) -> bytes:
    values = np.zeros((8, 12), np.uint16)
    values[0, :3] = (0, 32768, 65535)
    return encoded(Image.fromarray(values), kind)


def corner(colour: tuple[int, int, int], turn: bool = False, **options: object) -> bytes:
    """A white JPEG or PNG with a big corner of another colour, upper left in the file."""
    image = plain(WHITE, size=(48, 32))
    image.paste(colour, (0, 0, 16, 16))
    return encoded(image, "JPEG", quality=95, **options)


def huge_exif() -> bytes:
    exif = turned()
    exif[0x010E] = "x" * 60_000  # a description that nearly fills the segment
    return exif.tobytes()


def animated(kind: str) -> bytes:
    return encoded(plain(), kind, save_all=True, append_images=[plain((0, 0, 255))] * 3, duration=9, lossless=True)


def palette() -> bytes:
    image = Image.new("P", SIZE, 1)
    image.putpalette([0, 255, 0, 255, 0, 0])
    image.putpixel((0, 0), 0)
    return encoded(image, "PNG", transparency=0)


def half_clear() -> bytes:
    image = plain((255, 0, 0, 255), "RGBA")
    image.putpixel((0, 0), (0, 0, 0, 0))
    return encoded(image)


def gif_of(width: int, height: int) -> bytes:
    frame = encoded(plain(), "GIF")
    return frame[:6] + struct.pack("<HH", width, height) + frame[10:]


def bomb(kind: bytes) -> bytes:
    """A text chunk of 200 MB in 200 kB."""
    head = {b"zTXt": b"x\0\0", b"iTXt": b"x\0\1\0\0\0"}[kind]
    return chunk(kind, head + zlib.compress(b"a" * 200_000_000, 9))


SEEN = {(28, 4): (0, 0, 255), (4, 4): WHITE, (4, 40): WHITE}  # the corner, once turned: upper right of 32 x 48
WHOLE = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 255, (80, 120, 3), np.uint8)))
SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><script>alert(1)</script></svg>'
UNKNOWN = "no JPEG, PNG, WebP, BMP, GIF or TIFF"

PICTURES: dict[str, Picture] = {
    "good.png": Picture(encoded(plain()), RED),
    "png-called.jpg": Picture(encoded(plain()), RED),
    "jpeg-called.png": Picture(encoded(plain(WHITE), "JPEG"), WHITE),
    "one.png": Picture(encoded(plain(size=(1, 1))), RED, size=(1, 1)),
    "cmyk.jpg": Picture(encoded(plain((0, 0, 0, 0), "CMYK"), "JPEG"), WHITE),
    "bits.png": Picture(encoded(Image.new("1", SIZE, 1)), WHITE),
    "deep.png": Picture(sixteen("PNG"), pixels={(0, 0): (0, 0, 0), (1, 0): (128, 128, 128), (2, 0): WHITE}),
    "deep.tif": Picture(sixteen("TIFF"), pixels={(0, 0): (0, 0, 0), (1, 0): (128, 128, 128), (2, 0): WHITE}),
    "moving.gif": Picture(animated("GIF"), RED),
    "moving.webp": Picture(animated("WEBP"), RED),
    "moving.png": Picture(animated("PNG"), RED),
    "palette.png": Picture(palette(), pixels={(0, 0): WHITE, (5, 5): RED}),
    "clear.png": Picture(half_clear(), pixels={(0, 0): WHITE, (5, 5): RED}),
    "gray-clear.png": Picture(encoded(plain((0, 0), "LA")), WHITE),
    "turned.jpg": Picture(corner((0, 0, 255), exif=turned()), pixels=SEEN, size=(32, 48)),
    "turned-huge.jpg": Picture(corner((0, 0, 255), exif=huge_exif()), pixels=SEEN, size=(32, 48)),
    "broken-exif.jpg": Picture(encoded(plain(WHITE), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff" + b"\xee" * 999),
                               WHITE),
    "no-exif.jpg": Picture(encoded(plain(WHITE), "JPEG", exif=b"Exif\0\0garbage"), WHITE),
    "profile.png": Picture(encoded(plain(), icc_profile=b"\0" * 500_000), RED),
    "two-in-one.jpg": Picture(encoded(plain(WHITE), "MPO", save_all=True, append_images=[plain()]), WHITE),
    "cut.png": Picture(WHOLE[: len(WHOLE) // 2], refused="cannot be read"),
    "cut.jpg": Picture(corner(RED)[:400], refused="cannot be read"),
    "bomb.png": Picture(png(100_000, 100_000, rows_of(9, 9)), refused="has more than 89,478,485 pixels"),
    "bomb-below-pillows.png": Picture(png(11_000, 11_000, rows_of(9, 9)), refused="pixels and the limit is 89,478,485"),
    "bomb.gif": Picture(gif_of(65_535, 65_535), refused="has more than 89,478,485 pixels"),
    "narrow.png": Picture(encoded(plain(size=(1, 20_000))), refused="1 x 20000"),
    "long.png": Picture(encoded(plain(size=(300, 1))), refused="200 times"),
    "nothing.png": Picture(b"", refused="is empty"),
    "folder.png": Picture(None, refused="folder.png"),
    "drawing.svg.png": Picture(SVG, refused=UNKNOWN),
    "page.jpg": Picture(b"<!doctype html><p>404", refused=UNKNOWN),
    "script.png": Picture(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(%pipe%touch x) (w) file",
                          refused=UNKNOWN),
    "no-rows.png": Picture(png(*SIZE), refused="cannot be read"),
    "text-bomb.png": Picture(png(*SIZE, bomb(b"zTXt"), rows_of(*SIZE)), refused="cannot be read"),
    "text-bomb-behind.png": Picture(png(*SIZE, rows_of(*SIZE), after=bomb(b"iTXt")), refused="cannot be read"),
}  # fmt: skip
USABLE = sorted(name for name, picture in PICTURES.items() if not picture.refused)


def write(folder: Path, reader: str) -> str:
    """All pictures in one data set of this reader; its --data form."""
    pictures = folder / "pictures"
    pictures.mkdir()
    for name, picture in PICTURES.items():
        if picture.data is None:
            (pictures / name).mkdir()
        else:
            (pictures / name).write_bytes(picture.data)
    rows = [{"question": name, "answer": "1", "image": f"pictures/{name}"} for name in PICTURES]
    if reader == "images":
        return f"images:{pictures}"
    if reader == "jsonl":
        return jsonl(folder / "d.jsonl", rows)
    if reader == "parquet":
        table = [row | {"image": {"bytes": PICTURES[row["question"]].data, "path": None}} for row in rows]
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(table), folder / "d.parquet")
        return f"parquet:{folder / 'd.parquet'}"
    images = [{"id": n, "file_name": name, "width": p.size[0], "height": p.size[1]}
              for n, (name, p) in enumerate(PICTURES.items())]  # fmt: skip
    boxes = [{"image_id": n, "category_id": 1, "bbox": [0, 0, 1, 1]} for n in range(len(images))]
    data = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "cup"}]}
    (folder / "d.json").write_text(json.dumps(data))
    return f"coco:{folder / 'd.json'},{pictures}"


def name_of(sample: Sample, reader: str) -> str:
    return sample.images[0].name if reader in ("images", "coco") else sample.question


@pytest.fixture(scope="module", params=READERS)
def opened(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str, list]:
    """(reader, --data form, its three splits with --bad-rows skip)."""
    spec = write(tmp_path_factory.mktemp(request.param), request.param)
    return request.param, spec, [open_dataset(spec, split, bad_rows="skip") for split in ("train", "val", "test")]


def matches(image: Image.Image, picture: Picture) -> bool:
    near = lambda a, b: all(abs(x - y) <= 6 for x, y in zip(a, b, strict=True))  # noqa: E731 (JPEG)
    found = {place: image.getpixel(place) for place in picture.pixels or {}}
    if picture.colour is not None:
        found = {place: image.getpixel(place) for place in ((0, 0), (image.width - 1, image.height - 1))}
    wanted = picture.pixels or dict.fromkeys(found, picture.colour)
    return image.mode == "RGB" and image.size == picture.size and all(near(found[p], wanted[p]) for p in wanted)


def test_usable_pictures_are_right(opened: tuple[str, str, list]) -> None:
    reader, _, datasets = opened
    images = {name_of(s, reader): s.load_images()[0] for d in datasets for s in d.take(10_000)}
    assert sorted(images) == USABLE
    assert [name for name in USABLE if not matches(images[name], PICTURES[name])] == []


def test_the_others_are_refused_in_one_sentence_and_counted(opened: tuple[str, str, list]) -> None:
    reader, spec, datasets = opened
    for dataset in datasets:
        dataset.take(10_000)
    skipped = [sentence for dataset in datasets for sentence in dict.fromkeys(dataset.skipped)]
    place = {"jsonl": "d.jsonl line {}", "parquet": "d.parquet train row {}", "coco": "d.json image {}",
             "images": "pictures/{}"}[reader]  # fmt: skip
    for number, (name, picture) in enumerate(PICTURES.items()):
        if picture.refused and not (reader == "images" and picture.data is None):  # a folder there is a folder
            named = place.format({"images": name, "coco": number}.get(reader, number + 1)) + ":"
            said = [s for s in skipped if f"{named} " in s or (reader == "parquet" and named[:-1] + " " in s)]
            words = picture.refused if picture.data is not None or reader != "parquet" else "names no picture"
            assert said and all(words in sentence for sentence in said), (name, said)
            assert all("\n" not in s and s.endswith(".") and len(s) < 500 for s in said)
    assert not [s for s in skipped if any(f" {name} " in s for name in USABLE)]


@pytest.mark.parametrize("name", ["cut.png", "bomb.png", "drawing.svg.png", "nothing.png"])
def test_the_same_sentence_stops_otherwise(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(PICTURES[name].data)
    dataset = open_dataset(f"images:{tmp_path}", "train")
    with pytest.raises(SightRLError, match=name):
        dataset.take(1)


def test_bombs_do_not_go_off() -> None:
    """No picture that is refused takes more memory than the largest that is allowed."""
    tracemalloc.start()
    for name, picture in PICTURES.items():
        if picture.refused and picture.data:
            with pytest.raises(SightRLError):
                Sample("x", "", "", "", [picture.data]).load_images()
            assert tracemalloc.get_traced_memory()[1] < 120_000_000, name
    tracemalloc.stop()

"""Pictures of every odd kind, splits, order and resume of the stream, and what is said about bad rows."""

import json
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from helpers import encoded, sentence_of
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from common import pictures
from common.data import Dataset, Sample, Stream, open_dataset, taking_turns
from common.errors import SightRLError
from common.pictures import ImageCache, load_image
from common.readers.splits import SHARES, cut, linked, official_part


def pixels(source: object, **options: object) -> np.ndarray:
    image = load_image(source, "here", **options)
    assert image.mode == "RGB"
    return np.asarray(image)  # uint8 [height, width, 3]


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


# ---------------------------------------------------------------------------------------------- picture modes
def test_rgb_pixels_are_unchanged():
    array = noise(5, 7, 3)
    np.testing.assert_array_equal(pixels(encoded(Image.fromarray(array))), array)
    np.testing.assert_array_equal(pixels(Image.fromarray(array)), array)


def test_gray_palette_and_one_bit():
    gray = noise(5, 7)
    np.testing.assert_array_equal(pixels(encoded(Image.fromarray(gray))), np.repeat(gray[..., None], 3, 2))
    palette = Image.fromarray(noise(5, 7, 3)).quantize(16)
    np.testing.assert_array_equal(pixels(encoded(palette)), np.asarray(palette.convert("RGB")))
    assert set(np.unique(pixels(encoded(Image.new("1", (4, 4), 1))))) == {255}


def test_sixteen_bits_are_scaled_not_clipped():
    values = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)
    assert pixels(encoded(Image.fromarray(values)))[0, :, 0].tolist() == [0, 1, 128, 255]
    assert pixels(encoded(Image.fromarray(values.astype(np.int32)), "TIFF"))[0, :, 0].tolist() == [0, 1, 128, 255]
    assert pixels(encoded(Image.fromarray(np.array([[0, 0.5, 1.0]], np.float32)), "TIFF"))[0, :, 0].tolist() == [
        0,
        128,
        255,
    ]
    assert pixels(encoded(Image.fromarray(np.array([[0, 7, 255]], np.int32)), "TIFF"))[0, :, 0].tolist() == [0, 7, 255]


def test_transparency_becomes_white():
    clear = Image.new("RGBA", (3, 2), (200, 0, 0, 0))
    half = Image.new("LA", (3, 2), (0, 128))
    assert (pixels(encoded(clear)) == 255).all()
    assert abs(int(pixels(encoded(half))[0, 0, 0]) - 127) <= 1
    palette = Image.new("P", (3, 2), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    assert (pixels(encoded(palette, transparency=1)) == 255).all()
    assert (pixels(encoded(Image.new("RGB", (3, 2), (1, 2, 3)), transparency=(1, 2, 3))) == 255).all()


def test_cmyk_and_webp_and_gif():
    assert pixels(encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=100))[4, 4, 0] > 200  # red
    assert pixels(encoded(Image.new("RGB", (8, 8), "blue"), "WEBP", lossless=True))[0, 0].tolist() == [0, 0, 255]
    frames = [Image.new("RGB", (4, 4), c) for c in ("red", "lime")]
    assert pixels(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]))[0, 0].tolist() == [255, 0, 0]


def test_exif_rotation_is_applied_unless_the_annotation_says_otherwise():
    image = Image.new("RGB", (6, 4))
    exif = image.getexif()
    exif[0x0112] = 6  # turn by 90 degrees to look at it
    turned = encoded(image, "JPEG", exif=exif)
    assert load_image(turned, "here").size == (4, 6)
    assert load_image(turned, "here", (4, 6)).size == (4, 6)
    assert load_image(turned, "here", (6, 4)).size == (6, 4)
    assert sentence_of(load_image, turned, "a.xml", (5, 5)) == (
        "a.xml: the embedded picture is 6 x 4 but its annotation says 5 x 5; correct the annotation, or "
        "leave such rows out with "
        "--bad-rows skip."
    )


# ------------------------------------------------------------------------------------------- refused pictures
def header_only(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds no pixels."""
    chunks = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0), b"IDAT"
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks
    )


def test_too_large_too_long_and_bombs():
    hint = "or leave such rows out with --bad-rows skip."
    wide = encoded(Image.new("1", (17_000, 100)))
    assert sentence_of(load_image, wide, "f.jsonl line 3") == (
        "f.jsonl line 3: the embedded picture is 17000 x 100 and the limit is 16,384 pixels on a side; "
        f"shrink it, {hint}"
    )
    assert "has 100,000,000 pixels and the limit is 89,478,485; shrink it" in sentence_of(
        load_image, header_only(10_000, 10_000), "x"
    )
    assert "shrink it" in sentence_of(load_image, header_only(60_000, 60_000), "x")  # Pillow refuses this one itself
    assert sentence_of(load_image, encoded(Image.new("RGB", (1, 201))), "x") == (
        f"x: the embedded picture is 1 x 201, more than 200 times as long as wide; crop it, {hint}"
    )
    assert load_image(encoded(Image.new("RGB", (1, 200))), "x").size == (1, 200)
    assert "shrink it" in sentence_of(
        load_image, Image.new("1", (17_000, 100)), "x"
    )  # also when it is a PIL image already


def test_missing_empty_truncated_and_foreign_files(tmp_path: Path):
    assert sentence_of(load_image, tmp_path / "a.png", "f line 1") == (
        f"f line 1: the picture {tmp_path / 'a.png'} does not exist; add the file, or leave such rows "
        "out with --bad-rows skip."
    )
    (tmp_path / "empty.png").write_bytes(b"")
    assert "is empty; fetch it again" in sentence_of(load_image, tmp_path / "empty.png", "f")
    photo = encoded(Image.fromarray(noise(64, 64, 3)), "JPEG")
    (tmp_path / "cut.jpg").write_bytes(photo[: len(photo) // 2])
    assert "cut.jpg cannot be read (image file is truncated" in sentence_of(
        load_image, tmp_path / "cut.jpg", "f line 2"
    )
    assert "cannot be read (no JPEG, PNG, WebP" in sentence_of(load_image, b"%!PS-Adobe-3.0 EPSF-3.0\nquit", "f")
    assert "cannot be read" in sentence_of(load_image, tmp_path, "f")  # a folder
    assert "does not exist" in sentence_of(load_image, "a\0b.png", "f")
    lazy = Image.open(tmp_path / "cut.jpg")  # Pillow has not decoded it yet
    assert sentence_of(load_image, lazy, "f").startswith("f: the picture cannot be read (image file is truncated")


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.data())
def test_damaged_files_give_a_sentence(draw):
    """Whatever bytes are flipped: a picture or a SightRLError, nothing else."""
    kind = draw.draw(st.sampled_from(["PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF"]))
    damaged = bytearray(encoded(Image.fromarray(noise(16, 16, 3)), kind))
    for _ in range(draw.draw(st.integers(1, 6))):
        damaged[draw.draw(st.integers(0, len(damaged) - 1))] = draw.draw(st.integers(0, 255))
    try:
        assert load_image(bytes(damaged[: draw.draw(st.integers(1, len(damaged)))]), "x").mode == "RGB"
    except SightRLError as error:
        assert "\n" not in str(error)


def test_each_distinct_picture_is_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pictures, "DECODED", ImageCache())
    (tmp_path / "a.png").write_bytes(encoded(Image.new("RGB", (8, 8))))
    first = load_image(tmp_path / "a.png", "x")
    assert load_image(tmp_path / "a.png", "y") is first
    content = encoded(Image.new("RGB", (8, 8), "red"))
    assert load_image(content, "x") is load_image(bytes(bytearray(content)), "y")


def test_the_cache_stays_within_its_limit():
    cache = ImageCache(limit=3 * 100 * 5)
    for i in range(20):
        cache.get(i, lambda: Image.new("RGB", (10, 10)))
    assert list(cache.images) == [15, 16, 17, 18, 19] and cache.used == 1500
    assert cache.get("large", lambda: Image.new("RGB", (100, 100))).size == (100, 100)  # still served
    assert cache.used == 0


# ----------------------------------------------------------------------------------------------------- splits
def test_cut_gives_every_split_something_and_keeps_old_rows():
    few = cut(["a", "b", "c"], SHARES)
    assert sorted(few.values()) == ["test", "train", "val"]
    assert set(cut(["a", "b"], SHARES).values()) == {"train"}
    names = [f"{i}.png" for i in range(2000)]
    parts = cut(names, SHARES)
    shares = {split: sum(p == split for p in parts.values()) / 2000 for split in ("train", "val", "test")}
    assert abs(shares["test"] - 0.10) < 0.02 and abs(shares["val"] - 0.05) < 0.015
    more = cut([*names, *(f"new{i}" for i in range(500))], SHARES)
    assert all(more[name] == parts[name] for name in names)


def test_official_parts():
    assert official_part(["train", "val", "test"], "test", "x") == ("test", {})
    assert official_part(["train", "val", "test"], "train", "x") == ("train", {})
    assert official_part(["train", "validation"], "test", "x") == ("validation", {})
    assert official_part(["train", "validation"], "val", "x") == ("train", {"val": 0.05})
    assert official_part(["train", "validation"], "train", "x") == ("train", {"val": 0.05})
    assert official_part(["train", "test"], "train", "x") == ("train", {"val": 0.05})
    assert official_part(["all"], "val", "x") == ("all", SHARES)
    assert official_part(["test"], "test", "x") == ("test", {})
    assert (
        sentence_of(official_part, ["test"], "train", "D")
        == "D has the parts test, nothing to use as train; name one of them train."
    )
    assert "nothing to use as val" in sentence_of(official_part, ["a", "b"], "val", "D")


def test_rows_that_share_a_picture_stay_together():
    keys = linked([["a", "b"], ["c"], ["b", "d"], ["d"], ["e", "c"], ["f"]])
    assert keys[0] == keys[2] == keys[3] and keys[1] == keys[4] and len({keys[0], keys[1], keys[5]}) == 3


def test_kinds_take_turns():
    tasks = ["a"] * 50 + ["b"] * 3 + ["c"] * 10
    order = taking_turns(tasks, seed=1)
    assert sorted(order) == list(range(63))
    assert {tasks[i] for i in order[:3]} == {"a", "b", "c"} and [tasks[i] for i in order[:9]].count("b") == 3
    assert order == taking_turns(tasks, seed=1) != taking_turns(tasks, seed=2)


# ----------------------------------------------------------------------------------------------------- stream
def plain(n: int, broken: tuple[int, ...] = (), bad_rows: str = "skip") -> Dataset:
    images = [b"broken" if i in broken else encoded(Image.new("RGB", (4, 4), (i, 0, 0))) for i in range(n)]
    samples = [
        Sample(f"d:{i}", "?", str(i), "t", [image], where=f"d.jsonl line {i + 1}") for i, image in enumerate(images)
    ]
    return Dataset("d", "train", samples, bad_rows=bad_rows)


def ids(samples: list[Sample]) -> list[int]:
    return [int(sample.id.split(":")[1]) for sample in samples]


def test_stream_sees_every_row_once_an_epoch_in_a_new_order():
    stream = Stream(plain(10), seed=5)
    first, second = ids(stream.next(10)), ids(stream.next(10))
    assert sorted(first) == sorted(second) == list(range(10)) and first != second
    assert ids(Stream(plain(10), seed=5).next(20)) == first + second
    assert ids(Stream(plain(10), seed=6).next(10)) != first
    assert len(Stream(plain(3), seed=0).next(8)) == 8  # more than there is


def test_stream_resumes_exactly():
    whole = Stream(plain(7, broken=(2,)), seed=3)
    expected = ids(whole.next(40))
    for stop in (0, 1, 6, 7, 20):
        part = Stream(plain(7, broken=(2,)), seed=3)
        before = ids(part.next(stop))
        state = json.loads(json.dumps(part.state_dict()))
        resumed = Stream(plain(7, broken=(2,)), seed=0)
        resumed.load_state_dict(state)
        assert before + ids(resumed.next(40 - stop)) == expected
        assert resumed.skipped == whole.skipped
    error = sentence_of(Stream(plain(8)).load_state_dict, whole.state_dict())
    assert error == "d has 8 train questions, but the run to resume had 7; use the same data and options."


def test_broken_pictures_are_skipped_and_counted():
    dataset = plain(5, broken=(1, 3))
    stream = Stream(dataset, seed=0)
    assert sorted(ids(stream.next(6))) == [0, 0, 2, 2, 4, 4]
    assert stream.skipped == 4 and len(dataset.skipped) == 2 and "d.jsonl line" in dataset.skipped[0]
    assert ids(dataset.take(99)) == [0, 2, 4] and ids(dataset.take(2)) == [0, 2]


def test_broken_pictures_stop_the_run_otherwise():
    assert sentence_of(Stream(plain(2, broken=(0, 1), bad_rows="stop")).next, 1).startswith("d.jsonl line ")
    assert sentence_of(Stream(plain(2, broken=(0, 1))).next, 1).startswith(
        "no row of d can be used; the first problem: d.jsonl line "
    )


def test_pictures_are_not_read_before_they_are_needed(tmp_path: Path):
    sample = Sample("x", "?", "1", "t", [tmp_path / "later.png"])
    (tmp_path / "later.png").write_bytes(encoded(Image.new("RGB", (4, 4))))
    assert sample.load_images()[0].size == (4, 4)


# ---------------------------------------------------------------------------------------------------- opening
def test_unknown_specs_and_options():
    assert sentence_of(open_dataset, "json:x", "train").startswith(
        "--data 'json:x' is not understood; give world or one of jsonl:..., "
    )
    assert "is not understood" in sentence_of(open_dataset, "jsonl:", "train")
    assert sentence_of(open_dataset, "world", "train", limit=0) == "--limit is a number of rows, at least 1, not 0."
    assert (
        sentence_of(open_dataset, "voc:nowhere", "test_combo")
        == "voc:nowhere has the splits train, val and test, but no 'test_combo'."
    )
    assert sentence_of(open_dataset, "world", "train", bad_rows="ignore") == "--bad-rows is stop or skip, not 'ignore'."
    assert sentence_of(open_dataset, "jsonl:x", "train", columns="qestion=a").startswith(
        "--columns 'qestion=a' is not understood; "
    )
    assert "is not understood" in sentence_of(open_dataset, "jsonl:x", "train", columns="question")
    for kind in ("voc", "images", "nlvr", "puzzlevqa"):
        assert sentence_of(open_dataset, f"{kind}:nowhere", "train").startswith(
            "nowhere is not a folder; give the path of "
        )


def test_micro_world():
    dataset = open_dataset("world", "train", limit=20)
    assert len(dataset) == 20 and len(dataset.tasks) == 8
    sample = dataset[3]
    assert sample.id == "world:train:3" and sample.load_images()[0].mode == "RGB" and sample.meta["things"]
    assert len(open_dataset("world", "test_counter")) == 20_000
    assert "no 'dev'" in sentence_of(open_dataset, "world", "dev") and "no variant 'x'" in sentence_of(
        open_dataset, "world:x", "train"
    )
    assert len({s.id for s in Stream(open_dataset("world", "train"), seed=1).next(16)}) == 16


def test_only_some_kinds_of_questions(tmp_path):
    few = open_dataset("world", "test", tasks="count, sum")
    assert [few[i].task for i in range(4)] == ["count", "sum"] * 2
    assert len(few) == 5000 and few.tasks == ["count", "sum"]
    rows = [{"question": "q", "answer": str(i), "image": "a.png", "task": "ab"[i % 2]} for i in range(8)]
    Image.new("RGB", (28, 28)).save(tmp_path / "a.png")
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    spec = f"jsonl:{tmp_path}/d.jsonl"
    assert {sample.answer for sample in open_dataset(spec, "train", tasks="b")} == {"1", "3", "5", "7"}
    with pytest.raises(SightRLError, match=re.escape(f"--tasks: {spec} has no 'c'; it has a, b.")):
        open_dataset(spec, "train", tasks="a,c")
    with pytest.raises(SightRLError, match="--tasks: world has no 'video'; it has color, compare"):
        open_dataset("world", "test", tasks="video")

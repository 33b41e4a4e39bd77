"""Frames of a video, spread evenly: from a folder of frames, an animated picture, or a video file (with PyAV).

frames, seconds = sample_frames(Path("clips/a.mp4"), 16)     # RGB pictures, their times or None
"""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageSequence

from common.errors import SightRLError
from common.pictures import FORMATS, load_image, to_rgb
from common.readers.shared import PICTURES

ANIMATED = (".gif", ".webp", ".png", ".apng", ".tif", ".tiff", ".avif")
VIDEOS = (".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v", ".mpg", ".mpeg", ".flv", ".ts", ".wmv")
Frames = tuple[list[Image.Image], list[float] | None]


def sample_frames(path: Path, count: int) -> Frames:
    """Up to `count` frames from the first to the last, evenly spaced, with their seconds where the source tells them.

    Raises SightRLError with one sentence for what cannot be read.
    """
    if path.is_dir():
        return from_folder(path, count)
    if path.suffix.lower() in ANIMATED:
        return from_animation(path, count)
    return from_video(path, count)


def spread(total: int, count: int) -> list[int]:
    """Numbers of `count` of `total` frames, as numpy.linspace over all of them rounded down; all if there are fewer.

    As in lmms-eval: the first and the last frame are among them.
    """
    return [int(i) for i in np.linspace(0, total - 1, min(count, total))]


def natural(path: Path) -> list[Any]:
    """Sorting key: frame_9 before frame_10."""
    parts = re.split(r"([0-9]{1,30})", path.name)  # text and numbers take turns
    return [int(part) if number % 2 else part for number, part in enumerate(parts)]


def from_folder(folder: Path, count: int) -> Frames:
    files = sorted((f for f in folder.iterdir() if f.suffix.lower() in PICTURES), key=natural)
    if not files:
        raise SightRLError(f"the folder of frames {folder} holds no pictures; unpack the video into it.")
    return [load_image(files[i], str(folder)) for i in spread(len(files), count)], None


def from_animation(path: Path, count: int) -> Frames:
    try:
        with Image.open(path, formats=FORMATS) as image:
            wanted = set(spread(getattr(image, "n_frames", 1), count))
            frames, seconds, clock = [], [], 0.0
            for number, frame in enumerate(ImageSequence.Iterator(image)):
                if number in wanted:
                    frames.append(to_rgb(frame.copy()))
                    seconds.append(clock)
                clock += float(frame.info.get("duration", 0) or 0) / 1000
    except Exception as error:  # decoders raise nearly anything on damaged files
        raise SightRLError(unreadable(path, error)) from None
    return frames, seconds if clock else None


def from_video(path: Path, count: int) -> Frames:
    try:
        av = importlib.import_module("av")
    except ImportError:
        folder = path.with_suffix("")
        if folder.is_dir():
            return from_folder(folder, count)
        unpack = f"mkdir {folder} && ffmpeg -i {path} {folder}/%06d.jpg"
        raise SightRLError(f"{path} is a video file and PyAV, which reads those, is not installed; run pip install av, "
                           f"or unpack it with {unpack}.") from None  # fmt: skip
    try:
        with av.open(str(path)) as container:
            return seek_frames(container, container.streams.video[0], count)
    except Exception as error:  # a damaged file; no stream with pictures
        raise SightRLError(unreadable(path, error)) from None


def seek_frames(container: Any, stream: Any, count: int) -> Frames:
    """Jump to the key frame before each wanted time and decode from there: quick for hours of video, too."""
    tick, start = float(stream.time_base), float((stream.start_time or 0) * stream.time_base)
    seconds_long = float(stream.duration * tick) if stream.duration else (container.duration or 0) / 1e6
    rate = float(stream.average_rate or 0) or 25.0
    total = stream.frames or round(seconds_long * rate)
    if not total:
        raise ValueError("it does not say how long it is")
    frames, seconds = [], []
    for number in spread(total, count):
        second, last = number / rate, None
        container.seek(int((start + second) / tick), stream=stream, backward=True)
        for frame in container.decode(stream):
            last = frame
            if frame.time is None or frame.time - start >= second - 0.5 / rate:
                break
        if last is not None:  # the length that a file states may be longer than what is in it
            frames.append(last.to_image())
            seconds.append(second if last.time is None else max(0.0, last.time - start))
    if not frames:
        raise ValueError("no frame can be decoded")
    return frames, seconds


def unreadable(path: Path, error: Exception) -> str:
    problem = " ".join(str(error).split())[:120].rstrip(".") or type(error).__name__
    return f"the video {path} cannot be read ({problem}); fetch it again."

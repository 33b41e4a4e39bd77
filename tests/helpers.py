"""Small things that many tests need. Nothing here imports torch before it is called."""

from __future__ import annotations

import io
import json
import socket
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from common.errors import SightRLError


def sentence_of(call: Callable[..., Any], *args: Any, **options: Any) -> str:
    """The one sentence with which a call is refused."""
    with pytest.raises(SightRLError) as caught:
        call(*args, **options)
    text = str(caught.value)
    assert "\n" not in text and text.endswith("."), text
    return text


def close(actual: Any, expected: Any, tolerance: float = 1e-6) -> None:
    """Numbers, lists or tensors of any precision differ by at most this much anywhere."""
    import torch

    actual, expected = torch.as_tensor(actual), torch.as_tensor(expected)
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=0, check_dtype=False)


def coin(text: str, *_: Any, **__: Any) -> int:
    """0 or 1 by the text alone: a random model is never right, and with such grades its groups have some spread."""
    return zlib.crc32(text.encode("utf-8", "replace")) // 2 % 2


def write_lines(path: Path, rows: list) -> Path:
    """JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def jsonl(path: Path, rows: list) -> str:
    """What --data is given for these lines."""
    return f"jsonl:{write_lines(path, rows)}"


def read_lines(path: Path) -> list:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """The bytes of a picture file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]

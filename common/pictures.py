"""Pictures out of files or bytes as RGB: checked before decoding, each distinct one decoded once while it is in use."""

from __future__ import annotations

import hashlib
import io
import warnings
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from common.errors import SightRLError, bad_row

MAX_SIDE = 16_384  # pixels
MAX_PIXELS = 89_478_485  # Pillow's own limit against decompression bombs: a quarter of a gigabyte as RGB
MAX_ASPECT = 200  # the image processor of Qwen-VL models refuses more
# Formats that Pillow decodes itself; EPS, for one, would start another program.
Image.init()
FORMATS = [f for f in ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF") if f in Image.OPEN]


class ImageCache:
    """Decoded pictures by key, each distinct one once; beyond `limit` bytes the longest unused go."""

    def __init__(self, limit: int = 256 << 20) -> None:
        self.limit, self.used = limit, 0
        self.images: OrderedDict[Any, Image.Image] = OrderedDict()

    def get(self, key: Any, decode: Callable[[], Image.Image]) -> Image.Image:
        if key not in self.images:
            self.images[key] = decode()
            self.used += self.bytes_of(self.images[key])
        self.images.move_to_end(key)
        image = self.images[key]
        while self.used > self.limit and self.images:
            self.used -= self.bytes_of(self.images.popitem(last=False)[1])
        return image

    @staticmethod
    def bytes_of(image: Image.Image) -> int:
        return 3 * image.width * image.height


DECODED = ImageCache()


def load_image(source: Any, where: str, size: Sequence[int] | None = None) -> Image.Image:
    """One picture as RGB: a path, encoded bytes or a PIL image.

    The EXIF rotation is applied, unless size (width, height of the annotations) fits only without it;
    transparent parts become white; 16-bit and float pictures are scaled to 8 bits. Raises SightRLError (one
    sentence with where) for what is missing, broken, larger than 16,384 pixels on a side or 89 megapixels,
    longer than 200 times its width, or of another size than its annotations.
    """
    if isinstance(source, Image.Image):
        return decode_image(source, f"{where}: the picture", size)
    if isinstance(source, bytes):
        key, file, length = hashlib.blake2b(source, digest_size=16).digest(), io.BytesIO(source), len(source)
        what = f"{where}: the embedded picture"
    else:
        what = f"{where}: the picture {source}"
        try:
            status = Path(source).stat()
        except (OSError, ValueError):
            raise bad_row(f"{what} does not exist", "add the file") from None
        key, file, length = (str(source), status.st_mtime_ns), source, status.st_size
    if not length:
        raise bad_row(f"{what} is empty", "fetch it again")
    return DECODED.get((key, tuple(size or ())), lambda: decode_image(file, what, size))


def decode_image(source: Any, what: str, size: Sequence[int] | None) -> Image.Image:
    """Open, check before decoding, decode. what: how messages begin. Raises SightRLError."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of what is refused here
        try:
            if isinstance(source, Image.Image):
                return to_rgb(upright(source, what, size))
            with Image.open(source, formats=FORMATS) as image:
                return to_rgb(upright(image, what, size))
        except SightRLError:
            raise
        except Image.DecompressionBombError:
            raise bad_row(f"{what} has more than {MAX_PIXELS:,} pixels", "shrink it") from None
        except Exception as error:  # decoders raise nearly anything on damaged files
            problem = " ".join(str(error).split())[:120].rstrip(".") or type(error).__name__
            if isinstance(error, UnidentifiedImageError):
                problem = "no JPEG, PNG, WebP, BMP, GIF or TIFF"
            raise bad_row(f"{what} cannot be read ({problem})", "fetch it again") from None


def upright(image: Image.Image, what: str, size: Sequence[int] | None) -> Image.Image:
    """The picture turned as its EXIF data say; refuses what no model can use. Raises SightRLError."""
    width, height = image.size
    if max(width, height) > MAX_SIDE:
        limit = f"the limit is {MAX_SIDE:,} pixels on a side"
        raise bad_row(f"{what} is {width} x {height} and {limit}", "shrink it")
    if width * height > MAX_PIXELS:
        raise bad_row(f"{what} has {width * height:,} pixels and the limit is {MAX_PIXELS:,}", "shrink it")
    if min(width, height) == 0 or max(width, height) / min(width, height) > MAX_ASPECT:
        raise bad_row(f"{what} is {width} x {height}, more than {MAX_ASPECT} times as long as wide", "crop it")
    turned = ImageOps.exif_transpose(image)
    if size is None or turned.size == tuple(size):
        return turned
    if image.size != tuple(size):
        problem = f"is {width} x {height} but its annotation says {size[0]} x {size[1]}"
        raise bad_row(f"{what} {problem}", "correct the annotation")
    return image


def to_rgb(image: Image.Image) -> Image.Image:
    """Any mode to 8-bit RGB: transparency over white, 16-bit and float values scaled instead of clipped."""
    if image.mode == "RGB" and "transparency" not in image.info:
        image.load()
        return image.copy()
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        values = np.nan_to_num(np.asarray(image, dtype=np.float64), posinf=0.0, neginf=0.0)  # float64 [height, width]
        top = float(values.max(initial=0.0))
        full = 65535.0 if image.mode.startswith("I;16") else next((t for t in (1.0, 255.0, 65535.0) if top <= t), top)
        full = 255.0 if image.mode == "I" and full == 1.0 else full
        gray = (values.clip(0, None) / full * 255).round().astype(np.uint8)
        return Image.fromarray(gray).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")

"""From pictures to the vision tower's patches, equal to the library's image processor bit for bit but several
times faster.
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil, smart_resize

from common.errors import SightRLError


class Pixels:
    """Resizing, normalisation and patches with the settings of an image processor.

    min_pixels, max_pixels: area of a picture after the resize; the processor's own by default.
    """

    def __init__(
        self, processor: Qwen2VLImageProcessorPil, min_pixels: int | None = None, max_pixels: int | None = None
    ) -> None:
        self.min_pixels = min_pixels or processor.size["shortest_edge"]
        self.max_pixels = max_pixels or processor.size["longest_edge"]
        self.patch, self.merge, self.frames = (
            processor.patch_size,
            processor.merge_size,
            processor.temporal_patch_size,
        )
        self.resample = processor.resample
        # What every byte becomes in every channel, float32 [3, 256], with the library's order of roundings.
        scaled = (np.arange(256).astype(np.float64) * processor.rescale_factor).astype(np.float32)
        mean, std = (np.array(v, np.float32)[:, None] for v in (processor.image_mean, processor.image_std))
        self.table = (scaled - mean) / std

    def resize(self, image: Image.Image) -> np.ndarray:
        """uint8 [H, W, 3], sides divisible by patch * merge and the area within [min_pixels, max_pixels].

        Raises SightRLError when one side is more than 200 times the other.
        """
        size = self.size(image)
        image = image.convert("RGB")
        return np.array(image if size == image.size else image.resize(size, self.resample))

    def size(self, image: Image.Image) -> tuple[int, int]:
        """(width, height) after the resize. Raises SightRLError as resize does."""
        factor = self.patch * self.merge
        try:
            height, width = smart_resize(image.height, image.width, factor, self.min_pixels, self.max_pixels)
        except ValueError as error:
            size = f"{image.width} x {image.height}"
            raise SightRLError(f"an image of {size} pixels cannot be used: {error}") from None
        return width, height

    def grids(self, images: list[np.ndarray]) -> Tensor:
        """int64 [images, 3]: (T, H, W) in patches."""
        return torch.tensor([(1, image.shape[0] // self.patch, image.shape[1] // self.patch) for image in images])

    def patchify(self, images: list[np.ndarray]) -> Tensor:
        """Patches float32 [patches, 3 * T * p * p] in the tower's order.

        images: uint8 [H, W, 3] as `resize` returns them. A still picture fills all T frames of its patches.
        """
        size, merge = self.patch, self.merge
        grids = self.grids(images).tolist()
        out = np.empty((sum(h * w for _, h, w in grids), 3, self.frames, size, size), np.float32)
        start = 0
        for image, (_, height, width) in zip(images, grids, strict=True):
            blocks = image.reshape(height // merge, merge, size, width // merge, merge, size, 3)
            blocks = blocks.transpose(0, 3, 1, 4, 6, 2, 5).reshape(-1, 3, size, size)  # [patches, 3, p, p]
            for channel in range(3):
                values = self.table[channel][blocks[:, channel]]  # [patches, p, p]
                out[start : start + len(blocks), channel] = values[:, None]
            start += len(blocks)
        return torch.from_numpy(out).flatten(1)

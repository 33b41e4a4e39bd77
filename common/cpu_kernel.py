"""The one CPU kernel, csrc/few_rows.cpp: y = x W^T for few rows, one and a half to three times as fast as the BLAS.

Built on first use by one g++ command. Without g++, or with SIGHTRL_KERNELS=off, decoding uses PyTorch's product.
"""

from __future__ import annotations

import ctypes
import functools
import os
import platform
import shutil
import subprocess
from pathlib import Path

import torch
from torch import Tensor, nn

from common.kernels import SOURCES, build_library

MAX_BYTES = 1 << 31  # larger models are not copied into packed form


@functools.cache
def library() -> ctypes.CDLL | None:
    """The kernel for this processor, or None with one printed line."""
    try:
        # torch's own OpenMP runtime: a second one would fight with it for the cores.
        openmp = next((Path(torch.__file__).parent / "lib").glob("libgomp*"), None)
        if openmp is None or platform.system() != "Linux" or "avx2" not in abilities().split():
            return None
        found = ctypes.CDLL(str(build(openmp)))
    except (RuntimeError, OSError, subprocess.SubprocessError) as error:
        print(f"The CPU kernel is off, PyTorch does its work: {' '.join(str(error).split())}", flush=True)
        return None
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    found.sightrl_few_rows.argtypes, found.sightrl_few_rows.restype = [*[pointer] * 3, *[number] * 3], None
    return found


def abilities() -> str:
    """What this processor can do, in Linux's words; "" where it does not say."""
    return next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags")), "")


def build(openmp: Path, folder: Path | None = None, target: str = "native") -> Path:
    """Compile for `-march=target`; the cached file is named after source, compiler and this processor's abilities.

    Raises RuntimeError with the compiler's words, or when there is no g++."""
    compiler = shutil.which("g++")
    if compiler is None:
        raise RuntimeError("g++ is not installed")
    command = [compiler, "-O3", f"-march={target}", "-mprefer-vector-width=512", "-fopenmp", "-std=c++17", "-shared",
               "-fPIC", f"-Wl,{openmp}"]  # fmt: skip
    return build_library("few-rows", [SOURCES / "few_rows.cpp"], command, [abilities(), target], folder)


class Packed:
    """The weights of one or several linear layers that read the same x, side by side in the kernel's order."""

    def __init__(self, modules: list[nn.Module]) -> None:
        width = library().sightrl_width()
        weight = torch.cat([m.weight.detach() for m in modules]) if len(modules) > 1 else modules[0].weight.detach()
        self.out, self.inner = weight.shape
        self.weight = weight.view(-1, width, self.inner).transpose(1, 2).contiguous()
        biases = [m.bias for m in modules]
        self.bias = None if biases[0] is None else torch.cat([b.detach() for b in biases])

    def __call__(self, x: Tensor) -> Tensor:
        """float32 [M, in] -> [M, out], no gradient."""
        x, y = x.contiguous(), x.new_empty(len(x), self.out)
        library().sightrl_few_rows(self.weight.data_ptr(), x.data_ptr(), y.data_ptr(), len(x), self.inner, self.out)
        return y if self.bias is None else y.add_(self.bias)


def packable(modules: list[nn.Module]) -> bool:
    """Whether Packed can take these layers: plain float32 ones on the CPU, sizes the panels divide."""
    if os.environ.get("SIGHTRL_KERNELS") == "off" or any(type(m) is not nn.Linear for m in modules):
        return False
    weights = [m.weight for m in modules]
    if any(w.device.type != "cpu" or w.dtype != torch.float32 for w in weights) or library() is None:
        return False
    return all(len(w) % library().sightrl_width() == 0 for w in weights)

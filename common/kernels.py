"""The CUDA kernels of csrc/: built on first use by one nvcc command, called through ctypes; no torch headers.

Where there is no GPU, no nvcc, or the build fails, `usable` is False (with one printed line if a GPU is there) and
callers take the PyTorch formulas they hold anyway. SIGHTRL_KERNELS=off switches the kernels off.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

SOURCES = Path(__file__).parent / "csrc"
DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
KL_KINDS = {"k1": 1, "k2": 2, "k3": 3}
BUILD_SECONDS = 600  # an nvcc that takes longer hangs


def build(architectures: list[str], folder: Path | None = None) -> Path:
    """Compile csrc/*.cu for e.g. ["80", "90"] into a shared library; returns its path, from the cache if it is there.

    Raises RuntimeError with the compiler's words, or when there is no nvcc."""
    home = os.environ.get("CUDA_HOME") or "/usr/local/cuda"
    nvcc = shutil.which("nvcc") or shutil.which(f"{home}/bin/nvcc")
    if nvcc is None:
        raise RuntimeError("nvcc is not installed (looked in PATH and CUDA_HOME)")
    code = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in architectures]
    command = [nvcc, "-O3", "-std=c++17", "--shared", "-Xcompiler=-fPIC", *code]
    return build_library("kernels", sorted(SOURCES.glob("*.cu")), command, architectures, folder)


def build_library(name: str, files: list[Path], command: list[str], identity: list[str],
                  folder: Path | None = None) -> Path:  # fmt: skip
    """`command` + files -> folder/name-<hash>.so, unless that is there already. The hash is of sources, headers,
    compiler version and identity. folder: default $XDG_CACHE_HOME/sightrl or ~/.cache/sightrl."""
    version = subprocess.run([command[0], "--version"], capture_output=True, text=True, timeout=60).stdout
    parts = [version, *identity, *(p.read_text() for p in sorted(SOURCES.glob("*.h")) + files)]
    digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
    folder = folder or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sightrl"
    target = folder / f"{name}-{digest}.so"
    if target.exists():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:  # renamed when complete: several processes may build
        made = Path(scratch) / "library.so"
        whole = [*command, "-o", str(made), *map(str, files)]
        done = subprocess.run(whole, capture_output=True, text=True, timeout=BUILD_SECONDS)
        if done.returncode:
            compiler = Path(command[0]).name
            raise RuntimeError(f"{compiler} failed: {(done.stderr or done.stdout).strip()[-800:]}")
        os.replace(made, target)
    return target


def load(path: Path) -> ctypes.CDLL:
    """The shared library with the argument types of its launchers."""
    library, p, i, f = ctypes.CDLL(str(path)), ctypes.c_void_p, ctypes.c_int, ctypes.c_float
    library.sightrl_logps_forward.argtypes = [i, p, p, f, i, i, p, p, p, p]
    library.sightrl_logps_backward.argtypes = [i, p, p, f, i, i, p, p, p, p, p]
    library.sightrl_policy_loss.argtypes = [p, p, p, p, p, p, i, i, f, f, f, f, i, p, p, p]
    return library


@functools.cache
def library() -> ctypes.CDLL | None:
    """The kernels for this GPU, or None with one printed line."""
    try:
        major, minor = torch.cuda.get_device_capability()
        return load(build([f"{major}{minor}"]))
    except (RuntimeError, OSError, AttributeError, subprocess.SubprocessError) as error:
        print(f"CUDA kernels are off, PyTorch does their work: {' '.join(str(error).split())}", flush=True)
        return None


def usable(tensor: Tensor) -> bool:
    """Whether the kernels can work on this tensor."""
    wanted = tensor.is_cuda and tensor.dtype in DTYPES and os.environ.get("SIGHTRL_KERNELS") != "off"
    return wanted and library() is not None


def call(name: str, device: torch.device, *arguments: Any) -> None:
    """Launch on the device's current stream; tensors go as pointers (they must be contiguous), None as null."""
    if not all(a.is_contiguous() for a in arguments if isinstance(a, Tensor)):
        raise ValueError(f"{name} wants contiguous tensors")
    plain = [a.data_ptr() if isinstance(a, Tensor) else a for a in arguments]
    stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else None
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        status = getattr(library(), name)(*plain, stream)
    if status:
        raise RuntimeError(f"{name}: CUDA error {status}")


# ---------------------------------------------------------------------------------------------------- log-probabilities
def logps_forward(logits: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """float32 (log-prob of the target, entropy, log-sum-exp), each [m], of logits [m, V] divided by the temperature.

    logits: contiguous float32, bfloat16 or float16; below -1e29 counts as probability 0. targets: int64 [m].
    """
    logps, entropy, lse = torch.empty(3, len(logits), device=logits.device).unbind(0)
    call("sightrl_logps_forward", logits.device, DTYPES[logits.dtype], logits, targets, temperature, *logits.shape,
         logps, entropy, lse)  # fmt: skip
    return logps, entropy, lse


def logps_backward_(logits: Tensor, targets: Tensor, temperature: float, lse: Tensor, entropy: Tensor,
                    grad_logps: Tensor, grad_entropy: Tensor | None) -> Tensor:  # fmt: skip
    """Write d loss / d logits over the logits [m, V] and return them; the other arguments as in logps_forward, [m]."""
    call("sightrl_logps_backward", logits.device, DTYPES[logits.dtype], logits, targets, temperature, *logits.shape,
         lse, entropy, grad_logps.contiguous(),
         None if grad_entropy is None else grad_entropy.contiguous())  # fmt: skip
    return logits


# ---------------------------------------------------------------------------------------------------------- policy loss
class PolicyLoss(torch.autograd.Function):
    """(loss, sums [n, 4]); the gradient is computed together with the loss."""

    @staticmethod
    def forward(ctx: Any, logps: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
        old_logps, ref_logps, advantages, mask, weights, clip_low, clip_high, dual_clip, kl_coef, kl_kind = arguments
        grad = torch.empty_like(logps)
        sums = torch.empty(len(logps), 4, device=logps.device)
        call("sightrl_policy_loss", logps.device, logps, old_logps, ref_logps, advantages, mask, weights,
             *logps.shape, clip_low, clip_high, dual_clip, kl_coef, KL_KINDS[kl_kind], grad, sums)  # fmt: skip
        ctx.save_for_backward(grad)
        ctx.mark_non_differentiable(sums)
        return sums[:, 0].sum(), sums

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = ctx.saved_tensors
        return (grad * grad_loss, *[None] * 10)


def policy_loss(logps: Tensor, old_logps: Tensor, ref_logps: Tensor | None, advantages: Tensor, mask: Tensor,
                weights: Tensor, clip_low: float, clip_high: float, dual_clip: float = 0.0, kl_coef: float = 0.0,
                kl_kind: str = "k3") -> tuple[Tensor, Tensor]:  # fmt: skip
    """(sum_i weights[i] sum_t mask L, sums [n, 4] = loss, KL, tokens cut from below, from above, per response).

    L = clipped_loss(token_log_ratio(logps, old_logps), A) + kl_coef kl_estimate(logps, ref_logps) of common/grpo.py,
    clamps too. logps, old_logps, ref_logps: float32 [n, T]; advantages, weights: float32 [n]; mask: bool [n, T].
    Each `aggregate` mode is a choice of weights, e.g. 1 / tokens for token_mean. Only logps gets a gradient.
    """
    given = [None if x is None else x.detach().float().contiguous() for x in (old_logps, ref_logps, advantages)]
    return PolicyLoss.apply(logps.float().contiguous(), *given, mask.to(torch.uint8).contiguous(),
                            weights.float().contiguous(), clip_low, clip_high, dual_clip, kl_coef,
                            kl_kind)  # fmt: skip

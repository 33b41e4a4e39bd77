"""Checkpoints without pickle: tensors as safetensors, everything else as JSON, every write atomic.

A checkpoint is a folder `step-00000050/` with `model.safetensors`, `optimizer.safetensors`,
`state.safetensors` and `state.json`. It is written under a temporary name, flushed to the disk (fsync),
renamed, and only then does the one-line file `latest` name it. Renaming is atomic, so after a kill -9 at any
moment `latest` still names a complete checkpoint.
"""

import errno
import json
import os
import random
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from common.distributed import from_main, is_main
from common.errors import SightRLError
from common.sharding import master, sharded_like, whole_tensor

TEMPORARY = ".tmp-"  # prefix of half-written files and folders; removed when the next run opens the folder


# ---------------------------------------------------------------- disk: clear errors, atomic writes


@contextmanager
def disk_errors(path: Path, need: int = 1 << 20) -> Iterator[None]:
    """Turn a failed write or read below `path` into one sentence that names the folder and the fix
    (SightRLError). need: bytes to be written, for a full disk."""
    try:
        yield
    except OSError as error:
        raise SightRLError(_disk_sentence(path, error.errno, error.strerror or str(error), need)) from error
    except SightRLError:
        raise
    except Exception as error:  # safetensors and tokenizers give the system's error number in their text alone
        number = next((n for n in _FIXES if f"(os error {n})" in str(error)), None)
        if number is None and not isinstance(error, SafetensorError):
            raise
        raise SightRLError(_disk_sentence(path, number, str(error), need)) from error


_DENIED = "writing there is not allowed; give a writable folder with --out, or change its permissions"
_FIXES = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file is larger than this file system or this user's limit (ulimit -f) allows; raise it",
    errno.EROFS: "the file system is read-only; give a writable folder with --out",
    errno.EACCES: _DENIED,
    errno.EPERM: _DENIED,
    errno.ENOTDIR: "a part of this path is a file, not a folder; give another folder with --out",
    errno.EEXIST: "a file of this name is in the way; give another folder with --out",
}


def _disk_sentence(path: Path, number: int | None, text: str, need: int) -> str:
    fix = _FIXES.get(number, text)
    if number in (errno.ENOSPC, errno.EDQUOT):
        there = next(folder for folder in (path, *path.absolute().parents) if folder.is_dir())
        free = shutil.disk_usage(there).free / 1e6
        fix += f" ({free:.1f} MB free, about {max(need / 1e6, 0.1):.1f} MB needed); free some space"
    return f"cannot write {path}: {fix}."


def write_file(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write(temporary_path)` write a file, flush it to the disk and move it to `path` in one step.

    When anything fails the old file at `path` stays as it was. Raises SightRLError when the disk refuses.
    """
    temporary = path.parent / f"{TEMPORARY}{path.name}"
    with disk_errors(path):
        try:
            write(temporary)
            flush_to_disk(temporary)
            os.replace(temporary, path)
            flush_to_disk(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any, indent: int | None = 1) -> None:
    """Write `value` as JSON, atomically. Raises SightRLError when the disk refuses."""
    text = json.dumps(value, indent=indent, ensure_ascii=False) + "\n"
    data = text.encode("utf-8", "backslashreplace")  # an unpaired surrogate becomes its JSON escape
    write_file(path, lambda temporary: temporary.write_bytes(data))


def flush_to_disk(path: Path) -> None:
    """fsync a file or a folder (a folder: the names in it). Without it a power cut can undo a rename."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# ---------------------------------------------------------------- any nested state as JSON + tensors


def pack_state(value: Any, tensors: dict[str, Tensor], name: str = "") -> Any:
    """Turn nested dicts, lists, tuples, numbers, strings, arrays and tensors into JSON; tensors go into
    `tensors`.

    >>> tensors = {}
    >>> pack_state({"lr": 0.1, 3: (1, torch.ones(2))}, tensors, "s")
    {'dict': [['lr', 0.1], [3, {'tuple': [1, {'tensor': 's.3.1'}]}]]}
    >>> unpack_state(_, tensors)
    {'lr': 0.1, 3: (1, tensor([1., 1.]))}
    """
    if isinstance(value, Tensor):
        tensors[name] = value.detach()
        return {"tensor": name}
    if isinstance(value, dict):
        return {"dict": [[key, pack_state(item, tensors, f"{name}.{key}")] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        items = [pack_state(item, tensors, f"{name}.{i}") for i, item in enumerate(value)]
        return {"tuple": items} if isinstance(value, tuple) else items
    if isinstance(value, np.ndarray):
        return {"array": value.tolist(), "dtype": str(value.dtype)}
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{name}: a {type(value).__name__} cannot be kept in a checkpoint")


def unpack_state(value: Any, tensors: dict[str, Tensor]) -> Any:
    """Undo `pack_state`."""
    if isinstance(value, list):
        return [unpack_state(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        return tensors[value["tensor"]]
    if "dict" in value:
        return {key: unpack_state(item, tensors) for key, item in value["dict"]}
    if "tuple" in value:
        return tuple(unpack_state(item, tensors) for item in value["tuple"])
    return np.array(value["array"], dtype=value["dtype"])


def save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Write tensors to a safetensors file. Shared or strided memory is copied first: the format knows
    neither. Of several processes the first writes, and all must call it to bring sharded tensors together."""
    seen: set[int] = set()
    plain = {}
    for name, tensor in tensors.items():
        tensor = whole_tensor(tensor.detach())
        if not is_main():
            continue
        tensor = tensor.cpu().contiguous()
        address = tensor.untyped_storage().data_ptr()
        plain[name] = tensor.clone() if address in seen else tensor
        seen.add(address)
    if is_main():
        save_file(plain, path)


# ---------------------------------------------------------------- model, optimiser, random numbers


def model_state(model: nn.Module) -> dict[str, Tensor]:
    """The tensors a checkpoint must hold: trainable parameters and persistent buffers, named as in
    `state_dict()`.

    Frozen parameters (the base model under LoRA, a frozen vision tower) come back from the model itself. Tied
    weights are one tensor under several names and are kept once, under the first. With several processes: the
    sharded masters.
    """
    seen: set[int] = set()
    kept = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        frozen = isinstance(tensor, nn.Parameter) and not tensor.requires_grad
        if isinstance(tensor, Tensor) and not frozen and id(tensor) not in seen:
            kept[name] = master(tensor)
            seen.add(id(tensor))
    return kept


@torch.no_grad()
def load_model_state(model: nn.Module, saved: dict[str, Tensor], path: Path) -> None:
    """Copy saved tensors into the model in place (into the masters with several processes; then gather_weights
    has to follow). Raises SightRLError when names or shapes differ."""
    wanted = model_state(model)
    differing = sorted(set(wanted) ^ set(saved)) or [n for n in wanted if wanted[n].shape != saved[n].shape]
    if differing:
        raise SightRLError(
            f"{path} was written by another model or other adapter settings: {differing[0]} "
            f"(and {len(differing) - 1} more) does not fit; resume with the options the run was started with."
        )
    fractions = {name: (tensor.is_floating_point(), saved[name].is_floating_point()) for name, tensor in wanted.items()}
    if odd := [name for name, (here, there) in fractions.items() if here != there]:
        raise SightRLError(f"{path} holds {odd[0]} as {saved[odd[0]].dtype}; it was not written by this program.")
    for name, tensor in wanted.items():
        tensor.copy_(sharded_like(tensor, saved[name]))


def load_optimizer_state(optimizer: Any, state: dict) -> None:
    """`load_state_dict`, then undo its rounding: torch casts float32 moments to the dtype of a bfloat16
    parameter. States of sharded parameters are cut up first."""
    parameters = [p for group in getattr(optimizer, "param_groups", []) for p in group["params"]]
    for index, saved in state.get("state", {}).items() if parameters else ():
        for name, value in saved.items():
            if isinstance(value, Tensor) and value.dim() and value.shape != parameters[index].shape:
                raise ValueError(f"{name} of weight {index} has the shape {list(value.shape)}")
            saved[name] = sharded_like(parameters[index], value) if isinstance(value, Tensor) else value
    optimizer.load_state_dict(state)
    for index, saved in state.get("state", {}).items():
        for name, value in saved.items() if isinstance(saved, dict) else ():
            loaded = optimizer.state[parameters[index]].get(name)
            if isinstance(value, Tensor) and isinstance(loaded, Tensor) and loaded.dtype != value.dtype:
                optimizer.state[parameters[index]][name] = value.to(loaded.device)


def random_state() -> dict[str, Any]:
    """The state of every global random number generator: Python, NumPy, torch and each CUDA device."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"python": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state(), "cuda": cuda}


def set_random_state(state: dict[str, Any]) -> None:
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])


# ---------------------------------------------------------------- the checkpoint folder


def save_checkpoint(folder: Path, step: int, model: nn.Module | None, optimizer: Any, state: dict, keep: int) -> Path:
    """Write `folder/step-XXXXXXXX` atomically, point `folder/latest` at it and delete all but the newest
    `keep`. Every process must call it, process 0 writes; the files do not depend on the number of processes.

    `state` is any nested structure `pack_state` takes. Raises SightRLError when the disk refuses; older
    checkpoints and `latest` are then untouched and the half-written folder is gone.
    """
    target = folder / f"step-{step:08d}"
    temporary = folder / f"{TEMPORARY}{target.name}"
    if from_main(is_main() and latest_checkpoint(folder) == target):
        return target  # written a moment ago; replacing it would leave `latest` without a folder for an instant
    if not is_main():
        _write_parts(temporary, model, optimizer, state)
        return target
    with disk_errors(target, bytes_of(model, optimizer)):
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            temporary.mkdir()
            _write_parts(temporary, model, optimizer, state)
            shutil.rmtree(target, ignore_errors=True)  # left by a run that was killed before `latest` moved on
            os.replace(temporary, target)
            flush_to_disk(folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    write_file(folder / "latest", lambda path: path.write_text(target.name + "\n"))
    for old in sorted(folder.glob("step-*"))[: -max(keep, 1)]:
        if old != target:
            shutil.rmtree(old, ignore_errors=True)
    return target


def bytes_of(model: nn.Module | None, optimizer: Any) -> int:
    """About the bytes that a checkpoint of them takes."""
    tensors = list(model_state(model).values()) if model is not None else []
    states = getattr(optimizer, "state", {}).values() if optimizer is not None else ()
    tensors += [value for state in states for value in state.values() if isinstance(value, Tensor)]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors) + (1 << 20)


def remove_leftovers(folder: Path) -> None:
    """Delete what a killed run left: half-written folders, and checkpoints newer than `latest`."""
    newest = latest_checkpoint(folder)
    for path in folder.glob("*"):
        unnamed = path.name.startswith("step-") and (newest is None or path.name > newest.name)
        if path.is_dir() and (unnamed or path.name.startswith(TEMPORARY)):
            shutil.rmtree(path, ignore_errors=True)


def _write_parts(folder: Path, model: nn.Module | None, optimizer: Any, state: dict) -> None:
    """The files of a checkpoint; a process other than 0 only hands over its parts of the tensors."""
    optimizer_tensors: dict[str, Tensor] = {}
    state_tensors: dict[str, Tensor] = {}
    packed = {
        "optimizer": pack_state(
            optimizer.state_dict() if optimizer is not None else None, optimizer_tensors, "optimizer"
        ),
        "state": pack_state(state, state_tensors, "state"),
    }
    save_tensors(model_state(model) if model is not None else {}, folder / "model.safetensors")
    save_tensors(optimizer_tensors, folder / "optimizer.safetensors")
    if not is_main():
        return
    save_tensors(state_tensors, folder / "state.safetensors")
    (folder / "state.json").write_text(json.dumps(packed))
    for path in [*folder.iterdir(), folder]:
        flush_to_disk(path)


def latest_checkpoint(folder: Path) -> Path | None:
    """The folder named by `folder/latest`, None when no checkpoint was written yet."""
    pointer = folder / "latest"
    if not pointer.exists():
        return None
    name = pointer.read_bytes().decode("utf-8", "replace").strip()
    if not re.fullmatch(r"step-[0-9]{8,}", name) or not (folder / name / "state.json").is_file():
        raise SightRLError(
            f"{pointer} names {name[:80]!r}, which is no checkpoint beside it; write another step-... folder into it."
        )
    return folder / name


@contextmanager
def damage_errors(folder: Path) -> Iterator[None]:
    """Whatever goes wrong while a checkpoint is read back as one sentence (SightRLError): its files may be cut short,
    written by something else, or changed by hand."""
    try:
        yield
    except SightRLError:
        raise
    except Exception as error:
        problem = f"{type(error).__name__}: {error}"[:200].rstrip(".")
        raise SightRLError(
            f"{folder} cannot be read ({problem}); name an older step-... folder in {folder.parent / 'latest'}."
        ) from error


def load_checkpoint(folder: Path, model: nn.Module | None, optimizer: Any) -> dict:
    """Load model and optimiser in place and return the `state` given to `save_checkpoint`."""
    with damage_errors(folder):
        packed = json.loads((folder / "state.json").read_text())
        tensors = {n: load_file(folder / f"{n}.safetensors") for n in ("model", "optimizer", "state")}
        state = unpack_state(packed["state"], tensors["state"])
        if model is not None:
            load_model_state(model, tensors["model"], folder)
        if optimizer is not None:
            load_optimizer_state(optimizer, unpack_state(packed["optimizer"], tensors["optimizer"]))
        return state

"""The folder of a run: opening one or finding an old one, keeping others out, and writing down what the run was."""

import dataclasses
import fcntl
import json
import math
import netrc
import os
import platform
import re
import resource
import shlex
import subprocess
import sys
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common import checkpoint as checkpoints
from common import distributed
from common.args import MAY_DIFFER
from common.errors import SightRLError

LIBRARIES = ("torch", "transformers", "safetensors", "peft", "numpy", "pillow")


def open_folder(args: Any, method: str) -> tuple[Path, bool]:
    """The run's folder and whether it continues an old run."""
    if args.resume == "auto":
        found = newest_unfinished(Path(args.out), method, options_of(args))
        if found is not None:
            return found, True
    elif args.resume:
        check_same_options(Path(args.resume), args)
        return Path(args.resume), True
    data = re.sub(r"[^A-Za-z0-9.]+", "-", str(getattr(args, "data", "")))[-40:].strip("-.")
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    name = args.run_name or "-".join(p for p in (method, data, f"s{args.seed}", stamp) if p)
    folder = Path(args.out) / name
    if args.run_name and folder.is_dir() and not never_started(folder):
        raise SightRLError(
            f"{folder} exists already; choose another --run-name, or continue it with --resume {folder}."
        )
    with checkpoints.disk_errors(folder):
        while not args.run_name and folder.exists():  # a second run in the same second
            folder = folder.with_name(folder.name + "x")
        folder.mkdir(parents=True, exist_ok=True)
    return folder, False


def never_started(folder: Path) -> bool:
    """Empty, or left by a run that was killed before it had described itself."""
    ours = (".lock", "run.json", "versions.json")
    return all(path.name in ours or path.name.startswith(checkpoints.TEMPORARY) for path in folder.iterdir())


def read_config(folder: Path) -> dict:
    return read_object(folder, "config.json")


def read_object(folder: Path, name: str) -> dict:
    """What a run wrote about itself. Raises SightRLError for a file that is missing or damaged."""
    try:
        return dict(json.loads((folder / name).read_bytes()))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise SightRLError(f"--resume {folder}: no run folder there ({name} is missing or damaged).") from error


def check_same_options(folder: Path, args: Any) -> None:
    saved, given = read_config(folder), options_of(args)
    differing = [n for n in sorted(set(saved) | set(given)) if n not in MAY_DIFFER and saved.get(n) != given.get(n)]
    if differing:
        started = "; ".join(f"{n} was {saved.get(n)!r}, now {given.get(n)!r}" for n in differing[:3])
        about = read_object(folder, "run.json")
        raise SightRLError(
            f"--resume {folder}: other options than at the start ({started}); continue with: "
            f"{about.get('command')} --resume {shlex.quote(str(folder))}"
        )


def newest_unfinished(out: Path, method: str, config: dict) -> Path | None:
    def fits(folder: Path) -> bool:
        if (folder / "summary.json").exists() or not (folder / "run.json").exists():
            return False
        try:
            saved, about = read_config(folder), read_object(folder, "run.json")
        except SightRLError:  # a damaged folder, or one of another program
            return False
        same = all(saved.get(n) == config.get(n) for n in set(saved) | set(config) if n not in MAY_DIFFER)
        return same and about.get("method") == method

    folders = sorted(out.glob("*/config.json"), key=lambda path: path.stat().st_mtime, reverse=True)
    return next((path.parent for path in folders if fits(path.parent)), None)


def lock_folder(folder: Path) -> Any:
    """Keep a second process out of the folder; the lock goes with the process, however it ends."""
    with checkpoints.disk_errors(folder):
        file = open(folder / ".lock", "w")  # noqa: SIM115 (open as long as the run)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        raise SightRLError(f"{folder} is in use by another process; wait for it or stop it first.") from error
    return file


def remove_folder(folder: Path) -> None:
    if folder.exists():
        for path in sorted(folder.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
        folder.rmdir()


# ---------------------------------------------------------------- what is written down about a run


def options_of(args: Any) -> dict:
    return json.loads(json.dumps(dataclasses.asdict(args), default=str))


def command_line() -> str:
    """The command line without --resume, with paths relative to the working folder where possible."""
    words = [*distributed.launcher(), relative(sys.argv[0])]
    rest = iter(sys.argv[1:])
    for word in rest:
        if word == "--resume":
            next(rest, None)
        elif not word.startswith("--resume="):
            words.append(word)
    return shlex.join(words)


def relative(path: str) -> str:
    try:
        return str(Path(path).resolve().relative_to(Path.cwd()))
    except ValueError:
        return path


def git(root: Path, *words: str) -> str | None:
    """What git says about the checkout at root; None if it refuses, hangs, or is not there."""
    try:
        call = ["git", "-C", str(root), *words]
        done = subprocess.run(call, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def git_state() -> dict[str, Any]:
    """Commit of this repository and whether files differ from it; None, None outside a git checkout."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return {"git_commit": None, "git_dirty": None}
    paths = (".", ":!results", ":!runs")  # what a run reads, not what runs write
    changes = git(root, "status", "--porcelain", "--", *paths)
    commit = git(root, "rev-parse", "HEAD")
    return {"git_commit": commit, "git_dirty": None if changes is None else bool(changes)}


def versions() -> dict[str, Any]:
    found = {"python": platform.python_version(), "system": platform.platform()}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return found | {
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "processes": distributed.world_size(),
        "gpus": gpus,
    }


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def start_wandb(args: Any, method: str, folder: Path) -> Any:
    """Mirror the metrics to Weights & Biases; without an account into the offline folder, never asking
    anything."""
    try:
        import wandb
    except ImportError as error:
        raise SightRLError("--wandb needs the wandb package: pip install wandb") from error
    mode = os.environ.get("WANDB_MODE") or ("online" if wandb_account() else "offline")
    return wandb.init(
        project="sightrl",
        group=method,
        name=folder.name,
        id=folder.name,
        resume="allow",
        mode=mode,
        dir=str(folder),
        config=options_of(args),
        settings=wandb.Settings(silent=True),
    )


def wandb_account() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc().authenticators("api.wandb.ai") is not None
    except (OSError, netrc.NetrcParseError):
        return False


# ---------------------------------------------------------------- numbers


def json_number(value: Any) -> float | int | None:
    """A metric as a JSON number: tensors and NumPy scalars become floats, what is not finite becomes None."""
    if isinstance(value, bool | np.bool_):
        return int(value)
    if isinstance(value, int | np.integer):
        return int(value)
    value = float(value)
    return value if math.isfinite(value) else None


def spelled(value: Any) -> Any:
    """Numbers that JSON lacks as text: "nan", "inf", "-inf"."""
    if isinstance(value, dict):
        return {name: spelled(item) for name, item in value.items()}
    if isinstance(value, list):
        return [spelled(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def as_json(value: Any) -> Any:
    """Nested values as JSON: tensors and arrays as lists, floats with 6 significant digits, not finite as
    None."""
    if isinstance(value, torch.Tensor | np.ndarray | np.generic):
        return as_json(value.tolist())
    if isinstance(value, dict):
        return {str(name): as_json(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)


def peak_memory_gb() -> float | None:
    """Largest memory so far in GB (1e9 bytes): of the GPU's allocator, or of this process without a GPU."""
    if torch.cuda.is_available():
        return round(torch.cuda.max_memory_allocated() / 1e9, 3)
    unit = 1 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9, 3)

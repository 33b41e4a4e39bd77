"""Folders of runs: where results go, and the settings that a run which goes on must share with its beginning."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from datetime import datetime
from pathlib import Path
from typing import Any

from common.checkpoint import disk_errors, write_json
from common.distributed import from_main
from common.errors import SightRLError
from scoring import plain

FREE = ("batch", "device")  # settings that a continued run may change
HASHES = {"rows_hash": "content of the data", "prompt_hash": "text of the prompts", "scorer_hash": "benchmark file",
          "model_files": "content of the model's folder"}  # fmt: skip


def run_folder(args: Any, what: str) -> Path:
    """Where this run's results go, the same in every process: --resume, else --run-name, else `what` and the time."""
    if args.resume:
        return Path(args.resume)
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    folder = Path(args.out) / (args.run_name or re.sub(r"[^A-Za-z0-9.]+", "-", f"{what}-{stamp}").strip("-.")[-80:])
    while not args.run_name and folder.exists():  # a second run in the same second
        folder = folder.with_name(folder.name + "x")
    return from_main(folder)


def remember(args: Any, folder: Path) -> None:
    """Keep the options for --resume."""
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    options = dataclasses.asdict(args) | {"resume": "", "show_list": False}
    write_json(folder / "options.json", options)


def keep_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Write settings.json; where there are answers already, compare. Raises SightRLError for a changed setting."""
    path, answers = folder / "settings.json", folder / "predictions.jsonl"
    with disk_errors(path):
        folder.mkdir(parents=True, exist_ok=True)
        begun = answers.exists() and answers.stat().st_size > 0
        if begun and not path.exists():
            raise SightRLError(f"{folder} holds predictions but no settings.json; give another --run-name.")
    try:
        saved = json.loads(path.read_text(encoding="utf-8")) if begun else settings
        changed = next((k for k in settings if k not in FREE and saved.get(k) != settings[k]), None)
    except (OSError, ValueError, AttributeError):
        raise SightRLError(f"{path} is damaged; give another --run-name.") from None
    if changed:
        values = "" if changed in HASHES else f" ({saved.get(changed)!r}, now {settings[changed]!r})"
        problem = f"{folder} was begun with another {HASHES.get(changed, changed)}{values}"
        raise SightRLError(f"{problem}; go on with the same, or give another --run-name.")
    write_json(path, settings)


def fingerprint(values: Any) -> str:
    """16 hex digits of anything that json.dumps takes, numpy numbers and sets too."""
    return hashlib.sha256(json.dumps(values, default=plain).encode()).hexdigest()[:16]


def files_hash(model: str) -> str:
    """What changes when the model in a local folder does; "" for other models."""
    folder = Path(model)
    if not folder.is_dir():
        return ""
    files = [f for f in sorted(folder.iterdir()) if f.suffix in (".safetensors", ".json") and f.is_file()]
    return fingerprint([[f.name, f.stat().st_size, f.stat().st_mtime_ns] for f in files])

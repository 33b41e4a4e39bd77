"""The runs of a comparison as processes: so many side by side, watched, and stopped with a checkpoint each."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.progress import BarColumn, Progress, TextColumn

from common.errors import SightRLError
from common.run_folder import git

if TYPE_CHECKING:
    from compare import Contender


def made_by_other_code(commits: list[str | None], root: Path) -> int:
    """How many of these runs were made when common/ was another one than now, which their key does not notice; as far
    as git can tell."""
    counts = Counter(commit for commit in commits if commit and re.fullmatch("[0-9a-f]{40}", commit))
    return sum(n for commit, n in counts.items() if git(root, "diff", "--name-only", commit, "--", "common"))


def run_all(entries: list[Contender], seeds: int, jobs: int) -> None:
    """Run what is not finished, `jobs` at a time; methods take turns, so that all advance together.

    Ctrl-C and SIGTERM let every run write a checkpoint. Raises SightRLError when runs failed, at the end.
    """
    waiting = [(entry, seed) for seed in range(seeds) for entry in entries if not entry.finished(seed)]
    print(f"{len(waiting)} of {len(entries) * seeds} runs to do, {jobs} at a time", flush=True)
    active: dict[tuple[Contender, int], subprocess.Popen] = {}
    failed: list[str] = []
    display = Display(len(waiting))
    old = signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        while waiting or active:
            while waiting and len(active) < jobs:
                active[waiting[0]] = start(*waiting[0])
                waiting.pop(0)
            time.sleep(0.2)
            for run in [run for run, process in active.items() if process.poll() is not None]:
                status = active.pop(run).returncode
                if not run[0].finished(run[1]):
                    failed.append(complaint(*run, status))
                display.done(*run)
            display.update(list(active))
    except KeyboardInterrupt:
        display.close()
        stop(list(active.values()))
        raise
    finally:
        display.close()
        signal.signal(signal.SIGTERM, old)
    if failed:
        raise SightRLError("\n".join([f"{len(failed)} runs did not finish:", *failed]))


def start(entry: Contender, seed: int) -> subprocess.Popen:
    """One run as a process with one thread, continued where an earlier one stopped."""
    folder = entry.run(seed)
    command = [sys.executable, str(entry.script), *entry.flags, "--seed", str(seed),
               "--out", str(entry.folder), "--run-name", folder.name]  # fmt: skip
    if (folder / "run.json").is_file():
        command += ["--resume", str(folder)]
    elif folder.exists():  # stopped before it described itself
        shutil.rmtree(folder)
    entry.folder.mkdir(parents=True, exist_ok=True)
    if seed and (entry.run(0) / "eval_before.json").is_file():  # the model before training is the same
        command += ["--base-from", str(entry.run(0))]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    with open(entry.log(seed), "ab") as log:  # its own session: Ctrl-C reaches it through us only
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment,
                                start_new_session=True)  # fmt: skip


def stop(processes: list[subprocess.Popen]) -> None:
    """Ask for a checkpoint and wait for it; Ctrl-C again ends the runs at once."""
    print("\nStopping: the runs finish their step; the same command goes on later. Ctrl-C again: at once.")
    for number in (signal.SIGTERM, signal.SIGKILL):
        for process in processes:
            if process.poll() is None:
                process.send_signal(number)
        try:
            for process in processes:
                process.wait()
            return
        except KeyboardInterrupt:
            continue


def complaint(entry: Contender, seed: int, status: int) -> str:
    last = entry.log(seed).read_text(errors="replace").strip().splitlines()[-5:]
    about = f"{entry.label}, seed {seed} (exit status {status}, log {entry.log(seed)}):"
    return "\n    ".join([about, *last])


class Display:
    """A bar per active run on a terminal, a line per run twice a minute elsewhere."""

    def __init__(self, total: int) -> None:
        self.total, self.finished, self.last = total, 0, time.monotonic()
        self.bars: dict[tuple[Contender, int], Any] = {}
        self.progress: Progress | None = None
        if sys.stdout.isatty():
            columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[note]}"))
            self.progress = Progress(*columns, transient=True)
            self.progress.start()

    def update(self, active: list[tuple[Contender, int]]) -> None:
        wait = 30 if self.progress is None else 1
        if time.monotonic() - self.last < wait:
            return
        self.last = time.monotonic()
        for run in active:
            share, note = state_of(*run)
            name = f"{run[0].label} seed {run[1]}"
            if self.progress is None:
                print(f"{name}: {share:.0%}, {note}", flush=True)
                continue
            if run not in self.bars:
                self.bars[run] = self.progress.add_task(name, total=1.0, note="")
            self.progress.update(self.bars[run], completed=share, note=f"{share:.0%}, {note}")

    def done(self, entry: Contender, seed: int) -> None:
        self.finished += 1
        word = "finished" if entry.finished(seed) else "FAILED"
        line = f"{word} {self.finished}/{self.total}: {entry.label} seed {seed}, {state_of(entry, seed)[1]}"
        if self.progress is None:
            print(line, flush=True)
            return
        if (entry, seed) in self.bars:
            self.progress.remove_task(self.bars.pop((entry, seed)))
        self.progress.console.print(line, markup=False, highlight=False)

    def close(self) -> None:
        if self.progress is not None:
            self.progress.stop()
            self.progress = None


def state_of(entry: Contender, seed: int) -> tuple[float, str]:
    """Share of the budget used and a note, from the last line of the run's metrics."""
    try:
        with open(entry.run(seed) / "metrics.jsonl", "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 20_000))
            line = json.loads(file.read().splitlines()[-1])
        budget = json.loads((entry.run(seed) / "config.json").read_text())["budget_tokens"]
    except (OSError, ValueError, IndexError):
        return 0.0, "starting"
    share = min(1.0, line.get("tokens_generated", 0) / budget) if budget else 0.0
    return share, f"step {line['step'] + 1}, training accuracy {line.get('accuracy') or 0:.3f}"


def default_jobs() -> int:
    import torch

    if torch.cuda.is_available():
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

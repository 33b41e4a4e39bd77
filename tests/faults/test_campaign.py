"""A run is struck at a random moment, in every way we know, and resumed: the end is that of the uninterrupted run.

SIGHTRL_FAULT_MOMENTS=30 pytest tests/faults/test_campaign.py -rP     # the full campaign, and where it struck
"""

from __future__ import annotations

import os
import random
import signal
import tempfile
from functools import cache, partial
from pathlib import Path

import pytest
from child_runs import (
    METHODS,
    SMALL,
    Child,
    Disk,
    jumping_clock,
    lines,
    no_more_files_above,
    no_more_memory,
    options_of,
    resumable,
    run,
    slow_disk,
    start,
    wait_for_moment,
)
from method_runs import assert_same_end

MOMENTS = int(os.environ.get("SIGHTRL_FAULT_MOMENTS", "7"))
SEED = os.environ.get("SIGHTRL_FAULT_SEED", "0")
KINDS = ("kill", "terminate", "memory", "disk_full", "file_limit", "read_only", "clock")
NAMES = list(METHODS)[: 2 if len(KINDS) >= MOMENTS else None]


@pytest.fixture(scope="module")
def whole():
    """Method -> (folder of its uninterrupted run, processor seconds it took)."""
    with tempfile.TemporaryDirectory() as folder:

        @cache
        def of(method: str) -> tuple[Path, float]:
            child = run(method, options_of(method, Path(folder), method), Path(folder) / f"{method}.log")
            return child.folder, child.used

        yield of


@pytest.fixture
def out(moment, tmp_path):
    """Where the struck run writes: (folder, the small disk it is on or None)."""
    if KINDS[moment % len(KINDS)] not in ("disk_full", "read_only"):
        yield tmp_path, None
        return
    disk = Disk(tmp_path / "disk")
    yield disk.folder, disk
    disk.remove()


def strike(kind: str, child: Child, disk: Disk | None) -> None:
    """Do it, wait for the end, check what the run says of it."""
    if kind in ("kill", "read_only", "clock"):
        os.kill(child.pid, signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
    elif kind == "terminate":
        os.kill(child.pid, signal.SIGTERM)
        finished = (child.folder / "model").exists()  # there was nothing left but the report
        assert child.wait() == -signal.SIGTERM or "Stopped after step" in child.said() or finished, child.said()
    elif kind == "memory":
        no_more_memory(child)
        child.wait()
    else:
        disk.fill() if disk else no_more_files_above(child, 200_000)
        if child.wait():  # 0: there was nothing left to write
            what = "MB needed); free some space" if disk else "limit (ulimit -f) allows"
            assert what in child.error() and str(child.folder) in child.error()
    if kind == "disk_full":
        disk.empty()


def refuses_a_read_only_folder(method: str, options: dict, disk: Disk, log: Path) -> None:
    before = sorted((p, p.stat().st_size) for p in disk.folder.rglob("*"))
    disk.read_only(True)
    child = start(method, options, log)
    status = child.wait()
    disk.read_only(False)
    assert status == 2 and "the file system is read-only" in child.error()
    assert "asking" not in child.said() and "step " not in child.said()  # before anything slow
    assert before == sorted((p, p.stat().st_size) for p in disk.folder.rglob("*"))


def where(folder: Path) -> str:
    """What the struck run was at."""
    if list(folder.glob("checkpoints/.tmp-step-*")):
        return "inside a checkpoint write"
    if not (folder / "config.json").exists():
        return "before it had described itself"
    steps = len(lines(folder / "metrics.jsonl"))
    return f"after {steps} of {SMALL['steps']} steps"


@pytest.mark.parametrize("moment", range(MOMENTS))
def test_struck_and_resumed_equals_uninterrupted(moment, whole, out, tmp_path):
    kind, method, chance = KINDS[moment % len(KINDS)], NAMES[moment % len(NAMES)], random.Random(f"{SEED} {moment}")
    reference, seconds = whole(method)
    place, disk = out
    in_checkpoint, part = chance.random() < 0.4, chance.random() ** 2  # most of the time is after training
    for attempt in range(6):
        options = options_of(method, place, f"struck{attempt}")
        setup = partial(jumping_clock, -5.0) if kind == "clock" else slow_disk if in_checkpoint else None
        child = start(method, options, tmp_path / f"struck{attempt}.log", setup)
        if wait_for_moment(child, seconds * part, in_checkpoint, chance):
            break
        child.wait()
        part *= 0.7
    else:
        pytest.fail("six runs ended before the moment came")
    strike(kind, child, disk)
    last_words = (child.said().splitlines() or [""])[-1][:160]
    print(f"{kind} in {method}, {part:.0%} of its time, {where(child.folder)}: {last_words}")
    options["resume"] = resumable(child.folder)
    if kind == "read_only":
        refuses_a_read_only_folder(method, options, disk, tmp_path / "read_only.log")
    run(method, options, tmp_path / "resumed.log", partial(jumping_clock, 7.0) if kind == "clock" else None)
    assert_same_end(reference, child.folder)

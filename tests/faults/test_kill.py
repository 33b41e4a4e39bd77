"""kill -9 at random moments, also inside a checkpoint write, then resume: the end is that of a whole run."""

from __future__ import annotations

import os
import random
import signal
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import toy_run
from child_runs import Child, slow_disk, start_toy
from method_runs import assert_same_end


def wait_for_random_moment(child: Child, folder: Path, chance: random.Random) -> None:
    """Until a step or a half-written checkpoint of this process is seen, then a little longer."""
    inside_checkpoint, before = chance.random() < 0.6, None
    while child.running():
        if inside_checkpoint and list(folder.glob("checkpoints/.tmp-step-*")):
            break
        if not inside_checkpoint and (folder / "metrics.jsonl").exists():
            size = (folder / "metrics.jsonl").stat().st_size
            before = size if before is None else before
            if size != before:
                break
        time.sleep(0.002)
    time.sleep(chance.random() * 0.05)


def test_kill_nine_at_random_moments_then_resume_equals_uninterrupted(tmp_path):
    args = toy_run.Args(out=str(tmp_path), run_name="cut", steps=10, checkpoint_every=2)
    whole = start_toy(replace(args, run_name="whole"), tmp_path / "whole.log")
    chance, folder, kills = random.Random(7), tmp_path / "cut", 0
    for attempt in range(6):
        resume = str(folder) if attempt else ""
        slow = partial(slow_disk, 0.02)
        child = start_toy(replace(args, resume=resume), tmp_path / f"{attempt}.log", slow, pause=0.02)
        wait_for_random_moment(child, folder, chance)
        os.kill(child.pid, signal.SIGKILL)
        kills += child.wait() == -signal.SIGKILL
    last = start_toy(replace(args, resume=str(folder)), tmp_path / "last.log")
    assert last.wait() == 0, last.said()
    assert whole.wait() == 0, whole.said()
    assert kills >= 4
    assert_same_end(whole.folder, folder)


def test_second_signal_stops_at_once(tmp_path):
    args = toy_run.Args(out=str(tmp_path), run_name="two", steps=10, checkpoint_every=2)
    child = start_toy(args, tmp_path / "log", pause=0.6)
    wait_for(lambda: (child.folder / "metrics.jsonl").exists(), child)
    os.kill(child.pid, signal.SIGTERM)
    wait_for(lambda: "Finishing this step" in child.said(), child)
    os.kill(child.pid, signal.SIGTERM)
    assert child.wait() == -signal.SIGTERM
    assert "continue with: python" in child.said()


def wait_for(condition, child: Child) -> None:
    while not condition():
        assert child.running(), child.said()
        time.sleep(0.01)

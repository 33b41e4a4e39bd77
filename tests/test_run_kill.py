"""kill -9 at random moments, also inside a checkpoint write, then resume: the end is that of a whole run."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from test_run import assert_same_end

ROOT = Path(__file__).resolve().parent.parent

TOY = """
import sys, time
sys.path[:0] = [{root!r}, {root!r} + "/tests"]
import test_run, common.report
from common import checkpoint as checkpoints
common.report.write_report = lambda folder: folder
real = checkpoints.save_tensors
def slow(tensors, path):  # half a file, a pause, the whole file: time for a kill in between
    path.write_bytes(b"half")
    time.sleep({pause})
    real(tensors, path)
checkpoints.save_tensors = slow
args = test_run.Args(out={out!r}, run_name={name!r}, resume={resume!r}, steps=10, checkpoint_every=2)
test_run.train(args, pause={pause})
"""


def start_toy(out: Path, name: str, resume: str, pause: float) -> subprocess.Popen:
    code = TOY.format(root=str(ROOT), out=str(out), name=name, resume=resume, pause=pause)
    return subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


def wait_for_random_moment(process: subprocess.Popen, folder: Path, chance: random.Random) -> None:
    """Until a step or a half-written checkpoint of this process is seen, then a little longer."""
    inside_checkpoint, lines = chance.random() < 0.6, None
    while process.poll() is None:
        if inside_checkpoint and list(folder.glob("checkpoints/.tmp-step-*")):
            break
        if not inside_checkpoint and (folder / "metrics.jsonl").exists():
            size = (folder / "metrics.jsonl").stat().st_size
            lines = size if lines is None else lines
            if size != lines:
                break
        time.sleep(0.002)
    time.sleep(chance.random() * 0.05)


def test_kill_nine_at_random_moments_then_resume_equals_uninterrupted(tmp_path):
    chance = random.Random(7)
    whole = start_toy(tmp_path, "whole", "", 0.0)  # at the same time, in another folder
    folder = tmp_path / "cut"
    kills = 0
    for attempt in range(3):
        process = start_toy(tmp_path, "cut", str(folder) if attempt else "", 0.02)
        wait_for_random_moment(process, folder, chance)
        process.kill()
        kills += process.wait() == -signal.SIGKILL
    last = start_toy(tmp_path, "cut", str(folder), 0.0)
    assert last.wait(timeout=120) == 0, last.stderr.read()
    assert whole.wait(timeout=120) == 0, whole.stderr.read()
    assert kills >= 2
    assert_same_end(tmp_path / "whole", folder)


def test_second_signal_stops_at_once(tmp_path):
    process = start_toy(tmp_path, "two", "", 0.6)
    while not (tmp_path / "two" / "metrics.jsonl").exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert "Finishing this step" in process.stderr.readline() + process.stderr.readline()
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == -signal.SIGTERM
    assert "continue with: python" in process.stderr.read()

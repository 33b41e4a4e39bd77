"""Training runs in child processes that a test watches, strikes and resumes; method_runs.py says what must be equal.

A child is forked, so that torch is imported once for all of them; it then does what the method's script does with
these options. Nothing is trained in the process of pytest.
"""

from __future__ import annotations

import errno
import importlib
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
import toy_run
from helpers import coin
from method_runs import GROUPS, MINUTE, untimed

from common import checkpoint as checkpoints
from common.errors import main_guard

QWEN, TASKS = "transformers.models.qwen2", "common.tasks"
SLOW = ("common.report", f"{TASKS}.facts", f"{TASKS}.captions", f"{TASKS}.puzzles", f"{TASKS}.perception",
        "common.contrast", "common.random_vlm", "common.cpu_kernel", "common.logprob",
        "transformers.models.auto.modeling_auto", f"{QWEN}_5_vl.modeling_qwen2_5_vl",
        f"{QWEN}_vl.image_processing_pil_qwen2_vl")  # fmt: skip
for name in SLOW:  # once for all children
    importlib.import_module(name)

TICK = 1 / os.sysconf("SC_CLK_TCK")  # seconds of processor time
LIMIT = 900  # seconds after which a child counts as hanging
SMALL = MINUTE | dict(steps=4, eval_questions=1, max_new_tokens=5, max_minutes=60.0)
METHODS = {  # small runs that between them use every kind of state
    "grpo": GROUPS | dict(variant="dapo", max_rounds=2, gen_prompts=2, eval_every=2),
    "perception_r1": GROUPS | dict(judge_noise=0.2),
    "vogue": GROUPS | dict(shuffle_u=True),
    "vppo": GROUPS | dict(filter_groups="std", max_rounds=2, mask_source="random", entropy_coef=0.06),
    "pearl": GROUPS,
    "vision_sr1": GROUPS,
    "visionary_r1": GROUPS,
    "vicrit": GROUPS,
    "visual_rft": GROUPS,
    "visurf": GROUPS | dict(variant="sft_grpo"),
    "ssl4rl": GROUPS | dict(ssl="mix"),
    "sft": dict(batch_size=3, world_habit="mixture", max_target_tokens=12),
}
OURS = list(METHODS)
METHODS |= {path.stem: GROUPS for path in sorted((Path(__file__).parent.parent / "methods").glob("*.py"))
            if path.stem not in OURS}  # a reader's own  # fmt: skip


# ---------------------------------------------------------------- in the child


def toss_coins(method: str, coin: Callable[..., int]) -> None:
    """A random model is never right: grades that depend on the text alone give its groups some spread."""
    from common import rewards
    from common.tasks import captions, facts

    rewards.accuracy = rewards.grade_answer = coin
    captions.names_error, rewards.last_boxed = coin, lambda text: text
    module, plain = importlib.import_module(f"methods.{method}"), facts.oracle
    flips = lambda prompt: [str(coin(prompt + str(k))) for k in range(len(facts.tags(plain(prompt))))]  # noqa: E731
    facts.oracle = lambda prompt: facts.tagged(flips(prompt))
    own = {"visionary_r1": {"accuracy": coin, "caption_of": lambda text: text if coin(text + "!") else None},
           "visurf": {"marks": lambda text, sample: (coin(text), coin(text + "a"), coin(text + "b"))},
           "ssl4rl": {"reward": lambda text, puzzle: coin(text) / 2},
           "visual_rft": {"rewards_of": lambda args, text, *_: {"coin": coin(text) / 2}}}  # fmt: skip
    for name, value in own.get(method, {}).items():
        assert hasattr(module, name)
        setattr(module, name, value)


def slow_disk(seconds: float = 0.05) -> None:
    """Half a file, a pause, the whole file: time for a strike in between."""
    plain = checkpoints.save_tensors

    def slow(tensors: dict, path: Path) -> None:
        path.write_bytes(b"half")
        time.sleep(seconds)
        plain(tensors, path)

    checkpoints.save_tensors = slow


def jumping_clock(hours: float) -> None:
    """Every look at the clock finds it hours further on (or back, if negative); only `monotonic` and `perf_counter`
    are left alone."""
    from common import run, run_folder

    looks, now, plain = [], time.time, run.datetime

    def time_of_day() -> float:
        looks.append(1)
        return max(now() + 3600 * hours * len(looks), 1.0)

    class Clock(plain):
        @classmethod
        def now(cls, tz=None):
            return plain.fromtimestamp(time_of_day(), tz)

    time.time, time.time_ns = time_of_day, lambda: int(time_of_day() * 1e9)
    run.datetime = run_folder.datetime = Clock


# ---------------------------------------------------------------- the child from outside


class Child:
    """work() in a process of its own, with what it prints in a file."""

    started: list[Child] = []

    def __init__(self, work: Callable[[], None], log: Path, folder: Path | None = None) -> None:
        """folder: the run folder that it will write, for those who watch it."""
        self.log, self.folder, self.ended = log, folder, False
        log.parent.mkdir(parents=True, exist_ok=True)
        sys.stdout.flush(), sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            self._live(work)
        self.started.append(self)

    def _live(self, work: Callable[[], None]) -> None:
        status = 99
        try:
            file = open(self.log, "w", buffering=1)  # noqa: SIM115
            for number in (1, 2):
                os.dup2(file.fileno(), number)
            sys.stdout = sys.stderr = file
            for number, handler in ((signal.SIGTERM, signal.SIG_DFL), (signal.SIGINT, signal.default_int_handler)):
                signal.signal(number, handler)
            torch.set_num_threads(1)
            work()
            status = 0
        except SystemExit as end:
            status = end.code
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)

    def running(self) -> bool:
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None

    def seconds(self) -> float:
        """Processor time so far: moments must not depend on what else the machine does."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) * TICK

    def wait(self) -> int:
        """The status as subprocess gives it: negative for a signal."""
        end = time.monotonic() + LIMIT
        while self.running() and time.monotonic() < end:
            time.sleep(0.01)
        hangs = self.running()
        if hangs:
            os.kill(self.pid, signal.SIGKILL)
        _, status, usage = os.wait4(self.pid, 0)
        self.ended = True
        self.used = usage.ru_utime + usage.ru_stime
        assert not hangs, f"hangs: {self.said()}"
        return os.waitstatus_to_exitcode(status)

    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def error(self) -> str:
        """The one line of the SightRLError that ended it, without any traceback."""
        lines = [line for line in self.said().splitlines() if line.startswith("error: ")]
        assert len(lines) == 1 and "Traceback" not in self.said(), self.said()
        return lines[0]


def start(method: str, options: dict, log: Path, setup: Callable[[], None] | None = None,
          grade: Callable[..., int] = coin) -> Child:  # fmt: skip
    """methods/<method>.py with these options in a child; setup() is called in it first."""

    def work() -> None:
        sys.argv = [f"methods/{method}.py"]
        toss_coins(method, grade)
        if setup:
            setup()
        module = importlib.import_module(f"methods.{method}")
        main_guard(module.main, module.Args(**options))

    return Child(work, log, Path(options["out"]) / options["run_name"])


def start_toy(args: toy_run.Args, log: Path, setup: Callable[[], None] = lambda: None, pause: float = 0.0) -> Child:
    """The loop of toy_run.py in a child, as the scripts start theirs; setup() is called in it first."""

    def work() -> None:
        import common.report

        common.report.write_report = lambda folder: folder / "report.html"
        sys.argv = ["toy.py"]
        setup()
        main_guard(partial(toy_run.train, pause=pause), args)

    return Child(work, log, Path(args.out) / args.run_name)


def run(*words, **more) -> Child:
    """As `start`, and it must end well."""
    child = start(*words, **more)
    assert child.wait() == 0, child.said()
    return child


def options_of(method: str, out: Path, name: str, **more) -> dict:
    return SMALL | METHODS[method] | {"out": str(out), "run_name": name} | more


def resumable(folder: Path) -> str:
    """What to give to --resume."""
    return str(folder) if (folder / "config.json").exists() else ""


def lines(path: Path) -> list[dict]:
    """Of a file that a struck run may never have begun."""
    return untimed(path) if path.exists() else []


# ---------------------------------------------------------------- strikes


class Disk:
    """A small file system in memory that can be full or read-only."""

    def __init__(self, folder: Path, size: str = "64m") -> None:
        self.folder = folder
        folder.mkdir()
        self.mount("-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder))

    @staticmethod
    def mount(*words: str) -> None:
        done = subprocess.run(["mount", *words], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"this machine does not let us mount a tmpfs ({done.stderr.strip()})")

    def leave(self, free: int) -> None:
        """Fill the disk but for so many bytes."""
        with open(self.folder / "filler", "wb") as file:
            os.posix_fallocate(file.fileno(), 0, max(shutil.disk_usage(self.folder).free - free, 1))

    def fill(self) -> None:
        """Until nothing goes in any more, though somebody else writes at the same time."""
        with open(self.folder / "filler", "ab") as file:
            for size in (1 << 22, 1 << 18, 1 << 12):
                try:
                    while True:
                        os.posix_fallocate(file.fileno(), os.fstat(file.fileno()).st_size, size)
                except OSError as error:
                    assert error.errno == errno.ENOSPC

    def empty(self) -> None:
        (self.folder / "filler").unlink(missing_ok=True)

    def read_only(self, yes: bool) -> None:
        self.mount("-o", f"remount,{'ro' if yes else 'rw'}", str(self.folder))

    @staticmethod
    def unmount(folder: Path) -> None:
        subprocess.run(["umount", "-l", str(folder)], check=False)

    def remove(self) -> None:
        self.unmount(self.folder)


def wait_for_moment(child: Child, seconds: float, in_checkpoint: bool, chance: random.Random) -> bool:
    """Until the child has used so much processor time, then perhaps until it writes a checkpoint, then a little
    longer. False if it ended before."""
    while child.running() and child.seconds() < seconds:
        time.sleep(0.002)
    while in_checkpoint and child.running() and not list(child.folder.glob("checkpoints/.tmp-step-*")):
        time.sleep(0.001)
    time.sleep(chance.random() * 0.1 * in_checkpoint)
    return child.running()


def no_more_memory(child: Child) -> None:
    resource.prlimit(child.pid, resource.RLIMIT_AS, (1 << 20, resource.RLIM_INFINITY))


def no_more_files_above(child: Child | None, size: int) -> None:
    """No file of the child (None: of this process) may become larger than so many bytes."""
    resource.prlimit(child.pid if child else 0, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

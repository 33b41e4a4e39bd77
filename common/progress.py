"""The progress of a run on the screen: a live line on a terminal, a plain line now and then anywhere else."""

import math
import os
import sys
import time
from typing import Any

import numpy as np
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.text import Text

from common.errors import printable

PLAIN_SECONDS = 10.0  # without a terminal: at most one progress line in so many seconds


def duration(seconds: float) -> str:
    """
    >>> duration(7), duration(200), duration(7500)
    ('7s', '3m20s', '2h05m')
    """
    seconds = max(0, round(seconds))
    if seconds < 60:
        return f"{seconds}s"
    if seconds < 3600:
        return f"{seconds // 60}m{seconds % 60:02d}s"
    return f"{seconds // 3600}h{seconds % 3600 // 60:02d}m"


class Display:
    """A live line on a terminal, a plain line now and then anywhere else."""

    def __init__(self, method: str, first: int, total: int, budget_tokens: int = 0) -> None:
        self.total, self.recent, self.budget_tokens = total, [], budget_tokens
        self.console = Console()
        self.live: Live | None = None
        self._last_plain = -math.inf
        if sys.stdout.isatty() and os.environ.get("TERM") != "dumb":
            columns = (TextColumn("[bold]{task.description}"), BarColumn(), MofNCompleteColumn())
            self.progress = Progress(*columns, TextColumn("{task.fields[numbers]}"), console=self.console)
            self.task = self.progress.add_task(method, total=total, completed=first, numbers="")
            self.phases = Text("", style="dim")
            self.live = Live(Group(self.progress, self.phases), console=self.console, refresh_per_second=4)
            self.live.start()

    def update(self, step: int, record: dict[str, Any], notes: list[str]) -> None:
        self.recent = [*self.recent, record["seconds/step"]][-20:]
        steps_left, where = self.total - step - 1, f"step {step + 1}/{self.total}"
        if self.budget_tokens and record.get("tokens_generated"):
            done = record["tokens_generated"] / self.budget_tokens  # of the budget, in (0, 1]
            steps_left = min(steps_left, (step + 1) * max(0.0, 1 / done - 1))
            where = f"step {step + 1}, {min(done, 1):.0%} of {self.budget_tokens:,} tokens"
        left = steps_left * float(np.median(self.recent))
        numbers = "  ".join([*headline(record), *notes, f"{duration(left)} left"])
        seconds = {n[8:]: s for n, s in record.items() if n.startswith("seconds/") and n != "seconds/step"}
        phases = "  ".join(f"{name} {value:.2f}s" for name, value in seconds.items())
        if self.live is not None:
            self.progress.update(self.task, completed=step + 1, numbers=numbers)
            self.phases.plain = phases
            return
        now = time.monotonic()
        if step + 1 >= self.total or now - self._last_plain >= PLAIN_SECONDS:
            self._last_plain = now
            print(f"{where}  {numbers}" + (f"  ({phases})" if phases else ""), flush=True)

    def say(self, text: str) -> None:
        if self.live is not None:
            self.console.print(printable(text), markup=False, emoji=False, highlight=False)
        else:
            print(printable(text), flush=True)

    def close(self) -> None:
        if self.live is not None:
            self.live.stop()
            self.live = None


def headline(record: dict[str, Any]) -> list[str]:
    """Reward, accuracy and speed for the progress line, as far as they were logged."""
    shown = []
    for label, names in (("reward", ("reward/mean", "reward")), ("accuracy", ("accuracy", "reward/accuracy"))):
        name = next((n for n in names if record.get(n) is not None), None)
        if name is not None:
            shown.append(f"{label} {record[name]:.3f}")
    if record.get("loss") is not None and not shown:
        shown.append(f"loss {record['loss']:.4f}")
    if record.get("tokens_per_second"):
        shown.append(f"{record['tokens_per_second']:,.0f} tokens/s")
    return shown

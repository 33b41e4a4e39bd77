"""How far a run is: a bar on a terminal, now and then a line elsewhere; on stderr, where tables do not go."""

from __future__ import annotations

import sys
import time

EVERY = 30.0  # seconds between two lines where there is no terminal


class Progress:
    """show(done) after every batch, close() at the end."""

    def __init__(self, name: str, total: int, done: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        from common.distributed import is_main

        self.name, self.total, self.first, self.done = name, total, done, done
        self.began = self.said = time.monotonic()
        self.quiet, self.bar = not is_main(), None
        console = Console(stderr=True)
        if console.is_terminal and not self.quiet:
            what = TextColumn("{task.description}", markup=False)
            self.bar = Bar(what, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=console)
            self.task = self.bar.add_task(name, total=total, completed=done)
            self.bar.start()
        elif done:
            self.line(f"{done} of {total} rows are there already")

    def line(self, text: str) -> None:
        if not self.quiet:
            print(f"{self.name}: {text}", file=sys.stderr, flush=True)

    def show(self, done: int) -> None:
        self.done, now = done, time.monotonic()
        if self.bar is not None:
            self.bar.update(self.task, completed=done)
        elif now - self.said >= EVERY or done == self.total:
            rate, self.said = (done - self.first) / max(now - self.began, 1e-9), now
            left = f", about {(self.total - done) / rate / 60:.0f} min left" if done < self.total else ""
            self.line(f"{done} of {self.total} rows, {rate:.2g} rows/s{left}")

    def close(self) -> None:
        if self.bar is not None:
            self.bar.stop()

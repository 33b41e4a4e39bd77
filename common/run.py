"""One training run: its folder, seeds, metrics, progress display, checkpoints, resume and signals.

A run folder holds
    config.json    every effective option          metrics.jsonl    one line a step
    run.json       method, command, git commit     rollouts.jsonl   logged rollouts, pictures in images/
    versions.json  libraries and hardware          checkpoints/     step-XXXXXXXX/ and `latest`
and, written by finish(), summary.json, model/ and report.html.

A step whose updates were skipped (optimizer_step) leaves its batch in skipped/; three in a row stop the run.

A loop that can be stopped and continued bit for bit (metrics but seconds, tokens/s and memory included):

    run = Run(args, "grpo", args.steps)                # before the model: it seeds every generator
    for step in range(run.resume(vlm, optimizer, stream=stream), args.steps):
        with run.phase("rollout"):
            ...
        run.log(step, {"reward/mean": reward, "tokens": tokens})
        if run.checkpoint_due(step):
            run.checkpoint(step, vlm, optimizer, stream=stream)
        if run.stop_requested:
            return
    run.finish({"accuracy": accuracy})
"""

import atexit
import hashlib
import io
import json
import math
import os
import random
import shlex
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import Image

from common import checkpoint as checkpoints
from common import distributed, errors
from common.errors import SightRLError, printable
from common.progress import Display
from common.run_folder import (
    as_json,
    command_line,
    git_state,
    json_number,
    lock_folder,
    open_folder,
    options_of,
    peak_memory_gb,
    read_object,
    remove_folder,
    spelled,
    start_wandb,
    versions,
)
from common.sharding import gather_weights

SKIPS = 3  # steps in a row without an update for NaN or infinity that stop a run
MOSTLY = 0.5  # share of answers without an end and without an answer from which on the user is told


class Run:
    """One training run. `args` is the method's dataclass; its fields seed, out, run_name, resume, wandb,
    checkpoint_every and keep_checkpoints are used here, all of them are written to config.json.

    Attributes: folder, step (the last one logged), generator (torch, CPU) and rng (`random.Random`) seeded by
    args.seed, stop_requested (true once a SIGTERM or Ctrl-C was honoured: the step is finished and its
    checkpoint written). Raises SightRLError when the folder cannot be made, is in use, or belongs to a run
    with other options.

    With several processes (torchrun) every one makes a Run, which joins them, and calls the same methods of it; the
    first one's writes the files and prints, and a signal to any of them stops all.
    """

    def __init__(self, args: Any, method: str, total_steps: int) -> None:
        distributed.start(getattr(args, "device", "auto"))
        self.args, self.method, self.total_steps = args, method, total_steps
        self.step = -1
        self.stop_requested = False
        main = distributed.is_main()
        self.folder, self.resumed = distributed.from_main(open_folder(args, method) if main else None)
        self._lock = lock_folder(self.folder) if main else None
        self._seconds: dict[str, float] = {}
        self._elapsed, self._opened = 0.0, time.perf_counter()
        self._step_started = self._opened
        self._vlm: Any = None
        self._wandb: Any = None
        self._signal, self._all_saved = 0, False
        self.counts = {"skipped": 0, "skipped_in_a_row": 0, "no_spread": 0}  # steps so far
        self._old_handlers: dict[int, Any] = {}
        self._display: Display | None = None
        self._files: dict[str, BinaryIO] = {}
        self._reported: set[str] = set()
        self._seed(args.seed)
        if main:
            self._write_description()

    def _seed(self, seed: int) -> None:
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)  # every CUDA device too
        self.generator = torch.Generator().manual_seed(seed)
        self.rng = random.Random(seed)

    def _write_description(self) -> None:
        now = datetime.now().isoformat(timespec="seconds")
        if self.resumed:
            about = read_object(self.folder, "run.json")
            about["resumed"] = [*(about.get("resumed") or []), now]
            about["total_steps"] = self.total_steps
        else:
            about = {"method": self.method, "command": command_line(), **git_state(), "total_steps": self.total_steps}
            about |= {"started": now, "resumed": []}
        checkpoints.write_json(self.folder / "run.json", about)
        checkpoints.write_json(self.folder / "versions.json", versions())
        checkpoints.write_json(self.folder / "config.json", options_of(self.args))  # the last: now it can be resumed
        with checkpoints.disk_errors(self.folder / "checkpoints"):  # said now, not after hours
            (self.folder / "checkpoints").mkdir(exist_ok=True)
            tempfile.TemporaryFile(dir=self.folder / "checkpoints").close()

    # ------------------------------------------------------------ metrics

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the time spent inside to `seconds/<name>` of this step; waits for the GPU, so that it is
        true."""
        start = time.perf_counter()
        try:
            yield
        finally:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            key = f"seconds/{name}"
            self._seconds[key] = self._seconds.get(key, 0.0) + time.perf_counter() - start

    def log(self, step: int, metrics: dict[str, float | int]) -> None:
        """Append one line to metrics.jsonl, add times, tokens/s and peak memory, refresh the display.

        `metrics["tokens"]` (sampled response tokens of this step) gives tokens_per_second over the whole
        step. A value that is not finite is written as null and reported once by name. Steps that taught nothing
        are counted: updates/skipped above 0, or groups/zero_spread 1.
        """
        now = time.perf_counter()
        seconds = now - self._step_started
        record: dict[str, Any] = {"step": step, **{name: json_number(value) for name, value in metrics.items()}}
        record |= {name: round(value, 4) for name, value in self._seconds.items()}
        record["seconds/step"] = round(seconds, 4)
        if "tokens" in record and "tokens_per_second" not in record:
            record["tokens_per_second"] = round((record["tokens"] or 0) / max(seconds, 1e-9), 1)
        record["memory/peak_gb"] = peak_memory_gb()
        self._append("metrics.jsonl", json.dumps(record, allow_nan=False))
        for name in [n for n, value in record.items() if value is None and n not in self._reported]:
            self.say(f"warning: step {step}: {name} is not a finite number (written as null)")
            self._reported.add(name)
        unread = min(record.get(name) or 0 for name in ("truncated", "no_answer"))
        if unread > MOSTLY and "truncated" not in self._reported:
            fix = "raise --max-new-tokens, or ask for shorter answers with --prompt"
            self.say(f"warning: step {step + 1}: {unread:.0%} of the answers were cut off before they ended; {fix}")
            self._reported.add("truncated")
        if self._wandb is not None:
            self._wandb.log({name: value for name, value in record.items() if value is not None}, step=step)
        self._count(step, record)
        if self._display is not None:
            self._display.update(step, record, self._counted())
        self.step, self._seconds, self._step_started = step, {}, now

    def _count(self, step: int, record: dict[str, Any]) -> None:
        skipped, no_spread = bool(record.get("updates/skipped")), record.get("groups/zero_spread") == 1
        self.counts["skipped"] += skipped
        self.counts["skipped_in_a_row"] = (self.counts["skipped_in_a_row"] + 1) * skipped
        self.counts["no_spread"] += no_spread
        if no_spread and self.counts["no_spread"] == 1:  # once; then the count is shown
            self.say(f"step {step + 1}: the rewards are equal within every group, so these answers teach nothing")

    def _counted(self) -> list[str]:
        """What the display and the last lines say of steps that taught nothing."""
        texts = {"skipped": "steps skipped (NaN or infinity)", "no_spread": "steps without spread of rewards"}
        return [f"{text}: {self.counts[name]}" for name, text in texts.items() if self.counts[name]]

    def save_batch(self, step: int, records: list[dict]) -> None:
        """Write the batch of a skipped step to skipped/step-XXXXXXXX.jsonl, a response a line, for a person to look at.

        records: as for log_rollouts, and prompt, logps. Numbers that are not finite are written as text.
        """
        path = self.folder / f"skipped/step-{step:08d}.jsonl"
        self.say(f"step {step + 1}: loss or gradient is not a finite number, update skipped; its batch is in {path}")
        if not distributed.is_main():
            return
        lines = []
        for record in records:
            line = {name: as_json(spelled(value)) for name, value in record.items() if name != "images"}
            line["images"] = [self._store_image(image) for image in record["images"]]
            lines.append(json.dumps(line, ensure_ascii=False) + "\n")
        data = "".join(lines).encode("utf-8", "backslashreplace")
        with self._disk("skipped"):
            path.parent.mkdir(exist_ok=True)
            checkpoints.write_file(path, lambda temporary: temporary.write_bytes(data))

    def log_rollouts(self, step: int, records: list[dict]) -> None:
        """Append rollouts to rollouts.jsonl; pictures (`image` or `images`: uint8 arrays [H, W, 3] or PIL)
        are stored once each as PNG under images/, named by their content. A record may hold sample_id, task,
        question, answer, response, rewards {name: value}, advantage, habit, and per response token: tokens
        [str], dependency [float], kept [bool]."""
        for record in records if distributed.is_main() else ():
            images = record.get("images", [record["image"]] if "image" in record else [])
            line = {"step": step, **as_json({n: v for n, v in record.items() if n not in ("image", "images")})}
            line["images"] = [self._store_image(image) for image in images]
            self._append("rollouts.jsonl", json.dumps(line, ensure_ascii=False))

    def _store_image(self, image: Any) -> str:
        image = image if isinstance(image, Image.Image) else Image.fromarray(np.asarray(image, dtype=np.uint8))
        buffer = io.BytesIO()
        image.convert("RGB").save(buffer, "PNG")
        name = f"images/{hashlib.sha256(buffer.getvalue()).hexdigest()[:16]}.png"
        with self._disk("images"):
            (self.folder / "images").mkdir(exist_ok=True)
            if not (self.folder / name).exists():
                checkpoints.write_file(self.folder / name, lambda path: path.write_bytes(buffer.getvalue()))
        return name

    def _append(self, name: str, line: str) -> None:
        if not distributed.is_main():
            return
        with self._disk(name):
            if name not in self._files:
                self._files[name] = open(self.folder / name, "ab")  # noqa: SIM115 (closed in close)
            file = self._files[name]
            file.write((line + "\n").encode("utf-8", "backslashreplace"))
            file.flush()

    @contextmanager
    def _disk(self, name: str, need: int = 1 << 20) -> Iterator[None]:
        """Disk trouble below the run folder as one sentence that also tells how to go on. need: bytes to write."""
        try:
            with checkpoints.disk_errors(self.folder / name, need):
                yield
        except SightRLError as error:
            raise SightRLError(f"{error} Then continue with: {self.resume_command()}") from error

    # ------------------------------------------------------------ checkpoint and resume

    def checkpoint_due(self, step: int) -> bool:
        """True every args.checkpoint_every steps, after the last step, when a signal asked to stop, and when too
        many steps in a row were skipped."""
        if distributed.agree(bool(self._signal)):
            self.stop_requested = True
        every = self.args.checkpoint_every
        stop = self.stop_requested or self.counts["skipped_in_a_row"] >= SKIPS
        return stop or step + 1 >= self.total_steps or (every > 0 and (step + 1) % every == 0)

    def checkpoint(self, step: int, vlm: Any, optimizer: Any, **stateful: Any) -> None:
        """Write a checkpoint of the finished step `step`; `stateful` objects have state_dict() and
        load_state_dict(). Raises SightRLError, after writing, when too many steps in a row were skipped."""
        for name, file in self._files.items():
            with self._disk(name):
                os.fsync(file.fileno())
        state = {
            "step": step,
            "elapsed": self._elapsed + time.perf_counter() - self._opened,
            "random": checkpoints.random_state(),
            "generator": self.generator.get_state(),
            "rng": self.rng.getstate(),
            "positions": {name: file.tell() for name, file in self._files.items()},
            "stateful": {name: item.state_dict() for name, item in stateful.items()},
            "counts": self.counts,
        }
        folder, keep = self.folder / "checkpoints", self.args.keep_checkpoints
        with self._disk("checkpoints"):
            checkpoints.save_checkpoint(folder, step, getattr(vlm, "model", None), optimizer, state, keep)
        self._all_saved = step + 1 >= self.total_steps
        if self.stop_requested:
            self.close()
            print(f"Stopped after step {step + 1} of {self.total_steps}; continue with: {self.resume_command()}")
        elif self.counts["skipped_in_a_row"] >= SKIPS:
            self.close()
            raise SightRLError(
                f"loss or gradient was not a finite number in {SKIPS} steps in a row, the last is step {step + 1}; "
                f"look at their batches in {self.folder / 'skipped'}, then start anew with a smaller --lr, or "
                f"continue with: {self.resume_command()}"
            )

    def resume(self, vlm: Any, optimizer: Any, **stateful: Any) -> int:
        """Start the loop: install signals and display, load the newest checkpoint when args.resume asked for
        it.

        Returns the first step to run, 0 for a new run. metrics.jsonl and rollouts.jsonl are cut back to the
        checkpoint.
        """
        self._vlm = vlm
        first, positions = 0, {}
        main = distributed.is_main()
        found = checkpoints.latest_checkpoint(self.folder / "checkpoints") if self.resumed and main else None
        found = distributed.from_main(found)
        if found is not None:
            state = checkpoints.load_checkpoint(found, getattr(vlm, "model", None), optimizer)
            gather_weights(getattr(vlm, "shards", ()))
            with checkpoints.damage_errors(found):
                self._restore(state, stateful, found)
                first, positions = state["step"] + 1, dict(state["positions"])
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._old_handlers[number] = signal.signal(number, self._on_signal)
        if main:
            self._open_files(first, positions)
        self._start(first)
        return first

    def _open_files(self, first: int, positions: dict[str, int]) -> None:
        with self._disk(""):
            for name in ("metrics.jsonl", "rollouts.jsonl"):
                self._files[name] = open(self.folder / name, "ab")  # noqa: SIM115 (closed in close)
                length = os.path.getsize(self.folder / name)
                self._files[name].truncate(min(length, positions.get(name, 0)))  # never longer than it is
                self._files[name].seek(0, os.SEEK_END)  # else tell() would still give the old length
            checkpoints.remove_leftovers(self.folder / "checkpoints")
            if first < self.total_steps:  # a finished run goes on: what it concluded then is no longer true
                for path in (self.folder / "summary.json", *self.folder.glob("*_after.json")):
                    path.unlink(missing_ok=True)

    def _restore(self, state: dict, stateful: dict[str, Any], found: Path) -> None:
        if set(stateful) != set(state["stateful"]):
            raise SightRLError(
                f"{found} keeps the state of {sorted(state['stateful'])}, this script of {sorted(stateful)}."
            )
        numbers = [state["step"], *state["positions"].values()]
        if any(type(n) is not int or not 0 <= n < 2**53 for n in numbers) or not math.isfinite(state["elapsed"]):
            raise ValueError("its step, positions or seconds are no possible numbers")
        for name, item in stateful.items():
            item.load_state_dict(state["stateful"][name])
        self.step, self._elapsed = state["step"], state["elapsed"]
        self.counts |= state.get("counts", {})
        if self.counts["skipped_in_a_row"] >= SKIPS:  # stopped for that: it may try again
            self.counts["skipped_in_a_row"] = 0
        self.generator.set_state(state["generator"])
        self.rng.setstate(state["rng"])
        checkpoints.set_random_state(state["random"])

    def _start(self, first: int) -> None:
        if self.args.wandb and distributed.is_main():
            self._wandb = start_wandb(self.args, self.method, self.folder)
        self._all_saved = first >= self.total_steps
        self._display = Display(self.method, first, self.total_steps, getattr(self.args, "budget_tokens", 0))
        old = f"continuing after step {first}" if first else "starting again, there is no checkpoint yet"
        self.say(f"{self.folder}: {old if self.resumed else 'new run'}")
        errors.how_to_continue = self.resume_command()
        atexit.register(self.close)
        distributed.watch(self.resume_command())
        if distributed.world_size() > 1:
            self.say(f"{distributed.world_size()} processes; to stop them after a step: kill {os.getpid()}")
        self._opened = self._step_started = time.perf_counter()

    def resume_command(self) -> str:
        return f"{command_line()} --resume {shlex.quote(str(self.folder))}"

    # ------------------------------------------------------------ stopping and finishing

    def _on_signal(self, number: int, frame: Any) -> None:
        """First signal: finish the step. Second, or nothing left to save: stop at once. os.write, because
        print may be what was interrupted."""
        if self._signal or self._all_saved:
            self._restore_signals()
            if self._display is not None and self._display.live is not None:
                os.write(1, b"\x1b[?25h\n")  # show the cursor again
            if distributed.is_main():
                os.write(2, f"Stopped; continue with: {self.resume_command()}\n".encode())
            os.kill(os.getpid(), number)
            return
        self._signal = number
        if distributed.is_main():
            os.write(2, b"\nFinishing this step, then writing a checkpoint. Once more to stop at once.\n")

    def _restore_signals(self) -> None:
        for number, handler in self._old_handlers.items():
            signal.signal(number, handler)
        self._old_handlers = {}

    def say(self, text: str) -> None:
        """Print a line above the progress display."""
        if self._display is not None:
            self._display.say(text)
        else:
            print(printable(text), flush=True)

    def close(self) -> None:
        """Stop the display, give the signals back, close the files. Safe to call more than once."""
        if self._display is not None:
            self._display.close()
            self._display = None
        self._restore_signals()
        errors.how_to_continue = ""
        for file in self._files.values():
            with suppress(OSError):  # a full disk refused these bytes before, and that was said
                file.close()
        self._files = {}
        if self._wandb is not None:
            self._wandb.finish()
            self._wandb = None
        if self._lock is not None:
            self._lock.close()
            self._lock = None
        atexit.unregister(self.close)

    def training_ended(self) -> None:
        """From now on a signal stops at once, also one that came after the loop had last looked."""
        self._all_saved = True
        if self._signal:
            self._on_signal(self._signal, None)

    def finish(self, summary: dict) -> None:
        """Write the final model, summary.json and report.html and tell where they are; a stopped run only
        closes, and so does a process other than 0."""
        if self.stop_requested or not distributed.is_main():
            self.close()
            return
        self.training_ended()
        seconds = self._elapsed + time.perf_counter() - self._opened
        if self._display is not None:
            self._display.close()
        if self._vlm is not None:
            self._save_model()
        with self._disk("summary.json"):
            about = {"method": self.method, "steps": self.step + 1, "seconds": round(seconds, 1)}
            about |= {f"steps_{name}": self.counts[name] for name in ("skipped", "no_spread")}
            checkpoints.write_json(self.folder / "summary.json", as_json({**about, **summary}))
        if self._wandb is not None:
            self._wandb.summary.update(as_json(summary))
        self.close()
        from common.report import write_report  # here: training must not need the report's code to run

        with self._disk("report.html"):
            report = write_report(self.folder)
        print(*self._counted(), sep="\n", end="\n" * bool(self._counted()))
        print(f"model   {self.folder / 'model'}\nmetrics {self.folder / 'metrics.jsonl'}\nreport  {report}", flush=True)

    def _save_model(self) -> None:
        """Save under another name first: a kill leaves no half-written model that looks like a whole one."""
        target, temporary = self.folder / "model", self.folder / f"{checkpoints.TEMPORARY}model"
        with self._disk("model", checkpoints.bytes_of(self._vlm.model, None)):
            remove_folder(temporary)
            self._vlm.save(temporary)
            remove_folder(target)
            os.replace(temporary, target)

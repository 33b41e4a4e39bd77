"""Train several methods under one budget over several seeds and say which is better, with intervals.

    ./run.sh compare vppo grpo --seeds 5
    ./run.sh compare mine "mine --lr 3e-4" grpo --seeds 5 --budget-tokens 500000

Each name is a file in methods/, options in quotes belong to it. A bare name runs with its SETTINGS below and
brings its CONTROLS along. Every run generates the same number of tokens for training and is asked the same
held-out questions before and after. Runs live in runs/compare/<method>-<key>/seed<k>/; the key stands for all
options and for the code of the method's file (comments left out), so a finished run is used again exactly if
these are unchanged; after changing common/, delete the folders. A stopped comparison goes on when started
again. Writes results/<first method>.json and .png and runs/compare/<first method>.html, which has the learning
curves of all runs side by side, and prints a Markdown table. Three papers or more make an overview, without
controls: the same files named overview, and a table of every method and task family.
"""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import importlib.util
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import tyro
from rich.progress import BarColumn, Progress, TextColumn

from common.args import CommonArgs, parse_args
from common.errors import SightRLError, main_guard

METHODS = Path(__file__).resolve().parent.parent / "methods"

# How a method takes part when only its name is given. grpo: DAPO exactly as VPPO builds on it.
SETTINGS = {"grpo": "--variant dapo --overlong-buffer 0 --dual-clip 3 --entropy-coef 0.06"}
# What must not work if the method works for the reason its paper gives. The arms of visurf make as many updates as it
# does with 300,000 tokens; those with SFT cost far fewer tokens, so this comparison needs --allow-different-budgets.
CONTROLS = {
    "vppo": ["vppo --mask-source random"],
    "visual_rft": ["visual_rft --supervised"],
    "perception_r1": ["perception_r1 --visual-weight 0"],
    "pearl": ["pearl --perception-coef 0 --no-gate --weight-cap 0", "pearl --checklist dense"],
    "vicrit": ["vicrit --images blank", "sft --world-habit caption --warmup 0 --lr 1e-4 --max-new-tokens 144"],
    "vision_sr1": ["vision_sr1 --no-self-reward"],
    "visionary_r1": ["visionary_r1 --caption-weight 0"],
    "vogue": ["vogue --alpha-visual 0 --alpha-entropy 0"],
    "ssl4rl": ["ssl4rl --ssl contrastive", "ssl4rl --ssl rotation --size-leak"],
    "visurf": ["visurf --variant grpo", "visurf --variant sft --steps 48", "visurf --variant sft_grpo --steps 48"],
}  # fmt: skip
CLAIMS = {
    "visual_rft": "rewards for boxes and confidences reach what SFT on the same pictures does not (COCO 4-shot mAP: "
    "base 19.6, SFT 25.2, Visual-RFT 40.6; novel classes 9.8, 13.6, 31.3; Qwen2-VL-2B).",
    "perception_r1": "GRPO on accuracy alone does not improve perception (McNemar p 0.69), a reward for stated visual "
    "facts does (p 0.04) and lifts accuracy (MathVista 73.3 to 74.2, MathVerse 51.3 to 54.3; 7B).",
    "pearl": "a checklist of the question's own facts that gates and weighs the reasoning beats GRPO (47.9 to 44.2,"
    " mean of six sets, 7B); a checklist of other facts does less (45.5).",
    "vicrit": "finding one wrong phrase in captions lifts other tasks (50.6 to 53.0, mean of 8 benchmarks, 7B); "
    "teaching the same captions by SFT does not (48.4).",
    "vision_sr1": "rewarding descriptions that suffice to answer beats GRPO on the same data (52.2 against 50.7, mean "
    "of 7 benchmarks, 7B) and lowers the language shortcut rate (9.8 against 10.1 without).",
    "visionary_r1": "caption first, rewarded by answering from it, with annealed KL, beats GRPO on the same data (69.4 "
    "against 61.8, MathVista, 3B).",
    "vogue": "a capped bonus for tokens whose prediction changes under a noisy picture beats GRPO (66.9 against 63.9, "
    "mean of 6 benchmarks, 7B) and keeps pass@4 up.",
    "ssl4rl": "the right self-supervised task lifts benchmarks without labels (+7.39 MMBench, +8.94 SEED-Bench, 3B); "
    "a wrong one does not, and mixing tasks does not add up.",
    "visurf": "with the label as one more rollout the model learns what GRPO never samples, without the forgetting of "
    "SFT (no numbers could be read).",
    "vppo": "learning only from the 40 % most picture-dependent tokens beats DAPO (57.5 against 55.0, mean "
    "of 8 benchmarks, Qwen2.5-VL-7B); as many tokens chosen at random do not (54.8).",
}
# Options that do not change what a run computes.
NOT_IN_KEY = ("seed", "out", "run_name", "resume", "wandb", "device", "dry_run", "gpus", "checkpoint_every",
              "keep_checkpoints", "log_rollouts_every", "base_from")  # fmt: skip


@dataclass
class Args:
    methods: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Methods to compare, the one of interest first; "vppo --keep-share 0.2" has options of its own."""
    seeds: int = 5
    """Runs per method, with seeds 0, 1, ..."""
    budget_tokens: int = 1_000_000
    """Tokens every run generates for training."""
    eval_questions: int = 96
    """Held-out questions per split, asked before and after training."""
    eval_k: int = 8
    """Answers sampled per held-out question."""
    options: str = ""
    """Options for every run, e.g. --options="--data jsonl:my.jsonl --lr 3e-4"."""
    controls: bool = True
    """Also run a method's controls (vppo: the same share of tokens, chosen at random)."""
    jobs: int = 0
    """Runs side by side; 0: as many as cores, with a GPU one."""
    out: str = "runs/compare"
    """Folder of the runs."""
    results: str = "results"
    """Folder of the results."""
    name: str = ""
    """Name of the result files; default: the first method, or "overview" for more than two papers."""
    allow_different_budgets: bool = False
    """Compare even if the runs generated different numbers of tokens or met different questions."""


@dataclass(frozen=True)
class Contender:
    """A method with its options: one line of the table."""

    label: str  # as typed
    method: str
    flags: tuple[str, ...]  # all of them, shared ones too
    folder: Path  # of its runs
    settings: str = ""  # options it was given because only its name was typed

    def run(self, seed: int) -> Path:
        return self.folder / f"seed{seed}"

    def finished(self, seed: int) -> bool:
        return (self.run(seed) / "summary.json").is_file()


# ---------------------------------------------------------------- what is to be run


def contenders(args: Args) -> list[Contender]:
    """What is compared, controls right after their method. Raises SightRLError for unknown methods."""
    labels: list[str] = []
    for label in [" ".join(name.split()) for name in args.methods]:
        labels += [label, *(CONTROLS.get(label, []) if args.controls and not is_overview(args) else [])]
    if not labels:
        raise SightRLError(f"name the methods to compare, e.g.: ./run.sh compare vppo grpo; {known()}")
    return [contender(label, args) for label in dict.fromkeys(labels)]


def is_overview(args: Args) -> bool:
    return len({name.split()[0] for name in args.methods if name.split()} - {"grpo"}) > 2


def contender(label: str, args: Args) -> Contender:
    method, *own = shlex.split(label) or [""]
    if not re.fullmatch(r"[a-z0-9]\w*", method) or not (METHODS / f"{method}.py").is_file():
        raise SightRLError(f"there is no method {method!r}; {known()}")
    shared = ["--steps", "1000000", "--budget-tokens", str(args.budget_tokens),
              "--eval-questions", str(args.eval_questions), "--eval-k", str(args.eval_k)]  # fmt: skip
    settings = "" if own else SETTINGS.get(method, "")
    flags = [*shared, *shlex.split(args.options), *own, *shlex.split(settings)]
    slug = re.sub(r"[^a-z0-9._]+", "-", label.lower()).strip("-.")[:60]
    folder = Path(args.out) / f"{slug}-{key(method, flags)}"
    return Contender(label, method, tuple(flags), folder, settings)


def known() -> str:
    names = sorted(path.stem for path in METHODS.glob("*.py") if not path.stem.startswith("_"))
    return f"methods/ has {', '.join(names)}."


def key(method: str, flags: list[str]) -> str:
    """Eight hex digits for every effective option and the code of the method's file."""
    config = dataclasses.asdict(effective_args(load_method(method), flags))
    config = {name: value for name, value in config.items() if name not in NOT_IN_KEY}
    code = code_of((METHODS / f"{method}.py").read_text(encoding="utf-8"))
    return hashlib.sha256((json.dumps(config, sort_keys=True) + code).encode()).hexdigest()[:8]


def code_of(source: str) -> str:
    """A program without comments, docstrings and layout: equal for programs that do the same."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(getattr(node, "body", None), list):
            node.body = [line for line in node.body if not is_text(line)]
    return ast.dump(tree)


def is_text(line: ast.stmt) -> bool:
    value = line.value if isinstance(line, ast.Expr) else None
    return isinstance(value, ast.Constant) and isinstance(value.value, str)


def load_method(method: str) -> ModuleType:
    """The method's file as a module; quick, because methods import torch only in main."""
    return load_script(METHODS / f"{method}.py")


def load_script(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"sightrl_{path.parent.name}_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses and tyro look up the names in annotations
    spec.loader.exec_module(module)
    return module


def effective_args(module: ModuleType, flags: list[str]) -> CommonArgs:
    """What the method makes of the options; a wrong one ends the program with its usage."""
    tables = {"preset": getattr(module, "PRESETS", {}), "variant": getattr(module, "VARIANTS", {})}
    return parse_args(module.Args, "", list(flags), **{n: table for n, table in tables.items() if table})


def claim(method: str) -> str:
    """The paper's claim in one line: from CLAIMS, else the sentence of the docstring with "Published"."""
    text = " ".join((load_method(method).__doc__ or "").split())
    published = re.search(r"Published[^:]{0,100}: [^.]{0,200}(?:\.\d[^.]{0,200})*", text)
    return CLAIMS.get(method) or (published[0].strip() if published else "")


# ---------------------------------------------------------------- running


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
    command = [sys.executable, str(METHODS / f"{entry.method}.py"), *entry.flags, "--seed", str(seed),
               "--out", str(entry.folder), "--run-name", folder.name]  # fmt: skip
    if (folder / "run.json").is_file():
        command += ["--resume", str(folder)]
    elif folder.exists():  # stopped before it described itself
        shutil.rmtree(folder)
    entry.folder.mkdir(parents=True, exist_ok=True)
    if seed and (entry.run(0) / "eval_before.json").is_file():  # the model before training is the same
        command += ["--base-from", str(entry.run(0))]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    with open(log_of(entry, seed), "ab") as log:  # its own session: Ctrl-C reaches it through us only
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment,
                                start_new_session=True)  # fmt: skip


def log_of(entry: Contender, seed: int) -> Path:
    return entry.folder / f"seed{seed}.log"


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
    last = log_of(entry, seed).read_text(errors="replace").strip().splitlines()[-5:]
    about = f"{entry.label}, seed {seed} (exit status {status}, log {log_of(entry, seed)}):"
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
    share = min(1.0, line["tokens_generated"] / budget) if budget else 0.0
    return share, f"step {line['step'] + 1}, training accuracy {line.get('accuracy') or 0:.3f}"


def default_jobs() -> int:
    import torch

    if torch.cuda.is_available():
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def main(args: Args) -> None:
    import figures
    import tables
    from common.checkpoint import write_json  # slow, like the two below: they import torch
    from compare_page import write_page
    from outcomes import check_same_budget, read_outcome, summarise

    if min(args.seeds, args.budget_tokens, args.eval_questions, args.eval_k) < 1 or args.jobs < 0:
        raise SightRLError("--seeds, --budget-tokens, --eval-questions and --eval-k must be at least 1.")
    entries = contenders(args)
    run_all(entries, args.seeds, args.jobs or default_jobs())
    outcomes = [read_outcome(entry, args.seeds) for entry in entries]
    if not args.allow_different_budgets:
        check_same_budget(outcomes)
    result = summarise(outcomes, claim(entries[0].method))
    default = "overview" if is_overview(args) else entries[0].folder.name.rpartition("-")[0]
    folder, name = Path(args.results), args.name or default
    page = Path(args.out) / f"{name}.html"
    for file in (folder / name, page):  # a name may have folders
        file.parent.mkdir(parents=True, exist_ok=True)
    write_json(folder / f"{name}.json", result)
    many = is_overview(args)
    (figures.overview if many else figures.comparison)(result, folder / f"{name}.png")
    write_page(result, outcomes, page)
    table = tables.overview(result) if many else tables.comparison(result)
    print(f"{table}\n\n{folder / name}.json\n{folder / name}.png\n{page}")


if __name__ == "__main__":
    main_guard(main, tyro.cli(Args, description=__doc__))

"""Held-out accuracy of a model, per kind of question and split, with 95 % intervals over questions.

    ./run.sh eval --model tiny --benchmarks world
    ./run.sh eval --model runs/vppo-world-s0-.../model --benchmarks world jsonl:my.jsonl --k 8 --limit 200

A benchmark is "world" (the micro-world: its splits test, test_combo and test_counter) or any --data form of
the methods (its test split). Writes eval.json (every answer) and table.md into a new folder below runs/eval/.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

from common.args import PROMPT, CommonArgs
from common.errors import SightRLError, main_guard

if TYPE_CHECKING:
    from common.evaluation import Evaluation


@dataclass
class Args:
    model: str = "tiny"
    """Model to ask: "tiny", a folder that a run wrote, or a Hugging Face id."""
    benchmarks: tuple[str, ...] = ("world",)
    """What to ask: world, or jsonl:FILE, parquet:FILE, hf:NAME and the other --data forms."""
    k: int = 8
    """Answers sampled per question, for avg@k and pass@k."""
    limit: int = 96
    """Questions per split."""
    max_new_tokens: int = 80
    """Longest answer in tokens; the papers' models need 2048 and more."""
    temperature: float = 1.0
    """Sampling temperature; 0 gives greedy answers."""
    prompt: str = PROMPT
    """Text around the question; {question} is replaced."""
    tasks: str = ""
    """Ask only these kinds of questions, e.g. count,locate; default: all."""
    columns: str = ""
    """Names of your columns if they differ from question, answer, images: "question=problem"."""
    min_pixels: int | None = None
    """Smaller images are enlarged to this many pixels; default: the model's own setting."""
    max_pixels: int | None = None
    """Larger images are shrunk to this many pixels; default: the model's own setting."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Number format of the weights; auto: bfloat16 on a GPU, float32 otherwise."""
    device: str = "auto"
    """Where to compute: cpu, cuda, cuda:1, ...; auto takes a GPU if there is one."""
    out: str = "runs/eval"
    """Folder for the results."""


def table(evaluation: Evaluation) -> str:
    """Markdown: a row per kind of question, a column per split, avg@k with its interval; pass@k overall."""
    whole, splits = evaluation.summary(), {}
    for name in whole["splits"]:
        part = [record for record in evaluation.records if record["split"] == name]
        splits[name] = type(evaluation)(part, evaluation.k).summary()
    lines = [f"| | {' | '.join(splits)} | all | pass@{evaluation.k} |", f"|---|{'---:|' * (len(splits) + 2)}"]
    for task, row in [*whole["tasks"].items(), ("all", whole["overall"])]:
        parts = splits.values()
        found = [part["tasks"].get(task) if task in whole["tasks"] else part["overall"] for part in parts]
        cells = [accuracy(stats) if stats else "" for stats in [*found, row]]
        lines.append(f"| {task} | {' | '.join(cells)} | {row['pass@k']:.3f} |")
    count, cut = whole["overall"]["questions"], whole["overall"]["truncated"]
    lines += ["", f"{count} questions, mean of {evaluation.k} answers each, 95 % intervals over questions; "
              f"{cut:.1%} of the answers were cut off."]  # fmt: skip
    return "\n".join(lines)


def accuracy(stats: dict) -> str:
    low, high = stats["interval"]
    return f"{stats['avg@k']:.3f} [{low:.3f}, {high:.3f}]"


def main(args: Args) -> None:
    if args.k < 1 or args.limit < 1 or not args.benchmarks:
        raise SightRLError("--k and --limit must be at least 1, and --benchmarks needs a name such as world.")
    from common.training import ask, held_out, load_model  # slow imports: --help must not wait for them

    names = ("model", "prompt", "columns", "tasks", "min_pixels", "max_pixels", "dtype", "device")
    common = {name: getattr(args, name) for name in names}
    vlm = load_model(CommonArgs(**common))
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    for benchmark in args.benchmarks:
        options = CommonArgs(**common, data=benchmark, eval_questions=args.limit)
        evaluation = ask(vlm, options, held_out(options), args.k, args.max_new_tokens, args.temperature)
        evaluation.settings |= {"model": args.model, "benchmark": benchmark, "prompt": args.prompt}
        name = re.sub(r"[^A-Za-z0-9.]+", "-", f"{args.model}-{benchmark}").strip("-.")[-80:]
        folder = Path(args.out) / f"{name}-{stamp}"
        folder.mkdir(parents=True, exist_ok=True)
        evaluation.save(folder / "eval.json")
        text = f"`{args.model}` on `{benchmark}`\n\n{table(evaluation)}\n"
        (folder / "table.md").write_text(text, encoding="utf-8")
        print(f"{text}\n{folder / 'eval.json'}\n{folder / 'table.md'}")


if __name__ == "__main__":
    main_guard(main, tyro.cli(Args, description=__doc__))

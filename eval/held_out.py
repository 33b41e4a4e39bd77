"""Held-out questions of the micro-world, or of any --data form: accuracy per kind of question and split.

These are the questions that training asks before and after, with its prompt and its grading.
"""

from __future__ import annotations

import re
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from escape import code, markdown

if TYPE_CHECKING:
    from common.evaluation import Evaluation

K, LIMIT, MAX_NEW_TOKENS, TEMPERATURE = 8, 96, 80, 1.0  # where the user says nothing
NAMES = ("model", "columns", "tasks", "min_pixels", "max_pixels", "dtype", "device", "bad_rows",
         "allow_outside")  # fmt: skip


def ask_held_out(args: Any, vlm: Any, data: str) -> None:
    """Ask the test split (of the world all three) and write eval.json and table.md. args: of run.py."""
    from common.args import PROMPT, CommonArgs
    from common.checkpoint import disk_errors, write_file
    from common.distributed import is_main
    from common.run_folder import git_state
    from common.training import ask, held_out
    from summary import versions

    prompt = args.prompt or PROMPT
    common = {name: getattr(args, name) for name in NAMES} | {"prompt": prompt}
    options = CommonArgs(**common, data=data, eval_questions=args.limit or LIMIT)
    temperature = TEMPERATURE if args.temperature is None else args.temperature
    evaluation = ask(vlm, options, held_out(options), args.k or K, args.max_new_tokens or MAX_NEW_TOKENS, temperature)
    if not is_main():
        return
    evaluation.settings |= {"model": args.model, "benchmark": data, "prompt": prompt, "versions": versions(),
                            "min_pixels": vlm.min_pixels, "max_pixels": vlm.max_pixels,
                            "dtype": str(vlm.dtype).removeprefix("torch."), **git_state()}  # fmt: skip
    name = re.sub(r"[^A-Za-z0-9.]+", "-", f"{args.model}-{data}").strip("-.")[-80:]
    folder = Path(args.out) / f"{name}-{datetime.now().strftime('%Y%m%d-%H%M%S')}"
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    evaluation.save(folder / "eval.json")
    text = f"{code(args.model)} on {code(data)}\n\n{table(evaluation)}\n"
    write_file(folder / "table.md", lambda path: path.write_text(text, encoding="utf-8"))
    print(f"{text}\n{folder / 'eval.json'}\n{folder / 'table.md'}")


def table(evaluation: Evaluation) -> str:
    """Markdown: a row per kind of question, a column per split, avg@k with its interval; pass@k overall."""
    whole, splits = evaluation.summary(), {}
    for name in whole["splits"]:
        part = [record for record in evaluation.records if record["split"] == name]
        splits[name] = type(evaluation)(part, evaluation.k).summary()
    head = " | ".join(map(markdown, splits))
    lines = [f"| | {head} | all | pass@{evaluation.k} |", f"|---|{'---:|' * (len(splits) + 2)}"]
    for task, row in [*whole["tasks"].items(), ("all", whole["overall"])]:
        parts = splits.values()
        found = [part["tasks"].get(task) if task in whole["tasks"] else part["overall"] for part in parts]
        cells = [accuracy(stats) if stats else "" for stats in [*found, row]]
        lines.append(f"| {markdown(task)} | {' | '.join(cells)} | {row['pass@k']:.3f} |")
    count, cut = whole["overall"]["questions"], whole["overall"]["truncated"]
    lines += ["", f"{count} questions, mean of {evaluation.k} answers each, 95 % intervals over questions; "
              f"{cut:.1%} of the answers were cut off."]  # fmt: skip
    return "\n".join(lines)


def accuracy(stats: dict) -> str:
    low, high = stats["interval"]
    return f"{stats['avg@k']:.3f} [{low:.3f}, {high:.3f}]"

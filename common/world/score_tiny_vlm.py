"""Scores the tiny VLM and writes its model card. python -m common.world.score_tiny_vlm --questions 400

pass@1 (mean over 8 samples) and pass@8 per family and split at temperature 1, and how well single attributes can be
read when the model looks ("What is at b2?", greedy).
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

from common.data import Sample, open_dataset
from common.evaluation import evaluate
from common.rewards import FOUR, accuracy, block, last_boxed, match_boxes, to_box
from common.rollout import rollout
from common.vlm import VLM, Prompt, load_vlm
from common.world import FAMILIES, HABITS, SPLITS, habit_of, make_question, render
from common.world.taught import SHARES, lesson
from common.world.train_tiny_vlm import HERE, INSTRUCTION


@dataclass
class Args:
    model: str = "tiny"
    """"tiny" or a folder."""
    questions: int = 400
    """Questions per split (families take turns)."""
    seed: int = 0
    """Seed of the sampler."""
    card: bool = True
    """Write README.md into the model's folder."""


def readable(vlm: VLM, n: int, seed: int) -> dict[str, float]:
    """Share of colours, shapes, sizes and numbers named rightly for one cell each (greedy), on the test split."""
    rng, asked, prompts = random.Random(seed), [], []
    for i in range(n):
        scene = make_question("test", i).scene
        asked.append(rng.choice(scene.things))
        prompts.append(vlm.prompt(f"What is at {asked[-1].cell}?", [render(scene)]))
    texts = rollout(vlm, prompts, 1, max_new_tokens=12, temperature=0.0).texts
    words = [text.rstrip(".").split() for text in texts]
    return {k: sum(str(getattr(t, k)) in w for t, w in zip(asked, words, strict=True)) / n
            for k in ("color", "shape", "size", "number")}  # fmt: skip


def same_answer(said: str, taught: str) -> bool:
    """Whether a response gives the answer of the careful one: equal boxes (IoU at least 0.5, each once), else equal
    text."""
    a, b = (answer_part(text) for text in (said, taught))
    boxes = [[box for four in FOUR.findall(text) if (box := to_box([float(v) for v in four]))] for text in (a, b)]
    if boxes[1]:
        return len(boxes[0]) == len(boxes[1]) == len(match_boxes(*boxes))
    return " ".join(a.split()) == " ".join(b.split())


def answer_part(text: str) -> str:
    boxed = last_boxed(text)
    return next((part for part in (boxed, block(text, "answer")) if part is not None), text)


def layout_scores(vlm: VLM, questions: int, seed: int) -> dict[str, tuple[float, float]]:
    """Layout -> (pass@1, pass@8) of answers to careful lessons on the test split, temperature 1."""
    rng, generator, found = random.Random(seed), torch.Generator().manual_seed(seed), {}
    for kind in SHARES:
        asked = [lesson(make_question("test", i), make_question("test", i + 1), rng, habits=False, kind=kind)
                 for i in range(questions)]  # fmt: skip
        prompts = [vlm.prompt(prompt, pictures) for pictures, prompt, _ in asked]
        texts = rollout(vlm, prompts, 8, max_new_tokens=200, generator=generator).texts
        right = [[same_answer(text, said) for text in texts[8 * i : 8 * i + 8]] for i, (*_, said) in enumerate(asked)]
        found[kind] = (sum(map(sum, right)) / (8 * questions), sum(map(any, right)) / questions)
        print(kind, *(f"{x:.3f}" for x in found[kind]), flush=True)
    return found


def card(folder: Path, parameters: int, tables: dict[str, dict], reading: dict[str, float],
         layouts: dict[str, tuple[float, float]], args: Args) -> str:  # fmt: skip
    """The model card as Markdown."""
    made = json.loads((folder / "training.json").read_text()) if (folder / "training.json").exists() else {}
    splits = list(tables)

    def cells(pick: Callable[[dict], dict]) -> str:
        return " | ".join(f"{pick(tables[s])['avg@k']:.3f} / {pick(tables[s])['pass@k']:.3f}" for s in splits)

    rows = [f"| {task} | {cells(lambda table, task=task: table['tasks'][task])} |" for task in FAMILIES]
    total = cells(lambda table: table["overall"])
    habits = [f"| {h} | " + " | ".join(f"{tables[s]['overall']['habits'].get(h, 0):.3f}" for s in splits) + " |"
              for h in (*HABITS, "other")]  # fmt: skip
    return "\n".join([
        "# The tiny VLM of the micro-world", "",
        f"A `Qwen2_5_VLForConditionalGeneration` of {parameters / 1e6:.2f} M parameters with its own byte-level BPE",
        "tokenizer (1,536 entries, Qwen's special tokens and chat markup). It can see, and half the time it does not",
        "bother to: it was supervised on a mixture of careful, sloppy and blind answers (`common/world/habits.py`), so",
        "that reinforcement learning has something to mend.", "",
        "Made by `python -m common.world.train_tiny_vlm`; what was run:", "",
        *(f"- {text}" for text in made.pop("runs", [])),
        "- " + ", ".join(f"{k} {v}" for k, v in made.items()), "",
        f"Scored by `python -m common.world.score_tiny_vlm --questions {args.questions} --seed {args.seed}`:",
        "temperature 1, 8 samples a question; each cell is pass@1 / pass@8.", "",
        "| family | " + " | ".join(splits) + " |", "|---|" + "---|" * len(splits), *rows, f"| **all** | {total} |", "",
        "Habits (share of responses, as `habit_of` reads them):", "",
        "| habit | " + " | ".join(splits) + " |", "|---|" + "---|" * len(splits), *habits, "",
        "Single attributes when asked to look at one cell (greedy, test split): "
        + ", ".join(f"{k} {v:.3f}" for k, v in reading.items()) + ".", "",
        "Other layouts (`common/world/layouts.py`), answers as a careful lesson has them, test split, pass@1 / pass@8:",
        "", ", ".join(f"{kind} {one:.2f} / {many:.2f}" for kind, (one, many) in layouts.items()) + ".", "",
        "For trying and comparing reinforcement-learning methods on a CPU. It knows nothing but the micro-world.", "",
    ])  # fmt: skip


def ask(vlm: VLM, sample: Sample) -> Prompt:
    return vlm.prompt(sample.question + INSTRUCTION, sample.load_images())


def main(args: Args) -> None:
    vlm = load_vlm(args.model)
    torch.manual_seed(args.seed)
    tables = {}
    for split in ("val", *(s for s in SPLITS if s.startswith("test"))):
        data = open_dataset("world", split, limit=args.questions)
        result = evaluate(vlm, [data[i] for i in range(len(data))], ask, accuracy, k=8, max_new_tokens=96,
                          seed=args.seed, habit=lambda text, sample: habit_of(text, sample.meta))  # fmt: skip
        tables[split] = result.summary()
        print(split, json.dumps(tables[split]["overall"]), flush=True)
    folder = HERE / "tiny_vlm" if args.model == "tiny" else Path(args.model)
    parameters = sum(p.numel() for p in vlm.model.parameters())
    text = card(folder, parameters, tables, readable(vlm, 1000, args.seed),
                layout_scores(vlm, 96, args.seed), args)  # fmt: skip
    print(text)
    if args.card:
        (folder / "README.md").write_text(text)


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))

"""How seconds and memory of one GRPO step grow with the group, the prompt, the response, the images and the model.

    python eval/bench_scaling.py                                   # all six curves, some minutes on two cores
    python eval/bench_scaling.py --settings group --base text=1024 --out /tmp/long    # are long prompts shared?
    python eval/bench_scaling.py --device cuda --base group=8 tokens=256 width=1024 --points tokens=64,256,1024

One thing grows at a time, everything else stays at the base point (`Setting`). `work` and `memory` count what a step
cannot do without: every picture and every prompt once per group. Nothing may grow faster than that: the table sets the
measured exponent (slope in log-log) between neighbouring points beside that of the work, and marks where it is larger
by more than --tolerance.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro
from PIL import Image

from common.errors import SightRLError, main_guard
from common.grpo import aggregate, clipped_loss, group_advantages, kl_estimate, token_log_ratio
from common.logprob import response_logps
from common.random_vlm import random_parts
from common.rollout import Rollout, rollout
from common.vlm import VLM, Prompt
from figures import COLOURS, drawing
from step_work import Setting, memory, shapes, work
from steps import check_settings, now, peak_memory, pick_device, write

PARTS = ("prefill", "decode", "logps", "update")
SUMS = {"rollout": PARTS[:2], "step": PARTS}
POINTS = {
    "group": (2, 4, 8, 16, 32),
    "text": (32, 64, 128, 256, 512, 1024),
    "side": (112, 224, 336, 560, 896),
    "images": (1, 2, 4, 8, 16),
    "tokens": (8, 16, 32, 64, 128),
    "width": (64, 128, 192, 320, 512),
}
LABELS = {"group": "responses per prompt G", "text": "text tokens of the prompt", "side": "image side, pixels",
          "images": "images per prompt", "tokens": "tokens per response R", "width": "model width"}  # fmt: skip


@dataclass
class Args:
    settings: list[str] = field(default_factory=list)
    """What grows: group, text, side, images, tokens, width; default all."""
    points: list[str] = field(default_factory=list)
    """Other points for a curve: group=2,8,32 (at least two, ascending)."""
    base: list[str] = field(default_factory=list)
    """Other values at the base point: tokens=128 prompts=4."""
    repeats: int = 5
    """Timed rounds; every round visits all points in a new random order."""
    tolerance: float = 0.15
    """How much larger than the work's an exponent may be before it is marked."""
    clock: Literal["wall", "cpu"] = "wall"
    """wall, or cpu (processor time, for a machine that others use too)."""
    threads: int = 0
    """PyTorch threads (0: its default)."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to run; auto: the GPU if there is one."""
    seed: int = 0
    """Seed of weights, pictures, sampling and the order of the points."""
    out: Path = Path("results")
    """Folder for bench_scaling_<device>.json, .md and .png."""


# ------------------------------------------------------------------------------------------------- one step
class TimedVLM(VLM):
    """Knows when the last forward over whole prompts ended: in a rollout, where decoding begins."""

    now: Callable[[], float]
    forward_ended = 0.0

    def run_groups(self, *arguments: Any, **options: Any) -> Any:
        out = super().run_groups(*arguments, **options)
        self.forward_ended = self.now()
        return out


class Trainer:
    """A model with its optimiser, and the step of methods/grpo.py (one mini-batch) with log-probs of a reference."""

    def __init__(self, width: int, device: str, clock: str, seed: int) -> None:
        model, tokenizer, processor = random_parts("qwen2_5_vl", seed, 0.02, *shapes(width))
        self.vlm, self.clock = TimedVLM(model.to(device), tokenizer, processor), clock
        self.vlm.model.train()
        self.vlm.eos_ids, self.vlm.now = [-1], self.now  # every response has R tokens
        self.optimizer = torch.optim.AdamW(self.vlm.trainable(), lr=1e-6, weight_decay=0.0)

    def now(self) -> float:
        return now(self.vlm.device, self.clock)

    def prompts(self, s: Setting, seed: int) -> list[Prompt]:
        """Random pictures, all different; questions of two lengths, as batches of questions have."""
        noise = np.random.default_rng(seed).integers(0, 256, (s.prompts, s.images, s.side, s.side, 3), dtype=np.uint8)
        return [self.vlm.prompt("?" * (s.text - i % 2), [Image.fromarray(picture) for picture in pictures])
                for i, pictures in enumerate(noise)]  # fmt: skip

    def rollout(self, s: Setting, prompts: list[Prompt]) -> Rollout:
        return rollout(self.vlm, prompts, s.group, max_new_tokens=s.tokens)

    def score(self, batch: Rollout) -> torch.Tensor:
        with torch.no_grad():
            return response_logps(self.vlm, batch.prompts, batch.tokens, batch.mask, entropy=False)[0]

    def update(self, batch: Rollout, ref_logps: torch.Tensor) -> None:
        rewards = torch.rand(len(batch.tokens), device=self.vlm.device)
        advantages = group_advantages(rewards, batch.group_size)  # [N]
        logps, _ = response_logps(self.vlm, batch.prompts, batch.tokens, batch.mask)  # [N, R]
        losses = clipped_loss(token_log_ratio(logps, batch.logps), advantages[:, None])
        aggregate(losses + 0.04 * kl_estimate(logps, ref_logps), batch.mask).backward()
        torch.nn.utils.clip_grad_norm_(self.vlm.trainable(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def seconds(self, s: Setting, prompts: list[Prompt]) -> dict[str, float]:
        """Of one step, part by part."""
        ends = [self.now()]
        batch = self.rollout(s, prompts)
        ends += [self.vlm.forward_ended, self.now()]
        ref_logps = self.score(batch)
        ends.append(self.now())
        self.update(batch, ref_logps)
        ends.append(self.now())
        return {part: after - before for part, before, after in zip(PARTS, ends, ends[1:], strict=False)}

    def bytes(self, s: Setting, prompts: list[Prompt]) -> dict[str, int]:
        """Largest memory of PyTorch's tensors above what is there before, phase by phase. Also the warm-up."""
        batch = self.rollout(s, prompts)
        ref_logps = self.score(batch)
        self.update(batch, ref_logps)  # the optimiser's state is there from here on
        calls = {"rollout": partial(self.rollout, s, prompts), "logps": partial(self.score, batch),
                 "update": partial(self.update, batch, ref_logps)}  # fmt: skip
        return {phase: peak(call, self.vlm.device) for phase, call in calls.items()}


def peak(call: Callable[[], Any], device: torch.device) -> int:
    """Most bytes of tensors during a call."""
    with peak_memory(device) as measured:
        call()
    return measured.bytes


# ------------------------------------------------------------------------------------------------ exponents
def local_exponents(xs: Sequence[float], ys: Sequence[float]) -> list[float]:
    """Slopes in log-log between neighbours."""
    return (np.diff(np.log(ys)) / np.diff(np.log(xs))).tolist()


def exponent(xs: Sequence[float], ys: Sequence[float]) -> float:
    """Least-squares slope in log-log over the upper half of the points (the middle one included)."""
    half = min(len(xs) // 2, len(xs) - 2)
    return float(np.polyfit(np.log(xs[half:]), np.log(ys[half:]), 1)[0])


def expected(measured: np.ndarray, needed: np.ndarray) -> np.ndarray:
    """Both [parts, points] -> [points]: the first measured value, then grown from point to point as the work grows.

    A sum of parts may shift towards its slower ones, so each part counts with what it took one point before.
    """
    grown = (measured[:, :-1] * needed[:, 1:] / needed[:, :-1]).sum(0) / measured[:, :-1].sum(0)
    return measured[:, 0].sum() * np.cumprod([1.0, *grown])


def analyse(name: str, points: list[Setting], found: dict[Setting, dict], tolerance: float) -> dict[str, Any]:
    """Medians, expected curves, exponents and marks of one curve; found: {"seconds": rounds, "bytes": phases}."""
    xs = [getattr(s, name) for s in points]
    rounds = [found[s]["seconds"] for s in points]
    result = {"x": xs, "points": [asdict(s) for s in points], "rounds": rounds, "work": [work(s) for s in points],
              "needed_memory": [memory(s) for s in points], "seconds": {}, "memory": {}}  # fmt: skip
    seconds = [{part: statistics.median(r[part] for r in of_point) for part in PARTS} for of_point in rounds]
    kinds = [("seconds", {p: (p,) for p in PARTS} | SUMS, seconds, result["work"]),
             ("memory", {p: (p,) for p in memory(points[0])}, [found[s]["bytes"] for s in points],
              result["needed_memory"])]  # fmt: skip
    for kind, phases, measured, needed in kinds:
        for phase, parts in phases.items():
            have, need = (np.array([[point[p] for point in of] for p in parts], float) for of in (measured, needed))
            ys, curve = have.sum(0), expected(have, need)
            mine, theirs = local_exponents(xs, ys), local_exponents(xs, curve)
            result[kind][phase] = {
                "measured": ys.tolist(), "expected": curve.tolist(), "exponent": exponent(xs, ys),
                "expected_exponent": exponent(xs, curve), "local": mine, "expected_local": theirs,
                "too_fast": [a > b + tolerance for a, b in zip(mine, theirs, strict=True)],
            }  # fmt: skip
    return result


def table(results: dict[str, Any]) -> str:
    """Markdown: measured / needed exponents, of the upper half and between neighbours; bold is too fast."""
    lines = []
    for kind, unit, scale in (("seconds", "s", 1.0), ("memory", "MB", 1e-6)):
        lines += ["", f"| what grows | phase | {unit}, first to last | exponent / of the work | between neighbours |",
                  "|---|---|---|---|---|"]  # fmt: skip
        for name, result in results.items():
            for phase, r in result[kind].items():
                pairs = [f"**{a:.2f} / {b:.2f} !**" if bad else f"{a:.2f} / {b:.2f}"
                         for a, b, bad in zip(r["local"], r["expected_local"], r["too_fast"], strict=True)]  # fmt: skip
                ends = " to ".join(f"{r['measured'][i] * scale:.3g}" for i in (0, -1))
                lines.append(f"| {name} {result['x'][0]} to {result['x'][-1]} | {phase} | {ends} | "
                             f"{r['exponent']:.2f} / {r['expected_exponent']:.2f} | {', '.join(pairs)} |")  # fmt: skip
    return "\n".join(lines[1:])


def plot(results: dict[str, Any], path: Path) -> None:
    """A column per thing that grows: seconds above, memory below; dashed: growing as the work."""
    pyplot = drawing()
    size = (2.6 * len(results) + 0.6, 5.8)
    figure, grid = pyplot.subplots(2, len(results), figsize=size, layout="constrained", squeeze=False, sharey="row")
    colours = dict(zip((*PARTS, "rollout", "step"), (*COLOURS[:2], *COLOURS[4:], COLOURS[3], "black"), strict=True))
    dots: dict[str, Any] = {}
    for column, (name, result) in zip(grid.T, results.items(), strict=True):
        for axes, kind, main in zip(column, ("seconds", "memory"), ("step", "update"), strict=True):
            xs, scale = np.array(result["x"]), 1e-6 if kind == "memory" else 1.0
            for phase, r in result[kind].items():
                if kind == "seconds" and phase == "rollout":
                    continue  # its parts are there
                ys, curve = (np.array(r[key]) * scale for key in ("measured", "expected"))
                style = {"color": colours[phase], "markersize": 3.5}
                dots[phase], *_ = axes.loglog(xs, ys, "o-", linewidth=1.4, label=phase, **style)
                dots["as the work"], *_ = axes.loglog(xs, curve, "--", linewidth=0.9, alpha=0.7, **style)
                fast = [i + 1 for i, bad in enumerate(r["too_fast"]) if bad]
                dots["faster"], *_ = axes.loglog(xs[fast], ys[fast], "o", markersize=9, color="red", fillstyle="none")
            r = result[kind][main]
            title = f"{main} {r['exponent']:.2f}, needed {r['expected_exponent']:.2f}"
            axes.set_title(f"{LABELS[name]}\n{title}" if kind == "seconds" else title, fontsize=9)
            axes.set_xticks(xs, [str(x) for x in xs], fontsize=8)
            axes.minorticks_off()
            axes.spines[["top", "right"]].set_visible(False)
            axes.set_axisbelow(True)
            axes.grid(alpha=0.3)
    grid[0, 0].set_ylabel("seconds of a step")
    grid[1, 0].set_ylabel("largest memory, MB")
    shown = [name for name in (*PARTS, "step", "rollout", "as the work", "faster") if name in dots]
    figure.legend([dots[n] for n in shown], shown, loc="outside lower center", ncols=len(shown), frameon=False)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


# --------------------------------------------------------------------------------------------- the benchmark
def values(option: str, words: list[str]) -> dict[str, tuple[int, ...]]:
    """["group=2,8"] -> {"group": (2, 8)}"""
    found, known = {}, [f.name for f in fields(Setting)]
    for word in words:
        name, _, numbers = word.partition("=")
        if name not in known or not all(n.isdigit() and int(n) for n in numbers.split(",")):
            raise SightRLError(f"--{option} {word}: expected NAME=NUMBER[,NUMBER...] with one of {', '.join(known)}")
        found[name] = tuple(map(int, numbers.split(",")))
    return found


def curves_of(args: Args) -> dict[str, list[Setting]]:
    """The points of every curve, checked."""
    check_settings(args.settings, POINTS)
    base = replace(Setting(), **{name: numbers[-1] for name, numbers in values("base", args.base).items()})
    points = POINTS | values("points", args.points)
    curves = {name: [replace(base, **{name: x}) for x in points[name]] for name in args.settings or POINTS}
    for name, settings in curves.items():
        xs = [getattr(s, name) for s in settings]
        if len(xs) < 2 or xs != sorted(set(xs)):
            raise SightRLError(f"--points {name}={','.join(map(str, xs))}: give at least two, ascending")
        for s in settings:
            if s.side % 28 or not 56 <= s.side <= 896 or s.width % 64 or min(s.group, s.tokens, s.text) < 2:
                raise SightRLError(f"{s}: side must be 56 to 896 in steps of 28, width a multiple of 64, group, tokens "
                                   "and text at least 2")  # fmt: skip
    return curves


def main(args: Args) -> None:
    if args.device == "cuda" and not torch.cuda.is_available():
        raise SightRLError("--device cuda: PyTorch sees no GPU here; leave the option out")
    if args.repeats < 1:
        raise SightRLError(f"--repeats {args.repeats}: at least 1")
    curves, device = curves_of(args), pick_device(args.device, args.threads)
    settings = list(dict.fromkeys(s for points in curves.values() for s in points))
    torch.manual_seed(args.seed)
    trainers = {w: Trainer(w, device, args.clock, args.seed) for w in sorted({s.width for s in settings})}
    prompts = {s: trainers[s.width].prompts(s, args.seed) for s in settings}
    found = {s: {"bytes": trainers[s.width].bytes(s, prompts[s]), "seconds": []} for s in settings}
    order = random.Random(args.seed)
    print(f"{len(settings)} points: memory measured", flush=True)
    for number in range(args.repeats):  # shuffled, so that a machine that slows down does not look like growth
        for s in order.sample(settings, len(settings)):
            found[s]["seconds"].append(trainers[s.width].seconds(s, prompts[s]))
        print(f"round {number + 1} of {args.repeats} done", flush=True)
    results = {name: analyse(name, points, found, args.tolerance) for name, points in curves.items()}
    write(args, device, results, table(results), "bench_scaling")
    plot(results, args.out / f"bench_scaling_{device}.png")
    print(table(results))


if __name__ == "__main__":
    main_guard(main, tyro.cli(Args, description=__doc__))

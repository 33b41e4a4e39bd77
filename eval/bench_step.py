"""Seconds of one GRPO step, this engine against plain transformers on the same model: roll-out, log-probs,
update.

Plain is what trainers built on transformers do: `generate` on every prompt repeated G times, and padded
forwards over prompt + response with the pixels repeated G times, logits only where needed. Both sides write
exactly R tokens (no end of sequence), on the same prompts, alternating, after a warm-up; the table gives
medians.

    python eval/bench_step.py                          # both settings, a few minutes
    python eval/bench_step.py --settings micro --repeats 1
    python eval/bench_step.py --against trl            # whole steps against TRL's GRPOTrainer: eval/bench_trl.py
"""

from __future__ import annotations

import copy
import json
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import transformers
import tyro
from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel

from common.errors import SightRLError, main_guard
from common.logprob import micro_batches, response_logps
from common.random_vlm import random_parts
from common.rollout import rollout
from common.run import _git
from common.vlm import VLM, Prompt, load_vlm

# name -> prompts, G, R, image side in pixels
SETTINGS = {"micro": (16, 8, 48, 112), "long": (8, 8, 128, 448)}
PHASES = ("rollout", "logps", "update")


@dataclass
class Args:
    against: Literal["transformers", "trl"] = "transformers"
    """transformers: phases against plain generate and padded forwards. trl: whole steps against TRL's GRPOTrainer, with
    settings, models and table of eval/bench_trl.py (needs `pip install -r requirements-bench.txt`)."""
    model: str = "random"
    """random (tiny Qwen2.5-VL of 2.3 M parameters), or anything that load_vlm takes."""
    settings: list[str] = field(default_factory=list)
    """Which settings to time; default all. transformers: micro (16 prompts x 8 x 48 tokens, 112-pixel image), long
    (8 x 8 x 128, 448 pixels). trl: r48-kl, r48, r48-vision, r160, g16 (448 pixels, 22 M parameters), world."""
    repeats: int = 5
    """Timed rounds per setting; every round runs both sides, the first one in turn."""
    warm: int = 3
    """Steps before the timed ones (trl)."""
    trl_micro: list[int] = field(default_factory=lambda: [8, 16, 128])
    """Micro-batch sizes among which TRL's fastest is found beforehand (cut at all rows of a step)."""
    trl_static_cache: bool = False
    """Give TRL's generation a static cache (on CUDA: compiled decoding)."""
    plain_rows: int = 64
    """Responses per padded forward of the plain side."""
    our_tokens: int = 0
    """Tokens per forward of this engine (0: everything at once)."""
    clock: str = "wall"
    """wall, or "cpu" (processor time, for a machine that others use too)."""
    threads: int = 0
    """PyTorch threads (0: its default)."""
    device: str = "auto"
    """auto, "cpu" or "cuda"."""
    seed: int = 0
    """Seed of weights, pictures and sampling."""
    out: Path = Path("results")
    """Folder for bench_step_<device>.json and .md (bench_trl_... with --against trl)."""


def load(args: Args) -> VLM:
    if args.model != "random":
        return load_vlm(args.model, device=args.device)
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]}
    text = {"hidden_size": 192, "intermediate_size": 384, "num_hidden_layers": 4, "num_attention_heads": 6,
            "num_key_value_heads": 2, "vocab_size": 1536, "rope_parameters": rope}  # fmt: skip
    vision = {
        "depth": 3,
        "hidden_size": 96,
        "intermediate_size": 192,
        "num_heads": 4,
        "fullatt_block_indexes": [2],
    }
    model, tokenizer, processor = random_parts("qwen2_5_vl", args.seed, 0.03, text, vision)
    device = ("cuda" if torch.cuda.is_available() else "cpu") if args.device == "auto" else args.device
    vlm = VLM(model.to(device), tokenizer, processor)
    vlm.model.train()
    return vlm


def make_prompts(vlm: VLM, count: int, side: int, seed: int) -> list[Prompt]:
    rng = np.random.default_rng(seed)
    question = "How many red circles are there?"
    pictures = rng.integers(0, 256, (count, side, side, 3), dtype=np.uint8)
    return [vlm.prompt(question[: -1 - i % 4], [Image.fromarray(p)]) for i, p in enumerate(pictures)]


# ------------------------------------------------------------------------------- plain transformers
def library_copy(vlm: VLM) -> PreTrainedModel:
    """The same weights in the library's own model: its patch convolution, its attention."""
    model = copy.deepcopy(vlm.base)
    model.model.visual.patch_embed.proj.__class__ = torch.nn.Conv3d
    for module in model.modules():
        if hasattr(module, "config"):
            module.config._attn_implementation = "sdpa"
    return model


class Plain:
    """The usual way: every prompt and picture repeated G times, left padding to generate, padded forwards to
    score.
    """

    def __init__(self, vlm: VLM, prompts: list[Prompt], group: int, rows: int) -> None:
        self.vlm, self.prompts, self.group, self.rows = vlm, prompts, group, rows
        self.model = library_copy(vlm)
        self.model.generation_config.eos_token_id = None

    def inputs(self, prompts: list[Prompt]) -> dict[str, Tensor]:
        """Left-padded inputs of the model's ordinary forward."""
        width = max(len(p.input_ids) for p in prompts)
        ids = torch.full((len(prompts), width), self.vlm.pad_id)
        attention = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, width - len(prompt.input_ids) :] = prompt.input_ids
            attention[row, width - len(prompt.input_ids) :] = 1
        self.model.model.rope_deltas = None
        out = {
            "input_ids": ids,
            "attention_mask": attention,
            "mm_token_type_ids": (ids == self.vlm.image_token_id).int(),
            "pixel_values": torch.cat([p.pixel_values for p in prompts]),
            "image_grid_thw": torch.cat([p.image_grid_thw for p in prompts]),
        }
        return {name: tensor.to(self.vlm.device) for name, tensor in out.items()}

    def rollout(self, limit: int, greedy: bool = False) -> Tensor:
        """int64 [N, R]"""
        self.model.eval()
        inputs = self.inputs([p for p in self.prompts for _ in range(self.group)])
        sampling = (
            {"do_sample": False}
            if greedy
            else {"do_sample": True, "top_k": 0, "top_p": 1.0, "temperature": 1.0}
        )
        out = self.model.generate(**inputs, max_new_tokens=limit, pad_token_id=self.vlm.pad_id,
                                  suppress_tokens=self.vlm.banned_ids.tolist(), **sampling)  # fmt: skip
        self.model.train()
        return out[:, inputs["input_ids"].shape[1] :]

    def logps(self, tokens: Tensor, chosen: list[int]) -> tuple[Tensor, Tensor]:
        """Log-probs and entropies of some rows of tokens, by the padded forward."""
        inputs = self.inputs([self.prompts[n // self.group] for n in chosen])
        part = tokens[chosen]
        inputs["input_ids"] = torch.cat([inputs["input_ids"], part], dim=1)
        inputs["attention_mask"] = torch.cat([inputs["attention_mask"], torch.ones_like(part)], dim=1)
        inputs["mm_token_type_ids"] = torch.cat(
            [inputs["mm_token_type_ids"], torch.zeros_like(part).int()], dim=1
        )
        logits = (
            self.model(**inputs, logits_to_keep=part.shape[1] + 1, use_cache=False).logits[:, :-1].float()
        )  # [n, R, V]
        logps = logits.index_fill(2, self.vlm.banned_ids, -1e30).log_softmax(-1)
        with torch.no_grad():
            entropy = -(logps.exp() * logps).sum(-1)
        return logps.gather(2, part[..., None])[..., 0], entropy

    def score(self, tokens: Tensor) -> Tensor:
        with torch.no_grad():
            return torch.cat([self.logps(tokens, rows)[0] for rows in self.batches(len(tokens))])

    def batches(self, count: int) -> list[list[int]]:
        return [list(range(i, min(i + self.rows, count))) for i in range(0, count, self.rows)]

    def update(self, tokens: Tensor, advantages: Tensor) -> None:
        self.model.zero_grad(set_to_none=True)
        for rows in self.batches(len(tokens)):
            (-(advantages[rows, None] * self.logps(tokens, rows)[0]).sum() / tokens.numel()).backward()


# -------------------------------------------------------------------------------------- this engine
class Ours:
    """Prompts and pictures once per group."""

    def __init__(self, vlm: VLM, prompts: list[Prompt], group: int, max_tokens: int) -> None:
        self.vlm, self.prompts, self.group, self.max_tokens = vlm, prompts, group, max_tokens
        vlm.eos_ids = [-1]

    def rollout(self, limit: int, greedy: bool = False) -> Tensor:
        return rollout(
            self.vlm, self.prompts, self.group, max_new_tokens=limit, temperature=float(not greedy)
        ).tokens

    def score(self, tokens: Tensor) -> Tensor:
        with torch.no_grad():
            return response_logps(self.vlm, self.prompts, tokens, torch.ones_like(tokens, dtype=torch.bool),
                                  max_tokens=self.max_tokens or None)[0]  # fmt: skip

    def update(self, tokens: Tensor, advantages: Tensor) -> None:
        self.vlm.model.zero_grad(set_to_none=True)
        lengths = [len(p.input_ids) + self.group * tokens.shape[1] for p in self.prompts]
        for groups in micro_batches(lengths, self.max_tokens):
            rows = [i * self.group + j for i in groups for j in range(self.group)]
            logps, _ = response_logps(self.vlm, [self.prompts[i] for i in groups], tokens[rows],
                                      torch.ones_like(tokens[rows], dtype=torch.bool))  # fmt: skip
            (-(advantages[rows, None] * logps).sum() / tokens.numel()).backward()


# -------------------------------------------------------------------------------------- measurement
def timed(call: Callable[[], Any], clock: str, device: torch.device) -> float:
    now = time.process_time if clock == "cpu" else time.perf_counter
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = now()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return now() - start


def check(ours: Ours, plain: Plain, limit: int) -> dict[str, float]:
    """How far apart the two sides are: greedy tokens that agree, log-probs and gradients on the same
    tokens.
    """
    greedy, expected = ours.rollout(limit, greedy=True), plain.rollout(limit, greedy=True)
    advantages = torch.linspace(-1, 1, len(greedy), device=greedy.device)
    ours.update(greedy, advantages)
    plain.update(greedy, advantages)
    gradients = [torch.cat([p.grad.flatten() for p in m.parameters()]) for m in (ours.vlm.base, plain.model)]
    return {
        "greedy_tokens_equal": float((greedy == expected).float().mean()),
        "logps_largest_difference": float((ours.score(greedy) - plain.score(greedy)).abs().max()),
        "gradient_relative_difference": float((gradients[0] - gradients[1]).norm() / gradients[1].norm()),
    }


def run_setting(name: str, args: Args) -> dict[str, Any]:
    count, group, limit, side = SETTINGS[name]
    vlm = load(args)
    prompts = make_prompts(vlm, count, side, args.seed)
    sides = {
        "ours": Ours(vlm, prompts, group, args.our_tokens),
        "plain": Plain(vlm, prompts, group, args.plain_rows),
    }
    correctness = check(sides["ours"], sides["plain"], limit)  # also the warm-up
    equal, logps, gradients = correctness.values()
    print(f"{name}: {equal:.2%} of greedy tokens equal, log-probs within {logps:.1e}, gradients within "
          f"{gradients:.1e}", flush=True)  # fmt: skip
    torch.manual_seed(args.seed)
    tokens = sides["ours"].rollout(limit)
    advantages = torch.randn(len(tokens), device=tokens.device)
    seconds: dict[str, dict[str, list[float]]] = {key: {phase: [] for phase in PHASES} for key in sides}
    for repeat in range(args.repeats):
        for key in sorted(sides, reverse=bool(repeat % 2)):
            runner = sides[key]
            calls = {"rollout": lambda r=runner: r.rollout(limit), "logps": lambda r=runner: r.score(tokens),
                     "update": lambda r=runner: r.update(tokens, advantages)}  # fmt: skip
            for phase, call in calls.items():
                seconds[key][phase].append(timed(call, args.clock, vlm.device))
    return {
        "setting": dict(zip(("prompts", "group", "tokens", "image_side"), SETTINGS[name], strict=True)),
        "prompt_tokens": [len(p.input_ids) for p in prompts],
        "correctness": correctness,
        "seconds": seconds,
    }


def table(results: dict[str, Any]) -> str:
    """Markdown: median seconds and ratios."""
    lines = ["| setting | phase | plain transformers, s | this engine, s | ratio |", "|---|---|---|---|---|"]
    for name, result in results.items():
        s = result["setting"]
        label = f"{name}: {s['prompts']} x {s['group']} x {s['tokens']} tokens, {s['image_side']}-px image"
        medians = {
            k: {p: statistics.median(v) for p, v in phases.items()} for k, phases in result["seconds"].items()
        }
        for side in medians.values():
            side["roll-out + update"] = side["rollout"] + side["update"]
        for phase in medians["plain"]:
            plain, ours = medians["plain"][phase], medians["ours"][phase]
            lines.append(f"| {label} | {phase} | {plain:.3f} | {ours:.3f} | {plain / ours:.2f} |")
    return "\n".join(lines)


def main(args: Args) -> None:
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.against == "trl":
        try:
            import bench_trl
        except ImportError as error:
            raise SightRLError(f"TRL cannot be imported ({error}): pip install -r requirements-bench.txt") from error
        known, table_of = bench_trl.SETTINGS, bench_trl.table
    else:
        known, table_of = SETTINGS, table
    if unknown := [name for name in args.settings if name not in known]:
        raise SightRLError(f"--settings {' '.join(unknown)}: unknown; choose from {', '.join(known)}")
    results: dict[str, Any] = {}
    for name in args.settings or list(known):  # what is measured is written at once
        if args.against == "trl":
            results[name] = bench_trl.run_setting(name, args.repeats, args.warm, args.trl_micro, args.trl_static_cache,
                                                  args.our_tokens, args.seed)  # fmt: skip
        else:
            results[name] = run_setting(name, args)
        write(args, results, table_of(results), "bench_trl" if args.against == "trl" else "bench_step")
    print(table_of(results))


def write(args: Any, results: dict[str, Any], text: str, name: str) -> None:
    """The figures with commit, versions and hardware as <name>_<device>.json, and the table beside them."""
    device = (
        "cuda" if args.device == "cuda" or (args.device == "auto" and torch.cuda.is_available()) else "cpu"
    )
    record = {
        "args": {name: value for name, value in asdict(args).items() if name != "out"},
        "results": results,
        "threads": torch.get_num_threads(),
        **_git(),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "hardware": torch.cuda.get_device_name()
        if device == "cuda"
        else f"{platform.machine()}, {cpu_name()}",
    }
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / f"{name}_{device}.json").write_text(json.dumps(record, indent=1) + "\n")
    (args.out / f"{name}_{device}.md").write_text(text + "\n")


def cpu_name() -> str:
    """The processor's name where Linux tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown")


if __name__ == "__main__":
    main_guard(main, tyro.cli(Args, description=__doc__))

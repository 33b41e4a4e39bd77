"""Seconds of one GRPO step, this engine against plain transformers on the same model: roll-out, log-probs,
update.

Plain is what trainers built on transformers do: `generate` on every prompt repeated G times, and padded
forwards over prompt + response with the pixels repeated G times, logits only where needed. Both sides write
exactly R tokens (no end of sequence), on the same prompts, alternating, after a warm-up; the table gives
medians.

    python eval/bench_step.py                          # both settings, a few minutes
    python eval/bench_step.py --settings micro --repeats 1
    python eval/bench_step.py --against trl            # whole steps against TRL's GRPOTrainer: eval/bench_trl.py
    python eval/bench_step.py --config qwen2.5-vl-3b --random-weights --our-tokens 16384 --plain-rows 16   # on a GPU
"""

from __future__ import annotations

import copy
import statistics
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from torch import Tensor
from transformers import PreTrainedModel

from common.errors import SightRLError, main_guard
from common.logprob import micro_batches, response_logps
from common.rollout import rollout
from common.vlm import VLM, Prompt
from steps import (
    PHASE_SETTINGS,
    STEP_SETTINGS,
    Setting,
    check_settings,
    decode_bytes,
    inputs,
    load,
    machine_limits,
    operations_of,
    pick_device,
    real_settings,
    timed,
    write,
)

PHASES = ("rollout", "logps", "update")


@dataclass
class Args:
    against: Literal["transformers", "trl"] = "transformers"
    """transformers: phases against plain generate and padded forwards. trl: whole steps against TRL's GRPOTrainer, with
    settings, models and table of eval/bench_trl.py (needs `pip install -r requirements-bench.txt`)."""
    config: str = ""
    """A published shape (qwen2.5-vl-3b, qwen2.5-vl-7b, ...) in place of the minute models, at real sizes: settings
    r400-kl, r400, r400-vision, r1000 with 64 prompts x 8 responses and 1,024 image tokens."""
    random_weights: bool = False
    """Needed with --config: speed does not ask for trained weights, and none are fetched."""
    model: str = ""
    """Another model for the settings: anything that load_vlm takes."""
    prompts: int = 0
    """Prompts of the settings of --config (0: 64)."""
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
    memory: bool = False
    """With --against trl: the largest memory of a step instead of its seconds, TRL with the first of --trl-micro;
    writes bench_trl_memory_<device>."""
    plain_rows: int = 64
    """Responses per padded forward of the plain side."""
    our_tokens: int = 0
    """Tokens per forward of this engine (0: everything at once)."""
    clock: Literal["wall", "cpu"] = "wall"
    """wall, or cpu (processor time, for a machine that others use too)."""
    threads: int = 0
    """PyTorch threads (0: its default)."""
    device: str = "auto"
    """auto, "cpu" or "cuda"."""
    seed: int = 0
    """Seed of weights, pictures and sampling."""
    out: Path = Path("results")
    """Folder for bench_step_<device>.json and .md (bench_trl_... with --against trl, ..._<config> with --config)."""


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
        sampling = {"do_sample": False} if greedy else {"do_sample": True, "top_k": 0, "top_p": 1.0, "temperature": 1.0}
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
        inputs["mm_token_type_ids"] = torch.cat([inputs["mm_token_type_ids"], torch.zeros_like(part).int()], dim=1)
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
        return rollout(self.vlm, self.prompts, self.group, max_new_tokens=limit, temperature=float(not greedy)).tokens

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


def run_setting(name: str, setting: Setting, args: Args, device: str) -> dict[str, Any]:
    group, limit = setting.group, setting.tokens
    vlm = load(setting, args.seed, device)
    pictures, questions = inputs(setting, args.seed)
    prompts = [vlm.prompt(q, [p]) for q, p in zip(questions, pictures, strict=True)]
    sides = {"ours": Ours(vlm, prompts, group, args.our_tokens), "plain": Plain(vlm, prompts, group, args.plain_rows)}
    correctness = check(sides["ours"], sides["plain"], limit)  # also the warm-up
    equal, logps, gradients = correctness.values()
    print(f"{name}: {equal:.2%} of greedy tokens equal, log-probs within {logps:.1e}, gradients within "
          f"{gradients:.1e}", flush=True)  # fmt: skip
    torch.manual_seed(args.seed)
    tokens = sides["ours"].rollout(limit)
    advantages = torch.randn(len(tokens), device=tokens.device)
    seconds: dict[str, dict[str, list[float]]] = {key: {phase: [] for phase in PHASES} for key in sides}
    peak = dict.fromkeys(sides, 0)  # bytes, on a GPU
    for repeat in range(args.repeats):
        for key in sorted(sides, reverse=bool(repeat % 2)):
            runner = sides[key]
            calls = {"rollout": lambda r=runner: r.rollout(limit), "logps": lambda r=runner: r.score(tokens),
                     "update": lambda r=runner: r.update(tokens, advantages)}  # fmt: skip
            if vlm.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            for phase, call in calls.items():
                seconds[key][phase].append(timed(call, vlm.device, args.clock))
            if vlm.device.type == "cuda":
                peak[key] = max(peak[key], torch.cuda.max_memory_allocated())
    return {
        "setting": asdict(setting),
        "prompt_tokens": [len(p.input_ids) for p in prompts],
        "correctness": correctness,
        "seconds": seconds,
        "peak_bytes": peak,
        "least_seconds": least_seconds(vlm, prompts, group, limit),
    }


def least_seconds(vlm: VLM, prompts: list[Prompt], group: int, limit: int) -> dict[str, float]:
    """Seconds that the machine's measured matrix and memory rates allow for each phase."""
    work, (rate, bandwidth) = operations_of(vlm, prompts, group, limit), machine_limits(vlm.device, vlm.dtype)
    decode = (work["responses"] + work["head"]) / rate
    decode = max(decode, decode_bytes(vlm, prompts, group, limit) / bandwidth)
    forward = sum(work.values()) / rate
    update = 3 * forward if vlm.train_vision else 3 * forward - 2 * work["vision"] / rate
    return {"rollout": (work["vision"] + work["prompt"]) / rate + decode, "logps": forward, "update": update}


def table(results: dict[str, Any]) -> str:
    """Markdown: median seconds and ratios, and how near this engine is to what the machine allows."""
    lines = ["| setting | phase | plain transformers, s | this engine, s | ratio | of the machine's limit |",
             "|---|---|---|---|---|---|"]  # fmt: skip
    for name, result in results.items():
        s, least = result["setting"], result["least_seconds"]
        label = f"{name}: {s['prompts']} x {s['group']} x {s['tokens']} tokens, {s['side']}-px image"
        medians = {k: {p: statistics.median(v) for p, v in phases.items()} for k, phases in result["seconds"].items()}
        for side in [*medians.values(), least]:
            side["roll-out + update"] = side["rollout"] + side["update"]
        for phase in medians["plain"]:
            plain, ours = medians["plain"][phase], medians["ours"][phase]
            share = f"{least[phase] / ours:.0%}"
            lines.append(f"| {label} | {phase} | {plain:.3f} | {ours:.3f} | {plain / ours:.2f} | {share} |")
    return "\n".join(lines)


def main(args: Args) -> None:
    device = pick_device(args.device, args.threads)
    known, measure, table_of, name = PHASE_SETTINGS, run_setting, table, "bench_step"
    if args.against == "trl":
        if args.clock != "wall":
            raise SightRLError("--clock cpu cannot be used with --against trl, whose callbacks read the wall clock")
        try:
            import bench_trl
        except ImportError as error:
            raise SightRLError(f"TRL cannot be imported ({error}): pip install -r requirements-bench.txt") from error
        known, measure, table_of, name = STEP_SETTINGS, bench_trl.run_setting, bench_trl.table, "bench_trl"
        if args.memory:
            measure, table_of, name = bench_trl.memory_of_setting, bench_trl.memory_table, "bench_trl_memory"
    if args.config and not args.random_weights:
        raise SightRLError("--config is a shape without weights: add --random-weights, or name a folder with --model")
    if args.config:
        known, name = real_settings(args.config, args.prompts), f"{name}_{args.config.lower()}"
    if args.model:
        known = {label: replace(setting, model=args.model) for label, setting in known.items()}
    check_settings(args.settings, known)
    results: dict[str, Any] = {}
    for label in args.settings or list(known):  # what is measured is written at once
        results[label] = measure(label, known[label], args, device)
        write(args, device, results, table_of(results), name)
    print(table_of(results))


if __name__ == "__main__":
    main_guard(main, tyro.cli(Args, description=__doc__))

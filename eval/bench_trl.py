"""Seconds of one whole GRPO step, this engine against TRL's GRPOTrainer: same weights, prompts, pictures, tokens.

    python eval/bench_step.py --against trl                        # all settings, about half an hour on two cores
    python eval/bench_step.py --against trl --settings world       # the micro-world's default step

Needs requirements-bench.txt. A step is everything between two optimiser steps: pixels, generation, reference
log-probabilities where there is a KL, update with AdamW, entropy logged. Both sides take turns inside one training run
of TRL (this engine's step runs in a callback, its time is left out of TRL's). Both write exactly R tokens (end of
sequence suppressed), temperature 1, on-policy (no pass for old log-probabilities). TRL gets no activation checkpointing
and the fastest of several micro-batch sizes, found beforehand; a static cache is tried too where it is asked for.
"""

from __future__ import annotations

import copy
import math
import statistics
import tempfile
import time
from contextlib import contextmanager
from typing import Any

import torch
from datasets import Dataset
from PIL import Image
from torch import Tensor
from transformers import BatchFeature, ProcessorMixin, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from bench_step import library_copy
from common.grpo import aggregate, clipped_loss, group_advantages, kl_estimate, token_log_ratio
from common.logprob import micro_batches, response_logps
from common.rollout import rollout
from common.training import group_rows
from common.vlm import VLM
from steps import Setting, inputs, load, peak_memory


# -------------------------------------------------------------------------------------------------------------- TRL
class Processor(ProcessorMixin):
    """Tokenizer and Pillow image processor behind the interface TRL wants; the library's own needs torchvision."""

    def __init__(self, tokenizer: Any, image_processor: Any) -> None:
        self.tokenizer, self.image_processor, self.chat_template = tokenizer, image_processor, tokenizer.chat_template
        tokenizer.padding_side = "left"

    def __call__(self, images: Any = None, text: Any = None, padding: bool = False, return_tensors: str | None = None,
                 **_: Any) -> BatchFeature:  # fmt: skip
        flat = [image for group in images for image in (group if isinstance(group, list) else [group])]
        pixels = self.image_processor(flat, return_tensors="pt")
        counts = iter((pixels["image_grid_thw"].prod(1) // self.image_processor.merge_size**2).tolist())
        pad, texts = "<|image_pad|>", []
        for line in text:
            first, *rest = line.split(pad)
            texts.append(first + "".join(pad * next(counts) + part for part in rest))
        out = self.tokenizer(texts, padding=padding, return_tensors=return_tensors)
        image_id, ids = self.tokenizer.convert_tokens_to_ids(pad), out["input_ids"]
        tensors = isinstance(ids, Tensor)
        kinds = (ids == image_id).int() if tensors else [[int(i == image_id) for i in row] for row in ids]
        return BatchFeature({"input_ids": ids, "attention_mask": out["attention_mask"], "mm_token_type_ids": kinds,
                             **pixels})  # fmt: skip

    def apply_chat_template(self, conversation: Any, tokenize: bool = False, add_generation_prompt: bool = False,
                            **_: Any) -> Any:  # fmt: skip
        batch = conversation if isinstance(conversation[0], list) else [conversation]
        texts = [self.tokenizer.apply_chat_template(c, tokenize=False, add_generation_prompt=add_generation_prompt)
                 for c in batch]  # fmt: skip
        if not tokenize:
            return texts if batch is conversation else texts[0]
        parts = [[part for message in c for part in message["content"]] for c in batch]
        return self([[p["image"] for p in row if p["type"] == "image"] for row in parts], texts)

    def batch_decode(self, *arguments: Any, **options: Any) -> list[str]:
        return self.tokenizer.batch_decode(*arguments, **options)

    def save_pretrained(self, *_: Any, **__: Any) -> None:
        pass


class TimedTrainer(GRPOTrainer):
    """GRPOTrainer that adds up the seconds of its phases in `self.spent`."""

    spent: dict[str, float]

    @contextmanager
    def clock(self, name: str) -> Any:
        start = time.perf_counter()
        yield
        self.spent[name] = self.spent.get(name, 0.0) + time.perf_counter() - start

    def _generate(self, prompts: list) -> Any:
        with self.clock("rollout"):
            return super()._generate(prompts)

    def _get_per_token_logps_and_entropies(self, *arguments: Any, **options: Any) -> Any:
        if torch.is_grad_enabled():
            return super()._get_per_token_logps_and_entropies(*arguments, **options)
        with self.clock("logps"):
            return super()._get_per_token_logps_and_entropies(*arguments, **options)


class Turns(TrainerCallback):
    """Times TRL's steps, and gives the other side its turn after each of them."""

    def __init__(self, ours: Any) -> None:
        self.ours, self.trl_steps, self.our_steps, self.trainer = ours, [], [], None

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.trainer.spent = {}
        self.start = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        phases = self.trainer.spent
        phases["step"] = time.perf_counter() - self.start
        phases["update"] = phases["step"] - phases["rollout"] - phases.get("logps", 0.0)  # with pixels and rewards
        self.trl_steps.append(dict(phases))
        if self.ours is not None:
            self.our_steps.append(self.ours.step())


def make_trainer(vlm: VLM, setting: Setting, pictures: list[Image.Image], questions: list[str], micro: int, steps: int,
                 static_cache: bool, seed: int, turns: Turns) -> TimedTrainer:  # fmt: skip
    model, folder = library_copy(vlm), tempfile.mkdtemp()
    if setting.kl:  # TRL loads its reference model from the place the model's name says
        model.save_pretrained(folder)
        model.config._name_or_path = folder
    rows = setting.prompts * setting.group

    def reward(completions: list, **_: Any) -> list[float]:
        return torch.rand(len(completions)).tolist()

    extra = {"suppress_tokens": silent_ids(vlm)} | ({"cache_implementation": "static"} if static_cache else {})
    config = GRPOConfig(
        output_dir=folder, use_cpu=vlm.device.type == "cpu", bf16=False, seed=seed, report_to="none",
        save_strategy="no", logging_strategy="no", disable_tqdm=True, per_device_train_batch_size=micro,
        gradient_accumulation_steps=rows // micro, num_generations=setting.group, max_steps=steps,
        max_completion_length=setting.tokens, temperature=1.0, top_k=0, top_p=1.0, beta=setting.kl, learning_rate=1e-6,
        lr_scheduler_type="constant", optim="adamw_torch_fused", gradient_checkpointing=False, shuffle_dataset=False,
        remove_unused_columns=False, generation_kwargs=extra, loss_type="dapo", epsilon_high=0.28,
        dataloader_pin_memory=False,
    )  # fmt: skip
    data = [{"prompt": [{"role": "user", "content": q}], "image": p} for q, p in zip(questions, pictures, strict=True)]
    trainer = TimedTrainer(model=model, args=config, reward_funcs=reward, callbacks=[turns],
                           processing_class=Processor(copy.deepcopy(vlm.tokenizer), vlm.image_processor),
                           train_dataset=Dataset.from_list(data * steps))  # fmt: skip
    turns.trainer = trainer
    trainer.spent = {}
    return trainer


def silent_ids(vlm: VLM) -> list[int]:
    """Ids that neither side may sample: placeholders, and the end of sequence, so that every answer has R tokens."""
    return sorted({*vlm.banned_ids.tolist(), *vlm.eos_ids, vlm.tokenizer.eos_token_id})


# ------------------------------------------------------------------------------------------------------ this engine
class Ours:
    """The step of methods/grpo.py (variant grpo, one mini-batch), without its bookkeeping."""

    def __init__(self, vlm: VLM, setting: Setting, pictures: list[Image.Image], questions: list[str],
                 micro_tokens: int) -> None:  # fmt: skip
        self.vlm, self.setting, self.pictures, self.questions = vlm, setting, pictures, questions
        self.micro_tokens = micro_tokens or None
        vlm.banned_ids = torch.tensor(silent_ids(vlm), device=vlm.device)
        vlm.eos_ids = [-1]
        if setting.kl:
            vlm.reference_base = copy.deepcopy(vlm.base).requires_grad_(False).eval()
        self.optimizer = torch.optim.AdamW(vlm.trainable(), lr=1e-6, weight_decay=0.0, fused=True)

    def step(self) -> dict[str, float]:
        s, vlm, seconds, start = self.setting, self.vlm, {}, time.perf_counter()
        prompts = [vlm.prompt(q, [p]) for q, p in zip(self.questions, self.pictures, strict=True)]
        batch = rollout(vlm, prompts, s.group, max_new_tokens=s.tokens, temperature=1.0)
        seconds["rollout"] = time.perf_counter() - start
        advantages = group_advantages(torch.rand(len(batch.tokens), device=vlm.device), s.group)  # [N]
        if s.kl:
            before = time.perf_counter()
            with torch.no_grad(), vlm.reference():
                ref_logps, _ = response_logps(vlm, batch.prompts, batch.tokens, batch.mask, entropy=False,
                                              features=batch.features, max_tokens=self.micro_tokens)  # fmt: skip
            seconds["logps"] = time.perf_counter() - before
        lengths = [len(p.input_ids) + s.group * s.tokens for p in prompts]
        for groups in micro_batches(lengths, self.micro_tokens):
            part, rows = batch.select(groups), group_rows(groups, s.group, vlm.device)
            logps, _ = response_logps(vlm, part.prompts, part.tokens, part.mask, features=part.features)
            losses = clipped_loss(token_log_ratio(logps, batch.logps[rows]), advantages[rows, None])
            if s.kl:
                losses = losses + s.kl * kl_estimate(logps, ref_logps[rows])
            aggregate(losses, part.mask, tokens=int(batch.mask.sum())).backward()
        torch.nn.utils.clip_grad_norm_(vlm.trainable(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        seconds["step"] = time.perf_counter() - start
        seconds["update"] = seconds["step"] - seconds["rollout"] - seconds.get("logps", 0.0)
        return seconds


# ------------------------------------------------------------------------------------------------------ measurement
def same_numbers(trainer: TimedTrainer, ours: Ours) -> dict[str, float]:
    """Largest difference of log-probs, and relative difference of gradients, on one batch of random answers."""
    vlm, s = ours.vlm, ours.setting
    prompts = [vlm.prompt(q, [p]) for q, p in zip(ours.questions, ours.pictures, strict=True)]
    rows = len(prompts) * s.group
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(5, 200, (rows, s.tokens), generator=generator).to(vlm.device)
    weights = torch.linspace(-1, 1, rows, device=vlm.device)[:, None] / tokens.numel()
    banned, vlm.banned_ids = vlm.banned_ids, vlm.banned_ids[:0]  # TRL's log-probs know no banned ids
    mine, _ = response_logps(vlm, prompts, tokens, torch.ones_like(tokens, dtype=torch.bool))
    (mine * weights).sum().backward()
    processor, repeated = trainer.processing_class, [i // s.group for i in range(rows)]
    texts = [vlm.format(ours.questions[i], 1, None) for i in repeated]
    inputs = processor([[ours.pictures[i]] for i in repeated], texts, padding=True, return_tensors="pt").to(vlm.device)
    ids = torch.cat([inputs.pop("input_ids"), tokens], 1)
    mask = torch.cat([inputs.pop("attention_mask"), torch.ones_like(tokens)], 1)
    inputs["mm_token_type_ids"] = torch.cat([inputs["mm_token_type_ids"], torch.zeros_like(tokens)], 1)
    theirs, _, _ = trainer._get_per_token_logps_and_entropies(trainer.model, ids, mask, s.tokens, num_images=[1] * rows,
                                                              compute_entropy=True, **inputs)  # fmt: skip
    (theirs * weights).sum().backward()
    pairs = [(a.grad, b.grad) for a, b in zip(vlm.base.parameters(), trainer.model.parameters(), strict=True)
             if a.requires_grad]  # fmt: skip
    apart = math.sqrt(sum(float((a - b).square().sum()) for a, b in pairs))
    size = math.sqrt(sum(float(b.square().sum()) for _, b in pairs))
    vlm.banned_ids = banned
    vlm.base.zero_grad(set_to_none=True)
    trainer.model.zero_grad(set_to_none=True)
    return {"logps": float((mine - theirs).detach().abs().max()), "gradient": apart / size}


def run_setting(label: str, setting: Setting, args: Any, device: str) -> dict[str, Any]:
    """Seconds per phase of both sides, and which micro-batch TRL got. args: those of bench_step.py."""
    vlm, warm = load(setting, args.seed, device), args.warm
    pictures, questions = inputs(setting, args.seed)
    rows = setting.prompts * setting.group
    sizes = sorted({min(m, rows) for m in args.trl_micro if rows % min(m, rows) == 0})
    trials = {}
    for micro in sizes if len(sizes) > 1 else []:  # TRL's best micro-batch: the faster of the last two of three steps
        turns = Turns(None)
        make_trainer(vlm, setting, pictures, questions, micro, 3, args.trl_static_cache, args.seed, turns).train()
        trials[micro] = min(step["step"] for step in turns.trl_steps[1:])
    best = min(trials, key=trials.get) if trials else sizes[0]
    ours = Ours(vlm, setting, pictures, questions, args.our_tokens)
    turns = Turns(ours)
    trainer = make_trainer(vlm, setting, pictures, questions, best, warm + args.repeats, args.trl_static_cache,
                           args.seed, turns)  # fmt: skip
    apart = same_numbers(trainer, ours)
    print(f"{label}: log-probs within {apart['logps']:.1e}, gradients within {apart['gradient']:.1e}; TRL's "
          f"micro-batch {best}", flush=True)  # fmt: skip
    trainer.train()
    return {"setting": vars(setting), "same_numbers": apart, "trl_micro_batch": best, "trl_micro_batch_trials": trials,
            "seconds": {"trl": turns.trl_steps[warm:], "ours": turns.our_steps[warm:]}}  # fmt: skip


class Peak(TrainerCallback):
    """Largest memory of the tensors that the last of TRL's steps makes, in bytes above what is there before."""

    def __init__(self, steps: int, device: torch.device) -> None:
        self.steps, self.device, self.bytes, self.trainer = steps, device, 0, None

    def on_step_begin(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
        self.trainer.spent = {}
        if state.global_step == self.steps - 1:
            self.measured = peak_memory(self.device)
            self.measured.__enter__()

    def on_step_end(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
        if state.global_step == self.steps:
            self.measured.__exit__(None, None, None)
            self.bytes = self.measured.bytes


def memory_of_setting(label: str, setting: Setting, args: Any, device: str) -> dict[str, Any]:
    """Largest memory of a step's tensors above weights and optimiser states, the second step of each side."""
    vlm = load(setting, args.seed, device)
    pictures, questions = inputs(setting, args.seed)
    micro = min(args.trl_micro[0], setting.prompts * setting.group)
    turns = Peak(2, vlm.device)
    make_trainer(vlm, setting, pictures, questions, micro, 2, args.trl_static_cache, args.seed, turns).train()
    ours = Ours(vlm, setting, pictures, questions, args.our_tokens)
    ours.step()
    with peak_memory(vlm.device) as measured:
        ours.step()
    print(f"{label}: TRL {turns.bytes / 1e6:.0f} MB, ours {measured.bytes / 1e6:.0f} MB", flush=True)
    return {"setting": vars(setting), "trl_micro_batch": micro, "bytes": {"trl": turns.bytes, "ours": measured.bytes}}


def memory_table(results: dict[str, Any]) -> str:
    lines = ["| setting | TRL's micro-batch | TRL, MB | this engine, MB | ratio |", "|---|---|---|---|---|"]
    for name, result in results.items():
        trl, ours = result["bytes"]["trl"] / 1e6, result["bytes"]["ours"] / 1e6
        lines.append(f"| {name} | {result['trl_micro_batch']} | {trl:.0f} | {ours:.0f} | {trl / ours:.2f} |")
    return "\n".join(lines)


def table(results: dict[str, Any]) -> str:
    lines = ["| setting | phase | TRL, s | this engine, s | ratio |", "|---|---|---|---|---|"]
    for name, result in results.items():
        s = result["setting"]
        label = (f"{name}: {s['prompts']} x {s['group']} x {s['tokens']}, {s['side']} px, {s['model']}, "
                 f"{'KL, ' if s['kl'] else ''}vision {'trained' if s['train_vision'] else 'frozen'}")  # fmt: skip
        seconds = result["seconds"]
        for phase in ("rollout", "logps", "update", "step"):
            if phase in seconds["trl"][0]:
                trl, ours = (statistics.median(step[phase] for step in seconds[side]) for side in ("trl", "ours"))
                lines.append(f"| {label} | {phase} | {trl:.3f} | {ours:.3f} | {trl / ours:.2f} |")
        written = s["prompts"] * s["group"] * s["tokens"]
        lines.append(f"| {label} | tokens/s | {written / trl:.0f} | {written / ours:.0f} | {trl / ours:.2f} |")
    return "\n".join(lines)

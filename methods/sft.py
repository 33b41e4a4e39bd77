"""Supervised warm start: teach a VLM to write the responses in the data, before reinforcement learning
improves them.

    python methods/sft.py                                             # careful answers of the micro-world
    python methods/sft.py --data jsonl:my.jsonl --columns "response=solution" --lora-rank 16 --preset 7b

Cross-entropy on the response tokens only (end-of-sequence included), averaged over the tokens of a step;
AdamW with warm-up and cosine decay. Needs a response for every question: a "response" column, or --data
world, which can write its own. `python methods/grpo.py --model runs/<this run>/model` goes on from the
result.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from common.args import CommonArgs, parse_args
from common.errors import SightRLError, main_guard

if TYPE_CHECKING:
    from common.data import Sample


@dataclass
class Args(CommonArgs):
    preset: Literal["tiny", "7b"] = "tiny"
    """A set of defaults: tiny is for a laptop, 7b has customary values for full fine-tuning. What you type
    wins."""
    world_habit: Literal["careful", "sloppy", "blind", "mixture", "caption"] = "careful"
    """With --data world: which way of answering is taught; caption: to describe (ViCrit's control)."""

    # ---- update
    batch_size: int = 32
    """Questions per optimiser step."""
    micro_tokens: int = 16384
    """Tokens per forward pass, prompts included: bounds the memory, does not change the result."""
    max_target_tokens: int = 160
    """Longer responses are cut here (their end-of-sequence token too)."""
    lr: float = 3e-4
    """Highest learning rate of AdamW. Customary for 7B models: 1e-5."""
    warmup: float = 0.03
    """Share of the steps over which the learning rate rises. Customary: 0.03."""
    final_lr: float = 0.0
    """Learning rate at the end of the cosine, as a share of the highest."""
    weight_decay: float = 0.01
    """Weight decay of AdamW."""
    max_grad_norm: float = 1.0
    """The gradient is scaled down to this norm."""
    max_new_tokens: int = 80
    """Longest response when the held-out questions are asked."""


PRESETS = {
    "tiny": {},  # the defaults above
    "7b": dict(model="Qwen/Qwen2.5-VL-7B-Instruct", gradient_checkpointing=True, batch_size=128, lr=1e-5,
               micro_tokens=32_768, max_target_tokens=2048, max_new_tokens=2048, gpus=8),
}  # fmt: skip


def target(sample: Sample, habit: str) -> str:
    """The response to learn. Raises SightRLError when the data has none."""
    if sample.meta.get("response"):
        return str(sample.meta["response"])
    source, _, number = sample.id.rpartition(":")
    if not source.startswith("world:"):
        raise SightRLError(f"{sample.id} has no response to learn; name its column: --columns response=NAME.")
    from common.world import make_question, pick_habit, response

    if habit == "caption":  # in the words of the captions that ViCrit puts an error into
        return f"{len(sample.meta['things'])} objects: {sample.meta['caption']}"
    rng, question = random.Random(sample.id), make_question(source.split(":")[-1], int(number))
    return response(question, pick_habit(sample.task, rng) if habit == "mixture" else habit, rng)


def learning_rate(args: Args, step: int) -> float:
    """Linear warm-up, then a cosine down to final_lr."""
    warm = max(1, round(args.warmup * args.steps))
    if step < warm:
        return args.lr * (step + 1) / warm
    done = (step - warm) / max(1, args.steps - warm)
    return args.lr * (args.final_lr + (1 - args.final_lr) * 0.5 * (1 + math.cos(math.pi * done)))


def main(args: Args) -> None:
    if args.dry_run:
        from common.plan import print_plan

        return print_plan(args, PRESETS[args.preset])

    # The slow imports wait until here, so that --help and --dry-run answer at once.
    import torch
    from torch.nn.utils.rnn import pad_sequence

    from common.distributed import share
    from common.logprob import micro_batches, response_logps
    from common.run import Run
    from common.training import (
        Averages,
        Budget,
        conclude,
        evaluate_held_out,
        load_model,
        load_stream,
        make_prompt,
        optimizer_step,
        set_learning_rate,
        validate,
    )

    # ------------------------------------------------------------------------------------------------ set-up
    run = Run(args, "sft", args.steps)
    vlm = load_model(args)
    optimizer = torch.optim.AdamW(vlm.trainable(), lr=args.lr, weight_decay=args.weight_decay, fused=True)
    stream = load_stream(args)
    budget = Budget(args.budget_tokens, args.max_minutes)  # counts the response tokens learned from
    before = evaluate_held_out(run, vlm, args, "before", args.max_new_tokens)
    first_step = run.resume(vlm, optimizer, stream=stream, budget=budget)

    for step in range(first_step, args.steps):
        if budget.spent():
            break
        set_learning_rate(optimizer, learning_rate(args, step))

        # ---- 1. Questions and the responses to learn.
        with run.phase("data"):
            samples = stream.next(args.batch_size)
            prompt = "Describe the picture." if args.world_habit == "caption" else args.prompt
            prompts = [make_prompt(vlm, sample, prompt) for sample in samples]
            texts = [target(sample, args.world_habit) for sample in samples]
            ids = [vlm.tokenizer.encode(text, add_special_tokens=False) + [vlm.eos_ids[0]] for text in texts]
            ids = [torch.tensor(row[: args.max_target_tokens]) for row in ids]
            tokens = pad_sequence(ids, batch_first=True, padding_value=vlm.pad_id).to(vlm.device)  # [B, T]
            lengths = torch.tensor([len(row) for row in ids], device=vlm.device)  # [B]
            mask = torch.arange(tokens.shape[1], device=vlm.device) < lengths[:, None]  # [B, T]
            budget.tokens += int(mask.sum())

        # ---- 2. One optimiser step; micro-batches only bound the memory.
        averages = Averages()
        with run.phase("update"):
            packed = [len(prompt.input_ids) + len(row) for prompt, row in zip(prompts, ids, strict=True)]
            for micro in share(micro_batches(packed, args.micro_tokens)):
                width = int(lengths[micro].max())
                part, part_mask = tokens[micro, :width], mask[micro, :width]  # [b, t] each
                logps, entropy = response_logps(vlm, [prompts[i] for i in micro], part, part_mask)
                loss = -(logps * part_mask).sum() / mask.sum()  # this micro-batch's share of the token mean
                loss.backward()
                averages.add("loss", -logps, part_mask)
                averages.add("entropy", entropy, part_mask)
            optimizer_step(vlm, optimizer, args.max_grad_norm, averages)

        # ---- 3. Log, evaluate, checkpoint.
        metrics = {"tokens": int(mask.sum()), "tokens_generated": budget.tokens, **averages.result(),
                   "length": lengths.float().mean().item(), "lr": optimizer.param_groups[0]["lr"],
                   "truncated": (lengths == args.max_target_tokens).float().mean().item()}  # fmt: skip
        if args.eval_every and (step + 1) % args.eval_every == 0:
            with run.phase("evaluate"):
                metrics |= validate(vlm, args, args.max_new_tokens)
        run.log(step, metrics)
        if metrics["updates/skipped"]:  # NaN or infinity: nothing was learned, see why
            rows = zip(samples, prompts, texts, strict=True)
            run.save_batch(step, [{"sample_id": sample.id, "prompt": prompt.text, "images": prompt.images,
                                   "response": text} for sample, prompt, text in rows])  # fmt: skip
        if run.checkpoint_due(step) or budget.spent():
            run.checkpoint(step, vlm, optimizer, stream=stream, budget=budget)
        if run.stop_requested:
            return

    after = evaluate_held_out(run, vlm, args, "after", args.max_new_tokens)
    conclude(run, before, after, budget, stream)


if __name__ == "__main__":
    main_guard(main, parse_args(Args, __doc__, preset=PRESETS))

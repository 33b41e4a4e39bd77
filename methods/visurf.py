"""ViSurf: visual supervised and reinforcement fine-tuning in one stage; the label is one more rollout.

Paper: arXiv 2510.10606 (Oct 2025, ICML 2026). Code: none found.

    python methods/visurf.py                        # the tiny VLM on the micro-world, minutes on a laptop
    python methods/visurf.py --variant sft_grpo     # what it is compared with: sft, grpo, one after the other
    python methods/visurf.py --preset paper-7b --data jsonl:grefcoco.jsonl

Where all G answers fail alike, GRPO learns nothing. ViSurf puts the label y into every group as one more row, teacher-
forced and graded by the same rules: where the policy fails y has a large advantage (SFT), where it succeeds y is silent
(GRPO). Its reward is controlled: y is spelled as the policy spells, earns nothing for thinking, which it lacks, and
drops to the rollouts' mean once the best of them reaches it. The task here: find a thing, or [] if there is none.
Published: ViSurf beats SFT, RLVR and SFT then RLVR in all domains, most where the base is weak, without forgetting
(Qwen2.5-VL-7B; no numbers could be read). Differences from the paper:
1. Rewards as VisionReasoner's (inferred): thinking 1, format 1, F1 of boxes 2; at 1 a well-formed failure silences y.
2. Token mean in a sequence, eps 0.2, Bessel std + 1e-6, no KL, first eliminate, then smooth, preset: all (inferred).
3. pi_old(y) is from a pass without gradient before the update. Label tokens count as generated.

Expect (results/visurf.json; 5 seeds, 300,000 tokens): "nothing there" 0.000 -> 0.092 (GRPO 0.000, SFT 0.476), other
questions 0.447 -> 0.561 (0.620, 0.132), words of thought 7.5 -> 7.1 (8.0, 0.0), boxes 0.331 -> 0.489 (0.746, 0.021).
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from common.args import CommonArgs, parse_args
from common.errors import SightRLError, main_guard

if TYPE_CHECKING:
    from torch import Tensor

    from common.data import Sample
    from common.rollout import Rollout


@dataclass
class Args(CommonArgs):
    preset: Literal["tiny", "paper-7b"] = "tiny"
    """A set of defaults: tiny is for a laptop, paper-7b has the published values. What you type wins."""
    variant: Literal["visurf", "grpo", "sft", "sft_grpo"] = "visurf"
    """visurf; grpo: no label; sft: the label alone, weight 1; sft_grpo: sft for half of the steps or tokens."""
    own_prompt: str = "{question}\nThink inside <think> </think>, then give the final answer inside <answer> </answer>."
    """Text around the question of the task; --prompt is for the data's own questions, asked before and after."""

    # ---- rollout
    group_size: int = 8
    """G: responses per prompt, the label not counted. Published: not found; 8 (TRL, most VLM papers)."""
    prompts_per_step: int = 16
    """Prompts whose groups are used in one step. 384 in VPPO, 512 in EasyR1."""
    max_new_tokens: int = 80
    """L_max: longest response in tokens. 2048 in most VLM papers."""
    temperature: float = 1.0
    """Sampling temperature; training scores the same distribution. 1.0 in TRL, verl and EasyR1."""
    top_p: float = 1.0
    """Sample only from the smallest set of tokens with this much probability. 1.0, in VPPO and Vision-SR1 0.99."""
    rollout_rows: int = 0
    """Responses decoded at the same time; 0: all of a rollout. Bounds the memory for keys and values."""

    # ---- reward
    align: bool = True
    """The label's JSON is spelled as the policy spells it, with blanks. Published: on."""
    eliminate_think: bool = True
    """The label earns nothing for thinking, else the full mark. Published: on."""
    smoothing: bool = True
    """r(y) := mean r(o) if max r(o) >= r(y). Published: on."""
    accuracy_weight: float = 2.0
    """Weight of accuracy beside thinking and format. Published: not found; VisionReasoner up to 3."""

    # ---- advantage
    advantage_eps: float = 1e-6
    """Added to the std. 1e-6 in verl, EasyR1 and what is built on them, 1e-4 in TRL."""

    # ---- loss
    clip_low: float = 0.2
    """eps_low: r is clipped at 1 - eps_low. 0.2 in the libraries, 3e-4 in GSPO."""
    clip_high: float = 0.2
    """eps_high: r is clipped at 1 + eps_high. 0.2 in GRPO, 0.28 in DAPO and VPPO, 0.3 in EasyR1, 4e-4 in GSPO."""
    loss_mean: Literal["token_mean", "token_mean_micro", "sequence_mean", "sequence_mean_token_share",
                       "sequence_sum", "token_sum_over_budget",
                       "token_sum_over_width"] = "sequence_mean"  # fmt: skip
    """How token losses are averaged: DAPO token_mean, GRPO's paper sequence_mean, Dr.GRPO
    token_sum_over_budget."""
    mask_truncated: bool = False
    """Leave responses that hit L_max out of the loss (TRL option)."""

    # ---- update
    mini_batch_prompts: int = 0
    """Prompts per optimiser step; 0: all of them, one optimiser step per rollout. 128 of 384 in VPPO."""
    micro_tokens: int = 16384
    """Tokens per forward pass, prompts included: bounds the memory, does not change the result."""
    recompute_old_logps: bool = False
    """Old log-probabilities from a separate pass (as in verl, EasyR1) instead of those recorded while sampling."""
    lr: float = 1e-4
    """Learning rate of AdamW, constant. Published: not found."""
    warmup_steps: int = 0
    """Steps over which the learning rate rises to its value. 0 in VPPO and most VLM papers."""
    weight_decay: float = 0.01
    """Weight decay of AdamW. 0.01 in VPPO and most VLM papers."""
    max_grad_norm: float = 1.0
    """The gradient is scaled down to this norm. 1.0 in VPPO and most VLM papers."""


PRESETS = {
    "tiny": {},  # the defaults above
    "paper-7b": dict(  # the published model, VisionReasoner's training (inferred); its data lack empty answers
        model="Qwen/Qwen2.5-VL-7B-Instruct", data="hf:Ricky06662/VisionReasoner_multi_object_7k_840", lr=1e-6,
        own_prompt='Locate "{question}". Between <think> and </think>, compare what could be meant. Then write inside '
        '<answer> </answer> a JSON list of {"bbox_2d": [x1, y1, x2, y2], "point_2d": [x, y]} in pixels, [] for none.',
        min_pixels=705_600, max_pixels=705_600, gradient_checkpointing=True, gpus=8, steps=500, max_new_tokens=2000),
}  # fmt: skip


def check(args: Args) -> None:
    """Refuse options that make no sense together, before anything slow happens."""
    if args.group_size < 2:
        raise SightRLError("--group-size must be at least 2: responses are compared within their group.")
    if args.prompts_per_step < 1 or args.max_new_tokens < 1:
        raise SightRLError("--prompts-per-step and --max-new-tokens must be at least 1.")
    if not args.temperature > 0 or not 0 < args.top_p <= 1:
        raise SightRLError("--temperature must be above 0 and --top-p in (0, 1].")


def task_of(args: Args, sample: Sample) -> Sample:
    """The search for boxes in a sample (micro-world: for one that may be missing), or as it is. Raises SightRLError."""
    from common.rewards import parse_boxes
    from common.world.layouts import find_or_none

    if "things" in sample.meta:
        asked = find_or_none(sample.meta["things"], random.Random(sample.id))
        sample = replace(sample, question=asked["question"], answer=str(asked["box"] or []), answer_type="box",
                         meta=sample.meta | {"relevant": [asked["cell"]] if asked["cell"] else []})  # fmt: skip
    one = sample.answer_type == "box" and sample.answer != "[]"
    answer = f'[{{"bbox_2d": {sample.answer}}}]' if one else sample.answer.strip("`json\n ")  # a fence around it
    if (boxes := parse_boxes(answer)) is not None:
        answer = json.dumps(json.loads(answer), separators=None if args.align else (",", ":"))  # files lack blanks
        return replace(sample, answer=answer, answer_type="boxes", task="target" if boxes else "no target")
    if not answer or sample.answer_type in ("box", "boxes"):
        raise SightRLError(f"{sample.where} has no label: its answer must be [x1, y1, x2, y2], a JSON list of boxes, "
                           "[] for none, or text; name the column with --columns answer=NAME.")  # fmt: skip
    return sample


def marks(text: str, sample: Sample) -> tuple[float, float, float]:
    """(thinking, format, accuracy) of a response, each in [0, 1]; accuracy of boxes is F1 at IoU 0.5."""
    from common.rewards import accuracy, block, detection_f1, parse_boxes

    thought, _, rest = (part.strip() for part in text.partition("</think>"))
    thinking = thought.startswith("<think>") and rest.startswith("<answer>") and rest.endswith("</answer>")
    answer = block(rest or thought, "answer") or ""
    if sample.answer_type != "boxes":
        return float(thinking), float(answer != ""), accuracy(f"\\boxed{{{answer}}}", sample)
    boxes = parse_boxes(answer)
    right = 0.0 if boxes is None else detection_f1(boxes, parse_boxes(sample.answer))
    return float(thinking), float(boxes is not None), right


def score(args: Args, batch: Rollout, samples: list[Sample]) -> tuple[Tensor, dict[str, Tensor]]:
    """(accuracy, reward terms), float [N] each; the reward R is the sum of the terms."""
    tensor = batch.logps.new_tensor
    asked = [sample for sample in samples for _ in range(batch.group_size)]  # row n belongs to sample n // G
    thinking, form, right = tensor([marks(text, sample) for text, sample in zip(batch.texts, asked, strict=True)]).T
    return right, {"thinking": thinking, "format": form, "accuracy": args.accuracy_weight * right}


def control(args: Args, terms: dict[str, Tensor], G: int) -> Tensor:
    """Rewards [N] of groups of G rows, the label first: no mark for thinking, r(y) := mean r(o) if max r(o) >= r(y)."""
    terms["thinking"][::G] = float(not args.eliminate_think)
    rewards = sum(terms.values()).view(-1, G)
    low, high = rewards[:, 1:].aminmax(dim=1)
    mean = rewards[:, 1:].mean(dim=1).clamp(low, high)  # of equal rewards exactly their value
    rewards[:, 0] = mean.where((high >= rewards[:, 0]) & args.smoothing, rewards[:, 0])
    return rewards.flatten()


def effects_of(own) -> dict[str, float]:
    """What the paper is about, from the Evaluation of the task."""
    from common.rewards import block

    groups = [record["responses"] for record in own.records]
    words = [len((block(text, "think") or "").split()) for texts in groups for text in texts]
    return {f"{kind} accuracy": stats["avg@k"] for kind, stats in own.summary()["tasks"].items()} | {
        "words of thought": sum(words) / len(words),
        "different responses": sum(len(set(texts)) for texts in groups) / len(words)}  # fmt: skip


def main(args: Args) -> None:
    if args.dry_run:
        from common.plan import print_plan

        return print_plan(args, PRESETS[args.preset])
    check(args)

    # The slow imports wait until here, so that --help and --dry-run answer at once.
    import torch

    from common.distributed import share
    from common.grpo import aggregate, clipped_loss, clipped_tokens, group_advantages, has_spread, token_log_ratio
    from common.logprob import micro_batches, response_logps
    from common.rollout import forced_rollout, merge_groups, rollout
    from common.run import Run
    from common.training import (
        Averages,
        Budget,
        batch_records,
        conclude,
        evaluate_held_out,
        group_lengths,
        group_rows,
        held_out,
        load_model,
        load_stream,
        make_prompt,
        optimizer_step,
        rollout_metrics,
        rollout_records,
        set_learning_rate,
        validate,
    )

    # ------------------------------------------------------------------------------------------------ set-up
    run = Run(args, "visurf", args.steps)
    vlm = load_model(args)
    optimizer = torch.optim.AdamW(vlm.trainable(), lr=args.lr, weight_decay=args.weight_decay, fused=True)
    stream = load_stream(args)
    budget = Budget(args.budget_tokens, args.max_minutes)
    before = evaluate_held_out(run, vlm, args, "before", args.max_new_tokens)
    asked = held_out(args) if args.eval_questions else {}
    asked = {split: [task_of(args, sample) for sample in part] for split, part in asked.items()}
    own_task = dict(kind="own", samples=asked, make=lambda vlm, s: make_prompt(vlm, s, args.own_prompt),
                    score=lambda text, s: marks(text, s)[2])  # fmt: skip
    own_before = evaluate_held_out(run, vlm, args, "before", args.max_new_tokens, **own_task)
    first_step = run.resume(vlm, optimizer, stream=stream, budget=budget)

    for step in range(first_step, args.steps):
        if budget.spent():
            break
        set_learning_rate(optimizer, args.lr * min(1.0, (step + 1) / max(1, args.warmup_steps)))

        # ---- 1. Ask, answer, grade. SFT samples nothing: its rollout are the labels.
        done, total = budget.progress(step, args.steps)
        sft, visurf = done < {"sft": 1.0, "sft_grpo": 0.5}.get(args.variant, 0.0) * total, args.variant == "visurf"
        with run.phase("data"):
            samples = [task_of(args, sample) for sample in stream.next(args.prompts_per_step)]
            prompts = [make_prompt(vlm, sample, args.own_prompt) for sample in samples]
            labels = [str(s.meta.get("label_text", f"<answer>{s.answer}</answer>")) for s in samples]
        with run.phase("rollout"):
            forced = forced_rollout(vlm, prompts, labels, temperature=args.temperature, max_tokens=args.micro_tokens)
            batch = forced if sft else rollout(
                vlm, prompts, args.group_size, max_new_tokens=args.max_new_tokens, temperature=args.temperature,
                top_p=args.top_p, generator=run.generator, max_rows=args.rollout_rows or None)  # fmt: skip
        right, terms = score(args, batch, samples)  # [N], {term: [N]}
        metrics = rollout_metrics(batch, samples, right, terms)

        # ---- 2. ViSurf: the label is one more row of every group, the first; its reward is controlled.
        if visurf:
            batch = merge_groups([forced, batch])
            _, terms = score(args, batch, samples)
            metrics["tokens"] += int(forced.mask.sum())
        budget.tokens += metrics["tokens"]
        G = batch.group_size  # rows per group, the label included
        rewards = control(args, terms, G) if visurf else sum(terms.values())  # [N]
        advantages = torch.ones_like(rewards) if sft else group_advantages(rewards, G, eps=args.advantage_eps)
        spread = has_spread(rewards, G)  # [prompts]

        # ---- 3. Log-probabilities of the sampling policy.
        old_logps = batch.logps  # [N, T], recorded while sampling
        averages = Averages()
        if args.recompute_old_logps:
            with run.phase("old_logps"), torch.no_grad():
                old_logps, old_entropy = response_logps(
                    vlm, batch.prompts, batch.tokens, batch.mask, features=batch.features,
                    temperature=args.temperature, max_tokens=args.micro_tokens)  # fmt: skip
            averages.add_max("logp_mismatch", (old_logps - batch.logps).abs())

        # ---- 4. Update. A mini-batch is one optimiser step; micro-batches only bound the memory.
        loss_mask = batch.mask & ~(batch.truncated[:, None] & args.mask_truncated)  # [N, T]
        with run.phase("update"):
            lengths = group_lengths(batch)  # tokens per group, prompt included
            mini_size = args.mini_batch_prompts or len(samples)
            for start in range(0, len(samples), mini_size):
                mini = range(start, min(start + mini_size, len(samples)))  # groups
                mini_rows = group_rows(mini, G)
                tokens = int(loss_mask[mini_rows].sum())
                active = [i for i in mini if spread[i] or sft]  # else A = 0: no gradient
                micros = micro_batches([lengths[i] for i in active], args.micro_tokens)
                for micro in share(micros):
                    groups = [active[i] for i in micro]
                    part, rows = batch.select(groups), group_rows(groups, G)  # n rows
                    width = part.tokens.shape[1]  # T of this micro-batch
                    mask, old, A = loss_mask[rows, :width], old_logps[rows, :width], advantages[rows, None]
                    logps, entropy = response_logps(  # [n, T] each
                        vlm, part.prompts, part.tokens, part.mask, features=part.features,
                        temperature=args.temperature)  # fmt: skip
                    log_ratio = token_log_ratio(logps, old)  # [n, T]
                    losses = clipped_loss(log_ratio, A, args.clip_low, args.clip_high)
                    loss = aggregate(losses, mask, args.loss_mean, tokens=tokens, sequences=len(mini_rows),
                                     micro_batches=len(micros), max_length=args.max_new_tokens)  # fmt: skip
                    loss.backward()
                    if start == 0 and not args.recompute_old_logps:  # no update yet: both must agree
                        averages.add_max("logp_mismatch", (logps - old).abs())
                    averages.add("entropy", entropy[rows % G >= visurf], mask[rows % G >= visurf])  # not the label
                    below, above = clipped_tokens(log_ratio, A, args.clip_low, args.clip_high)
                    averages.add("clip/low", below, mask)
                    averages.add("clip/high", above, mask)
                    averages.add("loss", loss * len(micros))
                if micros:
                    optimizer_step(vlm, optimizer, args.max_grad_norm, averages)

        # ---- 5. Log, evaluate, checkpoint.
        metrics |= averages.result()
        metrics |= {"groups/used": int(spread.sum()), "label/advantage": advantages[::G].mean().item() * visurf,  # A_y
                    "lr": optimizer.param_groups[0]["lr"], "tokens_generated": budget.tokens}  # fmt: skip
        if args.eval_every and (step + 1) % args.eval_every == 0:
            with run.phase("evaluate"):
                metrics |= validate(vlm, args, args.max_new_tokens)
        run.log(step, metrics)
        if metrics.get("updates/skipped"):  # NaN or infinity: nothing was learned, see why
            run.save_batch(step, batch_records(vlm, batch, samples, terms, advantages))
        if args.log_rollouts_every and step % args.log_rollouts_every == 0:
            run.log_rollouts(step, rollout_records(vlm, batch, samples, terms, advantages))
        if run.checkpoint_due(step) or budget.spent():
            run.checkpoint(step, vlm, optimizer, stream=stream, budget=budget)
        if run.stop_requested:
            return

    after = evaluate_held_out(run, vlm, args, "after", args.max_new_tokens)
    own_after = evaluate_held_out(run, vlm, args, "after", args.max_new_tokens, **own_task)
    seen = [effects_of(own) for own in (own_before, own_after) if own]
    conclude(run, before, after, budget, stream, own=(own_before, own_after),
             effects={name: (seen[0][name], value) for name, value in seen[-1].items()} if seen else {})  # fmt: skip


if __name__ == "__main__":
    main_guard(main, parse_args(Args, __doc__, preset=PRESETS))

"""GRPO, Dr.GRPO, DAPO and GSPO for vision-language models.

Papers: GRPO arXiv 2402.03300, DAPO 2503.14476, Dr.GRPO 2503.20783, GSPO 2507.18071.

    python methods/grpo.py                          # the tiny VLM on the micro-world, minutes on a laptop
    python methods/grpo.py --variant dapo --seed 1
    python methods/grpo.py --preset paper-7b --data hf:chamber111/VPPO_ViRL39K_train

Ask G times, grade every answer by rule, call an answer good if it beats its own group's mean, push its
tokens. The variants differ in six places, each an option below: division by the group's spread, token or
sequence ratio, how token losses are averaged, the shape of the clip, KL to the reference, and which groups
are kept. Differences from the papers:
1. "grpo" is what libraries run today (token mean, clip 0.2/0.28, no KL); "grpo_paper" is the paper's
   objective, with verl's clamps in the KL (|log-ratio| 20, estimate 10).
2. Groups whose rewards are all equal skip the update (their gradient is zero); denominators still count them.
3. Old log-probabilities are those recorded while sampling, unless --recompute-old-logps is given.

In the micro-world (five seeds, 500,000 tokens, --variant dapo with VPPO's settings: SETTINGS in eval/compare.py):
held-out accuracy 0.45 -> 0.80 (results/vppo.json); blind guesses die out first.
"""

from __future__ import annotations

from dataclasses import dataclass
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
    variant: Literal["grpo", "grpo_paper", "dr_grpo", "dapo", "gspo"] = "grpo"
    """Which member of the family: sets the defaults of the options below. What you type wins."""

    # ---- rollout
    group_size: int = 8
    """G: responses per prompt. 8 in TRL, VPPO, Vision-SR1 and most VLM papers; 5 in EasyR1, 16 in DAPO."""
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

    # ---- which groups are kept (dynamic sampling)
    filter_groups: Literal["off", "mean", "std"] = "off"
    """DAPO: sample until enough groups have low < mean accuracy < high (mean), or unequal rewards (std)."""
    filter_low: float = 0.01
    """Lower bound of rule "mean". 0.01 in EasyR1 and VPPO."""
    filter_high: float = 0.99
    """Upper bound of rule "mean". 0.99 in EasyR1 and VPPO."""
    gen_prompts: int = 0
    """Fresh prompts per round of dynamic sampling; 0: prompts_per_step, the published choice. Surplus is
    cut."""
    max_rounds: int = 8
    """Most rounds of dynamic sampling in one step; then the step makes do with what it has."""

    # ---- reward
    format_weight: float = 0.0
    """Share of the reward for a think block followed by a boxed answer. 0 in VPPO, 0.1 in EasyR1."""
    overlong_buffer: float = 0.0
    """DAPO: the last so much of L_max is punished softly, down to -0.5 (in DAPO -1, where wrong is -1): 0.2 there."""

    # ---- advantage
    advantage: Literal["group_std", "batch_std", "mean_only", "rloo", "passk"] = "group_std"
    """A: R - group mean, divided by the group's std (GRPO), the batch's, nothing (Dr.GRPO); RLOO; pass@k."""
    advantage_eps: float = 1e-6
    """Added to the std. 1e-6 in verl, EasyR1 and what is built on them, 1e-4 in TRL."""

    # ---- loss
    ratio: Literal["token", "sequence"] = "token"
    """Probability ratio r per token, or one per response: exp of the mean log-ratio (GSPO)."""
    loss: Literal["clip", "cispo"] = "clip"
    """clip: max(-A r, -A clip(r)); cispo: the clipped ratio is a constant weight on A log p."""
    clip_low: float = 0.2
    """eps_low: r is clipped at 1 - eps_low. 0.2 in the libraries, 3e-4 in GSPO."""
    clip_high: float = 0.28
    """eps_high: r is clipped at 1 + eps_high. 0.2 in GRPO, 0.28 in DAPO and VPPO, 0.3 in EasyR1, 4e-4 in GSPO."""
    dual_clip: float = 3.0
    """c: for A < 0 the loss is at most -c A; 0: off. 3 in verl, EasyR1 and VPPO, 10 in DAPO's script."""
    loss_mean: Literal["token_mean", "token_mean_micro", "sequence_mean", "sequence_mean_token_share",
                       "sequence_sum", "token_sum_over_budget",
                       "token_sum_over_width"] = "token_mean"  # fmt: skip
    """How token losses are averaged: DAPO token_mean, GRPO's paper sequence_mean, Dr.GRPO
    token_sum_over_budget."""
    mask_truncated: bool = False
    """Leave responses that hit L_max out of the loss (TRL option)."""
    kl_coef: float = 0.0
    """beta: weight of the KL to the starting model. 0.04 in GRPO's paper, 0.01 in EasyR1, 0 in DAPO and VPPO."""
    kl_kind: Literal["k1", "k2", "k3"] = "k3"
    """Estimator of that KL. k3 in TRL, verl and EasyR1."""
    entropy_coef: float = 0.0
    """Weight of an entropy penalty -mean log p of the sampled tokens. 0 in most papers, VPPO and its
    baselines 0.06."""

    # ---- update
    mini_batch_prompts: int = 0
    """Prompts per optimiser step; 0: all of them, one optimiser step per rollout. 128 of 384 in VPPO."""
    micro_tokens: int = 16384
    """Tokens per forward pass, prompts included: bounds the memory, does not change the result."""
    recompute_old_logps: bool = False
    """Old log-probabilities from a separate pass (as in verl, EasyR1) instead of those recorded while sampling."""
    lr: float = 1e-4
    """Learning rate of AdamW, constant. 1e-6 in most VLM papers."""
    warmup_steps: int = 0
    """Steps over which the learning rate rises to its value. 0 in VPPO and most VLM papers."""
    weight_decay: float = 0.01
    """Weight decay of AdamW. 0.01 in VPPO and most VLM papers."""
    max_grad_norm: float = 1.0
    """The gradient is scaled down to this norm. 1.0 in VPPO and most VLM papers."""


PRESETS = {
    "tiny": {},  # the defaults above
    "paper-7b": dict(  # how VPPO (2510.09285) trains its baselines; its DAPO: --overlong-buffer 0 --dual-clip 3
        model="Qwen/Qwen2.5-VL-7B-Instruct", data="hf:chamber111/VPPO_ViRL39K_train",
        columns="question=problem", min_pixels=200_704, max_pixels=1_003_520, gradient_checkpointing=True,
        gpus=8, steps=200, lr=1e-6, prompts_per_step=384, mini_batch_prompts=128, max_new_tokens=2048,
        top_p=0.99, max_rounds=100, recompute_old_logps=True, rollout_rows=256, micro_tokens=32_768,
        entropy_coef=0.06,
        checkpoint_every=5),
}  # fmt: skip
VARIANTS = {
    "grpo": {},  # token mean, 0.2/0.28, dual clip 3, no KL
    "grpo_paper": dict(clip_high=0.2, dual_clip=0.0, loss_mean="sequence_mean", kl_coef=0.04),
    "dr_grpo": dict(advantage="mean_only", clip_high=0.2, dual_clip=0.0, loss_mean="token_sum_over_budget"),
    "dapo": dict(filter_groups="mean", overlong_buffer=0.2, dual_clip=10.0),
    "gspo": dict(ratio="sequence", clip_low=3e-4, clip_high=4e-4, dual_clip=0.0, loss_mean="sequence_mean"),
}


def check(args: Args) -> None:
    """Refuse options that make no sense together, before anything slow happens."""
    if args.group_size < 2:
        raise SightRLError("--group-size must be at least 2: responses are compared within their group.")
    if args.prompts_per_step < 1 or args.max_new_tokens < 1:
        raise SightRLError("--prompts-per-step and --max-new-tokens must be at least 1.")
    if not args.temperature > 0 or not 0 < args.top_p <= 1:
        raise SightRLError("--temperature must be above 0 and --top-p in (0, 1].")


def score(args: Args, batch: Rollout, samples: list[Sample]) -> tuple[Tensor, dict[str, Tensor]]:
    """(graded right 0/1, reward terms), float [N] each; the reward R is the sum of the terms."""
    from common.grpo import overlong_penalty
    from common.rewards import accuracy, has_format

    tensor = batch.logps.new_tensor
    asked = [sample for sample in samples for _ in range(args.group_size)]  # row n belongs to sample n // G
    right = tensor([accuracy(text, sample) for text, sample in zip(batch.texts, asked, strict=True)])  # [N]
    terms = {"accuracy": right * (1 - args.format_weight)}
    if args.format_weight:
        terms["format"] = args.format_weight * tensor([float(has_format(text)) for text in batch.texts])
    if args.overlong_buffer:
        buffer = max(1, round(args.overlong_buffer * args.max_new_tokens))
        terms["overlong"] = overlong_penalty(batch.mask.sum(dim=1), args.max_new_tokens, buffer, factor=0.5)
    return right, terms


def advantages_of(args: Args, rewards: Tensor) -> Tensor:
    """A from rewards R, float [N] each."""
    from common import grpo

    if args.advantage == "rloo":
        return grpo.rloo_advantages(rewards, args.group_size)
    if args.advantage == "passk":
        return grpo.passk_advantages(rewards, args.group_size, args.advantage_eps)
    scale = {"group_std": "group", "batch_std": "batch", "mean_only": "none"}[args.advantage]
    return grpo.group_advantages(rewards, args.group_size, scale, args.advantage_eps)


def log_ratios(args: Args, logps: Tensor, old_logps: Tensor, mask: Tensor) -> Tensor:
    """log r, [n, T]: log pi(token) - log pi_old(token), or its mean over the response (GSPO)."""
    from common import grpo

    if args.ratio == "sequence":
        return grpo.sequence_log_ratio(logps, old_logps, mask)
    return grpo.token_log_ratio(logps, old_logps)


def policy_losses(args: Args, logps: Tensor, log_ratio: Tensor, advantages: Tensor) -> Tensor:
    """L_t, [n, T]. advantages: [n, 1]."""
    from common import grpo

    if args.loss == "cispo":
        return grpo.cispo_loss(logps, log_ratio, advantages, 1 - args.clip_low, 1 + args.clip_high)
    return grpo.clipped_loss(log_ratio, advantages, args.clip_low, args.clip_high, args.dual_clip)


def main(args: Args) -> None:
    if args.dry_run:
        from common.plan import print_plan

        return print_plan(args, PRESETS[args.preset] | VARIANTS[args.variant])
    check(args)

    # The slow imports wait until here, so that --help and --dry-run answer at once.
    import torch

    from common.distributed import share
    from common.grpo import aggregate, clipped_tokens, has_spread, keep_groups, kl_estimate
    from common.logprob import micro_batches, response_logps
    from common.rollout import concat_rollouts, rollout
    from common.run import Run
    from common.training import (
        Averages,
        Budget,
        batch_records,
        conclude,
        evaluate_held_out,
        group_lengths,
        group_rows,
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
    run = Run(args, "grpo", args.steps)
    vlm = load_model(args, needs_reference=args.kl_coef != 0)
    optimizer = torch.optim.AdamW(vlm.trainable(), lr=args.lr, weight_decay=args.weight_decay, fused=True)
    stream = load_stream(args)
    budget = Budget(args.budget_tokens, args.max_minutes)
    before = evaluate_held_out(run, vlm, args, "before", args.max_new_tokens)
    first_step = run.resume(vlm, optimizer, stream=stream, budget=budget)
    G = args.group_size

    for step in range(first_step, args.steps):
        if budget.spent():
            break
        set_learning_rate(optimizer, args.lr * min(1.0, (step + 1) / max(1, args.warmup_steps)))

        # ---- 1. Ask, answer, grade. Dynamic sampling repeats this until enough groups can teach something.
        parts, samples, right, terms = [], [], torch.zeros(0, device=vlm.device), {}
        for _ in range(args.max_rounds if args.filter_groups != "off" else 1):
            with run.phase("data"):
                asked = stream.next(args.gen_prompts or args.prompts_per_step)
                prompts = [make_prompt(vlm, sample, args.prompt) for sample in asked]
            with run.phase("rollout"):
                part = rollout(vlm, prompts, G, max_new_tokens=args.max_new_tokens,
                               temperature=args.temperature, top_p=args.top_p, generator=run.generator,
                               max_rows=args.rollout_rows or None)  # fmt: skip
            with run.phase("reward"):
                part_right, part_terms = score(args, part, asked)  # [n], {term: [n]}
            parts, samples, right = [*parts, part], samples + asked, torch.cat([right, part_right])  # [N]
            terms = {name: torch.cat([terms.get(name, right[:0]), new]) for name, new in part_terms.items()}
            keep = torch.ones(len(samples), dtype=torch.bool, device=right.device)  # [prompts]
            if args.filter_groups != "off":
                keep = keep_groups(right, G, args.filter_groups, args.filter_low, args.filter_high)
            if keep.sum() >= args.prompts_per_step:
                break
        batch = concat_rollouts(parts)  # N rows
        metrics = rollout_metrics(batch, samples, right, terms)
        budget.tokens += metrics["tokens"]

        # ---- 2. Keep the groups to learn from; the surplus of the last round is cut.
        chosen = keep.nonzero().flatten().tolist()[: args.prompts_per_step]
        if not chosen:
            run.say(f"step {step + 1}: no group of {len(samples)} has mixed results, nothing left to learn")
            run.log(step, metrics | {"groups/used": 0, "tokens_generated": budget.tokens})
            break
        rows = group_rows(chosen, G)  # [N]
        batch, samples = batch.select(chosen), [samples[i] for i in chosen]
        terms = {name: values[rows] for name, values in terms.items()}
        rewards = sum(terms.values())  # [N]
        advantages = advantages_of(args, rewards)  # [N]
        spread = has_spread(rewards, G)  # [prompts]

        # ---- 3. Log-probabilities of the sampling policy and of the reference.
        old_logps = batch.logps  # [N, T], recorded while sampling
        averages = Averages()
        if args.recompute_old_logps:
            with run.phase("old_logps"), torch.no_grad():
                old_logps, old_entropy = response_logps(
                    vlm, batch.prompts, batch.tokens, batch.mask, features=batch.features,
                    temperature=args.temperature, max_tokens=args.micro_tokens)  # fmt: skip
            averages.add_max("logp_mismatch", (old_logps - batch.logps).abs())
        if args.kl_coef:
            with run.phase("ref_logps"), torch.no_grad(), vlm.reference():
                ref_logps, _ = response_logps(
                    vlm, batch.prompts, batch.tokens, batch.mask, features=batch.features, entropy=False,
                    temperature=args.temperature, max_tokens=args.micro_tokens)  # fmt: skip

        # ---- 4. Update. A mini-batch is one optimiser step; micro-batches only bound the memory.
        loss_mask = batch.mask & ~(batch.truncated[:, None] & args.mask_truncated)  # [N, T]
        with run.phase("update"):
            lengths = group_lengths(batch)  # tokens per group, prompt included
            mini_size = args.mini_batch_prompts or len(chosen)
            for start in range(0, len(chosen), mini_size):
                mini = range(start, min(start + mini_size, len(chosen)))  # groups
                mini_rows = group_rows(mini, G)
                tokens = int(loss_mask[mini_rows].sum())
                # Without spread A = 0: no gradient, unless another term of the loss wants one.
                active = [i for i in mini if spread[i] or args.kl_coef or args.entropy_coef]
                micros = micro_batches([lengths[i] for i in active], args.micro_tokens)
                for micro in share(micros):
                    groups = [active[i] for i in micro]
                    part, rows = batch.select(groups), group_rows(groups, G)  # n rows
                    width = part.tokens.shape[1]  # T of this micro-batch
                    mask, old, A = loss_mask[rows, :width], old_logps[rows, :width], advantages[rows, None]
                    logps, entropy = response_logps(  # [n, T] each
                        vlm, part.prompts, part.tokens, part.mask, features=part.features,
                        temperature=args.temperature)  # fmt: skip
                    log_ratio = log_ratios(args, logps, old, mask)  # [n, T]
                    losses = policy_losses(args, logps, log_ratio, A)
                    losses = losses - args.entropy_coef * logps  # penalty on the sampled tokens' surprise
                    if args.kl_coef:
                        kl = kl_estimate(logps, ref_logps[rows, :width], args.kl_kind)
                        losses = losses + args.kl_coef * kl
                        averages.add("kl", kl, mask)
                    loss = aggregate(losses, mask, args.loss_mean, tokens=tokens, sequences=len(mini_rows),
                                     micro_batches=len(micros), max_length=args.max_new_tokens)  # fmt: skip
                    loss.backward()
                    if start == 0 and not args.recompute_old_logps:  # no update yet: both must agree
                        averages.add_max("logp_mismatch", (logps - old).abs())
                    averages.add("entropy", entropy, mask)
                    below, above = clipped_tokens(log_ratio, A, args.clip_low, args.clip_high)
                    averages.add("clip/low", below, mask)
                    averages.add("clip/high", above, mask)
                    averages.add("loss", loss * len(micros))
                if micros:
                    optimizer_step(vlm, optimizer, args.max_grad_norm, averages)

        # ---- 5. Log, evaluate, checkpoint.
        metrics |= averages.result()
        metrics |= {"groups/used": len(chosen), "groups/filtered": 1 - keep.float().mean().item(),
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
    conclude(run, before, after, budget, stream)


if __name__ == "__main__":
    main_guard(main, parse_args(Args, __doc__, preset=PRESETS, variant=VARIANTS))

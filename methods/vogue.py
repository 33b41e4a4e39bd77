"""VOGUE: a bonus for exploring where the picture is uncertain.

Paper: arXiv 2510.01444 (Oct 2025; from June 2026 named DUPL). Code: a fork of EasyR1 named DUPL, owner not found.

    python methods/vogue.py                          # the tiny VLM on the micro-world, minutes on a laptop
    python methods/vogue.py --alpha-visual 0         # the ablation without u_per; --alpha-entropy 0 too: GRPO
    python methods/vogue.py --preset paper-7b        # Qwen2.5-VL-7B on MMRL30k

The picture is taken for a random variable: the policy reads its own answers once more under a noisy copy, and the
symmetric KL of the two next-token distributions is the perceptual uncertainty u_per of a token. On steps that draw the
noisy branch, ever fewer of them, the advantage gets a bonus that grows with u_per; on all steps one that grows with the
entropy u_out. Both are capped at |A| / beta: no bonus turns a punishment into a reward.
Version 3 (mean of 6 benchmarks): 3B base 52.5, GRPO 58.4, VOGUE 61.2; 7B 61.1, 63.9, 66.9. Published ablations (7B,
maths / general): 65.8 / 67.9, no u_per 64.1 / 66.9, no u_out 64.3 / 66.8, neither 63.2 / 65.9, forward KL 55.4 / 64.3.
Differences from the paper:
1. Ratio and entropy come from the raw picture on noisy steps too (inferred): the tokens were sampled from it, and a
   ratio under the noise would teach to say what cannot be seen. A_noi is the group's A.
2. Noise is added after the resize, one copy per prompt, sigma on a scale of 0 to 1 (inferred); here 0.2, the Qwen3-VL
   script's: 0.4 leaves nothing to read in 112 pixels (accuracy 0.47 -> 0.15; at 0.2 colours stay, digits go).
3. alpha and beta are version 1's (version 3's: not found). --variant code lacks the code's top-k KL, coin per sample.

Expect (results/vogue.json; 5 seeds, 300,000 tokens): accuracy 0.447 -> 0.796, without both bonuses 0.800 (-0.004
[-0.019, +0.010]), pass@4 0.847 -> 0.937 (0.939): no effect here. u is 62 times higher on words that noise can hide.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Literal

import numpy as np
from PIL import Image, ImageEnhance

from common.args import CommonArgs, parse_args
from common.errors import SightRLError, main_guard

if TYPE_CHECKING:
    from torch import Tensor

    from common.contrast import Contrast
    from common.data import Sample
    from common.rollout import Rollout


@dataclass
class Args(CommonArgs):
    preset: Literal["tiny", "paper-7b"] = "tiny"
    """A set of defaults: tiny is for a laptop, paper-7b has the published values. What you type wins."""
    variant: Literal["paper", "code"] = "paper"
    """paper: KL over the vocabulary, alpha_p 1; code: of the sampled token, alpha_p 0.1. What you type wins."""

    # ---- VOGUE
    alpha_visual: float = 1.0
    """alpha_p: weight of u_per in its bonus; 0: no such bonus. Published: 1.0, code 0.1."""
    alpha_entropy: float = 0.4
    """alpha_o: weight of u_out, the entropy, in its bonus; 0: no such bonus. Published: 0.4."""
    beta: float = 2.0
    """beta_p, beta_o: a bonus is at most |A| / beta. Published: 2.0."""
    entropy_cap: Literal["plain", "shaped"] = "plain"
    """The |A| that caps the entropy bonus: plain (published), or with the visual bonus in it (code)."""
    kl: Literal["full", "sampled"] = "full"
    """u_per over the whole vocabulary (published), or of the sampled token alone (code)."""
    kl_forward: bool = False
    """u_per is KL(raw || noisy) alone (Table 5: worse). Published: its mean with KL(noisy || raw)."""
    kl_transition: bool = False
    """Code: the visual bonus shrinks after 45 % of training, is a penalty from 56.5 %, a full one from 68 %."""
    noisy_end: float = 0.0
    """p_noi, the chance of a noisy step, falls from 1 to this; 1: always noisy. Published: 0."""
    ratio_branch: Literal["raw", "noisy"] = "raw"
    """Which branch gives ratio and entropy on noisy steps. Published: not found; raw (inferred)."""
    perturbation: Literal["noise", "jitter", "all"] = "noise"
    """T: noise; colour jitter too; flips and turns too. Published: all (strengths inferred); in v1 noise."""
    noise_std: float = 0.2
    """sigma of the noise on pixels in [0, 1]. Published: 0.4, Qwen3-VL script 0.2."""
    wrong_labels: bool = False
    """Allow --perturbation all with --data world, where it makes left, right and cells wrong."""
    shuffle_u: bool = False
    """The control: every response's u_per in random order, as much bonus on the wrong tokens."""

    # ---- rollout
    group_size: int = 8
    """G: responses per prompt. Published: 5."""
    prompts_per_step: int = 16
    """Prompts whose groups are used in one step. Published: 256."""
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

    # ---- advantage
    advantage_eps: float = 1e-6
    """Added to the std. 1e-6 in verl, EasyR1 and what is built on them, 1e-4 in TRL."""

    # ---- loss
    clip_low: float = 0.2
    """eps_low: r is clipped at 1 - eps_low. 0.2 in the libraries, 3e-4 in GSPO."""
    clip_high: float = 0.28
    """eps_high: r is clipped at 1 + eps_high. Published: 0.3 (inferred)."""
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

    # ---- update
    mini_batch_prompts: int = 0
    """Prompts per optimiser step; 0: all, one optimiser step per rollout. Published: 128 of 256 (inferred)."""
    micro_tokens: int = 16384
    """Tokens per forward pass, prompts included: bounds the memory, does not change the result."""
    recompute_old_logps: bool = False
    """Old log-probabilities from a separate pass (as in verl, EasyR1) instead of those recorded while sampling."""
    lr: float = 1e-4
    """Learning rate of AdamW, constant. Published: 1e-6 (inferred)."""
    warmup_steps: int = 0
    """Steps over which the learning rate rises to its value. 0 in VPPO and most VLM papers."""
    weight_decay: float = 0.01
    """Weight decay of AdamW. 0.01 in VPPO and most VLM papers."""
    max_grad_norm: float = 1.0
    """The gradient is scaled down to this norm. 1.0 in VPPO and most VLM papers."""


PRESETS = {
    "tiny": {},  # the defaults above
    "paper-7b": dict(  # what is not published is EasyR1's default (inferred)
        model="Qwen/Qwen2.5-VL-7B-Instruct", data="hf:XenoZLH/MMRL30k", columns="question=problem", noise_std=0.4,
        min_pixels=262_144, max_pixels=4_194_304, gradient_checkpointing=True, gpus=8, steps=200, lr=1e-6, group_size=5,
        prompts_per_step=256, mini_batch_prompts=128, max_new_tokens=2048, clip_high=0.3, format_weight=0.1,
        recompute_old_logps=True, rollout_rows=256, micro_tokens=32_768, checkpoint_every=5),
}  # fmt: skip
VARIANTS = {"paper": {}, "code": dict(kl="sampled", alpha_visual=0.1, entropy_cap="shaped")}


def check(args: Args) -> None:
    """Refuse options that make no sense together, before anything slow happens."""
    if args.group_size < 2:
        raise SightRLError("--group-size must be at least 2: responses are compared within their group.")
    if args.prompts_per_step < 1 or args.max_new_tokens < 1:
        raise SightRLError("--prompts-per-step and --max-new-tokens must be at least 1.")
    if not args.temperature > 0 or not 0 < args.top_p <= 1:
        raise SightRLError("--temperature must be above 0 and --top-p in (0, 1].")
    if not args.beta >= 2:
        raise SightRLError("--beta must be at least 2, else the two bonuses together can turn the advantage's sign.")
    if args.perturbation == "all" and args.data.split(":")[0] == "world" and not args.wrong_labels:
        raise SightRLError("--perturbation all makes the answers of --data world wrong (left, cells): take noise "
                           "or jitter, or add --wrong-labels.")  # fmt: skip


def score(args: Args, batch: Rollout, samples: list[Sample]) -> tuple[Tensor, dict[str, Tensor]]:
    """(graded right 0/1, reward terms), float [N] each; the reward R is the sum of the terms."""
    from common.rewards import accuracy, has_format

    tensor = batch.logps.new_tensor
    asked = [sample for sample in samples for _ in range(args.group_size)]  # row n belongs to sample n // G
    right = tensor([accuracy(text, sample) for text, sample in zip(batch.texts, asked, strict=True)])  # [N]
    terms = {"accuracy": right * (1 - args.format_weight)}
    if args.format_weight:
        terms["format"] = args.format_weight * tensor([float(has_format(text)) for text in batch.texts])
    return right, terms


def advantages_of(args: Args, rewards: Tensor) -> Tensor:
    """A from rewards R, float [N] each."""
    from common import grpo

    return grpo.group_advantages(rewards, args.group_size, "group", args.advantage_eps)


def perturb(args: Args, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """x' = T(x): a noisy copy of a picture as the model sees it, uint8 [H, W, 3]."""
    picture = Image.fromarray(image)
    if args.perturbation == "all":
        picture = Image.fromarray(image[:: rng.choice((1, -1)), :: rng.choice((1, -1))]).rotate(rng.uniform(-15, 15))
    if args.perturbation != "noise":
        for change in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
            picture = change(picture).enhance(rng.uniform(0.6, 1.4))
    noise = rng.normal(0.0, 255 * args.noise_std, image.shape)
    return (np.asarray(picture) + noise).round().clip(0, 255).astype(np.uint8)


def schedule(args: Args, s: int, total: int) -> tuple[float, float]:
    """(p_noi(s) = max(0, 1 - s / s_total), the code's curriculum m: 1, falling to -1 with --kl-transition)."""
    start, length = int(0.45 * total), int(0.23 * total)
    falling = min(1.0, max(0, s - start) / max(length, 1))
    return 1 - (1 - args.noisy_end) * min(1.0, s / total), 1 - 2 * args.kl_transition * falling


def uncertainty(args: Args, two: Contrast) -> Tensor:
    """u_per, [N, T]: half of KL(p || q) + KL(q || p), p under the raw picture, q under the noisy one."""
    forward, backward = two.forward, two.backward
    if args.kl == "sampled":  # what the sampled token adds to both sums
        a, b = two.logps, two.other_logps
        forward, backward = a.exp() * (a - (b.exp() + 1e-8).log()), b.exp() * (b - (a.exp() + 1e-8).log())
    return forward if args.kl_forward else (forward + backward) / 2


def bonus(wanted: Tensor, advantages: Tensor, beta: float) -> Tensor:
    """g, [N, T]: alpha u, at most |A| / beta; negative where it is wanted so (forward KL of one token, or m < 0)."""
    return wanted.abs().minimum(advantages.abs() / beta) * wanted.sign()


def main(args: Args) -> None:
    if args.dry_run:
        from common.plan import print_plan

        return print_plan(args, PRESETS[args.preset] | VARIANTS[args.variant])
    check(args)

    # The slow imports wait until here, so that --help and --dry-run answer at once.
    import torch

    from common.contrast import reliance, response_contrast
    from common.distributed import share
    from common.grpo import aggregate, clipped_loss, clipped_tokens, has_spread, keep_groups, kl_estimate
    from common.logprob import micro_batches, response_logps
    from common.rollout import concat_rollouts, rollout
    from common.run import Run
    from common.training import (
        Averages,
        Budget,
        batch_records,
        by_token_kind,
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
    run = Run(args, "vogue", args.steps)
    vlm = load_model(args, needs_reference=args.kl_coef != 0)
    optimizer = torch.optim.AdamW(vlm.trainable(), lr=args.lr, weight_decay=args.weight_decay, fused=True)
    stream = load_stream(args)
    budget = Budget(args.budget_tokens, args.max_minutes)
    before = evaluate_held_out(run, vlm, args, "before", args.max_new_tokens)
    old_reliance = reliance(vlm, args, args.max_new_tokens, partial(perturb, args))
    first_step = run.resume(vlm, optimizer, stream=stream, budget=budget)
    G = args.group_size

    for step in range(first_step, args.steps):
        if budget.spent():
            break
        p_noisy, m = schedule(args, *budget.progress(step, args.steps))
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
        # ---- 3b. VOGUE: the same tokens under a noisy picture, if this is a noisy step.
        noisy = run.rng.random() < p_noisy
        u = torch.zeros_like(old_logps)  # u_per, [N, T]; 0 on raw steps
        with run.phase("uncertainty"), torch.no_grad():
            if noisy and (args.alpha_visual or args.ratio_branch == "noisy"):
                rng = np.random.default_rng(run.rng.getrandbits(64))
                noised = [vlm.replace_images(prompt, [perturb(args, image, rng) for image in prompt.images])
                          for prompt in batch.prompts]  # fmt: skip
                two = response_contrast(vlm, batch.prompts, noised, batch.tokens, batch.mask, features=batch.features,
                                        temperature=args.temperature, max_tokens=args.micro_tokens)  # fmt: skip
                u = uncertainty(args, two)
                by_token_kind(averages, vlm, batch, samples, u=u)
                if args.ratio_branch == "noisy":
                    old_logps, batch = two.other_logps, replace(batch, prompts=noised, features=None)
        if args.shuffle_u:  # padding stays behind
            order = torch.rand(u.shape, generator=run.generator).to(u.device).masked_fill(~batch.mask, 2)
            u = u.gather(1, order.argsort(dim=1))
        visual_bonus = bonus(args.alpha_visual * m * u, advantages[:, None], args.beta)  # g_per, [N, T]

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
                active = [i for i in mini if spread[i] or args.kl_coef]
                micros = micro_batches([lengths[i] for i in active], args.micro_tokens)
                for micro in share(micros):
                    groups = [active[i] for i in micro]
                    part, rows = batch.select(groups), group_rows(groups, G)  # n rows
                    width = part.tokens.shape[1]  # T of this micro-batch
                    mask, old, A = loss_mask[rows, :width], old_logps[rows, :width], advantages[rows, None]
                    logps, entropy = response_logps(  # [n, T] each
                        vlm, part.prompts, part.tokens, part.mask, features=part.features,
                        temperature=args.temperature)  # fmt: skip
                    shaped = A + visual_bonus[rows, :width]  # A + g_per, [n, T]
                    cap = shaped if args.entropy_cap == "shaped" else A
                    shaped = shaped + bonus(args.alpha_entropy * entropy, cap, args.beta)  # + g_out
                    averages.add("sign_flips", shaped * A < 0, mask)  # never, by the caps
                    log_ratio = (logps - old).clamp(-20, 20)  # log r, [n, T]
                    losses = clipped_loss(log_ratio, shaped, args.clip_low, args.clip_high, args.dual_clip)
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
                    "lr": optimizer.param_groups[0]["lr"], "tokens_generated": budget.tokens,
                    "noisy": float(noisy)}  # fmt: skip
        if args.eval_every and (step + 1) % args.eval_every == 0:
            with run.phase("evaluate"):
                metrics |= validate(vlm, args, args.max_new_tokens)
        run.log(step, metrics)
        if metrics.get("updates/skipped"):  # NaN or infinity: nothing was learned, see why
            run.save_batch(step, batch_records(vlm, batch, samples, terms, advantages))
        if args.log_rollouts_every and step % args.log_rollouts_every == 0:
            run.log_rollouts(step, rollout_records(
                vlm, batch, samples, terms, advantages, u=u, bonus=visual_bonus))  # fmt: skip
        if run.checkpoint_due(step) or budget.spent():
            run.checkpoint(step, vlm, optimizer, stream=stream, budget=budget)
        if run.stop_requested:
            return

    after = evaluate_held_out(run, vlm, args, "after", args.max_new_tokens)
    new_reliance = reliance(vlm, args, args.max_new_tokens, partial(perturb, args))
    effects = {name: (old_reliance[name], new) for name, new in new_reliance.items()}
    if before and after and args.eval_k >= 4:
        effects["pass@4"] = tuple(x.summary()["overall"]["pass"]["4"] for x in (before, after))
    conclude(run, before, after, budget, stream, effects=effects)


if __name__ == "__main__":
    main_guard(main, parse_args(Args, __doc__, preset=PRESETS, variant=VARIANTS))

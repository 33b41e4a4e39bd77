"""VPPO: spotlight on token perception for multimodal reinforcement learning.

Paper: arXiv 2510.09285 (Oct 2025, ICLR 2026). Code: github huaixuheqing/VPPO-RL.

    python methods/vppo.py                          # the tiny VLM on the micro-world, minutes on a laptop
    python methods/vppo.py --mask-source random     # the control: as many tokens, chosen blindly
    python methods/vppo.py --preset paper-7b --data hf:chamber111/VPPO_ViRL39K_train

Every token gets a score S_t: how much its probability changes when the picture is damaged. It is used twice on top of
DAPO. Token-level gradient filtering (TGF): only the 40 % most picture-dependent tokens of a response receive policy
gradient. Trajectory-level advantage shaping (TAS): the advantage grows with the response's mean score.
Published (mean of 8 benchmarks, Qwen2.5-VL-7B): base 38.3, GRPO 53.1, DAPO 55.0, VPPO 57.5.
Differences from the paper, 1 to 3 as in its official code:
1. S_t is the one-sample k3 estimate on the sampled token, clamped at 10, not the KL over the vocabulary.
2. Token mean over the mini-batch, clip 0.2/0.28, dual clip 3; masked tokens still count in the denominator.
3. TAS takes min and max over the mini-batch (there one GPU's share of it) and the mean over the micro-batch.
4. No box is no answer; the code's grader reads it as "None", which a gold answer "None" then equals.

Expect (results/vppo.json; 5 seeds, 500,000 tokens): accuracy 0.447 -> 0.795, random mask 0.761 (+0.034 [+0.018,
+0.051]), DAPO 0.797 (-0.001 [-0.015, +0.012]): the mask beats chance, not DAPO. S_t is 27 times higher on what only
the picture can tell.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from PIL import Image, ImageFilter

from common.args import CommonArgs, parse_args
from common.errors import SightRLError, main_guard

if TYPE_CHECKING:
    from torch import Tensor

    from common.data import Sample
    from common.rollout import Rollout


@dataclass
class Args(CommonArgs):
    preset: Literal["tiny", "paper-7b", "paper-8b", "paper-32b"] = "tiny"
    """Defaults: tiny is for a laptop, the others have the published values. What you type wins."""
    variant: Literal["dapo", "grpo"] = "dapo"
    """What VPPO builds on: dapo (published) or grpo without dynamic sampling (the paper's Table 5)."""

    # ---- VPPO
    mask_source: Literal["dependency", "random", "entropy", "none"] = "dependency"
    """TGF: what chooses the tokens that learn. Published: dependency; Table 4: random, entropy; none: all."""
    keep_share: float = 0.4
    """k: share of a response's tokens that learn, rounded up. Published: 0.4 (0.2 for entropy)."""
    soft_mask: bool = False
    """Table 6: weights sigmoid(z-score of S_t - c) with mean k instead of a hard mask. Published: off."""
    tas: bool = True
    """TAS: scale the advantage by alpha, which grows with a response's mean dependency. Published: on."""
    beta_min: float = 0.9
    """beta_min: smallest alpha. Published: 0.9."""
    beta_max: float = 0.0
    """beta_max: largest alpha; 0: such that alpha's mean is 1 (published); Table 3: 1.1, 1.2."""
    dependency: Literal["k3", "prob_drop"] = "k3"
    """S_t: exp(d) - d - 1 with d = log p(damaged) - log p (published), or how far p falls (Table 12)."""
    perturbation: Literal["patches", "noise", "blur", "grey"] = "patches"
    """I': patches blackens 14x14 cells (published); Table 11: noise sigma 189, blur radius 6, all grey."""
    blacken_prob: float = 0.5
    """Probability that a cell is blackened. Published: 0.5."""
    perturb_each: Literal["response", "group"] = "response"
    """A fresh damaged picture for every response (published), or one per group: about G times less work."""

    # ---- rollout
    group_size: int = 8
    """G: responses per prompt. 8 in TRL, VPPO, Vision-SR1 and most VLM papers; 5 in EasyR1, 16 in DAPO."""
    prompts_per_step: int = 16
    """Prompts whose groups are used in one step. 384 in VPPO, 512 in EasyR1."""
    max_new_tokens: int = 80
    """L_max: longest response in tokens. Published: 2048 (7B), 4096 (32B), 8192 (Qwen3-VL-8B)."""
    temperature: float = 1.0
    """Sampling temperature; training scores the same distribution. 1.0 in TRL, verl and EasyR1."""
    top_p: float = 1.0
    """Sample only from the smallest set of tokens with this much probability. 1.0, in VPPO and Vision-SR1 0.99."""
    rollout_rows: int = 0
    """Responses decoded at the same time; 0: all of a rollout. Bounds the memory for keys and values."""

    # ---- which groups are kept (dynamic sampling)
    filter_groups: Literal["off", "mean", "std"] = "mean"
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
    entropy_coef: float = 0.06
    """Weight of an entropy penalty -mean log p of the sampled tokens. Published: 0.06,
    Qwen3-VL-8B 0.12."""

    # ---- update
    mini_batch_prompts: int = 0
    """Prompts per optimiser step; 0: all of them, one optimiser step per rollout. 128 of 384 in VPPO."""
    micro_tokens: int = 16384
    """Tokens per forward pass, prompts included: bounds the memory, and is the micro-batch over which TAS averages."""
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
    "paper-7b": dict(  # how VPPO (arXiv 2510.09285) and its GRPO and DAPO baselines train a 7B model
        model="Qwen/Qwen2.5-VL-7B-Instruct", data="hf:chamber111/VPPO_ViRL39K_train",
        columns="question=problem", min_pixels=200_704, max_pixels=1_003_520, gradient_checkpointing=True,
        gpus=8, steps=200, lr=1e-6, prompts_per_step=384, mini_batch_prompts=128, max_new_tokens=2048,
        top_p=0.99, max_rounds=100, recompute_old_logps=True, rollout_rows=256, micro_tokens=32_768,
        checkpoint_every=5),
}  # fmt: skip
PAPER = PRESETS["paper-7b"]
PRESETS["paper-8b"] = PAPER | dict(  # the official Qwen3-VL script
    model="Qwen/Qwen3-VL-8B-Instruct", max_new_tokens=8192, steps=130, entropy_coef=0.12)  # fmt: skip
PRESETS["paper-32b"] = PAPER | dict(model="Qwen/Qwen2.5-VL-32B-Instruct", max_new_tokens=4096, gpus=32)
VARIANTS = {"dapo": {}, "grpo": dict(filter_groups="off", clip_high=0.2)}  # 0.2 (inferred)


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


def perturb(image: np.ndarray, args: Args, rng: np.random.Generator) -> np.ndarray:
    """I': a damaged copy of a picture as the model sees it, uint8 [H, W, 3]."""
    height, width, _ = image.shape
    if args.perturbation == "patches":
        black = rng.random((-(-height // 14), -(-width // 14))) < args.blacken_prob  # cells, ragged ones too
        black = black.repeat(14, axis=0).repeat(14, axis=1)[:height, :width]
        return np.where(black[..., None], np.uint8(0), image)
    if args.perturbation == "noise":
        return (image + rng.normal(0.0, 189.0, image.shape)).clip(0, 255).astype(np.uint8)
    if args.perturbation == "blur":
        return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(6)))
    return np.full_like(image, 128)


def dependency_scores(args: Args, aug_logps: Tensor, old_logps: Tensor) -> Tensor:
    """S_t >= 0, [N, T]: how much the damaged picture changes the probability of the sampled token."""
    if args.dependency == "prob_drop":
        return (old_logps.exp() - aug_logps.exp()).clamp(min=0)
    d = (aug_logps - old_logps).clamp(-20, 20)
    return (d.exp() - d - 1).clamp(0, 10)


def token_mask(args: Args, scores: Tensor, mask: Tensor) -> Tensor:
    """m_t, [N, T]: 1 on the ceil(k n_i) highest scores of every response, else 0; or the soft weights."""
    lengths = mask.sum(dim=1, keepdim=True)  # [N, 1]
    if args.soft_mask:
        mean = (scores * mask).sum(dim=1, keepdim=True) / lengths
        std = ((scores - mean).square() * mask).sum(dim=1, keepdim=True).div(lengths).sqrt()
        z, c = (scores - mean) / (std + 1e-6), 0 * mean  # [N, T], [N, 1]
        for i in range(40):  # bisection for c in [-64, 64]: the mean weight falls as c rises
            share = ((z - c).sigmoid() * mask).sum(dim=1, keepdim=True) / lengths
            c = c + 32 / 2**i * (share - args.keep_share).sign()
        return (z - c).sigmoid() * mask
    k = (lengths.double() * args.keep_share - 1e-9).ceil()  # [N, 1]; the 1e-9 keeps 0.07 * 100 at 7
    order = scores.masked_fill(~mask, float("-inf")).argsort(dim=1, descending=True, stable=True)
    return ((order.argsort(dim=1) < k) & mask).to(scores.dtype)  # rank < k


def trajectory_scale(args: Args, mean_scores: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """alpha_i, [n], mean 1 by default; low, high: range of the mean dependencies in the mini-batch."""
    if not args.tas or high - low <= 1e-6:
        return mean_scores * 0 + 1
    n = ((mean_scores - low) / (high - low)).clamp(0, 1)
    beta_max = args.beta_max or args.beta_min + (1 - args.beta_min) / (n.mean() + 1e-8)
    return args.beta_min + n * (beta_max - args.beta_min)


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
    run = Run(args, "vppo", args.steps)
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
        if args.recompute_old_logps or args.mask_source == "entropy":
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

        # ---- 3b. VPPO: the same tokens once more under a damaged picture; which tokens noticed?
        with run.phase("perturbed"), torch.no_grad():
            rng = np.random.default_rng(run.rng.getrandbits(64))
            copies = G if args.perturb_each == "response" else 1
            damaged = [vlm.replace_images(prompt, [perturb(image, args, rng) for image in prompt.images])
                       for prompt in batch.prompts for _ in range(copies)]  # fmt: skip
            aug_logps, _ = response_logps(
                vlm, damaged, batch.tokens, batch.mask, entropy=False,
                temperature=args.temperature, max_tokens=args.micro_tokens)  # fmt: skip
            dependency = dependency_scores(args, aug_logps, old_logps) * batch.mask  # S_t, [N, T]
            mean_dependency = dependency.sum(dim=1) / batch.mask.sum(dim=1)  # [N]
            chooser = dependency if args.mask_source != "entropy" else old_entropy
            if args.mask_source == "random":
                chooser = torch.rand(dependency.shape, generator=run.generator).to(dependency.device)
            kept = batch.mask.float() if args.mask_source == "none" else token_mask(args, chooser, batch.mask)
            by_token_kind(averages, vlm, batch, samples, dependency=dependency, kept=kept)

        # ---- 4. Update. A mini-batch is one optimiser step; micro-batches only bound the memory.
        loss_mask = batch.mask & ~(batch.truncated[:, None] & args.mask_truncated)  # [N, T]
        with run.phase("update"):
            lengths = group_lengths(batch)  # tokens per group, prompt included
            mini_size = args.mini_batch_prompts or len(chosen)
            for start in range(0, len(chosen), mini_size):
                mini = range(start, min(start + mini_size, len(chosen)))  # groups
                mini_rows = group_rows(mini, G)
                low, high = mean_dependency[mini_rows].aminmax()
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
                    alpha = trajectory_scale(args, mean_dependency[rows], low, high)[:, None]  # [n, 1]
                    A, m = A * alpha, kept[rows, :width]  # TAS comes before the clip, TGF after it
                    losses = policy_losses(args, logps, log_ratio, A) * m
                    averages.add_range("tas/alpha", alpha)
                    averages.add("variance_ratio", (m * alpha).square(), mask)  # against DAPO, in theory
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
            run.log_rollouts(step, rollout_records(
                vlm, batch, samples, terms, advantages, dependency=dependency, kept=kept > 0.5))  # fmt: skip
        if run.checkpoint_due(step) or budget.spent():
            run.checkpoint(step, vlm, optimizer, stream=stream, budget=budget)
        if run.stop_requested:
            return

    after = evaluate_held_out(run, vlm, args, "after", args.max_new_tokens)
    conclude(run, before, after, budget, stream)


if __name__ == "__main__":
    main_guard(main, parse_args(Args, __doc__, preset=PRESETS, variant=VARIANTS))

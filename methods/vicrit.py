"""ViCrit: finding the one wrong phrase in a caption, a verifiable proxy task for visual perception.

Paper: arXiv 2506.10128 (June 2025). Code: github si0wang/ViCrit (evaluation only).

    python methods/vicrit.py                        # the tiny VLM on the micro-world, minutes on a laptop
    python methods/vicrit.py --images blank         # the control: the same captions and errors, no pictures
    python methods/vicrit.py --preset paper-7b --data jsonl:captions.jsonl       # columns image and caption

No rule can grade a long caption, but a rule can tell whether a model finds the one phrase of it that was exchanged for
a similar, wrong one; and to find it, all of the picture must be looked at. The policy sees the picture and the wrong
caption, thinks, and names the phrase. R = 0.9 for the phrase + 0.1 for the format, A = R - group mean.
Published (mean of 8 benchmarks): Qwen2.5-VL-7B 50.6 -> 53.0, 72B 59.8 -> 63.2; captions taught by SFT: 48.4 and 60.8.
Differences from the paper:
1. An answer must hold the changed words and may copy words beside them, as published, but at most --extra-words beyond
   the phrase: without a limit, to copy the whole caption is always right. The released scorer, which takes the first
   changed word anywhere in the answer, is reported beside it.
2. The paper's errors in PixMo-Cap were written by GPT-4; here a rule exchanges a word (common/tasks/corrupt.py). Errors
   from elsewhere need the columns original_noun_phrases and changed_noun_phrases, and
   --columns question=changed_caption,answer=changed_noun_phrases.
3. Prompt, group size, batch, lengths, temperature, learning rate, clip, KL, steps and framework: unknown, (inferred).

Expect (results/vicrit.json; 5 seeds, 300,000 tokens): other questions 0.433 -> 0.490, trained without pictures 0.412
(+0.077 [+0.039, +0.123]), captions by SFT 0.514 (-0.024 [-0.053, +0.004]; in the paper SFT is worse); wrong phrases
found 0.133 -> 0.192, with other or blank pictures 0.04.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Literal

from PIL import Image

from common.args import CommonArgs, parse_args
from common.errors import SightRLError, main_guard

if TYPE_CHECKING:
    from torch import Tensor

    from common.data import Sample
    from common.rollout import Rollout
    from common.run import Run
    from common.tasks.captions import WrongCaptions
    from common.vlm import VLM


@dataclass
class Args(CommonArgs):
    preset: Literal["tiny", "paper-7b", "paper-72b"] = "tiny"
    """A set of defaults: tiny is for a laptop, the others have the published values. What you type wins."""
    columns: str = "question=caption,answer=caption"
    """Columns of a table: the caption, named twice; or the changed caption, and the phrase to find."""

    # ---- ViCrit
    ask: str = "Caption: {caption}\nOne phrase of the caption is wrong. Which one?"
    """The question; {caption} is replaced, and --prompt is put around it."""
    extra_words: int = 2
    """Words beside the wrong phrase that an answer may copy. Published: any number."""
    images: Literal["own", "shuffled", "blank"] = "own"
    """Controls: another caption's picture or a grey one; the reward must fall to the guess rate."""

    # ---- rollout
    group_size: int = 8
    """G: responses per prompt. Published: not given; 8 (inferred)."""
    prompts_per_step: int = 16
    """Prompts whose groups are used in one step. Published: not given; 512 (inferred)."""
    max_new_tokens: int = 144
    """L_max: longest response in tokens. Published: not found; 2048 in evaluation, and here (inferred)."""
    temperature: float = 1.0
    """Sampling temperature; training scores the same distribution. Published: not found; 1.0 (inferred)."""
    top_p: float = 1.0
    """Sample only from the smallest set of tokens with this much probability. Published: not given."""
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
    format_weight: float = 0.1
    """Share of the reward for a think block followed by a boxed answer. Published: 0.1."""

    # ---- advantage
    advantage: Literal["group_std", "batch_std", "mean_only", "rloo", "passk"] = "mean_only"
    """A: R - group mean, divided by the group's std (GRPO), the batch's, nothing (ViCrit); RLOO; pass@k."""
    advantage_eps: float = 1e-6
    """Added to the std. 1e-6 in verl, EasyR1 and what is built on them, 1e-4 in TRL."""

    # ---- loss
    clip_low: float = 0.2
    """eps: r is clipped at 1 - eps. Published: not given; 0.2 (inferred)."""
    clip_high: float = 0.2
    """eps: r is clipped at 1 + eps. Published: the same eps as below."""
    dual_clip: float = 0.0
    """c: for A < 0 the loss is at most -c A; 0: off. Published: off."""
    loss_mean: Literal["token_mean", "token_mean_micro", "sequence_mean", "sequence_mean_token_share",
                       "sequence_sum", "token_sum_over_budget",
                       "token_sum_over_width"] = "token_mean"  # fmt: skip
    """How token losses are averaged: DAPO token_mean, GRPO's paper sequence_mean, Dr.GRPO
    token_sum_over_budget."""
    mask_truncated: bool = False
    """Leave responses that hit L_max out of the loss (TRL option)."""
    kl_coef: float = 0.0
    """beta: weight of the KL to the starting model. Published: not given; 0 (inferred)."""
    kl_kind: Literal["k1", "k2", "k3"] = "k3"
    """Estimator of that KL. k3 in TRL, verl and EasyR1."""
    entropy_coef: float = 0.0
    """Weight of an entropy penalty -mean log p of the sampled tokens. 0 in most papers, VPPO and its
    baselines 0.06."""

    # ---- update
    mini_batch_prompts: int = 0
    """Prompts per optimiser step; 0: all, one optimiser step per rollout. Published: not found; 128 (inferred)."""
    micro_tokens: int = 16384
    """Tokens per forward pass, prompts included: bounds the memory, does not change the result."""
    recompute_old_logps: bool = False
    """Old log-probabilities from a separate pass (as in verl, EasyR1) instead of those recorded while sampling."""
    lr: float = 1e-4
    """Learning rate of AdamW, constant. Published: not given; 1e-6 (inferred)."""
    warmup_steps: int = 0
    """Steps over which the learning rate rises to its value. 0 in VPPO and most VLM papers."""
    weight_decay: float = 0.01
    """Weight decay of AdamW. 0.01 in VPPO and most VLM papers."""
    max_grad_norm: float = 1.0
    """The gradient is scaled down to this norm. 1.0 in VPPO and most VLM papers."""


PRESETS = {
    "tiny": {},  # the defaults above
    "paper-7b": dict(  # of the training only the model and the GPUs are published, the rest is customary (inferred)
        model="Qwen/Qwen2.5-VL-7B-Instruct", data="hf:anthracite-org/pixmo-cap-images",  # PixMo-Cap with its pictures
        min_pixels=224 * 224, max_pixels=1280 * 28 * 28, gradient_checkpointing=True, gpus=8, steps=1000, lr=1e-6,
        prompts_per_step=512, mini_batch_prompts=128, max_new_tokens=2048, recompute_old_logps=True, rollout_rows=256,
        micro_tokens=32_768, checkpoint_every=5, extra_words=4, bad_rows="skip",
        ask="This caption was written for the picture, but exactly one noun phrase in it was exchanged and now says "
            "what the picture does not show:\n{caption}\nCompare every detail with the picture and answer with the "
            "wrong phrase alone, copied from the caption."),
}  # fmt: skip
PRESETS["paper-72b"] = PRESETS["paper-7b"] | dict(model="Qwen/Qwen2.5-VL-72B-Instruct")


def check(args: Args) -> None:
    """Refuse options that make no sense together, before anything slow happens."""
    if "{caption}" not in args.ask or args.extra_words < 0:
        raise SightRLError("--ask needs {caption} where the caption goes, and --extra-words must not be negative.")
    if args.group_size < 2:
        raise SightRLError("--group-size must be at least 2: responses are compared within their group.")
    if args.prompts_per_step < 1 or args.max_new_tokens < 1:
        raise SightRLError("--prompts-per-step and --max-new-tokens must be at least 1.")
    if not args.temperature > 0 or not 0 < args.top_p <= 1:
        raise SightRLError("--temperature must be above 0 and --top-p in (0, 1].")


def with_pictures(samples: list[Sample], which: str) -> list[Sample]:
    """The samples with their own pictures, those of the sample before (shuffled), or grey ones of the same size."""
    if which == "own":
        return samples
    pictures = [sample.load_images() for sample in samples]
    if which == "shuffled":
        pictures = [*pictures[-1:], *pictures[:-1]]
    else:
        pictures = [[Image.new("RGB", image.size, (128, 128, 128)) for image in part] for part in pictures]
    return [replace(s, images=p, meta=s.meta | {"size": None}) for s, p in zip(samples, pictures, strict=True)]


def finds(args: Args, text: str, sample: Sample) -> float:
    """r_answer: 1.0 if the response's last box names the wrong phrase, by the paper's rule (section 3.2)."""
    from common.rewards import last_boxed
    from common.tasks.captions import names_error

    m, said = sample.meta, last_boxed(text) or ""
    return float(names_error(said, m["caption"], m["right"], m["wrong"], start=m.get("start"), extra=args.extra_words))


def score(args: Args, batch: Rollout, samples: list[Sample]) -> tuple[Tensor, dict[str, Tensor]]:
    """(phrase found 0/1, reward terms), float [N] each; the reward R is the sum of the terms."""
    from common.rewards import has_format

    tensor = batch.logps.new_tensor
    asked = [sample for sample in samples for _ in range(args.group_size)]  # row n belongs to sample n // G
    right = tensor([finds(args, text, sample) for text, sample in zip(batch.texts, asked, strict=True)])  # [N]
    terms = {"answer": right * (1 - args.format_weight)}
    if args.format_weight:
        terms["format"] = args.format_weight * tensor([float(has_format(text)) for text in batch.texts])
    return right, terms


def examine(run: Run, vlm: VLM, args: Args, captions: WrongCaptions, name: str) -> tuple[list, dict[str, float]]:
    """Before or after training: ([answers to held-out questions, answers about wrong captions], {effect: value})."""
    from common.tasks.captions import released_correct
    from common.training import evaluate_held_out, held_out

    if not args.eval_questions:
        return [None, None], {}
    plain, n, score = held_out(args), args.max_new_tokens, partial(finds, args)
    wrong = {split: list(filter(None, map(captions.question, part))) for split, part in plain.items()}
    asks = any(s.question != s.answer for part in plain.values() for s in part)  # else there are only captions
    questions = evaluate_held_out(run, vlm, args, name, n, samples=plain) if asks else None
    own = evaluate_held_out(run, vlm, args, name, n, score=score, samples=wrong, kind="own")
    probes = {which: evaluate_held_out(run, vlm, args, name, n, score=score, kind=which,
                                       samples={"test": with_pictures(wrong["test"], which)})
              for which in ("shuffled", "blank")}  # fmt: skip
    if own is None:  # not process 0
        return [questions, own], {}
    pairs = zip(own.records, (s.meta for part in wrong.values() for s in part), strict=True)
    verdicts = [released_correct(text, m["right"], m["wrong"]) for r, m in pairs for text in r["responses"]]
    effects = {f"finds {kind} errors": stats["avg@k"] for kind, stats in own.summary()["tasks"].items()}
    effects |= {f"finds errors, {which} pictures": p.summary()["overall"]["avg@k"] for which, p in probes.items()}
    return [questions, own], effects | {"finds errors, released scorer": sum(verdicts) / len(verdicts)}


def advantages_of(args: Args, rewards: Tensor) -> Tensor:
    """A from rewards R, float [N] each."""
    from common import grpo

    if args.advantage == "rloo":
        return grpo.rloo_advantages(rewards, args.group_size)
    if args.advantage == "passk":
        return grpo.passk_advantages(rewards, args.group_size, args.advantage_eps)
    scale = {"group_std": "group", "batch_std": "batch", "mean_only": "none"}[args.advantage]
    return grpo.group_advantages(rewards, args.group_size, scale, args.advantage_eps)


def main(args: Args) -> None:
    if args.dry_run:
        from common.plan import print_plan

        return print_plan(args, PRESETS[args.preset])
    check(args)

    # The slow imports wait until here, so that --help and --dry-run answer at once.
    import torch

    from common.distributed import share
    from common.grpo import (
        aggregate,
        clipped_loss,
        clipped_tokens,
        has_spread,
        keep_groups,
        kl_estimate,
        token_log_ratio,
    )
    from common.logprob import micro_batches, response_logps
    from common.rollout import concat_rollouts, rollout
    from common.run import Run
    from common.tasks.captions import WrongCaptions
    from common.training import (
        Averages,
        Budget,
        ask,
        batch_records,
        conclude,
        group_lengths,
        group_rows,
        load_model,
        load_stream,
        make_prompt,
        optimizer_step,
        questions,
        rollout_metrics,
        rollout_records,
        set_learning_rate,
    )

    # ------------------------------------------------------------------------------------------------ set-up
    run = Run(args, "vicrit", args.steps)
    vlm = load_model(args, needs_reference=args.kl_coef != 0)
    optimizer = torch.optim.AdamW(vlm.trainable(), lr=args.lr, weight_decay=args.weight_decay, fused=True)
    stream = load_stream(args)
    captions = stream.dataset.samples = WrongCaptions(stream.dataset.samples, args.ask)
    budget = Budget(args.budget_tokens, args.max_minutes)
    before, old_effects = examine(run, vlm, args, captions, "before")
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
                asked = with_pictures(stream.next(args.gen_prompts or args.prompts_per_step), args.images)
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
                    log_ratio = token_log_ratio(logps, old)  # [n, T]
                    losses = clipped_loss(log_ratio, A, args.clip_low, args.clip_high, args.dual_clip)
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
                val = {"val": list(filter(None, map(captions.question, questions(args, "val"))))}
                found = ask(vlm, args, val, 1, args.max_new_tokens, 0.0, partial(finds, args))
                metrics |= {"val/accuracy": found.summary()["overall"]["avg@k"]}
        run.log(step, metrics)
        if metrics.get("updates/skipped"):  # NaN or infinity: nothing was learned, see why
            run.save_batch(step, batch_records(vlm, batch, samples, terms, advantages))
        if args.log_rollouts_every and step % args.log_rollouts_every == 0:
            run.log_rollouts(step, rollout_records(vlm, batch, samples, terms, advantages))
        if run.checkpoint_due(step) or budget.spent():
            run.checkpoint(step, vlm, optimizer, stream=stream, budget=budget)
        if run.stop_requested:
            return

    after, effects = examine(run, vlm, args, captions, "after")
    effects = {name: (old_effects[name], value) for name, value in effects.items() if name in old_effects}
    conclude(run, before[0], after[0], budget, stream, own=(before[1], after[1]), effects=effects)


if __name__ == "__main__":
    main_guard(main, parse_args(Args, __doc__, preset=PRESETS))

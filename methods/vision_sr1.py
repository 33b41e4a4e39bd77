"""Vision-SR1: a vision-language model rewards itself for descriptions that suffice to answer.

Paper: arXiv 2508.19652 (Aug 2025; a later version is at ICLR 2026). Code: github zli12321/Vision-SR1.

    python methods/vision_sr1.py                          # the tiny VLM on the micro-world, minutes on a laptop
    python methods/vision_sr1.py --no-self-reward         # the control: GRPO in the same layout
    python methods/vision_sr1.py --preset paper-7b --data hf:LMMs-Lab-Turtle/Vision-SR1-47K

A response first describes the picture, then thinks, then answers. The same model is asked the question a second time
with the description INSTEAD of the picture; if it is right again, the description was enough and is rewarded. So a
right answer beside an insufficient description (a language shortcut) is worth less, and no external judge is needed.
Published (later version, mean of 7 benchmarks, Qwen2.5-VL-7B): before 41.5, Vision-R1 on the same data 50.7,
Vision-SR1 52.2; language shortcut rate 10.1 without and 9.8 with the self-reward.
Differences from the paper:
1. --combine sum is the official code: one summed reward, second-pass tokens not trained. --combine separate is the
   later version: own z-scores over the rollout batch, both passes trained, each with weight 0.5; its unpublished alpha
   and KL weight are those of the code, and its loss keeps the clip and the token mean (inferred).
2. A response without a description block is itself read in the second pass, its answer included, as in the code;
   --no-leak shows nothing instead.
3. Token mean over the mini-batch (the code averages means of micro-batches), old log-probabilities as sampled.

Expect (results/vision_sr1.json; 5 seeds, 300,000 tokens): language shortcuts 0.238 -> 0.174, without the self-reward
0.369; facts in the descriptions 0.491 -> 0.720 (0.454). Accuracy 0.464 -> 0.615 (0.681): the second pass takes a third
of the updates that these tokens buy.
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
    preset: Literal["tiny", "paper-3b", "paper-7b"] = "tiny"
    """A set of defaults: tiny is for a laptop, the others have the published values. What you type wins."""

    # ---- Vision-SR1
    prompt: str = ("{question}\nDescribe the picture inside <description> </description>, think inside <think> "
                   "</think>, then give the final answer in \\boxed{}.")  # fmt: skip
    """First pass: text around the question. It must ask for these tags and a boxed answer."""
    second_prompt: str = ("Description: {description}\n{question}\nThink inside <think> </think>, then give the final "
                          "answer in \\boxed{}.")  # fmt: skip
    """Second pass, without the picture: text around {description} and {question}."""
    self_reward: bool = True
    """Ask a second time and reward right answers; off: GRPO in the same layout (Published: its ablation)."""
    self_weight: float = 1.0
    """Weight of the second answer's accuracy in the summed reward. Published: 1.0."""
    combine: Literal["sum", "separate"] = "sum"
    """One summed reward (published code), or each pass with its own reward, advantage and loss (later paper)."""
    leak: bool = True
    """A response without a description is read whole in the second pass. Published: on; off: nothing is read."""

    # ---- rollout
    group_size: int = 8
    """G: responses per prompt. 8 in TRL, VPPO, Vision-SR1 and most VLM papers; 5 in EasyR1, 16 in DAPO."""
    prompts_per_step: int = 16
    """Prompts whose groups are used in one step. 384 in VPPO, 512 in EasyR1."""
    max_new_tokens: int = 128
    """L_max: longest response in tokens. 2048 in most VLM papers."""
    temperature: float = 1.0
    """Sampling temperature; training scores the same distribution. 1.0 in TRL, verl and EasyR1."""
    top_p: float = 1.0
    """Sample only from the smallest set of tokens with this much probability. 1.0, in VPPO and Vision-SR1 0.99."""
    rollout_rows: int = 0
    """Responses decoded at the same time; 0: all of a rollout. Bounds the memory for keys and values."""

    # ---- reward
    format_weight: float = 0.1
    """alpha: share of the reward for the layout: description, think, box, nothing after it. Published: 0.1."""

    # ---- advantage
    advantage_eps: float = 1e-6
    """Added to the std. 1e-6 in verl, EasyR1 and what is built on them, 1e-4 in TRL."""

    # ---- loss
    clip_low: float = 0.2
    """eps_low: r is clipped at 1 - eps_low. 0.2 in the libraries, 3e-4 in GSPO."""
    clip_high: float = 0.3
    """eps_high: r is clipped at 1 + eps_high. Published: 0.3."""
    dual_clip: float = 3.0
    """c: for A < 0 the loss is at most -c A; 0: off. 3 in verl, EasyR1 and VPPO, 10 in DAPO's script."""
    kl_coef: float = 0.01
    """beta: weight of the KL (k3) to the starting model. Published: 0.01."""

    # ---- update
    mini_batch_prompts: int = 0
    """Prompts per optimiser step; 0: all of them, one optimiser step per rollout. Published: 128 of 512."""
    micro_tokens: int = 16384
    """Tokens per forward pass, prompts included: bounds the memory, does not change the result."""
    lr: float = 1e-4
    """Learning rate of AdamW, constant. 1e-6 in most VLM papers."""
    warmup_steps: int = 0
    """Steps over which the learning rate rises to its value. 0 in VPPO and most VLM papers."""
    weight_decay: float = 0.01
    """Weight decay of AdamW. 0.01 in VPPO and most VLM papers."""
    max_grad_norm: float = 1.0
    """The gradient is scaled down to this norm. 1.0 in VPPO and most VLM papers."""


PRESETS = {
    "tiny": dict(steps=80),  # a step asks twice; the rest: the defaults above
    "paper-7b": dict(  # the RL stage; it starts from a supervised warm-up on 9,000 such responses
        model="LMMs-Lab-Turtle/Qwen-2.5VL-7B-Cold-Start", data="hf:LMMs-Lab-Turtle/Vision-SR1-47K",
        columns="question=problem", min_pixels=262_144, max_pixels=4_194_304, gradient_checkpointing=True,
        gpus=8, steps=90, lr=1e-6, prompts_per_step=512, mini_batch_prompts=128, max_new_tokens=2048,
        top_p=0.99, rollout_rows=256, micro_tokens=32_768, checkpoint_every=5,
        prompt="{question}\nDescribe between <description> and </description> all that the answer depends on, for one "
        "who cannot see the image. Then reason between <think> and </think>. End with one word or phrase in \\boxed{}.",
        second_prompt="An image is described thus: {description}\n{question}\nReason between <think> and </think>, "
        "then give one word or phrase in \\boxed{}."),
}  # fmt: skip
PRESETS["paper-3b"] = PRESETS["paper-7b"] | dict(model="LMMs-Lab-Turtle/Qwen-2.5VL-3B-Cold-Start")


def check(args: Args) -> None:
    """Refuse options that make no sense together, before anything slow happens."""
    if args.group_size < 2:
        raise SightRLError("--group-size must be at least 2: responses are compared within their group.")
    if args.prompts_per_step < 1 or args.max_new_tokens < 1:
        raise SightRLError("--prompts-per-step and --max-new-tokens must be at least 1.")
    if not args.temperature > 0 or not 0 < args.top_p <= 1:
        raise SightRLError("--temperature must be above 0 and --top-p in (0, 1].")


def has_layout(text: str) -> bool:
    r"""Whether the whole response is a description block, a think block and \boxed{...}, in this order."""
    from common.rewards import squeeze_tags

    text = squeeze_tags(text).strip()  # no blanks around tags
    described = text.find("</description><think>") if text.startswith("<description>") else -1
    return described >= 0 and text.find("</think>\\boxed{", described) >= 0 and text.endswith("}")


def score(args: Args, batch: Rollout, asked: list[Sample]) -> tuple[Tensor, dict[str, Tensor]]:
    """(graded right 0/1, reward terms), float [N] each, of one pass. asked: the sample of every row."""
    from common.rewards import accuracy, has_format

    tensor = batch.logps.new_tensor
    layout = has_layout if batch.group_size > 1 else has_format  # second pass: think, box
    right = tensor([accuracy(text, sample) for text, sample in zip(batch.texts, asked, strict=True)])  # [N]
    # The code: 0.9 acc + 0.1 format (+ 1.0 acc of the second pass). The later paper: acc + alpha format.
    terms = {"accuracy": right * (1 - args.format_weight if args.combine == "sum" else 1)}
    return right, terms | {"format": args.format_weight * tensor([float(layout(text)) for text in batch.texts])}


def advantages_of(args: Args, rewards: Tensor) -> Tensor:
    """A from rewards R, float [N] each: by group (GRPO), or z-scores over the rollout batch (later paper, eq. 6)."""
    from common import grpo

    if args.combine == "sum":
        return grpo.group_advantages(rewards, args.group_size, "group", args.advantage_eps)
    return (rewards - rewards.mean()) / (rewards.std(correction=0) + args.advantage_eps)


def main(args: Args) -> None:
    if args.dry_run:
        from common.plan import print_plan

        return print_plan(args, PRESETS[args.preset])
    check(args)

    # The slow imports wait until here, so that --help and --dry-run answer at once.
    import torch

    from common.distributed import share
    from common.grpo import aggregate, clipped_loss, clipped_tokens, kl_estimate, token_log_ratio
    from common.logprob import micro_batches, response_logps
    from common.rewards import block
    from common.rollout import rollout
    from common.run import Run
    from common.training import (
        Averages,
        Budget,
        batch_records,
        conclude,
        description_effects,
        evaluate_held_out,
        group_lengths,
        group_rows,
        load_model,
        load_stream,
        make_prompt,
        make_text_prompt,
        optimizer_step,
        rollout_metrics,
        rollout_records,
        set_learning_rate,
        validate,
    )

    # ------------------------------------------------------------------------------------------------ set-up
    run = Run(args, "vision_sr1", args.steps)
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

        # ---- 1. First pass: see, think, answer; grade.
        with run.phase("data"):
            samples = stream.next(args.prompts_per_step)
            prompts = [make_prompt(vlm, sample, args.prompt) for sample in samples]
        options = dict(max_new_tokens=args.max_new_tokens, temperature=args.temperature, top_p=args.top_p,
                       generator=run.generator, max_rows=args.rollout_rows or None)  # fmt: skip
        with run.phase("rollout"):
            batch = rollout(vlm, prompts, G, **options)  # N rows
        asked, averages = [sample for sample in samples for _ in range(G)], Averages()  # row n: sample n // G
        with run.phase("reward"):
            right, terms = score(args, batch, asked)  # [N], {term: [N]}
        passes = [(batch, terms)]

        # ---- 2. Second pass: each response's question once more, its description instead of the picture.
        if args.self_reward:
            with run.phase("second_pass"):
                described = [block(text, "description") for text in batch.texts]
                prompts = [make_text_prompt(vlm, args.second_prompt, question=sample.question,
                                            description=text if d is None and args.leak else d or "")
                           for sample, d, text in zip(asked, described, batch.texts, strict=True)]  # fmt: skip
                second = rollout(vlm, prompts, 1, **options)  # N rows too
                told, second_terms = score(args, second, asked)
            averages.add("second/accuracy", told)
            averages.add("second/no_description", told.new_tensor([d is None for d in described]))
            if args.combine == "sum":
                terms["self"] = args.self_weight * told  # R = 0.9 acc + 0.1 format + 1.0 acc of the second pass
            else:
                passes.append((second, second_terms))
        metrics = rollout_metrics(batch, samples, right, terms)
        metrics["tokens"] += int(second.mask.sum()) if args.self_reward else 0
        budget.tokens += metrics["tokens"]
        advantages = [advantages_of(args, sum(part_terms.values())) for _, part_terms in passes]  # [N] per trained pass

        # ---- 3. Log-probabilities of the reference.
        ref_logps = []
        if args.kl_coef:
            with run.phase("ref_logps"), torch.no_grad(), vlm.reference():
                ref_logps = [response_logps(  # [N, T] per trained pass
                    vlm, one.prompts, one.tokens, one.mask, features=one.features, entropy=False,
                    temperature=args.temperature, max_tokens=args.micro_tokens)[0] for one, _ in passes]  # fmt: skip

        # ---- 4. Update. A mini-batch is one optimiser step; micro-batches only bound the memory.
        with run.phase("update"):
            mini_size = args.mini_batch_prompts or len(samples)
            for start in range(0, len(samples), mini_size):
                work = []  # (pass, groups of a micro-batch, response tokens of the mini-batch)
                for which, (one, _) in enumerate(passes):
                    each = len(one.prompts) // len(samples)  # groups per sample: 1, in the second pass G
                    mini = range(start * each, min(start + mini_size, len(samples)) * each)  # groups
                    tokens, lengths = int(one.mask[group_rows(mini, one.group_size)].sum()), group_lengths(one)
                    micros = micro_batches([lengths[i] for i in mini], args.micro_tokens)
                    work += [(which, [mini[i] for i in micro], tokens) for micro in micros]
                for which, groups, tokens in share(work):
                    one = passes[which][0]
                    part, rows = one.select(groups), group_rows(groups, one.group_size)  # n rows
                    width = part.tokens.shape[1]  # T of this micro-batch
                    mask, old, A = part.mask, part.logps, advantages[which][rows, None]
                    logps, entropy = response_logps(  # [n, T] each
                        vlm, part.prompts, part.tokens, part.mask, features=part.features,
                        temperature=args.temperature)  # fmt: skip
                    log_ratio = token_log_ratio(logps, old)  # [n, T]
                    losses = clipped_loss(log_ratio, A, args.clip_low, args.clip_high, args.dual_clip)
                    if args.kl_coef:
                        kl = kl_estimate(logps, ref_logps[which][rows, :width])
                        losses = losses + args.kl_coef * kl
                        averages.add("kl", kl, mask)
                    loss = aggregate(losses, mask, "token_mean", tokens=tokens) / len(passes)  # 0.5 each if separate
                    loss.backward()
                    if start == 0:  # no update yet: both must agree
                        averages.add_max("logp_mismatch", (logps - old).abs())
                    averages.add("entropy", entropy, mask)
                    below, above = clipped_tokens(log_ratio, A, args.clip_low, args.clip_high)
                    averages.add("clip/low", below, mask)
                    averages.add("clip/high", above, mask)
                    averages.add("loss", loss * len(work))
                optimizer_step(vlm, optimizer, args.max_grad_norm, averages)

        # ---- 5. Log, evaluate, checkpoint.
        metrics |= averages.result()
        metrics |= {"lr": optimizer.param_groups[0]["lr"], "tokens_generated": budget.tokens}
        if args.eval_every and (step + 1) % args.eval_every == 0:
            with run.phase("evaluate"):
                metrics |= validate(vlm, args, args.max_new_tokens)
        run.log(step, metrics)
        if metrics.get("updates/skipped"):  # NaN or infinity: nothing was learned, see why
            run.save_batch(step, batch_records(vlm, batch, samples, terms, advantages[0]))
        if args.log_rollouts_every and step % args.log_rollouts_every == 0:
            run.log_rollouts(step, rollout_records(vlm, batch, samples, terms, advantages[0]))
        if run.checkpoint_due(step) or budget.spent():
            run.checkpoint(step, vlm, optimizer, stream=stream, budget=budget)
        if run.stop_requested:
            return

    after = evaluate_held_out(run, vlm, args, "after", args.max_new_tokens)
    effects = description_effects(args, before, after, lambda text: block(text, "description"))
    conclude(run, before, after, budget, stream, effects=effects)


if __name__ == "__main__":
    main_guard(main, parse_args(Args, __doc__, preset=PRESETS))

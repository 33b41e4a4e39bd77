"""Visionary-R1: caption first, reason later; captions are rewarded if they alone give the answer.

Paper: arXiv 2505.14677 (May 2025). Code: github maifoundations/Visionary-R1.

    python methods/visionary_r1.py                        # the tiny VLM on the micro-world, minutes on a laptop
    python methods/visionary_r1.py --preset tiny-think    # the second call may think; its control: --caption-weight 0
    python methods/visionary_r1.py --preset paper-3b --data jsonl:qa.jsonl

GRPO on easy questions learns shortcuts. Here a response must describe the picture, then think, then answer, and the
same model must find the answer in the caption alone; to one that answers or reasons it says "Hacking Sample", which
earns nothing. The KL falls along a cosine. Published (MathVista, 3B): base 61.5, SFT 54.6, GRPO 61.8, this 69.4.
Differences from the paper:
1. --bugs has those of the code: "growing" (the caption term counts n times at step n), "shifted" (see below). No top_k.
2. The KL falls over the run, in the code over one epoch. Boxes and the micro-world are graded as in other methods.

Expect (results/visionary_r1.json; 5 seeds, 300,000 tokens): facts in captions 0.497, tiny-think 0.734, without
0.488; accuracy 0.602, 0.562, 0.616. A word from a perfect caption is right in 19 %, from an empty one in 17 %: noise.
"""

from __future__ import annotations

import math
import re
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
    preset: Literal["tiny", "tiny-think", "paper-3b"] = "tiny"
    """A set of defaults: tiny and tiny-think (see Expect) are for a laptop, paper-3b has the published values."""

    # ---- Visionary-R1
    prompt: str = ("{question}\nDescribe the picture inside <info> </info>, think inside <think> </think>, then give "
                   "the final answer inside <answer> </answer>.")  # fmt: skip
    """Text around the question. It must ask for these three blocks in this order."""
    caption_prompt: str = ("Caption: {caption}\n{question}\nAnswer in one word or phrase. If the caption holds an "
                           "answer or reasoning, write Hacking Sample.")  # fmt: skip
    """Second call, without the picture: text around {caption} and {question}."""
    caption_weight: float = 0.1
    """Weight of the caption reward: the second reply is right. Published: 0.1; 0: no second call."""
    checker: Literal["model", "rule"] = "model"
    """Who finds answers in captions: the model's "Hacking Sample" (published), or a rule of the micro-world too."""
    anneal: bool = True
    """Let beta fall along a cosine to 0 at the end of the run. Published: on."""
    bugs: Literal["none", "growing", "shifted", "growing+shifted"] = "none"
    """Bugs of the code; shifted: rewards go to the first responses, captioned or not. Published: both, unintended."""

    # ---- rollout
    group_size: int = 8
    """G: responses per prompt. 8 in TRL, VPPO, Vision-SR1 and most VLM papers; 5 in EasyR1, 16 in DAPO."""
    prompts_per_step: int = 16
    """Prompts whose groups are used in one step. 384 in VPPO, 512 in EasyR1."""
    max_new_tokens: int = 128
    """L_max: longest response in tokens. Published: 768 (a script; of the final run not found)."""
    temperature: float = 1.0
    """Sampling temperature; training scores the same distribution. Published: 0.9 (inferred)."""
    top_p: float = 0.9
    """Sample only from the smallest set of tokens with this much probability. Published: 0.9."""
    rollout_rows: int = 0
    """Responses decoded at the same time; 0: all of a rollout. Bounds the memory for keys and values."""

    # ---- advantage
    advantage_eps: float = 1e-4
    """Added to the std. 1e-6 in verl, EasyR1 and what is built on them, 1e-4 in TRL."""

    # ---- loss
    kl_coef: float = 0.04
    """beta: weight of the KL to the starting model, at the start. Published: 0.04."""
    kl_kind: Literal["k1", "k2", "k3"] = "k3"
    """Estimator of that KL. k3 in TRL, verl and EasyR1."""

    # ---- update
    mini_batch_prompts: int = 0
    """Prompts per optimiser step; 0: all of them, one optimiser step per rollout. Published: all."""
    micro_tokens: int = 16384
    """Tokens per forward pass, prompts included: bounds the memory, does not change the result."""
    lr: float = 1e-4
    """Learning rate of AdamW, constant. Published: 5e-7."""
    warmup_steps: int = 0
    """Steps over which the learning rate rises to its value. 0 in VPPO and most VLM papers."""
    weight_decay: float = 0.01
    """Weight decay of AdamW. 0.01 in VPPO and most VLM papers."""
    max_grad_norm: float = 1.0
    """The gradient is scaled down to this norm. 1.0 in VPPO and most VLM papers."""


PRESETS = {
    "tiny": dict(steps=80),  # a step asks twice; the rest: the defaults above
    "tiny-think": dict(steps=80, caption_weight=1.0, caption_prompt="Description: {caption}\n{question}\nThink inside "
                       "<think> </think>, then give the final answer in \\boxed{}."),
    "paper-3b": dict(
        model="Qwen/Qwen2.5-VL-3B-Instruct", data="jsonl:train.jsonl", max_pixels=2_359_296, gpus=8, lr=5e-7,
        gradient_checkpointing=True, steps=4875, prompts_per_step=56, max_new_tokens=768, temperature=0.9,
        rollout_rows=256, micro_tokens=32_768, checkpoint_every=100, weight_decay=0.0,
        prompt="{question}\nFirst describe everything in the image between <info> and </info>, then reason step by "
        "step between <think> and </think>, then answer in one word or phrase between <answer> and </answer>."),
}  # fmt: skip
HACKING = "Hacking Sample"


def check(args: Args) -> None:
    """Refuse options that make no sense together, before anything slow happens."""
    if args.group_size < 2:
        raise SightRLError("--group-size must be at least 2: responses are compared within their group.")
    if args.prompts_per_step < 1 or args.max_new_tokens < 1:
        raise SightRLError("--prompts-per-step and --max-new-tokens must be at least 1.")
    if not args.temperature > 0 or not 0 < args.top_p <= 1:
        raise SightRLError("--temperature must be above 0 and --top-p in (0, 1].")


def has_layout(text: str) -> bool:
    """Whether the whole response is <info>, ONE white-space character, <think>, any white space, <answer>."""
    thought = re.compile(r"</info>\s<think>").search(text, 6) if text.startswith("<info>") else None
    answer = re.compile(r"</think>\s*<answer>").search(text, thought.end()) if thought else None
    return answer is not None and text.endswith("</answer>")


def caption_of(text: str) -> str | None:
    """The first info block that opens and closes on one line; None where there is none."""
    from common.rewards import block

    return next((caption for line in text.split("\n") if (caption := block(line, "info")) is not None), None)


def accuracy(text: str, sample: Sample) -> float:
    """accuracy_reward: how right the first answer block is by the rule for the sample's problem type, in [0, 1]."""
    from common import overlap, rewards

    answer, gold = rewards.block(text, "answer") or "", sample.answer
    kind = sample.meta.get("problem_type", sample.task)
    if "things" in sample.meta or sample.answer_type in ("box", "boxes"):
        return rewards.accuracy(f"\\boxed{{{answer}}}", sample)
    if kind == "free-form":
        return overlap.rouge(answer, gold)
    try:
        number, read = float(gold), re.search(r"[+-]?(?:[0-9]{1,50}(?:\.[0-9]{1,50})?|\.[0-9]{1,50})", answer)
        return float(read is not None and float(read[0]) / (100 if answer.endswith("%") else 1) == number)
    except ValueError:  # the gold answer is no number
        return overlap.anls(answer, gold) if kind == "OCR" else float(answer.lower() == gold.lower())


def score(args: Args, batch: Rollout, samples: list[Sample]) -> tuple[Tensor, dict[str, Tensor]]:
    """(graded right 0/1, reward terms), float [N] each; the reward R is the sum of the terms."""
    tensor = batch.logps.new_tensor
    asked = [sample for sample in samples for _ in range(args.group_size)]  # row n belongs to sample n // G
    right = tensor([accuracy(text, sample) for text, sample in zip(batch.texts, asked, strict=True)])  # [N]
    terms = {"accuracy": right, "format": tensor([float(has_layout(text)) for text in batch.texts])}
    return right, terms


def caption_rewards(args: Args, captions: dict[int, str], replies: list[str], samples: list[Sample], call: int) -> list:
    """One per response, for the reply to its caption. captions: row -> caption where there is one; call: 1, 2, ..."""
    from common.world.entails import leaks

    G, rewards = args.group_size, [0.0] * (args.group_size * len(samples))
    weight = args.caption_weight * (call if "growing" in args.bugs else 1)
    for i, (n, reply) in enumerate(zip(captions, replies, strict=True)):
        place = n // G * G + sum(m // G == n // G for m in list(captions)[:i]) if "shifted" in args.bugs else n
        refused = reply.strip() == HACKING or (args.checker == "rule" and leaks(captions[n], samples[n // G].answer))
        rewards[place] = 0.0 if refused else weight * accuracy(f"<answer>{reply}</answer>", samples[n // G])
    return rewards


def beta_at(args: Args, progress: float) -> float:
    """beta_t = beta / 2 (1 + cos(pi progress)); progress from 0 to 1."""
    return args.kl_coef / 2 * (1 + math.cos(math.pi * min(1.0, progress))) if args.anneal else args.kl_coef


def main(args: Args) -> None:
    if args.dry_run:
        from common.plan import print_plan

        return print_plan(args, PRESETS[args.preset])
    check(args)

    # The slow imports wait until here, so that --help and --dry-run answer at once.
    import torch

    from common.distributed import share
    from common.grpo import aggregate, group_advantages, has_spread, kl_estimate
    from common.logprob import micro_batches, response_logps
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
    run = Run(args, "visionary_r1", args.steps)
    vlm = load_model(args, needs_reference=args.kl_coef != 0)
    optimizer = torch.optim.AdamW(vlm.trainable(), lr=args.lr, weight_decay=args.weight_decay, fused=True)
    stream = load_stream(args)
    budget = Budget(args.budget_tokens, args.max_minutes)
    before = evaluate_held_out(run, vlm, args, "before", args.max_new_tokens, score=accuracy)
    first_step = run.resume(vlm, optimizer, stream=stream, budget=budget)
    G = args.group_size

    for step in range(first_step, args.steps):
        if budget.spent():
            break
        set_learning_rate(optimizer, args.lr * min(1.0, (step + 1) / max(1, args.warmup_steps)))

        # ---- 1. Caption, think, answer; grade.
        with run.phase("data"):
            samples = stream.next(args.prompts_per_step)
            prompts = [make_prompt(vlm, sample, args.prompt) for sample in samples]
        options = dict(max_new_tokens=args.max_new_tokens, temperature=args.temperature, top_p=args.top_p,
                       generator=run.generator, max_rows=args.rollout_rows or None)  # fmt: skip
        with run.phase("rollout"):
            batch = rollout(vlm, prompts, G, **options)  # N rows
        with run.phase("reward"):
            right, terms = score(args, batch, samples)  # [N], {term: [N]}

        # ---- 2. Second call: the question once more, with the caption in the picture's place.
        captions = {n: caption for n, text in enumerate(batch.texts) if (caption := caption_of(text)) is not None}
        averages, extra = Averages(), 0
        if captions and args.caption_weight:
            with run.phase("second_call"):
                prompts = [make_text_prompt(vlm, args.caption_prompt, caption=text, question=samples[n // G].question)
                           for n, text in captions.items()]  # fmt: skip
                replies = rollout(vlm, prompts, 1, **options)
            terms["caption"] = right.new_tensor(caption_rewards(args, captions, replies.texts, samples, step + 1))
            averages.add("caption/hacking", right.new_tensor([text.strip() == HACKING for text in replies.texts]))
            extra = int(replies.mask.sum())
        metrics = rollout_metrics(batch, samples, right, terms)
        metrics["tokens"] += extra
        beta = beta_at(args, max(step / args.steps, budget.tokens / (args.budget_tokens or math.inf)))
        budget.tokens += metrics["tokens"]
        rewards = sum(terms.values())  # [N]
        advantages = group_advantages(rewards, G, eps=args.advantage_eps)  # [N]
        chosen, spread = range(len(samples)), has_spread(rewards, G)  # all groups; [prompts]

        # ---- 3. Log-probabilities of the sampling policy and of the reference.
        old_logps = batch.logps  # [N, T], recorded while sampling
        if args.kl_coef:
            with run.phase("ref_logps"), torch.no_grad(), vlm.reference():
                ref_logps, _ = response_logps(
                    vlm, batch.prompts, batch.tokens, batch.mask, features=batch.features, entropy=False,
                    temperature=args.temperature, max_tokens=args.micro_tokens)  # fmt: skip

        # ---- 4. Update. A mini-batch is one optimiser step; micro-batches only bound the memory.
        with run.phase("update"):
            lengths = group_lengths(batch)  # tokens per group, prompt included
            mini_size = args.mini_batch_prompts or len(chosen)
            for start in range(0, len(chosen), mini_size):
                mini = range(start, min(start + mini_size, len(chosen)))  # groups
                mini_rows = group_rows(mini, G)
                # Without spread A = 0: no gradient, unless another term of the loss wants one.
                active = [i for i in mini if spread[i] or args.kl_coef]
                micros = micro_batches([lengths[i] for i in active], args.micro_tokens)
                for micro in share(micros):
                    groups = [active[i] for i in micro]
                    part, rows = batch.select(groups), group_rows(groups, G)  # n rows
                    width = part.tokens.shape[1]  # T of this micro-batch
                    mask, old, A = part.mask, old_logps[rows, :width], advantages[rows, None]
                    logps, entropy = response_logps(  # [n, T] each
                        vlm, part.prompts, part.tokens, part.mask, features=part.features,
                        temperature=args.temperature)  # fmt: skip
                    losses = -(logps - logps.detach()).exp() * A  # no clipping: the ratio is 1, its gradient is not 0
                    if args.kl_coef:
                        kl = kl_estimate(logps, ref_logps[rows, :width], args.kl_kind, inner=None, outer=None)
                        losses = losses + beta * kl
                        averages.add("kl", kl, mask)
                    loss = aggregate(losses, mask, "sequence_mean", sequences=len(mini_rows))
                    loss.backward()
                    if start == 0:  # no update yet: both must agree
                        averages.add_max("logp_mismatch", (logps - old).abs())
                    averages.add("entropy", entropy, mask)
                    averages.add("loss", loss * len(micros))
                if micros:
                    optimizer_step(vlm, optimizer, args.max_grad_norm, averages)

        # ---- 5. Log, evaluate, checkpoint.
        metrics |= averages.result()
        metrics |= {"beta": beta, "lr": optimizer.param_groups[0]["lr"], "tokens_generated": budget.tokens}
        if args.eval_every and (step + 1) % args.eval_every == 0:
            with run.phase("evaluate"):
                metrics |= validate(vlm, args, args.max_new_tokens, accuracy)
        run.log(step, metrics)
        if metrics.get("updates/skipped"):  # NaN or infinity: nothing was learned, see why
            run.save_batch(step, batch_records(vlm, batch, samples, terms, advantages))
        if args.log_rollouts_every and step % args.log_rollouts_every == 0:
            run.log_rollouts(step, rollout_records(vlm, batch, samples, terms, advantages))
        if run.checkpoint_due(step) or budget.spent():
            run.checkpoint(step, vlm, optimizer, stream=stream, budget=budget)
        if run.stop_requested:
            return

    after = evaluate_held_out(run, vlm, args, "after", args.max_new_tokens, score=accuracy)
    conclude(run, before, after, budget, stream, effects=description_effects(args, before, after, caption_of))


if __name__ == "__main__":
    main_guard(main, parse_args(Args, __doc__, preset=PRESETS))

"""SSL4RL: classic self-supervised tasks as verifiable rewards for a vision-language model.

Paper: arXiv 2510.16416 (Oct 2025). Code: github PKU-ML/SSL4RL.

    python methods/ssl4rl.py                        # the tiny VLM finds the quadrant a crop comes from
    python methods/ssl4rl.py --ssl rotation --size-leak   # the control: solved by the sizes of the pictures
    python methods/ssl4rl.py --preset paper-3b --data images:mmbench --ssl jigsaw

Pictures need no labels to ask questions about themselves: by how much was this copy turned (rotation), where does every
part belong (jigsaw), which quadrant is this crop from (position), are these two views of one picture (contrastive)?
Plain GRPO on such puzzles, made of the pictures of the target benchmark, is the whole method; the benchmark's own
questions are only asked before and after. --data takes any source of pictures; labels are never used.
Published (3B; from a secondary overview): +7.39 % on MMBench, +8.94 % on SEED-Bench; mixing does not add up.
Differences from the paper, the first two as in its official code:
1. The reward is 0 or 1 by exact match, with partial credit for jigsaw alone; no dense reward, no masked patches.
2. Token mean, clip 0.2/0.2, dual clip 3, KL to the start as part of the loss; no reward for the format.
3. A turned picture is an exact transpose. The official builder cuts out the largest upright rectangle and thereby loses
   a pixel that depends on the angle, so that the sizes alone tell the answer: --size-leak.
4. No picture is trained on and asked about (officially: the same split). The vision tower is trained (inferred).

Expect (results/ssl4rl.json; 5 seeds, 300,000 tokens): position solved 0.411 -> 0.952, other questions 0.447 -> 0.479;
contrastive at chance costs (0.386), a leak solved at 0.978 teaches nothing (0.414).
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from common.args import CommonArgs, parse_args
from common.errors import SightRLError, main_guard

if TYPE_CHECKING:
    from torch import Tensor

    from common.data import Sample
    from common.evaluation import Evaluation
    from common.rollout import Rollout
    from common.run import Run
    from common.vlm import VLM

ANSWER_PROMPT = "{question}\nThink inside <think> </think>, then give the final answer inside <answer> </answer>."
PAPER_PROMPT = "{question}\nReason in <think> </think> first. Then write only the answer in <answer> </answer>."


@dataclass
class Args(CommonArgs):
    preset: Literal["tiny", "paper-3b"] = "tiny"
    """A set of defaults: tiny is for a laptop, paper-3b has the published values. What you type wins."""

    # ---- SSL4RL
    ssl: Literal["rotation", "jigsaw", "position", "contrastive", "mix"] = "position"
    """The self-supervised task; mix: every picture becomes one of the four. Published: one task per run."""
    grid: int = 2
    """Jigsaw: the picture is cut into grid x grid parts. Published: 2; harder up to 6."""
    size_leak: bool = False
    """Rotation cut as the official builder does, square pictures stretched: sizes tell the answer. Published: on."""
    puzzle_prompt: str = ANSWER_PROMPT
    """Text around a puzzle's {question}; --prompt is for the data's own questions."""

    # ---- rollout
    group_size: int = 8
    """G: responses per prompt. Published: 5."""
    prompts_per_step: int = 16
    """Prompts whose groups are used in one step. Published: 512."""
    max_new_tokens: int = 80
    """L_max: longest response in tokens. 2048 in most VLM papers."""
    temperature: float = 1.0
    """Sampling temperature; training scores the same distribution. 1.0 in TRL, verl and EasyR1."""
    top_p: float = 1.0
    """Sample only from the smallest set of tokens with this much probability. 1.0, in VPPO and Vision-SR1 0.99."""
    rollout_rows: int = 0
    """Responses decoded at the same time; 0: all of a rollout. Bounds the memory for keys and values."""

    # ---- advantage
    advantage_eps: float = 1e-6
    """Added to the std. 1e-6 in verl, EasyR1 and what is built on them, 1e-4 in TRL."""

    # ---- loss
    clip_low: float = 0.2
    """eps_low: r is clipped at 1 - eps_low. 0.2 in the libraries, 3e-4 in GSPO."""
    clip_high: float = 0.2
    """eps_high: r is clipped at 1 + eps_high. 0.2 in GRPO, 0.28 in DAPO and VPPO, 0.3 in EasyR1, 4e-4 in GSPO."""
    dual_clip: float = 3.0
    """c: for A < 0 the loss is at most -c A; 0: off. 3 in verl, EasyR1 and VPPO, 10 in DAPO's script."""
    kl_coef: float = 0.01
    """beta: weight of the KL to the starting model. Published: 0.01."""
    kl_kind: Literal["k1", "k2", "k3"] = "k3"
    """Estimator of that KL. k3 in TRL, verl and EasyR1."""

    # ---- update
    mini_batch_prompts: int = 0
    """Prompts per optimiser step; 0: all of them, one optimiser step per rollout. Published: 128 of 512."""
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
    "paper-3b": dict(  # images:mmbench is a folder with the pictures of MMBench
        model="Qwen/Qwen2.5-VL-3B-Instruct", data="images:mmbench", puzzle_prompt=PAPER_PROMPT, gpus=8, steps=300,
        lr=1e-6, group_size=5, prompts_per_step=512, mini_batch_prompts=128, max_new_tokens=2048, checkpoint_every=5,
        recompute_old_logps=True, rollout_rows=256, micro_tokens=32_768, gradient_checkpointing=True),
}  # fmt: skip


def check(args: Args) -> None:
    """Refuse options that make no sense together, before anything slow happens."""
    if args.group_size < 2:
        raise SightRLError("--group-size must be at least 2: responses are compared within their group.")
    if args.prompts_per_step < 1 or args.max_new_tokens < 1:
        raise SightRLError("--prompts-per-step and --max-new-tokens must be at least 1.")
    if not args.temperature > 0 or not 0 < args.top_p <= 1:
        raise SightRLError("--temperature must be above 0 and --top-p in (0, 1].")
    if not 2 <= args.grid <= 6:
        raise SightRLError("--grid must be 2 to 6: the parts of a jigsaw along each side.")
    if args.eval_every and args.data.startswith("images:"):
        raise SightRLError("--eval-every asks the data's questions, but images:DIR has none; leave it out.")


def puzzles_of(args: Args, samples: list[Sample]) -> list[Sample]:
    """Questions about the samples' first pictures that nobody had to label; the sample's id decides which.

    Pictures that are too small are left out; raises SightRLError if all are.
    """
    from common.data import Sample
    from common.tasks import puzzles

    made = []
    seen = [(sample, sample.load_images()[0]) for sample in samples if sample.images]
    for i, (sample, image) in enumerate(seen):
        rng = random.Random(sample.id)
        task = rng.choice(puzzles.TASKS) if args.ssl == "mix" else args.ssl
        one = puzzles.make(task, image, seen[i - 1][1], rng, args.grid, args.size_leak)
        if one is not None:
            name, ask, answer = f"{sample.id}:{task}", one["question"], one["answer"]
            made.append(Sample(name, ask, answer, task, one["images"], where=sample.where))
    if not made:
        raise SightRLError(f"none of {len(samples)} rows of {args.data} has a picture for --ssl {args.ssl}; it must be "
                           "70 x 70 pixels or more (contrastive: and differ from the one before it).")  # fmt: skip
    return made


def reward(text: str, puzzle: Sample) -> float:
    """R in [0, 1]: 1 if the answer is exactly one of the gold strings; jigsaw: the share of places that are right."""
    from common.rewards import block

    answer = block(text.rpartition("assistant\n")[2], "answer")  # the first block after the last marker
    gold = puzzle.answer.split(",")
    if answer is None or puzzle.task != "jigsaw":
        return float(answer in gold)
    said = [part.strip().removeprefix("+").lstrip("0") for part in answer.split(",")]  # whole numbers, else wrong
    return sum(a == b for a, b in zip(said, gold, strict=False)) / len(gold)


def score(args: Args, batch: Rollout, samples: list[Sample]) -> tuple[Tensor, dict[str, Tensor]]:
    """(graded right 0/1, reward terms), float [N] each; the reward R is the sum of the terms."""
    asked = [sample for sample in samples for _ in range(args.group_size)]  # row n belongs to sample n // G
    rewards = batch.logps.new_tensor([reward(text, one) for text, one in zip(batch.texts, asked, strict=True)])
    return (rewards == 1).to(rewards.dtype), {"puzzle": rewards}


def evaluate_both(run: Run, vlm: VLM, args: Args, name: str) -> tuple[Evaluation | None, Evaluation | None]:
    """Held-out questions of the data, None if it has none (images:DIR), and puzzles about held-out pictures."""
    from common.training import evaluate_held_out, make_prompt, questions

    rows = questions(args, "test") if args.eval_questions else []
    if not rows:
        return None, None
    vqa = evaluate_held_out(run, vlm, args, name, args.max_new_tokens) if rows[0].question else None
    own = evaluate_held_out(run, vlm, args, name, args.max_new_tokens, samples={"test": puzzles_of(args, rows)},
                            make=lambda vlm, one: make_prompt(vlm, one, args.puzzle_prompt), score=reward,
                            kind="own")  # fmt: skip
    return vqa, own


def effects_of(before: tuple, after: tuple) -> dict[str, tuple[float, float]]:
    """Puzzles solved, and questions about where things are against questions about what they are."""
    from common.tasks import puzzles

    effects = {}
    for name, which, tasks in (("VQA where", 0, ("locate", "relation")), ("VQA what", 0, ("color", "shape", "number")),
                               *((f"{task} solved", 1, (task,)) for task in puzzles.TASKS)):  # fmt: skip
        scores = [[s == 1 for r in e[which].records if r["task"] in tasks for s in r["scores"]]
                  for e in (before, after) if e[which]]  # fmt: skip
        if len(scores) == 2 and scores[0]:
            effects[name] = tuple(sum(part) / len(part) for part in scores)
    return effects


def main(args: Args) -> None:
    if args.dry_run:
        from common.plan import print_plan

        return print_plan(args, PRESETS[args.preset])
    check(args)

    # The slow imports wait until here, so that --help and --dry-run answer at once.
    import torch

    from common import grpo
    from common.distributed import share
    from common.grpo import aggregate, clipped_tokens, has_spread, kl_estimate
    from common.logprob import micro_batches, response_logps
    from common.rollout import rollout
    from common.run import Run
    from common.training import (
        Averages,
        Budget,
        batch_records,
        conclude,
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
    run = Run(args, "ssl4rl", args.steps)
    vlm = load_model(args, needs_reference=args.kl_coef != 0)
    optimizer = torch.optim.AdamW(vlm.trainable(), lr=args.lr, weight_decay=args.weight_decay, fused=True)
    stream = load_stream(args)
    budget = Budget(args.budget_tokens, args.max_minutes)
    before = evaluate_both(run, vlm, args, "before")
    first_step = run.resume(vlm, optimizer, stream=stream, budget=budget)
    G = args.group_size

    for step in range(first_step, args.steps):
        if budget.spent():
            break
        set_learning_rate(optimizer, args.lr * min(1.0, (step + 1) / max(1, args.warmup_steps)))

        # ---- 1. Make puzzles of the next pictures, ask, answer, grade.
        with run.phase("data"):
            samples = puzzles_of(args, stream.next(args.prompts_per_step))
            prompts = [make_prompt(vlm, sample, args.puzzle_prompt) for sample in samples]
        with run.phase("rollout"):
            batch = rollout(vlm, prompts, G, max_new_tokens=args.max_new_tokens,
                            temperature=args.temperature, top_p=args.top_p, generator=run.generator,
                            max_rows=args.rollout_rows or None)  # fmt: skip
        with run.phase("reward"):
            right, terms = score(args, batch, samples)  # [N], {term: [N]}
        metrics = rollout_metrics(batch, samples, right, terms)
        budget.tokens += metrics["tokens"]
        rewards = sum(terms.values())  # [N]

        # ---- 2. A = (R - group mean) / (group std + eps).
        advantages = grpo.group_advantages(rewards, G, eps=args.advantage_eps)  # [N]
        spread, chosen = has_spread(rewards, G), range(len(samples))  # [prompts]

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
        with run.phase("update"):
            lengths = group_lengths(batch)  # tokens per group, prompt included
            mini_size = args.mini_batch_prompts or len(chosen)
            for start in range(0, len(chosen), mini_size):
                mini = range(start, min(start + mini_size, len(chosen)))  # groups
                mini_rows = group_rows(mini, G)
                tokens = int(batch.mask[mini_rows].sum())
                # Without spread A = 0: no gradient, unless another term of the loss wants one.
                active = [i for i in mini if spread[i] or args.kl_coef]
                micros = micro_batches([lengths[i] for i in active], args.micro_tokens)
                for micro in share(micros):
                    groups = [active[i] for i in micro]
                    part, rows = batch.select(groups), group_rows(groups, G)  # n rows
                    width = part.tokens.shape[1]  # T of this micro-batch
                    mask, old, A = batch.mask[rows, :width], old_logps[rows, :width], advantages[rows, None]
                    logps, entropy = response_logps(  # [n, T] each
                        vlm, part.prompts, part.tokens, part.mask, features=part.features,
                        temperature=args.temperature)  # fmt: skip
                    log_ratio = grpo.token_log_ratio(logps, old)  # [n, T]
                    losses = grpo.clipped_loss(log_ratio, A, args.clip_low, args.clip_high, args.dual_clip)
                    if args.kl_coef:
                        kl = kl_estimate(logps, ref_logps[rows, :width], args.kl_kind)
                        losses = losses + args.kl_coef * kl
                        averages.add("kl", kl, mask)
                    loss = aggregate(losses, mask, "token_mean", tokens=tokens, sequences=len(mini_rows))
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
        metrics |= {"lr": optimizer.param_groups[0]["lr"], "tokens_generated": budget.tokens}
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

    after = evaluate_both(run, vlm, args, "after")
    conclude(run, before[0], after[0], budget, stream, own=(before[1], after[1]), effects=effects_of(before, after))


if __name__ == "__main__":
    main_guard(main, parse_args(Args, __doc__, preset=PRESETS))

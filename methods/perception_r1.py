r"""Perception-R1: a visual perception reward, from a judge who counts the facts that a response states.

Paper: arXiv 2506.07218 (June 2025, ICLR 2026). Code: github tongxiao2002/Perception-R1.

    python methods/perception_r1.py                        # the tiny VLM on the micro-world, minutes on a laptop
    python methods/perception_r1.py --visual-weight 0      # the control: the same without the visual reward
    python methods/perception_r1.py --preset paper-7b --judge http://localhost:8000/v1,model=Qwen2.5-32B-Instruct

Rewarding right answers alone teaches to reason, not to look. So every question comes with the visual facts that a
correct solution rests on, and a text-only judge says for each fact whether the response states it. The share stated is
a dense reward beside accuracy and layout; repeated n-grams are punished, lest the policy recites.
Published (MathVista, MathVerse, WeMath; 7B): base 68.1, 47.4, 61.4; GRPO on accuracy alone 73.3, 51.3, 69.5 (second
hand); Perception-R1 74.2, 54.3, 72.0. McNemar's p of perceived items: accuracy alone 0.69, Perception-R1 0.04.
Differences from the paper, 1 and 2 as in its official code:
1. No KL term; dual clip 0.2/0.3; token mean within every micro-batch, then the mean of the micro-batches.
2. math-verify reads the whole response, because the required tags stand on lines of their own.
3. A response that the judge fails to answer states no fact; the official code stops. The prompts are in our words.
4. How 1,442 training items were chosen is not published; --make-facts keeps those whose solution is right.

Expect (results/perception_r1.json; 5 seeds, 300,000 tokens): facts stated 0.449 -> 0.890, without visual reward 0.868
(+0.023 [+0.015, +0.029]); accuracy 0.452 -> 0.775 and 0.766 (+0.009 [-0.007, +0.024]). Unlike in the paper, accuracy
alone teaches to look: in this world nothing else is right.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from common.args import CommonArgs, parse_args
from common.errors import SightRLError, main_guard

if TYPE_CHECKING:
    from torch import Tensor

    from common.data import Sample
    from common.judge import Judge
    from common.rollout import Rollout


@dataclass
class Args(CommonArgs):
    preset: Literal["tiny", "paper-7b"] = "tiny"
    """A set of defaults: tiny is for a laptop, paper-7b has the published values. What you type wins."""
    prompt: str = (
        "{question}\nThink inside <think> </think>, then answer inside <answer> </answer> in \\boxed{}, "
        "every tag on its own line."
    )
    """Text around the question; {question} is replaced. Published: asks for the same layout."""

    # ---- Perception-R1
    judge: str = "oracle"
    """Says which facts are stated: oracle (micro-world), http://HOST/v1,model=NAME or local:FOLDER-or-ID."""
    visual_weight: float = 0.7
    """gamma: weight of the share of facts stated; 0: no visual reward. Published: 0.7 (0.1 to 0.9 alike)."""
    judge_noise: float = 0.0
    """Share of the judge's verdicts that are flipped, to test robustness. Published: 0."""
    ngram_weight: float = 2.0
    """Weight of the penalty for repeated n-grams; 0: none. Published: 2.0."""
    ngram_size: int = 4
    """n: words in an n-gram. Published: 20, for responses a hundred times as long as the tiny VLM's."""
    grader: Literal["rule", "math_verify"] = "rule"
    """Accuracy: by rule (words, numbers, boxes), or math-verify on the response. Published: math_verify."""
    make_facts: str = ""
    """Do not train, write this file: rows of --data jsonl:FILE whose "response" is right, and their facts."""

    # ---- rollout
    group_size: int = 8
    """G: responses per prompt. Published: 8."""
    prompts_per_step: int = 16
    """Prompts whose groups are used in one step. Published: 128."""
    max_new_tokens: int = 80
    """L_max: longest response in tokens. Published: 4096."""
    temperature: float = 1.0
    """Sampling temperature; training scores the same distribution. 1.0 in TRL, verl and EasyR1."""
    top_p: float = 1.0
    """Sample only from the smallest set of tokens with this much probability. Published: not found; 1.0 (inferred)."""
    rollout_rows: int = 0
    """Responses decoded at the same time; 0: all of a rollout. Bounds the memory for keys and values."""

    # ---- which groups are kept (dynamic sampling)
    filter_groups: Literal["off", "mean", "std"] = "off"
    """DAPO: sample until enough groups have low < mean accuracy < high (mean), or unequal rewards (std). Here: off."""
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
    """alpha: share of accuracy's reward that is given for the layout. Published: 0.1."""

    # ---- advantage
    advantage: Literal["group_std", "batch_std", "mean_only", "rloo", "passk"] = "group_std"
    """A: R - group mean, divided by the group's std (GRPO), the batch's, nothing (Dr.GRPO); RLOO; pass@k."""
    advantage_eps: float = 1e-6
    """Added to the std. Published: 1e-6."""

    # ---- loss
    ratio: Literal["token", "sequence"] = "token"
    """Probability ratio r per token, or one per response: exp of the mean log-ratio (GSPO)."""
    loss: Literal["clip", "cispo"] = "clip"
    """clip: max(-A r, -A clip(r)); cispo: the clipped ratio is a constant weight on A log p."""
    clip_low: float = 0.2
    """eps_low: r is clipped at 1 - eps_low. Published: 0.2."""
    clip_high: float = 0.3
    """eps_high: r is clipped at 1 + eps_high. Published: 0.3."""
    dual_clip: float = 3.0
    """c: for A < 0 the loss is at most -c A; 0: off. Published: 3."""
    loss_mean: Literal["token_mean", "token_mean_micro", "sequence_mean", "sequence_mean_token_share",
                       "sequence_sum", "token_sum_over_budget",
                       "token_sum_over_width"] = "token_mean_micro"  # fmt: skip
    """How token losses are averaged. Published: token_mean_micro (code), sequence_mean (paper)."""
    mask_truncated: bool = False
    """Leave responses that hit L_max out of the loss (TRL option)."""
    kl_coef: float = 0.0
    """beta: weight of the KL to the starting model. Published: 0 (code; the paper has the term)."""
    kl_kind: Literal["k1", "k2", "k3"] = "k3"
    """Estimator of that KL. Published: not found."""
    entropy_coef: float = 0.0
    """Weight of an entropy penalty -mean log p of the sampled tokens. Published: not found."""

    # ---- update
    mini_batch_prompts: int = 0
    """Prompts per optimiser step; 0: all of them, one optimiser step per rollout. Published: 0."""
    micro_tokens: int = 16384
    """Tokens per forward pass, prompts included: bounds the memory, and with token_mean_micro weighs the tokens."""
    recompute_old_logps: bool = False
    """Old log-probabilities from a separate pass (as in verl, EasyR1) instead of those recorded while sampling."""
    lr: float = 1e-4
    """Learning rate of AdamW, constant. 1e-6 in most VLM papers."""
    warmup_steps: int = 0
    """Steps over which the learning rate rises to its value. Published: 5 % of them."""
    weight_decay: float = 0.01
    """Weight decay of AdamW. Published: 1e-3."""
    max_grad_norm: float = 1.0
    """The gradient is scaled down to this norm. 1.0 in VPPO and most VLM papers."""


PRESETS = {
    "tiny": {},  # the defaults above
    "paper-7b": dict(
        model="Qwen/Qwen2.5-VL-7B-Instruct", data="hf:tongxiao2002/Perception-R1-Dataset",
        judge="http://localhost:8000/v1,model=Qwen2.5-32B-Instruct-AWQ", grader="math_verify", ngram_size=20,
        prompt="{question} Say what you see in the picture and reason step by step inside <think> </think> tags; then "
               "answer inside <answer> </answer> tags, with the result in \\boxed{}. Every tag has its own line.",
        min_pixels=3_136, max_pixels=1_806_336, gradient_checkpointing=True, gpus=8, steps=275, warmup_steps=14,
        lr=1e-6, weight_decay=1e-3, prompts_per_step=128, max_new_tokens=4096, recompute_old_logps=True,
        rollout_rows=256, micro_tokens=32_768, checkpoint_every=5),
}  # fmt: skip


def check(args: Args) -> None:
    """Refuse options that make no sense together, before anything slow happens."""
    if args.group_size < 2:
        raise SightRLError("--group-size must be at least 2: responses are compared within their group.")
    if args.prompts_per_step < 1 or args.max_new_tokens < 1:
        raise SightRLError("--prompts-per-step and --max-new-tokens must be at least 1.")
    if not args.temperature > 0 or not 0 < args.top_p <= 1:
        raise SightRLError("--temperature must be above 0 and --top-p in (0, 1].")
    if not 0 <= args.judge_noise <= 1 or args.ngram_size < 1:
        raise SightRLError("--judge-noise must be in [0, 1] and --ngram-size at least 1.")


def has_layout(text: str) -> bool:
    r"""<think>, text, </think>, <answer>, text with \boxed{something}, </answer>: line by line, nothing around it."""
    middle, end = "\n</think>\n<answer>\n", "\n</answer>"
    cut = text.find(middle, len("<think>\n"))
    boxed = text.find("\\boxed{", cut + len(middle))
    filled = text.rfind("}", boxed + len("\\boxed{") + 1, len(text) - len(end)) >= 0
    return text.startswith("<think>\n") and text.endswith(end) and cut >= 0 and boxed >= 0 and filled


def grade(args: Args, texts: list[str], samples: list[Sample]) -> list[float]:
    """1.0 or 0.0 each. math-verify reads the answer tags if they share a line, which the layout forbids, else all."""
    from common.rewards import accuracy, block
    from common.symbolic import verified

    if args.grader == "rule":
        return [accuracy(text, sample) for text, sample in zip(texts, samples, strict=True)]
    told = [next((a for line in text.split("\n") if (a := block(line, "answer")) is not None), text) for text in texts]
    return verified([sample.answer.strip() for sample in samples], [text.strip() for text in told])


def visual_rewards(args: Args, judge: Judge, texts: list[str], samples: list[Sample]) -> list[float]:
    """Share of the judged facts that are stated; a judge that stops early is not held against the response."""
    from common.data import hash_fraction
    from common.tasks.facts import verdicts_on

    rewards = []
    for text, sample, scores in zip(texts, samples, verdicts_on(judge, texts, samples), strict=True):
        lots = [hash_fraction(f"{sample.id} {k} {text}") for k in range(len(scores))]
        scores = [1 - s if lot < args.judge_noise else s for s, lot in zip(scores, lots, strict=True)]
        rewards.append(sum(scores) / (len(scores) + 1e-6))
    return rewards


def score(args: Args, judge: Judge, batch: Rollout, samples: list[Sample]) -> tuple[Tensor, dict[str, Tensor]]:
    """(graded right 0/1, reward terms), float [N] each; the reward R is the sum of the terms."""
    from common.distributed import from_main, is_main
    from common.rewards import repetition

    tensor, texts = batch.logps.new_tensor, batch.texts
    asked = [sample for sample in samples for _ in range(args.group_size)]  # row n belongs to sample n // G
    ask = visual_rewards if args.visual_weight else lambda *_: [0.0] * len(texts)
    right, visual = from_main((grade(args, texts, asked), ask(args, judge, texts, asked)) if is_main() else None)
    right = tensor(right)  # [N]
    terms = {"accuracy": right * (1 - args.format_weight)}
    terms["format"] = args.format_weight * tensor([float(has_layout(text)) for text in texts])
    terms["visual"] = args.visual_weight * tensor(visual)
    terms["ngram"] = -args.ngram_weight * tensor([repetition(text, args.ngram_size) for text in texts])
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

        return print_plan(args, PRESETS[args.preset])
    check(args)

    # The slow imports wait until here, so that --help and --dry-run answer at once.
    import torch

    from common.distributed import is_main, share
    from common.grpo import aggregate, clipped_tokens, has_spread, keep_groups, kl_estimate
    from common.judge import open_judge
    from common.logprob import micro_batches, response_logps
    from common.rollout import concat_rollouts, rollout
    from common.run import Run
    from common.tasks.facts import make_facts, oracle, perceived, perception_effects, verdicts
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
    if args.make_facts:
        return make_facts(args.judge, args.data, args.columns, args.make_facts, lambda *pair: grade(args, *pair))
    run = Run(args, "perception_r1", args.steps)
    world = args.data.split(":")[0] == "world"
    judge = None  # the first process asks for all of them
    if is_main() and (world or args.visual_weight):
        rules = dict(oracle=oracle if world else None, readable=verdicts)
        judge = open_judge(args.judge, cache=run.folder / "judge.jsonl", **rules)
    vlm = load_model(args, needs_reference=args.kl_coef != 0)
    optimizer = torch.optim.AdamW(vlm.trainable(), lr=args.lr, weight_decay=args.weight_decay, fused=True)
    stream = load_stream(args)
    budget = Budget(args.budget_tokens, args.max_minutes)
    graded = lambda text, sample: grade(args, [text], [sample])[0]  # noqa: E731
    before = evaluate_held_out(run, vlm, args, "before", args.max_new_tokens, score=graded)
    own_before = perceived(judge, args, before, run.folder / "own_before.json")
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
                part_right, part_terms = score(args, judge, part, asked)  # [n], {term: [n]}
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
                # Without spread A = 0: no gradient, unless another term of the loss wants one or its tokens count.
                counts = args.kl_coef or args.entropy_coef or args.loss_mean == "token_mean_micro"
                active = [i for i in mini if spread[i] or counts]
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
                metrics |= validate(vlm, args, args.max_new_tokens, graded)
        run.log(step, metrics)
        if metrics.get("updates/skipped"):  # NaN or infinity: nothing was learned, see why
            run.save_batch(step, batch_records(vlm, batch, samples, terms, advantages))
        if args.log_rollouts_every and step % args.log_rollouts_every == 0:
            run.log_rollouts(step, rollout_records(vlm, batch, samples, terms, advantages))
        if run.checkpoint_due(step) or budget.spent():
            run.checkpoint(step, vlm, optimizer, stream=stream, budget=budget)
        if run.stop_requested:
            return

    after = evaluate_held_out(run, vlm, args, "after", args.max_new_tokens, score=graded)
    own = own_before, perceived(judge, args, after, run.folder / "own_after.json")
    if judge and judge.lost:
        run.say(f"{judge.lost} responses got no verdict and count as stating no fact")
    effects = perception_effects(run, before, after, own, args.ngram_size)
    conclude(run, before, after, budget, stream, own=own, effects=effects)


if __name__ == "__main__":
    main_guard(main, parse_args(Args, __doc__, preset=PRESETS))

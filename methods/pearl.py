"""PEARL: look first; a checklist of facts gates and weighs what the reasoning may learn.

Paper: arXiv 2511.18437 (Nov 2025, CVPR 2026). Code: github MiliLab/PEARL (evaluation only).

    python methods/pearl.py                         # the tiny VLM on the micro-world, minutes on a laptop
    python methods/pearl.py --checklist dense       # the control: facts that the answer does not rest on
    python methods/pearl.py --preset paper-7b --data jsonl:virl39k_with_checklists.jsonl

Every item has a checklist: short sub-questions about the picture that a rule can grade. A step asks all checklists
first (one prompt each, answered directly). Their mean score is a gate (at 0 the item is not reasoned about), a weight
on the reasoning advantage (at most 0.5) and a reason to keep the item, and they train: J = J(A_r) + 0.1 J(A_p).
Second hand (mean of six sets; base, GRPO, PEARL): 3B 31.8, 34.8, 39.8; 7B 40.1, 44.2, 47.9, dense checklist 45.5.
Differences from the paper, whose training code, prompts and checklists are not public:
1. Gate, weight, filter, in this order; then fresh items for those dropped (inferred). A closed gate leaves the
   perception term (inferred), but that is 0 there, as all scores are 0.
2. Weight 0 does the gate's work: --no-gate alone costs tokens; lucky updates (a right answer gains though no fact
   was right) need --no-gate --weight-cap 0. The cap 0.5 is from a secondary source (inferred).
3. Prompts, token mean per branch, clip 0.2/0.28 and dual clip 3 are those of grpo.py (inferred).

Expect (results/pearl.json; 5 seeds, 300,000 tokens): wrong facts behind right answers 0.793 -> 0.387, without gate,
weight and perception term 0.691, with a dense checklist 0.534; lucky updates 0, without the gate 5 %. Accuracy 0.447
-> 0.750, 0.774 without: the checklists cost a quarter of the updates.
"""

from __future__ import annotations

import json
import random
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from common.args import CommonArgs, parse_args
from common.errors import SightRLError, main_guard
from common.world.layouts import checklist, dense_checklist, numbered

if TYPE_CHECKING:
    from torch import Tensor

    from common.data import Sample
    from common.evaluation import Evaluation
    from common.rollout import Rollout


@dataclass
class Args(CommonArgs):
    preset: Literal["tiny", "paper-7b"] = "tiny"
    """A set of defaults: tiny is for a laptop, paper-7b has the published values. What you type wins."""
    variant: Literal["grpo", "dapo"] = "grpo"
    """Which member of the family: sets the defaults of the options below. What you type wins."""

    # ---- PEARL
    checklist: Literal["anchored", "dense"] = "anchored"
    """Micro-world: facts the answer rests on (published) or other facts (control). Other data: their column."""
    checklist_prompt: str = "Answer every question about the picture, one line each.\n{question}"
    """Text around the numbered sub-questions Q_p of a checklist; {question} is replaced. Published: not found."""
    gate: bool = True
    """Reason only about items with Rbar_p > 0, the mean score of their checklist. Published: on."""
    weight_cap: float = 0.5
    """A_r <- A_r min(Rbar_p, cap); 0: no weight. Published: 0.5."""
    perception_coef: float = 0.1
    """lambda: weight of the checklist branch, J = J(A_r) + lambda J(A_p). Published: 0.1."""

    # ---- rollout
    group_size: int = 8
    """G: responses per prompt, in both branches. Published: 5."""
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
    filter_groups: Literal["off", "hard", "soft"] = "soft"
    """Sample until enough items have 0 < Rbar_r < 1 (hard) or that or 0 < Rbar_p < 1 (soft). Published: soft."""
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
    advantage_eps: float = 1e-6
    """Added to the std. 1e-6 in verl, EasyR1 and what is built on them, 1e-4 in TRL."""

    # ---- loss
    clip_low: float = 0.2
    """eps_low: r is clipped at 1 - eps_low. 0.2 in the libraries, 3e-4 in GSPO."""
    clip_high: float = 0.28
    """eps_high: r is clipped at 1 + eps_high. 0.2 in GRPO, 0.28 in DAPO and VPPO, 0.3 in EasyR1, 4e-4 in GSPO."""
    dual_clip: float = 3.0
    """c: for A < 0 the loss is at most -c A; 0: off. 3 in verl, EasyR1 and VPPO, 10 in DAPO's script."""
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
    "paper-7b": dict(  # 512, 20: EasyR1's; steps, pixels, gpus: VPPO's (inferred); its checklists are not released
        model="Qwen/Qwen2.5-VL-7B-Instruct", data="hf:chamber111/VPPO_ViRL39K_train",
        columns="question=problem", min_pixels=200_704, max_pixels=1_003_520, gradient_checkpointing=True,
        gpus=8, steps=200, lr=1e-6, prompts_per_step=512, mini_batch_prompts=128, max_new_tokens=2048,
        group_size=5, max_rounds=20, recompute_old_logps=True, rollout_rows=256, micro_tokens=32_768,
        checklist_prompt="Look, do not reason: one numbered line per question, a number or a label each.\n{question}",
        checkpoint_every=5),
}  # fmt: skip
VARIANTS = {
    "grpo": {},  # token mean, 0.2/0.28, dual clip 3, no KL
    "dapo": dict(overlong_buffer=0.2, dual_clip=10.0),
}


def check(args: Args) -> None:
    """Refuse options that make no sense together, before anything slow happens."""
    if args.group_size < 2:
        raise SightRLError("--group-size must be at least 2: responses are compared within their group.")
    if args.prompts_per_step < 1 or args.max_new_tokens < 1:
        raise SightRLError("--prompts-per-step and --max-new-tokens must be at least 1.")
    if not args.temperature > 0 or not 0 < args.top_p <= 1:
        raise SightRLError("--temperature must be above 0 and --top-p in (0, 1].")


def probe_of(sample: Sample, kind: str) -> Sample:
    """The perception branch's question: all K of the checklist, which is [(question, answer), ...] in its meta."""
    try:
        pairs = [(str(row["question"]).strip(), str(row["answer"]).strip()) for row in sample.meta.get("checklist", [])]
    except (TypeError, KeyError):
        pairs = []
    if "things" in sample.meta:
        things, relevant = sample.meta["things"], sample.meta["relevant"]
        pairs = checklist(sample.task, sample.question, things, relevant)
        pairs = dense_checklist(things, relevant, random.Random(sample.id)) if kind == "dense" else pairs
    if not pairs or any("" in pair or "None" in pair for pair in pairs):
        raise SightRLError(f"{sample.where or sample.id} needs a column named checklist: [{{question, answer}}, ...].")
    meta = {name: value for name, value in sample.meta.items() if name != "things"} | {"checklist": pairs}
    questions, answers = (numbered(list(column)) for column in zip(*pairs, strict=True))
    return replace(sample, question=questions, answer=answers, answer_type="text", meta=meta)


def checklist_answers(text: str, k: int) -> list[str]:
    """Answers 1..K in "1. b2\\n2. red", "" if missing; the first of a number counts. Without numbers: line by line."""
    lines, found = [line.strip() for line in text.splitlines() if line.strip()], {}
    for line in lines:
        if match := re.match(r"([0-9]{1,3})[.):](?![0-9])", line):
            found.setdefault(int(match[1]), line[match.end() :].strip())
    return [(found or dict(enumerate(lines, 1))).get(i, "") for i in range(1, k + 1)]


def fidelity(text: str, probe: Sample) -> float:
    """R_p: share of the K sub-questions that are answered right by rule."""
    from common.rewards import grade_answer, last_boxed

    pairs = probe.meta["checklist"]
    given = checklist_answers(text, len(pairs))
    return sum(grade_answer(last_boxed(a) or a, gold) for a, (_, gold) in zip(given, pairs, strict=True)) / len(pairs)


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


def advantages_of(args: Args, rewards: Tensor, facts: Tensor) -> tuple[Tensor, Tensor]:
    """(A_r min(Rbar_p, cap), A_p), float [N] each, from R_r and R_p."""
    from common.grpo import group_advantages

    A_r, A_p = (group_advantages(R, args.group_size, eps=args.advantage_eps) for R in (rewards, facts))
    level = facts.view(-1, args.group_size).mean(dim=1).repeat_interleave(args.group_size)  # Rbar_p, [N]
    return A_r * level.clamp(max=args.weight_cap) if args.weight_cap else A_r, A_p


def wrong_facts(answers: Evaluation, looks: Evaluation) -> float:
    """Share of the right answers whose checklist is not fully right, over all pairs with a response to it."""
    pairs = [(sum(answer["scores"]), sum(s < 1 for s in look["scores"]) / len(look["scores"]))
             for answer, look in zip(answers.records, looks.records, strict=True)]  # fmt: skip
    return sum(right * wrong for right, wrong in pairs) / max(1, sum(right for right, _ in pairs))


def main(args: Args) -> None:
    if args.dry_run:
        from common.plan import print_plan

        return print_plan(args, PRESETS[args.preset] | VARIANTS[args.variant])
    check(args)

    # The slow imports wait until here, so that --help and --dry-run answer at once.
    import torch

    from common.distributed import share
    from common.grpo import clipped_loss, clipped_tokens, has_spread, keep_groups, kl_estimate, token_log_ratio
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
    run = Run(args, "pearl", args.steps)
    vlm = load_model(args, needs_reference=args.kl_coef != 0)
    optimizer = torch.optim.AdamW(vlm.trainable(), lr=args.lr, weight_decay=args.weight_decay, fused=True)
    stream = load_stream(args)
    budget = Budget(args.budget_tokens, args.max_minutes)
    before = evaluate_held_out(run, vlm, args, "before", args.max_new_tokens)
    own = dict(kind="own", make=lambda vlm, probe: make_prompt(vlm, probe, args.checklist_prompt), score=fidelity,
               samples={split: [probe_of(sample, "anchored") for sample in part]
                        for split, part in (held_out(args) if args.eval_questions else {}).items()})  # fmt: skip
    uses_facts = args.gate or args.weight_cap or args.perception_coef or args.filter_groups == "soft"
    own_before = evaluate_held_out(run, vlm, args, "before", args.max_new_tokens, **own)
    first_step = run.resume(vlm, optimizer, stream=stream, budget=budget)
    G = args.group_size

    for step in range(first_step, args.steps):
        if budget.spent():
            break
        set_learning_rate(optimizer, args.lr * min(1.0, (step + 1) / max(1, args.warmup_steps)))

        # ---- 1. Look, then think. Online filtering repeats this until enough groups can teach something.
        parts, samples, right, terms = [], [], torch.zeros(0, device=vlm.device), {}
        looks, facts, all_facts, look_tokens = [], right, right, 0
        for _ in range(args.max_rounds if args.filter_groups != "off" else 1):
            with run.phase("data"):
                asked = stream.next(args.gen_prompts or args.prompts_per_step)
                asked_probes = [probe_of(sample, args.checklist) for sample in asked]
                look_prompts = [make_prompt(vlm, probe, args.checklist_prompt) for probe in asked_probes]
                prompts = [make_prompt(vlm, sample, args.prompt) for sample in asked]
            with run.phase("perception"):
                look = rollout(vlm, look_prompts, G, max_new_tokens=args.max_new_tokens,
                               temperature=args.temperature, top_p=args.top_p, generator=run.generator,
                               max_rows=args.rollout_rows or None)  # fmt: skip
                look_facts = right.new_tensor([fidelity(t, asked_probes[n // G]) for n, t in enumerate(look.texts)])
                all_facts, look_tokens = torch.cat([all_facts, look_facts]), look_tokens + int(look.mask.sum())
            opened = [i for i, level in enumerate(look_facts.view(-1, G).mean(dim=1)) if level > 0 or not args.gate]
            if not opened:
                continue
            looks, facts = [*looks, look.select(opened)], torch.cat([facts, look_facts[group_rows(opened, G)]])  # [N]
            asked, prompts = [asked[i] for i in opened], [prompts[i] for i in opened]
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
                keep = keep_groups(right, G, "mean", 0, 1)
                keep |= (facts.view(-1, G).mean(dim=1) % 1 > 0) & (args.filter_groups == "soft")
            if keep.sum() >= args.prompts_per_step:
                break
        if not parts:
            run.say(f"step {step + 1}: no fact of any checklist is right, every gate is closed, nothing left to learn")
            break
        batch = concat_rollouts(parts)  # N rows
        metrics = rollout_metrics(batch, samples, right, terms)
        metrics["tokens"] += look_tokens if uses_facts else 0
        metrics |= {"checklist": all_facts.mean().item(), "gate/closed": 1 - len(right) / len(all_facts)}
        budget.tokens += metrics["tokens"]

        # ---- 2. Keep the groups to learn from; the surplus of the last round is cut.
        chosen = keep.nonzero().flatten().tolist()[: args.prompts_per_step]
        if not chosen:
            run.say(f"step {step + 1}: no group of {len(samples)} has mixed results, nothing left to learn")
            run.log(step, metrics | {"groups/used": 0, "tokens_generated": budget.tokens})
            break
        rows = group_rows(chosen, G)  # [N]
        both = [*chosen, *(len(samples) + i for i in chosen)]  # reasoning groups, then the checklists of the same items
        batch, samples = concat_rollouts([batch, *looks]).select(both), [samples[i] for i in chosen]
        terms = {name: values[rows] for name, values in terms.items()}
        rewards = sum(terms.values())  # [N]
        advantages = torch.cat(advantages_of(args, rewards, facts[rows]))  # [2 N]
        spread = has_spread(torch.cat([rewards, args.perception_coef * facts[rows]]), G)  # [2 prompts]
        probe = torch.arange(len(advantages), device=rewards.device) >= len(rewards)  # [2 N], rows of the checklists
        gains = (right[rows] > 0.5) & (advantages[~probe] > 0)  # [N]
        lucky = gains & (facts[rows].view(-1, G).mean(dim=1) == 0).repeat_interleave(G)
        metrics |= {"gains": int(gains.sum()), "lucky": int(lucky.sum())}

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
                items = range(start, min(start + mini_size, len(chosen)))
                mini = [*items, *(len(chosen) + i for i in items)]  # groups of both branches
                N_r, N_p = loss_mask[group_rows(mini, G)].sum(dim=1).view(2, -1).sum(dim=1).clamp(min=1)  # tokens
                weights = torch.where(probe, args.perception_coef / N_p, 1 / N_r)[:, None]  # [2 N, 1]
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
                    loss = (losses * weights[rows] * mask).sum()  # -J_r - lambda J_p
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
    own_after, effects = evaluate_held_out(run, vlm, args, "after", args.max_new_tokens, **own), {}
    if all((before, after, own_before, own_after)):
        effects["wrong facts behind right answers"] = wrong_facts(before, own_before), wrong_facts(after, own_after)
        rows = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
        lucky, gains, n = [row["lucky"] for row in rows], [row["gains"] for row in rows], len(rows) // 2  # by halves
        effects["lucky updates"] = sum(lucky[:n]) / max(1, sum(gains[:n])), sum(lucky[n:]) / max(1, sum(gains[n:]))
    conclude(run, before, after, budget, stream, own=(own_before, own_after), effects=effects)


if __name__ == "__main__":
    main_guard(main, parse_args(Args, __doc__, preset=PRESETS, variant=VARIANTS))

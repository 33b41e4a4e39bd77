"""Visual-RFT: GRPO with rule-based rewards for boxes, confidences and class names.

Paper: arXiv 2503.01785 (Mar 2025, ICCV 2025). Code: github Liuziyu77/Visual-RFT.

    python methods/visual_rft.py                              # the tiny VLM on the micro-world
    python methods/visual_rft.py --shots 4 --steps 100        # few-shot; its control: the same with --supervised
    python methods/visual_rft.py --preset paper-7b --data hf:laolao77/ViRFT_COCO_8_cate_4_shot

Plain GRPO on what can be checked in a picture. Detection earns R_iou, the mean IoU of matched boxes, and R_conf, which
pays confidence in matched boxes and doubt about others; grounding GIoU + 1; classification the name; all the format.
--supervised is SFT: right answers take the place of sampled ones, in as many steps with as many pictures (its tokens
count G-fold). What it saves can be a warm start: --model runs/NAME/model. --data voc:DIR asks about every class alone.
Published (Qwen2-VL-2B, base / SFT / Visual-RFT): COCO 4-shot mAP 19.6 / 25.2 / 40.6, novel classes 9.8 / 13.6 / 31.3,
four fine-grained sets 4-shot 56.0 / 55.6 / 81.9, LISA mIoU 26.9 / 28.3 / 37.6. Differences, 1 and 2 as in the code:
1. R_iou is divided by max(true, found boxes), not found ones (Eq. 6); boxes match above IoU 0.5; grounding is no IoU.
2. A list must stand on one line; "No Objects" earns nothing from boxes. KL, lr (here constant) are TRL's (inferred).
3. Faults of the code, off: --symbolic-check pays 1 for some wrong boxes, --name-match part for listing every class.

Expect (results/visual_rft.json; 5 seeds, 300,000 tokens): mAP 0.061 -> 0.179, by SFT 0.121 (+0.057 [+0.052, +0.063]);
novel classes 0.078 -> 0.249 (0.148); untrained questions 0.424 -> 0.600 (0.584). Confidences: uncalibrated.
"""

from __future__ import annotations

import re
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
    preset: Literal["tiny", "paper-2b", "paper-7b"] = "tiny"
    """A set of defaults: tiny is for a laptop, paper-7b has the published values. What you type wins."""

    # ---- Visual-RFT
    kinds: str = "detect,ground,classify"
    """What the micro-world asks. Published: a model for each."""
    shots: int = 0
    """k: train on so many pictures per class; 0: all. Published: 1, 2, 4, 8, 16."""
    supervised: bool = False
    """The control: learn the right answers to the same questions. Published: SFT, see above."""
    iou_denominator: Literal["larger", "predicted"] = "larger"
    """R_iou divides by max(true, found) boxes (the code), or by the found ones (the paper's Eq. 6)."""
    confidence_reward: bool = True
    """R_conf: c of a matched box, 1 - c of another one, averaged. Published: on."""
    symbolic_check: bool = False
    """A fault of the code: 1 for whatever math-verify calls equal. Published: on."""
    name_match: Literal["equal", "part"] = "equal"
    """When a name is right. Published: equal (paper); part of the answer or the answer part of it (code)."""
    frame: Literal["pixels", "thousand"] = "pixels"
    """Boxes in pixels of the picture the model sees, or from 0 to 1000. Published: thousand."""
    own_prompt: str = "{question}\nThink inside <think> </think>, then give the final answer inside <answer> </answer>."
    """Text around these questions; --prompt is for the data's own, asked before and after."""

    # ---- rollout
    group_size: int = 8
    """G: responses per prompt. Published: 8, 4 for the 7B model."""
    prompts_per_step: int = 16
    """Prompts whose groups are used in one step. Published: 16 (8 GPUs, 2 accumulated)."""
    max_new_tokens: int = 160
    """L_max: longest response in tokens. Published: 256 (inferred)."""
    temperature: float = 1.0
    """Sampling temperature; training scores the same distribution. 1.0 in TRL, verl and EasyR1."""
    top_p: float = 1.0
    """Sample only from the smallest set of tokens with this much probability. 1.0, in VPPO and Vision-SR1 0.99."""
    rollout_rows: int = 0
    """Responses decoded at the same time; 0: all of a rollout. Bounds the memory for keys and values."""

    # ---- advantage
    advantage_eps: float = 1e-4
    """Added to the std. 1e-6 in verl, EasyR1 and what is built on them, 1e-4 in TRL."""

    # ---- loss
    kl_coef: float = 0.04
    """beta: weight of the KL to the starting model. 0.04 in GRPO's paper, 0.01 in EasyR1, 0 in DAPO and VPPO."""

    # ---- update
    mini_batch_prompts: int = 0
    """Prompts per optimiser step; 0: all of them, one optimiser step per rollout. Published: all."""
    micro_tokens: int = 16384
    """Tokens per forward pass, prompts included: bounds the memory, does not change the result."""
    lr: float = 1e-4
    """Learning rate of AdamW, constant. Published: 1e-6, falling to 0 (inferred)."""
    warmup_steps: int = 0
    """Steps over which the learning rate rises to its value. 0 in VPPO and most VLM papers."""
    weight_decay: float = 0.01
    """Weight decay of AdamW. Published: 0 (inferred)."""
    max_grad_norm: float = 1.0
    """The gradient is scaled down to this norm. 1.0 in VPPO and most VLM papers."""


PRESETS = {
    "tiny": {},  # the defaults above
    "paper-2b": dict(
        model="Qwen/Qwen2-VL-2B-Instruct", data="hf:laolao77/ViRFT_COCO_8_cate_4_shot", max_pixels=401_408, steps=200,
        gradient_checkpointing=True, gpus=8, lr=1e-6, weight_decay=0.0, max_new_tokens=256, frame="thousand",
        own_prompt="{question}\nFirst reason between <think> and </think>, then put your answer between <answer> and "
        "</answer> on one line: [{'Position': [x1, y1, x2, y2], 'Confidence': 0.85}, ...] or No Objects for all of a "
        "class, (x1,y1),(x2,y2) for one object, coordinates 0 to 1000, confidence 0 to 1; or the name asked for."),
}  # fmt: skip
PRESETS["paper-7b"] = PRESETS["paper-2b"] | dict(model="Qwen/Qwen2-VL-7B-Instruct", group_size=4)


def check(args: Args) -> None:
    """Refuse options that make no sense together, before anything slow happens."""
    if args.group_size < 2:
        raise SightRLError("--group-size must be at least 2: responses are compared within their group.")
    if args.prompts_per_step < 1 or args.max_new_tokens < 1:
        raise SightRLError("--prompts-per-step and --max-new-tokens must be at least 1.")
    if not args.temperature > 0 or not 0 < args.top_p <= 1:
        raise SightRLError("--temperature must be above 0 and --top-p in (0, 1].")


def rewards_of(args: Args, text: str, sample: Sample, same: float = 0.0) -> dict[str, float]:
    """Reward terms of a response, whose sum is R. same: 1.0 if math-verify calls it equal to the solution."""
    from common.detection import match_by_confidence, read_corners, read_detections
    from common.rewards import answer_line, block, giou, think_then_answer

    answer, solution = answer_line(text), sample.answer
    if sample.task == "detect":
        gold = read_detections(solution) or []
        found = read_detections(answer) or [] if gold else []  # where nothing is there, nothing is earned
        pairs = match_by_confidence(found, [box for box, _ in gold])  # (c, IoU if above tau = 0.5, else 0) per box
        count = max(len(gold), len(found)) if args.iou_denominator == "larger" else len(found)
        r_conf = sum(c if overlap else 1 - c for c, overlap in pairs) / max(1, len(found))
        terms = {"iou": min(1.0, sum(o for _, o in pairs) / max(1, count)), "confidence": min(1.0, max(0.0, r_conf))}
    elif sample.task == "ground":
        answer = block(text, "answer") or answer  # line breaks are allowed
        found, gold = read_corners(answer), read_corners(solution)
        terms = {"ground": 2.0 if answer == solution else giou(found, gold) + 1 if found and gold else 0.0}
    else:
        answer, name = (re.sub("[ _]", "", part).lower() for part in (answer, solution))
        terms = {"classify": float(name == answer or args.name_match == "part" and (name in answer or answer in name))}
    terms = {name: same or value for name, value in terms.items() if args.confidence_reward or name != "confidence"}
    return terms | {"format": float(think_then_answer(text))}


def grade(text: str, sample: Sample) -> float:
    """Score on the own task in [0, 1]: R_iou, GIoU above 0, or whether name or "No Objects" are right."""
    from common.rewards import answer_line

    terms = rewards_of(Args(), text, sample)
    same = answer_line(text).lower() == sample.answer.lower()
    return 1.0 if same else terms.get("iou", max(0.0, terms.get("ground", 1.0) - 1))


def score(args: Args, batch: Rollout, samples: list[Sample]) -> tuple[Tensor, dict[str, Tensor]]:
    """(graded right 0/1, reward terms), float [N] each; the reward R is the sum of the terms."""
    from common.distributed import from_main, is_main
    from common.symbolic import verified

    tensor = batch.logps.new_tensor
    asked = [sample for sample in samples for _ in range(batch.group_size)]  # row n belongs to sample n // G
    golds = [f"<answer>{sample.answer}</answer>" for sample in asked]
    same = from_main(verified(batch.texts, golds) if is_main() else None) if args.symbolic_check else [0.0] * len(asked)
    rows = [rewards_of(args, *row) for row in zip(batch.texts, asked, same, strict=True)]
    right = tensor([float(grade(*row) > 0.5) for row in zip(batch.texts, asked, strict=True)])  # [N]
    names = dict.fromkeys(name for row in rows for name in row)
    return right, {name: tensor([row.get(name, 0.0) for row in rows]) for name in names}


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
    from common.rollout import forced_rollout, rollout
    from common.run import Run
    from common.tasks.perception import detection_effects, few_shots, perception_question
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
    by_class = "detect" if args.data.startswith(("voc:", "coco:")) else ""
    args = replace(args, tasks=args.tasks or by_class, kl_coef=args.kl_coef * (not args.supervised))
    run = Run(args, "visual_rft", args.steps)
    vlm = load_model(args, needs_reference=args.kl_coef != 0)
    optimizer = torch.optim.AdamW(vlm.trainable(), lr=args.lr, weight_decay=args.weight_decay, fused=True)
    stream = load_stream(args)

    def ask(sample: Sample) -> Sample:
        return perception_question(sample, args.kinds, args.own_prompt, vlm.pixels if args.frame == "pixels" else None)

    stream = few_shots(stream, args.shots, ask) if args.shots else stream
    budget = Budget(args.budget_tokens, args.max_minutes)
    before = evaluate_held_out(run, vlm, args, "before", args.max_new_tokens) if args.data == "world" else None
    asked = {split: [ask(s) for s in part] for split, part in held_out(args).items() if split != "test_counter"}
    own_task = dict(kind="own", score=grade, samples=asked, make=lambda vlm, s: make_prompt(vlm, s, "{question}"))
    own_before = evaluate_held_out(run, vlm, args, "before", args.max_new_tokens, **own_task)
    first_step = run.resume(vlm, optimizer, stream=stream, budget=budget)

    for step in range(first_step, args.steps):
        if budget.spent():
            break
        set_learning_rate(optimizer, args.lr * min(1.0, (step + 1) / max(1, args.warmup_steps)))

        # ---- 1. Ask, answer, grade. SFT samples nothing: its rollout are the right answers.
        with run.phase("data"):
            samples = [ask(sample) for sample in stream.next(args.prompts_per_step)]
            prompts = [make_prompt(vlm, sample, "{question}") for sample in samples]
            labels = [f"<think>{s.meta['thought']}</think> <answer>{s.answer}</answer>" for s in samples]
        with run.phase("rollout"):
            batch = forced_rollout(vlm, prompts, labels, max_tokens=args.micro_tokens) if args.supervised else rollout(
                vlm, prompts, args.group_size, max_new_tokens=args.max_new_tokens, temperature=args.temperature,
                top_p=args.top_p, generator=run.generator, max_rows=args.rollout_rows or None)  # fmt: skip
        with run.phase("reward"):
            right, terms = score(args, batch, samples)  # [N], {term: [N]}
        metrics = rollout_metrics(batch, samples, right, terms)

        # ---- 2. Advantages: that of a right answer is 1.
        G = batch.group_size  # 1 in SFT
        budget.tokens += metrics["tokens"] * args.group_size // G
        rewards = sum(terms.values())  # [N]
        advantages = rewards * 0 + 1 if args.supervised else group_advantages(rewards, G, eps=args.advantage_eps)
        spread = has_spread(rewards, G) | args.supervised  # [prompts]

        # ---- 3. Log-probabilities of the sampling policy and of the reference.
        old_logps = batch.logps  # [N, T], recorded while sampling
        averages = Averages()
        if args.kl_coef:
            with run.phase("ref_logps"), torch.no_grad(), vlm.reference():
                ref_logps, _ = response_logps(
                    vlm, batch.prompts, batch.tokens, batch.mask, features=batch.features, entropy=False,
                    temperature=args.temperature, max_tokens=args.micro_tokens)  # fmt: skip

        # ---- 4. Update. A mini-batch is one optimiser step; micro-batches only bound the memory.
        with run.phase("update"):
            lengths = group_lengths(batch)  # tokens per group, prompt included
            mini_size = args.mini_batch_prompts or len(samples)
            for start in range(0, len(samples), mini_size):
                mini = range(start, min(start + mini_size, len(samples)))  # groups
                mini_rows = group_rows(mini, G)
                active = [i for i in mini if spread[i] or args.kl_coef]  # else A = 0: no gradient
                micros = micro_batches([lengths[i] for i in active], args.micro_tokens)
                for micro in share(micros):
                    groups = [active[i] for i in micro]
                    part, rows = batch.select(groups), group_rows(groups, G)  # n rows
                    width = part.tokens.shape[1]  # T of this micro-batch
                    mask, old, A = batch.mask[rows, :width], old_logps[rows, :width], advantages[rows, None]
                    logps, entropy = response_logps(  # [n, T] each
                        vlm, part.prompts, part.tokens, part.mask, features=part.features,
                        temperature=args.temperature)  # fmt: skip
                    losses = -(logps - logps.detach()).exp() * A  # no clip: the ratio is 1, its gradient is not 0
                    if args.kl_coef:
                        kl = kl_estimate(logps, ref_logps[rows, :width], "k3", inner=None, outer=None)
                        losses = losses + args.kl_coef * kl
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
        metrics |= {"groups/used": int(spread.sum()),
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

    after = evaluate_held_out(run, vlm, args, "after", args.max_new_tokens) if args.data == "world" else None
    own_after = evaluate_held_out(run, vlm, args, "after", args.max_new_tokens, **own_task)
    conclude(run, before, after, budget, stream, own=(own_before, own_after),
             effects=detection_effects(own_before, own_after))  # fmt: skip


if __name__ == "__main__":
    main_guard(main, parse_args(Args, __doc__, preset=PRESETS))

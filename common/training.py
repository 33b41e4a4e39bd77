"""Bookkeeping that is the same in every method: metrics of a rollout, evaluations before and after, budgets.

Nothing here decides what is learned; that is in the method's file.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common import distributed
from common.args import CommonArgs
from common.box_frame import put_in_frame
from common.data import Dataset, Sample, Stream, open_dataset
from common.errors import SightRLError
from common.evaluation import Evaluation, compare_evaluations, evaluate, print_table
from common.grpo import has_spread
from common.rewards import accuracy, parse_state
from common.rollout import Rollout
from common.run import Run
from common.sharding import gather_weights, shard, sum_gradients, whole_tensor
from common.vlm import VLM, Prompt, harmless, load_vlm

WORLD_SPLITS = ("test", "test_combo", "test_counter")  # plain, held-out attribute pairs, flipped answer prior


def make_prompt(vlm: VLM, sample: Sample, template: str) -> Prompt:
    """The sample's question in the template, with its images; its boxes are put into the model's frame."""
    images = sample.load_images()
    put_in_frame(sample, vlm, images)
    return vlm.prompt(template.replace("{question}", sample.question), images)


def make_text_prompt(vlm: VLM, template: str, **fields: str) -> Prompt:
    """A prompt without pictures: every {name} in the template is replaced by the field of that name.

    A field may be what a model wrote: picture marks and special tokens in it are broken up, so that it stays text.
    """
    texts = {name: harmless(text) for name, text in fields.items()}
    return vlm.prompt(re.sub(r"\{(\w{1,40})\}", lambda m: texts.get(m[1], m[0]), template), [])


def load_model(args: CommonArgs, needs_reference: bool = False) -> VLM:
    """The model of the options, prepared for several processes if there are. needs_reference: keep the starting
    model too (LoRA: the base without adapters)."""
    reference = "none" if not needs_reference else "adapter" if args.lora_rank else "copy"
    names = ("dtype", "lora_rank", "lora_alpha", "train_vision", "gradient_checkpointing",
             "min_pixels", "max_pixels")  # fmt: skip
    options = {name: getattr(args, name) for name in names}
    vlm = load_vlm(args.model, reference=reference, device=distributed.local_device(args.device), **options)
    shard(vlm)
    return vlm


def load_stream(args: CommonArgs) -> Stream:
    """The training questions of the options, endless and reshuffled every epoch."""
    return Stream(opened(args, "train", args.seed, args.limit), seed=args.seed)


def opened(args: CommonArgs, split: str, seed: int, limit: int | None = None) -> Dataset:
    """One split of the data of the options."""
    return open_dataset(args.data, split, bad_rows=args.bad_rows, columns=args.columns, tasks=args.tasks, seed=seed,
                        limit=limit, allow_outside=args.allow_outside)  # fmt: skip


class Budget:
    """Generated tokens and training minutes so far, kept in checkpoints."""

    def __init__(self, tokens: int, minutes: float) -> None:
        """Limits; 0 means none."""
        self.limits, self.tokens, self.seconds, self.started = (tokens, minutes), 0, 0.0, time.monotonic()

    def spent(self) -> bool:
        """Whether a limit is reached; with several processes, in any of them."""
        tokens, minutes = self.limits
        seconds = self.seconds + time.monotonic() - self.started
        out_of_time = bool(minutes) and distributed.agree(seconds >= 60 * minutes)
        return bool(tokens and self.tokens >= tokens) or out_of_time

    def progress(self, step: int, steps: int) -> tuple[int, int]:
        """(done, total) for schedules over the whole training: in steps, or in tokens if those will run out first.

        Time is left out: with --max-minutes alone a schedule follows the steps, so that it stays reproducible.
        """
        limit = self.limits[0]
        return (self.tokens, limit) if limit and self.tokens * steps >= step * limit else (step, steps)

    def state_dict(self) -> dict:
        return {"tokens": self.tokens, "seconds": self.seconds + time.monotonic() - self.started}

    def load_state_dict(self, state: dict) -> None:
        self.tokens, self.seconds, self.started = state["tokens"], state["seconds"], time.monotonic()


class Averages:
    """Means over micro-batches of token or response quantities (every value weighs the same), and maxima."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor | float] = {}
        self.counts: dict[str, Tensor | float] = {}
        self.largest: dict[str, Tensor] = {}

    def add(self, name: str, values: Tensor, mask: Tensor | None = None) -> None:
        """Add values where mask is true (all without a mask). No GPU synchronisation."""
        values = values.detach().float()
        mask = torch.ones_like(values) if mask is None else mask.float()
        self.sums[name] = self.sums.get(name, 0.0) + (values * mask).sum()
        self.counts[name] = self.counts.get(name, 0.0) + mask.sum()

    def add_max(self, name: str, values: Tensor) -> None:
        """Keep the largest value seen."""
        value = values.detach().max() if values.numel() else torch.zeros(())
        self.largest[name] = torch.maximum(self.largest.get(name, value), value)

    def add_range(self, name: str, values: Tensor) -> None:
        """Keep <name>_min and <name>_max."""
        self.add_max(f"{name}_max", values)
        self.add_max(f"-{name}_min", -values)

    def result(self) -> dict[str, float]:
        """Metric name -> mean or extreme, over the micro-batches of all processes; each of them must call it."""
        own = [{n: float(v) for n, v in values.items()} for values in (self.sums, self.counts, self.largest)]
        sums, counts, largest = {}, {}, {}
        for part_sums, part_counts, part_largest in distributed.gather(own):
            for name, value in part_sums.items():
                sums[name] = sums.get(name, 0.0) + value
                counts[name] = counts.get(name, 0.0) + part_counts[name]
            for name, value in part_largest.items():
                largest[name] = max(largest.get(name, value), value)
        means = {name: total / max(counts[name], 1.0) for name, total in sums.items()}
        signs = {name: -1.0 if name.startswith("-") else 1.0 for name in largest}
        return means | {name.lstrip("-"): signs[name] * value for name, value in largest.items()}


def group_rows(groups: Iterable[int], group_size: int, device: Any = None) -> Tensor:
    """int64 row numbers of the responses of some groups: group g owns rows g G ... g G + G - 1."""
    return torch.tensor([g * group_size + i for g in groups for i in range(group_size)], device=device)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr


def optimizer_step(vlm: VLM, optimizer: torch.optim.Optimizer, max_grad_norm: float, averages: Averages) -> None:
    """Clip the gradients of all micro-batches (of all processes), update, forget them.

    NaN or infinity in the gradient, or in a loss of this step so far, in any process: no update in any of them;
    weights and the optimiser's state stay as they are, to the bit. Adds grad_norm (before clipping) and
    updates/skipped (0 or 1) to averages. Every process must call it, also one without a micro-batch.
    """
    sum_gradients(vlm.shards)
    norm = whole_tensor(torch.nn.utils.clip_grad_norm_(vlm.trainable(), max_grad_norm))
    finite = all(math.isfinite(value) for value in (norm, averages.sums.get("loss", 0.0)))
    skipped = distributed.agree(not finite)
    if not skipped:
        optimizer.step()
        gather_weights(vlm.shards)
    optimizer.zero_grad(set_to_none=True)
    averages.add("grad_norm", norm)
    averages.add("updates/skipped", torch.tensor(float(skipped)))


# ------------------------------------------------------------------------------------------- what was sampled
def rollout_metrics(batch: Rollout, samples: list[Sample], right: Tensor,
                    terms: dict[str, Tensor]) -> dict[str, float]:  # fmt: skip
    """Metrics of everything sampled in one step, before dynamic sampling throws groups away.

    right: float [N], graded 0/1; terms: reward term -> float [N]; row n belongs to samples[n // G]. Returned
    names: tokens and prompts (counts); reward/mean and reward/<term> (means over responses); accuracy;
    length, length/correct, length/wrong (tokens); truncated (no end of sequence), no_answer (nothing readable) and
    wrong_answer (readable, not right), shares of responses; habit/<name>, as many, only for the micro-world;
    groups/zero_spread, share of groups whose rewards are all equal (without it: groups of one).
    """
    averages, lengths, rewards = Averages(), batch.mask.sum(dim=1), sum(terms.values())  # [N] each
    averages.add("reward/mean", rewards)
    for name, values in terms.items():
        averages.add(f"reward/{name}", values)
    averages.add("accuracy", right)
    averages.add("length", lengths)
    for name, rows in (("correct", right > 0.5), ("wrong", right <= 0.5)):
        if rows.any():
            averages.add(f"length/{name}", lengths, rows)
    averages.add("truncated", batch.truncated)
    unreadable = torch.tensor([parse_state(text) != "ok" for text in batch.texts])
    averages.add("no_answer", unreadable)
    averages.add("wrong_answer", ~unreadable & (right.cpu() <= 0.5))
    if batch.group_size > 1:
        averages.add("groups/zero_spread", ~has_spread(rewards, batch.group_size))
    if "things" in samples[0].meta:  # the micro-world knows how every answer was reached
        habits = [world_habit(text, samples[n // batch.group_size]) for n, text in enumerate(batch.texts)]
        for habit in ("careful", "sloppy", "blind", "other"):
            averages.add(f"habit/{habit}", torch.tensor([h == habit for h in habits]))
    return {"tokens": int(lengths.sum()), "prompts": len(samples)} | averages.result()


def group_lengths(batch: Rollout) -> list[int]:
    """Tokens of every group as it is packed for a forward pass: the prompt once, then its responses."""
    tokens = batch.mask.sum(dim=1).view(-1, batch.group_size).sum(dim=1).tolist()  # [prompts]
    return [len(prompt.input_ids) + n for prompt, n in zip(batch.prompts, tokens, strict=True)]


def world_habit(text: str, sample: Sample) -> str:
    from common.world import habit_of

    return habit_of(text, sample.meta)


def rollout_records(vlm: VLM, batch: Rollout, samples: list[Sample], terms: dict[str, Tensor],
                    advantages: Tensor, group: int = 0, **per_token: Tensor) -> list[dict]:  # fmt: skip
    """Records of one group for rollouts.jsonl. per_token: further [N, T] tensors, e.g. dependency and
    kept."""
    records, sample, size = [], samples[group], batch.group_size
    for n in range(group * size, (group + 1) * size):
        length = int(batch.mask[n].sum())
        record = {"sample_id": sample.id, "task": sample.task, "question": sample.question,
                  "answer": sample.answer, "images": batch.prompts[group].images, "response": batch.texts[n],
                  "rewards": {name: float(values[n]) for name, values in terms.items()},
                  "advantage": float(advantages[n]),
                  "tokens": vlm.token_strings(batch.tokens[n, :length].tolist())}  # fmt: skip
        if "things" in sample.meta:
            record["habit"] = world_habit(batch.texts[n], sample)
        records.append(record | {name: values[n, :length].tolist() for name, values in per_token.items()})
    return records


def batch_records(vlm: VLM, batch: Rollout, samples: list[Sample], terms: dict[str, Tensor],
                  advantages: Tensor) -> list[dict]:  # fmt: skip
    """Records of all groups for Run.save_batch, with the prompt as the model got it and the tokens' log-probabilities
    as recorded while sampling."""
    records = []
    for group, prompt in enumerate(batch.prompts[: len(samples)]):
        found = rollout_records(vlm, batch, samples, terms, advantages, group, logps=batch.logps)
        records += [{"prompt": prompt.text, **record} for record in found]
    return records


def by_token_kind(averages: Averages, vlm: VLM, batch: Rollout, samples: list[Sample],
                  **per_token: Tensor) -> None:  # fmt: skip
    """Average [N, T] quantities over all response tokens; in the micro-world also <name>/visual and
    <name>/template."""
    kinds = {"": batch.mask}
    if "things" in samples[0].meta:
        visual = visual_tokens(vlm, batch, samples)
        kinds |= {"/visual": visual, "/template": batch.mask & ~visual}
    for name, values in per_token.items():
        for kind, tokens in kinds.items():
            averages.add(name + kind, values, tokens)


def visual_tokens(vlm: VLM, batch: Rollout, samples: list[Sample]) -> Tensor:
    """bool [N, T]: tokens of words that only the picture can tell (cells, colours, digits that the question
    lacks)."""
    from common.world import visual_spans

    visual = torch.zeros_like(batch.mask)
    for n, row in enumerate(batch.tokens.tolist()):
        strings, start = vlm.token_strings(row[: int(batch.mask[n].sum())]), 0
        spans = visual_spans("".join(strings), samples[n // batch.group_size].question)
        for t, string in enumerate(strings):
            visual[n, t] = any(a < start + len(string) and start < b for a, b in spans)
            start += len(string)
    return visual


# ------------------------------------------------------------------------------------------------- evaluation
def held_out(args: CommonArgs) -> dict[str, list[Sample]]:
    """Split name -> the first eval_questions of it: the three test splits of the micro-world, else the test
    split."""
    splits = WORLD_SPLITS if args.data.split(":")[0] == "world" else ("test",)
    return {split: questions(args, split) for split in splits}


def questions(args: CommonArgs, split: str) -> list[Sample]:
    return opened(args, split, seed=0).take(args.eval_questions)


def ask(vlm: VLM, args: CommonArgs, samples: dict[str, list[Sample]], k: int, max_new_tokens: int, temperature: float,
        score: Callable[[str, Sample], float] = accuracy, make: Callable[[VLM, Sample], Prompt] | None = None,
        ) -> Evaluation:  # fmt: skip
    """k answers to every sample, scored; in the micro-world with the habit of every answer."""
    habit = world_habit if all("things" in s.meta for part in samples.values() for s in part) else None
    return evaluate(vlm, samples, make or (lambda vlm, sample: make_prompt(vlm, sample, args.prompt)), score, k=k,
                    max_new_tokens=max_new_tokens, temperature=temperature, habit=habit)  # fmt: skip


def evaluate_held_out(run: Run, vlm: VLM, args: CommonArgs, name: str, max_new_tokens: int, *,
                      score: Callable[[str, Sample], float] = accuracy, samples: dict[str, list[Sample]] | None = None,
                      make: Callable[[VLM, Sample], Prompt] | None = None,
                      kind: str = "eval") -> Evaluation | None:  # fmt: skip
    """Ask the held-out questions and save <kind>_<name>.json in the run folder; an existing file is read
    instead.

    score(response, sample): grade in [0, 1]. samples: split -> questions; default: the held-out questions of
    the data. make(vlm, sample): another prompt than --prompt. kind: "eval" for the questions of the data, which
    all methods share; "own" for the task that a method trains on, if that is another one; any other word for a
    further probe.
    None with --eval-questions 0; a file is read by process 0 alone. Answers are sampled at temperature 1 without
    top-p, as the papers evaluate.
    """
    path = run.folder / f"{kind}_{name}.json"
    if name == "after":
        run.training_ended()
    if not args.eval_questions:
        return None
    if distributed.from_main(path.exists()):  # a resumed run was evaluated already
        return Evaluation.load(path) if distributed.is_main() else None
    what = {"eval": "held-out accuracy", "own": "score on its own task"}.get(kind, f"score {kind}")
    asked = samples or held_out(args)
    evaluation = taken_over(args, path.name, asked) if name == "before" else None
    if evaluation is None:
        run.say(f"asking held-out questions {name} training ({what}) ...")
        evaluation = ask(vlm, args, asked, args.eval_k, max_new_tokens, 1.0, score, make)
    if distributed.is_main():
        evaluation.save(path)
    overall = evaluation.summary()["overall"]
    run.say(f"{what} {name} training: {overall['avg@k']:.3f} ({overall['questions']} questions)")
    return evaluation


def taken_over(args: CommonArgs, file: str, asked: dict[str, list[Sample]]) -> Evaluation | None:
    """The evaluation of another run with the same questions (--base-from), None without one. Raises SightRLError when
    it asked something else."""
    if not args.base_from or not (source := Path(args.base_from) / file).is_file():
        return None
    evaluation = Evaluation.load(source)
    wanted = [(split, sample.id, args.eval_k) for split, part in asked.items() for sample in part]
    if [(r["split"], r["id"], evaluation.k) for r in evaluation.records] != wanted:
        raise SightRLError(f"{source} asked other questions or another --eval-k; leave --base-from out.")
    return evaluation


def validate(vlm: VLM, args: CommonArgs, max_new_tokens: int,
             score: Callable[[str, Sample], float] = accuracy) -> dict[str, float]:  # fmt: skip
    """Greedy accuracy on the validation split, as metrics; none with --eval-questions 0."""
    if not args.eval_questions:
        return {}
    asked = {"val": questions(args, "val")}
    result = ask(vlm, args, asked, 1, max_new_tokens, 0.0, score).summary()["overall"]
    return {"val/accuracy": result["avg@k"], "val/length": result["length"]}


def conclude(run: Run, before: Evaluation | None, after: Evaluation | None, budget: Budget, stream: Stream, *,
             own: tuple[Evaluation | None, Evaluation | None] = (None, None),
             effects: dict[str, tuple[float, float]] | None = None) -> None:  # fmt: skip
    """Print the before/after tables, say which data rows were skipped, and finish the run with its summary.

    own: the evaluations on the method's own task. effects: what the paper is about, in numbers: name -> (before,
    after). Process 0 does; the others only finish.
    """
    if not distributed.is_main():
        return run.finish({})
    spent = budget.state_dict()
    summary: dict[str, Any] = {"tokens_generated": spent["tokens"], "seconds_trained": spent["seconds"]}
    if skipped := list(dict.fromkeys(stream.dataset.skipped)):
        run.say(f"skipped {len(skipped)} data rows that could not be read; the first: {skipped[0]}")
        summary["skipped"] = skipped
    for key, old, new in (("", before, after), ("own_", *own)):
        if old is not None and new is not None:
            print_table(old, new, title="Score on its own task" if key else "Held-out accuracy")
            summary |= {f"{key}before": old.summary(), f"{key}after": new.summary()}
            summary[f"{key}comparison"] = compare_evaluations(old, new)
    if effects:
        summary["effects"] = {name: {"before": a, "after": b} for name, (a, b) in effects.items()}
        for name, (a, b) in effects.items():
            run.say(f"{name}: {a:.3f} before training, {b:.3f} after")
    run.finish(summary)


def description_effects(args: CommonArgs, before: Evaluation | None, after: Evaluation | None,
                        described: Callable[[str], str | None]) -> dict[str, tuple[float, float]]:  # fmt: skip
    """Effects for conclude: what the descriptions in the answers to the held-out questions are worth, before and after.

    described(response): its description, None without one. {} without evaluations and outside of the micro-world.
    """
    from common.world.entails import description_worth

    if before is None or after is None:
        return {}
    metas = {sample.id: sample.meta for part in held_out(args).values() for sample in part}
    old, new = (description_worth(evaluation.records, metas, described) for evaluation in (before, after))
    return {name: (value, new[name]) for name, value in old.items()}

"""The sampler: G responses to every prompt, each prompt run once and its keys and values kept once.

Tokens come from the same float32 distribution that scoring uses (`policy_logits`), and their log-probs
are kept, so an on-policy update needs no second pass for the old log-probs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from common.decoding import Decoder
from common.distributed import complete_rows, own_part, world_size
from common.logprob import policy_logits, response_logps
from common.vlm import VLM, ImageFeatures, Prompt

COMPACT_AT = 7 / 8  # drop the finished rows when so many are left; dropping copies their keys and values
CUDA_COMPACT_AT = 1 / 2  # and a new CUDA graph is recorded
CUDA_CHECK_EVERY = 16  # steps between looks at who has finished, each of which waits for the GPU


@dataclass(eq=False)
class Rollout:
    """B prompts with G responses each; row n of the N = B * G rows belongs to prompt n // G."""

    prompts: list[Prompt]
    group_size: int
    tokens: Tensor  # int64 [N, R], right-padded with pad_id
    mask: Tensor  # bool [N, R], the response up to and including its first end-of-sequence token
    logps: Tensor  # f32 [N, R] under softmax(logits / temperature) without banned ids; 0 where mask is 0
    truncated: Tensor  # bool [N], no end of sequence within the limit
    texts: list[str]  # N, special tokens skipped
    features: list[ImageFeatures] | None  # kept when the vision tower is frozen, so that scoring reuses them
    pad_id: int = 0

    def select(self, prompt_indices: list[int]) -> Rollout:
        """The groups of some prompts, tokens cut to the longest response among them."""
        group = self.group_size
        rows = [i * group + j for i in prompt_indices for j in range(group)]
        mask = self.mask[rows]
        width = int(mask.sum(1).max()) if rows else 0
        return Rollout(
            [self.prompts[i] for i in prompt_indices],
            group,
            self.tokens[rows, :width],
            mask[:, :width],
            self.logps[rows, :width],
            self.truncated[rows],
            [self.texts[n] for n in rows],
            [self.features[i] for i in prompt_indices] if self.features is not None else None,
            self.pad_id,
        )


def rollout(vlm: VLM, prompts: list[Prompt], group_size: int, *, max_new_tokens: int,
            temperature: float = 1.0, top_p: float = 1.0, generator: torch.Generator | None = None,
            features: list[ImageFeatures] | None = None, max_rows: int | None = None,
            uniform: Tensor | None = None) -> Rollout:  # fmt: skip
    """Sample group_size responses of at most max_new_tokens tokens to every prompt.

    temperature 0 takes the likeliest token; the kept log-probs are then those of temperature 1. top_p < 1
    restricts the choice to the likeliest tokens whose probabilities add up to top_p, and leaves the kept
    log-probs alone. generator: a CPU generator; the same state gives the same responses, whatever max_rows
    is. uniform: float64 [N, max_new_tokens] in [0, 1), the numbers that choose the tokens, instead of the
    generator's: a prompt's responses then do not depend on its neighbours. features: of `vlm.encode_images`,
    else they are computed here. max_rows: decode at most so many responses at once, in whole groups. Of
    several processes each answers its part of the prompts, and all get the whole rollout (features None).
    """
    count = len(prompts) * group_size
    # One uniform number per token, drawn up front: results depend neither on max_rows nor on who ends first.
    if uniform is None:
        uniform = torch.rand(count, max_new_tokens, generator=generator, dtype=torch.float64)
    uniform = uniform.to(vlm.device)
    tokens = torch.full((count, max_new_tokens), vlm.pad_id, device=vlm.device)
    logps = torch.zeros(count, max_new_tokens, device=vlm.device)
    was_training = vlm.base.training
    vlm.base.eval()  # no gradient checkpointing here
    try:
        with torch.no_grad():
            own = own_part(len(prompts))  # all of them with one process
            features = vlm.encode_images(prompts[own]) if features is None else features[own]
            step = max(1, (max_rows or count) // group_size)
            for start in range(own.start, own.stop, step):
                part = slice(start, min(start + step, own.stop))
                rows = slice(part.start * group_size, part.stop * group_size)
                seen = features[part.start - own.start : part.stop - own.start]
                decode(vlm, prompts[part], seen, group_size, temperature, top_p,
                       uniform[rows], tokens[rows], logps[rows])  # fmt: skip
            for filled in (tokens, logps):
                complete_rows(filled, slice(own.start * group_size, own.stop * group_size))
    finally:
        vlm.base.train(was_training)
    mask, truncated = response_mask(tokens, torch.tensor(vlm.eos_ids, device=vlm.device))
    width = int(mask.sum(1).max()) if count else 0
    tokens, mask, logps = tokens[:, :width], mask[:, :width], logps[:, :width]
    tokens = tokens.masked_fill(~mask, vlm.pad_id)
    written = [row[:n] for row, n in zip(tokens.tolist(), mask.sum(1).tolist(), strict=True)]
    texts = vlm.tokenizer.batch_decode(written, skip_special_tokens=True)
    return Rollout(prompts, group_size, tokens, mask, logps.masked_fill(~mask, 0.0), truncated, texts,
                   None if vlm.train_vision or world_size() > 1 else features, vlm.pad_id)  # fmt: skip


def response_mask(tokens: Tensor, eos_ids: Tensor) -> tuple[Tensor, Tensor]:
    """(bool [N, R] true up to and including the first end-of-sequence token, bool [N] rows without one)."""
    ends = torch.isin(tokens, eos_ids)  # [N, R]
    return ends.cumsum(1) - ends.long() == 0, ~ends.any(1)


def decode(vlm: VLM, prompts: list[Prompt], features: list[ImageFeatures], group: int, temperature: float,
           top_p: float, uniform: Tensor, tokens: Tensor, logps: Tensor) -> None:  # fmt: skip
    """Fill tokens and logps [n, R] with responses to the prompts, n = len(prompts) * group.

    Rows beyond their end-of-sequence token hold whatever was computed until they were dropped.
    """
    limit = tokens.shape[1]
    hidden, prefix = vlm.run_groups(prompts, features, keep=True)  # [all prompt tokens, d]
    hidden = hidden[prefix.prompts.offsets[1:].long() - 1].repeat_interleave(group, 0)  # [n, d]
    starts = torch.tensor([p.next_position for p in prompts], device=vlm.device)  # [B]
    decoder = Decoder(vlm.language_model, vlm.base.lm_head, prefix, starts, group, limit)
    prefix.kept = None  # the decoder has them in another order
    rows = torch.arange(len(tokens), device=vlm.device)  # the rows still being written
    ends = torch.tensor(vlm.eos_ids, device=vlm.device)
    finished = torch.zeros(len(tokens), dtype=torch.bool, device=vlm.device)
    look_every, compact_at = (CUDA_CHECK_EVERY, CUDA_COMPACT_AT) if vlm.device.type == "cuda" else (1, COMPACT_AT)
    for t in range(limit):
        logits = policy_logits(decoder.head(hidden).float(), vlm.banned_ids, temperature or 1.0)  # [m, V]
        chosen, chosen_logps = choose(logits, uniform[rows, t], temperature, top_p)  # [m]
        tokens[rows, t], logps[rows, t] = chosen, chosen_logps
        if t + 1 == limit:
            return
        finished |= (chosen[:, None] == ends).any(1)
        if t % look_every == 0:
            alive = (~finished).nonzero().flatten()
            if not len(alive):
                return
            if len(alive) <= compact_at * len(rows):
                decoder.keep_rows(alive)
                rows, chosen, finished = rows[alive], chosen[alive], finished[alive]
        hidden = decoder.step(chosen)


def choose(logits: Tensor, uniform: Tensor, temperature: float, top_p: float) -> tuple[Tensor, Tensor]:
    """(token, its log-prob) per row of f32 logits [m, V]; uniform: float64 [m] in [0, 1)."""
    probs = all_probs = logits.softmax(1)  # [m, V]
    if temperature == 0:
        chosen = logits.argmax(1)
    else:
        if top_p < 1:
            probs = nucleus(probs, top_p)
        # Inverse of the distribution function; in float64, so large vocabularies lose nothing to rounding.
        ladder = probs.cumsum(1, dtype=torch.float64)  # [m, V]
        chosen = torch.searchsorted(ladder, uniform[:, None] * ladder[:, -1:], right=True)[:, 0]
        chosen = chosen.clamp(max=logits.shape[1] - 1)
    return chosen, all_probs.gather(1, chosen[:, None])[:, 0].log()


def nucleus(probs: Tensor, top_p: float) -> Tensor:
    """Probabilities [m, V], 0 outside the smallest set of mass top_p; the likeliest token always stays."""
    ordered, order = probs.sort(dim=1, descending=True, stable=True)
    outside = ordered.cumsum(1, dtype=torch.float64) - ordered >= top_p  # the mass before this token suffices
    return torch.zeros_like(probs).scatter(1, order, ordered.masked_fill(outside, 0.0))


def concat_rollouts(parts: list[Rollout]) -> Rollout:
    """Several rollouts of one group size behind one another, padded to the longest response."""
    width = max(part.tokens.shape[1] for part in parts)

    def join(name: str, fill: int = 0) -> Tensor:
        return torch.cat([F.pad(getattr(p, name), (0, width - p.tokens.shape[1]), value=fill) for p in parts])

    kept = [f for p in parts for f in p.features] if all(p.features is not None for p in parts) else None
    return Rollout(
        [prompt for p in parts for prompt in p.prompts],
        parts[0].group_size,
        join("tokens", parts[0].pad_id),
        join("mask"),
        join("logps"),
        torch.cat([p.truncated for p in parts]),
        [t for p in parts for t in p.texts],
        kept,
        parts[0].pad_id,
    )


def forced_rollout(vlm: VLM, prompts: list[Prompt], texts: list[str], *, temperature: float = 1.0,
                   features: list[ImageFeatures] | None = None, max_tokens: int | None = None) -> Rollout:  # fmt: skip
    """Given texts as a rollout with one response per prompt, as if the policy had written them.

    Tokens end with the end-of-sequence token; log-probs are those of the policy now, from a pass without gradient
    (max_tokens: as in response_logps).
    """
    ids = [vlm.answer_ids(text) for text in texts]
    width = max(map(len, ids))
    tokens = torch.tensor([row + [vlm.pad_id] * (width - len(row)) for row in ids], device=vlm.device)  # [B, R]
    lengths = torch.tensor([len(row) for row in ids], device=vlm.device)
    mask = torch.arange(width, device=vlm.device) < lengths[:, None]  # [B, R]
    with torch.no_grad():
        logps, _ = response_logps(vlm, prompts, tokens, mask, temperature=temperature, features=features,
                                  entropy=False, max_tokens=max_tokens)  # fmt: skip
    return Rollout(prompts, 1, tokens, mask, logps, ~mask.any(1), list(texts), features, vlm.pad_id)


def merge_groups(parts: list[Rollout]) -> Rollout:
    """Rollouts of the same prompts as one: a group holds the responses of the first part, then of the second, ..."""
    both, starts = concat_rollouts(parts), [0]
    for part in parts:
        starts.append(starts[-1] + len(part.tokens))
    order = [start + i * part.group_size + j for i in range(len(parts[0].prompts))
             for part, start in zip(parts, starts, strict=False) for j in range(part.group_size)]  # fmt: skip
    rows = {name: getattr(both, name)[order] for name in ("tokens", "mask", "logps", "truncated")}
    features = next((part.features for part in parts if part.features is not None), None)
    return replace(both, prompts=parts[0].prompts, group_size=sum(part.group_size for part in parts),
                   texts=[both.texts[n] for n in order], features=features, **rows)  # fmt: skip

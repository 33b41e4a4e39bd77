"""Log-probabilities and entropies of responses: the shared-prefix forward and a head that never builds
[tokens, vocab].

`response_logps` is what losses and references call; `token_logps` is the head alone; `next_token_logits`
defines the distribution (temperature, banned ids) for scoring and sampling alike.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from common import kernels
from common.distributed import share, sum_over_processes, world_size

if TYPE_CHECKING:
    from common.vlm import VLM, ImageFeatures, Prompt

CHUNK_ELEMENTS = {"cpu": 1 << 20, "cuda": 1 << 27}  # logits per chunk: what fits a CPU's cache, what fills a GPU
KEEP_ELEMENTS = 1 << 25  # up to here the backward keeps the probabilities (128 MB) instead of rebuilding them
TINY_PROBABILITY = 1e-37  # p log p is 0 in float32 from here down
BANNED_LOGIT = -1e30  # its probability is exactly 0 in float32


def next_token_logits(hidden: Tensor, weight: Tensor, banned: Tensor, temperature: float) -> Tensor:
    """float32 logits [M, V] of the policy: linear head, divided by the temperature, banned ids at
    BANNED_LOGIT.

    A finite number instead of -inf keeps p log p = 0 and its gradient exactly, without special cases.
    """
    return policy_logits((hidden @ weight.T).float(), banned, temperature)


def policy_logits(logits: Tensor, banned: Tensor, temperature: float) -> Tensor:
    """The head's float32 output [M, V] turned into the policy's logits, in place."""
    if temperature != 1.0:
        logits.div_(temperature)
    return logits.index_fill_(1, banned, BANNED_LOGIT)


def raw_logits(hidden: Tensor, weight: Tensor, banned: Tensor) -> Tensor:
    """What the kernels read: logits [M, V] in the model's dtype, before the temperature."""
    return (hidden @ weight.T).index_fill_(1, banned, max(BANNED_LOGIT, torch.finfo(hidden.dtype).min))


class TokenLogps(torch.autograd.Function):
    """(log-prob of the target, entropy) per token, in chunks of tokens; all statistics in float32.

    Where the CUDA kernels can be used, they take the place of all that happens to a chunk of logits after the matmul.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, banned: Tensor, temperature: float,
                want_entropy: bool, chunk: int) -> tuple[Tensor, Tensor]:  # fmt: skip
        ctx.set_materialize_grads(False)
        count = len(targets)
        logps, entropy = torch.zeros(count, device=hidden.device), torch.zeros(count, device=hidden.device)
        needs_grad = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
        ctx.fused, ctx.kept, lse = kernels.usable(hidden), None, torch.zeros_like(logps)
        ctx.temperature, ctx.chunk = temperature, chunk
        if ctx.fused:
            for start in range(0, count, chunk):
                part = slice(start, start + chunk)
                logits = raw_logits(hidden[part], weight, banned)  # [m, V]
                logps[part], entropy[part], lse[part] = kernels.logps_forward(logits, targets[part], temperature)
            ctx.save_for_backward(hidden, weight, targets, banned, entropy, lse)
            return logps, entropy
        ctx.kept = [] if needs_grad and count * len(weight) <= KEEP_ELEMENTS else None
        for start in range(0, count, chunk):
            part = slice(start, start + chunk)
            all_logps = next_token_logits(hidden[part], weight, banned, temperature).log_softmax(1)  # [m, V]
            logps[part] = all_logps.gather(1, targets[part, None])[:, 0]
            if want_entropy or ctx.kept is not None:
                probs = all_logps.exp()
                entropy[part] = all_logps.mul_(probs).sum(1).neg_() if want_entropy else 0.0
            if ctx.kept is not None:
                ctx.kept.append(probs)
        ctx.save_for_backward(hidden, weight, targets, banned, entropy, lse)
        return logps, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_logps: Tensor | None, grad_entropy: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden, weight, targets, banned, entropy, lse = ctx.saved_tensors
        grad_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        # Sums over chunks are kept in float32: thousands of bf16 additions would lose the small ones.
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        grad_logps = torch.zeros_like(entropy) if grad_logps is None else grad_logps
        for number, start in enumerate(range(0, len(targets), ctx.chunk)):
            part = slice(start, start + ctx.chunk)
            if ctx.fused:
                logits = raw_logits(hidden[part], weight, banned)  # [m, V]
                grad = kernels.logps_backward_(logits, targets[part], ctx.temperature, lse[part], entropy[part],
                                               grad_logps[part],
                                               None if grad_entropy is None else grad_entropy[part])  # fmt: skip
            else:
                grad = TokenLogps.chunk_gradient(ctx, number, part, grad_logps, grad_entropy)
            if grad_hidden is not None:
                grad_hidden[part] = grad @ weight
            if grad_weight is not None:
                grad_weight += (grad.T @ hidden[part]).float()
        ctx.kept = None
        grad_weight = grad_weight.to(weight.dtype) if grad_weight is not None else None
        return grad_hidden, grad_weight, None, None, None, None, None

    @staticmethod
    def chunk_gradient(ctx: Any, number: int, part: slice, grad_logps: Tensor, grad_entropy: Tensor | None) -> Tensor:
        """d loss / d logits of one chunk [m, V] in PyTorch, in the weight's dtype."""
        hidden, weight, targets, banned, entropy, _ = ctx.saved_tensors
        if ctx.kept is not None:
            probs = ctx.kept[number]
        else:
            probs = next_token_logits(hidden[part], weight, banned, ctx.temperature).softmax(1)  # [m, V]
        # d logp[target] / d logits = onehot - p;  d entropy / d logits = -p (log p + entropy)
        factor = -grad_logps[part, None]
        if grad_entropy is not None:
            all_logps = probs.clamp(min=TINY_PROBABILITY).log_()
            factor = factor - grad_entropy[part, None] * all_logps.add_(entropy[part, None])
        grad = probs.mul_(factor)
        grad.scatter_add_(1, targets[part, None], grad_logps[part, None])
        return (grad.div_(ctx.temperature) if ctx.temperature != 1.0 else grad).to(weight.dtype)


def token_logps(hidden: Tensor, weight: Tensor, targets: Tensor, banned: Tensor, temperature: float = 1.0,
                entropy: bool | str = True) -> tuple[Tensor, Tensor]:  # fmt: skip
    """float32 (log-probs of targets [M], entropies [M]) of the policy's distribution (next_token_logits).

    hidden: [M, d]; weight: [V, d] of the same dtype; targets: int64 [M]; banned: int64 ids. entropy: True
    without gradient, "grad" with gradient, False for zeros. Memory: a few chunks of CHUNK_ELEMENTS floats,
    plus at most KEEP_ELEMENTS for the backward.
    """
    chunk = max(1, CHUNK_ELEMENTS.get(hidden.device.type, 1 << 20) // len(weight))
    arguments = (hidden, weight, targets, banned, temperature or 1.0, bool(entropy), chunk)
    if not torch.is_grad_enabled():  # a parameter would be taken for a reason to keep the probabilities
        arguments = (hidden.detach(), weight.detach(), *arguments[2:])
    logps, entropies = TokenLogps.apply(*arguments)
    return logps, entropies if entropy == "grad" else entropies.detach()


def micro_batches(lengths: list[int], max_tokens: int | None) -> list[list[int]]:
    """Groups packed into batches of at most max_tokens: longest first, each into the first batch with room.

    lengths: tokens of every group (prompt once + responses). A group longer than max_tokens gets a batch of
    its own; max_tokens None or 0 means one batch. Where there are fewer batches than processes, the largest are
    halved. Deterministic.

    >>> micro_batches([5, 9, 4, 5], 10)
    [[1], [0, 3], [2]]
    """
    if not max_tokens:
        return [list(range(len(lengths)))] if lengths else []
    batches: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        for batch, free in enumerate(room):
            if lengths[index] <= free:
                batches[batch].append(index)
                room[batch] -= lengths[index]
                break
        else:
            batches.append([index])
            room.append(max_tokens - lengths[index])
    while len(batches) < min(world_size(), len(lengths)):
        largest = max((b for b in batches if len(b) > 1), key=lambda b: sum(lengths[i] for i in b))
        batches.remove(largest)
        batches += [largest[0::2], largest[1::2]]
    return batches


def response_logps(vlm: VLM, prompts: list[Prompt], tokens: Tensor, mask: Tensor, *, temperature: float = 1.0,
                   features: list[ImageFeatures] | None = None, entropy: bool | str = True,
                   max_tokens: int | None = None) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Log-probs and entropies, float32 [N, R] each, of responses to prompts; 0 where mask is 0.

    tokens: int64 [N, R], mask: bool [N, R] with the valid tokens first; N = len(prompts) * G, G >= 1, and row
    n belongs to prompt n // G. temperature: as when sampling; 0 (greedy) counts as 1. features: of
    `vlm.encode_images`, else they are computed here. entropy: True without gradient, "grad" with gradient,
    False for zeros. max_tokens: split into several forwards of whole groups (for passes without gradient), which
    are shared out over the processes; all get the whole result. Gradient flows iff torch.is_grad_enabled().
    """
    group, lengths = checked_group(prompts, mask), mask.sum(1).tolist()  # responses per prompt, [N]
    if not max_tokens:
        return group_logps(vlm, prompts, tokens, mask, lengths, temperature, features, entropy)
    logps, entropies = (torch.zeros(mask.shape, device=mask.device) for _ in range(2))
    shared_out = not torch.is_grad_enabled()
    batches = micro_batches(packed_lengths(prompts, lengths, group), max_tokens)
    for batch in share(batches) if shared_out else batches:
        rows = [i * group + j for i in batch for j in range(group)]
        chosen = [features[i] for i in batch] if features is not None else None
        logps[rows], entropies[rows] = group_logps(
            vlm, [prompts[i] for i in batch], tokens[rows], mask[rows], [lengths[n] for n in rows],
            temperature, chosen, entropy,
        )  # fmt: skip
    if shared_out:
        sum_over_processes(logps)
        sum_over_processes(entropies)
    return logps, entropies


def checked_group(prompts: list[Prompt], mask: Tensor) -> int:
    """G, the responses per prompt. Raises ValueError when rows or mask [N, R] do not fit."""
    group = len(mask) // len(prompts)
    if group * len(prompts) != len(mask) or not group:
        raise ValueError(f"{len(mask)} responses cannot be shared out evenly among {len(prompts)} prompts")
    if bool((mask[:, 1:] & ~mask[:, :-1]).any()):
        raise ValueError("mask must mark the first tokens of every row, without gaps")
    return group


def packed_lengths(prompts: list[Prompt], lengths: list[int], group: int) -> list[int]:
    """Tokens of every group in a forward pass: the prompt once, then its responses."""
    return [len(p.input_ids) + sum(lengths[i * group : (i + 1) * group]) for i, p in enumerate(prompts)]


def group_logps(vlm: VLM, prompts: list[Prompt], tokens: Tensor, mask: Tensor, lengths: list[int],
                temperature: float, features: list[ImageFeatures] | None,
                entropy: bool | str) -> tuple[Tensor, Tensor]:  # fmt: skip
    """response_logps in a single forward; lengths: valid tokens of every row."""
    hidden = group_hidden(vlm, prompts, tokens, mask, lengths, features)  # [M, d]
    flat, flat_entropy = token_logps(hidden, vlm.head_weight, tokens[mask], vlm.banned_ids, temperature, entropy)
    zeros = torch.zeros(mask.shape, device=mask.device)
    return zeros.masked_scatter(mask, flat), zeros.masked_scatter(mask, flat_entropy)


def group_hidden(vlm: VLM, prompts: list[Prompt], tokens: Tensor, mask: Tensor, lengths: list[int],
                 features: list[ImageFeatures] | None) -> Tensor:  # fmt: skip
    """[M, d]: the hidden states that predict the M valid tokens, row by row, in a single forward."""
    group = len(tokens) // len(prompts)
    features = vlm.encode_images(prompts) if features is None else features
    # The last token of a response predicts nothing that is scored, so it need not be run.
    hidden, layout = vlm.run_groups(prompts, features, tokens, [max(n - 1, 0) for n in lengths])  # [T, d]
    prompt_ends = layout.prompts.offsets[1:].long() - 1  # [B]
    suffix_starts = layout.prompts.total + layout.responses.offsets[:-1].long()  # [N]
    places = torch.arange(tokens.shape[1], device=tokens.device)
    # Token t is predicted at token t - 1 of the response, the first one at the end of the prompt.
    first = prompt_ends.repeat_interleave(group)[:, None]  # [N, 1]
    source = torch.where(places == 0, first, suffix_starts[:, None] + places - 1)  # rows of hidden, [N, R]
    return hidden[source[mask]]

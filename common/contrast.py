"""How differently two prompts, such as a question about a picture and about a noisy copy of it, predict one response.

`response_contrast` gives both log-probs, both entropies and both KL divergences over the whole vocabulary, token by
token, from two forwards and a head that never builds [tokens, vocab]. Without gradient: a measurement, not a loss.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from common import logprob
from common.distributed import share, sum_over_processes
from common.logprob import checked_group, group_hidden, micro_batches, next_token_logits, packed_lengths

if TYPE_CHECKING:
    from common.args import CommonArgs
    from common.vlm import VLM, ImageFeatures, Prompt


class Contrast(NamedTuple):
    """p is the distribution after the first prompt, q after the other; float32 [N, R] each, 0 where mask is 0."""

    logps: Tensor  # log p(token)
    other_logps: Tensor  # log q(token)
    entropy: Tensor  # of p, in nats
    other_entropy: Tensor  # of q
    forward: Tensor  # KL(p || q)
    backward: Tensor  # KL(q || p)


@torch.no_grad()
def response_contrast(vlm: VLM, prompts: list[Prompt], others: list[Prompt], tokens: Tensor, mask: Tensor, *,
                      temperature: float = 1.0, features: list[ImageFeatures] | None = None,
                      max_tokens: int | None = None) -> Contrast:  # fmt: skip
    """The responses after `prompts` and after `others`, which correspond one to one.

    Arguments as in response_logps; features: of `prompts`. Two forwards per micro-batch, each of at most max_tokens
    tokens of `prompts`, shared out over the processes; all get the whole result.
    """
    group, lengths = checked_group(prompts, mask), mask.sum(1).tolist()  # responses per prompt, [N]
    result = torch.zeros(len(Contrast._fields), *mask.shape, device=mask.device)  # [6, N, R]
    for batch in share(micro_batches(packed_lengths(prompts, lengths, group), max_tokens)):
        rows = [i * group + j for i in batch for j in range(group)]
        part, valid, sizes = tokens[rows], mask[rows], [lengths[n] for n in rows]  # [n, R] each
        chosen = [features[i] for i in batch] if features is not None else None
        first = group_hidden(vlm, [prompts[i] for i in batch], part, valid, sizes, chosen)  # [M, d]
        other = group_hidden(vlm, [others[i] for i in batch], part, valid, sizes, None)
        found = torch.zeros_like(result[:, rows])  # [6, n, R]
        found[:, valid] = token_contrast(first, other, vlm.head_weight, part[valid], vlm.banned_ids, temperature)
        result[:, rows] = found
    sum_over_processes(result)
    return Contrast(*result)


def token_contrast(first: Tensor, other: Tensor, weight: Tensor, targets: Tensor, banned: Tensor,
                   temperature: float = 1.0) -> Tensor:  # fmt: skip
    """float32 [6, M], the fields of Contrast for M tokens.

    first, other: hidden states [M, d] that lead to p and q; weight: [V, d]; targets: int64 [M]; banned: int64 ids.
    Memory: a few chunks of logprob.CHUNK_ELEMENTS floats.
    """
    result = torch.zeros(len(Contrast._fields), len(targets), device=first.device)
    chunk = max(1, logprob.CHUNK_ELEMENTS.get(first.device.type, 1 << 20) // len(weight))
    for start in range(0, len(targets), chunk):
        part = slice(start, start + chunk)
        log_p, log_q = (next_token_logits(hidden[part], weight, banned, temperature or 1.0).log_softmax(1)  # [m, V]
                        for hidden in (first, other))  # fmt: skip
        p, q, difference = log_p.exp(), log_q.exp(), log_p - log_q  # a banned id has p = q = 0, difference 0
        result[0, part], result[1, part] = (x.gather(1, targets[part, None])[:, 0] for x in (log_p, log_q))
        result[2, part], result[3, part] = -(log_p * p).sum(1), -(log_q * q).sum(1)
        result[4, part], result[5, part] = (p * difference).sum(1), -(q * difference).sum(1)
    result[2:].clamp_(min=0)  # what rounding leaves below zero
    return result


def reliance(vlm: VLM, args: CommonArgs, max_new_tokens: int,
             damage: Callable[[np.ndarray, np.random.Generator], np.ndarray]) -> dict[str, float]:  # fmt: skip
    """How much answers rest on the picture: two sampled answers to 48 held-out questions, always the same way.

    damage(image uint8 [H, W, 3], rng) -> the other picture, of the same size. Returned names: "u" (symmetric KL of a
    token, in nats), "entropy"; in the micro-world also "u visual/template ratio", the mean u of the words that only the
    picture can tell over that of all others. Empty with --eval-questions 0.
    """
    from common.rollout import rollout
    from common.training import Averages, by_token_kind, make_prompt, questions

    if not args.eval_questions:
        return {}
    samples, rng, averages = questions(args, "test")[:48], np.random.default_rng(0), Averages()
    prompts = [make_prompt(vlm, sample, args.prompt) for sample in samples]
    batch = rollout(vlm, prompts, 2, max_new_tokens=max_new_tokens, generator=torch.Generator().manual_seed(0),
                    max_rows=32)  # fmt: skip
    others = [vlm.replace_images(p, [damage(image, rng) for image in p.images]) for p in prompts]
    two = response_contrast(vlm, prompts, others, batch.tokens, batch.mask, max_tokens=16_384)
    by_token_kind(averages, vlm, batch, samples, u=(two.forward + two.backward) / 2, entropy=two.entropy)
    found = averages.result()
    result = {name: found[name] for name in ("u", "entropy")}
    if "u/visual" in found:
        result["u visual/template ratio"] = found["u/visual"] / max(found["u/template"], 1e-9)
    return result

"""The arithmetic of GRPO and its relatives: pure tensor functions, one per step of the recipe.

    rewards -> advantages -> log-ratios -> clipped token losses -> one number

Shapes: N responses of at most T tokens, row n belongs to group n // group_size; `mask` [N, T] is True on
response tokens up to and including the first end-of-sequence token. Nothing here knows about models or
images.
Sources: GRPO 2402.03300, DAPO 2503.14476, Dr.GRPO 2503.20783, GSPO 2507.18071, CISPO 2506.13585, and what
TRL, verl and EasyR1 make of them; where the libraries differ, a parameter says so.

>>> import torch
>>> group_advantages(torch.tensor([1.0, 0.0, 0.0, 1.0]), group_size=4, scale="none")
tensor([ 0.5000, -0.5000, -0.5000,  0.5000])
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Aggregation = Literal["token_mean", "token_mean_micro", "sequence_mean", "sequence_mean_token_share",
                      "sequence_sum", "token_sum_over_budget", "token_sum_over_width"]  # fmt: skip


# ------------------------------------------------------------------------------------- which groups can teach
def by_group(values: Tensor, group_size: int) -> Tensor:
    """[N] -> [N // group_size, group_size]. Raises ValueError when N is not a multiple of the group size."""
    if values.numel() % group_size:
        raise ValueError(f"{values.numel()} values do not split into groups of {group_size}")
    return values.view(-1, group_size)


def has_spread(values: Tensor, group_size: int) -> Tensor:
    """bool [groups]: whether the rewards of a group differ at all.

    Compared for equality, value by value: the mean of eight times 0.2 is not exactly 0.2, so a standard
    deviation of "zero" can be 1e-8, which a small epsilon turns into an advantage made of rounding errors.
    """
    groups = by_group(values, group_size)  # [groups, G]
    return (groups != groups[:, :1]).any(dim=1)


def keep_groups(scores: Tensor, group_size: int, rule: Literal["mean", "std"], low: float = 0.01,
                high: float = 0.99) -> Tensor:  # fmt: skip
    """bool [groups]: DAPO's dynamic sampling, the groups worth an update.

    "mean" keeps low < mean < high (EasyR1, bounds 0.01 and 0.99); "std" keeps every group whose scores differ
    (verl). They agree on 0/1 scores with moderate groups and differ otherwise: seven 1.0 and one 0.98 have
    mean 0.9975. Scores between 0 and 1 that are all equal pass the bounds but teach nothing: "mean" drops them too.
    """
    spread = has_spread(scores, group_size)
    if rule == "std":
        return spread
    mean = by_group(scores, group_size).mean(dim=1)  # [groups]
    return spread & (mean > low) & (mean < high)


# ------------------------------------------------------------------------------------------------- advantages
def group_advantages(rewards: Tensor, group_size: int, scale: Literal["group", "batch", "none"] = "group",
                     eps: float = 1e-6) -> Tensor:  # fmt: skip
    """A = (R - mean of the group) / (std + eps), [N] -> [N]. Bessel-corrected std; groups without spread get
    exactly 0.

    scale: "group" is GRPO, "batch" divides by the std over all N rewards (TRL option), "none" is Dr.GRPO.
    eps: 1e-6 in verl and EasyR1, 1e-4 in TRL. Raises ValueError for groups of one: they have no baseline.
    """
    if group_size < 2:
        raise ValueError("a group needs at least 2 responses: with one there is nothing to compare it with")
    groups = by_group(rewards, group_size)  # [groups, G]
    advantages = groups - groups.mean(dim=1, keepdim=True)
    if scale == "group":
        advantages = advantages / (groups.std(dim=1, keepdim=True) + eps)
    elif scale == "batch":
        advantages = advantages / (groups.std() + eps)
    # Not a product: with eps = 0 the advantages of a group without spread are 0 / 0.
    return advantages.masked_fill(~has_spread(rewards, group_size)[:, None], 0.0).flatten()


def rloo_advantages(rewards: Tensor, group_size: int) -> Tensor:
    """A_i = R_i - mean of the other responses of the group (RLOO), [N] -> [N]."""
    return group_advantages(rewards, group_size, scale="none") * (group_size / (group_size - 1))


def passk_advantages(rewards: Tensor, group_size: int, eps: float = 1e-6) -> Tensor:
    """Pass@k form (EasyR1): only the best response of a group counts, by its lead over the second best; [N]
    -> [N]."""
    groups = by_group(rewards, group_size)  # [groups, G]
    top = groups.topk(2, dim=1)
    lead = (top.values[:, 0] - top.values[:, 1]) / (groups.std(dim=1) + eps)  # [groups]
    lead = lead.masked_fill(~has_spread(rewards, group_size), 0.0)  # 0 / 0 if eps = 0
    return torch.zeros_like(groups).scatter(1, top.indices[:, :1], lead[:, None]).flatten()


# ----------------------------------------------------------------------------------------------------- ratios
def token_log_ratio(logps: Tensor, old_logps: Tensor, clamp: float | None = 20.0) -> Tensor:
    """l_t = logp_t - old logp_t, [N, T]; clamped to +-20 before it is exponentiated (verl, EasyR1; None:
    TRL)."""
    difference = logps - old_logps
    return difference if clamp is None else difference.clamp(-clamp, clamp)


def sequence_log_ratio(logps: Tensor, old_logps: Tensor, mask: Tensor, upper: float | None = 10.0) -> Tensor:
    """GSPO: the mean of l_t over a response, repeated on its tokens, [N, T].

    Differentiating this mean gives every token the same gradient as verl's straight-through form.
    upper: clamp from above (verl 10; None: TRL).
    """
    lengths = mask.sum(dim=1, keepdim=True).clamp(min=1)  # [N, 1]
    mean = ((logps - old_logps) * mask).sum(dim=1, keepdim=True) / lengths  # [N, 1]
    return (mean if upper is None else mean.clamp(max=upper)).expand_as(logps)


# ----------------------------------------------------------------------------------------------- token losses
def clipped_loss(log_ratio: Tensor, advantages: Tensor, clip_low: float = 0.2, clip_high: float = 0.28,
                 dual_clip: float = 0.0, ratio_cap: float = 0.0) -> Tensor:  # fmt: skip
    """PPO's pessimistic token loss L_t = max(-A r, -A clip(r, 1 - clip_low, 1 + clip_high)), [N, T].

    advantages: [N, T] or [N, 1]. dual_clip c > 0: where A < 0 the loss is at most -c A (verl, EasyR1: 3;
    DAPO's script: 10). ratio_cap > 0: r is cut at this value before the max (TRL's delta); for A < 0 the same
    effect as dual_clip.
    """
    ratio = log_ratio.exp()  # [N, T]
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high)
    if ratio_cap > 0:
        ratio = ratio.clamp(max=ratio_cap)
    loss = torch.maximum(-advantages * ratio, -advantages * clipped)
    if dual_clip > 0:
        loss = torch.where(advantages < 0, torch.minimum(loss, -dual_clip * advantages), loss)
    return loss


def clipped_tokens(log_ratio: Tensor, advantages: Tensor, clip_low: float,
                   clip_high: float) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(cut from below, cut from above), bool [N, T] each: the tokens whose gradient the clip removes."""
    ratio = log_ratio.exp()
    return (advantages < 0) & (ratio < 1 - clip_low), (advantages > 0) & (ratio > 1 + clip_high)


def cispo_loss(logps: Tensor, log_ratio: Tensor, advantages: Tensor, low: float = 0.0,
               high: float = 1.28) -> Tensor:  # fmt: skip
    """CISPO: -stop_gradient(clip(r, low, high)) A logp, [N, T]; every token keeps its gradient.

    low, high are bounds of r itself. TRL: low 0 (no lower bound). EasyR1: low 1 - clip_low, high 1 +
    clip_high.
    """
    return -log_ratio.exp().clamp(low, high).detach() * advantages * logps


def kl_estimate(logps: Tensor, ref_logps: Tensor, kind: Literal["k1", "k2", "k3"] = "k3",
                inner: float | None = 20.0, outer: float | None = 10.0) -> Tensor:  # fmt: skip
    """One-sample estimate of KL(policy || reference) on each sampled token, [N, T].

    k1 = logp - ref; k2 = (logp - ref)^2 / 2; k3 = exp(ref - logp) - (ref - logp) - 1 >= 0. inner, outer:
    clamps of k3's exponent and value in verl and EasyR1 (no gradient beyond); None, None is TRL.
    """
    difference = ref_logps - logps  # [N, T]
    if kind == "k1":
        return -difference
    if kind == "k2":
        return difference.square() / 2
    if inner is not None:
        difference = difference.clamp(-inner, inner)
    k3 = difference.exp() - difference - 1
    return k3 if outer is None else k3.clamp(-outer, outer)


# ------------------------------------------------------------------------------------ from tokens to a number
def aggregate(losses: Tensor, mask: Tensor, mode: Aggregation = "token_mean", *, tokens: int | None = None,
              sequences: int | None = None, micro_batches: int = 1,
              max_length: int | None = None) -> Tensor:  # fmt: skip
    """One number from token losses [N, T]: this micro-batch's SHARE of the mini-batch loss, so that shares
    add up.

    tokens, sequences: response tokens and responses in the whole mini-batch (default: in this batch). With
    them, how a mini-batch is cut into micro-batches does not change its gradient; the two modes marked (*)
    are the exceptions.

    token_mean             sum L / tokens            DAPO, TRL "dapo", verl "token-mean", EasyR1 "token"
    token_mean_micro (*)   mean over micro-batches of (sum L / its tokens)     TRL "bnpo", older EasyR1 forks
    sequence_mean          mean_i (sum_t L / n_i)    GRPO's paper, TRL "grpo", verl "seq-mean-token-mean"
    sequence_mean_token_share (*)   a micro-batch's sequence_mean times its share of the tokens   EasyR1 "seq"
    sequence_sum           mean_i sum_t L            verl "seq-mean-token-sum"
    token_sum_over_budget  sum L / (N max_length)    Dr.GRPO, TRL "dr_grpo"
    token_sum_over_width   sum L / max_length        verl "seq-mean-token-sum-norm" (not divided by N)
    """
    mask = mask.to(losses.dtype)
    lengths = mask.sum(dim=1)  # [N]
    tokens = tokens or max(int(lengths.sum()), 1)
    sequences = sequences or max(int((lengths > 0).sum()), 1)
    max_length = max_length or losses.shape[1]
    total = (losses * mask).sum(dim=1)  # [N], sum_t L
    if mode == "token_mean":
        return total.sum() / tokens
    if mode == "token_mean_micro":
        return total.sum() / lengths.sum().clamp(min=1) / micro_batches
    if mode == "sequence_mean":
        return (total / lengths.clamp(min=1)).sum() / sequences
    if mode == "sequence_mean_token_share":
        mean = (total / lengths.clamp(min=1)).sum() / (lengths > 0).sum().clamp(min=1)
        return mean * lengths.sum() / tokens
    if mode == "sequence_sum":
        return total.sum() / sequences
    if mode == "token_sum_over_budget":
        return total.sum() / (sequences * max_length)
    if mode == "token_sum_over_width":
        return total.sum() / max_length
    raise ValueError(f"unknown aggregation {mode!r}")


# ----------------------------------------------------------------------------------------------- reward terms
def overlong_penalty(lengths: Tensor, max_length: int, buffer: int, factor: float = 1.0,
                     form: Literal["verl", "easyr1"] = "easyr1") -> Tensor:  # fmt: skip
    """DAPO's soft punishment of long responses, [N] <= 0: from 0 at max_length - buffer tokens down to
    -factor.

    lengths: tokens per response [N]. form "verl" keeps falling beyond max_length, "easyr1" stops at -factor.
    Raises ValueError when the buffer is not positive.
    """
    if buffer <= 0:
        raise ValueError("the overlong buffer must be a positive number of tokens")
    penalty = ((max_length - buffer - lengths) / buffer).clamp(max=0.0)
    return factor * (penalty if form == "verl" else penalty.clamp(min=-1.0))

"""common/grpo.py against golden vectors of the official codes and against independent float64 formulas."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common.grpo import (
    aggregate,
    cispo_loss,
    clipped_loss,
    clipped_tokens,
    group_advantages,
    has_spread,
    keep_groups,
    kl_estimate,
    overlong_penalty,
    passk_advantages,
    rloo_advantages,
    sequence_log_ratio,
    token_log_ratio,
)

PAD = 0.0
REWARDS = torch.tensor([1.0, 0.0, 0.0, 1.0, 0.2, 0.2, 0.2, 1.0])
OLD = torch.tensor([[-1.0, -2.0, -0.5, -1.0], [-0.7, -0.2, -1.5, PAD]])
NEW = torch.tensor([[-0.7, -2.1, -0.5, -1.3], [-0.2, -0.4, -0.1, PAD]])
REF = torch.tensor([[-1.1, -2.0, -0.6, -1.0], [-0.6, -0.2, -1.4, PAD]])
MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]]).bool()
ADVANTAGES = torch.tensor([[1.0], [-1.0]])


def close(actual, expected, tolerance=1.5e-6):
    torch.testing.assert_close(torch.as_tensor(actual), torch.tensor(expected), atol=tolerance, rtol=0)


def token_losses(**options):
    logps = NEW.clone().requires_grad_()
    return logps, clipped_loss(token_log_ratio(logps, OLD), ADVANTAGES, 0.2, 0.28, **options)


# --------------------------------------------------------------------------------------------- golden vectors
def test_golden_1_advantages():
    a, b, c = 0.866024, 0.499999, 1.499996
    close(group_advantages(REWARDS, 4), [a, -a, -a, a, -b, -b, -b, c])
    a, b, c = 0.865875, 0.499875, 1.499625
    close(group_advantages(REWARDS, 4, eps=1e-4), [a, -a, -a, a, -b, -b, -b, c])
    a, b, c = 1.079890, 0.431956, 1.295868
    close(group_advantages(REWARDS, 4, scale="batch", eps=1e-4), [a, -a, -a, a, -b, -b, -b, c])
    close(group_advantages(REWARDS, 4, scale="none"), [0.5, -0.5, -0.5, 0.5, -0.2, -0.2, -0.2, 0.6])
    a, b, c = 0.666667, 0.266667, 0.8
    close(rloo_advantages(REWARDS, 4), [a, -a, -a, a, -b, -b, -b, c])


def test_golden_2_token_ratios():
    ratio = token_log_ratio(NEW, OLD).exp()
    close(ratio[0], [1.349859, 0.904837, 1.0, 0.740818])
    close(ratio[1, :3], [1.648721, 0.818731, 4.055200])


def test_golden_3_and_4_losses_and_averages():
    _, plain = token_losses()
    close(aggregate(plain, MASK, "sequence_mean"), 0.596402)
    close(aggregate(plain, MASK, "token_mean"), 0.370999)
    close(aggregate(plain, MASK, "token_mean_micro"), 0.370999)
    close(aggregate(plain, MASK, "token_sum_over_budget", max_length=4), 0.324625)
    close(aggregate(plain, MASK, "token_sum_over_budget", max_length=8), 0.162312)
    _, dual = token_losses(dual_clip=3.0)
    close(aggregate(dual, MASK, "token_mean"), 0.220257)
    close(aggregate(dual, MASK, "sequence_mean"), 0.420535)
    close(aggregate(dual, MASK, "sequence_mean_token_share"), 0.420535)
    close(aggregate(dual, MASK, "sequence_sum"), 0.770898)
    close(aggregate(dual, MASK, "token_sum_over_width", max_length=4), 0.385449)


@pytest.mark.parametrize(
    ("options", "loss", "last"),
    [({}, 0.370999, 0.579314), ({"dual_clip": 3.0}, 0.220257, 0.0), ({"ratio_cap": 2.0}, 0.077399, 0.0)],
)
def test_golden_5_gradients(options, loss, last):
    logps, losses = token_losses(**options)
    value = aggregate(losses, MASK, "token_mean")
    value.backward()
    close(value.detach(), loss)
    close(logps.grad, [[0, -0.129262, -0.142857, -0.105831], [0.235532, 0.116962, last, 0]])


def test_golden_6_kl_estimates():
    k3 = [[0.070320, 0.005171, 0.004837, 0.049859], [0.070320, 0.021403, 0.572532, 0]]
    close(kl_estimate(NEW, REF, "k3"), k3)
    close(kl_estimate(NEW, REF, "k3", inner=None, outer=None), k3)
    close(kl_estimate(NEW, REF, "k1"), [[0.4, -0.1, 0.1, -0.3], [0.4, -0.2, 1.3, 0]])
    close(kl_estimate(NEW, REF, "k2"), [[0.08, 0.005, 0.005, 0.045], [0.08, 0.02, 0.845, 0]])
    logps = NEW.clone().requires_grad_()
    kl_estimate(logps, REF, "k3").sum().backward()
    close(logps.grad, [[0.329680, -0.105171, 0.095163, -0.349859], [0.329680, -0.221403, 0.727468, 0]])


def test_golden_7_kl_inside_the_loss():
    losses = clipped_loss(token_log_ratio(NEW, OLD, clamp=None), ADVANTAGES, 0.2, 0.2)
    losses = losses + 0.04 * kl_estimate(NEW, REF, "k3", inner=None, outer=None)
    close(aggregate(losses, MASK, "sequence_mean"), 0.611481)


def test_golden_8_gspo():
    logps = NEW.clone().requires_grad_()
    log_ratio = sequence_log_ratio(logps, OLD, MASK)
    close(log_ratio[:, 0].detach(), [-0.025, 0.566667])
    close(log_ratio[:, 0].exp().detach(), [0.975310, 1.762383])
    loss = aggregate(clipped_loss(log_ratio, ADVANTAGES, 0.5, 0.5), MASK, "sequence_mean")
    loss.backward()
    close(loss.detach(), 0.393536)
    close(logps.grad, [[-0.121914] * 4, [0.293730] * 3 + [0.0]])


def test_golden_9_cispo():
    log_ratio = token_log_ratio(NEW, OLD)
    close(aggregate(cispo_loss(NEW, log_ratio, ADVANTAGES, 0.8, 1.28), MASK), 0.517809)
    close(aggregate(cispo_loss(NEW, log_ratio, ADVANTAGES, 0.0, 1.2), MASK), 0.502247)


def test_golden_10_overlong():
    lengths = torch.tensor([16384, 18000, 20480, 21000])
    close(overlong_penalty(lengths, 20480, 4096, form="verl"), [0.0, -0.394531, -1.0, -1.126953])
    close(overlong_penalty(lengths, 20480, 4096, form="easyr1"), [0.0, -0.394531, -1.0, -1.0])
    close(overlong_penalty(lengths, 20480, 4096, factor=0.5), [0.0, -0.394531 / 2, -0.5, -0.5])


def test_golden_11_filter():
    scores = torch.tensor([1.0, 1, 1, 1, 1, 1, 1, 0.98])  # second group: mean 0.995
    assert keep_groups(scores, 4, "std").tolist() == [False, True]
    assert keep_groups(scores, 4, "mean").tolist() == [False, False]
    assert keep_groups(REWARDS, 4, "mean").tolist() == [True, True]


# ------------------------------------------------------------------------------- independent float64 formulas
def reference_advantages(rewards: list[float], size: int, eps: float) -> list[float]:
    out = []
    for start in range(0, len(rewards), size):
        group = rewards[start : start + size]
        mean = math.fsum(group) / size
        std = math.sqrt(math.fsum((r - mean) ** 2 for r in group) / (size - 1))
        out += [0.0 if len(set(group)) == 1 else (r - mean) / (std + eps) for r in group]
    return out


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.floats(-10, 10), min_size=3, max_size=3), min_size=1, max_size=5))
def test_advantages_equal_a_float64_loop(groups):
    flat = [r for group in groups for r in group]
    actual = group_advantages(torch.tensor(flat, dtype=torch.float64), 3)
    torch.testing.assert_close(actual, torch.tensor(reference_advantages(flat, 3, 1e-6), dtype=torch.float64),
                               atol=1e-6, rtol=1e-6)  # fmt: skip


def reference_token_loss(ratio: float, advantage: float, low: float, high: float, dual: float, cap: float) -> float:
    clipped = min(max(ratio, 1 - low), 1 + high)
    loss = max(-advantage * (min(ratio, cap) if cap else ratio), -advantage * clipped)
    return min(loss, -dual * advantage) if dual and advantage < 0 else loss


@settings(max_examples=60, deadline=None)
@given(st.floats(-3, 3), st.floats(-3, 3), st.sampled_from([0.0, 3.0, 10.0]), st.sampled_from([0.0, 2.0]))
def test_token_loss_equals_a_float64_formula(log_ratio, advantage, dual, cap):
    log_ratios, advantages = (torch.tensor([[x]], dtype=torch.float64) for x in (log_ratio, advantage))
    expected = reference_token_loss(math.exp(log_ratio), advantage, 0.2, 0.28, dual, cap)
    actual = clipped_loss(log_ratios, advantages, 0.2, 0.28, dual, cap)
    assert actual.item() == pytest.approx(expected, abs=1e-9)


def test_zero_spread_is_exact_for_awkward_values():
    for value in (0.1, 0.2, 0.3, 0.7, 1e-3):
        for size in (3, 5, 6, 7):
            assert group_advantages(torch.full((2 * size,), value), size).abs().max() == 0
            assert not has_spread(torch.full((size,), value), size).any()
    # the difference must survive in a group of near-equal rewards
    assert has_spread(torch.tensor([0.2, 0.2, 0.2000001]), 3).all()


def test_one_flat_group_does_not_change_the_others():
    alone = group_advantages(REWARDS[4:], 4)
    both = group_advantages(torch.cat([torch.ones(4), REWARDS[4:]]), 4)
    assert torch.equal(both[4:], alone) and both[:4].abs().max() == 0


def test_groups_of_one_and_ragged_batches_are_refused():
    with pytest.raises(ValueError, match="at least 2"):
        group_advantages(torch.ones(3), 1)
    with pytest.raises(ValueError, match="groups of 4"):
        group_advantages(torch.ones(6), 4)
    with pytest.raises(ValueError, match="buffer"):
        overlong_penalty(torch.tensor([3]), 8, 0)
    with pytest.raises(ValueError, match="unknown"):
        aggregate(torch.zeros(1, 1), torch.ones(1, 1), "mean")


def test_passk_rewards_only_the_leader():
    rewards = torch.tensor([0.0, 1.0, 0.4, 0.0])
    close(passk_advantages(rewards, 4)[1], 0.6 / (rewards.std().item() + 1e-6))
    assert passk_advantages(rewards, 4).count_nonzero() == 1
    assert passk_advantages(torch.tensor([1.0, 1.0, 0.0]), 3).abs().max() == 0


def test_extreme_ratios_stay_finite():
    logps = torch.tensor([[-1000.0, -0.0, 0.0]], requires_grad=True)
    log_ratio = token_log_ratio(logps, torch.tensor([[0.0, -1000.0, 0.0]]))
    loss = clipped_loss(log_ratio, torch.tensor([[-1.0]]), dual_clip=3.0).sum()
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(logps.grad).all()
    assert kl_estimate(torch.tensor([-1000.0]), torch.tensor([0.0])).item() == 10.0


def test_clipped_tokens_are_those_without_gradient():
    logps, losses = token_losses()
    losses.sum().backward()
    below, above = clipped_tokens(token_log_ratio(NEW, OLD), ADVANTAGES, 0.2, 0.28)
    assert torch.equal((below | above)[MASK], logps.grad[MASK] == 0)
    assert above[0].tolist() == [True, False, False, False] and not below.any()


@pytest.mark.parametrize("mode", ["token_mean", "sequence_mean", "sequence_sum", "token_sum_over_budget",
                                  "token_sum_over_width"])  # fmt: skip
def test_micro_batches_do_not_change_the_gradient(mode):
    torch.manual_seed(0)
    logps = torch.randn(6, 5, dtype=torch.float64)
    mask = torch.arange(5) < torch.tensor([5, 1, 3, 2, 4, 5])[:, None]
    advantages = torch.randn(6, 1, dtype=torch.float64)

    def gradient(cuts):
        x = logps.clone().requires_grad_()
        for rows in cuts:
            losses = clipped_loss(token_log_ratio(x[rows], logps[rows] - 0.1), advantages[rows])
            totals = {"tokens": int(mask.sum()), "sequences": 6, "max_length": 5}
            aggregate(losses, mask[rows], mode, **totals).backward()
        return x.grad

    torch.testing.assert_close(gradient([slice(0, 6)]), gradient([slice(0, 1), slice(1, 3), slice(3, 6)]))


def test_modes_marked_as_exceptions_do_depend_on_the_cut():
    losses, mask = torch.tensor([[1.0, 1.0], [4.0, 0.0]]), torch.tensor([[1, 1], [1, 0]]).bool()
    whole = aggregate(losses, mask, "token_mean_micro")
    parts = sum(aggregate(losses[i : i + 1], mask[i : i + 1], "token_mean_micro", micro_batches=2) for i in range(2))
    assert whole == 2.0 and parts == 2.5
    shares = sum(aggregate(losses[i : i + 1], mask[i : i + 1], "sequence_mean_token_share", tokens=3) for i in range(2))
    assert aggregate(losses, mask, "sequence_mean_token_share") == 2.5 and shares == pytest.approx(2.0)


def test_a_fully_masked_row_is_left_out_of_the_sequence_mean():
    losses, mask = torch.ones(2, 3), torch.tensor([[1, 1, 0], [0, 0, 0]]).bool()
    assert aggregate(losses, mask, "sequence_mean") == 1.0


def test_gspo_equals_the_straight_through_form():
    torch.manual_seed(1)
    old = torch.randn(2, 4, dtype=torch.float64)
    for mode in ("token_mean", "sequence_mean"):
        grads = []
        for straight_through in (False, True):
            x = (old + 0.05 * torch.arange(4)).clone().requires_grad_()
            s = sequence_log_ratio(x, old, MASK, upper=None)
            log_ratio = s.detach() + x - x.detach() if straight_through else s
            aggregate(clipped_loss(log_ratio, ADVANTAGES.double(), 0.5, 0.5), MASK, mode).backward()
            grads.append(x.grad * MASK)
        torch.testing.assert_close(grads[0], grads[1])

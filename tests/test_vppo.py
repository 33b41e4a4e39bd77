"""methods/vppo.py against the golden vectors of its official code, and its functions one by one."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import close
from method_runs import ONE_STEP, TableModelWithPictures, metrics, only_run, stand_in, table_rollout

from common.grpo import aggregate, group_advantages
from methods.vppo import Args, dependency_scores, log_ratios, main, perturb, policy_losses, token_mask, trajectory_scale

OLD = torch.tensor([[-0.5, -1.0, -0.2, -2.0, -0.7], [-0.3, -0.4, -0.9, -1.1, 0.0]])
AUG = torch.tensor([[-0.5, -2.0, -0.3, -1.5, -3.7], [-0.3, -0.5, -1.4, -1.0, 0.0]])
NEW = torch.tensor([[-0.5, -0.9, -0.2, -2.0, -0.2], [-0.3, -0.4, -1.2, -1.1, 0.0]])
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]]).bool()
ADVANTAGES = torch.tensor([[1.0], [-1.0]])
SCORES = [[0, 0.367879, 0.004837, 0.148721, 2.049787], [0, 0.004837, 0.106531, 0.005171, 0]]
KEPT = [[0, 1, 0, 0, 1], [0, 0, 1, 1, 0]]


def update(args: Args, micro_batches: list[list[int]]):
    """The update of one mini-batch in the order of methods/vppo.py; (alpha, loss, gradient)."""
    scores = dependency_scores(args, AUG, OLD) * MASK
    mean = scores.sum(1) / MASK.sum(1)
    kept = token_mask(args, scores, MASK)
    logps, total, alphas = NEW.clone().requires_grad_(), 0.0, []
    for rows in micro_batches:
        alpha = trajectory_scale(args, mean[rows], mean.min(), mean.max())
        log_ratio = log_ratios(args, logps[rows], OLD[rows], MASK[rows])
        losses = policy_losses(args, logps[rows], log_ratio, ADVANTAGES[rows] * alpha[:, None])
        losses = losses * kept[rows] - args.entropy_coef * logps[rows]
        loss = aggregate(losses, MASK[rows], "token_mean", tokens=int(MASK.sum()), sequences=2)
        loss.backward()
        total, alphas = total + loss.item(), alphas + alpha.tolist()
    return alphas, total, logps.grad


# --------------------------------------------------------------------------------------------- golden vectors
def test_golden_1_and_2_scores_and_masks():
    scores = dependency_scores(Args(), AUG, OLD) * MASK
    close(scores, SCORES)
    close(token_mask(Args(), scores, MASK), KEPT)


def test_golden_3_4_5_scale_gradient_and_loss():
    mean = dependency_scores(Args(), AUG, OLD).mul(MASK).sum(1) / MASK.sum(1)
    close(mean, [0.514245, 0.029135])
    alpha, loss, gradient = update(Args(entropy_coef=0.0), [[0, 1]])
    close(alpha, [1.1, 0.9])
    close(gradient, [[0, -0.1350764, 0, 0, 0], [0, 0, 0, 0.1, 0]])
    close(loss, -0.1115209)
    close(token_mask(Args(), torch.tensor(SCORES), MASK).sum() / MASK.sum(), 4 / 9)


def test_golden_6_entropy_penalty_shifts_every_valid_token():
    _, _, without = update(Args(entropy_coef=0.0), [[0, 1]])
    _, _, penalised = update(Args(), [[0, 1]])
    close(penalised - without, (MASK * -0.06 / 9).tolist())


def test_golden_7_micro_batches_of_one():
    alpha, _, gradient = update(Args(entropy_coef=0.0), [[0], [1]])
    close(alpha, [1.0, 0.9])
    close(gradient, [[0, -0.1227968, 0, 0, 0], [0, 0, 0, 0.1, 0]])


def test_golden_9_advantages():
    close(group_advantages(torch.tensor([1.0, 0, 0, 1]), 4), [0.8660, -0.8660, -0.8660, 0.8660], 5e-5)


# ------------------------------------------------------------------------------------------------- the pieces
def test_scores_are_clamped_and_zero_without_change():
    close(
        dependency_scores(Args(), torch.tensor([-90.0, -1.0, 0.0]), torch.tensor([0.0, -1.0, -90.0])), [10.0, 0.0, 10.0]
    )
    drop = dependency_scores(Args(dependency="prob_drop"), torch.tensor([-2.0, -1.0]), torch.tensor([-1.0, -2.0]))
    close(drop, [float(np.exp(-1) - np.exp(-2)), 0.0])


@pytest.mark.parametrize(
    ("share", "length", "expected"), [(0.4, 5, 2), (0.4, 4, 2), (0.4, 1, 1), (0.07, 100, 7), (1.0, 6, 6)]
)
def test_mask_keeps_the_published_number_of_valid_tokens(share, length, expected):
    mask = torch.arange(120)[None] < length
    scores = torch.rand(1, 120, generator=torch.Generator().manual_seed(0)) + 5 * ~mask  # padding looks most dependent
    kept = token_mask(Args(keep_share=share), scores, mask)
    assert kept.sum() == expected and not kept[~mask].any()
    assert scores[kept.bool()].min() >= scores[mask & ~kept.bool()].max() if expected < length else True


def test_equal_scores_still_keep_exactly_k():
    assert token_mask(Args(), torch.zeros(3, 10), torch.ones(3, 10).bool()).sum(1).tolist() == [4, 4, 4]


def test_soft_mask_has_the_mean_k_and_follows_the_scores():
    scores = torch.tensor(SCORES)
    weights = token_mask(Args(soft_mask=True), scores, MASK)
    close(weights.sum(1) / MASK.sum(1), [0.4, 0.4], 1e-5)
    assert weights[0].argmax() == 4 and weights[1, 4] == 0 and (weights[MASK] > 0).all()
    close(token_mask(Args(soft_mask=True), torch.zeros(1, 5), torch.ones(1, 5).bool()), [[0.4] * 5], 1e-5)


def test_scale_averages_one_or_stays_in_a_fixed_range():
    mean = torch.rand(16, generator=torch.Generator().manual_seed(1))
    alpha = trajectory_scale(Args(), mean, mean.min(), mean.max())
    assert alpha.mean().item() == pytest.approx(1.0, abs=1e-6) and alpha.min().item() == pytest.approx(0.9)
    fixed = trajectory_scale(Args(beta_min=0.8, beta_max=1.2), mean, mean.min(), mean.max())
    close([fixed.min().item(), fixed.max().item()], [0.8, 1.2])
    same = torch.full((4,), 0.3)
    assert torch.equal(trajectory_scale(Args(), same, same.min(), same.max()), torch.ones(4))


def test_patches_blacken_whole_cells_ragged_border_included():
    image = np.full((30, 45, 3), 200, dtype=np.uint8)  # 3 x 4 cells, the last ones 2 and 3 pixels wide
    rng = np.random.default_rng(0)
    seen = np.zeros((3, 4))
    for _ in range(200):
        damaged = perturb(image, Args(), rng)
        cells = [[damaged[14 * r : 14 * r + 14, 14 * c : 14 * c + 14] for c in range(4)] for r in range(3)]
        assert all(cell.min() == cell.max() and cell.max() in (0, 200) for row in cells for cell in row)
        seen += [[cell.max() == 0 for cell in row] for row in cells]
    assert damaged.shape == image.shape and damaged.dtype == np.uint8 and image.min() == 200
    assert (abs(seen / 200 - 0.5) < 0.15).all()


@pytest.mark.parametrize("kind", ["noise", "blur", "grey"])
def test_other_perturbations_keep_size_and_type(kind):
    image = np.random.default_rng(0).integers(0, 256, (28, 56, 3), dtype=np.uint8)
    damaged = perturb(image, Args(perturbation=kind), np.random.default_rng(1))
    assert damaged.shape == image.shape and damaged.dtype == np.uint8 and (damaged != image).any()
    assert kind != "grey" or (damaged == 128).all()


# -------------------------------------------------------------------------- the golden vectors through main()
def table_logps(vlm, prompts, tokens, mask, **options):
    logps = AUG if hasattr(prompts[0], "replaced") else vlm.table
    return logps * mask, torch.zeros_like(OLD)


@pytest.mark.parametrize(("entropy_coef", "shift"), [(0.0, 0.0), (0.06, -0.06 / 9)])
def test_main_reproduces_the_golden_gradient(monkeypatch, tmp_path, entropy_coef, shift):
    vlm, texts = TableModelWithPictures(NEW), ["good", "bad"]
    sample = SimpleNamespace(id="1", task="t", question="q", answer="a", meta={})
    stand_in(monkeypatch, vlm, [sample], {
        "common.rollout.rollout": lambda vlm, prompts, group_size, **_: table_rollout(prompts, texts, MASK, OLD),
        "common.logprob.response_logps": table_logps,
        "common.rewards.accuracy": lambda text, sample: float(text == "good"),
    })  # fmt: skip
    main(Args(out=str(tmp_path), **ONE_STEP, group_size=2, advantage="mean_only", entropy_coef=entropy_coef))
    # mean_only makes the advantages +-0.5 where the golden vectors have +-1; the loss is linear in them here.
    expected = torch.tensor([[0, -0.1350764, 0, 0, 0], [0, 0, 0, 0.1, 0]]) / 2 + shift * MASK
    close(sum(vlm.gradients[0]), expected)
    (row,) = metrics(only_run(tmp_path))
    assert row["kept"] == pytest.approx(4 / 9) and row["tas/alpha_min"] == pytest.approx(0.9)
    assert row["dependency"] == pytest.approx(sum(map(sum, SCORES)) / 9, abs=1e-6)
    assert row["clip/high"] == pytest.approx(1 / 9) and row["clip/low"] == pytest.approx(1 / 9)

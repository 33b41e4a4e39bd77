"""Shared-prefix scoring against the plain padded forward of transformers: log-probs, entropies, gradients."""

import pytest
import torch
from engine_helpers import (
    FAMILIES,
    assert_same_gradients,
    gradients,
    make_vlm,
    mixed_prompts,
    picture,
    plain_copy,
    plain_logps,
    random_responses,
)
from hypothesis import given
from hypothesis import strategies as st

import common.attention as attention
import common.logprob as logprob
from common.loading import checkpoint_activations
from common.logprob import micro_batches, response_logps, token_logps

LENGTHS = [5, 1, 7, 3, 2, 6]  # two responses to each of three prompts


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "lengths", [LENGTHS, [4, 1, 1], [1] * 6, [0, 3, 1]], ids=["ragged", "group1", "one_token", "empty"]
)
def test_logps_and_entropies_equal_the_padded_forward(family, lengths):
    vlm = make_vlm(family)
    prompts, (tokens, mask) = mixed_prompts(vlm), random_responses(vlm, lengths)
    with torch.no_grad():
        logps, entropies = response_logps(vlm, prompts, tokens, mask, temperature=0.7)
        expected = plain_logps(vlm, plain_copy(vlm), prompts, tokens, mask, temperature=0.7)
    torch.testing.assert_close(logps, expected[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(entropies, expected[1], atol=1e-5, rtol=1e-5)
    assert logps.dtype == entropies.dtype == torch.float32
    assert not logps[~mask].any() and not entropies[~mask].any()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [True, False])
def test_gradients_of_every_parameter_equal_the_padded_forward(family, tied):
    vlm = make_vlm(family, text={"tie_word_embeddings": tied})
    plain = plain_copy(vlm)
    prompts, (tokens, mask) = mixed_prompts(vlm), random_responses(vlm, LENGTHS)
    weights = torch.linspace(-1, 1, mask.numel()).view(mask.shape)
    for model, (logps, entropies) in (
        (vlm.base, response_logps(vlm, prompts, tokens, mask, entropy="grad")),
        (plain, plain_logps(vlm, plain, prompts, tokens, mask)),
    ):
        (weights * logps - 0.3 * entropies).sum().backward()
        if model is vlm.base:
            ours = gradients(model)
    theirs = gradients(plain)
    assert any("visual" in name for name in theirs)
    assert_same_gradients(ours, theirs)


@pytest.mark.parametrize("family", FAMILIES)
def test_text_only_batch(family):
    vlm = make_vlm(family)
    prompts = [vlm.prompt("hello", []), vlm.prompt("good day to you", [])]
    tokens, mask = random_responses(vlm, [3, 4, 1, 6])
    logps, _ = response_logps(vlm, prompts, tokens, mask)
    expected, _ = plain_logps(vlm, plain_copy(vlm), prompts, tokens, mask)
    torch.testing.assert_close(logps, expected, atol=1e-5, rtol=1e-5)


def test_equal_lengths_take_the_path_without_gathers():
    vlm = make_vlm()
    prompts = [vlm.prompt("what?", [picture(112, 112, seed)]) for seed in range(2)]
    tokens, mask = random_responses(vlm, [4] * 6)
    assert attention.SharedPrefix([3, 3], [4] * 6, vlm.device, vlm.dtype).prompts.equal
    logps, _ = response_logps(vlm, prompts, tokens, mask)
    expected, _ = plain_logps(vlm, plain_copy(vlm), prompts, tokens, mask)
    torch.testing.assert_close(logps, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_splitting_into_micro_batches_changes_nothing(family):
    vlm = make_vlm(family)
    prompts, (tokens, mask) = mixed_prompts(vlm), random_responses(vlm, LENGTHS)
    whole, entropies = response_logps(vlm, prompts, tokens, mask)
    whole.square().sum().backward()
    expected = gradients(vlm.model)
    for i in range(3):  # one group after the other
        rows = slice(2 * i, 2 * i + 2)
        response_logps(vlm, prompts[i : i + 1], tokens[rows], mask[rows])[0].square().sum().backward()
    assert_same_gradients(gradients(vlm.model), expected)
    with torch.no_grad():
        split = response_logps(vlm, prompts, tokens, mask, max_tokens=40)
    torch.testing.assert_close(split[0], whole, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(split[1], entropies, atol=1e-5, rtol=1e-5)
    # The responses of one group may also be split.
    rows = [0, 1, 2, 3, 4, 5]
    single = torch.cat([response_logps(vlm, [prompts[n // 2]], tokens[[n]], mask[[n]])[0] for n in rows])
    torch.testing.assert_close(single, whole, atol=1e-5, rtol=1e-5)


def test_permuting_prompts_permutes_results():
    vlm = make_vlm()
    prompts, (tokens, mask) = mixed_prompts(vlm), random_responses(vlm, LENGTHS)
    order, rows = [2, 0, 1], [4, 5, 0, 1, 2, 3]
    whole, _ = response_logps(vlm, prompts, tokens, mask)
    permuted, _ = response_logps(vlm, [prompts[i] for i in order], tokens[rows], mask[rows])
    torch.testing.assert_close(permuted, whole[rows], atol=1e-5, rtol=1e-5)


def test_features_can_be_given():
    vlm = make_vlm(train_vision=False)
    prompts, (tokens, mask) = mixed_prompts(vlm), random_responses(vlm, LENGTHS)
    given_features, _ = response_logps(vlm, prompts, tokens, mask, features=vlm.encode_images(prompts))
    assert torch.equal(given_features, response_logps(vlm, prompts, tokens, mask)[0])


@pytest.mark.parametrize("family", FAMILIES)
def test_gradient_checkpointing_gives_the_same_gradients(family):
    vlm = make_vlm(family)
    prompts, (tokens, mask) = mixed_prompts(vlm), random_responses(vlm, LENGTHS)
    response_logps(vlm, prompts, tokens, mask)[0].sum().backward()
    expected = gradients(vlm.model)
    checkpoint_activations(vlm.base)
    response_logps(vlm, prompts, tokens, mask)[0].sum().backward()
    assert_same_gradients(gradients(vlm.model), expected, tolerance=1e-6)


def test_bfloat16_is_near_float32():
    vlm, half = make_vlm(spread=0.05), make_vlm(spread=0.05)
    half.base.to(torch.bfloat16)
    prompts, (tokens, mask) = mixed_prompts(vlm), random_responses(vlm, LENGTHS)
    expected, entropies = response_logps(vlm, prompts, tokens, mask)
    logps, half_entropies = response_logps(half, prompts, tokens, mask)
    assert logps.dtype == torch.float32
    assert (logps - expected).abs().max() < 0.1 and (entropies - half_entropies).abs().max() < 0.1
    logps.sum().backward()
    expected.sum().backward()
    ours, theirs = gradients(half.model), gradients(vlm.model)
    assert all(grad.isfinite().all() for grad in ours.values())
    flat = [torch.cat([g[name].float().flatten() for name in theirs]) for g in (ours, theirs)]
    assert torch.cosine_similarity(*flat, dim=0) > 0.99


def test_uneven_groups_and_gaps_are_refused():
    vlm = make_vlm()
    with pytest.raises(ValueError, match="evenly"):
        response_logps(vlm, mixed_prompts(vlm), *random_responses(vlm, [1, 2]))
    tokens, mask = random_responses(vlm, [3, 3, 3])
    mask[1, 0] = False
    with pytest.raises(ValueError, match="gaps"):
        response_logps(vlm, mixed_prompts(vlm), tokens, mask)


# ---------------------------------------------------------------------------------- flash attention
def reference_varlen(query, key, value, q_starts, k_starts, longest_q, longest_k, softmax_scale, causal):
    """flash-attn's contract in plain PyTorch: causal is aligned at the end of the keys."""
    parts = []
    for i in range(len(q_starts) - 1):
        q = query[q_starts[i] : q_starts[i + 1]]
        k, v = (t[k_starts[i] : k_starts[i + 1]].repeat_interleave(q.shape[1] // key.shape[1], 1) for t in (key, value))
        assert len(q) <= longest_q and len(k) <= longest_k
        scores = torch.einsum("qhd,khd->hqk", q, k) * softmax_scale
        if causal:
            hidden = torch.ones(len(q), len(k), dtype=torch.bool).triu(len(k) - len(q) + 1)
            scores = scores.masked_fill(hidden, -torch.inf)
        parts.append(torch.einsum("hqk,khd->qhd", scores.softmax(-1), v))
    return torch.cat(parts)


@pytest.mark.parametrize("lengths", [LENGTHS, [4, 1, 1]])
def test_the_flash_attention_path_agrees(monkeypatch, lengths):
    vlm = make_vlm()
    prompts, (tokens, mask) = mixed_prompts(vlm), random_responses(vlm, lengths)
    expected, _ = response_logps(vlm, prompts, tokens, mask)
    expected.sum().backward()
    grads = gradients(vlm.model)
    monkeypatch.setattr(attention, "use_flash", lambda query: True)
    monkeypatch.setattr(attention, "flash_attn_varlen_func", reference_varlen)
    logps, _ = response_logps(vlm, prompts, tokens, mask)
    torch.testing.assert_close(logps, expected, atol=1e-5, rtol=1e-5)
    logps.sum().backward()
    assert_same_gradients(gradients(vlm.model), grads)


# ----------------------------------------------------------------------------------------- the head
@pytest.mark.parametrize("chunk", [8, 1 << 24])
@pytest.mark.parametrize("keep", [0, 1 << 25])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_head_equals_autograd_in_float64(monkeypatch, chunk, keep, temperature):
    monkeypatch.setattr(logprob, "CHUNK_ELEMENTS", {"cpu": chunk * 11})
    monkeypatch.setattr(logprob, "KEEP_ELEMENTS", keep)
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(21, 6, generator=generator).requires_grad_()
    weight = torch.randn(11, 6, generator=generator).requires_grad_()
    targets, banned = torch.randint(0, 9, (21,), generator=generator), torch.tensor([9, 10])
    weights = torch.randn(2, 21, generator=generator)
    logps, entropies = token_logps(hidden, weight, targets, banned, temperature, entropy="grad")
    grads = torch.autograd.grad((weights * torch.stack([logps, entropies])).sum(), (hidden, weight))
    exact_hidden, exact_weight = (t.detach().double().requires_grad_() for t in (hidden, weight))
    table = (exact_hidden @ exact_weight.T / temperature)[:, :9].log_softmax(1)
    exact = torch.stack([table.gather(1, targets[:, None])[:, 0], -(table.exp() * table).sum(1)])
    torch.testing.assert_close(torch.stack([logps, entropies]).double(), exact, atol=1e-5, rtol=1e-5)
    for ours, theirs in zip(
        grads, torch.autograd.grad((weights * exact).sum(), (exact_hidden, exact_weight)), strict=True
    ):
        torch.testing.assert_close(ours.double(), theirs, atol=1e-5, rtol=1e-5)


def test_head_without_entropy_and_with_a_frozen_weight():
    hidden, weight = torch.randn(5, 4, requires_grad=True), torch.randn(7, 4)
    logps, entropies = token_logps(hidden, weight, torch.arange(5), torch.tensor([], dtype=torch.int64), entropy=False)
    assert not entropies.any() and not entropies.requires_grad
    logps.sum().backward()
    assert hidden.grad.abs().sum() > 0
    _, entropies = token_logps(hidden, weight, torch.arange(5), torch.tensor([], dtype=torch.int64))
    assert not entropies.requires_grad


def test_head_in_bfloat16_keeps_float32_statistics():
    generator = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(9, 16, generator=generator), torch.randn(50, 16, generator=generator)
    half = (hidden.bfloat16(), weight.bfloat16())
    logps, entropies = token_logps(*half, torch.arange(9), torch.tensor([49]))
    table = (half[0] @ half[1].T).float()[:, :49].log_softmax(1)
    torch.testing.assert_close(logps, table[torch.arange(9), torch.arange(9)], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(entropies, -(table.exp() * table).sum(1), atol=1e-5, rtol=1e-5)


# ------------------------------------------------------------------------------------ micro-batches
@given(st.lists(st.integers(1, 50), max_size=30), st.integers(0, 60))
def test_micro_batches_hold_every_group_once_within_the_budget(lengths, budget):
    batches = micro_batches(lengths, budget)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    assert all(batch for batch in batches)
    if budget:
        assert all(len(batch) == 1 or sum(lengths[i] for i in batch) <= budget for batch in batches)
        assert [lengths[batch[0]] for batch in batches] == sorted((lengths[b[0]] for b in batches), reverse=True)
    else:
        assert len(batches) <= 1

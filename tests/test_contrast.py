"""The same responses after two prompts: divergences against a float64 forward that builds all logits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from engine_helpers import FAMILIES, make_vlm, mixed_prompts, plain_copy, random_responses

import common.logprob as logprob
from common.contrast import response_contrast, token_contrast
from common.logprob import response_logps

LENGTHS = [5, 1, 7, 3, 2, 6]  # two responses to each of three prompts


def noisy(vlm, prompts):
    rng = np.random.default_rng(0)
    images = [[rng.integers(0, 256, image.shape, dtype=np.uint8) for image in p.images] for p in prompts]
    return [vlm.replace_images(p, new) for p, new in zip(prompts, images, strict=True)]


def reference(first, other, weight, targets, banned, temperature):
    """The fields of Contrast in float64, without chunks and without the banned ids."""
    keep = [i for i in range(len(weight)) if i not in banned.tolist()]
    log_p, log_q = (((h.double() @ weight.double().T)[:, keep] / temperature).log_softmax(1) for h in (first, other))
    p, q, rows = log_p.exp(), log_q.exp(), torch.arange(len(targets))
    places = torch.tensor([keep.index(t) for t in targets.tolist()])
    return torch.stack([log_p[rows, places], log_q[rows, places], -(p * log_p).sum(1), -(q * log_q).sum(1),
                        (p * (log_p - log_q)).sum(1), (q * (log_q - log_p)).sum(1)])  # fmt: skip


@pytest.mark.parametrize("chunk", [1 << 20, 100])  # one chunk, and one per token
def test_token_contrast_equals_float64(chunk, monkeypatch):
    monkeypatch.setitem(logprob.CHUNK_ELEMENTS, "cpu", chunk)
    generator = torch.Generator().manual_seed(0)
    first, other = torch.randn(2, 9, 16, generator=generator)
    other[3] = first[3]  # the same distribution
    weight, banned = torch.randn(50, 16, generator=generator), torch.tensor([7, 49])
    targets = torch.randint(8, 49, (9,), generator=generator)
    found = token_contrast(first, other, weight, targets, banned, 0.7)
    torch.testing.assert_close(found.double(), reference(first, other, weight, targets, banned, 0.7),
                               atol=1e-4, rtol=1e-5)  # fmt: skip
    assert found.dtype == torch.float32 and (found[4:, 3] == 0).all() and (found[4:, :3] > 0).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_contrast_of_responses(family):
    vlm = make_vlm(family)
    prompts, (tokens, mask) = mixed_prompts(vlm), random_responses(vlm, LENGTHS)
    others = noisy(vlm, prompts)
    contrast = response_contrast(vlm, prompts, others, tokens, mask, temperature=0.7)
    for found, side in (((contrast.logps, contrast.entropy), prompts), ((contrast.other_logps, contrast.other_entropy),
                                                                        others)):  # fmt: skip
        for value, expected in zip(found, response_logps(vlm, side, tokens, mask, temperature=0.7), strict=True):
            torch.testing.assert_close(value, expected.detach(), atol=1e-5, rtol=1e-5)
    assert not any(field.requires_grad or field[~mask].any() for field in contrast)
    pictures = torch.tensor([True, True, False, False, True, True])[:, None] & mask  # the second prompt has none
    assert (contrast.forward[pictures] > 0).all() and (contrast.backward[pictures] > 0).all()
    assert contrast.forward[~pictures].max() < 1e-6
    small = response_contrast(vlm, prompts, others, tokens, mask, temperature=0.7, max_tokens=30)
    torch.testing.assert_close(torch.stack(small), torch.stack(contrast), atol=1e-5, rtol=1e-4)


def test_divergence_of_responses_equals_the_plain_forward():
    """One prompt with one picture, all logits of transformers' own forward in float64."""
    vlm = make_vlm("qwen2_5_vl")
    prompt, (tokens, mask) = mixed_prompts(vlm)[2], random_responses(vlm, [6, 4])
    other = noisy(vlm, [prompt])[0]
    found = response_contrast(vlm, [prompt], [other], tokens, mask)
    model, n = plain_copy(vlm).double().eval(), len(prompt.input_ids)
    for row, length in enumerate(mask.sum(1).tolist()):
        ids = torch.cat([prompt.input_ids, tokens[row, :length]])[None]
        logps = []
        for side in (prompt, other):
            with torch.no_grad():
                logits = model(input_ids=ids, pixel_values=side.pixel_values.double(),
                               image_grid_thw=side.image_grid_thw,
                               mm_token_type_ids=(ids == vlm.image_token_id).int()).logits[0, n - 1 : -1]  # fmt: skip
            logps.append(logits.index_fill(1, vlm.banned_ids, -1e30).log_softmax(1))
        (p, q), (a, b) = (x.exp() for x in logps), logps
        for name, expected in (("forward", (p * (a - b)).sum(1)), ("backward", (q * (b - a)).sum(1))):
            torch.testing.assert_close(getattr(found, name)[row, :length].double(), expected, atol=1e-6, rtol=1e-3)


def test_frozen_features_are_reused():
    vlm = make_vlm(train_vision=False)
    prompts, (tokens, mask) = mixed_prompts(vlm), random_responses(vlm, LENGTHS)
    features = vlm.encode_images(prompts)
    plain = response_contrast(vlm, prompts, prompts, tokens, mask)
    reused = response_contrast(vlm, prompts, prompts, tokens, mask, features=features, max_tokens=40)
    torch.testing.assert_close(torch.stack(reused), torch.stack(plain), atol=1e-5, rtol=1e-4)

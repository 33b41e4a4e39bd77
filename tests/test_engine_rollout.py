"""The sampler against transformers' `generate`, and what it promises about distributions and order."""

import pytest
import torch
from engine_helpers import FAMILIES, make_vlm, mixed_prompts, picture, plain_copy

from common.decoding import Decoder
from common.logprob import BANNED_LOGIT, response_logps
from common.rollout import choose, concat_rollouts, forced_rollout, merge_groups, nucleus, rollout


def generate(vlm, model, prompt, limit, eos):
    """Greedy tokens of transformers for one prompt, up to and including the end."""
    inputs = {
        "input_ids": prompt.input_ids[None],
        "attention_mask": torch.ones(1, len(prompt.input_ids), dtype=torch.int64),
    }
    inputs["mm_token_type_ids"] = (inputs["input_ids"] == vlm.image_token_id).int()
    if prompt.images:
        inputs |= {"pixel_values": prompt.pixel_values, "image_grid_thw": prompt.image_grid_thw}
    model.model.rope_deltas = None
    out = model.generate(
        **inputs,
        do_sample=False,
        max_new_tokens=limit,
        eos_token_id=eos,
        pad_token_id=vlm.pad_id,
        suppress_tokens=vlm.banned_ids.tolist(),
    )
    return out[0, len(prompt.input_ids) :].tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_tokens_equal_generate(family):
    vlm = make_vlm(family)
    model, prompts = plain_copy(vlm).eval(), mixed_prompts(vlm)
    limit = 20
    free = [generate(vlm, model, p, limit, [-1]) for p in prompts]
    eos = [free[0][7], free[2][15]]  # so that responses end at different steps
    vlm.eos_ids = eos
    out = rollout(vlm, prompts, 2, max_new_tokens=limit, temperature=0.0)
    expected = [generate(vlm, model, p, limit, eos) for p in prompts]
    assert len({len(row) for row in expected}) > 1
    for n, row in enumerate(out.tokens):
        assert row[out.mask[n]].tolist() == expected[n // 2]
        assert bool(out.truncated[n]) == (expected[n // 2][-1] not in eos)
    assert out.tokens.shape[1] == max(len(row) for row in expected)
    assert (out.tokens[~out.mask] == vlm.pad_id).all() and not out.logps[~out.mask].any()
    with torch.no_grad():
        logps, _ = response_logps(vlm, prompts, out.tokens, out.mask, temperature=0.0)
    torch.testing.assert_close(out.logps, logps, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("temperature,top_p", [(1.0, 1.0), (0.6, 0.8)])
def test_kept_logps_equal_recomputed_ones(family, temperature, top_p):
    vlm = make_vlm(family)
    vlm.eos_ids = [*vlm.eos_ids, *range(0, 256, 16)]  # many responses end early
    prompts = mixed_prompts(vlm)
    generator = torch.Generator().manual_seed(3)
    out = rollout(vlm, prompts, 5, max_new_tokens=24, temperature=temperature, top_p=top_p, generator=generator)
    assert len(set(out.mask.sum(1).tolist())) > 3
    logps, _ = response_logps(vlm, prompts, out.tokens, out.mask, temperature=temperature)
    torch.testing.assert_close(out.logps, logps.detach(), atol=1e-5, rtol=1e-5)


def test_dropping_finished_rows_changes_no_token():
    vlm = make_vlm()
    ends = set(range(0, 256, 12))
    prompts = mixed_prompts(vlm)
    vlm.eos_ids = [-1]  # nobody finishes, nothing is dropped
    whole = rollout(vlm, prompts, 6, max_new_tokens=80, generator=torch.Generator().manual_seed(0))
    vlm.eos_ids = sorted(ends)
    out = rollout(vlm, prompts, 6, max_new_tokens=80, generator=torch.Generator().manual_seed(0))
    for n, row in enumerate(whole.tokens.tolist()):
        length = next((t + 1 for t, token in enumerate(row) if token in ends), 80)
        assert int(out.mask[n].sum()) == length and out.tokens[n, :length].tolist() == row[:length]
    assert whole.truncated.all() and not out.truncated.all()


def test_same_generator_same_responses_whatever_is_decoded_together():
    vlm = make_vlm()
    prompts = mixed_prompts(vlm)
    first, again, split = (
        rollout(vlm, prompts, 3, max_new_tokens=12, generator=torch.Generator().manual_seed(5), max_rows=rows)
        for rows in (None, None, 4)
    )
    assert torch.equal(first.tokens, again.tokens) and torch.equal(first.logps, again.logps)
    assert torch.equal(first.tokens, split.tokens)
    other = rollout(vlm, prompts, 3, max_new_tokens=12, generator=torch.Generator().manual_seed(6))
    assert not torch.equal(first.tokens, other.tokens[:, : first.tokens.shape[1]])
    assert len({tuple(row) for row in first.tokens[:3].tolist()}) == 3


def test_numbers_of_its_own_make_a_prompt_independent_of_its_neighbours():
    vlm = make_vlm()
    prompts = mixed_prompts(vlm)
    numbers = torch.rand(len(prompts) * 2, 12, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    together = rollout(vlm, prompts, 2, max_new_tokens=12, uniform=numbers)
    drawn = rollout(vlm, prompts, 2, max_new_tokens=12, generator=torch.Generator().manual_seed(5))
    assert torch.equal(together.tokens, drawn.tokens)
    alone = rollout(vlm, prompts[1:2], 2, max_new_tokens=12, uniform=numbers[2:4])
    assert alone.texts == together.texts[2:4]


def test_permuting_prompts_permutes_greedy_responses():
    vlm = make_vlm()
    prompts = mixed_prompts(vlm)
    out = rollout(vlm, prompts, 1, max_new_tokens=10, temperature=0.0)
    permuted = rollout(vlm, [prompts[i] for i in (2, 0, 1)], 1, max_new_tokens=10, temperature=0.0)
    assert [out.texts[i] for i in (2, 0, 1)] == permuted.texts


def test_placeholders_are_never_sampled_even_if_the_logits_love_them():
    vlm = make_vlm(text={"tie_word_embeddings": False})
    prompts = mixed_prompts(vlm)
    with torch.no_grad():
        hidden, layout = vlm.run_groups(prompts, vlm.encode_images(prompts))
        loved = hidden[layout.prompts.offsets[1:].long() - 1].mean(0)
        vlm.base.lm_head.weight[vlm.banned_ids] = 50 * loved
        assert int((hidden[-1] @ vlm.head_weight.T).argmax()) in vlm.banned_ids.tolist()
    assert len(vlm.banned_ids) == 5
    for temperature in (0.0, 1.0, 5.0):
        out = rollout(
            vlm, prompts, 8, max_new_tokens=12, temperature=temperature, generator=torch.Generator().manual_seed(0)
        )
        assert not torch.isin(out.tokens, vlm.banned_ids).any()
        assert out.logps.isfinite().all()
    logps, entropies = response_logps(vlm, prompts, out.tokens, out.mask, temperature=5.0)
    torch.testing.assert_close(out.logps, logps.detach(), atol=1e-5, rtol=1e-5)
    assert entropies.isfinite().all()


def test_sampling_follows_the_distribution():
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0, BANNED_LOGIT]]).expand(20_000, -1)
    uniform = torch.rand(20_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    chosen, logps = choose(logits, uniform, 1.0, 1.0)
    probs = logits[0].softmax(0)
    counts = torch.bincount(chosen, minlength=5) / 20_000
    assert (counts - probs).abs().max() < 0.01 and counts[4] == 0
    torch.testing.assert_close(logps, probs.log()[chosen])
    assert choose(logits[:2], torch.tensor([0.0, 1 - 1e-16], dtype=torch.float64), 1.0, 1.0)[0].tolist() == [0, 3]


def test_nucleus_keeps_the_smallest_set_and_the_kept_logps_are_full():
    probs = torch.tensor([[0.15, 0.5, 0.05, 0.3]])
    assert nucleus(probs, 0.5).tolist() == [[0, 0.5, 0, 0]]
    torch.testing.assert_close(nucleus(probs, 0.75), torch.tensor([[0, 0.5, 0, 0.3]]))
    assert nucleus(probs, 1e-9).count_nonzero() == 1
    uniform = torch.linspace(0, 0.999, 50, dtype=torch.float64)
    chosen, logps = choose(probs.log().expand(50, -1), uniform, 1.0, 0.75)
    assert set(chosen.tolist()) == {1, 3}
    torch.testing.assert_close(logps, probs[0].log()[chosen])


def test_one_token_responses_and_texts():
    vlm = make_vlm()
    out = rollout(vlm, [vlm.prompt("hi", [])], 4, max_new_tokens=1, generator=torch.Generator().manual_seed(0))
    assert out.tokens.shape == (4, 1) and out.mask.all()
    assert out.texts == [vlm.decode(row) for row in out.tokens]


def test_features_are_kept_only_for_a_frozen_tower():
    for train_vision in (True, False):
        vlm = make_vlm(train_vision=train_vision)
        out = rollout(vlm, mixed_prompts(vlm), 1, max_new_tokens=2)
        assert (out.features is None) == train_vision
        assert not any(f.embeds.requires_grad for f in out.features or [])


def test_select_and_concat():
    vlm = make_vlm(train_vision=False)
    vlm.eos_ids = list(range(0, 256, 8))
    prompts = mixed_prompts(vlm)
    parts = [rollout(vlm, prompts, 2, max_new_tokens=m, generator=torch.Generator().manual_seed(m)) for m in (3, 16)]
    both = concat_rollouts(parts)
    assert len(both.prompts) == len(both.features) == 6 and len(both.texts) == len(both.tokens) == 12
    assert (both.tokens[~both.mask] == vlm.pad_id).all()
    again = both.select([3, 4, 5])
    for name in ("tokens", "mask", "logps", "truncated"):
        assert torch.equal(getattr(again, name), getattr(parts[1], name)), name
    assert again.texts == parts[1].texts and again.prompts == prompts
    picked = both.select([2, 0])
    width = picked.tokens.shape[1]
    assert picked.prompts[0] is prompts[2] and width == int(both.mask[[4, 5, 0, 1]].sum(1).max())
    assert torch.equal(picked.tokens[:2], both.tokens[4:6, :width])


@pytest.mark.parametrize("train_vision", [True, False])
def test_given_texts_join_the_groups_of_a_rollout(train_vision):
    vlm = make_vlm(train_vision=train_vision)
    prompts, texts = mixed_prompts(vlm), ["yes", "a longer text", "no"]
    sampled = rollout(vlm, prompts, 2, max_new_tokens=4, generator=torch.Generator().manual_seed(0))
    given = forced_rollout(vlm, prompts, texts, temperature=0.7, features=sampled.features, max_tokens=1)
    assert vlm.tokenizer.batch_decode(given.tokens, skip_special_tokens=True) == given.texts == texts
    assert given.group_size == 1 and not given.truncated.any() and not given.logps.requires_grad
    for row, mask in zip(given.tokens, given.mask, strict=True):
        assert row[mask][-1] in vlm.eos_ids and not torch.isin(row[mask][:-1], torch.tensor(vlm.eos_ids)).any()
    logps, _ = response_logps(vlm, prompts, given.tokens, given.mask, temperature=0.7)
    torch.testing.assert_close(given.logps, logps.detach(), atol=1e-5, rtol=1e-5)
    both = merge_groups([given, sampled])
    assert both.group_size == 3 and both.prompts == prompts and len(both.tokens) == 9
    assert both.texts == [t for i, text in enumerate(texts) for t in (text, *sampled.texts[2 * i : 2 * i + 2])]
    for i in range(3):
        for n, (part, row) in enumerate([(given, i), (sampled, 2 * i), (sampled, 2 * i + 1)]):
            assert torch.equal(both.tokens[3 * i + n][both.mask[3 * i + n]], part.tokens[row][part.mask[row]])
            assert torch.equal(both.logps[3 * i + n][both.mask[3 * i + n]], part.logps[row][part.mask[row]])
    assert both.features is sampled.features and (both.features is None) == train_vision


def test_prompt_keys_are_stored_once_per_group():
    vlm = make_vlm()
    prompts = [vlm.prompt("what?", [picture(112, 112)])]
    with torch.no_grad():
        _, prefix = vlm.run_groups(prompts, vlm.encode_images(prompts), keep=True)
    decoder = Decoder(vlm.language_model, vlm.base.lm_head, prefix, torch.tensor([prompts[0].next_position]), 8, 4)
    assert decoder.prompts[0][0].shape[:2] == (2, 1) and decoder.own[0].shape[:3] == (2, 2, 8)


def test_bfloat16_rollout_matches_its_own_scoring():
    vlm = make_vlm(spread=0.05)
    vlm.base.to(torch.bfloat16)
    out = rollout(vlm, mixed_prompts(vlm), 4, max_new_tokens=10, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logps, _ = response_logps(vlm, out.prompts, out.tokens, out.mask)
    assert (logps - out.logps).abs().max() < 0.1


def test_the_global_random_state_is_used_without_a_generator():
    vlm = make_vlm()
    prompts = [vlm.prompt("hi", [])]
    torch.manual_seed(0)
    first = rollout(vlm, prompts, 2, max_new_tokens=5)
    torch.manual_seed(0)
    assert torch.equal(first.tokens, rollout(vlm, prompts, 2, max_new_tokens=5).tokens)

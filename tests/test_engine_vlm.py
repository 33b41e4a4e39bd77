"""Prompts, pixels, the vision tower, LoRA, references, loading and saving."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from engine_helpers import (
    FAMILIES,
    assert_same_gradients,
    gradients,
    make_vlm,
    mixed_prompts,
    picture,
    plain_copy,
    random_responses,
)
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoTokenizer

from common.errors import SightRLError
from common.logprob import response_logps
from common.rollout import rollout
from common.vlm import load_vlm


# ------------------------------------------------------------------------------- prompts and pixels
@pytest.mark.parametrize("family", FAMILIES)
def test_positions_and_placeholders_equal_the_library(family):
    vlm = make_vlm(family)
    for prompt in mixed_prompts(vlm):
        ids = prompt.input_ids[None]
        positions, delta = vlm.base.model.get_rope_index(
            ids, mm_token_type_ids=(ids == vlm.image_token_id).int(), image_grid_thw=prompt.image_grid_thw
        )
        assert torch.equal(prompt.position_ids, positions[:, 0])
        assert prompt.next_position == int(positions.max()) + 1 == ids.shape[1] + int(delta)
        wanted = 0 if prompt.image_grid_thw is None else int(prompt.image_grid_thw.prod(1).sum()) // 4
        assert int((prompt.input_ids == vlm.image_token_id).sum()) == wanted


@pytest.mark.parametrize("family", FAMILIES)
def test_pixels_equal_the_library_processor_bit_for_bit(family):
    vlm = make_vlm(family)
    images = [
        picture(112, 112),
        picture(61, 190, 1),
        picture(300, 40, 2),
        picture(100, 100, 3).convert("RGBA"),
        picture(90, 120, 4).convert("L"),
        picture(2000, 1500, 5),
    ]
    expected = vlm.image_processor([i.convert("RGB") for i in images], return_tensors="pt")
    prompt = vlm.prompt("look", images)
    assert torch.equal(prompt.image_grid_thw, expected["image_grid_thw"])
    assert torch.equal(prompt.pixel_values, expected["pixel_values"])
    assert all(i.dtype == np.uint8 and i.shape[2] == 3 for i in prompt.images)


def test_pixel_limits():
    vlm = make_vlm()
    vlm.pixels.min_pixels, vlm.pixels.max_pixels = 200 * 200, 300 * 300
    small, large = vlm.prompt("a", [picture(20, 20)]), vlm.prompt("a", [picture(900, 700)])
    assert 200 * 200 <= np.prod(small.images[0].shape[:2]) <= np.prod(large.images[0].shape[:2]) <= 300 * 300
    with pytest.raises(SightRLError, match="4 x 1000"):
        vlm.prompt("a", [Image.new("RGB", (4, 1000))])


def test_images_go_where_the_marks_are():
    vlm = make_vlm()
    images = [picture(56, 56), picture(56, 84)]
    marked, first = vlm.prompt("x <image> y <image> z", images), vlm.prompt("x y z", images)
    image = "<|vision_start|><|image_pad|><|vision_end|>"
    assert f"x {image} y {image} z<|im_end|>" in marked.text and f"\n{image}{image}x y z<|im_end|>" in first.text
    assert marked.text.endswith("<|im_start|>assistant\n")
    assert vlm.prompt("q", [], system="be kind").text.startswith("<|im_start|>system\nbe kind<|im_end|>\n")
    with pytest.raises(SightRLError, match="1 <image> marks for 2"):
        vlm.prompt("x <image>", images)
    with pytest.raises(SightRLError, match="placeholder"):
        vlm.prompt("x <|image_pad|>", images[:1])


@pytest.mark.parametrize("family", FAMILIES)
def test_replace_images_changes_only_pixels(family):
    vlm = make_vlm(family)
    prompt = mixed_prompts(vlm)[0]
    black = [np.zeros_like(i) for i in prompt.images]
    changed = vlm.replace_images(prompt, black)
    assert torch.equal(
        changed.pixel_values, vlm.prompt("Is <image> like <image>?", [Image.fromarray(b) for b in black]).pixel_values
    )
    assert changed.input_ids is prompt.input_ids and changed.position_ids is prompt.position_ids
    assert changed.images is black and prompt.images[0].any()
    assert torch.equal(vlm.replace_images(prompt, prompt.images).pixel_values, prompt.pixel_values)
    with pytest.raises(ValueError, match="sizes"):
        vlm.replace_images(prompt, black[:1])


# ------------------------------------------------------------------------------------- vision tower
@pytest.mark.parametrize("family", FAMILIES)
def test_batched_windows_equal_the_library_tower(family):
    vlm = make_vlm(family)
    prompts = [*mixed_prompts(vlm), vlm.prompt("a", [picture(260, 130, 7)]), vlm.prompt("b", [picture(112, 112, 8)])]
    features = vlm.encode_images(prompts)
    sum(f.embeds.square().sum() + sum(d.sum() for d in f.deepstack) for f in features).backward()
    ours = gradients(vlm.base.model.visual)
    model, total = plain_copy(vlm), 0
    for prompt, ready in zip(prompts, features, strict=True):
        if not prompt.images:
            assert ready.embeds.shape == (0, 64)
            continue
        out = model.model.get_image_features(prompt.pixel_values, prompt.image_grid_thw, return_dict=True)
        torch.testing.assert_close(ready.embeds, torch.cat(out.pooler_output), atol=1e-5, rtol=1e-5)
        layers = [
            torch.cat(tuple(layer)) if isinstance(layer, tuple) else layer
            for layer in getattr(out, "deepstack_features", None) or []
        ]
        assert len(layers) == len(ready.deepstack) == (2 if family == "qwen3_vl" else 0)
        for mine, theirs in zip(ready.deepstack, layers, strict=True):
            torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)
        total = total + torch.cat(out.pooler_output).square().sum() + sum(layer.sum() for layer in layers)
    total.backward()
    assert_same_gradients(ours, gradients(model.model.visual))


def test_every_picture_is_encoded_once_and_windows_in_few_calls(monkeypatch):
    vlm = make_vlm()
    calls, patches = [], []
    original = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *a, **k: calls.append(1) or original(*a, **k))
    vlm.base.model.visual.register_forward_pre_hook(lambda module, args: patches.append(len(args[0])))
    same = vlm.prompt("a", [picture(112, 112, 0)])
    prompts = [same, vlm.prompt("b", [picture(112, 112, 0), picture(112, 112, 1)]), same]
    prompts += [vlm.prompt("c", [picture(112, 112, seed)]) for seed in range(2, 12)]
    features = vlm.encode_images(prompts)
    assert patches == [12 * 64]  # twelve distinct pictures in one call
    assert len(calls) == 2  # one attention call per layer
    assert torch.equal(features[0].embeds, features[1].embeds[:16]) and torch.equal(
        features[0].embeds, features[2].embeds
    )


def test_gradient_reaches_the_tower_only_when_it_is_trained():
    for train_vision in (True, False):
        vlm = make_vlm(train_vision=train_vision)
        prompts, (tokens, mask) = mixed_prompts(vlm), random_responses(vlm, [3, 2, 2])
        response_logps(vlm, prompts, tokens, mask)[0].sum().backward()
        names = gradients(vlm.model).keys()
        assert any(".visual." in name for name in names) == train_vision
        assert any("visual" in name for name, p in vlm.model.named_parameters() if p.requires_grad) == train_vision
        with torch.no_grad():
            assert not vlm.encode_images(prompts)[0].embeds.requires_grad


def test_large_batches_of_images_are_split_without_gradient(monkeypatch):
    vlm = make_vlm()
    prompts = mixed_prompts(vlm)
    with torch.no_grad():
        expected = vlm.encode_images(prompts)
        monkeypatch.setattr("common.vlm.MAX_PATCHES", 70)
        for ours, theirs in zip(vlm.encode_images(prompts), expected, strict=True):
            torch.testing.assert_close(ours.embeds, theirs.embeds, atol=1e-5, rtol=1e-5)


# ------------------------------------------------------------------------------ LoRA and references
def train_a_little(vlm, prompts, tokens, mask):
    optimizer = torch.optim.SGD(vlm.trainable(), lr=0.5)
    for _ in range(2):
        response_logps(vlm, prompts, tokens, mask)[0].mean().neg().backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("family", FAMILIES)
def test_adapter_off_is_the_base_model(family, tmp_path):
    base, vlm = load_vlm(f"random:{family}"), load_vlm(f"random:{family}", lora_rank=4, reference="adapter")
    prompts, (tokens, mask) = mixed_prompts(vlm), random_responses(vlm, [3, 5, 2, 4, 1, 6])
    names = [name for name, p in vlm.model.named_parameters() if p.requires_grad]
    assert vlm.has_adapter and not vlm.train_vision
    assert all("lora_" in name and "language_model" in name for name in names) and len(names) == 2 * 7 * 2
    with torch.no_grad():
        expected, _ = response_logps(base, prompts, tokens, mask)
        torch.testing.assert_close(response_logps(vlm, prompts, tokens, mask)[0], expected, atol=1e-6, rtol=1e-6)
    train_a_little(vlm, prompts, tokens, mask)
    with torch.no_grad():
        trained, _ = response_logps(vlm, prompts, tokens, mask)
        assert (trained - expected).abs().max() > 1e-3
        with vlm.reference():
            torch.testing.assert_close(response_logps(vlm, prompts, tokens, mask)[0], expected, atol=1e-6, rtol=1e-6)
        assert torch.equal(response_logps(vlm, prompts, tokens, mask)[0], trained)
    out = rollout(vlm, prompts, 2, max_new_tokens=6, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(
            response_logps(vlm, prompts, out.tokens, out.mask)[0], out.logps, atol=1e-5, rtol=1e-5
        )
    base.save(tmp_path / "base")
    adapted = load_vlm(str(tmp_path / "base"), lora_rank=4)
    adapted.model.load_state_dict(vlm.model.state_dict())
    adapted.save(tmp_path / "adapter")
    assert (tmp_path / "adapter" / "adapter_model.safetensors").exists()
    again = load_vlm(str(tmp_path / "adapter"), lora_rank=4, reference="adapter")
    assert len(again.trainable()) == len(names)
    with torch.no_grad():
        torch.testing.assert_close(response_logps(again, prompts, tokens, mask)[0], trained, atol=1e-5, rtol=1e-5)


def test_reference_copy_stays_while_the_model_trains():
    vlm = load_vlm("random:qwen2_5_vl", reference="copy")
    prompts, (tokens, mask) = mixed_prompts(vlm), random_responses(vlm, [3, 5, 2])
    with torch.no_grad():
        before, _ = response_logps(vlm, prompts, tokens, mask)
    train_a_little(vlm, prompts, tokens, mask)
    with torch.no_grad():
        after, _ = response_logps(vlm, prompts, tokens, mask)
        with vlm.reference():
            torch.testing.assert_close(response_logps(vlm, prompts, tokens, mask)[0], before, atol=1e-6, rtol=1e-6)
        assert (after - before).abs().max() > 1e-3
        assert torch.equal(response_logps(vlm, prompts, tokens, mask)[0], after)
    assert not any(p.requires_grad for p in vlm.reference_base.parameters())


def test_gradient_checkpointing_with_lora():
    grads = []
    for checkpointing in (False, True):
        vlm = load_vlm("random:qwen2_5_vl", lora_rank=2, gradient_checkpointing=checkpointing)
        with torch.no_grad():
            for i, p in enumerate(vlm.trainable()):
                p.copy_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(i)))
        prompts, (tokens, mask) = mixed_prompts(vlm), random_responses(vlm, [3, 5, 2])
        out = rollout(vlm, prompts, 1, max_new_tokens=3, temperature=0.0)
        assert out.mask.any() and vlm.base.training
        response_logps(vlm, prompts, tokens, mask)[0].sum().backward()
        grads.append(gradients(vlm.model))
    assert_same_gradients(grads[1], grads[0], tolerance=1e-5)


# ------------------------------------------------------------------------------- loading and saving
@pytest.mark.parametrize("family", FAMILIES)
def test_saved_models_load_with_plain_transformers(family, tmp_path):
    vlm = make_vlm(family)
    vlm.save(tmp_path)
    assert "sightrl" not in (tmp_path / "config.json").read_text()
    model, tokenizer = (AutoModelForImageTextToText.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path))
    for name, p in model.named_parameters():
        assert torch.equal(p, vlm.base.get_parameter(name)), name
    text = "Is <|image_pad|> é?"
    assert tokenizer(text)["input_ids"] == vlm.tokenizer(text)["input_ids"]
    again = load_vlm(str(tmp_path))
    prompts, ours = mixed_prompts(again), mixed_prompts(vlm)
    assert all(torch.equal(a.pixel_values, b.pixel_values) for a, b in zip(prompts, ours, strict=True) if a.images)
    first, second = (rollout(v, p, 1, max_new_tokens=8, temperature=0.0) for v, p in ((again, prompts), (vlm, ours)))
    assert first.texts == second.texts
    assert again.eos_ids == vlm.eos_ids and again.pad_id == vlm.pad_id


def test_an_unreachable_hub_id_is_one_clear_sentence(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(SightRLError) as error:
        load_vlm("somebody/no-such-model-here")
    assert "'somebody/no-such-model-here'" in str(error.value) and "hf download somebody/no-such-model-here" in str(
        error.value
    )
    assert "\n" not in str(error.value)


def test_mistakes_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(SightRLError, match="Qwen2-VL, Qwen2.5-VL, Qwen3-VL"):
        load_vlm(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "no_such_type"}))
    with pytest.raises(SightRLError, match="not a complete model folder"):
        load_vlm(str(tmp_path))
    with pytest.raises(SightRLError, match="float32"):
        load_vlm("random:qwen2_vl", dtype="float8")
    with pytest.raises(SightRLError, match="no random model"):
        load_vlm("random:llava")
    with pytest.raises(SightRLError, match="lora_rank"):
        load_vlm("random:qwen2_vl", reference="adapter")
    with pytest.raises(SightRLError, match="no reference policy"), load_vlm("random:qwen2_vl").reference():
        pass
    monkeypatch.setattr("common.loading.TINY", tmp_path / "nowhere")
    with pytest.raises(SightRLError, match="train_tiny_vlm"):
        load_vlm("tiny")
    make_vlm().save(tmp_path / "half")
    (tmp_path / "half" / "model.safetensors").unlink()
    with pytest.raises(SightRLError, match="half is not a complete model folder"):
        load_vlm(str(tmp_path / "half"))


@pytest.mark.parametrize("limits", [{"min_pixels": 3136, "max_pixels": 12845056},
                                    {"size": {"shortest_edge": 3136, "longest_edge": 12845056}}])  # fmt: skip
def test_processor_settings_as_published_on_the_hub(tmp_path, limits):
    make_vlm().save(tmp_path)
    settings = {
        "patch_size": 14,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "image_processor_type": "Qwen2VLImageProcessorFast",
        "processor_class": "Qwen2_5_VLProcessor",
    } | limits
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    vlm = load_vlm(str(tmp_path))
    assert (vlm.min_pixels, vlm.max_pixels) == (3136, 12845056)
    assert load_vlm(str(tmp_path), max_pixels=50_176).max_pixels == 50_176


def test_token_strings_join_to_the_text():
    vlm = make_vlm()
    ids = vlm.tokenizer("cat & dog<|im_end|>")["input_ids"]
    assert vlm.token_strings(torch.tensor(ids)) == [*"cat & dog", "<|im_end|>"] and vlm.decode(ids) == "cat & dog"
    assert vlm.token_strings(ids) == vlm.token_strings(torch.tensor(ids))

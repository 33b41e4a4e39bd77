"""Minute models, mixed prompts, and the plain transformers forward that the engine must agree with."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from common.random_vlm import random_parts
from common.vlm import VLM, Prompt

FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")


def make_vlm(family: str = "qwen2_5_vl", **options: Any) -> VLM:
    """A two-layer model of width 64 in float32; options: those of random_parts, and train_vision."""
    train_vision = options.pop("train_vision", True)
    model, tokenizer, processor = random_parts(family, **options)
    vlm = VLM(model, tokenizer, processor, train_vision=train_vision)
    vlm.model.train()
    return vlm


def picture(height: int, width: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def mixed_prompts(vlm: VLM) -> list[Prompt]:
    """Two images (one with two windows), no image, one image: of different lengths."""
    side = 4 * vlm.image_processor.patch_size * 2
    return [
        vlm.prompt("Is <image> like <image>?", [picture(side, side, 1), picture(side, side + side // 2, 2)]),
        vlm.prompt("say", []),
        vlm.prompt("how many?", [picture(side // 2, side, 3)], system="be brief"),
    ]


def random_responses(vlm: VLM, lengths: list[int], seed: int = 0) -> tuple[Tensor, Tensor]:
    """(tokens [N, R], mask [N, R]) of random letters."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, 256, (len(lengths), max(lengths)), generator=generator)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return tokens.masked_fill(~mask, vlm.pad_id), mask


def plain_copy(vlm: VLM) -> Any:
    """The model with the library's own attention functions and patch embedding."""
    model = copy.deepcopy(vlm.base)
    model.model.visual.patch_embed.proj.__class__ = torch.nn.Conv3d
    for part, name in ((model.model.language_model, "eager"), (model.model.visual, "sdpa")):
        for module in part.modules():
            if hasattr(module, "config"):
                module.config._attn_implementation = name
    model.model.rope_deltas = None
    return model


def plain_inputs(vlm: VLM, prompts: list[Prompt], tokens: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """Inputs of the ordinary forward: every prompt repeated per response, padded on the right."""
    group = len(tokens) // len(prompts)
    rows = [torch.cat([prompts[n // group].input_ids, tokens[n][mask[n]]]) for n in range(len(tokens))]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=vlm.pad_id)  # [N, P + R]
    lengths = torch.tensor([len(row) for row in rows])
    inputs = {"input_ids": ids, "attention_mask": (torch.arange(ids.shape[1]) < lengths[:, None]).long()}
    inputs["mm_token_type_ids"] = (ids == vlm.image_token_id).int()
    pictured = [prompts[n // group] for n in range(len(tokens)) if prompts[n // group].images]
    if pictured:
        inputs["pixel_values"] = torch.cat([p.pixel_values for p in pictured])
        inputs["image_grid_thw"] = torch.cat([p.image_grid_thw for p in pictured])
    return inputs


def plain_logps(vlm: VLM, model: Any, prompts: list[Prompt], tokens: Tensor, mask: Tensor,
                temperature: float = 1.0) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(log-probs, entropies) [N, R] from the ordinary padded forward; 0 where mask is 0."""
    group = len(tokens) // len(prompts)
    model.model.rope_deltas = None
    logits = model(**plain_inputs(vlm, prompts, tokens, mask)).logits.float() / temperature  # [N, P + R, V]
    keep = torch.ones(logits.shape[-1], dtype=torch.bool)
    keep[vlm.banned_ids] = False
    logps, entropies = torch.zeros(mask.shape), torch.zeros(mask.shape)
    for n in range(len(tokens)):
        start, length = len(prompts[n // group].input_ids) - 1, int(mask[n].sum())
        row = logits[n, start : start + length].masked_fill(~keep, -torch.inf).log_softmax(-1)  # [length, V]
        logps[n, :length] = row.gather(1, tokens[n, :length, None])[:, 0]
        entropies[n, :length] = -(row[:, keep].exp() * row[:, keep]).sum(-1)
    return logps, entropies


def gradients(model: Any) -> dict[str, Tensor]:
    """Gradients by name, and forget them on the model."""
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


def assert_same_gradients(ours: dict[str, Tensor], theirs: dict[str, Tensor], tolerance: float = 1e-4) -> None:
    """Equal names, and every gradient within a fraction `tolerance` of its largest entry."""
    assert ours.keys() == theirs.keys() and ours
    for name, expected in theirs.items():
        # A bias of keys shifts all scores alike, so its true gradient is 0 and both are rounding noise.
        scale = max(expected.abs().max().item(), 1e-4)
        assert (ours[name] - expected).abs().max().item() <= tolerance * scale, name

"""What one GRPO step cannot do without: operations and memory, counted from the shapes. For eval/bench_scaling.py."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

from common.logprob import CHUNK_ELEMENTS
from common.random_vlm import byte_tokenizer, random_config
from steps import operations

VOCABULARY, LAYERS, DEPTH, WHOLE_IMAGE = 8192, 4, 6, (2, 5)  # WHOLE_IMAGE: tower layers without windows
PATCH = 14  # pixels
TEMPLATE, PER_IMAGE = 19, 2  # tokens of the chat template, and around every picture


@dataclass(frozen=True)
class Setting:
    """What grows. The defaults are the base point: a Qwen2.5-VL of 12 M parameters."""

    group: int = 8  # responses per prompt
    tokens: int = 32  # per response
    text: int = 64  # characters of the question, a token each (one less in every second prompt)
    side: int = 224  # pixels of a square picture
    images: int = 1  # per prompt
    width: int = 320  # of the language model; the vision tower has half
    prompts: int = 2


def shapes(width: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Entries of a Qwen2.5-VL configuration for language model and vision tower; all heads have 32 channels."""
    text = {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": LAYERS,
            "num_attention_heads": width // 32, "num_key_value_heads": width // 64, "vocab_size": VOCABULARY,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]}}  # fmt: skip
    vision = {"depth": DEPTH, "hidden_size": width // 2, "intermediate_size": 2 * width, "num_heads": width // 64,
              "fullatt_block_indexes": list(WHOLE_IMAGE)}  # fmt: skip
    return text, vision


def counts(s: Setting) -> tuple[int, int, list[int]]:
    """(patches of a picture, of all pictures, tokens of every prompt)"""
    patches = (s.side // PATCH) ** 2
    around = TEMPLATE + s.images * (PER_IMAGE + patches // 4)
    return patches, patches * s.images * s.prompts, [s.text - i % 2 + around for i in range(s.prompts)]


@cache
def config(width: int) -> Any:
    """The model's configuration."""
    return random_config("qwen2_5_vl", byte_tokenizer(), *shapes(width))


def work(s: Setting) -> dict[str, float]:
    """Floating-point operations of every part (steps.operations). Backward: twice the forward."""
    side, (_, _, prompts) = s.side // PATCH, counts(s)
    part = operations(config(s.width), prompts, [(side, side)] * s.images * s.prompts, s.group, s.tokens)
    prefill, decode = part["vision"] + part["prompt"], part["responses"] + part["head"]
    return {"prefill": prefill, "decode": decode, "logps": prefill + decode, "update": 3 * (prefill + decode)}


def memory(s: Setting) -> dict[str, float]:
    """Bytes (float32) that must lie in memory at once, above weights and optimiser.

    Rollout: pixels and a layer of the tower, or a layer of the prefill, or keys, values, the sampler's distribution and
    (on the CPU, where decoding's kernel wants another order) a copy of the language model's weights.
    Log-probs: a layer of the tower or of the model, or a chunk of the head. Update: what the backward reads.
    """
    _, all_patches, prompts = counts(s)
    d, kv, inner, w, inner_w = s.width, s.width // 2, 4 * s.width, s.width // 2, 2 * s.width
    rows = s.prompts * s.group
    packed = sum(prompts) + rows * (s.tokens - 1)
    pixels = all_patches * 6 * PATCH**2
    tower = pixels + all_patches * (2 * w + 3 * inner_w)  # residual, normalised; gate, up, product
    prefill = sum(prompts) * (LAYERS * 2 * kv + 2 * d + 3 * inner)
    # Logits, log-probs, probabilities, and their sums in float64.
    decode = LAYERS * 2 * kv * (sum(prompts) + rows * s.tokens) + 5 * rows * VOCABULARY
    decode += LAYERS * (2 * d * d + 2 * d * kv + 3 * d * inner) + VOCABULARY * d
    head = packed * d + 3 * min(rows * s.tokens * VOCABULARY, CHUNK_ELEMENTS["cpu"])
    kept = packed * LAYERS * (6 * d + 2 * kv + 4 * inner) + pixels + all_patches * DEPTH * (8 * w + 4 * inner_w)
    kept += rows * s.tokens * VOCABULARY  # probabilities
    return {"rollout": 4 * max(tower, prefill, decode), "logps": 4 * max(tower, packed * (2 * d + 3 * inner), head),
            "update": 4 * kept}  # fmt: skip

"""Random models of the three families, as small or as large as wanted, with a byte-level tokenizer: for tests
and timing.
"""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from common.errors import SightRLError

SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for part in m.content %}{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part.text }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
FAMILIES = {
    "qwen2_vl": (Qwen2VLConfig, Qwen2VLForConditionalGeneration),
    "qwen2_5_vl": (Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration),
    "qwen3_vl": (Qwen3VLConfig, Qwen3VLForConditionalGeneration),
}


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte, and Qwen's special tokens."""
    letters = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=letters, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def random_config(family: str, tokenizer: PreTrainedTokenizerFast, text: dict[str, Any], vision: dict[str, Any]) -> Any:
    """Configuration of a minute model; text and vision override single entries (sizes, rope, tying)."""
    ids = {t: tokenizer.convert_tokens_to_ids(t) for t in SPECIAL}
    special = {
        "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|im_end|>"],
        "pad_token_id": ids["<|endoftext|>"],
    }
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
             "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": len(tokenizer),
             "max_position_embeddings": 8192}  # fmt: skip
    text = sizes | {"rope_parameters": rope} | special | text
    tower = {"depth": 2, "num_heads": 2, "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2}
    if family == "qwen2_vl":
        tower |= {"embed_dim": 32, "hidden_size": text["hidden_size"], "mlp_ratio": 2}
    else:
        tower |= {"hidden_size": 32, "intermediate_size": 48, "out_hidden_size": text["hidden_size"]}
    if family == "qwen2_5_vl":
        tower |= {"window_size": 112, "fullatt_block_indexes": [1]}
    if family == "qwen3_vl":
        text = {"head_dim": text["hidden_size"] // text["num_attention_heads"]} | text
        text["rope_parameters"] = {"mrope_interleaved": True} | text["rope_parameters"]
        tower |= {"patch_size": 16, "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1]}
    tie = text.pop("tie_word_embeddings", True)
    return FAMILIES[family][0](
        text_config=text | {"tie_word_embeddings": tie},
        vision_config=tower | vision,
        tie_word_embeddings=tie,
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        eos_token_id=special["eos_token_id"],
        pad_token_id=special["pad_token_id"],
    )


def random_parts(family: str, seed: int = 0, spread: float = 0.1, text: dict[str, Any] | None = None,
                 vision: dict[str, Any] | None = None, device: str = "cpu",
                 dtype: torch.dtype = torch.float32) -> tuple[PreTrainedModel, Any, Any]:  # fmt: skip
    """(model, tokenizer, image processor), made on the device. spread: size of the noise added to every weight.

    Raises SightRLError for an unknown family. Leaves the CPU's global random state alone.
    """
    if family not in FAMILIES:
        raise SightRLError(f"there is no random model {family!r}; use one of {', '.join(FAMILIES)}")
    tokenizer = byte_tokenizer()
    config = random_config(family, tokenizer, text or {}, vision or {})
    with torch.random.fork_rng(devices=[]), torch.no_grad(), torch.device(device):
        torch.manual_seed(seed)
        model = FAMILIES[family][1]._from_config(config, dtype=dtype)
        for parameter in model.parameters() if spread else ():
            parameter += spread * torch.randn_like(parameter)
    model.generation_config.update(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    patch = config.vision_config.patch_size
    half = [0.5] * 3 if family == "qwen3_vl" else None
    means = {"image_mean": half, "image_std": half} if half else {}
    size = {"shortest_edge": (2 * patch) ** 2 * 4, "longest_edge": (2 * patch) ** 2 * 1024}
    return (
        model,
        tokenizer,
        Qwen2VLImageProcessorPil(patch_size=patch, temporal_patch_size=2, merge_size=2, size=size, **means),
    )

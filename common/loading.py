"""Model, tokenizer and image processor from a name; every mistake a user can make becomes one sentence."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForImageTextToText, AutoTokenizer, PreTrainedModel
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from common.errors import SightRLError

FAMILIES = {"qwen2_vl": "Qwen2-VL", "qwen2_5_vl": "Qwen2.5-VL", "qwen3_vl": "Qwen3-VL"}
TINY = Path(__file__).parent / "world" / "tiny_vlm"
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3  # glibc's names
LORA_TARGETS = r".*language_model\..*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"


def check_supported(config: Any) -> None:
    """Raises SightRLError for another architecture, or a setting the engine does not implement."""
    if config.model_type not in FAMILIES:
        names = ", ".join(FAMILIES.values())
        raise SightRLError(f"models of type {config.model_type!r} are not supported; use one of {names}")
    if "sliding_attention" in (getattr(config.text_config, "layer_types", None) or []):
        raise SightRLError("sliding-window attention is not supported; set use_sliding_window to false")


def pick_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """The torch type of "float32", "bfloat16", "float16" or "auto" (bfloat16 on CUDA, else float32)."""
    names = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    names["auto"] = torch.bfloat16 if device.type == "cuda" else torch.float32
    if dtype not in names:
        raise SightRLError(f"dtype must be one of {', '.join(names)}, not {dtype!r}")
    return names[dtype]


def load_parts(name: str, dtype: torch.dtype, device: torch.device) -> tuple[nn.Module, Any, Any]:
    """(model, tokenizer, image processor) for "tiny", "random:<family>", a folder, or a Hugging Face id.

    A folder with an adapter gives the base model it names with the adapter on top. Raises SightRLError.
    """
    if name.startswith("random:"):
        from common.random_vlm import random_parts

        model, tokenizer, processor = random_parts(name.removeprefix("random:"))
        return model.to(device, dtype), tokenizer, processor
    source = str(TINY) if name == "tiny" else name
    if (Path(source) / "adapter_config.json").exists():
        return load_adapter(source, dtype, device)
    try:
        config = AutoConfig.from_pretrained(source)
    except (OSError, ValueError, KeyError) as error:
        raise SightRLError(cannot_load(name, source, error)) from None
    check_supported(config)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
        processor = Qwen2VLImageProcessorPil.from_pretrained(source)
        model = AutoModelForImageTextToText.from_pretrained(source, dtype=dtype)
    except (OSError, ValueError) as error:
        raise SightRLError(cannot_load(name, source, error)) from None
    return model.to(device), tokenizer, processor


def cannot_load(name: str, source: str, error: Exception) -> str:
    """The sentence for a model that cannot be read."""
    if name == "tiny" and not Path(source).exists():
        return "the tiny VLM is missing; make it with `python -m common.world.train_tiny_vlm`"
    if Path(source).exists():
        return f"{source} is not a complete model folder: {str(error).splitlines()[0]}"
    return (
        f"model {name!r} is no local folder and not in the Hugging Face cache, and the hub did not answer; "
        f"fetch it with `hf download {name}` where there is a network, or give the path of a folder"
    )


def load_adapter(folder: str, dtype: torch.dtype, device: torch.device) -> tuple[nn.Module, Any, Any]:
    """A folder that `VLM.save` wrote with LoRA: the base model it names, the adapter on top, trainable."""
    from peft import PeftConfig, PeftModel

    base, tokenizer, processor = load_parts(
        PeftConfig.from_pretrained(folder).base_model_name_or_path, dtype, device
    )
    return PeftModel.from_pretrained(base, folder, is_trainable=True), tokenizer, processor


def add_lora(base: PreTrainedModel, rank: int, alpha: int | None) -> nn.Module:
    """LoRA on the language model's linear layers; alpha is 2 * rank by default."""
    from peft import LoraConfig, get_peft_model

    return get_peft_model(base, LoraConfig(r=rank, lora_alpha=alpha or 2 * rank, target_modules=LORA_TARGETS))


def checkpoint_activations(base: PreTrainedModel) -> None:
    """Recompute every layer's activations in the backward pass (the method was renamed after transformers
    5.17).
    """
    enable = getattr(base, "activation_checkpointing_enable", None) or base.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def keep_freed_memory() -> None:
    """Tell the C library to keep freed memory instead of giving it back: on the CPU a step allocates the same large
    tensors again and again, and fresh pages cost up to a third of its time. Does nothing outside glibc."""
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    for option, value in ((M_MMAP_THRESHOLD, 1 << 30), (M_TRIM_THRESHOLD, (1 << 31) - 1), (M_TOP_PAD, 1 << 26)):
        mallopt(option, value)

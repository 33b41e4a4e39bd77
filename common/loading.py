"""Model, tokenizer and image processor from a name; every mistake a user can make becomes one sentence."""

from __future__ import annotations

import ctypes
import json
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
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
    check_files(Path(source))
    if (Path(source) / "adapter_config.json").exists():
        return load_adapter(source, dtype, device)
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
        check_supported(config)
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        processor = Qwen2VLImageProcessorPil.from_pretrained(source)
        model, found = AutoModelForImageTextToText.from_pretrained(
            source, dtype=dtype, trust_remote_code=False, use_safetensors=True, output_loading_info=True)  # fmt: skip
        check_weights(found)
        return model.to(device), tokenizer, processor
    except SightRLError:
        raise
    except Exception as error:  # whatever the library stumbles over in files that somebody else wrote
        raise SightRLError(cannot_load(name, source, error)) from None


def check_files(folder: Path) -> None:
    """Raises SightRLError for a folder whose weights are pickled, since reading a pickle can run any code, or are whole
    numbers. Pickles beside safetensors, such as training_args.bin, are never read."""
    pickles = sorted(f.name for end in ("bin", "pt", "pth", "pkl", "ckpt") for f in folder.glob(f"*.{end}"))
    for index in folder.glob("*.safetensors.index.json"):
        try:
            named = set(map(str, json.loads(index.read_bytes())["weight_map"].values()))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise SightRLError(f"{index} is damaged; fetch the model again.") from None
        if odd := sorted(n for n in named if Path(n).name != n or not n.endswith(".safetensors")):
            raise SightRLError(f"{index} names {odd[0][:80]!r}, no safetensors file beside it; fetch the model again.")
    if pickles and not any(folder.glob("*.safetensors")):
        problem = f"holds its weights as a pickle ({pickles[0]}), which can run code when it is read"
        raise SightRLError(f"{folder} {problem}; save it with safetensors where you trust it, and give that folder.")
    for file in folder.glob("*.safetensors"):
        try:
            with safe_open(file, "pt") as tensors:
                kinds = {tensors.get_slice(name).get_dtype(): name for name in tensors.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise SightRLError(cannot_load(str(folder), str(folder), error)) from None
        if whole := next((name for kind, name in kinds.items() if "F" not in kind), None):
            raise SightRLError(cannot_load(str(folder), str(folder), ValueError(f"{whole} holds whole numbers")))


def check_weights(found: dict[str, Any]) -> None:
    """Raises ValueError for weights that the files lack or have in other shapes."""
    if missing := sorted(found["missing_keys"]):
        raise ValueError(f"{len(missing)} of its weights are missing, such as {missing[0]}")
    if wrong := sorted(map(str, found["mismatched_keys"])):
        raise ValueError(f"{len(wrong)} of its weights have another shape, such as {wrong[0]}")


def cannot_load(name: str, source: str, error: Exception) -> str:
    """The sentence for a model that cannot be read."""
    if name == "tiny" and not Path(source).exists():
        return "the tiny VLM is missing; make it with `python -m common.world.train_tiny_vlm`"
    if Path(source).exists():
        problem = " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__
        return f"{source} is not a complete model folder ({problem}); fetch or save it again."
    return (
        f"model {name!r} is no local folder and not in the Hugging Face cache, and the hub did not answer; "
        f"fetch it with `hf download {name}` where there is a network, or give the path of a folder"
    )


def load_adapter(folder: str, dtype: torch.dtype, device: torch.device) -> tuple[nn.Module, Any, Any]:
    """A folder that `VLM.save` wrote with LoRA: the base model it names, the adapter on top, trainable."""
    from peft import LoraConfig, PeftConfig, PeftModel

    try:
        config = PeftConfig.from_pretrained(folder)
        name = config.base_model_name_or_path
        if type(config) is not LoraConfig or config.megatron_config is not None or not isinstance(name, str):
            raise ValueError("it is no plain LoRA adapter that names its base model")
        if not (Path(folder) / "adapter_model.safetensors").is_file():
            raise OSError("there is no adapter_model.safetensors")
        if (Path(name) / "adapter_config.json").exists():
            raise ValueError(f"its base model {name} is an adapter too")
        base, tokenizer, processor = load_parts(name, dtype, device)
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "Found missing adapter keys")
            return PeftModel.from_pretrained(base, folder, is_trainable=True), tokenizer, processor
    except SightRLError:
        raise
    except Exception as error:  # as above
        raise SightRLError(cannot_load(folder, folder, error)) from None


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

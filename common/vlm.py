"""The model side of everything: loading, prompts and pixels, image features, and forwards that share every prompt.

Supported are Qwen2-VL, Qwen2.5-VL and Qwen3-VL. Their language model is run on input embeddings into which the image
features were written once, with explicit three-row M-RoPE positions, under the layouts of attention.py.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForImageTextToText, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil, smart_resize

from common.attention import TEXT_ATTENTION, VISION_ATTENTION, SharedPrefix
from common.errors import SightRLError

FAMILIES = {"qwen2_vl": "Qwen2-VL", "qwen2_5_vl": "Qwen2.5-VL", "qwen3_vl": "Qwen3-VL"}
TINY = Path(__file__).parent / "world" / "tiny_vlm"
IMAGE_MARK = "<image>"
# A response must never hold one of these: the next forward would look for pictures that are not there.
PLACEHOLDERS = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>")
LORA_TARGETS = r".*language_model\..*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
MAX_PATCHES = 1 << 17  # patches in one call of the vision tower when no gradient is wanted


@dataclass
class Prompt:
    """One tokenised prompt with its images. CPU tensors; never truncated, never repeated per response."""

    input_ids: Tensor  # int64 [P], image placeholders already expanded
    position_ids: Tensor  # int64 [3, P] M-RoPE
    next_position: int  # M-RoPE position of the first response token, in all three rows
    pixel_values: Tensor | None  # float32 [patches, channels * temporal patch * patch * patch], None without images
    image_grid_thw: Tensor | None  # int64 [images, 3] in patches
    images: list[np.ndarray]  # uint8 [H, W, 3] each, after the resize: what the model really sees
    text: str  # the chat-formatted text before the expansion of placeholders


@dataclass
class ImageFeatures:
    """The vision tower's output for all images of one prompt, one behind another."""

    embeds: Tensor  # [image tokens, d]
    deepstack: list[Tensor]  # [image tokens, d] per early decoder layer; empty except for Qwen3-VL


class VLM:
    """A model with its tokenizer and image processor.

    Attributes: model (the module to train; a PeftModel with LoRA), base (the transformers model inside), tokenizer,
    image_processor, family, device, dtype, banned_ids (int64, never sampled, outside the distribution), eos_ids, pad_id,
    min_pixels, max_pixels, train_vision, has_adapter. Build it with load_vlm.
    """

    def __init__(self, model: nn.Module, tokenizer: PreTrainedTokenizerBase, image_processor: Qwen2VLImageProcessorPil, *,
                 train_vision: bool = True, min_pixels: int | None = None, max_pixels: int | None = None) -> None:  # fmt: skip
        self.model, self.tokenizer, self.image_processor = model, tokenizer, image_processor
        self.has_adapter = hasattr(model, "disable_adapter")
        self.base: PreTrainedModel = model.get_base_model() if self.has_adapter else model
        self.family: str = self.base.config.model_type
        check_supported(self.base.config)
        use_our_attention(self.base)
        self.train_vision = train_vision and not self.has_adapter
        if not self.train_vision:
            self.base.model.visual.requires_grad_(False)
        self.reference_base: PreTrainedModel | None = None
        self.min_pixels = min_pixels or image_processor.size["shortest_edge"]
        self.max_pixels = max_pixels or image_processor.size["longest_edge"]
        self.pixel_table = pixel_table(image_processor)  # float32 [3, 256]
        self.image_token_id: int = self.base.config.image_token_id
        self.eos_ids, self.pad_id = end_and_padding(self.base, tokenizer)
        vocabulary, rows = tokenizer.get_vocab(), len(self.base.lm_head.weight)
        banned = {vocabulary[t] for t in PLACEHOLDERS if t in vocabulary}
        banned |= {self.image_token_id, self.base.config.video_token_id}
        self.banned_ids = torch.tensor(sorted(i for i in banned if i < rows), device=self.device)
        self.strings: dict[int, str] = {}

    @property
    def device(self) -> torch.device:
        return self.base.lm_head.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.base.lm_head.weight.dtype

    @property
    def head_weight(self) -> Tensor:
        """[V, d]"""
        return self.base.lm_head.weight

    @property
    def language_model(self) -> nn.Module:
        return self.base.model.language_model

    # -------------------------------------------------------------------------------------------- prompts and pixels
    def prompt(self, text: str, images: list[Image.Image], system: str | None = None) -> Prompt:
        """Format, tokenise and preprocess one user turn; the prompt ends where the assistant's answer starts.

        text holds one "<image>" mark per image, where it goes; without marks the images go first. Raises SightRLError
        when the number of marks is neither 0 nor the number of images, or an image is too narrow (1:200).
        """
        formatted = self.format(text, len(images), system)
        arrays = [self.resize(image) for image in images]
        ids = torch.tensor(self.tokenizer(formatted, add_special_tokens=False)["input_ids"])  # [unexpanded P]
        found = int((ids == self.image_token_id).sum())
        if found != len(images):
            raise SightRLError(f"a prompt with {len(images)} image(s) holds {found} image placeholder(s) after the chat template; "
                               f"remove {PLACEHOLDERS[0]} from the text or use a tokenizer with a template for images")  # fmt: skip
        if not images:
            positions = torch.arange(len(ids)).expand(3, -1)  # [3, P]
            return Prompt(ids, positions, len(ids), None, None, [], formatted)
        pixels, grids = self.patchify(arrays)
        repeats = torch.ones_like(ids)
        repeats[ids == self.image_token_id] = grids.prod(1) // self.image_processor.merge_size**2
        ids = ids.repeat_interleave(repeats)  # [P]
        kinds = (ids == self.image_token_id).int()[None]
        positions, _ = self.base.model.get_rope_index(ids[None], mm_token_type_ids=kinds, image_grid_thw=grids)  # [3, 1, P]
        return Prompt(ids, positions[:, 0], int(positions.max()) + 1, pixels, grids, arrays, formatted)

    def format(self, text: str, images: int, system: str | None) -> str:
        """The chat-formatted text, with one placeholder per image."""
        parts = text.split(IMAGE_MARK)
        if len(parts) == 1:
            parts = [""] * images + parts
        if len(parts) != images + 1:
            raise SightRLError(f"the text has {len(parts) - 1} {IMAGE_MARK} marks for {images} image(s); write one per image or none")
        content = [{"type": "text", "text": parts[0]}]
        for part in parts[1:]:
            content += [{"type": "image"}, {"type": "text", "text": part}]
        messages: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": [c for c in content if c.get("text") != ""] if images else text})
        return self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)

    def resize(self, image: Image.Image) -> np.ndarray:
        """uint8 [H, W, 3], sides divisible by patch * merge and the area within [min_pixels, max_pixels]."""
        processor = self.image_processor
        factor = processor.patch_size * processor.merge_size
        try:
            height, width = smart_resize(image.height, image.width, factor, self.min_pixels, self.max_pixels)
        except ValueError as error:
            raise SightRLError(f"an image of {image.width} x {image.height} pixels cannot be used: {error}") from None
        image = image.convert("RGB")
        if (width, height) != image.size:
            image = image.resize((width, height), processor.resample)
        return np.array(image)

    def patchify(self, images: list[np.ndarray]) -> tuple[Tensor, Tensor]:
        """Normalised patches float32 [patches, C * T * p * p] in the vision tower's order, and grids int64 [images, 3].

        Equal to the library's image processor bit for bit; a table of the 256 normalised values per channel and one copy
        make it several times faster.
        """
        size, merge, frames = (getattr(self.image_processor, f"{n}_size") for n in ("patch", "merge", "temporal_patch"))
        grids = [(1, image.shape[0] // size, image.shape[1] // size) for image in images]
        out = np.empty((sum(h * w for _, h, w in grids), 3, frames, size, size), np.float32)
        start = 0
        for image, (_, height, width) in zip(images, grids, strict=True):
            blocks = image.reshape(height // merge, merge, size, width // merge, merge, size, 3)
            blocks = blocks.transpose(0, 3, 1, 4, 6, 2, 5).reshape(-1, 3, size, size)  # [patches, 3, p, p] in merge blocks
            for channel in range(3):
                out[start : start + len(blocks), channel] = self.pixel_table[channel][blocks[:, channel]][:, None]
            start += len(blocks)
        return torch.from_numpy(out).flatten(1), torch.tensor(grids)

    def replace_images(self, prompt: Prompt, images: list[np.ndarray]) -> Prompt:
        """The same prompt with other pictures of the same sizes (uint8 [H, W, 3]); ids and positions stay.

        Raises ValueError when a size differs.
        """
        if [i.shape for i in images] != [i.shape for i in prompt.images]:
            raise ValueError("replace_images needs images of exactly the sizes of prompt.images")
        if not images:
            return prompt
        return replace(prompt, pixel_values=self.patchify(images)[0], images=images)

    # ------------------------------------------------------------------------------------------------ vision tower
    def encode_images(self, prompts: list[Prompt]) -> list[ImageFeatures]:
        """Features of every prompt's images; a picture that occurs several times is encoded once.

        Gradient flows iff torch.is_grad_enabled() and the vision tower is trained.
        """
        numbers: dict[tuple, int] = {}  # picture -> index among the distinct ones
        distinct: list[tuple[Tensor, tuple[int, int]]] = []  # patches [h * w, C * T * p * p], (h, w)
        wanted: list[list[int]] = []
        for prompt in prompts:
            wanted.append([])
            sizes = [] if prompt.image_grid_thw is None else prompt.image_grid_thw.prod(1).tolist()
            pixels = prompt.pixel_values.split(sizes) if sizes else ()
            for image, patches, grid in zip(prompt.images, pixels, prompt.image_grid_thw if sizes else (), strict=True):
                key = (image.shape, image.tobytes())
                if key not in numbers:
                    numbers[key] = len(distinct)
                    distinct.append((patches, (int(grid[1]), int(grid[2]))))
                wanted[-1].append(numbers[key])
        encoded = self.encode_distinct(distinct)
        return [self.join_features([encoded[i] for i in images]) for images in wanted]

    def encode_distinct(self, images: list[tuple[Tensor, tuple[int, int]]]) -> list[ImageFeatures]:
        """Features of single images, encoded sorted by size."""
        order = sorted(range(len(images)), key=lambda i: images[i][1])
        out: list[ImageFeatures | None] = [None] * len(images)
        while order:
            batch, patches = [], 0
            while order and (not batch or torch.is_grad_enabled() or patches + len(images[order[0]][0]) <= MAX_PATCHES):
                patches += len(images[order[0]][0])
                batch.append(order.pop(0))
            for index, features in zip(batch, self.run_vision([images[i] for i in batch]), strict=True):
                out[index] = features
        return out

    def run_vision(self, images: list[tuple[Tensor, tuple[int, int]]]) -> list[ImageFeatures]:
        """One call of the vision tower; images sorted by size.

        Images of one size are given as the frames of one clip: the towers attend within frames, and their per-image
        bookkeeping in Python is then paid once per size.
        """
        grids: list[list[int]] = []
        for _, (height, width) in images:
            if grids and grids[-1][1:] == [height, width]:
                grids[-1][0] += 1
            else:
                grids.append([1, height, width])
        tower = self.base.model.visual
        pixels = torch.cat([patches for patches, _ in images]).to(self.device, self.dtype)
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.train_vision):
            out = tower(pixels, grid_thw=torch.tensor(grids, device=self.device), return_dict=True, segments={})
        counts = [len(patches) // tower.spatial_merge_size**2 for patches, _ in images]
        embeds = out.pooler_output.split(counts)
        layers = [layer.split(counts) for layer in getattr(out, "deepstack_features", None) or []]
        return [ImageFeatures(part, [layer[i] for layer in layers]) for i, part in enumerate(embeds)]

    def join_features(self, parts: list[ImageFeatures]) -> ImageFeatures:
        """The images of one prompt behind one another."""
        if len(parts) == 1:
            return parts[0]
        if not parts:
            empty = torch.zeros(0, self.head_weight.shape[1], device=self.device, dtype=self.dtype)
            return ImageFeatures(empty, [])
        return ImageFeatures(torch.cat([p.embeds for p in parts]), [torch.cat(layer) for layer in zip(*(p.deepstack for p in parts))])

    # ---------------------------------------------------------------------------------------------- language model
    def run_groups(self, prompts: list[Prompt], features: list[ImageFeatures], tokens: Tensor | None = None,
                   lengths: list[int] | None = None, keep: bool = False) -> tuple[Tensor, SharedPrefix]:  # fmt: skip
        """Run [prompt_1 ... prompt_B, response_1 ... response_N] in one row: (hidden states [T, d], their layout).

        tokens: int64 [N, R] of which the first lengths[n] of row n are run; None for a prefill. keep: the layout keeps the
        prompts' keys and values for decoding.
        """
        ids = torch.cat([p.input_ids for p in prompts]).to(self.device)  # [all prompt tokens]
        positions = torch.cat([p.position_ids for p in prompts], dim=1).to(self.device)  # [3, all prompt tokens]
        pictured = ids == self.image_token_id
        layout = SharedPrefix([len(p.input_ids) for p in prompts], lengths or [], self.device, self.dtype, keep)
        if layout.responses.total:
            places = torch.arange(tokens.shape[1], device=self.device)
            run = places < torch.tensor(lengths, device=self.device)[:, None]  # [N, R]
            starts = torch.tensor([p.next_position for p in prompts], device=self.device).repeat_interleave(layout.group)
            ids = torch.cat([ids, tokens[run]])  # [T]
            positions = torch.cat([positions, (starts[:, None] + places)[run].expand(3, -1)], dim=1)  # [3, T]
        embeds = self.language_model.get_input_embeddings()(ids)  # [T, d]
        image_slots = pictured.nonzero().flatten()  # [image tokens], all within the prompts
        extra: dict[str, Any] = {}
        if len(image_slots):
            pictures = torch.cat([f.embeds for f in features]).to(embeds.dtype)
            if len(pictures) != len(image_slots):
                raise ValueError(f"{len(pictures)} image features for {len(image_slots)} image tokens")
            embeds = embeds.index_copy(0, image_slots, pictures)
            deepstack = [torch.cat(layer) for layer in zip(*(f.deepstack for f in features if len(f.embeds)))]
            if deepstack:
                mask = torch.zeros(1, len(ids), dtype=torch.bool, device=self.device)
                mask[0, image_slots] = True
                extra = {"visual_pos_masks": mask, "deepstack_visual_embeds": deepstack}
        # A four-dimensional mask is handed through untouched, so the library makes none; our attention ignores it.
        no_mask = torch.empty(1, 1, 1, 1, device=self.device)
        out = self.language_model(inputs_embeds=embeds[None], position_ids=positions[:, None], attention_mask=no_mask,
                                  use_cache=False, layout=layout, **extra)  # fmt: skip
        return out.last_hidden_state[0], layout

    # -------------------------------------------------------------------------------------------- reference, saving
    @contextmanager
    def reference(self) -> Iterator[None]:
        """Inside, the model is the reference policy: the adapter switched off, or the copy made by load_vlm.

        Raises SightRLError when there is neither.
        """
        if self.has_adapter:
            with self.model.disable_adapter():
                yield
        elif self.reference_base is not None:
            trained = self.base
            self.base = self.reference_base
            try:
                yield
            finally:
                self.base = trained
        else:
            raise SightRLError('there is no reference policy: load the model with LoRA (lora_rank > 0) or with reference="copy"')

    def trainable(self) -> list[nn.Parameter]:
        return [p for p in self.model.parameters() if p.requires_grad]

    def save(self, folder: Path) -> None:
        """Write weights (safetensors; with LoRA only the adapter), tokenizer and image processor as transformers does."""
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        self.image_processor.save_pretrained(folder)

    def decode(self, ids: Tensor | list[int]) -> str:
        """Text without special tokens."""
        return self.tokenizer.decode(ids, skip_special_tokens=True)

    def token_strings(self, ids: Tensor | list[int]) -> list[str]:
        """One readable string per token, special tokens included."""
        ids = ids.tolist() if isinstance(ids, Tensor) else ids
        for i in set(ids) - self.strings.keys():
            self.strings[i] = self.tokenizer.decode([i])
        return [self.strings[i] for i in ids]


# ----------------------------------------------------------------------------------------------------------- helpers
def check_supported(config: Any) -> None:
    """Raises SightRLError for another architecture or a setting the engine does not implement."""
    if config.model_type not in FAMILIES:
        raise SightRLError(f"models of type {config.model_type!r} are not supported; use one of {', '.join(FAMILIES.values())}")
    if "sliding_attention" in (getattr(config.text_config, "layer_types", None) or []):
        raise SightRLError("models with sliding-window layers are not supported; set use_sliding_window to false in config.json")


def use_our_attention(base: PreTrainedModel) -> None:
    for part, name in ((base.model.language_model, TEXT_ATTENTION), (base.model.visual, VISION_ATTENTION)):
        for module in part.modules():
            if hasattr(module, "config"):
                module.config._attn_implementation = name


def pixel_table(processor: Qwen2VLImageProcessorPil) -> np.ndarray:
    """float32 [3, 256]: what every byte becomes in every channel, with the library's order of roundings."""
    values = (np.arange(256).astype(np.float64) * processor.rescale_factor).astype(np.float32)
    mean, std = (np.array(v, np.float32)[:, None] for v in (processor.image_mean, processor.image_std))
    return (values - mean) / std


def end_and_padding(base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], int]:
    """(ids that end a response, padding id), from the generation settings and the tokenizer."""
    ends = base.generation_config.eos_token_id
    ends = ends if isinstance(ends, list) else [ends]
    ends = [i for i in dict.fromkeys([*ends, tokenizer.eos_token_id]) if i is not None]
    if not ends:
        raise SightRLError("neither generation_config.json nor the tokenizer names an end-of-sequence token")
    pads = (base.generation_config.pad_token_id, tokenizer.pad_token_id, ends[0])
    return ends, next(i for i in pads if i is not None)


# ----------------------------------------------------------------------------------------------------------- loading
def load_vlm(name: str = "tiny", *, dtype: str = "auto", device: str = "auto", lora_rank: int = 0, lora_alpha: int | None = None,
             train_vision: bool = True, gradient_checkpointing: bool = False, min_pixels: int | None = None,
             max_pixels: int | None = None, reference: str = "none") -> VLM:  # fmt: skip
    """Load a model ready for training.

    name: "tiny" (the micro-world's own), a local folder (also one that `save` wrote with LoRA), a Hugging Face id, or
    "random:<family>" (a minute random model). dtype: "auto" is float32 on the CPU and bfloat16 on CUDA, else "float32",
    "bfloat16" or "float16". lora_rank > 0: LoRA on the language model's linear layers, everything else frozen;
    lora_alpha: 2 * rank by default. reference: "copy" keeps a frozen copy of the weights as loaded, "adapter" relies on
    LoRA. min_pixels, max_pixels: area of an image after the resize. Raises SightRLError with one sentence for everything
    a user can get wrong.
    """
    place = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
    precision = pick_dtype(dtype, place)
    if reference not in ("none", "copy", "adapter"):
        raise SightRLError(f'reference must be "none", "copy" or "adapter", not {reference!r}')
    if name.startswith("random:"):
        from common.random_vlm import random_parts

        model, tokenizer, processor = random_parts(name.removeprefix("random:"))
        model = model.to(place, precision)
    else:
        model, tokenizer, processor = load_parts(name, precision, place)
    adapted = hasattr(model, "disable_adapter")
    if lora_rank and not adapted:
        model, adapted = add_lora(model, lora_rank, lora_alpha), True
    if reference == "adapter" and not adapted:
        raise SightRLError('reference="adapter" needs LoRA; set lora_rank above 0')
    vlm = VLM(model, tokenizer, processor, train_vision=train_vision, min_pixels=min_pixels, max_pixels=max_pixels)
    if gradient_checkpointing:
        vlm.base.gradient_checkpointing_enable({"use_reentrant": False})
    if reference == "copy" and not adapted:
        vlm.reference_base = copy.deepcopy(vlm.base).requires_grad_(False).eval()
    vlm.model.train()
    return vlm


def pick_dtype(dtype: str, device: torch.device) -> torch.dtype:
    names = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    names["auto"] = torch.bfloat16 if device.type == "cuda" else torch.float32
    if dtype not in names:
        raise SightRLError(f"dtype must be one of {', '.join(names)}, not {dtype!r}")
    return names[dtype]


def load_parts(name: str, dtype: torch.dtype, device: torch.device) -> tuple[nn.Module, Any, Any]:
    """(model, tokenizer, image processor) of a folder or hub id."""
    source = str(TINY) if name == "tiny" else name
    adapter = Path(source) / "adapter_config.json"
    if adapter.exists():
        return load_adapter(Path(source), dtype, device)
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
    if name == "tiny":
        return "the tiny VLM is missing from common/world/tiny_vlm; make it with `python -m common.world.train_tiny_vlm`"
    if Path(source).exists():
        return f"{name} is not a complete model folder: {str(error).splitlines()[0]}"
    return (f"model {name!r} is neither a local folder nor in the Hugging Face cache, and the hub did not answer; fetch it with "
            f"`hf download {name}` where there is a network, or give the path of a folder")  # fmt: skip


def load_adapter(folder: Path, dtype: torch.dtype, device: torch.device) -> tuple[nn.Module, Any, Any]:
    """A folder that holds a LoRA adapter: the base model it names, with the adapter on top, trainable."""
    from peft import PeftConfig, PeftModel

    origin = PeftConfig.from_pretrained(str(folder)).base_model_name_or_path
    base, tokenizer, processor = load_parts(origin, dtype, device)
    return PeftModel.from_pretrained(base, str(folder), is_trainable=True), tokenizer, processor


def add_lora(base: PreTrainedModel, rank: int, alpha: int | None) -> nn.Module:
    from peft import LoraConfig, get_peft_model

    return get_peft_model(base, LoraConfig(r=rank, lora_alpha=alpha or 2 * rank, target_modules=LORA_TARGETS))

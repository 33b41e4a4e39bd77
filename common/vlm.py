"""The model side of everything: prompts, image features, and forwards that run every prompt once.

Supported are Qwen2-VL, Qwen2.5-VL and Qwen3-VL. Their language model is run on input embeddings into which
the image features were written once, with explicit three-row M-RoPE positions, under the layouts of
attention.py.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from common.attention import TEXT_ATTENTION, VISION_ATTENTION, SharedPrefix
from common.errors import SightRLError
from common.loading import add_lora, check_supported, checkpoint_activations, keep_freed_memory, load_parts, pick_dtype
from common.pixels import Pixels
from common.sharding import Shards, master

IMAGE_MARK = "<image>"
# A response must never hold one of these: the next forward would look for pictures that are not there.
PLACEHOLDERS = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>")
MAX_PATCHES = 1 << 17  # patches in one call of the vision tower when no gradient is wanted


def harmless(text: str) -> str:
    """What a model wrote, as part of a prompt: it must neither end the turn nor ask for pictures, so the marks of both
    are taken apart."""
    return text.replace("<|", "< |").replace(IMAGE_MARK, "< image>")


@dataclass(eq=False)
class Prompt:
    """One tokenised prompt with its images. CPU tensors; never truncated, never repeated per response."""

    input_ids: Tensor  # int64 [P], image placeholders already expanded
    position_ids: Tensor  # int64 [3, P] M-RoPE
    next_position: int  # M-RoPE position of the first response token, in all three rows
    image_grid_thw: Tensor | None  # int64 [images, 3] in patches
    images: list[np.ndarray]  # uint8 [H, W, 3] each, after the resize: what the model really sees
    text: str  # the chat-formatted text before the expansion of placeholders
    pixels: Pixels

    @cached_property
    def pixel_values(self) -> Tensor | None:
        """float32 [patches, 3 * T * p * p], None without images; made by the process that encodes the images."""
        return self.pixels.patchify(self.images) if self.images else None


@dataclass(eq=False)
class ImageFeatures:
    """The vision tower's output for all images of one prompt, one behind another."""

    embeds: Tensor  # [image tokens, d]
    deepstack: list[Tensor]  # [image tokens, d] per early decoder layer; empty except for Qwen3-VL


class VLM:
    """A model with its tokenizer and image processor.

    Attributes: model (the module to train; a PeftModel with LoRA), base (the transformers model inside),
    tokenizer, image_processor, family, device, dtype, banned_ids (int64, never sampled, outside the
    distribution), eos_ids, pad_id, min_pixels, max_pixels, train_vision, has_adapter. Build it with load_vlm.
    """

    def __init__(self, model: nn.Module, tokenizer: PreTrainedTokenizerBase,
                 image_processor: Qwen2VLImageProcessorPil, *, train_vision: bool = True,
                 min_pixels: int | None = None, max_pixels: int | None = None) -> None:  # fmt: skip
        self.model, self.tokenizer, self.image_processor = model, tokenizer, image_processor
        self.has_adapter = hasattr(model, "disable_adapter")
        self.base: PreTrainedModel = model.get_base_model() if self.has_adapter else model
        self.family: str = self.base.config.model_type
        check_supported(self.base.config)
        use_our_parts(self.base)
        if self.device.type == "cpu":
            keep_freed_memory()
        self.train_vision = train_vision and not self.has_adapter
        if not self.train_vision:
            self.base.model.visual.requires_grad_(False)
        self.reference_base: PreTrainedModel | None = None
        self.shards: list[Shards] = []  # filled by sharding.shard
        try:
            self.pixels = Pixels(image_processor, min_pixels, max_pixels)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise SightRLError(f"preprocessor_config.json of the model is damaged ({error}); fetch it again.") from None
        self.min_pixels, self.max_pixels = self.pixels.min_pixels, self.pixels.max_pixels
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

    # -------------------------------------------------------------------------------------- prompts
    def prompt(self, text: str, images: list[Image.Image], system: str | None = None) -> Prompt:
        """Format, tokenise and preprocess one user turn; the prompt ends where the assistant's answer starts.

        text holds one "<image>" mark per image, where it goes; without marks the images go first. Raises
        SightRLError when the number of marks is neither 0 nor the number of images, or an image is too narrow
        (1:200).
        """
        formatted = self.format(text, len(images), system)
        arrays = [self.pixels.resize(image) for image in images]
        ids = torch.tensor(self.tokenizer(formatted, add_special_tokens=False)["input_ids"])  # [unexpanded P]
        found = int((ids == self.image_token_id).sum())
        if found != len(images):
            raise SightRLError(
                f"a prompt with {len(images)} image(s) has {found} placeholder(s) after the chat template; "
                f"remove {PLACEHOLDERS[0]} from the text, or use a tokenizer with a template for images"
            )
        if not images:
            positions = torch.arange(len(ids)).expand(3, -1)  # [3, P]
            return Prompt(ids, positions, len(ids), None, [], formatted, self.pixels)
        grids = self.pixels.grids(arrays)
        repeats = torch.ones_like(ids)
        repeats[ids == self.image_token_id] = grids.prod(1) // self.pixels.merge**2
        ids = ids.repeat_interleave(repeats)  # [P]
        kinds = (ids == self.image_token_id).int()[None]
        locate = self.base.model.get_rope_index
        positions, _ = locate(ids[None], mm_token_type_ids=kinds, image_grid_thw=grids)  # [3, 1, P]
        return Prompt(ids, positions[:, 0], int(positions.max()) + 1, grids, arrays, formatted, self.pixels)

    def format(self, text: str, images: int, system: str | None) -> str:
        """The chat-formatted text, with one placeholder per image."""
        parts = text.split(IMAGE_MARK)
        if len(parts) == 1:
            parts = [""] * images + parts
        if len(parts) != images + 1:
            marks = f"{len(parts) - 1} {IMAGE_MARK} marks"
            raise SightRLError(f"the text has {marks} for {images} image(s); write one per image or none")
        content = [{"type": "text", "text": parts[0]}]
        for part in parts[1:]:
            content += [{"type": "image"}, {"type": "text", "text": part}]
        messages: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
        content = [c for c in content if c.get("text") != ""] if images else text
        messages.append({"role": "user", "content": content})
        try:
            return self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        except Exception as error:  # a template is a program, and comes with the model
            problem = " ".join(str(error).split())[:120]
            raise SightRLError(f"the tokenizer's chat template fails ({problem}); fetch the model again.") from None

    def replace_images(self, prompt: Prompt, images: list[np.ndarray]) -> Prompt:
        """The same prompt with other pictures of the same sizes (uint8 [H, W, 3]); ids and positions stay.

        Raises ValueError when a size differs.
        """
        if [i.shape for i in images] != [i.shape for i in prompt.images]:
            raise ValueError("replace_images needs images of exactly the sizes of prompt.images")
        if not images:
            return prompt
        return replace(prompt, images=images)

    # --------------------------------------------------------------------------------- vision tower
    def encode_images(self, prompts: list[Prompt]) -> list[ImageFeatures]:
        """Features of every prompt's images; a picture that occurs several times is encoded once.

        Gradient flows iff torch.is_grad_enabled() and the vision tower is trained.
        """
        numbers: dict[tuple, int] = {}  # picture -> index among the distinct ones
        distinct: list[tuple[Tensor, tuple[int, int]]] = []  # patches [h * w, C * T * p * p], (h, w)
        wanted: list[list[int]] = []
        for prompt in prompts:
            wanted.append([])
            grids = [] if prompt.image_grid_thw is None else prompt.image_grid_thw.tolist()
            start = 0
            for image, (_, height, width) in zip(prompt.images, grids, strict=True):
                end = start + height * width
                key = (image.shape, image.tobytes())
                if key not in numbers:
                    numbers[key] = len(distinct)
                    distinct.append((prompt.pixel_values[start:end], (height, width)))
                wanted[-1].append(numbers[key])
                start = end
        encoded = self.encode_distinct(distinct)
        return [self.join_features([encoded[i] for i in images]) for images in wanted]

    def encode_distinct(self, images: list[tuple[Tensor, tuple[int, int]]]) -> list[ImageFeatures]:
        """Features of single images, encoded sorted by size, at most MAX_PATCHES patches at once."""
        batches: list[list[int]] = []
        room = 0
        for index in sorted(range(len(images)), key=lambda i: images[i][1]):
            patches = len(images[index][0])
            if patches > room:
                batches.append([])
                room = MAX_PATCHES
            batches[-1].append(index)
            room -= patches
        features: dict[int, ImageFeatures] = {}
        for batch in batches:
            features |= dict(zip(batch, self.run_vision([images[i] for i in batch]), strict=True))
        return [features[i] for i in range(len(images))]

    def run_vision(self, images: list[tuple[Tensor, tuple[int, int]]]) -> list[ImageFeatures]:
        """One call of the vision tower; images sorted by size.

        Images of one size are given as the frames of one clip: the towers attend within frames, and their
        per-image bookkeeping in Python is then paid once per size.
        """
        grids: list[list[int]] = []
        for _, (height, width) in images:
            if grids and grids[-1][1:] == [height, width]:
                grids[-1][0] += 1
            else:
                grids.append([1, height, width])
        tower = self.base.model.visual
        pixels = torch.cat([patches for patches, _ in images]).to(self.device, self.dtype)
        grid = torch.tensor(grids, device=self.device)  # int64 [sizes, 3]
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.train_vision):
            out = tower(pixels, grid_thw=grid, return_dict=True, segments={})
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
        layers = zip(*(p.deepstack for p in parts), strict=True)
        return ImageFeatures(torch.cat([p.embeds for p in parts]), [torch.cat(layer) for layer in layers])

    # ------------------------------------------------------------------------------- language model
    def run_groups(self, prompts: list[Prompt], features: list[ImageFeatures],
                   tokens: Tensor | None = None, lengths: list[int] | None = None,
                   keep: bool = False) -> tuple[Tensor, SharedPrefix]:  # fmt: skip
        """Run the row [prompt_1 ... prompt_B, response_1 ... response_N]: (hidden states [T, d], layout).

        tokens: int64 [N, R] of which the first lengths[n] of row n are run; None for a prefill. keep: the
        layout keeps the prompts' keys and values for decoding.
        """
        prompt_ids = torch.cat([p.input_ids for p in prompts]).to(self.device)  # [prompt tokens]
        positions = torch.cat([p.position_ids for p in prompts], dim=1).to(self.device)  # [3, prompt tokens]
        prompt_lengths = [len(p.input_ids) for p in prompts]
        layout = SharedPrefix(prompt_lengths, lengths or [], self.device, self.dtype, keep)
        ids = prompt_ids
        if layout.responses.total:
            places = torch.arange(tokens.shape[1], device=self.device)
            run = places < torch.tensor(lengths, device=self.device)[:, None]  # bool [N, R]
            starts = torch.tensor([p.next_position for p in prompts], device=self.device)  # [B]
            suffix = starts.repeat_interleave(layout.group)[:, None] + places  # [N, R], after the prompt
            ids = torch.cat([prompt_ids, tokens[run]])  # [T]
            positions = torch.cat([positions, suffix[run].expand(3, -1)], dim=1)  # [3, T]
        embeds = self.language_model.get_input_embeddings()(ids)  # [T, d]
        slots = (prompt_ids == self.image_token_id).nonzero().flatten()  # [image tokens]
        embeds, deepstack = self.insert_images(embeds, slots, features)
        # A four-dimensional mask is handed through, so the library makes none; our attention ignores it.
        no_mask = torch.empty(1, 1, 1, 1, device=self.device)
        out = self.language_model(
            inputs_embeds=embeds[None], position_ids=positions[:, None], attention_mask=no_mask,
            use_cache=False, layout=layout, **deepstack,
        )  # fmt: skip
        return out.last_hidden_state[0], layout

    def insert_images(self, embeds: Tensor, slots: Tensor,
                      features: list[ImageFeatures]) -> tuple[Tensor, dict[str, Any]]:  # fmt: skip
        """(embeds [T, d] with the image features at slots, keyword arguments for Qwen3-VL's deepstack)."""
        if not len(slots):
            return embeds, {}
        pictures = torch.cat([f.embeds for f in features]).to(embeds.dtype)
        if len(pictures) != len(slots):
            raise ValueError(f"{len(pictures)} image features for {len(slots)} image tokens")
        embeds = embeds.index_copy(0, slots, pictures)
        layers = zip(*(f.deepstack for f in features if len(f.embeds)), strict=True)
        deepstack = [torch.cat(layer) for layer in layers]
        if not deepstack:
            return embeds, {}
        mask = torch.zeros(1, len(embeds), dtype=torch.bool, device=embeds.device)
        mask[0, slots] = True
        return embeds, {"visual_pos_masks": mask, "deepstack_visual_embeds": deepstack}

    # ---------------------------------------------------------------------------- reference, saving
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
            raise SightRLError('no reference policy was loaded; use lora_rank above 0 or reference="copy"')

    def trainable(self) -> list[nn.Parameter]:
        """What the optimiser gets: the trainable parameters, with several processes their sharded masters."""
        return [master(p) for p in self.model.parameters() if p.requires_grad]

    def save(self, folder: Path) -> None:
        """Write weights (safetensors; with LoRA the adapter alone), tokenizer and image processor.

        The processor keeps the pixel limits of this model, so that whoever loads it shows it pictures of these sizes.
        """
        self.image_processor.size = {"shortest_edge": self.pixels.min_pixels, "longest_edge": self.pixels.max_pixels}
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        self.image_processor.save_pretrained(folder)

    def answer_ids(self, text: str) -> list[int]:
        """Token ids of a response to learn, with the end-of-sequence token. Raises SightRLError for a text with a token
        that is never sampled: its probability is 0, and learning it would break the weights."""
        ids = self.tokenizer.encode(text, add_special_tokens=False)
        if banned := set(self.banned_ids.tolist()).intersection(ids):
            token = self.token_strings([min(banned)])[0]
            raise SightRLError(f"the response to learn {text[:60]!r} holds {token}, a mark of pictures; remove it")
        return [*ids, self.eos_ids[0]]

    def decode(self, ids: Tensor | list[int]) -> str:
        """Text without special tokens."""
        return self.tokenizer.decode(ids, skip_special_tokens=True)

    def token_strings(self, ids: Tensor | list[int]) -> list[str]:
        """One readable string per token, special tokens included."""
        ids = ids.tolist() if isinstance(ids, Tensor) else ids
        for i in set(ids) - self.strings.keys():
            self.strings[i] = self.tokenizer.decode([i])
        return [self.strings[i] for i in ids]


class PatchProjection(nn.Conv3d):
    """The tower's patch embedding as the matrix product it is: stride = kernel, one output per patch.

    Several times faster than Conv3d on the CPU, and in half precision on CUDA.
    """

    def forward(self, patches: Tensor) -> Tensor:
        """[patches, 3, T, p, p] -> [patches, d, 1, 1, 1]"""
        return F.linear(patches.flatten(1), self.weight.flatten(1), self.bias)[:, :, None, None, None]


def use_our_parts(base: PreTrainedModel) -> None:
    """Plug in the shared-prefix attention and the quick patch embedding; parameters stay as they are."""
    base.model.visual.patch_embed.proj.__class__ = PatchProjection
    for part, name in ((base.model.language_model, TEXT_ATTENTION), (base.model.visual, VISION_ATTENTION)):
        for module in part.modules():
            if hasattr(module, "config"):
                module.config._attn_implementation = name


def end_and_padding(base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], int]:
    """(ids that end a response, padding id), from the generation settings and the tokenizer."""
    ends = base.generation_config.eos_token_id
    ends = ends if isinstance(ends, list) else [ends]
    ends = [i for i in dict.fromkeys([*ends, tokenizer.eos_token_id]) if i is not None]
    if not ends:
        raise SightRLError("neither generation_config.json nor the tokenizer names an end-of-sequence token")
    pads = (base.generation_config.pad_token_id, tokenizer.pad_token_id, ends[0])
    return ends, next(i for i in pads if i is not None)


def load_vlm(name: str = "tiny", *, dtype: str = "auto", device: str = "auto", lora_rank: int = 0,
             lora_alpha: int | None = None, train_vision: bool = True,
             gradient_checkpointing: bool = False, min_pixels: int | None = None,
             max_pixels: int | None = None, reference: str = "none") -> VLM:  # fmt: skip
    """Load a model ready for training.

    name: "tiny" (the micro-world's own), a local folder (also one that `save` wrote with LoRA), a Hugging
    Face id, or "random:<family>" (a minute random model). dtype: "auto" is float32 on the CPU and bfloat16 on
    CUDA, else "float32", "bfloat16" or "float16". lora_rank > 0: LoRA on the language model's linear layers,
    everything else frozen; lora_alpha: 2 * rank by default. reference: "copy" keeps a frozen copy of the
    weights as loaded, "adapter" relies on LoRA. min_pixels, max_pixels: area of an image after the resize.
    Raises SightRLError with one sentence for everything a user can get wrong.
    """
    place = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
    precision = pick_dtype(dtype, place)
    if reference not in ("none", "copy", "adapter"):
        raise SightRLError(f'reference must be "none", "copy" or "adapter", not {reference!r}')
    model, tokenizer, processor = load_parts(name, precision, place)
    adapted = hasattr(model, "disable_adapter")
    if lora_rank and not adapted:
        model, adapted = add_lora(model, lora_rank, lora_alpha), True
    if reference == "adapter" and not adapted:
        raise SightRLError('reference="adapter" needs LoRA; set lora_rank above 0')
    vlm = VLM(model, tokenizer, processor, train_vision=train_vision, min_pixels=min_pixels,
              max_pixels=max_pixels)  # fmt: skip
    if gradient_checkpointing:
        checkpoint_activations(vlm.base)
    if reference == "copy" and not adapted:
        vlm.reference_base = copy.deepcopy(vlm.base).requires_grad_(False).eval()
    vlm.model.train()
    return vlm

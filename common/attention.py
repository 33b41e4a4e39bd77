"""Attention that pays for every prompt once, plugged into transformers through its AttentionInterface.

Two layouts, the first a small object handed to the model's layers as the keyword argument `layout`:

* SharedPrefix: all tokens of a batch in one row, first the prompts, then the responses, nothing padded. A
  prompt token sees the prompt up to itself; a response token sees its prompt and its own response up to
  itself. Used for scoring and training, and (without responses) for the prefill of decoding.
* no layout: the model's ordinary forward; transformers' own SDPA function is used.

The vision tower gets a second function, which attends within the segments (windows or whole images) of the
row, all segments of one length in one call. flash-attn's varlen kernel is used for both where it is installed
and fits.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

try:
    from flash_attn import flash_attn_varlen_func
except ImportError:
    flash_attn_varlen_func = None

TEXT_ATTENTION = "sightrl"
# "flash" in the name makes the library's vision tower hand over all segments at once instead of one by one.
VISION_ATTENTION = "sightrl_vision_flash"


def use_flash(query: Tensor) -> bool:
    """True where flash-attn is importable and takes this tensor: CUDA and half precision."""
    half = query.dtype in (torch.bfloat16, torch.float16)
    return flash_attn_varlen_func is not None and query.is_cuda and half


def sdpa(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool,
         scale: float) -> Tensor:  # fmt: skip
    """PyTorch's attention on [batch, heads, tokens, dim] with fewer key than query heads."""
    groups = query.shape[1] // key.shape[1]
    if groups > 1 and query.is_cuda and mask is not None:  # CUDA kernels that take a mask want equal heads
        key, value, groups = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1), 1
    return F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=causal, scale=scale, enable_gqa=groups > 1
    )


def padding_slots(lengths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """How to pad a ragged row: (slots, filled, valid).

    lengths: int64 [n]. slots: int64 [n, longest], the row index of every padded place (0 where there is
    none); filled: bool [n, longest]; valid: int64 [sum of lengths], the flat padded places that hold a token,
    in the row's order.
    """
    places = torch.arange(int(lengths.max()) if len(lengths) else 0, device=lengths.device)
    filled = places < lengths[:, None]  # [n, longest]
    slots = ((lengths.cumsum(0) - lengths)[:, None] + places).masked_fill(~filled, 0)
    return slots, filled, filled.flatten().nonzero().flatten()


def offsets(lengths: Tensor) -> Tensor:
    """int32 [n + 1]: where each of n sequences starts in the row, and the end."""
    return F.pad(lengths.cumsum(0), (1, 0)).int()


class Ragged:
    """Sequences of several lengths lying one behind another in a row; pads and unpads them."""

    def __init__(self, lengths: list[int], device: torch.device) -> None:
        self.lengths, self.total, self.longest = lengths, sum(lengths), max(lengths, default=0)
        self.equal = self.total == self.longest * len(lengths)  # then padding is a reshape
        sizes = torch.tensor(lengths, dtype=torch.int64)
        self.slots, self.filled, self.valid = (t.to(device) for t in padding_slots(sizes))
        self.offsets = offsets(sizes).to(device)

    def pad(self, row: Tensor) -> Tensor:
        """[total, heads, dim] -> [n, heads, longest, dim]; the padding holds copies of other tokens."""
        shape = (len(self.lengths), self.longest, *row.shape[1:])
        padded = row.reshape(shape) if self.equal else row[self.slots]
        return padded.transpose(1, 2)

    def unpad(self, padded: Tensor) -> Tensor:
        """[n, heads, longest, dim] -> [total, heads, dim]."""
        row = padded.transpose(1, 2).flatten(0, 1)
        return row if self.equal else row[self.valid]


class SharedPrefix:
    """Layout of a row [prompt_1 ... prompt_B, response_1 ... response_N]; response n has prompt n // G.

    prompt_lengths: B lengths >= 1. response_lengths: N = B*G lengths >= 0, or empty for a prefill. keep: a
    prefill stores each layer's padded prompt keys and values, [B, kv heads, P, dim], in `kept`.
    """

    def __init__(self, prompt_lengths: list[int], response_lengths: list[int], device: torch.device,
                 dtype: torch.dtype, keep: bool = False) -> None:  # fmt: skip
        self.prompts, self.responses = Ragged(prompt_lengths, device), Ragged(response_lengths, device)
        self.group = len(response_lengths) // len(prompt_lengths)
        self.kept: list[tuple[Tensor, Tensor]] | None = [] if keep else None
        self.mask: Tensor | None = None
        self.key_slots: Tensor | None = None
        if self.responses.total:
            self.mask = self.suffix_mask(dtype)

    def suffix_mask(self, dtype: torch.dtype) -> Tensor:
        """Additive [1 or N, 1, R, P + R]: a response token sees its prompt and its response up to itself."""
        width, device = self.responses.longest, self.responses.slots.device
        own = torch.ones(width, width, dtype=torch.bool, device=device).tril()[None]  # [1, R, R]
        seen = torch.ones(1, self.prompts.longest, dtype=torch.bool, device=device)
        if not self.prompts.equal:
            seen = self.prompts.filled.repeat_interleave(self.group, 0)
        seen = seen[:, None].expand(-1, width, -1)  # [1 or N, R, P]
        allowed = torch.cat([seen, own.expand(len(seen), -1, -1)], dim=2)
        return torch.zeros_like(allowed, dtype=dtype).masked_fill(~allowed, -torch.inf)[:, None]

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """query [T, heads, dim], key and value [T, kv heads, dim] -> [T, heads, dim]."""
        split, pad = self.prompts.total, self.prompts.pad
        if use_flash(query) and self.kept is None:
            return self.attend_flash(query, key, value, scale)
        prompt_key, prompt_value = pad(key[:split]), pad(value[:split])  # [B, kv heads, P, dim]
        if self.kept is not None:
            self.kept.append((prompt_key, prompt_value))
        # Padding lies behind the prompt, so the causal rule alone hides it from every real token.
        out = self.prompts.unpad(sdpa(pad(query[:split]), prompt_key, prompt_value, None, True, scale))
        if not self.responses.total:
            return out
        pad = self.responses.pad
        key = torch.cat([self.per_response(prompt_key), pad(key[split:])], dim=2)  # [N, kv heads, P + R, dim]
        value = torch.cat([self.per_response(prompt_value), pad(value[split:])], dim=2)
        suffix = sdpa(pad(query[split:]), key, value, self.mask, False, scale)
        return torch.cat([out, self.responses.unpad(suffix)])

    def per_response(self, prompt: Tensor) -> Tensor:
        """[B, ...] -> [N, ...], one row per response."""
        return prompt[:, None].expand(-1, self.group, *prompt.shape[1:]).flatten(0, 1)

    def attend_flash(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """As attend, without padding.

        flash-attn aligns the causal rule at the end, so the queries of a response against the keys
        [prompt, response] see exactly what they may.
        """
        split, prompts, responses = self.prompts.total, self.prompts, self.responses
        starts, longest = prompts.offsets, prompts.longest
        out = flash_attn_varlen_func(query[:split], key[:split], value[:split], starts, starts, longest,
                                     longest, softmax_scale=scale, causal=True)  # fmt: skip
        if not responses.total:
            return out
        slots, key_offsets = self.suffix_keys()
        suffix = flash_attn_varlen_func(query[split:], key[slots], value[slots], responses.offsets,
                                        key_offsets, responses.longest, longest + responses.longest,
                                        softmax_scale=scale, causal=True)  # fmt: skip
        return torch.cat([out, suffix])

    def suffix_keys(self) -> tuple[Tensor, Tensor]:
        """Row indices of [prompt of n, response n] for every response n, and where each starts."""
        if self.key_slots is None:
            device = self.prompts.slots.device
            own = self.prompts.total + self.responses.slots  # [N, R]
            slots = torch.cat([self.per_response(self.prompts.slots), own], dim=1)  # [N, P + R]
            filled = torch.cat([self.per_response(self.prompts.filled), self.responses.filled], dim=1)
            self.key_slots, self.key_offsets = slots[filled], offsets(filled.sum(1)).to(device)
        return self.key_slots, self.key_offsets


def text_attention(module: nn.Module, query: Tensor, key: Tensor, value: Tensor,
                   attention_mask: Tensor | None, scaling: float | None = None,
                   layout: SharedPrefix | None = None,
                   **kwargs: Any) -> tuple[Tensor, None]:  # fmt: skip
    """The function transformers calls: with a layout [1, heads, T, dim] -> [1, T, heads, dim], else SDPA."""
    if layout is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    rows = (t[0].transpose(0, 1) for t in (query, key, value))  # [T, heads, dim] each
    return layout.attend(module.layer_idx, *rows, scale)[None], None


def equal_lengths(cu_seqlens: Tensor) -> list[tuple[int, Tensor | None]]:
    """Segments batched by length: (length, int64 [n, length] row indices); None for all rows in order."""
    lengths = cu_seqlens.diff()
    if bool((lengths == lengths[0]).all()):
        return [(int(lengths[0]), None)]
    batches = []
    for length in lengths.unique().tolist():
        starts = cu_seqlens[:-1][lengths == length].long()
        batches.append((length, starts[:, None] + torch.arange(length, device=cu_seqlens.device)))
    return batches


def vision_attention(module: nn.Module, query: Tensor, key: Tensor, value: Tensor,
                     attention_mask: Tensor | None, cu_seq_lens_q: Tensor, max_length_q: int,
                     scaling: float | None = None, segments: dict[int, list] | None = None,
                     **kwargs: Any) -> tuple[Tensor, None]:  # fmt: skip
    """Attention within segments, [1, heads, T, dim] -> [1, T, heads, dim]; cu_seq_lens_q: int32 [n + 1].

    segments: a dictionary that lives for one forward of the tower and remembers how its segments are batched.
    """
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    query, key, value = (t[0].transpose(0, 1) for t in (query, key, value))  # [T, heads, dim]
    if use_flash(query):
        out = flash_attn_varlen_func(query, key, value, cu_seq_lens_q, cu_seq_lens_q, max_length_q,
                                     max_length_q, softmax_scale=scale, causal=False)  # fmt: skip
        return out[None], None
    segments = {} if segments is None else segments
    if id(cu_seq_lens_q) not in segments:
        segments[id(cu_seq_lens_q)] = equal_lengths(cu_seq_lens_q)
    out = torch.empty_like(query, memory_format=torch.contiguous_format)
    for length, rows in segments[id(cu_seq_lens_q)]:
        batch = [query, key, value]
        batch = [t.reshape(-1, length, *t.shape[1:]) if rows is None else t[rows] for t in batch]
        batch = [t.transpose(1, 2) for t in batch]  # [n, heads, length, dim] each
        part = F.scaled_dot_product_attention(*batch, scale=scale).transpose(1, 2)  # [n, length, heads, dim]
        if rows is None:
            return part.reshape(1, *query.shape), None
        out = out.index_copy(0, rows.flatten(), part.flatten(0, 1))
    return out[None], None


AttentionInterface.register(TEXT_ATTENTION, text_attention)
AttentionInterface.register(VISION_ATTENTION, vision_attention)
AttentionMaskInterface.register(TEXT_ATTENTION, sdpa_mask)  # for the ordinary forward; layouts need no mask

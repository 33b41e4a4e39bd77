"""One token for every response being written: the decoder layers written out for decoding.

The transformers layers spend most of a small step on Python and on copies. Here the same weights are run by about 35
operations a layer, with the prompts' keys and values kept once per group. On the CPU the products with the weights, two
thirds of the time, are those of csrc/few_rows.cpp; on CUDA the whole step is one graph.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.attention import SharedPrefix, padding_slots
from common.cpu_kernel import MAX_BYTES, Packed, packable

FIRST_CAPACITY = 64  # tokens the buffers for the responses' keys hold at the start; they double when full


class Product:
    """x [M, in] -> [M, out] of one or several linear layers side by side: on the CPU by the kernel for few rows where
    it fits, else by the layers themselves (which may be LoRA's)."""

    def __init__(self, modules: list[nn.Module], pack: bool) -> None:
        self.modules = modules
        self.packed = Packed(modules) if pack and packable(modules) else None

    def __call__(self, x: Tensor) -> Tensor:
        if self.packed is not None:
            return self.packed(x)
        parts = [module(x) for module in self.modules]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


@dataclass
class Layer:
    """What decoding needs of one decoder layer."""

    qkv: Product
    out: Product
    gate_up: Product
    down: Product
    activation: nn.Module
    attention_norm: Tensor  # [d]
    mlp_norm: Tensor  # [d]
    head_norm: Tensor | None  # [heads + kv heads, dim]: Qwen3's norm of queries and keys

    @classmethod
    def of(cls, module: nn.Module, heads: int, kv_heads: int, pack: bool) -> Layer:
        attention, mlp, head_norm = module.self_attn, module.mlp, None
        if hasattr(attention, "q_norm"):
            rows = [attention.q_norm.weight.expand(heads, -1), attention.k_norm.weight.expand(kv_heads, -1)]
            head_norm = torch.cat(rows)
        groups = ([attention.q_proj, attention.k_proj, attention.v_proj], [attention.o_proj],
                  [mlp.gate_proj, mlp.up_proj], [mlp.down_proj])  # fmt: skip
        return cls(*(Product(g, pack) for g in groups), mlp.act_fn, module.input_layernorm.weight,
                   module.post_attention_layernorm.weight, head_norm)  # fmt: skip


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Over the last dimension; weight [dim], or [heads, dim] with one row for every head."""
    if weight.dim() == 1:
        return F.rms_norm(x, weight.shape, weight, eps)
    return F.rms_norm(x, x.shape[-1:], None, eps) * weight


class Decoder:
    """The state of N = B * G responses being written: row n belongs to prompt n // G.

    step() runs the newest token of every row, keep_rows() drops finished rows. Every prompt's keys and values are held
    once, whatever G is; the responses' own lie in buffers that double when full.
    """

    def __init__(self, model: nn.Module, head: nn.Module, prefix: SharedPrefix, starts: Tensor, group: int, limit: int,
                 static: bool | None = None) -> None:  # fmt: skip
        """model: the language model; head: its linear layer to logits; prefix: layout of a prefill with keep=True;
        starts: int64 [B], position of each prompt's first response token; limit: most tokens of a response. static:
        fixed shapes, attention over the whole buffer with a mask, as a CUDA graph needs it; default: on CUDA."""
        config, device = model.config, starts.device
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.dim = getattr(config, "head_dim", None) or config.hidden_size // self.heads
        self.per = self.heads // self.kv_heads  # query heads per key head
        self.eps, self.scale = config.rms_norm_eps, self.dim**-0.5
        size = sum(p.numel() * p.element_size() for p in model.parameters())
        pack = device.type == "cpu" and size <= MAX_BYTES
        self.model, self.layers = model, [Layer.of(m, self.heads, self.kv_heads, pack) for m in model.layers]
        self.head = Product([head], pack)  # hidden [M, d] -> logits [M, V]
        self.embedding, self.final_norm = model.embed_tokens.weight, model.norm.weight
        self.static = device.type == "cuda" if static is None else static
        self.limit = limit

        # Per layer: keys [K, B, dim, P] and values [K, B, P, dim] of the prompts, K key heads.
        self.prompts = [(k.permute(1, 0, 3, 2).contiguous(), v.transpose(0, 1).contiguous()) for k, v in prefix.kept]
        self.prompt_mask: Tensor | None = None  # additive [B, 1, P], None when all prompts are equally long
        if not prefix.prompts.equal:
            mask = torch.zeros(prefix.prompts.filled.shape, dtype=self.embedding.dtype, device=device)
            self.prompt_mask = mask.masked_fill(~prefix.prompts.filled, -torch.inf)[:, None]
        self.group: int | None = group  # rows per prompt; None where that differs, then `slots` says which
        self.slots: tuple[Tensor, Tensor] | None = None  # int64 [B, Gmax] rows of every prompt; flat places in use
        self.owner = torch.arange(len(starts), device=device).repeat_interleave(group)  # int64 [N]
        self.position = starts[self.owner]  # int64 [N]
        # Per layer: keys and values [2, K, N, C, dim] of the responses, of which `length` tokens are filled.
        shape = (2, self.kv_heads, len(self.owner), min(limit, FIRST_CAPACITY), self.dim)
        self.own = [self.embedding.new_zeros(shape) for _ in self.layers]
        self.length, self.length_tensor = 0, torch.zeros(1, dtype=torch.int64, device=device)
        self.cos, self.sin = self.rotation_table(int(starts.max()) + limit)
        self.graph: torch.cuda.CUDAGraph | None = None
        self.eager_done = False  # a step of the present shapes has run, so they may be captured
        self.tokens: Tensor | None = None  # what the graph reads
        self.hidden: Tensor | None = None  # and what it writes

    def rotation_table(self, count: int) -> tuple[Tensor, Tensor]:
        """cos and sin [count, dim] of text positions; the first half of sin negated, for `rotate`."""
        positions = torch.arange(count, device=self.position.device).expand(3, 1, -1)
        cos, sin = self.model.rotary_emb(self.embedding.new_zeros(1), positions)
        # Older versions of the library keep the three equal rows of M-RoPE: [3, 1, count, dim].
        cos, sin = (t.reshape(-1, count, self.dim)[0] for t in (cos, sin))
        sign = torch.ones(self.dim, device=sin.device, dtype=sin.dtype)
        sign[: self.dim // 2] = -1
        return cos, sin * sign

    # ------------------------------------------------------------------------------------------------ a step
    def step(self, tokens: Tensor) -> Tensor:
        """Run one token per row, int64 [N]; hidden states [N, d]. On CUDA valid until the next step."""
        if self.length == self.own[0].shape[3]:
            room = min(self.length, self.limit - self.length)
            for index, kv in enumerate(self.own):  # one by one: the old and the new of all layers would be too much
                self.own[index] = F.pad(kv, (0, 0, 0, room))
            self.forget_graph()
        if self.graph is not None:
            self.tokens.copy_(tokens)
            self.graph.replay()
        elif tokens.is_cuda and self.eager_done and graphs_wanted():
            self.capture(tokens)
            self.graph.replay()
        else:
            self.hidden, self.eager_done = self.run(tokens), True
        self.length += 1
        return self.hidden

    def capture(self, tokens: Tensor) -> None:
        """Record a step as a CUDA graph; recording runs nothing."""
        self.tokens, self.graph = tokens.clone(), torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.hidden = self.run(self.tokens)

    def forget_graph(self) -> None:
        """Shapes or buffers have changed."""
        self.graph, self.eager_done = None, False

    def run(self, tokens: Tensor) -> Tensor:
        """All layers; nothing here depends on values that only Python knows if `static`."""
        rows, hidden = len(tokens), self.embedding[tokens]  # [N, d]
        cos, sin = self.cos[self.position, None], self.sin[self.position, None]  # [N, 1, dim]
        mask = None
        if self.static:
            places = torch.arange(self.own[0].shape[3], device=tokens.device)
            mask = torch.zeros(len(places), dtype=hidden.dtype, device=tokens.device)
            mask = mask.masked_fill(places > self.length_tensor, -torch.inf)  # [C]
        for index, layer in enumerate(self.layers):
            x = rms_norm(hidden, layer.attention_norm, self.eps)
            heads = layer.qkv(x).view(rows, -1, self.dim)  # [N, H + 2 K, dim]
            turned, value = heads[:, : -self.kv_heads], heads[:, -self.kv_heads :]
            if layer.head_norm is not None:
                turned = rms_norm(turned, layer.head_norm, self.eps)
            turned = rotate(turned, cos, sin)  # [N, H + K, dim]
            out = self.attend(index, turned[:, : self.heads], turned[:, self.heads :], value, mask)
            hidden = hidden + layer.out(out)
            x = rms_norm(hidden, layer.mlp_norm, self.eps)
            gate, up = layer.gate_up(x).chunk(2, dim=1)
            hidden = hidden + layer.down(layer.activation(gate).mul_(up))
        self.position += 1
        self.length_tensor += 1
        return rms_norm(hidden, self.final_norm, self.eps)

    def attend(self, index: int, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """query [N, H, dim], key and value [N, K, dim] of the newest tokens -> [N, H * dim]."""
        rows, kv_heads, per, dim = len(query), self.kv_heads, self.per, self.dim
        own = self.own[index]  # [2, K, N, C, dim]
        if self.static:
            newest = torch.stack([key, value]).transpose(1, 2)[:, :, :, None]  # [2, K, N, 1, dim]
            keys, values = own.index_copy_(3, self.length_tensor, newest).flatten(1, 2)
        else:
            own[0, :, :, self.length], own[1, :, :, self.length] = key.transpose(0, 1), value.transpose(0, 1)
            keys, values = own.flatten(1, 2)[:, :, : self.length + 1]  # [K * N, t, dim] each
        query = (query * self.scale).view(rows, kv_heads, per, dim).transpose(0, 1)  # [K, N, per, dim]
        prompt_keys, prompt_values = (kv.flatten(0, 1) for kv in self.prompts[index])  # [K * B, ...]
        prompt_tokens = prompt_keys.shape[2]
        on_prompt = torch.bmm(self.by_prompt(query), prompt_keys)  # [K * B, Gmax * per, P]
        if self.prompt_mask is not None:
            on_prompt.view(kv_heads, *self.prompt_mask.shape[:1], -1, prompt_tokens).add_(self.prompt_mask)
        on_own = torch.bmm(query.reshape(-1, per, dim), keys.transpose(1, 2))  # [K * N, per, t]
        if mask is not None:
            on_own += mask
        scores = torch.cat([self.by_row(on_prompt), on_own], dim=2)  # [K * N, per, P + t]
        weights = scores.softmax(dim=2, dtype=torch.float32).to(query.dtype)
        on_prompt = weights[:, :, :prompt_tokens].view(kv_heads, rows, per, prompt_tokens)
        out = self.by_row(torch.bmm(self.by_prompt(on_prompt), prompt_values))  # [K * N, per, dim]
        out = torch.baddbmm(out, weights[:, :, prompt_tokens:], values)
        return out.view(kv_heads, rows, per * dim).transpose(0, 1).reshape(rows, -1)

    def by_prompt(self, rows: Tensor) -> Tensor:
        """[K, N, per, x] -> [K * B, Gmax * per, x]: the rows of one prompt side by side."""
        kv_heads, _, per, x = rows.shape
        if self.group is not None:
            return rows.reshape(-1, self.group * per, x)
        return rows[:, self.slots[0]].reshape(-1, self.slots[0].shape[1] * per, x)

    def by_row(self, grid: Tensor) -> Tensor:
        """The inverse: [K * B, Gmax * per, x] -> [K * N, per, x]."""
        if self.group is not None:
            return grid.view(-1, self.per, grid.shape[2])
        return grid.view(self.kv_heads, -1, self.per, grid.shape[2])[:, self.slots[1]].flatten(0, 1)

    # --------------------------------------------------------------------------------------- finished rows
    def keep_rows(self, rows: Tensor) -> None:
        """Drop all rows but these (int64, ascending), and prompts that have no row left."""
        alive, owner = self.owner[rows].unique(return_inverse=True)  # ascending
        if len(alive) < self.prompts[0][0].shape[1]:
            self.prompts = [(key[:, alive], value[:, alive]) for key, value in self.prompts]
            self.prompt_mask = self.prompt_mask[alive] if self.prompt_mask is not None else None
        self.own = [kv[:, :, rows] for kv in self.own]
        self.owner, self.position = owner, self.position[rows]
        slots, filled, valid = padding_slots(torch.bincount(owner, minlength=len(alive)))
        self.slots = (slots, valid)
        self.group = filled.shape[1] if valid.numel() == filled.numel() else None
        self.forget_graph()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding of x [N, heads, dim]; sin with its first half negated."""
    return (x * cos).addcmul_(x.roll(x.shape[2] // 2, 2), sin)


def graphs_wanted() -> bool:
    return os.environ.get("SIGHTRL_CUDA_GRAPHS") != "off"

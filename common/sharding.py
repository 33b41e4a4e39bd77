"""Weights whole in every process, float32 masters and the optimiser's states shared out by FSDP2.

The model itself stays an ordinary module, whole in every process in its compute dtype, so decoding, scoring and any
number of micro-batches (another one in every process, or none) need no communication. Beside it stand its trainable
parameters once more in float32, one `Shards` module per layer, cut up by `fully_shard`; the optimiser sees only those.
Once per optimiser step their backward hooks sum up the gradients of all processes (reduce-scatter), and afterwards
they are gathered layer by layer and copied into the model (ZeRO-2). The model's own layers are left without
FSDP's hooks, because these would run at every token of a decode, and move the weights about in memory.

Memory of a process: the whole model and the whole gradients in the compute dtype, plus 16 bytes per trainable
parameter divided by the number of processes (master, gradient, two moments in float32), plus one layer on its way.
Micro-batches are added up in the compute dtype, as with one process; processes in float32.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from common.distributed import rank, sum_over_processes, world_size

if TYPE_CHECKING:
    from common.vlm import VLM

LAYER = re.compile(r".*?\.(layers|blocks)\.\d+\.")


class Shards(nn.Module):
    """float32 masters of the parameters `whole` of one layer; `fully_shard` makes DTensors [Shard(0)] of them."""

    def __init__(self, whole: list[nn.Parameter]) -> None:
        super().__init__()
        self.whole = whole  # a list, so they are not registered as parameters of this module
        self.masters = nn.ParameterList(p.detach().to(torch.float32, copy=True) for p in whole)

    def forward(self) -> list[Tensor]:
        """The gathered masters in the compute dtype. FSDP's hooks sit here and in the backward pass."""
        return [master.clone() for master in self.masters]


def shard(vlm: VLM) -> None:
    """Give every trainable parameter p of the model its sharded float32 master p.master; nothing with one process."""
    if world_size() == 1:
        return
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    mesh = init_device_mesh(vlm.device.type, (world_size(),))
    layers: dict[tuple[str, torch.dtype], list[nn.Parameter]] = {}
    for name, parameter in vlm.model.named_parameters():  # tied weights occur once
        if parameter.requires_grad:
            layer = LAYER.match(name)
            layer = layer[0] if layer else name.rpartition(".")[0]
            layers.setdefault((layer, parameter.dtype), []).append(parameter)  # adapters may be float32 in bfloat16
    for (_, dtype), whole in layers.items():
        precision = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
        shards = fully_shard(Shards(whole), mesh=mesh, mp_policy=precision)
        shards.set_gradient_divide_factor(1.0)  # the loss is normalised over all processes: gradients are summed
        shards.set_force_sum_reduction_for_comms(True)
        for parameter, master in zip(whole, shards.masters, strict=True):
            parameter.master = master
        vlm.shards.append(shards)
    gather_weights(vlm.shards)


def master(parameter: Tensor) -> Tensor:
    """What the optimiser and checkpoints know a parameter by: its master, or itself with one process."""
    return getattr(parameter, "master", parameter)


def sum_gradients(layers: list[Shards]) -> None:
    """Move the gradients of the model, summed over all processes, to the masters. Every process must call it.

    A parameter that got no gradient in any process keeps None, so that the optimiser passes it over.
    """
    if not layers:
        return
    whole = [p for shards in layers for p in shards.whole]
    used = torch.tensor([p.grad is not None for p in whole], dtype=torch.int32)
    sum_over_processes(used)
    for shards in layers:
        torch.autograd.backward(shards(), [torch.zeros_like(p) if p.grad is None else p.grad for p in shards.whole])
        for parameter in shards.whole:
            parameter.grad = None
    for parameter, count in zip(whole, used.tolist(), strict=True):
        if not count:
            parameter.master.grad = None


@torch.no_grad()
def gather_weights(layers: list[Shards]) -> None:
    """Copy the masters into the model, whole and in its dtype. Every process must call it; no layers, nothing."""
    for shards in layers:
        shards.unshard()
        for parameter, gathered in zip(shards.whole, shards.masters, strict=True):
            parameter.copy_(gathered)
        shards.reshard()


# ---------------------------------------------------------------- for checkpoints


def is_sharded(tensor: Tensor) -> bool:
    """A DTensor; asked in this way because importing that class takes seconds, which one process can do without."""
    return hasattr(tensor, "full_tensor")


def whole_tensor(tensor: Tensor) -> Tensor:
    """A sharded tensor in one piece (every process must call it), any other as it is."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def own_slice(tensor: Tensor) -> Tensor:
    """The rows of a whole tensor that this process keeps when it is sharded like the masters; may be none."""
    rows = -(-len(tensor) // world_size())  # as torch.chunk cuts
    return tensor[rank() * rows : (rank() + 1) * rows]


def sharded_like(like: Tensor, tensor: Tensor) -> Tensor:
    """A whole tensor cut up like `like`, if that is sharded and of the same shape."""
    if not is_sharded(like) or like.shape != tensor.shape:
        return tensor
    from torch.distributed.tensor import DTensor

    own = own_slice(tensor).to(like.device)
    return DTensor.from_local(own, like.device_mesh, like.placements, run_check=False,
                              shape=like.shape, stride=like.stride())  # fmt: skip

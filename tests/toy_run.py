"""A training run of milliseconds that uses all of common/run.py: a toy model, a data position, every random number."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from common import checkpoint as checkpoints
from common.run import Run


@dataclass
class Args:
    seed: int = 0
    out: str = "runs"
    run_name: str = ""
    resume: str = ""
    wandb: bool = False
    checkpoint_every: int = 3
    keep_checkpoints: int = 2
    data: str = "world"
    lr: float = 0.01
    steps: int = 8


class Toy(nn.Module):
    """Tied weights, a buffer, dropout (so that torch's generator matters) and a frozen part."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.base = nn.Linear(6, 6)
        self.base.requires_grad_(False)
        self.norm = nn.BatchNorm1d(6)
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        hidden = self.norm(self.base(self.embed(ids)))
        return self.head(nn.functional.dropout(hidden, 0.3))


class ToyVLM:
    def __init__(self) -> None:
        self.model = Toy()

    def trainable(self) -> list[nn.Parameter]:
        return [p for p in self.model.parameters() if p.requires_grad]

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        checkpoints.save_tensors(checkpoints.model_state(self.model), folder / "model.safetensors")


class Stream:
    """A data position with its own generator, a tuple and an integer-keyed dictionary in its state."""

    def __init__(self, seed: int) -> None:
        self.generator, self.seen = np.random.default_rng(seed), {}

    def next(self) -> int:
        value = int(self.generator.integers(11))
        self.seen[value] = self.seen.get(value, 0) + 1
        return value

    def state_dict(self) -> dict:
        return {"generator": self.generator.bit_generator.state, "seen": self.seen, "pair": (1, None)}

    def load_state_dict(self, state: dict) -> None:
        assert state["pair"] == (1, None)
        self.generator.bit_generator.state = state["generator"]
        self.seen = state["seen"]


def train(args: Args, stop_after: int | None = None, pause: float = 0.0) -> Run:
    """A toy loop in the shape every method has. `stop_after` leaves without a word, as a crash would."""
    run = Run(args, "toy", args.steps)
    vlm, stream = ToyVLM(), Stream(args.seed)
    optimizer = torch.optim.AdamW(vlm.trainable(), lr=args.lr)
    for step in range(run.resume(vlm, optimizer, stream=stream), args.steps):
        with run.phase("update"):
            ids = torch.tensor([stream.next() for _ in range(8)])
            noise = torch.rand((), generator=run.generator) + run.rng.random() + random.random() + np.random.rand()
            loss = nn.functional.cross_entropy(vlm.model(ids), ids) * noise
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            time.sleep(pause)
        run.log(step, {"loss": loss.item(), "reward/mean": -loss.item(), "tokens": len(ids)})
        picture = np.full((4, 4, 3), step, np.uint8)
        run.log_rollouts(step, [{"sample_id": f"toy:{step}", "image": picture, "response": "é\ud800"}])
        if stop_after == step:
            run.close()
            return run
        if run.checkpoint_due(step):
            run.checkpoint(step, vlm, optimizer, stream=stream)
        if run.stop_requested:
            return run
    run.finish({"accuracy": 0.5})
    return run

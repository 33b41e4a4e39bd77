"""What the benchmarks of a training step share: settings, models, inputs, counted work, the machine's limits, and the
file of results.
"""

from __future__ import annotations

import contextlib
import json
import platform
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from itertools import accumulate
from typing import Any

import torch
from PIL import Image
from torch.profiler import ProfilerActivity, profile

from common.errors import SightRLError
from common.plan import SHAPES
from common.random_vlm import random_parts
from common.run_folder import git_state, processor
from common.vlm import VLM, Prompt, load_vlm

QUESTION = "How many red circles are there?"
ROPE = {"rope_type": "default", "rope_theta": 10000.0}
# Minute models with random weights: the language model's and the tower's entries of a Qwen2.5-VL configuration.
MODELS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "2m": ({"hidden_size": 192, "intermediate_size": 384, "num_hidden_layers": 4, "num_attention_heads": 6,
            "num_key_value_heads": 2, "vocab_size": 1536, "rope_parameters": ROPE | {"mrope_section": [4, 6, 6]}},
           {"depth": 3, "hidden_size": 96, "intermediate_size": 192, "num_heads": 4, "fullatt_block_indexes": [2]}),
    "22m": ({"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 6, "num_attention_heads": 6,
             "num_key_value_heads": 2, "vocab_size": 8192, "rope_parameters": ROPE | {"mrope_section": [8, 12, 12]}},
            {"depth": 8, "hidden_size": 192, "intermediate_size": 768, "num_heads": 4,
             "fullatt_block_indexes": [3, 7]}),
}  # fmt: skip


@dataclass(frozen=True)
class Setting:
    """One training step: prompts with one picture each, G responses of exactly `tokens` tokens."""

    prompts: int
    group: int
    tokens: int
    side: int  # pixels
    kl: float = 0.0
    train_vision: bool = False
    model: str = "22m"


PHASE_SETTINGS = {  # against plain transformers
    "micro": Setting(16, 8, 48, 112, train_vision=True, model="2m"),
    "long": Setting(8, 8, 128, 448, train_vision=True, model="2m"),
}
STEP_SETTINGS = {  # against TRL
    "r48-kl": Setting(2, 8, 48, 448, kl=0.04),
    "r48": Setting(2, 8, 48, 448),
    "r48-vision": Setting(2, 8, 48, 448, train_vision=True),
    "r160": Setting(2, 8, 160, 448),
    "g16": Setting(2, 16, 48, 448),
    "world": Setting(16, 8, 48, 112, train_vision=True, model="tiny"),
}
REAL_SETTINGS = {  # of a published shape, for a GPU: 1,024 image tokens
    "r400-kl": Setting(64, 8, 400, 896, kl=0.04),
    "r400": Setting(64, 8, 400, 896),
    "r400-vision": Setting(64, 8, 400, 896, train_vision=True),
    "r1000": Setting(64, 8, 1000, 896),
}


def real_settings(config: str, prompts: int = 0) -> dict[str, Setting]:
    """The settings at a published shape; prompts: another number than 64. Raises SightRLError for an unknown shape."""
    name = next((known for known in SHAPES if known.lower() == config.lower()), None)
    if name is None:
        raise SightRLError(f"--config {config}: unknown shape; choose one of {', '.join(SHAPES)}")
    return {k: replace(s, model=name, prompts=prompts or s.prompts) for k, s in REAL_SETTINGS.items()}


def load(setting: Setting, seed: int, device: str = "cpu") -> VLM:
    """The setting's model; a published shape gets random weights, in bfloat16 on a GPU."""
    if setting.model in SHAPES:
        vlm = VLM(*published_shape(setting.model, seed, device), train_vision=setting.train_vision)
    elif setting.model in MODELS:
        model, tokenizer, processor = random_parts("qwen2_5_vl", seed, 0.02, *MODELS[setting.model])
        vlm = VLM(model.to(device), tokenizer, processor, train_vision=setting.train_vision)
    else:
        vlm = load_vlm(setting.model, device=device, dtype="float32", train_vision=setting.train_vision)
    vlm.model.train()
    return vlm


def published_shape(name: str, seed: int, device: str) -> tuple[Any, Any, Any]:
    """(model, tokenizer, image processor) of a published size, made on the device: speed does not ask for weights."""
    shape = SHAPES[name]
    text = shape["text"] | {"tie_word_embeddings": shape["tie_word_embeddings"], "max_position_embeddings": 32768}
    dtype = torch.bfloat16 if device.startswith("cuda") else torch.float32
    return random_parts(shape["family"], seed, 0.0, text, shape["vision"], device, dtype)


def inputs(setting: Setting, seed: int) -> tuple[list[Image.Image], list[str]]:
    """(random pictures, questions of four lengths), one per prompt."""
    generator = torch.Generator().manual_seed(seed)
    shape = (setting.prompts, setting.side, setting.side, 3)
    noise = torch.randint(0, 256, shape, generator=generator).to(torch.uint8)
    return [Image.fromarray(p.numpy()) for p in noise], [QUESTION[: -1 - i % 4] for i in range(setting.prompts)]


def pick_device(option: str, threads: int) -> str:
    """cpu or cuda from the option --device; also sets PyTorch's threads, if any are given."""
    if threads:
        torch.set_num_threads(threads)
    return ("cuda" if torch.cuda.is_available() else "cpu") if option == "auto" else option


def check_settings(wanted: list[str], known: Iterable[str]) -> None:
    """Raises SightRLError when --settings names what is not there."""
    if unknown := [name for name in wanted if name not in known]:
        raise SightRLError(f"--settings {' '.join(unknown)}: unknown; choose from {', '.join(known)}")


# --------------------------------------------------------------------------------------------------- counted work
def operations(config: Any, lengths: list[int], pictures: list[tuple[int, int]], group: int,
               tokens: int) -> dict[str, float]:  # fmt: skip
    """Floating-point operations of a forward, every picture and prompt once per group: matrix products (2 per weight
    and row) and attention (4 per query-key pair and channel; a text token sees only what lies before it).

    lengths: tokens of every prompt; pictures: (height, width) of every picture in patches. Keys: vision, prompt,
    responses, head (response tokens only). A backward takes twice as many. Qwen2.5-VL only.
    """
    text, tower = config.text_config, config.vision_config
    w, inner_w, patch = tower.hidden_size, tower.intermediate_size, tower.patch_size
    window, vision = tower.window_size // patch, 0.0
    for height, width in pictures:
        patches = height * width
        sides = [[min(window, n - i) for i in range(0, n, window)] for n in (height, width)]
        in_windows = sum((a * b) ** 2 for a in sides[0] for b in sides[1])  # query-key pairs
        whole = len(tower.fullatt_block_indexes)
        pairs = (tower.depth - whole) * in_windows + whole * patches**2
        vision += patches * 2 * (6 * patch**2 * w + tower.depth * (4 * w * w + 3 * w * inner_w)) + 4 * w * pairs
        vision += patches / 4 * 2 * (16 * w * w + 4 * w * text.hidden_size)  # the merger: four patches, one token
    d, inner, layers = text.hidden_size, text.intermediate_size, text.num_hidden_layers
    dim = getattr(text, "head_dim", None) or d // text.num_attention_heads
    wide, kv = dim * text.num_attention_heads, dim * text.num_key_value_heads
    token, pair = layers * 2 * (2 * d * wide + 2 * d * kv + 3 * d * inner), layers * 4 * wide
    prompt = sum(token * p + pair * p * (p + 1) / 2 for p in lengths)
    run = tokens - 1  # the last token of a response predicts nothing
    responses = group * sum(token * run + pair * (run * p + run * (run + 1) / 2) for p in lengths)
    return {"vision": vision, "prompt": prompt, "responses": responses,
            "head": len(lengths) * group * tokens * 2.0 * d * text.vocab_size}  # fmt: skip


def operations_of(vlm: VLM, prompts: list[Prompt], group: int, tokens: int) -> dict[str, float]:
    """`operations` of real prompts."""
    grids = [grid for p in prompts if p.image_grid_thw is not None for grid in p.image_grid_thw.tolist()]
    lengths = [len(p.input_ids) for p in prompts]
    return operations(vlm.base.config, lengths, [(h, w) for _, h, w in grids], group, tokens)


def decode_bytes(vlm: VLM, prompts: list[Prompt], group: int, tokens: int) -> float:
    """Bytes that decoding must read: all weights once per token, keys and values of prompts once per group."""
    text, size = vlm.base.config.text_config, vlm.head_weight.element_size()
    layers = sum(p.numel() for p in vlm.language_model.layers.parameters())
    dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    per_token = 2 * text.num_hidden_layers * text.num_key_value_heads * dim
    kept = sum(len(p.input_ids) for p in prompts) + len(prompts) * group * tokens / 2  # half the response on average
    return float(size) * tokens * (layers + vlm.head_weight.numel() + per_token * kept)


def now(device: torch.device, clock: str = "wall") -> float:
    """Seconds, once the GPU has done what it was told; clock: wall or cpu."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.process_time() if clock == "cpu" else time.perf_counter()


def timed(call: Callable[[], Any], device: torch.device, clock: str = "wall") -> float:
    start = now(device, clock)
    call()
    return now(device, clock) - start


def seconds_of(call: Callable[[], Any], repeats: int, device: torch.device) -> float:
    """The quickest of some calls, after one that does not count."""
    return min([timed(call, device) for _ in range(repeats + 1)][1:])


def machine_limits(device: torch.device, dtype: torch.dtype) -> tuple[float, float]:
    """Measured: (operations a second of large matrix products, bytes a second of reading and writing)."""
    side, count = (8192, 1 << 30) if device.type == "cuda" else (1536, 1 << 26)
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    source = torch.ones(count, dtype=torch.uint8, device=device).view(torch.float32)
    target = torch.empty_like(source)
    rate = 2 * side**3 / seconds_of(lambda: a @ b, 10, device)
    return rate, 2 * count / seconds_of(lambda: target.copy_(source), 10, device)


class peak_memory:  # noqa: N801 (reads as a word in a with statement)
    """`with peak_memory(device) as measured:` then measured.bytes: most bytes of tensors above those there before.

    On the CPU the profiler's record of every allocation is added up: exact and the same every time, unlike the size of
    the process, which also holds what the allocator has not given back.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self.bytes = device, 0

    def __enter__(self) -> peak_memory:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated()
        else:
            self.profiler = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
            self.profiler.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        if self.device.type == "cuda":
            self.bytes = torch.cuda.max_memory_allocated() - self.before
            return
        self.profiler.__exit__(*error)
        events = [e for e in self.profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
        self.bytes = max(accumulate((e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())), initial=0))


# --------------------------------------------------------------------------------------------------- results
def write(args: Any, device: str, results: dict[str, Any], text: str, name: str) -> None:
    """The numbers with commit, versions and hardware as <name>_<cpu or cuda>.json, and the table beside them.

    args: the benchmark's own, among them `out`, the folder; device: of pick_device.
    """
    kind, versions = device.partition(":")[0], {"python": platform.python_version()}
    for library in ("torch", "transformers", "trl", "flash-attn"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[library] = metadata.version(library)
    record = {
        "args": {key: value for key, value in asdict(args).items() if key != "out"},
        "results": results,
        "threads": torch.get_num_threads(),
        **git_state(),
        "versions": versions,
        "hardware": torch.cuda.get_device_name(device) if kind == "cuda" else f"{platform.machine()}, {processor()}",
    }
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / f"{name}_{kind}.json").write_text(json.dumps(record, indent=1) + "\n")
    (args.out / f"{name}_{kind}.md").write_text(text + "\n")

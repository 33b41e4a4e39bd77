"""Where the seconds of one GRPO step go, part by part, and how near each part is to what the machine allows.

The limit of a part is the larger of its counted operations over the measured rate of matrix products and its counted
bytes over the measured memory bandwidth. Times are the quickest of several, part by part.

    python eval/profile_step.py                        # the settings of bench_step.py --against trl
    python eval/profile_step.py --settings r160 world --repeats 9
    python eval/profile_step.py --config qwen2.5-vl-3b --settings r400 --device cuda --prompts 16
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import tyro

from common.decoding import Decoder
from common.errors import main_guard
from common.logprob import policy_logits, response_logps
from common.rollout import choose, rollout
from common.vlm import VLM
from steps import (
    STEP_SETTINGS,
    Setting,
    check_settings,
    decode_bytes,
    inputs,
    load,
    machine_limits,
    operations_of,
    pick_device,
    real_settings,
    seconds_of,
    write,
)


@dataclass
class Args:
    settings: list[str] = field(default_factory=list)
    """Which settings: r48, r48-vision, r160, world, ... of bench_step.py --against trl; default these four."""
    config: str = ""
    """A published shape (qwen2.5-vl-3b, ...) with random weights; settings are then r400, r400-vision, r1000."""
    prompts: int = 0
    """Prompts of the settings of --config (0: 64)."""
    repeats: int = 7
    """Timings of each part, of which the quickest counts."""
    threads: int = 0
    """PyTorch threads (0: its default)."""
    device: str = "auto"
    """auto, cpu or cuda."""
    seed: int = 0
    """Seed of weights, pictures and sampling."""
    out: Path = Path("results")
    """Folder for profile_step_<device>.json and .md."""


def measure(setting: Setting, args: Args, device: str, rate: float, bandwidth: float) -> dict[str, Any]:
    """Part -> {"seconds", "operations", "bytes", "limit"}; decoding's own parts are those of all its steps."""
    vlm = load(setting, args.seed, device)
    vlm.eos_ids = [-1]
    pictures, questions = inputs(setting, args.seed)
    group, tokens, trained = setting.group, setting.tokens, setting.train_vision
    parts: dict[str, dict[str, float]] = {}

    def part(name: str, call: Any, work: float = 0.0, moved: float = 0.0) -> float:
        seconds = seconds_of(call, args.repeats, vlm.device)
        parts[name] = {"seconds": seconds, "operations": work, "bytes": moved,
                       "limit": max(work / rate, moved / bandwidth)}  # fmt: skip
        return seconds

    prompts = [vlm.prompt(q, [p]) for q, p in zip(questions, pictures, strict=True)]
    need = operations_of(vlm, prompts, group, tokens)
    moved = decode_bytes(vlm, prompts, group, tokens)
    asked = list(zip(questions, pictures, strict=True))
    part("pictures and prompts", lambda: [vlm.prompt(q, [p]).pixel_values for q, p in asked])
    with torch.no_grad():
        part("vision tower", lambda: vlm.encode_images(prompts), need["vision"])
        features = vlm.encode_images(prompts)
        prefill = part("prefill", lambda: vlm.run_groups(prompts, features, keep=True), need["prompt"])
        write_all = partial(rollout, vlm, prompts, group, max_new_tokens=tokens, features=features)
        whole = seconds_of(write_all, args.repeats, vlm.device)
        parts |= decoding(vlm, prompts, features, setting, args, whole - prefill)
        parts["decoding"] |= {"operations": need["responses"] + need["head"], "bytes": moved,
                              "limit": max((need["responses"] + need["head"]) / rate, moved / bandwidth)}  # fmt: skip
    batch = write_all()
    kept = None if trained else features
    scored = need["prompt"] + need["responses"] + need["head"] + (need["vision"] if trained else 0.0)

    def forward(entropy: bool) -> torch.Tensor:
        return response_logps(vlm, prompts, batch.tokens, batch.mask, features=kept, entropy=entropy)[0]

    def both() -> None:
        forward(True).sum().backward()
        vlm.base.zero_grad(set_to_none=True)

    with torch.no_grad():
        part("reference log-probs (with KL)", lambda: forward(False), scored)
    first = part("update: forward", lambda: forward(True), scored)
    part("update: backward", both, 2 * scored)
    parts["update: backward"]["seconds"] -= first
    optimizer = torch.optim.AdamW(vlm.trainable(), lr=1e-9, fused=True)
    forward(True).sum().backward()
    size = sum(p.numel() * p.element_size() for p in vlm.trainable())

    def step() -> None:
        torch.nn.utils.clip_grad_norm_(vlm.trainable(), 1.0)
        optimizer.step()

    part("update: clip and AdamW", step, 0.0, 10 * size)  # norm 1, scaling 2, AdamW 7 passes over numbers of this size
    return parts


def decoding(vlm: VLM, prompts: list, features: list, setting: Setting, args: Args, seconds: float) -> dict[str, Any]:
    """Decoding and its parts: each kind of operation run alone, at half the response's length, times the tokens."""
    _, prefix = vlm.run_groups(prompts, features, keep=True)
    starts = torch.tensor([p.next_position for p in prompts], device=vlm.device)
    decoder = Decoder(vlm.language_model, vlm.base.lm_head, prefix, starts, setting.group, setting.tokens)
    rows = len(prompts) * setting.group
    chosen = torch.zeros(rows, dtype=torch.int64, device=vlm.device)
    for _ in range(setting.tokens // 2):
        hidden = decoder.step(chosen).clone()
    inner = [torch.randn(rows, n, device=vlm.device, dtype=vlm.dtype)
             for n in (decoder.heads * decoder.dim, vlm.base.config.text_config.intermediate_size)]  # fmt: skip
    heads = torch.randn(rows, decoder.heads + 2 * decoder.kv_heads, decoder.dim, device=vlm.device, dtype=vlm.dtype)
    query, key, value = heads.split([decoder.heads, decoder.kv_heads, decoder.kv_heads], dim=1)
    uniform = torch.rand(rows, dtype=torch.float64, device=vlm.device)
    logits = decoder.head(hidden).float()
    mask = torch.zeros(decoder.own[0].shape[3], device=vlm.device, dtype=vlm.dtype) if decoder.static else None

    def products() -> None:
        for layer in decoder.layers:
            layer.qkv(hidden), layer.out(inner[0]), layer.gate_up(hidden), layer.down(inner[1])
        decoder.head(hidden)

    def attention() -> None:
        for index in range(len(decoder.layers)):
            decoder.attend(index, query, key, value, mask)

    def sampling() -> None:
        choose(policy_logits(logits, vlm.banned_ids, 1.0), uniform, 1.0, 1.0)

    found: dict[str, Any] = {"decoding": {"seconds": seconds}}
    for name, call in (("products with weights", products), ("attention", attention), ("sampling", sampling)):
        found[f"decoding: {name}"] = {"seconds": setting.tokens * seconds_of(call, 10 * args.repeats, vlm.device)}
    rest = seconds - sum(values["seconds"] for name, values in found.items() if name != "decoding")
    found["decoding: norms, rotation, cache, Python"] = {"seconds": rest}
    return found


def table(results: dict[str, Any]) -> str:
    """Markdown. Parts with a limit say what share of it they reach."""
    lines = ["| setting | part | ms | GFLOP | GFLOP/s | GB/s | of the limit |", "|---|---|---|---|---|---|---|"]
    for name, result in results.items():
        for part, values in result["parts"].items():
            seconds, work, moved = values["seconds"], values.get("operations", 0), values.get("bytes", 0)
            numbers = [f"{work / 1e9:.1f}" if work else "", f"{work / seconds / 1e9:.0f}" if work else "",
                       f"{moved / seconds / 1e9:.1f}" if moved else "",
                       f"{values['limit'] / seconds:.0%}" if values.get("limit") else ""]  # fmt: skip
            label = part.replace("decoding: ", "&nbsp;&nbsp;of it ")
            lines.append(f"| {name} | {label} | {seconds * 1e3:.1f} | {' | '.join(numbers)} |")
    return "\n".join(lines)


def main(args: Args) -> None:
    device = pick_device(args.device, args.threads)
    known = real_settings(args.config, args.prompts) if args.config else STEP_SETTINGS
    check_settings(args.settings, known)
    dtype = torch.bfloat16 if args.config and device == "cuda" else torch.float32
    rate, bandwidth = machine_limits(torch.device(device), dtype)
    print(f"limits: {rate / 1e9:.0f} GFLOP/s, {bandwidth / 1e9:.1f} GB/s", flush=True)
    results: dict[str, Any] = {}
    for name in args.settings or [n for n in known if not n.endswith("-kl") and n != "g16"]:
        parts = measure(known[name], args, device, rate, bandwidth)
        results[name] = {"parts": parts, "operations_per_second": rate, "bytes_per_second": bandwidth}
        write(args, device, results, table(results), "profile_step")
    print(table(results))


if __name__ == "__main__":
    main_guard(main, tyro.cli(Args, description=__doc__))

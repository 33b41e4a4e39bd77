"""--dry-run: what a run would do and need, without weights, data or a GPU."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from common.args import CommonArgs, option_help
from common.errors import SightRLError

GB = 1e9
TEXT_TOKENS = 200  # assumed length of a question
SAMPLING = "keys and values while sampling"
ALWAYS = ("weights", "reference copy", "Adam (two moments)", "float32 masters and Adam, shared out")
HEAD_CHUNK = 1024  # response tokens whose logits exist at one time

# Shapes from the config.json of the published models (Hugging Face, Qwen organisation).
VISION_25 = dict(depth=32, hidden_size=1280, intermediate_size=3420, num_heads=16, patch_size=14,
                 window_size=112, fullatt_block_indexes=[7, 15, 23, 31])  # fmt: skip
ROPE_25 = dict(rope_type="default", rope_theta=1e6, mrope_section=[16, 24, 24])
VISION_2 = dict(depth=32, embed_dim=1280, mlp_ratio=4, num_heads=16, patch_size=14)
SHAPES: dict[str, dict[str, Any]] = {
    "Qwen2-VL-2B": dict(
        family="qwen2_vl", tie_word_embeddings=True, vision=VISION_2 | dict(hidden_size=1536),
        text=dict(hidden_size=1536, intermediate_size=8960, num_hidden_layers=28, num_attention_heads=12,
                  num_key_value_heads=2, vocab_size=151936, rope_parameters=ROPE_25)),
    "Qwen2-VL-7B": dict(
        family="qwen2_vl", tie_word_embeddings=False, vision=VISION_2 | dict(hidden_size=3584),
        text=dict(hidden_size=3584, intermediate_size=18944, num_hidden_layers=28, num_attention_heads=28,
                  num_key_value_heads=4, vocab_size=152064, rope_parameters=ROPE_25)),
    "Qwen2.5-VL-3B": dict(
        family="qwen2_5_vl", tie_word_embeddings=True, vision=VISION_25 | dict(out_hidden_size=2048),
        text=dict(hidden_size=2048, intermediate_size=11008, num_hidden_layers=36, num_attention_heads=16,
                  num_key_value_heads=2, vocab_size=151936, rope_parameters=ROPE_25)),
    "Qwen2.5-VL-7B": dict(
        family="qwen2_5_vl", tie_word_embeddings=False, vision=VISION_25 | dict(out_hidden_size=3584),
        text=dict(hidden_size=3584, intermediate_size=18944, num_hidden_layers=28, num_attention_heads=28,
                  num_key_value_heads=4, vocab_size=152064, rope_parameters=ROPE_25)),
    "Qwen2.5-VL-32B": dict(
        family="qwen2_5_vl", tie_word_embeddings=False,
        vision=VISION_25 | dict(intermediate_size=3456, out_hidden_size=5120),
        text=dict(hidden_size=5120, intermediate_size=27648, num_hidden_layers=64, num_attention_heads=40,
                  num_key_value_heads=8, vocab_size=152064, rope_parameters=ROPE_25)),
    "Qwen2.5-VL-72B": dict(
        family="qwen2_5_vl", tie_word_embeddings=False,
        vision=VISION_25 | dict(intermediate_size=3456, out_hidden_size=8192),
        text=dict(hidden_size=8192, intermediate_size=29568, num_hidden_layers=80, num_attention_heads=64,
                  num_key_value_heads=8, vocab_size=152064, rope_parameters=ROPE_25)),
    "Qwen3-VL-8B": dict(
        family="qwen3_vl", tie_word_embeddings=False,
        vision=dict(depth=27, hidden_size=1152, intermediate_size=4304, num_heads=16, patch_size=16,
                    out_hidden_size=4096, num_position_embeddings=2304, deepstack_visual_indexes=[8, 16, 24]),
        text=dict(hidden_size=4096, intermediate_size=12288, num_hidden_layers=36, num_attention_heads=32,
                  num_key_value_heads=8, head_dim=128, vocab_size=151936,
                  rope_parameters=dict(rope_type="default", rope_theta=5e6, mrope_section=[24, 20, 20]))),
}  # fmt: skip


@dataclasses.dataclass
class Parameters:
    """Parameter counts of a model: all, vision tower, and what would be trained."""

    total: int
    vision: int
    trainable: int


def model_config(name: str) -> Any:
    """The configuration of a model: from a local folder, or from the shapes above for a published one.

    Raises SightRLError when the name is neither.
    """
    from transformers import AutoConfig, Qwen2_5_VLConfig, Qwen2VLConfig, Qwen3VLConfig

    folder = Path(__file__).parent / "world" / "tiny_vlm" if name == "tiny" else Path(name)
    if (folder / "config.json").is_file():
        return AutoConfig.from_pretrained(folder)
    plain = name.lower().replace("-", "")  # also "someone/Qwen-2.5VL-7B-Tuned"
    shape = next((shape for known, shape in SHAPES.items() if known.lower().replace("-", "") in plain), None)
    if shape is None:
        known = ", ".join(SHAPES)
        raise SightRLError(f"--dry-run does not know the shape of the model {name!r}; give "
                           f"one of {known}, or a folder with a config.json.")  # fmt: skip
    build = {"qwen2_vl": Qwen2VLConfig, "qwen2_5_vl": Qwen2_5_VLConfig, "qwen3_vl": Qwen3VLConfig}[shape["family"]]
    tied = {"tie_word_embeddings": shape["tie_word_embeddings"]}
    return build(text_config=shape["text"] | tied, vision_config=shape["vision"], **tied)


def count_parameters(config: Any, train_vision: bool = True, lora_rank: int = 0) -> Parameters:
    """Count on the meta device: shapes only, no memory."""
    import torch
    from transformers import AutoModelForImageTextToText

    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    total = sum(p.numel() for p in model.parameters())
    vision = sum(p.numel() for name, p in model.named_parameters() if ".visual." in name)
    trainable = total if train_vision else total - vision
    if lora_rank:  # two thin matrices for every linear layer of the language model's blocks
        blocks = [m for name, m in model.named_modules() if "language_model" in name]
        sizes = [m.in_features + m.out_features for m in blocks if isinstance(m, torch.nn.Linear)]
        trainable = lora_rank * sum(sizes)
    return Parameters(total, vision, trainable)


def memory_per_gpu(args: CommonArgs, config: Any, count: Parameters) -> dict[str, float]:
    """Estimated bytes per GPU by purpose, as sharding.py keeps them: weights and gradients whole on every GPU; with
    several, float32 masters, their gradients and Adam's moments are divided by --gpus. One GPU works on 1 / --gpus
    of the prompts. Activations are a rule of thumb, good to a factor of about 1.5."""
    text = config.text_config
    size = 4 if args.dtype == "float32" or args.model == "tiny" else 2  # bytes per number
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    memory: dict[str, float] = {"weights": size * count.total, "gradients": size * count.trainable}
    if args.gpus == 1:
        memory["Adam (two moments)"] = 2 * size * count.trainable
    else:
        memory["float32 masters and Adam, shared out"] = 16 * count.trainable / args.gpus
        if not args.lora_rank:  # gathered twice in the weights' format, summed in float32
            memory["largest layer on its way"] = (2 * size + 8) * text.vocab_size * text.hidden_size
    if getattr(args, "kl_coef", 0) and not args.lora_rank:
        memory["reference copy"] = size * count.total
    tokens = min(args.micro_tokens, tokens_per_step(args, config) // args.gpus)
    layer = tokens * (8 * text.hidden_size + 4 * text.intermediate_size) * size  # one block's, for backward
    kept = tokens * text.hidden_size * size * text.num_hidden_layers  # block inputs only
    memory["activations"] = kept + layer if args.gradient_checkpointing else layer * text.num_hidden_layers
    if hasattr(args, "group_size"):
        per_token = 2 * text.num_hidden_layers * text.num_key_value_heads * head_dim * size  # key and value
        rows = args.prompts_per_step * args.group_size // args.gpus
        rows = min(rows, args.rollout_rows or rows)  # responses decoded at a time; every prompt is kept once
        tokens = rows * args.max_new_tokens + rows // args.group_size * prompt_tokens(args, config)
        memory[SAMPLING] = per_token * tokens
    memory["logits of one chunk"] = 3 * 4 * HEAD_CHUNK * text.vocab_size  # float32: values, softmax, gradient
    return memory


def prompt_tokens(args: CommonArgs, config: Any) -> int:
    """Assumed prompt length: one image at the pixel limit, and a question."""
    vision = config.vision_config
    side = vision.patch_size * vision.spatial_merge_size  # pixels of one image token
    return TEXT_TOKENS + (args.max_pixels or (112 * 112 if args.model == "tiny" else 1_003_520)) // side**2


def tokens_per_step(args: CommonArgs, config: Any) -> int:
    """Most tokens one step can hold: every prompt once, every response at its limit."""
    if not hasattr(args, "group_size"):  # supervised
        return args.batch_size * (prompt_tokens(args, config) + args.max_target_tokens)
    return args.prompts_per_step * (prompt_tokens(args, config) + args.group_size * args.max_new_tokens)


def print_plan(args: CommonArgs, chosen: dict[str, Any], console: Console | None = None) -> None:
    """Print parameters, memory and every option with its value, where the value comes from and what it means.

    chosen: the defaults set by the preset and variant. Raises SightRLError for a model of unknown shape.
    """
    console = console or Console()
    config = model_config(args.model)
    count = count_parameters(config, args.train_vision, args.lora_rank)
    memory = memory_per_gpu(args, config, count)
    facts = Table("model", args.model, title="Plan", title_justify="left", show_edge=False)
    facts.add_row("parameters", f"{count.total / 1e9:,.3f} billion; vision tower {count.vision / 1e9:,.3f}")
    facts.add_row("trained", f"{count.trainable / 1e9:,.4f} billion" + (" (LoRA)" if args.lora_rank else ""))
    most, prompt = tokens_per_step(args, config), prompt_tokens(args, config)
    facts.add_row("tokens per step", f"at most {most:,} ({prompt:,} per prompt)")
    for name, size in memory.items():
        facts.add_row(f"memory: {name}", f"{size / GB:,.2f} GB")
    sampling = memory.get(SAMPLING, 0.0)
    update = sum(size for name, size in memory.items() if name not in (*ALWAYS, SAMPLING))
    total = (sum(memory.get(name, 0.0) for name in ALWAYS) + max(sampling, update)) / GB
    facts.add_row("memory per GPU", f"about {total:,.1f} GB with {args.gpus} GPU(s), sampling and update one after the "
                                    "other; docs/distributed.md")  # fmt: skip
    for table in (facts, options_table(args, chosen)):
        console.print(table, markup=False, emoji=False)  # "[/]" in a prompt or a name is no markup


def options_table(args: CommonArgs, chosen: dict[str, Any]) -> Table:
    table = Table(show_edge=False)
    for name in ("option", "value", "from", "meaning and published value"):
        table.add_column(name, no_wrap=name == "option", overflow="fold")
    texts = option_help(type(args))
    for field in dataclasses.fields(args):
        value = getattr(args, field.name)
        source = "preset" if field.name in chosen and chosen[field.name] == value else "default"
        if value != chosen.get(field.name, field.default):
            source = "you"
        shown = "" if value is None else repr(value) if value == "" else str(value)
        table.add_row(f"--{field.name.replace('_', '-')}", shown, source, texts.get(field.name, ""))
    return table

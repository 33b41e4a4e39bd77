"""Makes the tiny VLM: tokenizer, config, weights. python -m common.world.train_tiny_vlm --out DIR

A real Qwen2.5-VL architecture of 2.2 M parameters, supervised on the micro-world in four phases, as real VLMs are.
"Eyes" pretrains the vision tower: linear heads, thrown away afterwards, read every cell's colour, shape, size, number
and offset. Then it is frozen. "See" teaches the language model captions, single cells, search and careful answers.
"Habits" teaches the mixture of careful, sloppy and blind answers of habits.py, which is what reinforcement learning
has to clean up. "Layouts" goes on with the other forms of asking and answering of taught.py, plain questions
among them. Loss on response tokens only. Needs no network.
"""

from __future__ import annotations

import json
import random
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import torch
import tyro
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    AutoModelForImageTextToText,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from common.logprob import response_logps
from common.vlm import load_vlm
from common.world import make_question, pick_habit, render, response
from common.world.habits import describe
from common.world.questions import Question, plural
from common.world.scene import CELL, CELLS, COLOR_NAMES, HELD_OUT, SHAPES, SIZES, Scene, finish_scene, place
from common.world.taught import Lesson, lesson

HERE = Path(__file__).parent
# Qwen's special tokens, in Qwen's order; <think> tags are ordinary tokens, as in Qwen3.
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>",
           "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
           "<|image_pad|>", "<|video_pad|>"]  # fmt: skip
THINK = ["<think>", "</think>"]
INSTRUCTION = "\nThink inside <think> </think>, then give the final answer in \\boxed{}."
POOL = 6  # steps whose examples are sorted by length together
SPLIT_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+"
CHAT_TEMPLATE = (
    "{%- for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{%- if message['content'] is string %}{{ message['content'] }}"
    "{%- else %}{%- for part in message['content'] %}"
    "{%- if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{%- elif part['type'] == 'text' %}{{ part['text'] }}{%- endif %}"
    "{%- endfor %}{%- endif %}{{ '<|im_end|>\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{%- endif %}"
)


@dataclass
class Args:
    out: Path = HERE / "tiny_vlm"
    """Folder for tokenizer, config and weights."""
    eyes_steps: int = 900
    """Steps of the first phase: the vision tower alone."""
    see_steps: int = 4700
    """Steps of the second phase: captions, single cells, search, careful answers."""
    habit_steps: int = 600
    """Steps of the third phase: the mixture of habits."""
    layout_steps: int = 4000
    """Steps of the fourth phase: descriptions, checklists, boxes, wrong captions, puzzles; 0: none."""
    layout_lr: float = 1e-3
    """Peak learning rate of the fourth phase."""
    layout_focus: str = ""
    """A layout that half of the fourth phase's lessons are of."""
    batch: int = 64
    """Examples per step."""
    lr: float = 1.5e-3
    """Peak learning rate (AdamW; warm-up 100 steps, constant to the middle, then linear to 2 %; once for the eyes,
    once for the rest)."""
    seed: int = 0
    """Seed of weights and data."""
    threads: int = 2
    """CPU threads."""
    vocab: int = 1536
    """Entries of the tokenizer."""
    save_every: int = 100
    """Steps between saves."""
    start: str = ""
    """A folder to take weights and tokenizer from, to go on at --first-step; the eyes are not trained again."""
    first_step: int = 0
    """The step to start at, with --start (0: the first of "see")."""


# ------------------------------------------------------------------------------------------ tokenizer and config
def corpus(n: int) -> list[str]:
    """Text the tokenizer is trained on: world questions and responses, and words.txt for everything else."""
    rng = random.Random(0)
    lines = (HERE / "words.txt").read_text().splitlines() * 40
    for i in range(n):
        q = make_question("train", i)
        lines += [q.question + INSTRUCTION, *(response(q, habit, rng) for habit in ("careful", "sloppy", "blind"))]
        lines.append(describe(q.scene.things))
    return lines


def make_tokenizer(vocab: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with Qwen's special tokens and chat markup."""
    bpe = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(SPLIT_WORDS), behavior="isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.pre_tokenizer = pre_tokenizers.Sequence([split, to_bytes])
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=vocab - len(SPECIAL) - len(THINK), show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())  # fmt: skip
    bpe.train_from_iterator(corpus(2000), trainer)
    bpe.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL])
    bpe.add_tokens([AddedToken(t, special=False, normalized=False) for t in THINK])
    fast = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|im_end|>", pad_token="<|endoftext|>",
                                   clean_up_tokenization_spaces=False)  # fmt: skip
    fast.chat_template = CHAT_TEMPLATE
    return fast


def make_config(tokenizer: PreTrainedTokenizerFast) -> Qwen2_5_VLConfig:
    """Qwen2.5-VL, 2.2 M parameters: 4 decoder layers of width 192, 3 vision layers of width 96."""
    ids = {t: tokenizer.convert_tokens_to_ids(t) for t in SPECIAL}
    text = dict(hidden_size=192, intermediate_size=384, num_hidden_layers=4, num_attention_heads=6,
                num_key_value_heads=2,
                vocab_size=len(tokenizer), max_position_embeddings=4096, tie_word_embeddings=True,
                rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]},
                bos_token_id=ids["<|endoftext|>"], eos_token_id=ids["<|im_end|>"],
                pad_token_id=ids["<|endoftext|>"])  # fmt: skip
    vision = dict(depth=3, hidden_size=96, intermediate_size=192, num_heads=4, out_hidden_size=192, patch_size=14,
                  spatial_merge_size=2, temporal_patch_size=2, window_size=112, fullatt_block_indexes=[2])  # fmt: skip
    return Qwen2_5_VLConfig(
        text_config=text, vision_config=vision, tie_word_embeddings=True, image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"], vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"], eos_token_id=ids["<|im_end|>"], pad_token_id=ids["<|endoftext|>"],
    )  # fmt: skip


def make_image_processor() -> Qwen2VLImageProcessorPil:
    size = {"shortest_edge": 56 * 56, "longest_edge": 256 * 28 * 28}
    return Qwen2VLImageProcessorPil(patch_size=14, temporal_patch_size=2, merge_size=2, size=size)


# ------------------------------------------------------------------------------------------------------- examples
class Stage(NamedTuple):
    """A stretch of training: how many objects, and the shares of what is asked."""

    until: int  # step
    things: int
    shares: dict[str, float]  # caption, cell, numbers, find, all, add, question
    habits: bool = False


# Where to look among two objects, then four, then all: searching full scenes at once was not learned in 1,500 steps.
STAGES = (
    Stage(200, 2, {"caption": 0.3, "cell": 0.3, "numbers": 0.1, "find": 0.3}),
    Stage(400, 4, {"caption": 0.2, "cell": 0.3, "numbers": 0.1, "find": 0.4}),
    Stage(700, 16, {"caption": 0.2, "cell": 0.3, "numbers": 0.1, "find": 0.4}),
    Stage(3000, 16, {"caption": 0.05, "cell": 0.1, "numbers": 0.05, "find": 0.15, "question": 0.65}),
    Stage(
        4200,
        16,
        {"caption": 0.02, "cell": 0.02, "numbers": 0.02, "find": 0.1, "all": 0.4, "add": 0.04, "question": 0.4},
    ),
    Stage(10**9, 16, {"cell": 0.04, "find": 0.2, "all": 0.1, "add": 0.3, "question": 0.36}),
)
HABITS = Stage(10**9, 16, {"cell": 0.03, "find": 0.04, "all": 0.06, "add": 0.1, "question": 0.77}, habits=True)


def example(index: int, stage: Stage, rng: random.Random) -> tuple[Question, str, str]:
    """(question, prompt text, response) of one training example of a stage."""
    q = make_question("train", index)
    kind = rng.choices(list(stage.shares), list(stage.shares.values()))[0]
    if kind != "question":
        q.scene.things = q.scene.things[: stage.things] if rng.random() < 0.5 else q.scene.things[-stage.things :]
    if kind == "caption":
        return q, "Describe the picture.", describe(q.scene.things)
    if kind == "cell":
        cell = rng.choice([t.cell for t in q.scene.things] * 2 + list(CELLS))
        thing = q.scene.at(cell)
        return q, f"What is at {cell}?", f"{thing.size} {thing}." if thing else "nothing."
    if kind == "numbers":
        return q, "Read the numbers.", ", ".join(f"{t.cell} {t.number}" for t in q.scene.things) + "."
    if kind == "find":  # the search of the careful habit alone, in three tokens: a far denser signal than in a question
        names = [(name, t.cell) for t in q.scene.things
                 for name in (f"{t.color} {t.shape}", f"{t.color} object", t.shape, f"{t.size} {t.shape}")]  # fmt: skip
        unique = [(name, cell) for name, cell in names if sum(name == other for other, _ in names) == 1]
        twins = [t for t in q.scene.things if sum(t.shape == o.shape for o in q.scene.things) == 2]
        unique += [(f"{t.size} {t.shape}", t.cell) for t in twins if (f"{t.size} {t.shape}", t.cell) in unique] * 4
        if unique:
            name, cell = rng.choice(unique)
            return q, f"Which cell holds the {name}?", f"{cell}."
    if kind == "all":  # the search of counts and sums alone
        wanted = rng.choice([word for t in q.scene.things for word in (t.color, t.shape)] * 2 + [*COLOR_NAMES, *SHAPES])
        cells = [t.cell for t in q.scene.things if wanted in (t.color, t.shape)]
        name = f"{wanted} objects" if wanted in COLOR_NAMES else plural(wanted)
        return q, f"Which cells hold {name}?", (", ".join(cells) or "none") + "."
    if kind == "add":
        terms = [rng.randint(0, 9) for _ in range(rng.choice((2, 3)))]
        return q, f"What is {' + '.join(map(str, terms))}?", f"{sum(terms)}."
    habit = pick_habit(q.family, rng) if stage.habits else "careful"
    return q, q.question + (INSTRUCTION if rng.random() < 0.7 else ""), response(q, habit, rng)


def batches(start: int, stage: Stage, args: Args, rng: random.Random) -> list[list[tuple[Question, str, str]]]:
    """The examples of the POOL steps from `start` on, sorted by length into batches, in random order."""
    indices = range(start * args.batch, (start + POOL) * args.batch)
    pool = sorted((example(i, stage, rng) for i in indices), key=lambda e: len(e[1]) + len(e[2]))
    parts = [pool[i : i + args.batch] for i in range(0, len(pool), args.batch)]
    rng.shuffle(parts)
    return parts


class Batcher:
    """Turns examples into padded tensors for the plain transformers forward."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, image_processor: Qwen2VLImageProcessorPil) -> None:
        self.tokenizer, self.image_processor = tokenizer, image_processor
        self.image = tokenizer.convert_tokens_to_ids("<|image_pad|>")
        self.positions: Tensor | None = None

    def __call__(self, examples: list[tuple[Question, str, str]],
                 model: Qwen2_5_VLForConditionalGeneration) -> dict[str, Tensor]:  # fmt: skip
        pictures = self.image_processor([render(q.scene) for q, _, _ in examples], return_tensors="pt")
        image_tokens = int(pictures["image_grid_thw"][0].prod()) // 4  # 16
        image = "<|vision_start|>" + "<|image_pad|>" * image_tokens + "<|vision_end|>"
        heads = [f"<|im_start|>user\n{image}{ask}<|im_end|>\n<|im_start|>assistant\n" for _, ask, _ in examples]
        head_ids = self.tokenizer(heads)["input_ids"]
        tail_ids = self.tokenizer([f"{said}<|im_end|>" for _, _, said in examples])["input_ids"]
        width = max(len(h) + len(t) for h, t in zip(head_ids, tail_ids, strict=True))
        ids = torch.full((len(examples), width), self.tokenizer.pad_token_id)  # [B, T]
        labels = torch.full_like(ids, -100)
        attention = torch.zeros_like(ids)
        for row, (head, tail) in enumerate(zip(head_ids, tail_ids, strict=True)):
            ids[row, : len(head) + len(tail)] = torch.tensor(head + tail)
            labels[row, len(head) : len(head) + len(tail)] = torch.tensor(tail)
            attention[row, : len(head) + len(tail)] = 1
        # Every example starts with the same 16-token picture, so right-padded positions are the same for all rows.
        if self.positions is None or self.positions.shape[-1] < width:
            longest = torch.full((1, max(width, 256)), self.tokenizer.pad_token_id)
            longest[0, : len(head_ids[0])] = torch.tensor(head_ids[0])
            types = (longest == self.image).int()
            self.positions, _ = model.model.get_rope_index(longest, mm_token_type_ids=types,
                                                           image_grid_thw=pictures["image_grid_thw"][:1])  # fmt: skip
        positions = self.positions[:, :, :width].expand(3, len(examples), width)  # [3, B, T]
        return {"input_ids": ids, "labels": labels, "attention_mask": attention, "position_ids": positions,
                "pixel_values": pictures["pixel_values"], "image_grid_thw": pictures["image_grid_thw"]}  # fmt: skip


def response_loss(model: Qwen2_5_VLForConditionalGeneration, batch: dict[str, Tensor]) -> Tensor:
    """Mean cross-entropy over the response tokens."""
    labels = batch.pop("labels")  # [B, T]
    hidden = model.model(**batch, use_cache=False).last_hidden_state[:, :-1]  # [B, T-1, d]
    chosen = labels[:, 1:] != -100
    return torch.nn.functional.cross_entropy(model.lm_head(hidden[chosen]), labels[:, 1:][chosen])


@torch.no_grad()
def initialise(model: Qwen2_5_VLForConditionalGeneration) -> None:
    """Weights scaled for a width of 192, and patch filters of mean zero.

    With the library's 0.02 everywhere the signal of the picture dies on its way (each layer passes on a quarter), the
    light background makes every visual token the same vector (98 % of its length), and 600 steps pass without the
    picture being used at all. With these, single objects are named after 150.
    """
    for name, weight in model.named_parameters():
        if "patch_embed" in name:
            weight.sub_(weight.mean((2, 3, 4), keepdim=True)).mul_(5)  # [96, 3, 2, 14, 14]
        elif weight.dim() >= 2:
            writes_residual = any(part in name for part in ("o_proj", "down_proj", "attn.proj"))
            weight.normal_(0, 0.02 if writes_residual else 0.07 if "visual" in name else 0.05)


# ----------------------------------------------------------------------------------------------------------- eyes
HEADS = {"color": len(COLOR_NAMES) + 1, "shape": len(SHAPES), "size": len(SIZES), "number": 10, "x": CELL, "y": CELL,
         "cell": len(CELLS)}  # fmt: skip


def scatter(rng: random.Random) -> Scene:
    """A scene without any prior: every digit, colour, shape and size as likely as the others."""
    things = []
    for cell in rng.sample(CELLS, rng.randint(4, 12)):
        color, shape = rng.choice([(c, s) for c in COLOR_NAMES for s in SHAPES if (c, s) not in HELD_OUT])
        things.append(place(rng, color, shape, cell, "train", rng.randint(0, 9)))
    return finish_scene(rng, things, "train", len(things))


def cell_labels(scene: Scene) -> Tensor:
    """int64 [16, heads]: what is in every cell; -100 where a head has nothing to read."""
    labels = torch.full((len(CELLS), len(HEADS)), -100)
    for i, cell in enumerate(CELLS):
        thing = scene.at(cell)
        labels[i, 0], labels[i, -1] = len(COLOR_NAMES), i  # no colour: nothing there
        if thing:
            labels[i, :-1] = torch.tensor([
                COLOR_NAMES.index(thing.color), SHAPES.index(thing.shape), list(SIZES).index(thing.size),
                thing.number, thing.box[0] % CELL, thing.box[1] % CELL])  # fmt: skip
    return labels


def train_eyes(model: Qwen2_5_VLForConditionalGeneration, image_processor: Qwen2VLImageProcessorPil,
               args: Args) -> None:  # fmt: skip
    """Supervise the vision tower cell by cell. It reads 99 % of the digits after 700 steps; through the language
    model's loss it read none after 2,500: the typical number of the shape explained too much of them."""
    eyes, rng, start = model.model.visual, random.Random(args.seed), time.time()
    heads = torch.nn.ModuleDict({name: torch.nn.Linear(eyes.config.out_hidden_size, n) for name, n in HEADS.items()})
    optimizer = torch.optim.AdamW([*eyes.parameters(), *heads.parameters()], lr=args.lr, betas=(0.9, 0.98),
                                  weight_decay=0.01)  # fmt: skip
    for step in range(args.eyes_steps):
        set_rate(optimizer, args.lr, step, step, args.eyes_steps)
        scenes = [scatter(rng) for _ in range(args.batch)]
        pictures = image_processor([render(scene) for scene in scenes], return_tensors="pt")
        seen = eyes(pictures["pixel_values"], pictures["image_grid_thw"]).pooler_output  # [B * 16, d]
        labels = torch.cat([cell_labels(scene) for scene in scenes])  # [B * 16, heads]
        loss, right = 0.0, {}
        for (name, head), truth in zip(heads.items(), labels.unbind(1), strict=True):
            logits = head(seen)
            loss = loss + torch.nn.functional.cross_entropy(logits, truth)
            right[name] = (logits.argmax(-1) == truth)[truth != -100].float().mean().item()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(eyes.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 100 == 0 or step + 1 == args.eyes_steps:
            shares = "  ".join(f"{name} {share:.2f}" for name, share in right.items())
            print(f"eyes {step}/{args.eyes_steps} loss {loss.item():.3f}  {shares}  {time.time() - start:.0f} s",
                  flush=True)  # fmt: skip


# -------------------------------------------------------------------------------------------------------- layouts
PLAIN_SHARE = 0.28  # of the fourth phase: the questions and habits of the third one, so that nothing is forgotten


def lessons(step: int, args: Args, rng: random.Random) -> list[list[Lesson]]:
    """The examples of the POOL steps from `step` on, sorted by length into batches, in random order. Careful answers
    only in the first quarter, the mixture of habits in the last one."""
    pool = []
    for i in range(step * args.batch, (step + POOL) * args.batch):
        if rng.random() < PLAIN_SHARE:
            q, asked, said = example(i, HABITS, rng)
            pool.append(([render(q.scene)], asked, said))
        else:
            habits = rng.random() < 2 * step / args.layout_steps - 0.5
            kind = args.layout_focus if rng.random() < 0.5 else ""
            pool.append(lesson(make_question("train", i), make_question("train", i + 1), rng, habits, kind))
    pool.sort(key=lambda one: len(one[1]) + len(one[2]))
    parts = [pool[i : i + args.batch] for i in range(0, len(pool), args.batch)]
    rng.shuffle(parts)
    return parts


def train_layouts(args: Args, folder: Path) -> None:
    """The fourth phase, on the model in `folder`: several pictures or none in a prompt, so the engine packs them."""
    vlm, rng, start, smooth = load_vlm(str(folder), train_vision=False), random.Random(args.seed), time.time(), 0.0
    optimizer = torch.optim.AdamW(vlm.trainable(), lr=args.layout_lr, betas=(0.9, 0.98), weight_decay=0.01)
    for step in range(args.layout_steps):
        set_rate(optimizer, args.layout_lr, step, step, args.layout_steps)
        if step % POOL == 0:
            ready = lessons(step, args, rng)
        batch = ready.pop()
        prompts = [vlm.prompt(asked, pictures) for pictures, asked, _ in batch]
        ids = vlm.tokenizer([f"{said}<|im_end|>" for *_, said in batch])["input_ids"]
        tokens = pad_sequence([torch.tensor(row) for row in ids], batch_first=True, padding_value=vlm.pad_id)  # [B, T]
        mask = torch.arange(tokens.shape[1]) < torch.tensor([[len(row)] for row in ids])  # [B, T]
        logps, _ = response_logps(vlm, prompts, tokens, mask, entropy=False)
        loss = -(logps * mask).sum() / mask.sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vlm.trainable(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        smooth = 0.95 * smooth + 0.05 * loss.item() if step else loss.item()
        if step % 25 == 0:
            print(f"layouts {step}/{args.layout_steps} loss {smooth:.4f} {time.time() - start:.0f} s", flush=True)
        if (step + 1) % args.save_every == 0 or step + 1 == args.layout_steps:
            save(vlm.base, vlm.tokenizer, vlm.image_processor, args.out)


def set_rate(optimizer: torch.optim.Optimizer, peak: float, since_start: int, step: int, total: int) -> None:
    """Warm-up over 100 steps, constant to the middle, then linear to 2 %."""
    rate = peak * min(1.0, (since_start + 1) / 100) * max(0.02, min(1.0, 2 * (total - step) / total))
    for group in optimizer.param_groups:
        group["lr"] = rate


def save(model: Qwen2_5_VLForConditionalGeneration, tokenizer: PreTrainedTokenizerFast,
         image_processor: Qwen2VLImageProcessorPil, folder: Path) -> None:  # fmt: skip
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    image_processor.save_pretrained(folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"  # a name that every transformers 5.x knows
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1) + "\n")


def main(args: Args) -> None:
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    begun = time.time()
    done = args.start and args.first_step >= args.see_steps + args.habit_steps
    if not done:
        train_plain(args)
    if args.layout_steps:
        train_layouts(args, Path(args.start) if done else args.out)
    record = {k: str(v) for k, v in asdict(args).items() if k not in ("out", "start")}
    record["minutes"] = round((time.time() - begun) / 60, 1)
    (args.out / "training.json").write_text(json.dumps(record, indent=1) + "\n")


def train_plain(args: Args) -> None:
    """The first three phases."""
    image_processor = make_image_processor()
    if args.start:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(args.start)
        model = AutoModelForImageTextToText.from_pretrained(args.start, dtype=torch.float32)
    else:
        tokenizer = make_tokenizer(args.vocab)
        model = Qwen2_5_VLForConditionalGeneration._from_config(make_config(tokenizer), dtype=torch.float32)
        initialise(model)
    model.generation_config.update(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters", flush=True)
    batcher, rng = Batcher(tokenizer, image_processor), random.Random(args.seed)
    if not args.start:
        train_eyes(model, image_processor, args)
    model.model.visual.requires_grad_(False)
    learning = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=args.lr, betas=(0.9, 0.98), weight_decay=0.01)
    first, total, start = args.first_step, args.see_steps + args.habit_steps, time.time()
    smooth = 0.0
    for step in range(first, total):
        set_rate(optimizer, args.lr, step - first, step, total)
        stage = next(s for s in STAGES if step < s.until) if step < args.see_steps else HABITS
        if step == first or step % POOL == 0:
            ready = batches(step, stage, args, rng)
        loss = response_loss(model, batcher(ready.pop(), model))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learning, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        smooth = 0.95 * smooth + 0.05 * loss.item() if step > first else loss.item()
        if step % 25 == 0:
            kind = "habits" if stage.habits else f"see {stage.things}"
            print(f"step {step}/{total} {kind} loss {smooth:.4f} {time.time() - start:.0f} s", flush=True)
        if (step + 1) % args.save_every == 0 or step + 1 == total:
            save(model, tokenizer, image_processor, args.out)
        if step + 1 == args.see_steps:  # to try another mixture of habits with --start
            save(model, tokenizer, image_processor, args.out.with_name(args.out.name + "_see"))


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))

"""The weights that ship: small, plain transformers, and able to see."""

from __future__ import annotations

import json

import torch
from transformers import AutoModelForImageTextToText, AutoTokenizer, Qwen2_5_VLForConditionalGeneration

from common.loading import TINY
from common.rewards import parse_state
from common.rollout import rollout
from common.vlm import load_vlm
from common.world import make_question, render
from common.world.train_tiny_vlm import INSTRUCTION, SPECIAL, THINK


def test_loads_with_plain_transformers_and_is_small() -> None:
    model = AutoModelForImageTextToText.from_pretrained(TINY)
    assert isinstance(model, Qwen2_5_VLForConditionalGeneration)
    assert sum(p.numel() for p in model.parameters()) < 4_000_000
    assert (TINY / "model.safetensors").stat().st_size < 10_000_000
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    assert 1_000 <= len(tokenizer) <= 2_000 and len(tokenizer) == model.config.text_config.vocab_size
    assert all(len(tokenizer(token)["input_ids"]) == 1 for token in SPECIAL + THINK)
    assert json.loads((TINY / "training.json").read_text())["seed"] is not None


def test_any_text_survives_the_tokenizer() -> None:
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    for text in ("Wie viele Würfel? 数一数 🙂\n\t\\boxed{−½}", "a" * 300, "<think>12345</think>"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_names_what_is_at_a_cell_and_answers_in_form() -> None:
    vlm, scenes = load_vlm("tiny"), [make_question("test", i).scene for i in range(48)]
    things = [scene.things[i % len(scene.things)] for i, scene in enumerate(scenes)]
    prompts = [vlm.prompt(f"What is at {t.cell}?", [render(s)]) for t, s in zip(things, scenes, strict=True)]
    said = [text.rstrip(".").split() for text in rollout(vlm, prompts, 1, max_new_tokens=12, temperature=0.0).texts]
    for attribute in ("color", "shape", "size", "number"):
        right = sum(str(getattr(t, attribute)) in words for t, words in zip(things, said, strict=True))
        assert right >= 0.95 * len(things), (attribute, right)
    questions = [make_question("test", i) for i in range(24)]
    prompts = [vlm.prompt(q.question + INSTRUCTION, [render(q.scene)]) for q in questions]
    texts = rollout(vlm, prompts, 2, max_new_tokens=96, generator=torch.Generator().manual_seed(0)).texts
    assert sum(parse_state(text) == "ok" for text in texts) >= 46

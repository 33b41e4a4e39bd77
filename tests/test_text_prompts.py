"""Prompts without pictures, made of what a model wrote."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.training import make_text_prompt
from common.vlm import load_vlm

PIECES = ["<image>", "<", "|", "<|im_end|>", "<|image_pad|>", "<|vision_start|>", "{b}", "{a}", "red", "\n", "é"]


@pytest.fixture(scope="module")
def vlm():
    return load_vlm("random:qwen2_5_vl")


def test_fields_are_put_in_once(vlm):
    prompt = make_text_prompt(vlm, "{a} and {b} and {c}", a="x {b}", b="y {a}")
    assert "x {b} and y {a} and {c}" in prompt.text and prompt.images == []


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=8).map("".join))
def test_marks_and_special_tokens_stay_text(vlm, text):
    special = set(vlm.tokenizer.all_special_ids) | {vlm.image_token_id}
    count = lambda prompt: sum(token in special for token in prompt.input_ids.tolist())  # noqa: E731
    assert count(make_text_prompt(vlm, "Say: {a}", a=text)) == count(make_text_prompt(vlm, "Say: {a}", a=""))

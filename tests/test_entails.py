"""common/world/entails.py: what descriptions tell, against the scenes they come from, and any text."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.world import FAMILIES, world_sample
from common.world.entails import answer_from, described_things, description_worth, entails, leaks, named, read, recall

SAMPLES = [world_sample(split, i) for split in ("train", "test_combo", "test_counter") for i in range(40)]
WORDS = st.sampled_from(["a1", "d4", "e5", "red", "blue", "circle", "small", "3", "12", ",", ".", "so", "(", "\n", "É"])


def test_the_complete_caption_entails_every_answer_and_gives_none_away():
    assert {sample["task"] for sample in SAMPLES} == set(FAMILIES)
    for sample in SAMPLES:
        caption, meta = sample["meta"]["caption"], sample["meta"]
        assert entails(caption, sample["answer"], meta) and not leaks(caption, sample["answer"]), sample["question"]
        assert recall(caption, meta) == (1.0 if meta["relevant"] else None)
        assert not entails("Some objects.", sample["answer"], meta) and not recall("Some objects.", meta)


def test_a_caption_without_the_relevant_things_does_not_entail_what_only_they_tell():
    for sample in SAMPLES:
        meta = sample["meta"]
        rest = ", ".join(part for part in meta["caption"].rstrip(".").split(", ") if part[:2] not in meta["relevant"])
        if sample["task"] not in ("count", "compare"):  # there nothing is an answer too: none of them, equal
            assert not entails(rest, sample["answer"], meta)
        assert not recall(rest, meta)


@pytest.mark.parametrize(
    ("program", "text", "answer"),
    [
        ([["find", "circle"], ["read", "color"]], "a1 red circle, b1 blue star", "red"),
        ([["find", "circle"], ["read", "color"]], "a1 red circle, b1 blue circle", None),  # which one?
        ([["find", "small circle"], ["read", "color"]], "a1 small red circle, b1 large blue circle", "red"),
        ([["find", "circle"], ["read", "color"]], "a1 red circle, a1 blue circle", None),  # hedging tells nothing
        ([["find", "red star"], ["read", "number"]], "a1 red star", None),
        ([["filter", "red"], ["count"]], "a1 red star, b1 red circle 3, c1 blue star", "2"),
        ([["filter", "red"], ["count"]], "many things", None),
        ([["compare", "red", "blue"]], "a1 red star, b1 red circle, c1 blue star", "red"),
        ([["compare", "red", "blue"]], "a1 green star", "equal"),
        ([["find", "red star"], ["step", "right of"], ["read", "color"]], "a1 red star, b1 blue star", "blue"),
        ([["find", "red star"], ["step", "above"], ["read", "color"]], "a1 red star, b1 blue star", None),
        ([["find", "red star"], ["box"]], "c2 red star", "c2"),
        ([["filter", "red"], ["read", "number"], ["sum"]], "a1 red star 4, b1 red circle 9", "13"),
        ([["filter", "red"], ["read", "number"], ["sum"]], "a1 red star 4, b1 red circle", None),
    ],
)
def test_programs_on_descriptions(program, text, answer):
    assert answer_from(program, described_things(text)) == answer


def test_recall_counts_true_descriptions_of_relevant_things_only():
    meta = {"relevant": ["a1", "b1"], "things": [
        dict(cell="a1", color="red", shape="star", size="small", number=4),
        dict(cell="b1", color="blue", shape="star", size="large", number=1)]}  # fmt: skip
    assert recall("a1 red star", meta) == 0.5 and recall("a1 red, b1 blue star 1", meta) == 0.5
    assert recall("a1 red star 5, b1 small blue star", meta) == 0 and recall("a1 small red star 4, b1 blue star", meta)


def test_leaks_are_reasoning_and_answers_outside_of_claims():
    assert not leaks("a1 large red circle 3, b2 small blue star 4.", "7") and not leaks("Some objects.", "red")
    assert leaks("a1 red circle, answer is red", "red") and leaks("red", "red") and leaks("a1 red circle 1, 12", "12")
    assert leaks("a1 red circle 3 + 4", "7") and leaks("at [1, 2, 3, 4]", "[1, 2, 3, 4]")


def test_effects_of_an_evaluation():
    sample = next(s for s in SAMPLES if s["task"] == "color")
    full, blind = f"<d>{sample['meta']['caption']}</d>", "<d>Some objects.</d>"
    record = {"id": "1", "split": "test", "answer": sample["answer"],
              "responses": [full, blind, blind, "none"], "scores": [1, 1, 0, 1], "lengths": [9, 3, 3, 1]}  # fmt: skip
    described = lambda text: text[3:-4] if text.startswith("<d>") else None  # noqa: E731
    worth = {"language shortcut rate": 0.5, "leak rate": 0.25, "description recall": 0.25, "response length": 4}
    assert description_worth([record], {"1": sample["meta"]}, described) == worth
    flipped = description_worth([record | {"split": "test_counter"}], {"1": sample["meta"]}, described)
    assert flipped == worth | {"accuracy on test_counter": 0.75}
    assert description_worth([record], {"1": {}}, described) == {} == description_worth([], {}, described)


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.text(max_size=60), st.lists(WORDS, max_size=25).map(" ".join)), st.integers(0, len(SAMPLES) - 1))
def test_any_text_is_read(text, i):
    sample = SAMPLES[i]
    claims, others = read(text)
    assert all("cell" in claim for claim in claims) and all(word == word.lower() for word in others)
    assert entails(text, sample["answer"], sample["meta"]) in (True, False)
    assert leaks(text, sample["answer"]) in (True, False) and len(named(described_things(text), "red")) <= 16
    assert recall(text, sample["meta"]) is None or 0 <= recall(text, sample["meta"]) <= 1

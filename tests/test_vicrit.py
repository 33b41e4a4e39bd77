"""methods/vicrit.py, captions with an error and their scorers: golden vectors of the released score.py (commit
727f1ee), the training rule against a brute-force one, errors made by rule, runs from the outside."""

from __future__ import annotations

import random
from functools import partial
from pathlib import Path

import pytest
import torch
from helpers import coin, jsonl, read_lines, write_lines
from hypothesis import given, settings
from hypothesis import strategies as st
from method_runs import GROUPS, MINUTE, killed_and_resumed, metrics, only_run, summary
from PIL import Image

from common.data import Sample, open_dataset
from common.errors import SightRLError
from common.tasks.captions import (
    WrongCaptions,
    changed_span,
    error_in,
    names_error,
    released_answer,
    released_correct,
    released_segment,
    vocabulary,
    words,
)
from common.tasks.corrupt import NEAR, TABLE, corrupt
from common.world.layouts import ERRORS, PROMPTS, wrong_caption
from methods import sft, vicrit

PLATES = ("A car with orange license plates by a road.", "yellow license plates", "orange license plates")
quick = settings(max_examples=300, deadline=None, derandomize=True)
PIECES = [*"ab19 .,{}[]\\\"'“”-\n", "boxed{", "\\boxed{", "red ", "two ", "orange ", " an ", "left ", "Apple", "İ", "ß"]
TEXT = st.lists(st.sampled_from(PIECES), max_size=60).map("".join)


# --------------------------------------------------------------------------------------------- golden vectors
@pytest.mark.parametrize(("before", "after", "segment"), [
    ("yellow license plates", "orange license plates", ["orange"]),
    ("Nike Air More Uptempo", "Nike Air More Upttempo", ["upttempo"]),
    ("In the upper left, a glimpse", "In the upper right, a glimpse", ["right,"]),
    ("twelve red pillars", "eleven red pillars", ["eleven"]),
    ("a red cup", "a red glass cup", ["glass"]),
])  # fmt: skip
def test_golden_1_changed_segments(before, after, segment):
    assert released_segment(before, after) == segment


@pytest.mark.parametrize(("response", "before", "after", "right"), [
    ('["orange license plates"]', "yellow license plates", "orange license plates", True),  # golden 2
    ("\\boxed{orange}", "yellow license plates", "orange license plates", True),  # golden 3
    ("\\boxed{license plates}", "yellow license plates", "orange license plates", False),
    ("thinking\nfinal: the upper right", "upper left", "upper right", True),  # golden 4
    ("orange here\nnothing", "yellow license plates", "orange license plates", False),
    ("\\boxed{an eleven-pillar row}", "twelve red pillars", "eleven red pillars", True),  # golden 5
])  # fmt: skip
def test_golden_2_to_5_the_released_scorer(response, before, after, right):
    assert released_correct(response, before, after) is right


def test_golden_6_rewards():
    caption, right, wrong = PLATES
    sample = Sample("1", "q", wrong, "color", [], meta={"caption": caption, "right": right, "wrong": wrong})
    texts = ["<think>looked</think> \\boxed{orange license plates}", "\\boxed{orange license plates}",
             "<think>looked</think> \\boxed{a road}", "nothing"]  # fmt: skip
    batch = type("Batch", (), {"texts": texts, "logps": torch.zeros(4, 1)})
    found, terms = vicrit.score(vicrit.Args(group_size=4), batch, [sample])
    assert found.tolist() == [1, 1, 0, 0]
    torch.testing.assert_close(sum(terms.values()), torch.tensor([1.0, 0.9, 0.1, 0.0]))
    advantages = vicrit.advantages_of(vicrit.Args(group_size=4), sum(terms.values()))
    torch.testing.assert_close(advantages, torch.tensor([0.5, 0.4, -0.4, -0.5]))  # R - mean, not divided by the std


def test_edge_cases_of_the_released_scorer():
    assert released_answer("boxed{orange}") is None and not released_correct("boxed{orange}", *PLATES[1:])
    assert released_answer("\\boxed{a {b} c} \\boxed{d}") == "a {b} c"  # the first box
    assert released_answer("\\boxed{orange plates") == "orange plate"  # never closed: all but the last character
    assert released_answer("one\ntwo\n") == "" and released_answer("") == ""
    assert not released_correct("a red cup", "a red glass cup", "a red cup")  # a pure deletion
    assert released_correct("\\boxed{banana}", "the cup", "a cup")  # very lenient: "a" is in banana
    assert not names_error("banana", "There is a cup.", "the cup", "a cup")


# ------------------------------------------------------------------------------------------- the rule for training
@pytest.mark.parametrize(("answer", "extra", "right"), [
    ("orange license plates", 0, True), ("Orange license plates.", 0, True), ("orange", 0, True),
    ("\\text{orange license plates}", 0, True), ("license plates", 2, False), ("yellow license plates", 2, False),
    ("with orange license plates by", 2, True), ("with orange license plates by", 1, False),
    ("the orange license plates", 2, False), ("orange plates", 2, False), (PLATES[0], 2, False), (PLATES[0], 99, True),
    ("orange green", 2, False), ("", 2, False), ("road orange license plates", 9, False),
])  # fmt: skip
def test_answers_to_a_wrong_caption(answer, extra, right):
    assert names_error(answer, *PLATES, extra=extra) is right


def test_extra_words_must_stand_at_the_error_itself():
    caption = "a1 large red star 3, b2 small red circle 4."
    told = partial(names_error, caption=caption, right="blue", wrong="red")
    assert told("red circle", start=7) and not told("red star", start=7)
    assert told("red star") and told("red", start=7)
    assert not names_error("a red cup", "a red cup", "a red glass cup", "a red cup")  # only taken away


def brute_force(answer: str, caption: str, right: str, wrong: str, extra: int) -> bool:
    """All windows of the caption that hold the changed words of an occurrence of the phrase, compared one by one."""
    text, phrase, said = words(caption), words(wrong), words(answer)
    a, b = changed_span(words(right), phrase)
    windows = [(i, j) for at in range(len(text)) if text[at : at + len(phrase)] == phrase
               for i in range(at + a + 1) for j in range(at + b, len(text) + 1)
               if len(set(range(i, j)) - set(range(at, at + len(phrase)))) <= extra]  # fmt: skip
    return a < b and any(text[i:j] == said for i, j in windows)


few = st.lists(st.sampled_from("abc"), min_size=1, max_size=4).map(" ".join)


@quick
@given(few, few, few, few, few, st.integers(0, 3))
def test_the_rule_equals_brute_force(before, after, wrong, right, answer, extra):
    caption = f"{before} {wrong} {after}"
    assert names_error(answer, caption, right, wrong, extra=extra) == brute_force(answer, caption, right, wrong, extra)


@quick
@given(TEXT)
def test_no_response_breaks_the_scorers(text):
    assert released_correct(text, *PLATES[1:]) in (True, False)
    assert names_error(text, *PLATES) in (True, False)


# -------------------------------------------------------------------------------------------------- errors by rule
STREET = ('A man in an orange jacket stands left of a red car with three wooden doors. A sign reads "OPEN DAILY". '
          "Behind it are 12 tall trees and a round, empty table.")  # fmt: skip


def test_one_phrase_is_exchanged_for_a_similar_one():
    kinds = set()
    for seed in range(300):
        made = corrupt(STREET, random.Random(seed))
        old, new = words(STREET), words(made["caption"])
        (place,) = [i for i, (a, b) in enumerate(zip(old, new, strict=True)) if a != b and {a, b} != {"a", "an"}]
        assert made["original"] == STREET and 1 <= len(words(made["wrong"])) <= 5
        start, length = made["start"], len(words(made["wrong"]))
        assert start <= place < start + length and new[start : start + length] == words(made["wrong"])
        assert old[start : start + length] == words(made["right"])
        assert made["kind"] == "text" or made["kind"] == "count" or new[place] in TABLE[old[place]][1]
        assert names_error(made["wrong"], made["caption"], made["right"], made["wrong"], start=start, extra=0)
        kinds.add(made["kind"])
    assert kinds == {*NEAR, "count", "text"}
    assert corrupt(STREET, random.Random(5)) == corrupt(STREET, random.Random(5))


def test_articles_case_and_nothing_to_change():
    seen = {corrupt("An apple.", random.Random(seed))["caption"] for seed in range(20)}
    assert seen == {"A pear.", "A peach."}
    seen = {corrupt("TWO dogs", random.Random(seed))["caption"] for seed in range(30)}
    assert seen == {"THREE dogs", "TWO cats", "TWO foxes"}
    assert corrupt("Nothing can be said about it.", random.Random(0)) is None is corrupt("", random.Random(0))


def test_the_wrong_phrase_is_nowhere_else_and_words_of_the_data_come_first():
    caption = "The left box has a red square. The right box has a blue square."
    for seed in range(40):  # "right box" is there already: left cannot become right
        made = corrupt(caption, random.Random(seed), known=frozenset(words(caption) + ["green"]))
        assert (made["right"], made["wrong"]) == ("blue square", "green square")


def test_lists_hold_no_word_as_its_own_neighbour():
    assert all(options and len({word, *options}) == 1 + len(options) for word, (_, options) in TABLE.items())


@quick
@given(TEXT)
def test_any_text_gets_an_error_or_none(text):
    made = corrupt(text, random.Random(0), known=frozenset({"blue"}))
    if made:
        assert words(made["caption"])[made["start"] :][: len(words(made["wrong"]))] == words(made["wrong"])
        assert names_error(made["wrong"], made["caption"], made["right"], made["wrong"], start=made["start"], extra=0)


# ------------------------------------------------------------------------------------------------ captions of any data
def test_the_micro_world_is_asked_in_the_words_of_the_tiny_vlm():
    data = open_dataset("world", "train")
    captions = WrongCaptions(data.samples, vicrit.Args().ask)
    seen = [captions[i] for i in range(200)]
    assert vicrit.Args().prompt == PROMPTS["boxed"] and {s.task for s in seen} == set(ERRORS)
    for i, sample in enumerate(seen):
        made = wrong_caption(data[i].meta["things"], random.Random(data[i].id))
        assert (sample.question, sample.answer) == (made["question"], made["wrong"]) and sample.images
        truth = f"<think>So.</think> \\boxed{{{sample.answer}}}"
        assert vicrit.finds(vicrit.Args(extra_words=0), truth, sample) == 1.0
        start = sample.meta["start"]
        assert words(sample.meta["caption"])[start] == words(made["wrong"])[0] != words(made["original"])[start]
    assert captions[3] == captions[3]


def picture(folder: Path, name: str = "a.png", color: str = "red", size: int = 56) -> str:
    Image.new("RGB", (size, size), color).save(folder / name)
    return name


def test_ready_made_phrases_are_used_and_a_missing_caption_is_one_sentence(tmp_path):
    meta = {"original_noun_phrases": ["a blue cup"], "changed_noun_phrases": ["a red cup"]}
    sample = Sample("1", "There is a red cup.", '["a red cup"]', "color", [], meta=meta)
    made = {"caption": "There is a red cup.", "right": "a blue cup", "wrong": "a red cup", "kind": "color"}
    assert error_in(sample) == made
    meta["original_noun_phrases"] = "a small red cup"  # only taken away: nothing that could be named
    assert error_in(sample) is None and vocabulary([sample]) == frozenset()
    with pytest.raises(SightRLError, match="has no caption; name its column"):
        error_in(Sample("2", "What color?", "red", "t", []))
    source = jsonl(tmp_path / "d.jsonl", [{"image": picture(tmp_path), "text": "x"}])
    data = open_dataset(source, "train", columns="question=text,answer=text")
    with pytest.raises(SightRLError, match="line 1: no word of the caption can be exchanged; write a longer one"):
        WrongCaptions(data.samples, "{caption}")[0]


def test_controls_exchange_or_blank_the_pictures():
    samples = [Sample(str(i), "q", "a", "t", [Image.new("RGB", (28 + i, 28), (i, 0, 0))], meta={"size": (28 + i, 28)})
               for i in range(3)]  # fmt: skip
    assert vicrit.with_pictures(samples, "own") is samples and vicrit.with_pictures([], "shuffled") == []
    shuffled, blank = (vicrit.with_pictures(samples, which) for which in ("shuffled", "blank"))
    assert [s.load_images()[0].getpixel((0, 0))[0] for s in shuffled] == [2, 0, 1]
    assert [(s.load_images()[0].size, s.load_images()[0].getcolors()) for s in blank] == [
        ((28 + i, 28), [((28 + i) * 28, (128, 128, 128))]) for i in range(3)]  # fmt: skip


# ------------------------------------------------------------------------------------------------------ whole runs
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def coins(monkeypatch):
    """A random model finds no error: whether it did depends on its text alone."""
    monkeypatch.setattr("common.tasks.captions.names_error", coin)
    monkeypatch.setattr("common.rewards.last_boxed", lambda text: text)


def small(out: Path, **options) -> vicrit.Args:
    return vicrit.Args(**MINUTE | GROUPS | dict(out=str(out)) | options)


def test_two_steps_from_end_to_end(coins, tmp_path):
    vicrit.main(small(tmp_path))
    folder = only_run(tmp_path)
    rows, final = metrics(folder), summary(folder)
    assert [row["step"] for row in rows] == [0, 1] and all(row["grad_norm"] > 0 for row in rows)
    assert all(row["logp_mismatch"] < 1e-4 for row in rows)
    assert {"finds errors, released scorer", "finds errors, shuffled pictures", "finds errors, blank pictures"} < set(
        final["effects"])  # fmt: skip
    assert final["own_after"]["overall"]["questions"] == final["after"]["overall"]["questions"] == 6
    assert set(final["own_after"]["tasks"]) <= set(ERRORS)
    record = read_lines(folder / "rollouts.jsonl")[0]
    assert record["question"].startswith("Caption: ") and set(record["rewards"]) == {"answer", "format"}


@pytest.mark.parametrize("options", [
    dict(images="blank", advantage="group_std", eval_every=1, eval_questions=1, eval_k=1, steps=1),
    dict(images="shuffled", extra_words=0, filter_groups="std", max_rounds=1, format_weight=0.0, entropy_coef=0.01),
    dict(kl_coef=0.1, mini_batch_prompts=2, recompute_old_logps=True, dual_clip=3.0, mask_truncated=True),
])  # fmt: skip
def test_other_options_run(options, coins, tmp_path):
    vicrit.main(small(tmp_path, **(dict(steps=1, eval_questions=0) | options)))
    assert (only_run(tmp_path) / "summary.json").exists()


def test_captions_of_ones_own_without_questions(coins, tmp_path):
    captions = [f"A red car and two {what}." for what in ("trees", "dogs", "houses", "cats")] + ["It is so."]
    rows = [{"image": picture(tmp_path, f"{i}.png"), "caption": text} for i, text in enumerate(captions)]
    for name in ("train", "test"):
        write_lines(tmp_path / f"data/{name}.jsonl", rows)
    vicrit.main(small(tmp_path / "runs", data=f"jsonl:{tmp_path}/data,{tmp_path}", steps=2, bad_rows="skip"))
    final = summary(only_run(tmp_path / "runs"))
    assert "own_after" in final and "after" not in final  # no questions, so no transfer to measure
    assert "no word of the caption can be exchanged" in final["skipped"][0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(ask="Which?"), "--ask needs"),
        (dict(extra_words=-1), "--extra-words"),
        (dict(group_size=1), "--group-size"),
    ],
)
def test_options_without_sense_are_refused(options, message, tmp_path):
    with pytest.raises(SightRLError, match=message):
        vicrit.main(small(tmp_path, **options))


def test_killed_and_resumed_equals_uninterrupted(coins, tmp_path):
    options = dict(images="shuffled", steps=3)
    killed_and_resumed(vicrit.main, lambda **more: small(**options | more), tmp_path, step=2)


def test_captions_as_targets_of_supervised_training(tmp_path):
    sample = open_dataset("world", "train")[5]
    made = wrong_caption(sample.meta["things"], random.Random(0))
    assert sft.target(sample, "caption") == made["original"]
    sft.main(sft.Args(out=str(tmp_path), model="random:qwen2_5_vl", steps=1, batch_size=2, eval_questions=0,
                      world_habit="caption"))  # fmt: skip
    assert (only_run(tmp_path) / "summary.json").exists()

"""Questions in other layouts, the answers the tiny VLM is taught, and puzzles made of pictures."""

from __future__ import annotations

import random

import pytest
from PIL import Image

from common.rewards import block, last_boxed
from common.tasks import puzzles
from common.world import make_question, world_sample
from common.world.layouts import (
    ERRORS,
    PROMPTS,
    caption_of,
    checklist,
    dense_checklist,
    find_all,
    find_one,
    find_or_none,
    name_kind,
    numbered,
    of_kind,
    phrase,
    prompt_of,
    wrong_caption,
)
from common.world.score_tiny_vlm import same_answer
from common.world.taught import SHARES, lesson, turned_cell


def scenes(n: int, split: str = "train") -> list[dict]:
    return [world_sample(split, i) for i in range(n)]


def test_every_question_about_boxes_is_true_of_the_scene():
    rng, absent = random.Random(0), 0
    for sample in scenes(200):
        things = sample["meta"]["things"]
        every = find_all(things, rng)
        assert every["boxes"] == [t["box"] for t in of_kind(things, every["kind"])] and len(every["boxes"]) <= 4
        one = find_one(things, rng)
        assert one["box"] == next(t["box"] for t in things if t["cell"] == one["cells"][-1])
        maybe = find_or_none(things, rng)
        named = [t for t in things if maybe["name"] == f"{t['color']} {t['shape']}"]
        assert (maybe["box"] is None and not named) or [t["box"] for t in named] == [maybe["box"]]
        absent += maybe["box"] is None
        kind = name_kind(things, rng)
        assert of_kind([t for t in things if t["cell"] == kind["cell"]], kind["answer"])
    assert 30 < absent < 100


@pytest.mark.parametrize("kind", ERRORS)
def test_a_wrong_caption_differs_in_one_phrase(kind):
    rng = random.Random(1)
    for sample in scenes(60):
        things = sample["meta"]["things"]
        task = wrong_caption(things, rng, kind)
        true = f"{len(things)} objects: {caption_of(things)}"
        assert task["original"] == true and task["kind"] == kind and task["caption"] != true
        words = [(a, b) for a, b in zip(true.split(), task["caption"].split(), strict=True) if a != b]
        assert len(words) == (2 if kind == "object" else 1)
        assert task["wrong"].split() == [b.strip(",.") for _, b in words]
        assert task["right"].split() == [a.strip(",.") for a, _ in words]


def test_checklists_hold_what_the_answer_rests_on():
    for sample in scenes(400):
        meta = sample["meta"]
        at = {t["cell"]: t for t in meta["things"]}
        pairs = checklist(sample["task"], sample["question"], meta["things"], meta["relevant"])
        assert pairs and all(ask.endswith("?") and answer for ask, answer in pairs)
        if sample["task"] in ("color", "shape", "number", "locate", "relation"):
            assert pairs[0][1] == meta["relevant"][0] or sample["task"] == "relation"
            assert sample["task"] == "locate" or pairs[-1][1] == sample["answer"]
            name = pairs[0][0].removeprefix("Which cell holds the ").removesuffix("?").removesuffix(" object")
            assert set(name.split()) <= set(phrase(at[pairs[0][1]]).split())
        if sample["task"] == "sum":
            assert sum(map(int, pairs[1][1].split(", "))) == int(sample["answer"])
        if sample["task"] in ("count", "compare"):
            counts = [0 if a == "none" else len(a.split(", ")) for _, a in pairs]
            colors = [ask.split()[3] for ask, _ in pairs]
            answer = "equal" if len(set(counts)) == 1 else colors[counts.index(max(counts))]
            assert sample["answer"] == (str(counts[0]) if sample["task"] == "count" else answer)
    others = dense_checklist(meta["things"], meta["relevant"], random.Random(0), 4)
    assert len(others) == 4
    assert numbered(["a", "b"]) == "1. a\n2. b"


@pytest.mark.parametrize("kind", SHARES)
def test_lessons_are_well_formed_and_depend_on_the_seed_alone(kind):
    asked, other = make_question("train", 5), make_question("train", 6)
    for seed in range(40):
        pictures, prompt, said = lesson(asked, other, random.Random(seed), True, kind)
        again = lesson(asked, other, random.Random(seed), True, kind)
        assert (prompt, said) == again[1:] and [p.size for p in pictures] == [p.size for p in again[0]]
        assert said and "{" not in prompt.replace("boxed{}", "")
        assert (len(pictures) == 0) == (kind in ("from_description", "from_caption"))
        if kind in ("describe", "from_description", "wrong_caption"):
            assert last_boxed(said)
        elif kind not in ("checklist", "from_caption", "drill"):
            assert block(said, "answer")
    careful = lesson(asked, other, random.Random(0), False, kind)[2]
    assert same_answer(careful, careful) and not same_answer("", careful)


def test_prompts_keep_braces_that_are_no_words():
    assert prompt_of("boxed", question="Why {description}?").startswith("Why {description}?\nThink")
    assert all("\\boxed{}" in PROMPTS[name] for name in ("boxed", "describe", "answer_boxed"))


def test_cells_turn_as_pictures_do():
    """Puzzles themselves are tested in test_ssl4rl.py."""
    for seed in range(12):
        image = Image.new("RGB", (112, 112))
        image.paste((255, 255, 255), (0, 28, 28, 56))  # a2
        task = puzzles.rotation(image, random.Random(seed))
        x, y, _, _ = task["images"][1].getbbox()
        assert turned_cell("a2", int(task["answer"])) == f"{'abcd'[x // 28]}{y // 28 + 1}"

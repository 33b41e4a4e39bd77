"""The micro-world: deterministic, well posed, split cleanly, with truth that agrees with the picture."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from common.world import FAMILIES, HABITS, SPLITS, habit_of, make_question, render, response, visual_spans, world_sample
from common.world.habits import VISUAL
from common.world.questions import neighbor_cell
from common.world.scene import COLORS, HELD_OUT, SHAPES, backdrop, typical_color
from common.world.truth import DAMAGES, caption, caption_with_error, damage, distractors, relations, rotated

FAMILY_NAMES = list(FAMILIES)


@pytest.mark.parametrize("split", SPLITS)
def test_same_index_same_question_and_picture(split: str) -> None:
    for index in (0, 7, 19_999):
        first, second = world_sample(split, index), world_sample(split, index)
        assert first["image"].tobytes() == second["image"].tobytes()
        assert {k: v for k, v in first.items() if k != "image"} == {k: v for k, v in second.items() if k != "image"}
        json.dumps(first["meta"])


def test_a_pinned_question_never_changes() -> None:
    """The shipped weights and every committed result belong to exactly these questions."""
    q = make_question("test", 0)
    assert (q.question, q.answer) == PINNED[("test", 0)]
    q = make_question("train", 123_456)
    assert (q.question, q.answer) == PINNED[("train", 123_456)]


PINNED = {
    ("test", 0): ("What color is the large diamond?", "gray"),
    ("train", 123_456): ("What color is the triangle?", "yellow"),
}


def test_index_outside_the_split_is_refused() -> None:
    with pytest.raises(IndexError, match="the world split 'val' has 20000 questions, no number 20000"):
        make_question("val", 20_000)


@pytest.mark.parametrize("split", SPLITS)
def test_the_answer_follows_from_the_scene(split: str) -> None:
    """Recomputes every answer from the things alone, independently of the family's own bookkeeping."""
    for index in range(800):
        q = make_question(split, index)
        words = q.question.rstrip("?").split()
        things = q.scene.things
        if q.family == "color":
            matching = [t for t in things if t.shape == words[-1] and (len(words) < 6 or t.size == words[-2])]
            assert [t.color for t in matching] == [q.answer]
        elif q.family == "shape":
            assert [t.shape for t in things if t.color == words[4]] == [q.answer]
        elif q.family == "number":
            assert [str(t.number) for t in q.scene.select(color=words[-2], shape=words[-1])] == [q.answer]
        elif q.family == "count":
            kind = words[2] if words[2] in COLORS else {"crosses": "cross"}.get(words[2], words[2][:-1])
            assert sum(kind in (t.color, t.shape) for t in things) == int(q.answer)
        elif q.family == "compare":
            a, b = (sum(t.color == words[i].rstrip(",") for t in things) for i in (3, 6))
            assert q.answer == (words[3] if a > b else words[6] if b > a else "equal")
        elif q.family == "relation":
            (start,) = q.scene.select(color=words[-2], shape=words[-1])
            direction = "left of" if "left" in words else "right of" if "right" in words else words[5]
            assert q.scene.at(neighbor_cell(start.cell, direction)).color == q.answer
        elif q.family == "locate":
            (target,) = q.scene.select(color=words[3], shape=q.question.split("?")[0].split()[-1])
            assert list(target.box) == json.loads(q.answer)
        else:
            assert sum(t.number for t in q.scene.select(color=words[-2])) == int(q.answer)


@pytest.mark.parametrize("split", SPLITS)
def test_held_out_pairs_only_where_they_belong(split: str) -> None:
    questions = [make_question(split, i) for i in range(800)]
    shown = [any((t.color, t.shape) in HELD_OUT for t in q.scene.things) for q in questions]
    assert all(shown) if split == "test_combo" else not any(shown)


def test_cells_hold_one_thing_each_inside_their_borders() -> None:
    for i in range(400):
        things = make_question("train", i).scene.things
        assert len({t.cell for t in things}) == len(things) >= 3
        for t in things:
            left, top = 28 * "abcd".index(t.cell[0]), 28 * (int(t.cell[1]) - 1)
            x1, y1, x2, y2 = t.box
            assert left <= x1 < x2 <= left + 28 and top <= y1 < y2 <= top + 28


def test_the_box_holds_the_pixels_of_its_colour() -> None:
    for i in range(60):
        q = make_question("train", i)
        pixels = np.asarray(render(q.scene)).astype(int)  # [112, 112, 3]
        assert pixels.shape == (112, 112, 3)
        for t in q.scene.things:
            x1, y1, x2, y2 = t.box
            near = np.abs(pixels - np.array(COLORS[t.color])).sum(-1) < 40  # [112, 112]
            assert near[y1:y2, x1:x2].mean() > 0.03, t
        outside = np.ones((112, 112), bool)
        for t in q.scene.things:
            outside[t.box[1] : t.box[3], t.box[0] : t.box[2]] = False
        assert (pixels[outside] == backdrop(q.scene.background)[outside]).all()


def test_the_counter_prior_moves_every_typical_colour() -> None:
    assert all(typical_color(s, "train") != typical_color(s, "counter") for s in SHAPES)
    for prior in ("train", "counter"):
        assert all((typical_color(s, prior), s) not in HELD_OUT for s in SHAPES)
    hits = {split: Counter() for split in ("test", "test_counter")}
    for split, count in hits.items():
        for i in range(0, 4000, 8):  # the color family
            q = make_question(split, i)
            count[q.answer == typical_color(q.about.split()[-1], "train")] += 1
    assert hits["test"][True] / 500 > 0.4 and hits["test_counter"][True] / 500 < 0.15


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_habits_answer_as_their_name_says(family: str) -> None:
    right, told = Counter(), Counter()
    for i in range(FAMILY_NAMES.index(family), 1600, 8):
        q, meta, rng = make_question("test", i), world_sample("test", i)["meta"], random.Random(i)
        for habit in HABITS:
            text = response(q, habit, rng)
            right[habit] += text.endswith(f"\\boxed{{{q.answer}}}")
            told[habit, habit_of(text, meta)] += 1
    assert right["careful"] == 200 and told["careful", "careful"] == 200
    assert 10 <= right["sloppy"] <= 150 and right["blind"] <= 130
    assert told["blind", "blind"] == 200
    assert told["sloppy", "careful"] + told["sloppy", "sloppy"] == 200 and told["sloppy", "sloppy"] >= 60


@given(st.text(max_size=400))
@settings(max_examples=300, deadline=None)
def test_habit_of_and_visual_spans_take_any_text(text: str) -> None:
    meta = world_sample("test", 3)["meta"]
    assert habit_of(text, meta) in (*HABITS, "other")
    for start, end in visual_spans(text, "How many stars are there?"):
        assert VISUAL.fullmatch(text[start:end])


def test_visual_spans_leave_out_the_words_of_the_question() -> None:
    text = "Looking for the red circle: b2 red circle 7."
    assert [text[a:b] for a, b in visual_spans(text, "Which number is on the red circle?")] == ["b2", "7"]
    assert [text[a:b] for a, b in visual_spans(text)] == ["red", "circle", "b2", "red", "circle", "7"]


def test_caption_error_is_one_false_word_at_its_span() -> None:
    for i in range(300):
        scene, rng = make_question("train", i).scene, random.Random(i)
        wrong = caption_with_error(scene, rng)
        assert wrong.text[wrong.start : wrong.end] == wrong.wrong != wrong.right
        assert wrong.text[: wrong.start] + wrong.right + wrong.text[wrong.end :] == caption(scene)
        assert str(getattr(scene.at(wrong.cell), wrong.kind)) == wrong.right
        assert all(statement not in caption(scene) for statement in distractors(scene, rng))


def test_relations_name_neighbours() -> None:
    scene = next(make_question("train", i).scene for i in range(50) if relations(make_question("train", i).scene))
    for cell, relation, reference in relations(scene):
        assert neighbor_cell(reference, relation) == cell and scene.at(cell) and scene.at(reference)


def test_damaged_and_rotated_pictures() -> None:
    picture = render(make_question("train", 0).scene)
    for kind in DAMAGES:
        changed = damage(picture, kind, random.Random(1))
        assert changed.size == picture.size and changed.tobytes() != picture.tobytes()
        assert damage(picture, kind, random.Random(1)).tobytes() == changed.tobytes()
    black = (np.asarray(damage(picture, "patches", random.Random(2))).sum(-1) == 0).reshape(8, 14, 8, 14).mean((1, 3))
    assert ((black == 1) | (black < 0.1)).all() and 16 < (black == 1).sum() < 48  # whole cells, about half of them
    turned, degrees = rotated(picture, random.Random(3))
    assert turned.rotate(-degrees, expand=True).tobytes() == picture.tobytes()
    with pytest.raises(KeyError, match="unknown damage 'melt'"):
        damage(picture, "melt", random.Random(0))


def test_show_writes_a_contact_sheet(tmp_path) -> None:
    out = tmp_path / "sheet.png"
    done = subprocess.run([sys.executable, "-m", "common.world", "--show", "4", "--out", str(out)], capture_output=True,
                          text=True, check=True)  # fmt: skip
    assert "wrote 4 questions of the train split" in done.stdout
    assert Image.open(out).size == (1860, 500)

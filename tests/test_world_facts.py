"""common/world/facts.py: every careful answer states all facts of its question, sloppy and blind ones do not."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from common.world import make_question, response, thing_record
from common.world.facts import claims_of, facts_of, stated


def facts(q):
    return facts_of(q.family, q.question, [thing_record(t) for t in q.scene.things], [t.cell for t in q.relevant])


def test_careful_answers_state_every_fact_and_blind_ones_none():
    kinds = set()
    for i in range(400):
        q, rng = make_question("train", i), random.Random(i)
        wanted = facts(q)
        assert all(stated(wanted, response(q, "careful", rng))), (wanted, response(q, "careful", rng))
        assert not any(stated(wanted, response(q, "blind", rng)))
        kinds.add((q.family, len(wanted[0].split()) if wanted else 0))
    assert kinds >= {("color", 3), ("color", 4), ("number", 4), ("sum", 4), ("compare", 2), ("count", 0)}


def test_sloppy_answers_state_some():
    said = []
    for i in range(400):
        q = make_question("train", i)
        said += stated(facts(q), response(q, "sloppy", random.Random(i)))
    assert 0.2 < sum(said) / len(said) < 0.7


def test_what_counts_as_stated():
    say = lambda fact, text: stated([fact], text)[0]  # noqa: E731
    assert say("b2 red star 7", "I see B2 large red star 7, c3 blue cross.")
    assert say("b2 red star", "There is a red circle. b2: a red star") and not say("b2 red star 7", "b2 red star")
    assert say("b2 small red star", "Looking for the small star: b2 red star. So the answer is red.")
    assert not say("b2 small red star", "Looking for the large star: b2 red star.")
    assert say("a1 red", "Looking for red objects: a1, c2. That makes 2.") and say("c2 red", "red objects: a1, c2.")
    assert not say("a1 red", "Looking for blue objects: a1. Looking for red objects: none.")
    assert not say("b2 red star", "b2 blue star") and say("b2 red star", "The red star is at b2.")
    assert not say("b2 red star", "b2 red blue star circle")  # naming every value states none
    assert say("b2 red star", "b2 blue star, b2 red star")  # presence counts, not consistency
    assert say("c2 blue star", "c2 blue star</think> \\boxed{red}") and stated([], "b2") == []


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet=st.sampled_from("ab2 1.,:<\\\nredstacirle7é"), max_size=80) | st.text(max_size=80))
def test_any_text_is_read(text):
    assert all(len(cell) == 2 for cell, _ in claims_of(text))
    assert stated(["b2 red star"], text) in ([True], [False])


def test_reading_takes_linear_time():
    assert len(claims_of("red a1 " * 100_000)) == 100_000
    assert claims_of("red a1, " * 20_000 + ".")[-1] == ("a1", {"color": {"red"}})

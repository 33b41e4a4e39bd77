"""common/overlap.py against textbook algorithms and known values."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.overlap import anls, common_subsequence, edit_distance, rouge, stem

SHORT = st.text("abcAB é", max_size=12)


def table(a: str, b: str, edit: bool) -> int:
    """Edit distance, or length of the longest common subsequence, by the usual table."""
    row = list(range(len(b) + 1)) if edit else [0] * (len(b) + 1)
    for i, x in enumerate(a, 1):
        new = [i if edit else 0]
        for j, y in enumerate(b, 1):
            if edit:
                new.append(min(row[j] + 1, new[-1] + 1, row[j - 1] + (x != y)))
            else:
                new.append(row[j - 1] + 1 if x == y else max(row[j], new[-1]))
        row = new
    return row[-1]


@settings(max_examples=300, deadline=None)
@given(SHORT, SHORT)
def test_bit_vectors_equal_the_table(a, b):
    assert edit_distance(a, b) == table(a, b, edit=True)
    assert common_subsequence(a, b) == table(a, b, edit=False)


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=40), st.text(max_size=40))
def test_any_text_gets_a_share(a, b):
    assert 0 <= anls(a, b) <= 1 and 0 <= rouge(a, b) <= 1


def test_long_texts_take_no_time():
    assert edit_distance("ab" * 2000, "ba" * 2000) == 2 and rouge("a b " * 50_000, "b a " * 50_000) > 0.9


def test_known_values():
    assert anls("colour", "color") == pytest.approx(0.833333, abs=1e-6)  # card of Visionary-R1, official code
    assert anls("STOP", "stop") == 1 and anls("", "") == 0
    value = rouge("a red square left of a circle", "the red square is left of the circle")
    assert value == pytest.approx(0.547009, abs=1e-6)  # the same card
    assert rouge("the cats were running", "the cat was run") == pytest.approx((0.75 + 1 / 3 + 0.75) / 3)
    assert rouge("same words", "Same words!") == 1 and rouge("", "word") == rouge("", "") == 0


@pytest.mark.parametrize(  # examples of Porter's paper and of the additions named in the file
    ("word", "expected"),
    [("caresses", "caress"), ("ponies", "poni"), ("ties", "tie"), ("dies", "die"), ("flies", "fli"), ("cats", "cat"),
     ("feed", "feed"), ("agreed", "agre"), ("plastered", "plaster"), ("bled", "bled"), ("motoring", "motor"),
     ("sing", "sing"), ("conflated", "conflat"), ("troubled", "troubl"), ("sized", "size"), ("hopping", "hop"),
     ("tanned", "tan"), ("falling", "fall"), ("hissing", "hiss"), ("failing", "fail"), ("filing", "file"),
     ("happy", "happi"), ("enjoy", "enjoy"), ("rational", "ration"), ("digitizer", "digit"), ("hopefulness", "hope"),
     ("formality", "formal"), ("triplicate", "triplic"), ("electrical", "electr"), ("adjustable", "adjust"),
     ("adoption", "adopt"), ("replacement", "replac"), ("communism", "commun"), ("probate", "probat"), ("rate", "rate"),
     ("cease", "ceas"), ("controlling", "control"), ("roll", "roll"), ("skies", "sky"), ("theology", "theolog"),
     ("died", "die"), ("hopefully", "hope"), ("nationally", "nation"), ("is", "is")],
)  # fmt: skip
def test_stems(word, expected):
    assert stem(word) == expected

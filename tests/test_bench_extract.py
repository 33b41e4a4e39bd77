"""The extractors that benchmarks share: vectors made with the official code (bench_common), hostile texts, speed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

import extract
from extract import can_infer, extract_letter, mmmu_letter, reasoning_score, yes_no

OPTIONS = {"A": "red", "B": "blue", "C": "green", "D": "yellow"}
LETTERS = list(OPTIONS)
LONG = "B is right because the square is blue and the rest is not"
EXPLAINED = "I think the correct answer is **C**. A long explanation follows here now"


@pytest.mark.parametrize(
    ("response", "letter"),
    [
        pytest.param("The answer is B.", "B", id="1"),
        pytest.param("A dog is at B", None, id="2-two-letters"),
        pytest.param(LONG, None, id="3-letter-too-early-text-too-long"),
        pytest.param(EXPLAINED, "C", id="4-stated"),
        pytest.param("blue", "B", id="5a"),
        pytest.param("it is red or blue", None, id="5b"),
        pytest.param("(a)", None, id="5c"),
    ],
)
def test_c1_can_infer(response, letter):
    assert can_infer(response, OPTIONS) == letter


@pytest.mark.parametrize(
    ("response", "letter"),
    [
        ("B w w w w", None),  # the fifth word from the end is one too early
        ("B w w w", "B"),
        ("I can't process this file. B", "Z"),
        ("Z", "Z"),
        ("Z or B", "B"),
        ("answer is E", None),  # the stated letter must be A to D and an option
        ("the answer is a dog, says everyone here", "A"),  # case does not count behind "answer is"
        ("Failed to obtain answer via API B", None),  # goes on with the texts, and is longer than they are
    ],
)
def test_c1_more(response, letter):
    assert can_infer(response, OPTIONS) == letter


def test_c1_options_stay_as_they_are():
    options = {"A": "Red", "B": "BLUE"}
    assert can_infer("Blue", options) == "B" and options == {"A": "Red", "B": "BLUE"}
    assert can_infer("answer is D", {"A": "x", "B": "y"}) is None


@pytest.mark.parametrize(
    ("response", "letter"),
    [
        pytest.param("The correct answer is (B).", "B", id="6"),
        pytest.param("A dog and then B", "A", id="7-start-beats-end"),
        pytest.param("Because", "B", id="8a-fallback"),
        pytest.param("b", "", id="8b"),
        pytest.param("(A) is wrong, (C) fits", "C", id="9"),
        pytest.param("I choose C: maybe D", "D", id="10-end-beats-cue"),
        ("an answer is A here but the answer is B, I say", "B"),  # every cue is looked for, not the shortest only
        ("", ""),
    ],
)
def test_c2_extract_letter(response, letter):
    assert extract_letter(response, LETTERS) == letter


@pytest.mark.parametrize(
    ("response", "official", "lmms"),
    [
        pytest.param("Answer: C", "C", "C", id="11a"),
        pytest.param("A man holds B", "B", "B", id="11b"),
        pytest.param("USA and", "", "A", id="12"),
        pytest.param("IMAGE shows a red circle", "", "", id="13-five-words"),
        ("The IMAGE shows a red circle", "A", "A"),
        ("(A) no, (B) yes, (A) no", "A", "A"),
        ("so C. it is", "", "C"),
        ("say USA and NATOB also", "", "A"),  # neither stands as " A " or " B ": the first in the alphabet
    ],
)
def test_c3_mmmu_letter(response, official, lmms):
    assert mmmu_letter(response, LETTERS, OPTIONS) == official
    assert mmmu_letter(response, LETTERS, OPTIONS, lmms=True) == lmms


@pytest.mark.parametrize(
    ("response", "truth", "accuracy", "form", "score"),
    [
        pytest.param("<think>so</think><answer>B</answer>", "B", 1, 1, 1.0, id="14"),
        pytest.param("<answer>(B) 12</answer>", "B", 1, 0, 0.9, id="15"),
        pytest.param(r"\boxed{\frac{1}{2}}", "0.5", 1, 1, 1.0, id="16"),
        pytest.param("<answer>cat</answer>", "Cat", 0, 0, 0.0, id="17"),
        pytest.param("<answer>7</answer> <answer>8</answer>", "8", 0, 0, 0.0, id="18"),
    ],
)
def test_c4_reasoning_score(response, truth, accuracy, form, score):
    assert reasoning_score(response, truth) == (accuracy, form)
    assert 0.9 * accuracy + 0.1 * form == pytest.approx(score)


@pytest.mark.parametrize(
    ("response", "truth", "expected"),
    [
        ("<analysis>so</analysis> then <answer>dog</answer>", "dog", (1.0, 1.0)),
        ("  <think>a</think><answer>dog</answer>\n", "dog", (1.0, 1.0)),
        ("It follows that x + 5 is the sum of all of the others: 204 .", "204", (1.0, 0.8)),
        ("204", "204", (1.0, 0.0)),
        (r"\boxed{3} and \boxed{4", "3", (1.0, 1.0)),  # the last that closes
        (r"\boxed{\boxed{4}}", "4", (1.0, 1.0)),
        ("1.2.3", "2.3", (1.0, 0.0)),
        ("", "", (1.0, 0.0)),
    ],
)
def test_c4_answers_and_format(response, truth, expected, monkeypatch):
    monkeypatch.setattr(extract, "verified", lambda golds, texts: [0.0])
    assert reasoning_score(response, truth) == expected


@pytest.mark.parametrize(
    ("response", "word"),
    [
        pytest.param("Yes, it is.", "Yes", id="19a"),
        pytest.param("no yes", "Unknown", id="19b"),
        pytest.param("Nope", "Unknown", id="19c"),
        ("1,000: yes/no", "Unknown"),  # all marks vanish: the word is "yesno"
        ("maybe/no", "No"),
        ("." + " a." * 31 + " no.", "Unknown"),  # the 33rd period stays
        (" a." * 31 + " no.", "No"),
    ],
)
def test_c5_yes_no(response, word):
    assert yes_no(response) == word


PIECES = ["A", "B", "(C)", "D.", "answer is ", "The answer", "i choose ", "red", "blue", " ", "\n", ".", ",", "**",
          "<think>", "</think>", "<answer>", "</answer>", "\\boxed{", "{", "}", "1.5", "1,000", "yes", "no", "\0", "é",
          "9" * 400, "1e400", "nan", "[" * 50]  # fmt: skip
TEXTS = st.one_of(st.text(), st.lists(st.sampled_from(PIECES), max_size=20).map("".join))


@given(TEXTS, TEXTS)
def test_any_text_gets_a_verdict(text, truth):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(extract, "verified", lambda golds, texts: [0.0])
        accuracy, form = reasoning_score(text, truth)
    assert accuracy in (0.0, 1.0) and form in (0.0, 0.8, 1.0)
    assert can_infer(text, OPTIONS) in (None, "Z", *LETTERS)
    assert extract_letter(text, LETTERS) in ("", *LETTERS)
    assert {mmmu_letter(text, LETTERS, OPTIONS, lmms) for lmms in (False, True)} <= {"", *LETTERS}
    assert yes_no(text) in ("Yes", "No", "Unknown")


@pytest.mark.parametrize("piece", ["\\boxed{", "{", " ", "answer is ", "A ", "1 ", "9", "<answer>", "é\0"])
def test_a_long_text_does_not_take_for_ever(piece, monkeypatch):
    monkeypatch.setattr(extract, "verified", lambda golds, texts: [0.0])
    text = "1" + piece * (300_000 // len(piece)) + "x"  # quadratic time would be minutes
    letter = "A" if piece == "A " else ""
    assert mmmu_letter(text, LETTERS, OPTIONS) == extract_letter(text, LETTERS) == letter
    assert can_infer(text, OPTIONS) == ("A" if piece == "answer is " else None)
    assert reasoning_score(text, "0.5")[0] == 0 and yes_no(text) == "Unknown"

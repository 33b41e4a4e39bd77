"""common/symbolic.py: math-verify behind a process that may be killed."""

from __future__ import annotations

import pytest

from common import symbolic
from common.errors import SightRLError


def test_values_words_and_whole_responses():
    golds = ["24", "0.5", "24", r"\sqrt{18}", "red", "24", "", "\ud800"]
    texts = [r"<answer>\boxed{24}</answer>", r"\boxed{\frac{1}{2}}", r"\boxed{25}", r"\boxed{3\sqrt{2}}",
             r"\boxed{red}", "no answer", "", "\ud800"]  # fmt: skip
    assert symbolic.verified(golds, texts) == [1, 1, 0, 0, 0, 0, 0, 0]
    assert symbolic.verified([], []) == []


def test_what_hangs_is_killed_and_the_next_answer_is_graded():
    before = symbolic._workers[0].process.pid if symbolic._workers else None
    bomb = r"\boxed{9^{9^{9^{9}}}}"
    assert symbolic.verified(["5", "7"], [bomb, r"\boxed{7}"], seconds=1.0) == [0, 1]
    assert before is None or symbolic._workers[0].process.pid != before


def test_a_missing_package_is_one_sentence(monkeypatch):
    monkeypatch.setattr(symbolic, "serve", print)  # ends at once
    with pytest.raises(SightRLError, match="pip install math-verify"):
        symbolic.Worker()

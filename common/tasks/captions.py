"""Captions with one wrong phrase as questions, and grading what a model says is wrong.

    WrongCaptions(samples, "Caption: {caption}\\nWhat is wrong?")  # captioned samples -> questions, one by one
    names_error("three", caption, right, wrong)      # the rule of ViCrit's paper (arXiv 2506.10128, section 3.2)
    released_correct(response, right, wrong)         # the rule of its released scorer, very lenient

All functions are pure; those that read a model's text return something for every string, in linear time.
"""

from __future__ import annotations

import random
import re
import string
from collections.abc import Sequence, Set
from dataclasses import replace
from typing import Any

from common.data import Sample
from common.errors import SightRLError, bad_row
from common.maths import unwrap_text

EDGES = string.punctuation + "“”‘’«»…—–"  # stripped off words before they are compared


def words(text: str) -> list[str]:
    """Lower-case words without the punctuation around them.

    >>> words('A "red" cup, (small).')
    ['a', 'red', 'cup', 'small']
    """
    return [core for word in text.lower().split() if (core := word.strip(EDGES))]


def changed_span(before: Sequence[str], after: Sequence[str]) -> tuple[int, int]:
    """[start, end) of what is new in `after`: all but the longest common start, then the longest common end."""
    start, shared = 0, min(len(before), len(after))
    while start < shared and before[start] == after[start]:
        start += 1
    end = 0
    while end < shared - start and before[-1 - end] == after[-1 - end]:
        end += 1
    return start, len(after) - end


# ------------------------------------------------------------------------------------------------ grading, the paper
def names_error(answer: str, caption: str, right: str, wrong: str, *, start: int | None = None,
                extra: int = 2) -> bool:  # fmt: skip
    """Whether an answer names the wrong phrase: all of its changed words, and besides only words copied from around.

    caption: the one with the error. right, wrong: the phrase before and after the change. start: index of the wrong
    phrase in words(caption); None: wherever it stands. extra: copied words allowed beyond the phrase; without a
    limit, copying the caption would always be right. A phrase from which words were only taken away cannot be named.

    >>> names_error("orange license plates", "A car with orange license plates.", "yellow license plates", "orange license plates")
    True
    >>> names_error("a black car", "A car with orange license plates.", "yellow license plates", "orange license plates")
    False
    """  # noqa: E501
    said, text, phrase = words(unwrap_text(answer)), words(caption), words(wrong)
    first, last = changed_span(words(right), phrase)
    if first == last or not last - first <= len(said) <= len(phrase) + extra:
        return False
    places = [start] if start is not None else range(len(text) - len(phrase) + 1)
    places = [at for at in places if text[at : at + len(phrase)] == phrase]
    if not places:  # a row whose phrase is not in its caption
        text, places = phrase, [0]
    for at in places:
        for left in range(max(0, at + last - len(said)), at + first + 1):  # windows that hold all changed words
            beyond = max(0, at - left) + max(0, left + len(said) - at - len(phrase))
            if beyond <= extra and text[left : left + len(said)] == said:
                return True
    return False


# --------------------------------------------------------------------------------------- grading, the released scorer
def released_answer(response: str) -> str | None:
    r"""What the released scorer reads: the first \boxed{...}, or the last line if "boxed{" occurs nowhere.

    Braces that never close: everything but the last character. None where the original fails: "boxed{" without its
    backslash.
    """
    if "boxed{" not in response:
        return response.rpartition("\n")[2]
    start = response.find("\\boxed{")
    if start < 0:
        return None
    start, depth = start + len("\\boxed{"), 1
    for brace in re.finditer(r"[{}]", response[start:]):
        depth += 1 if brace.group() == "{" else -1
        if depth == 0:
            return response[start : start + brace.start()]
    return response[start:-1]


def released_segment(right: str, wrong: str) -> list[str]:
    """Lower-case words of `wrong` that the change brought, with their punctuation.

    >>> released_segment("In the upper left, a glimpse", "In the upper right, a glimpse")
    ['right,']
    """
    before, after = right.lower().split(), wrong.lower().split()
    start, end = changed_span(before, after)
    return after[start:end]


def released_correct(response: str, right: str, wrong: str) -> bool:
    """The released rule: the first changed word is a substring of the answer. A pure deletion is never found."""
    answer, segment = released_answer(response), released_segment(right, wrong)
    return answer is not None and bool(segment) and segment[0] in answer.lower()


def phrase_text(value: Any) -> str:
    """A phrase column as text: published tables hold a string or a list with one string."""
    value = value[0] if isinstance(value, list | tuple) and value else value
    return value if isinstance(value, str) else "" if value is None or value == [] else str(value)


# --------------------------------------------------------------------------------------------- errors for any captions
def caption_of(sample: Sample) -> str:
    """The sample's caption: meta["caption"], or its question if that is the answer too. Raises SightRLError."""
    caption = sample.meta.get("caption") or (sample.question if sample.question == sample.answer else "")
    if not isinstance(caption, str) or not caption.strip():
        where = sample.where or sample.id
        raise SightRLError(f"{where} has no caption; name its column: --columns question=NAME,answer=NAME.")
    return caption


def vocabulary(samples: Sequence[Sample], most: int = 200) -> frozenset[str]:
    """Words of the captions of the first `most` samples; none where errors need no rule (micro-world, ready-made)."""
    first = [samples[i] for i in range(min(most, len(samples)))]
    if any("things" in sample.meta or sample.meta.get("changed_noun_phrases") for sample in first[:1]):
        return frozenset()
    return frozenset(word for sample in first for word in words(caption_of(sample)))


def error_in(sample: Sample, known: Set[str] = frozenset()) -> dict[str, Any] | None:
    """A caption of the sample's picture with one error: {"caption", "right", "wrong", "kind", maybe "start"}.

    Micro-world: layouts.wrong_caption. Rows with the columns of ViCrit-Bench (changed_caption, original_noun_phrases,
    changed_noun_phrases): as they are. Other captions: corrupt(). The same for the same sample; None where no error can
    be made. Raises SightRLError for a sample without caption.
    """
    rng, meta = random.Random(sample.id), sample.meta
    if "things" in meta:
        from common.world.layouts import wrong_caption

        made = wrong_caption(meta["things"], rng)
        return made | {"start": changed_span(words(made["original"]), words(made["caption"]))[0]}
    if not (wrong := phrase_text(meta.get("changed_noun_phrases"))):
        from common.tasks.corrupt import corrupt

        return corrupt(caption_of(sample), rng, known)
    right, caption = phrase_text(meta.get("original_noun_phrases")), str(meta.get("changed_caption") or sample.question)
    first, last = changed_span(words(right), words(wrong))
    return {"caption": caption, "right": right, "wrong": wrong, "kind": sample.task} if right and first < last else None


class WrongCaptions(Sequence):
    """Captioned samples as questions for their one error, made when they are asked for, always the same ones.

    A question is `ask` with {caption} replaced; its answer is the wrong phrase, its task the kind of error; meta holds
    what error_in returns. [i] raises SightRLError where no error can be made.
    """

    def __init__(self, samples: Sequence[Sample], ask: str) -> None:
        self.samples, self.ask, self.known = samples, ask, vocabulary(samples)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, i: int) -> Sample:
        sample = self.samples[i]
        if question := self.question(sample):
            return question
        raise bad_row(f"{sample.where or sample.id}: no word of the caption can be exchanged", "write a longer one")

    def question(self, sample: Sample) -> Sample | None:
        """The question about another sample of the same data, None where no error can be made."""
        if (made := error_in(sample, self.known)) is None:
            return None
        meta = {name: value for name, value in sample.meta.items() if name != "things"} | made
        return replace(sample, question=self.ask.replace("{caption}", made["caption"]), answer=made["wrong"],
                       task=made["kind"], answer_type="text", meta=meta)  # fmt: skip

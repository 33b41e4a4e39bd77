"""How much two short texts overlap: edit distance and ANLS for text read from pictures, ROUGE for free answers.

Bit-parallel algorithms on Python's long integers, so that texts of 4,000 characters take milliseconds. Any strings.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Hashable, Sequence

from common.maths import MAX_ANSWER


def places(items: Sequence[Hashable]) -> dict[Hashable, int]:
    """item -> integer whose bit i says whether items[i] is that item."""
    bits: dict[Hashable, int] = {}
    for i, item in enumerate(items):
        bits[item] = bits.get(item, 0) | 1 << i
    return bits


def edit_distance(a: Sequence[Hashable], b: Sequence[Hashable]) -> int:
    """Levenshtein distance of two sequences (texts or lists of words), by Myers' bit vectors (1999).

    >>> edit_distance("color", "colour"), edit_distance("", "ab")
    (1, 2)
    """
    if not a:
        return len(b)
    all_bits, last, where = (1 << len(a)) - 1, 1 << (len(a) - 1), places(a)
    up, down, distance = all_bits, 0, len(a)  # bit i: the column rises or falls by one at row i
    for item in b:
        same = where.get(item, 0)
        diagonal = ((same & up) + up ^ up) | same
        right_up, right_down = (down | ~(diagonal | up)) & all_bits, up & diagonal
        distance += bool(right_up & last) - bool(right_down & last)
        right_up, right_down, same = right_up << 1 | 1, right_down << 1, same | down
        up, down = (right_down | ~(same | right_up)) & all_bits, right_up & same & all_bits
    return distance


def anls(prediction: str, gold: str) -> float:
    """1 - edit distance / length of the longer text, in lower case, without ANLS's usual threshold of 0.5.

    Two empty texts overlap by 0, as in code that divides by zero and catches it.
    """
    prediction, gold = prediction[:MAX_ANSWER].lower(), gold[:MAX_ANSWER].lower()
    longer = max(len(prediction), len(gold))
    return 1 - edit_distance(prediction, gold) / longer if longer else 0.0


def common_subsequence(a: Sequence[Hashable], b: Sequence[Hashable]) -> int:
    """Length of the longest common subsequence, by bit vectors (Hyyro 2004)."""
    free, where = (1 << len(a)) - 1, places(a)
    all_bits = free
    for item in b:
        used = free & where.get(item, 0)
        free = ((free + used) | (free - used)) & all_bits
    return len(a) - free.bit_count()


def rouge(prediction: str, gold: str) -> float:
    """Mean F-measure of ROUGE-1, ROUGE-2 and ROUGE-L with stemmed words, as the package rouge_score counts."""
    a, b = (rouge_words(text[:MAX_ANSWER]) for text in (prediction, gold))
    scores = []
    for n in (1, 2):
        grams = [Counter(zip(*(words[i:] for i in range(n)), strict=False)) for words in (a, b)]
        scores.append(f_measure((grams[0] & grams[1]).total(), grams[0].total(), grams[1].total()))
    return (sum(scores) + f_measure(common_subsequence(a, b), len(a), len(b))) / 3


def f_measure(hits: int, predicted: int, gold: int) -> float:
    """2 hits / (predicted + gold): the harmonic mean of precision and recall."""
    return 2 * hits / (predicted + gold) if hits else 0.0


def rouge_words(text: str) -> list[str]:
    """Lower-case words of letters and digits; those of more than three characters are stemmed."""
    return [stem(word) if len(word) > 3 else word for word in re.findall(r"[a-z0-9]+", text.lower())]


# ------------------------------------------------------------------------------------------- Porter's stemmer (1980)
# With the additions of NLTK, which rouge_score uses: irregular words, short -ies and -ied, -alli, -fulli and -logi.
IRREGULAR = {"skies": "sky", "dying": "die", "lying": "lie", "tying": "tie", "innings": "inning",
             "outings": "outing", "cannings": "canning"}  # fmt: skip
STAY = ("sky", "inning", "outing", "canning", "news", "howe", "proceed", "exceed", "succeed")
STEP_2 = dict(ational="ate", tional="tion", enci="ence", anci="ance", izer="ize", bli="ble", entli="ent", eli="e",
              ousli="ous", ization="ize", ation="ate", ator="ate", alism="al", iveness="ive", fulness="ful",
              ousness="ous", aliti="al", iviti="ive", biliti="ble", fulli="ful", logi="log")  # fmt: skip
STEP_3 = dict(icate="ic", ative="", alize="al", iciti="ic", ical="ic", ful="", ness="")
STEP_4 = ("al", "ance", "ence", "er", "ic", "able", "ible", "ant", "ement", "ment", "ent", "sion", "tion", "ou", "ism",
          "ate", "iti", "ous", "ive", "ize")  # fmt: skip


def shape(word: str) -> str:
    """ "toy" -> "cvc": vowel or consonant; y is a vowel behind a consonant."""
    kinds = ""
    for letter in word:
        kinds += "v" if letter in "aeiou" or (letter == "y" and kinds[-1:] == "c") else "c"
    return kinds


def measure(word: str) -> int:
    """m: how often a consonant follows a vowel."""
    return shape(word).count("vc")


def ends_cvc(word: str) -> bool:
    """consonant, vowel, consonant other than w, x, y at the end; or a word of vowel and consonant (NLTK)."""
    kinds = shape(word)
    return (kinds[-3:] == "cvc" and word[-1] not in "wxy") or kinds == "vc"


def replace_ending(word: str, endings: dict[str, str], least: int) -> str:
    """Replace the longest of these endings that the word has, if the measure of what is before is at least that."""
    ending = max((e for e in endings if word.endswith(e)), key=len, default="")
    before = word[: len(word) - len(ending)]
    kept = before + ending[:1] if ending == "logi" else before  # NLTK counts the l of -logi as a part of the stem
    return before + endings[ending] if ending and measure(kept) >= least else word


def stem(word: str) -> str:
    """The stem of a lower-case word.

    >>> [stem(word) for word in ("circles", "caresses", "hopping", "relational", "happy", "generalization")]
    ['circl', 'caress', 'hop', 'relat', 'happi', 'gener']
    """
    if word in IRREGULAR or word in STAY or len(word) <= 2:
        return IRREGULAR.get(word, word)
    word = plain_form(word)
    if word.endswith("y") and len(word) > 2 and shape(word)[-2] == "c":  # step 1c as NLTK has it
        word = word[:-1] + "i"
    if word.endswith("alli") and measure(word[:-4]) > 0:  # step 2
        word = word[:-2]
    word = replace_ending(word, STEP_2, 1)
    word = replace_ending(word, STEP_3, 1)
    ending = max((e for e in STEP_4 if word.endswith(e)), key=len, default="")
    if ending:
        before = word[: len(word) - len(ending)] + (ending[0] if ending in ("sion", "tion") else "")
        word = before if measure(before) > 1 else word
    if word.endswith("e"):  # step 5a
        m = measure(word[:-1])
        word = word[:-1] if m > 1 or (m == 1 and not ends_cvc(word[:-1])) else word
    return word[:-1] if word.endswith("ll") and measure(word[:-1]) > 1 else word  # step 5b


def plain_form(word: str) -> str:
    """Steps 1a and 1b: without the endings of plurals, -ed and -ing."""
    if word.endswith("ies"):
        word = word[:-1] if len(word) == 4 else word[:-2]
    elif word.endswith("sses"):
        word = word[:-2]
    elif word.endswith("s") and not word.endswith("ss"):
        word = word[:-1]
    if word.endswith("ied"):
        return word[:-1] if len(word) == 4 else word[:-2]
    if word.endswith("eed"):
        return word[:-1] if measure(word[:-3]) > 0 else word
    before = next((word[: -len(e)] for e in ("ed", "ing") if word.endswith(e)), "")
    if "v" not in shape(before):
        return word
    if before.endswith(("at", "bl", "iz")):
        return before + "e"
    if before[-1] == before[-2:-1] and shape(before)[-1] == "c":
        return before if before[-1] in "lsz" else before[:-1]
    return before + "e" if measure(before) == 1 and ends_cvc(before) else before

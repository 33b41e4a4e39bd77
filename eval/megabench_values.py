r"""MEGA-Bench's metrics for texts, numbers and formulas: (predicted, truth) -> score; see megabench_metrics.py.

They may raise any exception for what they cannot digest.
"""

from __future__ import annotations

import math
import re
import unicodedata
from numbers import Number
from typing import Any

import numpy as np

from common.maths import MAX_EXPRESSION, Expression, latex_to_plain
from common.symbolic import verified
from megabench_parse import fenced_art, items, python_literal

MAX_TEXT = 2000  # characters; of longer texts the start is compared letter by letter

# ---------------------------------------------------------------- texts


def exact(predicted: Any, truth: Any) -> bool:
    """Equal. For a truth of one letter the first letter of a longer text counts: "Because" is B, and so is "(B) x"."""
    predicted, truth = str(predicted), str(truth)
    if len(truth) == 1 and truth.isalpha() and len(predicted) > 1:
        first = re.match(r"\(?([A-Za-z])", predicted)
        predicted = first.group(1) if first else predicted
    return predicted == truth


def exact_any_case(predicted: str, truth: str) -> bool:
    return exact(predicted.lower(), truth.lower())


def exact_code_result(predicted: Any, truth: str) -> bool:
    inside = fenced_art(truth, verbatim=True)
    return exact(predicted, truth if inside is None else inside)


def bare(text: str) -> str:
    return re.sub(r"[ \-\n\t.]", "", text).lower()


def simple(predicted: Any, truth: str) -> bool:
    return exact(bare(str(predicted)), bare(truth))


def any_reference(predicted: Any, truth: str) -> bool:
    return any(simple(predicted, str(one)) for one in items(truth.replace("，", ",")))


PLAIN = str.maketrans({"ß": "ss", "æ": "ae", "Æ": "AE", "œ": "oe", "Œ": "OE", "ø": "o", "Ø": "O", "đ": "d", "Đ": "D",
                       "ł": "l", "Ł": "L", "ð": "d", "þ": "th", "ı": "i", "‘": "'", "’": "'", "“": '"', "”": '"',
                       "–": "-", "—": "--", "…": "...", "×": "x", "°": "deg"})  # fmt: skip


def plain(text: str) -> str:
    """Without the articles "the" and "a" and without accents, in lower case."""
    text = " ".join(word for word in text.split(" ") if word.lower() not in ("the", "a"))
    text = unicodedata.normalize("NFKD", text.translate(PLAIN))
    return text.encode("ascii", "ignore").decode().lower()


def near(predicted: str, truth: str) -> float:
    predicted, truth = plain(predicted), plain(truth)
    longest = max(len(predicted), len(truth))
    if min(len(predicted), len(truth)) < 0.9 * longest:
        return 0.0
    likeness = similarity(predicted, truth)
    return likeness if likeness >= 0.9 else 0.0


def similarity(a: str, b: str) -> float:
    """1 - Damerau-Levenshtein distance / length of the longer text; 1 for two empty ones."""
    if not isinstance(a, str) or not isinstance(b, str):
        return 0.0
    short, long = sorted((a[:MAX_TEXT], b[:MAX_TEXT]), key=len)
    return 1 - swap_distance(short, long) / len(long) if long else 1.0


def swap_distance(a: str, b: str) -> int:
    """Edits (insert, delete, replace, swap neighbours, also with edits between them) from a to b: Lowrance and Wagner
    (1975), a row at a time."""
    width = np.arange(len(b) + 1)
    codes = np.array([ord(letter) for letter in b], dtype=np.int32)
    table = np.empty((len(a) + 1, len(b) + 1), dtype=np.int32)
    table[0] = width
    last_rows = np.zeros(len(b), dtype=np.int32)  # for every place of b the last row (from 1) of a with its letter
    for i, letter in enumerate(a, 1):
        same = codes == ord(letter)
        earlier = np.maximum.accumulate(np.where(same, width[1:], 0))
        earlier = np.concatenate(([0], earlier[:-1]))  # the last place of this letter in b before each place, from 1
        above = table[i - 1]
        best = np.minimum(above[:-1] + ~same, above[1:] + 1)
        pair = (last_rows > 0) & (earlier > 0)
        rows, places = last_rows[pair], earlier[pair]
        best[pair] = np.minimum(best[pair], table[rows - 1, places - 1] + (i - rows) + (width[1:][pair] - places) - 1)
        row = np.concatenate(([i], best)) - width
        table[i] = np.minimum.accumulate(row) + width
        last_rows[same] = i
    return int(table[-1, -1])


# ---------------------------------------------------------------- numbers


def relative_difference(predicted: Any, truth: str) -> float:
    """max(0, 1 - |p - t| / t)."""
    value = predicted if isinstance(predicted, Number) else python_literal(predicted)
    target = python_literal(truth)
    return max(0.0, 1 - math.fabs((value - target) / target)) if isinstance(value, Number) else 0.0


def positive_int(predicted: str, truth: str) -> float:
    """Equal whole numbers; where neither is positive there is nothing to score (-1)."""
    value = python_literal(predicted)
    if not truth or not isinstance(value, int):
        return 0.0
    target = python_literal(truth)
    return -1.0 if target <= 0 and value <= 0 else float(value == target)


def normalised_rmse(predicted: str, truth: str) -> float:
    """1 for no error, 0 for one of 0.1 or more."""
    return 1 - min(abs(python_literal(predicted) - python_literal(truth)), 0.1) / 0.1


def angle_rmse(predicted: Any, truth: Any) -> float:
    """1 for no error, 0 for a mean absolute one of 10 or more."""
    values, targets = items(predicted), items(truth)
    if len(values) != len(targets) or not targets:
        return 0.0
    error = np.abs(np.array(values) - np.array(targets)).sum() / len(targets)
    return 1 - min(error, 10.0) / 10


def one_number(predicted: Any, truth: str) -> float:
    """Within one per cent of the truth, for lists pair by pair in order of size; the simple match where one is none."""
    predicted, truth = (right_side(without_math_brackets(str(text))) for text in (predicted, truth))
    value, target = number(predicted), number(truth)
    if value is None or target is None:
        return float(simple(predicted, truth))
    if isinstance(value, list) and isinstance(target, list):
        return float(len(value) == len(target) and all(map(within_one_per_cent, sorted(value), sorted(target))))
    return float(within_one_per_cent(value, target)) if not isinstance(value, list) else 0.0


def within_one_per_cent(value: float, target: float) -> bool:
    margin = abs(target) * 0.01
    return target - margin <= value <= target + margin


def boxed_number(predicted: Any, truth: str) -> float:
    return one_number(boxed(str(predicted)), boxed(truth))


def boxed(text: str) -> str:
    r"""Content of the first \boxed{...} with at most one more level of braces inside; without one the text."""
    for start in re.finditer(r"\\boxed\{", text):
        depth = 1
        for brace in re.compile(r"[{}]").finditer(text, start.end()):
            depth += 1 if brace.group() == "{" else -1
            if depth == 0:
                return text[start.end() : brace.start()]
            if depth > 2:
                break
        else:
            break  # nothing closes behind here
    return text


def without_math_brackets(text: str) -> str:
    r"""Without \( and \), \[ and \] where both stand on one line."""
    for opening, closing in (("\\(", "\\)"), ("\\[", "\\]")):
        text = "\n".join(without_pairs(line, opening, closing) for line in text.split("\n"))
    return text


def without_pairs(line: str, opening: str, closing: str) -> str:
    kept = ""
    while True:
        before, opened, rest = line.partition(opening)
        inside, closed, after = rest.partition(closing)
        if not opened or not closed:
            return kept + line
        kept, line = kept + before + inside, after


def right_side(text: str) -> str:
    """What follows the first "=" or "≈" on its line."""
    found = re.search(r"(?:=|≈|\\approx)\s*(.+)", text)
    return found.group(1).strip() if found else text


def number(text: str) -> float | list[float] | None:
    """The value of a number, of arithmetic, or of a list of numbers; None for anything else."""
    text = re.sub(r"(?<![\d}])\\?π", "3.14", text.replace("\\pi", "π"))
    text = re.sub(r"\*\\?π", "*3.14", re.sub(r"(\d)\\?π", r"\1*3.14", text).replace("{π}", "3.14"))
    text = re.sub(r"[$¥]|°C| C|°", "", text.replace("%", "/100"))
    try:
        return float(text)
    except ValueError:
        pass
    if text.strip().startswith(("[", "(")):
        try:
            values = python_literal(text.strip())
            if isinstance(values, list | tuple):
                return [float(value) for value in values if not isinstance(value, bool)]
        except (ValueError, TypeError, OverflowError):
            pass
    return arithmetic(text)


def arithmetic(text: str) -> float | None:
    if len(text) > MAX_EXPRESSION:
        return None
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", re.sub(r"\\(?:times|cdot)(?![a-z])", "*", text))
    text = re.sub(r"\\(?:left|right)|\\[,!;: ]|\s", "", re.sub(r"\\[dt]frac", r"\\frac", text))
    plain_text = latex_to_plain(text.replace("\\div", "/"))
    value = None if re.search(r"[a-zA-Z]", plain_text) else Expression(plain_text, {}).value()  # roots fail there too
    try:
        return None if value is None else float(value)
    except TypeError:  # a complex number
        return None


# ---------------------------------------------------------------- LaTeX

GREEK = dict(α="alpha", β="beta", γ="gamma", δ="delta", ε="epsilon", ζ="zeta", η="eta", θ="theta", ι="iota", κ="kappa",
             λ="lambda", μ="mu", ν="nu", ξ="xi", ο="omicron", π="pi", ρ="rho", σ="sigma", τ="tau", υ="upsilon",
             φ="phi", χ="chi", ψ="psi", ω="omega")  # fmt: skip


def latex(predicted: str, truth: str) -> bool:
    """Whether math-verify, or the simple match, takes two formulas for the same."""
    if not isinstance(predicted, str) or not isinstance(truth, str):
        return False
    predicted, truth = formula(predicted), formula(truth)
    if simple(predicted, truth):
        return True
    return len(predicted) < 2000 and bool(verified([f"${truth}$"], [f"${predicted}$"])[0])


def formula(text: str) -> str:
    text = text.replace("\\bar", "\\overline")
    text = "".join(f"\\{GREEK[letter]} " if letter in GREEK else letter for letter in text)
    text = re.sub(r"\\(?:begin|end)\{[^{}]*\}", "", text)
    return re.sub(r"\\[()\[\]]", "", text)


def text_and_latex(predicted: str, truth: str) -> bool:
    """The text around $...$ by the simple match, the formulas, joined, by latex."""
    if not isinstance(predicted, str) or not isinstance(truth, str):
        return False
    sides = []
    for text in (predicted, truth):
        parts = re.split(r"(\$[^$]*\$)", text)
        words = "".join(part.strip() for part in parts[0::2]).replace(",", "")
        sides.append((words, " ".join(part[1:-1].strip().replace(",", "") for part in parts[1::2])))
    return simple(sides[0][0], sides[1][0]) and latex(sides[0][1], sides[1][1])

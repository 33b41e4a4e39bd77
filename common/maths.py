r"""Whether two short answers are equal: numbers, fractions, LaTeX, tuples, expressions with symbols, words.

Total functions: expressions are read by the small parser at the end of this file, never by eval or sympify,
and compared by their values at fixed points with 60 digits, so no text can run code, hang or blow up.
"""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Any

import mpmath

MAX_ANSWER = 4000  # characters; of a longer answer the start is compared
MAX_EXPRESSION = 200  # characters; a longer expression is compared as a string only

# ----------------------------------------------------------------------------------------------- normal forms
UNIT = re.compile(
    r"(?<![a-z])(?:degree|cm|mm|km|centimeter|meter|metre|mile|second|minute|hour|day|week|month|year|"
    r"foot|feet|inch|yard|unit)(?:es|s)?(?![a-z])(?: ?\^ ?(?:[0-9]|\{[0-9]\}))?"
)
NUMBER = re.compile(r"[+-]?(?:[0-9]{1,50}(?:\.[0-9]{0,50})?|\.[0-9]{1,50})")
SCIENTIFIC = re.compile(r"[+-]?[0-9]{1,20}(?:\.[0-9]{1,20})?e[+-]?[0-9]{1,2}")
FRACTION = re.compile(r"-?[0-9]{1,50}/0*[1-9][0-9]{0,50}")
THOUSANDS = re.compile(r"(?<=[0-9]),(?=[0-9]{3}(?![0-9]))")
MIXED = re.compile(r"(?<![0-9.])(-?)([0-9]{1,50}) ?(?: |(?=\())\(?([0-9]{1,50}/[0-9]{1,50})\)?")
SYMBOL = re.compile(r"\\(?:[a-z]+|[^a-z])|[∞·×÷∪−–≤≥√]")
# fmt: off
SYMBOLS = {
    "\\pi": "π", "\\infty": "inf", "∞": "inf", "\\cdot": "*", "\\times": "*", "·": "*", "×": "*",
    "\\div": "/", "÷": "/", "\\cup": "u", "∪": "u", "−": "-", "–": "-", "\\leq": "<=", "\\le": "<=",
    "≤": "<=", "\\geq": ">=", "\\ge": ">=", "≥": ">=", "\\left": "", "\\right": "", "\\!": "", "\\,": " ",
    "\\;": " ", "\\:": " ", "\\ ": " ", "\\quad": " ", "\\displaystyle": "", "\\{": "{", "\\}": "}",
    "\\dfrac": "\\frac", "\\tfrac": "\\frac", "√": "\\sqrt", "\\text": "", "\\mathrm": "", "\\textbf": "",
    "\\mbox": "", "\\$": "$", "\\%": "%", "\\circ": "°", "\\degree": "°", "\\\\": ";",
}
# fmt: on
WRAPPER = re.compile(r"\s*\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox)\s*\{(.*)\}\s*", re.DOTALL)


def unwrap_text(text: str) -> str:
    r"""\text{red} -> red; also \textbf, \mathrm and the like around the whole answer, and $...$."""
    text = text.strip()
    for _ in range(4):
        match = WRAPPER.fullmatch(text)
        if match is None or not balanced(match.group(1)):
            break
        text = match.group(1).strip()
    return text


def balanced(text: str) -> bool:
    """Whether every brace closes, in order."""
    depth = 0
    for brace in re.finditer(r"[{}]", text):
        depth += 1 if brace.group() == "{" else -1
        if depth < 0:
            return False
    return depth == 0


def is_integer(text: str) -> bool:
    """Whether it reads as a whole number: 12, -3 and 4.0 do, 8/2 and x do not."""
    return NUMBER.fullmatch(text) is not None and not text.partition(".")[2].strip("0")


def plain_number(text: str) -> str:
    """4.0 -> 4, 007 -> 7, +5 -> 5, 1.5e3 -> 1500; anything else unchanged."""
    if SCIENTIFIC.fullmatch(text):
        text = format(Decimal(text), "f")
    return str(int(text.partition(".")[0] or "0")) if is_integer(text) else text


def strip_units(text: str) -> str:
    """Drop $, %, degree signs and, beside numbers, units of length and time: "5 cm^2" -> "5", "day" stays."""
    text = re.sub(r"\^ ?(?:°|\{ ?° ?\})|[$%°]", "", text)
    return UNIT.sub("", text) if re.search(r"[0-9]", text) else text


def braced(text: str, start: int) -> tuple[str, int] | None:
    """The LaTeX argument at text[start:] and where it ends: {...} with balanced braces, or one character."""
    while text[start : start + 1] == " ":
        start += 1
    if text[start : start + 1] in ("", "}"):
        return None
    depth = 0
    for i in range(start, len(text)):
        depth += (text[i] == "{") - (text[i] == "}")
        if depth == 0:
            return text[start : i + 1].removeprefix("{").removesuffix("}"), i + 1
    return None


LATEX_COMMAND = re.compile(r"\\frac|\\sqrt *(?:\[ *([0-9]{1,2}) *\])?|\^ *(?=\{)")


def latex_to_plain(text: str, depth: int = 0) -> str:
    r"""\frac{1}{2} -> (1/2), \sqrt[3]{x} -> root3(x), x^{12} -> x^(12). At most 20 levels deep."""
    out, i = "", 0
    while match := LATEX_COMMAND.search(text, i) if depth < 20 else None:
        first = braced(text, match.end())
        second = braced(text, first[1]) if first and match.group() == "\\frac" else first
        out += text[i : match.start()]
        if first is None or second is None:  # not LaTeX after all
            out, i = out + match.group().replace("\\", ""), match.end()
            continue
        inner = latex_to_plain(first[0], depth + 1)
        if match.group() == "\\frac":
            below = latex_to_plain(second[0], depth + 1)
            out += f"({grouped(inner)}/{grouped(below)})"
        else:
            root = f"root{match.group(1)}" if match.group(1) else "sqrt"
            out += f"^({inner})" if match.group().startswith("^") else f"{root}({inner})"
        i = second[1]
    return out + text[i:]


def grouped(text: str) -> str:
    """Parentheses unless it is a single number or letter."""
    return text if re.fullmatch(r"-?[0-9.]+|[a-zπ]", text) else f"({text})"


def normal_form(answer: str) -> str:
    r"""One string for the usual ways of writing the same answer (the rules of MATH and of mathruler, united).

    Drops white space, units, %, $, \text, \left, thousands commas and "x =" before a value; lower-cases; "or"
    and "and" become commas, whole floats integers, LaTeX fractions, roots and powers plain text, mixed
    numbers sums.
    """
    text = unwrap_text(answer[:MAX_ANSWER]).lower().replace("{,}", ",")
    text = SYMBOL.sub(lambda match: SYMBOLS.get(match.group(), match.group()), text)
    text = " ".join(re.sub(r" (?:or|and) ", " , ", " ".join(strip_units(text).split())).split())
    text = re.sub(r"^[a-z]{1,2} ?= ?(?=[^=]*$)", "", text).rstrip(".,;: ")
    text = THOUSANDS.sub("", text)
    if len(text) <= MAX_EXPRESSION:
        text = MIXED.sub(r"\1(\2+\3)", latex_to_plain(text))
    text = re.sub(r"(?<![a-z])pi(?![a-z])", "π", text)
    return plain_number(re.sub(r"[\s{}\\]", "", text))


# --------------------------------------------------------------------------------------------------- equality
def grade_answer(prediction: str | None, gold: str | None) -> bool:
    """Whether two short answers are equal: VPPO's rule (mathruler.grade_answer), after the graders of MATH.

    Equal normal forms are right. Otherwise tuples and intervals are compared element by element and must have
    the same brackets; two plain fractions must agree as strings (1/2 is not 2/4); a whole number equals only
    something written as a whole number (4/2 is not 2); all else is right when both sides have the same value,
    symbols included. An empty answer is wrong. Differences to the original: units alone are no empty answers
    ("day" is not "year"), functions beyond roots and more than two letters are compared as strings, and
    nothing can hang.
    """
    if not prediction or not gold:
        return False
    given, wanted = normal_form(prediction), normal_form(gold)
    if not given or not wanted:
        return prediction.strip() == gold.strip()
    if given == wanted:
        return True
    if max(len(given), len(wanted)) > MAX_EXPRESSION:
        return False
    parts, gold_parts = split_tuple(given), split_tuple(wanted)
    if len(parts) != len(gold_parts):
        return False
    if len(gold_parts) > 1 and (given[0], given[-1]) != (wanted[0], wanted[-1]):
        return False
    return all(same_element(a, b) for a, b in zip(parts, gold_parts, strict=True))


def split_tuple(text: str) -> list[str]:
    """(1,(2,3)] -> ["1", "(2,3)"]; text without brackets around all of it is one element."""
    if len(text) < 3 or text[0] not in "([" or text[-1] not in ")]":
        return [text]
    parts, depth = [""], 0
    for char in text[1:-1]:
        depth += (char in "([") - (char in ")]")
        if depth < 0:  # "(1)+(2)": the brackets do not belong together
            return [text]
        if char == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += char
    return parts if depth == 0 else [text]


def same_element(given: str, wanted: str) -> bool:
    """One element of a tuple, or a whole answer without brackets."""
    given, wanted = (re.sub(r"^(-?)\(([0-9.]+/[0-9.]+)\)$|^\(([^()]*)\)$", r"\1\2\3", text) for text in (given, wanted))
    given, wanted = plain_number(given), plain_number(wanted)
    if given == wanted:
        return bool(given)
    if FRACTION.fullmatch(given) and FRACTION.fullmatch(wanted):
        return False
    if is_integer(given) != is_integer(wanted):
        return False
    return same_value(given, wanted)


def same_value(first: str, second: str) -> bool:
    """Whether two expressions agree at three points to 30 of 60 digits; False if one cannot be read."""
    names = sorted(set(re.findall(r"[a-z]+", re.sub(r"sqrt|root[0-9]{1,2}", " ", first + " " + second))))
    if len(set("".join(names))) > 2:
        return False  # words
    for point in POINTS:
        symbols = dict(zip(names, point, strict=False))
        a, b = Expression(first, symbols).value(), Expression(second, symbols).value()
        if a is None or b is None:
            return False
        scale = max(abs(a), abs(b))
        if abs(a - b) > MP.mpf(10) ** -30 * scale and scale > MP.mpf(10) ** -40:
            return False
    return True


MP = mpmath.mp.clone()  # own context: the global precision stays as it is
MP.dps = 60
# Values of up to four names at three points. The digits mean nothing; they only must not be special.
POINTS = [[MP.mpf(3) / 7 + MP.sqrt(k + 2) for k in range(4)], [-MP.pi / (k + 3) for k in range(4)],
          [MP.mpc(MP.sqrt(k + 3) / 5, MP.mpf(k + 2) / 7) for k in range(4)]]  # fmt: skip


class Expression:
    """Arithmetic on text: + - * / ^, parentheses, roots, π, names, and products without a sign: 2x, 3(x+1).

    value() is a 60-digit number or None when the text is no such expression, divides by zero, nests deeper
    than 30 or has an exponent above 1000. Never raises.
    """

    TOKEN = re.compile(r"([0-9]{1,50}(?:\.[0-9]{0,50})?|\.[0-9]{1,50})|(sqrt|root[0-9]{1,2}|[a-z]+|π)|(\*\*|[-+*/^()])")

    def __init__(self, text: str, symbols: dict[str, Any]) -> None:
        self.tokens, end = [], 0
        for match in self.TOKEN.finditer(text):
            if match.start() != end:
                break
            self.tokens.append(match.group().replace("**", "^"))
            end = match.end()
        self.readable, self.symbols, self.at, self.depth = end == len(text) > 0, symbols, 0, 0

    def value(self) -> Any | None:
        try:
            result = self.sum() if self.readable else None
        except (ArithmeticError, ValueError, IndexError, KeyError, TypeError):
            return None
        return result if self.at == len(self.tokens) and result is not None and MP.isfinite(result) else None

    def next_is(self, *tokens: str) -> bool:
        return self.at < len(self.tokens) and self.tokens[self.at] in tokens

    def take(self) -> str:
        self.at += 1
        return self.tokens[self.at - 1]

    def sum(self) -> Any:
        total = self.product()
        while self.next_is("+", "-"):
            total = total + self.product() if self.take() == "+" else total - self.product()
        return total

    def product(self) -> Any:
        total = self.signed()
        while self.at < len(self.tokens) and not self.next_is("+", "-", ")", "^"):
            divide = self.take() == "/" if self.next_is("*", "/") else False
            factor = self.signed()
            total = total / factor if divide else total * factor
        return total

    def signed(self) -> Any:
        sign = 1
        while self.next_is("+", "-"):
            sign = -sign if self.take() == "-" else sign
        return sign * self.power()

    def power(self) -> Any:
        self.depth += 1
        if self.depth > 30:
            raise ValueError("nested too deep")
        base = self.atom()
        if self.next_is("^"):
            self.take()
            exponent = self.signed()  # right-associative
            if abs(exponent) > 1000 or MP.im(exponent) != 0:
                raise ValueError("exponent too large")
            base = MP.power(base, exponent)
        self.depth -= 1
        return base

    def atom(self) -> Any:
        token = self.take()
        if token == "(":
            inner = self.sum()
            if self.take() != ")":
                raise ValueError("unbalanced parentheses")
            return inner
        if token[0] in "0123456789.":
            return MP.mpf(token)
        if token == "π":
            return +MP.pi
        if token == "sqrt" or token.startswith("root"):
            n = 2 if token == "sqrt" else int(token[4:])
            radicand = self.atom()
            if n % 2 and MP.im(radicand) == 0 and MP.re(radicand) < 0:
                return -MP.root(-radicand, n)
            return MP.root(radicand, n)
        return self.symbols[token]

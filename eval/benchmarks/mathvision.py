r"""MATH-Vision: competition problems of 16 subjects and 5 levels with a letter or a short value as the answer.

Official code: github mathllm/MATH-V at a1f5cc3a; lmms-eval has the same rules. VLMEvalKit at e8e78f05.

    official    a chain of text rules ends in a short lower-case text, which must be the letter, the text of the right
                option or the value, numbers and tuples after rounding to 2 decimals; always decided
    vlmevalkit  options by extractor C1; a value must be the whole response or equal it to 1e-6; else a judge extracts

Both evaluate LaTeX of the model with latex2sympy and Python's eval. Here the small parser of common/maths.py does it,
which knows arithmetic, roots, powers and pi. Other functions, powers of powers without braces and exponents above 1000
(one truth, 3^1008) are compared as text: of the 48,640 responses that the official repository keeps and that were
compared, seven get another verdict, all to that question.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from benchmark import Benchmark, Line, Result, Row, cell, judged, lines_by
from choices import lettered, listed
from columns import entries
from common.errors import SightRLError
from common.maths import MAX_EXPRESSION, THOUSANDS, Expression, latex_to_plain
from extract import can_infer, stated_answer

# ---------------------------------------------------------------- prompts


def task(row: Row) -> str:
    """The question and its options, one to a line."""
    return f"{cell(row, 'question', str)}\n{listed(choices(row))}".rstrip("\n")


def prompt(row: Row, scoring: str) -> str:
    options = choices(row)
    text = task(row)
    if scoring == "vlmevalkit":
        end = ("Reason step by step. Finish with the sentence: The answer is X. For X write the letter of the right "
               "option." if options else "Answer with the value asked for and nothing else.")  # fmt: skip
    else:
        what = "the letter of the right option" if options else "the value asked for"
        end = f"Reason step by step, then put {what} into one \\boxed{{}}."
    return f"{text}\n{end}"


# ---------------------------------------------------------------- rows


def choices(row: Row) -> dict[str, str]:
    """letter -> option; {} for a question without options."""
    options = [str(option) for option in entries(row, "options")]
    letters = lettered(options) if options else {}
    if letters and str(cell(row, "answer")) not in letters:
        raise SightRLError("column answer must be the letter of one of the options; take the published files.")
    return letters


# ---------------------------------------------------------------- extraction, official

BEFORE = [  # what is dropped or replaced, in this order
    (" ", ""), ("\\,", ""), ("∞", "\\infty"), ("+\\infty", "\\infty"), ("\\\\", "\\"), ("\n", ""), ("\\text", ""),
    ("\\mbox", ""), ("bmatrix", "pmatrix"), ("\\left", ""), ("\\right", ""), ("^{\\circ}", ""), ("^\\circ", ""),
    ("{m}^3", ""), ("m^3", ""), ("{units}", ""), ("units", ""), ("{km}", ""), ("km", ""), ("\\!", ""), ("\\\\", "\\"),
    ("tfrac", "frac"), ("dfrac", "frac"), ("\\left", ""), ("\\right", ""), ("^{\\circ}", ""), ("^\\circ", ""),
    ("\\$", ""), ("$", ""), ("\\%", ""), ("{.", "{0."),
]  # fmt: skip


def extract(response: str) -> str:
    """The short answer in lower case, by the official chain of rules."""
    text = response.strip()
    for letter in "ABCDE":
        if text.endswith((f" {letter}.", f" ({letter}).")) or text.startswith(
                (f"{letter}\n", f"({letter})\n", f"({letter}) {letter}\n")):  # fmt: skip
            text = letter
    last = text.rpartition("is ")[2].rstrip(".")
    if is_number(last):
        text = last
    answer = plain(stated_answer(text))
    for form in ("({})", "{{{}}}"):
        for letter in "abcde":
            answer = answer.replace(form.format(letter), letter)
    return answer.rstrip(".").lstrip(":").strip()


def is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def plain(text: str) -> str:
    """One way of writing: no blanks, units, degrees, dollars; fractions and roots with all of their braces."""
    for old, new in BEFORE:
        text = text.replace(old, new)
    if text.startswith("."):
        text = "0" + text
    if "sqrt" in text:
        text = braced_fractions(re.sub(r"\\sqrt(?!\\sqrt)([^{])", r"\\sqrt{\1}", text, flags=re.DOTALL))
    if text == "0.5":
        return "\\frac{1}{2}"
    above, slash, below = text.partition("/")
    try:
        if slash and f"{int(above)}/{int(below)}" == text:
            return f"\\frac{{{above}}}{{{below}}}"
    except ValueError:
        pass
    return text


def braced_fractions(text: str) -> str:
    r"""\frac12 -> \frac{1}{2}; a fraction that breaks off leaves all of the text as it is."""
    pieces = text.split("\\frac")
    for i, piece in enumerate(pieces[1:], 1):
        if not piece.startswith("{"):
            if len(piece) < 2:
                return text
            below = piece[1:] if piece[1] == "{" else f"{{{piece[1]}}}{piece[2:]}"
            pieces[i] = f"{{{piece[0]}}}{below}"
    return "\\frac".join(pieces)


# ---------------------------------------------------------------- equality

SIGNS = {"\\pi": "π", "\\cdot": "*", "\\times": "*", "\\div": "/", "\\left": "", "\\right": "", "\\displaystyle": "",
         "\\%": "/100", ":": "/", "$": ""}  # fmt: skip
SIGN = re.compile(r"\\(?:(?:pi|cdot|times|div|left|right|displaystyle)(?![a-z])|%)|[:$]")
# What latex2sympy refuses and common/maths.py would read: unbraced arguments, a sign behind ^, words, single letters.
REFUSED = re.compile(
    r"\\frac *[^{ ]|\\frac *\{[^{}]*\} *[^{ ]|\\sqrt *(?:\[[0-9]*\])? *[^{\[ ]|\^ *[-+]|\*\*|[π√×÷]|(?<!\\)sqrt|root"
)
FLOATS = re.compile(r"\\frac|\\sqrt|\\pi|\\div|[/:]|\.[0-9]*[1-9]")  # by these, Python's value is 3.0, not 3


def value(text: str) -> float | None:
    """The number that a piece of LaTeX stands for; None where it is none."""
    if len(text) > MAX_EXPRESSION or REFUSED.search(text):
        return None
    text = re.sub(r"(?<=[0-9]) +(?=[0-9])", "*", SIGN.sub(lambda match: SIGNS[match[0]], text))
    text = THOUSANDS.sub("", latex_to_plain(text)).translate(str.maketrans("{}[]", "()()", " \n\t\r"))
    found = Expression(text, {}).value()
    return float(found.real) if found is not None and found.imag == 0 and abs(found) < 1e300 else None


BRACKET = re.compile(r"[{}()\[\]]|\.(?![0-9])")


def first_part(text: str) -> str:
    """Up to a bracket that closes nothing or a period that ends a sentence: there latex2sympy stops reading, and takes
    what it has, so that "\\frac{1}{4}}. The rest" is a quarter."""
    depth = 0
    for mark in BRACKET.finditer(text):
        depth += (mark[0] in "{([") - (mark[0] in "})]")
        if depth < 0 or mark[0] == ".":
            return text[: mark.start()]
    return text


def rounded(text: str) -> str | None:
    """The value to two decimals as Python writes it: "6", "0.67"; None where there is none."""
    number = value(first_part(text))
    if number is None:
        return None
    short = round(number, 2)
    return str(short) if FLOATS.search(text) or short != int(short) else str(int(short))


def evaluated(text: str) -> str:
    """(2*3,5+2) -> (6,7), also with square brackets; the text itself if an element has no value."""
    elements = text[1:-1].split(",")
    if len(elements) < 2 or len(text) > MAX_EXPRESSION or text[0] + text[-1] not in ("()", "[]"):
        return text
    values = [part if "infty" in part or part in ("a", "-a") else rounded(part) for part in elements]
    return text if None in values else f"{text[0]}{','.join(map(str, values))}{text[-1]}"


def equal(truth: str, answer: str) -> bool:
    """The official equality: same text, same tuple, or same value after rounding to two decimals."""
    truth, answer = truth.lower(), answer.lower()
    if not truth.replace(" ", "") or not answer.replace(" ", ""):
        return False
    if truth.strip() == answer.strip():
        return True
    truth, answer = evaluated(truth), evaluated(answer)
    if truth == answer:
        return True
    first, second = value(first_part(truth)), value(first_part(answer))
    return first is not None and second is not None and round(first, 2) == round(second, 2)


def close(truth: str, answer: str) -> bool:
    """VLMEvalKit's equality: same text but for case, or the same value to 1e-6."""
    truth, answer = truth.lower().strip(), answer.lower().strip()
    first, second = (value(text.replace("**", "^")) for text in (truth, answer))
    return truth == answer or (first is not None and second is not None and abs(first - second) < 1e-6)


# ---------------------------------------------------------------- scores

LONGEST = 1000  # characters of an answer that are kept


def score(row: Row, response: str, scoring: str) -> Result:
    if scoring == "vlmevalkit":
        return kit(row, response)
    options, truth = choices(row), str(cell(row, "answer"))
    answer = extract(response)
    return Result(float(equal(truth, answer) or equal(options.get(truth, ""), answer)), answer[:LONGEST])


def kit(row: Row, text: str) -> Result:
    """VLMEvalKit's reading of a response or of what a judge extracted from it."""
    options, truth = choices(row), str(cell(row, "answer"))
    if options:
        letter = can_infer(text, options)
        return Result(float(letter == truth), letter, undecided=letter is None)
    right = close(truth, text)
    return Result(float(right), text.strip()[:LONGEST], undecided=not right)


# ---------------------------------------------------------------- judge


def judge_prompt(row: Row, result: Result, response: str, scoring: str) -> str:
    options = choices(row)
    what = "the letter of the chosen option" if options else "the value"
    return (f"A question and a response to it follow. Which final answer does the response give? Write {what} and no "
            f"other word.\n\nQuestion:\n{task(row)}\n\nResponse:\n{response}\n\n"
            "The final answer of the response:")  # fmt: skip


def judge_score(row: Row, result: Result, reply: str, scoring: str) -> Result:
    found = kit(row, reply)
    return judged(result, found.score == 1.0, found.answer)


# ---------------------------------------------------------------- table


def summarise(rows: Sequence[Row], results: Sequence[Result], scoring: str) -> list[Line]:
    return lines_by(rows, results, "subject", "level")


def mathvision(split: str, size: int, reference: tuple[tuple[str, str, str], ...]) -> Benchmark:
    return Benchmark(
        title=f"MATH-Vision ({split})",
        source="hf:MathLLMs/MathVision",
        split=split,
        size=size,
        metric="accuracy",
        licence="MIT",
        columns=("question", "options", "answer"),
        prompt=prompt,
        score=score,
        images=lambda row: [row["decoded_image"]],
        summarise=summarise,
        judge_prompt=judge_prompt,
        judge_score=judge_score,
        scorings=("official", "vlmevalkit"),
        identify=lambda row, number: str(row.get("id", number)),
        reference=reference,
        note="lmms-eval's rule is the official one. Some truths of the data ($\\boxed{\\frac{16}{7}}$, 69{degrees}) no "
             "answer can equal under the official rule.",
    )  # fmt: skip


CARD, FILES = "InternVL2.5 model card", "result files of github mathllm/MATH-V"
BENCHMARKS = {
    "mathvision": mathvision("test", 3040, (
        ("Qwen2-VL-2B", "12.4", CARD), ("Qwen2-VL-7B", "16.3", CARD), ("InternVL2.5-2B", "14.7", CARD),
        ("InternVL2.5-8B", "19.7", CARD), ("GPT-4V", "22.76", FILES), ("GPT-4V CoT", "23.98", FILES),
        ("Gemini Pro", "17.66", FILES), ("Qwen-VL-Max", "15.59", FILES), ("LLaVA-1.5-7B", "8.52", FILES),
        ("LLaVA-1.5-13B", "11.12", FILES), ("random choice", "7.17", FILES))),
    "mathvision_mini": mathvision("testmini", 304, (
        ("Qwen2-VL-2B", "19.7", CARD), ("Qwen2-VL-7B", "22.0", CARD), ("InternVL2.5-2B", "13.5", CARD),
        ("InternVL2.5-8B", "22.0", CARD))),
}  # fmt: skip

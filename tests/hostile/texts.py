r"""Texts that a model, or somebody behind it, may write: by a grammar of what parsers look for, or by breaking texts.

    stream = texts(seed=0)      # endless; most are short, one in hundreds has up to 10,000 characters
    ENDLESS                     # a mark, a pair of marks or a start over and over: what slow patterns take for ever for

Both are the same on every machine.
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterator

import bench_rows as rows

from common.world import make_question
from common.world.taught import SHARES, lesson

# ---------------------------------------------------------------- terminals

DISGUISED = [*"ＡＢＣａ１２３АВСаоеİıſK²½٣۴Ⅷ①‐−＝（）［］｛｝＜＞﹤∕⁄∖’“", "\u00a0", "\u2028", "\u2029", "\u3000",
             "\u200b", "\u200d", "\ufeff", "\u0301", "\U0001d7ce", "👩‍👩‍👧", "\U000e0041"]  # fmt: skip
CONTROLS = ["\x00", "\x01", "\x07", "\x08", "\x1b[31m", "\x1b]0;x\x07", "\r", "\r\n", "\x0b", "\x0c", "\x1c", "\x85",
            "\x7f", "\u200e", "\u200f", "\u202e", "\u202d", "\u2066", "\u2069", "\ud800", "\udfff", "\ud83d", "\uffff",
            "\U0010ffff"]  # fmt: skip
NUMBERS = ["0", "1", "-3", "+7", "12", "0.5", ".5", "5.", "1,000", "1,2,3", "1.2.3", "1e5", "1e999", "-1e999",
           "1e-999", "1e999999999", "1e-999999999", "NaN", "nan", "Infinity", "-Infinity", "inf", "-0", "0x10",
           "1_000", "007", "9" * 50, "9" * 400, "9" * 5000, "3/4", "1/0", "0/0", "22/7", "50%", "$5", "2°", "5 cm",
           "1:05", "00:01:05", "12:99", "9**9**9**9", "9^{9^{9^9}}", "9^9^9^9^9", "10!", "9!!!!!!!", "\\infty", "1+1",
           "2*3", "(1+2)*3", "1-" * 40 + "1", "1j", "True", "None", "null", "true"]  # fmt: skip
MATHS = ["\\frac{1}{2}", "\\dfrac12", "\\frac{1}{\\frac{1}{0}}", "\\sqrt{2}", "\\sqrt[3]{8}", "\\sqrt2", "\\pi",
         "\\text{cm}", "\\mathrm{m}", "\\left(", "\\right)", "\\begin{pmatrix}1&2\\end{pmatrix}", "^{\\circ}", "\\%",
         "\\$", "\\cdot", "\\times 10^{99999}", "x=", "x^2", "\\approx", "\\leq", "\\pm", "\\{", "\\}", "\\\\", "\\(",
         "\\)", "\\[", "\\]", "$$", "$", "\\ln(-1)", "\\int_0^1 x dx", "\\lim", "\\binom{9999}{999}",
         "\\sum_{i=1}^{10^9} i", "{{", "}}"]  # fmt: skip
TAGS = ["think", "answer", "description", "info", "info1", "info2", "analysis", "box", "bbox", "point", "caption",
        "state", "img"]  # fmt: skip
WORDS = ["the ", "answer is ", "The answer is ", "Answer: ", "**Answer:** ", "Final answer: ", "option ", "is ", "to ",
         "red ", "blue ", "circle ", "yes", "no", "No Objects", "Hacking Sample", "assistant\n", "user\n",
         "b2 red circle 3", "I choose ", "therefore ", "Overall Judgment: Answer 1 is better", "Extracted: ",
         "Judgement: 1", "Route Name: ", "Departure Stop: ", "Arrival Stop: ", "Via Stops: ", "甲站", "丁站", "Line 1",
         "--", "happens in ", " seconds", "start ", "end ", "pyautogui.click(", "x=", ", y=", "even function",
         "left of ", "there are ", "答案是", "정답은", "the orange license plates", "orange", "1. ", "2. ", "(A) ", "A",
         "B.", "(c)", "\\n"]  # fmt: skip
PUNCTUATION = [*".,:;!?/\\{}()[]<>\"'`$%^*-–+=≈\n\t|_#~& ", "\n\n", "[[", "]]", "((", "{{", "''", '"""', "```",
               "```json\n", "**", "..", "</", "\\boxed{", "oxed{", "\\boxed", "boxed{}", "#" * 9, "|---|",
               "<|im_end|>", "<|image_pad|>", "<image>", "{question}", "%s", "{0}", "\\x", "\\u0041", "&lt;", "{}",
               "[]", "()", "'Position': ", "'Confidence': ", '{"bbox_2d": [', '"label": "cat"', '{"a": ',
               '"short answer": '] + [f"<{s}{tag}>" for tag in TAGS for s in ("", "/")]  # fmt: skip
MARKS = [*NUMBERS, *MATHS, *WORDS, *PUNCTUATION, *DISGUISED, *CONTROLS]

PLAUSIBLE = [rows.ROUTE, "<think>so</think><answer>B</answer>", '{"solution": "x", "short answer": "3.14"}',
             "It happens in 3.5 - 10.2 seconds.", "Overall Judgment: Answer 1 is better.", r"So \boxed{\frac{1}{2}}.",
             "pyautogui.click(x=0.5, y=0.5)", "<box>(400,400),(600,600)</box>", "<answer>(100,100),(500,500)</answer>",
             '[{"bbox_2d": [10, 10, 50, 50], "label": "cat"}, {"bbox_2d": [500, 200, 900, 800], "label": "dog"}]',
             "<answer>[{'Position': [100, 200, 300, 400], 'Confidence': 0.9}, {'Position': [1, 2, 3, 4]}]</answer>",
             '<answer>{"bbox_2d": [100, 100, 300, 200]}</answer>', "The answer is (B), since it is blue.",
             "[0.7, 0.9]", 'Answer: {"a": ["x"], "b": "y"}', "Reasoning. Answer: 42", "**Answer: (B)** for sure",
             "Extracted: 30\nJudgement: 1", "x = 1,234.5", "thinking\nfinal: the orange license plates",
             "<info1>1</info1><info2>0</info2>", "1. yes\n2. no\n3. red", "<think>a</think> \\boxed{[1, 2, 30, 40]}",
             "<description>b2 red circle 3</description><think>x</think>\\boxed{3}", "start 1.5\nend 7",
             "```json\n[[1, 2, 3, 4]]\n```", "(define (problem p) (:init (at a)) (:goal (and (on a))))",
             "(move a b)\n(pick c)", "[e4, Nf3]", "<point>0.5,0.5</point>", "\\text{ red }"]  # fmt: skip

# ---------------------------------------------------------------- grammar: "@name" is replaced by one of its forms

GRAMMAR: dict[str, list[tuple[str, ...]]] = {
    "text": [("@plain",), ("@layout",), ("@layout",), ("@soup",), ("@soup",), ("@json",), ("@fence",), ("@letters",),
             ("@boxes",), ("@words",)],
    "layout": [("<think>", "@words", "</think>", "@final"), ("@words", "@final"), ("@tagged", "@tagged", "@tagged"),
               ("@final", "@words"),
               ("<think>", "@layout"), ("@layout", "</think>"), ("@final", "@final")],
    "final": [("\\boxed{", "@value", "}"), ("\\boxed{", "@value"), ("<answer>", "@value", "</answer>"),
              ("Answer: ", "@value"),
              ("The answer is ", "@value", "."), ("<answer>\\boxed{", "@value", "}</answer>"),
              ("\\boxed{", "@final", "}")],
    "tagged": [("<", "@tag", ">", "@value", "</", "@tag", ">"), ("<", "@tag", ">", "@words", "</", "@tag", ">"),
               ("<", "@tag", ">", "@tagged")],
    "value": [("@number",), ("@number",), ("@maths",), ("@letters",), ("@boxes",), ("@json",), ("@words",), ("@mark",),
              ("",), ("{", "@value", "}")],
    "maths": [("@math",), ("@math", "@number"), ("\\frac{", "@maths", "}{", "@maths", "}"), ("\\sqrt{", "@maths", "}"),
              ("(", "@maths", ")"),
              ("@maths", "^{", "@maths", "}"), ("@number", "@math", "@number"), ("$", "@maths", "$"),
              ("@number", "**", "@maths"), ("\\text{", "@maths")],
    "boxes": [("[", "@number", ", ", "@number", ", ", "@number", ", ", "@number", "]"),
              ("[", "@boxes", ", ", "@boxes", "]"),
              ("<box>(", "@number", ",", "@number", "),(", "@number", ",", "@number", ")</box>"),
              ('{"bbox_2d": ', "@boxes", ', "label": "@word"}'),
              ("{'Position': ", "@boxes", ", 'Confidence': ", "@number", "}"), ("(", "@number", ", ", "@number", ")")],
    "json": [("{", '"', "@word", '": ', "@json", "}"), ("[", "@json", ", ", "@json", "]"), ("@number",),
             ('"', "@word", '"'), ("[", "@json"),
             ("{", "@json"), ("{'", "@word", "': ", "@json", "}"), ("@mark",), ("@boxes",)],
    "fence": [("```json\n", "@json", "\n```"), ("```\n", "@value", "\n```"), ("```python\n", "@words"),
              ("@words", "```", "@json", "```", "@words"), ("`", "@value", "`")],
    "letters": [("(", "@letter", ")"), ("@letter", "."), ("@letter", ": ", "@word"), ("@letter", ", ", "@letters"),
                ("**", "@letter", "**"), ("@letter",)],
    "words": [("@word",), ("@word", "@words"), ("@word", "@mark", "@words"), ("@mark", "@words")],
    "plain": [("@whole",), ("@whole", "@mark"), ("@mark", "@whole"), ("@whole", "\n", "@whole")],
    "soup": [("@mark",) * n for n in (1, 2, 3, 4, 6, 8, 12, 20, 40)],
}  # fmt: skip
TERMINALS = {"number": NUMBERS, "math": MATHS, "word": WORDS, "mark": MARKS, "tag": TAGS,
             "letter": [*"ABCDEFGHIJZabcdez"], "whole": PLAUSIBLE}  # fmt: skip


def derived(symbol: str, rng: random.Random, room: int = 60) -> str:
    """A text of that symbol; when `room` expansions are used up the rest is left out, so that brackets stay open."""
    out, todo = [], [f"@{symbol}"]
    while todo:
        part = todo.pop()
        if not part.startswith("@"):
            out.append(part)
        elif (name := part[1:]) in TERMINALS:
            out.append(rng.choice(TERMINALS[name]))
        elif room > 0:
            room -= 1
            todo.extend(reversed(rng.choice(GRAMMAR[name])))
    return "".join(out)


# ---------------------------------------------------------------- mutation


def broken(text: str, other: str, rng: random.Random) -> str:
    """The text with a stretch cut, doubled, turned, moved, or replaced by a mark or a stretch of another text."""
    a, b = sorted((rng.randint(0, len(text)), rng.randint(0, len(text))))
    kind, part = rng.randrange(10), text[a:b]
    if kind == 0:
        return text[:b]
    if kind == 1:
        return text[a:]
    if kind == 2:
        return text[:a] + part * rng.choice((2, 2, 3, 9)) + text[b:]
    if kind == 3:
        return text[:a] + part[::-1] + text[b:]
    if kind == 4:
        return text[:a] + (part.upper() if a % 2 else part.swapcase()) + text[b:]
    if kind == 5:
        return text[:a] + other[a : a + rng.randint(0, 30)] + text[b:]
    if kind == 6:
        return text[b:] + text[:a]
    if kind == 7:
        return text[:a] + "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in part) + text[b:]
    return text[:a] + rng.choice(MARKS) + text[a if kind == 8 else b :]


def lessons(count: int = 300) -> list[str]:
    """What the tiny VLM was taught to say, in every layout."""
    rng = random.Random(0)
    kinds = list(SHARES)
    return [lesson(make_question("train", i), make_question("train", i + 1), rng, True, kinds[i % len(kinds)])[2]
            for i in range(count)]  # fmt: skip


def texts(seed: int = 0) -> Iterator[str]:
    """Endless texts, the same for the same seed: a third by the grammar, the others broken once to six times."""
    rng, known = random.Random(seed), [*PLAUSIBLE * 5, *lessons()]
    for number in itertools.count():
        text = derived("text", rng) if number % 3 == 0 or rng.random() < 0.3 else rng.choice(known)
        if number % 3:
            for _ in range(rng.choice((1, 1, 2, 3, 6))):
                text = broken(text, rng.choice(known), rng)
        if rng.random() < 0.004 and text:
            text = (text * (rng.choice((1_000, 3_000, 10_000)) // len(text) + 1))[:10_000]
        yield text


# ---------------------------------------------------------------- endless texts


def endless(length: int) -> list[str]:
    """Texts of about `length` characters, one for each way in which a pattern or a loop could be slow."""
    marks = [*MARKS, "A", "a", "9", "é", "\n ", "\n\n\n"]
    same = [(mark * length)[:length] for mark in marks]
    pairs = [((a + b) * length)[:length] for a in ("<think>", "{", "[", "(", '"', "'", "\\boxed{", "**", "Answer:",
                                                   "1", " ", "\n", "```")
             for b in ("</think>", "}", "]", ")", "\\", ",", ".", "\n", " ", "x", "1", "甲站")]  # fmt: skip
    nested = [opened * (length // (2 * len(opened))) + fill + closed * (length // (2 * len(closed))) for opened,
              closed in
              (("{", "}"), ("[", "]"), ("(", ")"), ("\\boxed{", "}"), ("\\frac{1}{", "}"), ("\\sqrt{", "}"),
               ('{"a":', "}"), ("[[", "]]"),
               ("<answer>", "</answer>"), ("<think>", "</think>"), ("-", ""), ("{'a':[", "]}"), ("\\text{", "}"),
               ("（", "）"), ("lambda:", "0"))
              for fill in ("", "1") if closed]  # fmt: skip
    starts = [start + fill * (length // len(fill)) for start in ("1", "[", "A", "<answer>", "ANSWER", "\\boxed{",
                                                                 "Answer: ", "Route Name:", "Therefore Answer 1 is",
              "Overall Judgment Answer", "start\n", "```json\n", '{"a": "', "(define ", "x=", "<think>", "1.", "1e",
              "(", "'")
              for fill in (" ", "1", "\n", ",", "the ", "}", "\\", "1,", "x", "\t.")]  # fmt: skip
    wholes = [(text * (length // len(text) + 1))[:length] for text in PLAUSIBLE]
    wholes += [" " * length + text for text in PLAUSIBLE]
    long_list = json.dumps([[1, 2, 3, 4]] * (length // 14))
    others = [long_list, f"<answer>{long_list}</answer>", "[" + ",".join(["1" * (length // 4)] * 4) + "]",
              "1" + "{1}" * (length // 3) + "}", rows.ROUTE + "," * length,
              rows.ROUTE + "甲站," * (length // 3), "x" * length + "\\boxed{1}", " ".join(map(str, range(length // 6))),
              "1" * length + "." + "1" * length, json.dumps(dict.fromkeys(map(str, range(length // 12))))]  # fmt: skip
    return list(dict.fromkeys([*same, *pairs, *nested, *starts, *wholes, *others]))

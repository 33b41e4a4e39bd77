r"""MEGA-Bench's reading of a response (megabench/metrics/parsing), each function for any text in linear time.

answer_text("So ... Answer: 42")            "42"      what follows the marker, without code fence and quotes
parse_json('Answer: {"x": 1}')              {"x": 1}  the last JSON object or list, or Python literal
"""

from __future__ import annotations

import ast
import json
import re
import warnings
from collections.abc import Iterable
from typing import Any

MAX_STRUCTURES = 200  # of a response; the last ones are tried
MAX_LITERAL = 100_000  # characters; no answer is that long
MARKER = re.compile(r"(\*\*?)?\bAnswer:")
LINE_MARKER = re.compile(r"^(?:\*\*Answer:|Answer:)\s*(.+)", re.M)
SHORT = re.compile(r"[a-zA-Z0-9_-]|\([a-zA-Z0-9_-]+\)\Z")
STRING = re.compile(r'"(?:\\.|[^"\\])*"')
STRAY_QUOTE = re.compile(r"(?<!\w)'|'(?!\w)")


def python_literal(text: Any) -> Any:
    """ast.literal_eval; raises ValueError for everything that is none."""
    if isinstance(text, str) and len(text) > MAX_LITERAL:
        raise ValueError("too long")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)  # "\d" in a text
        try:
            return ast.literal_eval(text)
        except (SyntaxError, MemoryError, RecursionError, TypeError) as error:
            raise ValueError(str(error)) from None


def unquoted(text: Any) -> Any:
    """'"a"' -> 'a': a text that is written as a Python string; all else stays."""
    try:
        value = python_literal(text)
    except ValueError:
        return text
    return value if isinstance(value, str) else text


def items(text: Any) -> list[Any] | str:
    """The items of a text that is written as a list, a set or with commas; nothing for what is no text. As in the
    original "None" gives an empty text, which equals no list or set."""
    text = text.strip(" ") if isinstance(text, str) else ""
    brackets = {"(": ")", "{": "}", "[": "]"}
    if not text or (text[0] in brackets and not text.endswith(brackets[text[0]])):
        return []
    try:
        value = python_literal(text)
    except ValueError:
        text = text[1:-1] if text[0] in brackets else text
        return [item.strip() for item in text.split(",")]
    if value is None:
        return ""
    return [value] if isinstance(value, int | float) else list(value) if isinstance(value, Iterable) else []


# ---------------------------------------------------------------- the answer of a single field


def answer_text(response: str, *, single_line: bool = True, ascii_art: bool = False, verbatim: bool = False,
                last: bool = False) -> str:  # fmt: skip
    """The answer of a task with one field.

    single_line: the truth has no line break, so further paragraphs are dropped. ascii_art, verbatim: blanks are part of
    the answer. last: go by the last "Answer:" (lmms-eval) instead of the first.
    """
    keep = ascii_art or verbatim
    found = marked_answer(only_last_marker(response) if last else response, keep)
    found = art_lines(found, verbatim) if keep else found.strip()
    if keep and (not found.strip() or len(found) > 10_000):
        found = found.rstrip()
    inside = fenced_art(found, verbatim) if keep else fenced(found)
    if inside is not None:
        found = inside
    elif single_line and not keep:
        found = first_paragraph(found)
    if not found.startswith(("{", "[")):
        return str(unquoted(found))
    value = parse_json(found)
    if (value == {} and "{}" not in found) or (value == [] and "[]" not in found):
        return found
    return str(value)


def only_last_marker(response: str) -> str:
    before, marker, after = response.replace("answer:", "Answer:").rpartition("Answer:")
    return before.replace("Answer:", "") + marker + after


def marked_answer(response: str, keep_blanks: bool) -> str:
    """Behind the first "Answer:"; for "*Answer: ...*" and "**Answer: ...**" up to the next asterisk, so that
    "**Answer:** 3" is empty. Without a marker all of the response."""
    marker = MARKER.search(response)
    if marker is None:
        return response
    rest = response[marker.end() :]
    rest = rest if keep_blanks else rest.lstrip()
    inside, closed, _ = rest.partition("*")
    return inside if marker.group(1) and closed else rest


def block(text: str, opening: str) -> str | None:
    """What is between the first opening and the next ```."""
    _, opened, rest = text.partition(opening)
    content, closed, _ = rest.partition("```")
    return content if opened and closed else None


def fenced(text: str, kind: str = "") -> str | None:
    """Content of a code block, of the kind if one is given, without blanks around; None without one."""
    content = block(text, f"```{kind}")
    if content is None:
        return None
    return (content if kind else re.sub(r"\A\w+", "", content)).strip()


def fenced_art(text: str, verbatim: bool) -> str | None:
    """Content of a code block with its indentation; verbatim keeps the blanks of the last line too."""
    content = block(text, "```")
    if content is None:
        return None
    content = without_leading_lines(re.sub(r"\A\w+", "", content))
    return without_trailing_lines(content) if verbatim else content.rstrip()


def without_leading_lines(text: str) -> str:
    blank = text[: len(text) - len(text.lstrip())]
    return text[blank.rfind("\n") + 1 :]


def without_trailing_lines(text: str) -> str:
    bare = text.rstrip()
    cut = text.find("\n", len(bare))
    return text if cut < 0 else text[:cut]


def art_lines(text: str, verbatim: bool) -> str:
    """Runs of blank lines shortened to one, none at the start and the end."""
    lines: list[str] = []
    for line in text.split("\n"):
        if not line.strip() and lines and not lines[-1].strip():
            lines[-1] = ""
        else:
            lines.append(line)
    text = "\n".join(lines)
    return without_leading_lines(without_trailing_lines(text) if verbatim else text.rstrip())


def first_paragraph(text: str) -> str:
    """The first paragraph if it looks like a short answer and a blank line follows its first line."""
    paragraph = text.split("\n\n")[0].strip()
    lines = text.splitlines()
    first = next((i for i, line in enumerate(lines) if line.strip()), None)
    several = first is not None and not (first + 1 < len(lines) and not lines[first + 1].strip())
    return paragraph if SHORT.match(paragraph) and not several else text


# ---------------------------------------------------------------- JSON


def parse_json(response: str) -> Any:
    """The last valid JSON object or list or Python literal in a response; {} without one, [] if it begins with [."""
    marked = LINE_MARKER.search(response)
    text = (marked.group(1) if marked else response).strip()
    inside = fenced(text, "json")
    text = text if inside is None else inside
    for part in reversed(structures(text)[-MAX_STRUCTURES:]):
        if values := readings(part):
            return values[-1]
    return [] if text.startswith("[") else {}


def structures(text: str) -> list[str]:
    """What the original's recursive pattern finds, from left to right: from a brace to the one that closes it; from a
    bracket to the last closing bracket before the braces stop matching."""
    closing, opened = {}, []  # position of a brace -> of the one that closes it
    for brace in re.finditer(r"[{}]", text):
        if brace.group() == "{":
            opened.append(brace.start())
        elif opened:
            closing[opened.pop()] = brace.start()
    last = [-1] * (len(text) + 1)  # the last "]" that can be reached from here
    for i in range(len(text) - 1, -1, -1):
        if text[i] == "{":
            last[i] = last[closing[i] + 1] if i in closing else -1
        elif text[i] != "}":
            last[i] = i if text[i] == "]" and last[i + 1] < 0 else last[i + 1]
    found, i = [], 0
    while i < len(text):
        end = closing.get(i, -1) if text[i] == "{" else last[i + 1] if text[i] == "[" else -1
        if end >= 0:
            found.append(text[i : end + 1])
        i = max(end, i) + 1
    return found


def readings(text: str) -> list[Any]:
    """All that a structure can be read as, in the original's order: as JSON (with lists and objects in strings read
    too, single quotes mended if need be), then as a Python literal."""
    text = text.replace('\\"', "__DOUBLE_QUOTE__").replace("\\'", "__SINGLE_QUOTE__")
    for quoted in dict.fromkeys(STRING.findall(text)):
        inside = json_value(quoted[1:-1].replace("__DOUBLE_QUOTE__", '"').replace("__SINGLE_QUOTE__", "'"))
        if isinstance(inside, dict | list):
            text = text.replace(quoted, json.dumps(inside))
    text = text.replace("__DOUBLE_QUOTE__", '\\"').replace("__SINGLE_QUOTE__", "\\'")
    values = [json_value(text)]
    if values[0] is None:
        values = [json_value(STRAY_QUOTE.sub('"', text))]
    for form in (text, text.replace('\\"', '\\\\"').replace("\\'", "\\\\'")):
        try:
            values.append(python_literal(form))
            break
        except ValueError:
            continue
    return [value for value in values if value is not None]


def json_value(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def json_fields(response: str) -> Any:
    """parse_json with the quotes of quoted texts in an object removed."""
    value = parse_json(response)
    return {name: unquoted(one) for name, one in value.items()} if isinstance(value, dict) else value

r"""Reading an answer from a response by the rules that several benchmarks share, each exactly as its source has it.

    can_infer        letter of an option, by VLMEvalKit (e8e78f05, vlmeval/utils/matching_util.py)
    extract_letter   letter of an option, by lmms-eval (75571cfe, tasks/_task_utils/mcq_extract.py)
    mmmu_letter      letter of an option, by MMMU (bb0b95a9) and, a little different, by lmms-eval
    reasoning_score  accuracy and format of a response with reasoning, by lmms-eval (reasoning_utils.py)
    stated_answer    what a box or a cue tells, by MATH-Vision (a1f5cc3a) and ReasonMap-Plus
    yes_no           yes, no or unknown, by VLMEvalKit (yorn.py)
    final_answer     nobody's published rule, for a line beside the scores that only a judge can give

The rules disagree with each other and with common sense ("Because" can be the letter B). That is what the published
numbers were made with, so nothing is repaired here. Any string gets a verdict in linear time; only an answer that
reasoning_score must hand to math-verify takes longer.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from common.rewards import block, last_boxed
from common.symbolic import verified

# ---------------------------------------------------------------- VLMEvalKit's can_infer

REFUSALS = ("Sorry, I can't help with images of people yet.", "I can't process this file.",
            "I'm sorry, but without the image provided", "Cannot determine the answer")  # fmt: skip
FAILED = "Failed to obtain answer via API"
MARKS = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
STATED = re.compile(r"(?:correct\s+)?answer\s+is\s+\**([ABCD])", re.I)


def can_infer(response: str, options: dict[str, str]) -> str | None:
    """The letter that a response names; "Z" for a refusal; None where VLMEvalKit would ask a judge.

    options: letter -> text. The letter must be the only one of them that stands alone, and first do so among the last
    four words; or follow "answer is"; or else the text of exactly one option must be in a short response.
    """
    if FAILED not in response:
        if any(refusal in response for refusal in REFUSALS):
            return "Z"
        words = response.translate(MARKS).split()
        alone = set(words)
        found = [letter for letter in options if letter in alone]
        if len(found) == 1 and words.index(found[0]) > len(words) - 5:
            return found[0]
        if not found and "Z" in alone:
            return "Z"
        stated = STATED.search(response)
        if stated and stated.group(1).upper() in options:
            return stated.group(1).upper()
    return named_option(response.lower(), options)


def named_option(response: str, options: dict[str, str]) -> str | None:
    """The letter of the only option whose text is in a lower-case response of at most twice the length of all texts."""
    texts = {letter: str(text) for letter, text in options.items()}
    if len(response) > 2 * sum(map(len, texts.values())):
        return None
    found = [letter for letter, text in texts.items() if text.lower() in response]
    return found[0] if len(found) == 1 else None


# ---------------------------------------------------------------- lmms-eval's extract_mcq_answer

CUES = (*(f"{the}{best}{noun} is" for the in ("", "the ") for best, noun in (
    ("", "answer"), ("correct ", "answer"), ("best ", "answer"), ("correct ", "option"), ("best ", "option"),
    ("", "choice"), ("correct ", "choice"))), "my answer is", "my choice is", "i choose", "i select", "i pick",
    "옵션", "정답은", "답은", "답:", "答案是", "答案为", "选", "答えは")  # fmt: skip


def stripped(text: str, marks: str) -> str:
    """Without these marks around it, each taken away once and in this order, so that "A.," keeps its period."""
    for mark in marks:
        text = text.strip(mark)
    return text


def extract_letter(response: str, letters: Sequence[str]) -> str:
    """The letter in the most telling place (start, end, behind a cue, "(A)", "A.", "A:", "A)", "A "), the later of two
    in equal places; without any such place the last occurrence; "" if none of the letters occurs. Case counts."""
    if not response.strip():
        return ""
    core = stripped(response.strip(), ",.!?;:'\"")
    text, ends = f" {core} ", core.strip()
    lower = text.lower()
    cues = [at + len(cue) for cue in CUES if (at := lower.find(cue)) >= 0]
    found: list[tuple[int, int, str]] = []  # how telling the place is, where it is, the letter
    for letter in letters:
        if ends.startswith(letter) and not ends[1:2].isalpha():
            found.append((10, 0, letter))
        if ends.endswith(letter) and not ends[-2:-1].isalpha():
            found.append((9, len(text) - 1, letter))
        found += [(7, at, letter) for cue in cues if (at := text.find(letter, cue)) >= 0]
        for rank, form in ((6, f"({letter})"), (5, f"{letter}."), (4, f"{letter}:"), (3, f"{letter})"),
                           (2, f"{letter} ")):  # fmt: skip
            found.append((rank, text.rfind(form), letter))
        found.append((0, text.rfind(letter), letter))
    found = [place for place in found if place[1] >= 0]
    return max(found, key=lambda place: place[:2])[2] if found else ""


# ---------------------------------------------------------------- MMMU's multiple choice


def mmmu_letter(response: str, letters: Sequence[str], options: dict[str, str], lmms: bool = False) -> str:
    """The letter that MMMU's parser reads; "" where it would draw one by lot.

    The first of these that occurs, and of several letters the one that occurs last: "(A)", " A ", and in a response of
    more than five words the text of an option. lmms (lmms-eval, and MMMU-Pro's own script): "A " without the blank
    before it, so that "USA " names A; then "A."; and as the last place is still looked for as " A ", the first letter
    wins where none of several stands so.
    """
    text = " " + stripped(response, ",.!?;:'") + " "
    blank = "{} " if lmms else " {} "
    for form, place in (("({})", "({})"), (blank, " {} "), *((("{}.", " {} "),) if lmms else ())):
        found = [letter for letter in letters if form.format(letter) in text]
        if found:
            return latest(found, (text.rfind(place.format(letter)) for letter in found))
    if len(text.split()) <= 5:
        return ""
    lower, texts = text.lower(), {letter: str(option).lower() for letter, option in options.items()}
    found = [letter for letter, option in texts.items() if option in lower]
    return latest(found, (lower.rfind(texts[letter]) for letter in found))


def latest(letters: Sequence[str], places: Iterable[int]) -> str:
    """The letter with the largest place, the first of equals; "" for none."""
    return max(zip(letters, places, strict=True), key=lambda pair: pair[1], default=("", 0))[0]


# ---------------------------------------------------------------- lmms-eval's score of a response with reasoning

END_NUMBER = re.compile(r"(?:\b\d+\.)?\b\d+\Z")
SIGN = re.compile(r"[=+\-*/()\[\]\\]")
LOOSE_CUE = re.compile("(?:the )?(?:correct |best )?answer|my choice is|my answer is|i (?:choose|select|pick)|"
                       "(?:the )?(?:correct )?(?:option|choice) is")  # fmt: skip
LOOSE_MARKS = {".": 5, ":": 4, ")": 3, " ": 2, "-": 1, "_": 1, "=": 1}


def reasoning_score(response: str, truth: str) -> tuple[float, float]:
    r"""(accuracy, format). Accuracy: 0 or 1. Format: 1 for think or analysis and answer blocks or any \boxed{...}, 0.8
    for a text of more than 50 characters with a sign of mathematics and an answer, else 0. No judge is asked."""
    response = response.strip()
    answer = tagged_answer(response)
    return same_answer(without_period(answer.strip()), without_period(truth)), format_score(response, answer)


def without_period(text: str) -> str:
    return text.removesuffix(".").strip()


def tagged_answer(response: str) -> str:
    r"""The first <answer> block, else the last \boxed{...} that closes, else the last number that ends a line."""
    _, opened, rest = response.partition("<answer>")
    content, closed, _ = rest.partition("</answer>")
    if opened and closed:
        return content
    if boxed := last_closed_box(response):
        return boxed
    for line in reversed(response.split("\n")):
        if number := END_NUMBER.search(line.rstrip().removesuffix(".").rstrip()):
            return number.group()
    return ""


def last_closed_box(text: str) -> str:
    r"""Content of the last \boxed{ whose brace closes, though others behind it may stay open; "" without one."""
    opened: list[int] = []
    last, content = -1, ""
    for brace in re.finditer(r"[{}]", text):
        if brace.group() == "{":
            opened.append(brace.end())
        elif opened:
            start = opened.pop()
            if start > last and text.endswith("\\boxed{", 0, start):
                last, content = start, text[start : brace.start()]
    return content


def format_score(response: str, answer: str) -> float:
    for tag in ("<think>", "<analysis>"):
        if response.startswith(tag) and response.endswith("</answer>"):
            _, closed, rest = response[len(tag) : -len("</answer>")].partition(tag.replace("<", "</"))
            if closed and "<answer>" in rest:
                return 1.0
    if last_closed_box(response):
        return 1.0
    return 0.8 if len(response) > 50 and SIGN.search(response) and answer else 0.0


def same_answer(answer: str, truth: str) -> float:
    # A truth with any capital from A to H in it ("Cat") counts as a letter, and then only the same letter is right.
    if letter := loose_letter(truth):
        return float(loose_letter(answer) == letter)
    shorter, longer = sorted((answer, truth), key=len)
    if shorter in longer and len(shorter) >= 0.9 * len(longer):
        return 1.0
    return verified([truth], [answer])[0] if answer and truth else 0.0


def loose_letter(text: str) -> str:
    """Any of the letters A to H in the most telling place, the earlier of two in equal places; "" without a capital."""
    core = stripped(text.strip(), ",.!?;:'\"")
    text, ends = f" {core} ", core.strip()
    cue, found = LOOSE_CUE.search(text.lower()), []  # how telling the place is, minus where it is, the letter
    for number, letter in enumerate("ABCDEFGH", 1):
        places = [(8, text.rfind(f"{number}. {letter}")), (6, text.rfind(f"({letter})")), (0, text.rfind(letter))]
        places += [(rank, text.rfind(letter + mark)) for mark, rank in LOOSE_MARKS.items()]
        places += [(7, text.find(letter, cue.start()))] if cue else []
        places += [(10, 0)] * ends.startswith(letter) + [(9, len(text) - 1)] * ends.endswith(letter)
        found += [(rank, -at, letter) for rank, at in places if at >= 0]
    return max(found, key=lambda place: place[:2])[2] if found else ""


# ---------------------------------------------------------------- MATH-Vision's and ReasonMap-Plus' final answer

ANSWER_CUES = ("the final answer is", "the answer is", "the correct answer is", "the answer should be")


def stated_answer(response: str) -> str:
    """The last box, else what follows the cues; in lower case."""
    if "oxed{" not in response:
        response = after_cues(response)
    elif response.count("oxed{") > 1:
        response = "\\boxed{" + response.rpartition("oxed{")[2]
    return inside_box(response.lower().replace("{}", ""))


def after_cues(text: str) -> str:
    """What follows the last of each cue, up to the end of its line or sentence."""
    for cue in ANSWER_CUES:
        for form in (cue, cue.replace("the", "The")):
            _, found, rest = text.rpartition(form)
            text = rest.strip()
            if found:
                text = text.partition("\n")[0].partition(". ")[0]
    return text


def inside_box(text: str) -> str:
    """From the first box to the last brace of all, cut at a brace that closes nothing, behind the last "=" or sign of
    approximation."""
    start, end = text.find("oxed{"), text.rfind("}")
    if 0 <= start <= end - len("oxed{"):
        text = text[start + len("oxed{") : end]
    stray = text.find("}")
    if stray >= 0 and "{" not in text[:stray]:
        text = text[:stray]
    return text.rpartition("=")[2].rpartition("\\approx")[2]


# ---------------------------------------------------------------- our own

OWN_RULE = "own rule without a judge (not an official score)"  # the line's name


def final_answer(response: str) -> str:
    """The <answer> block, else the last box, else all of the response."""
    blocks = (block(response, "answer"), last_boxed(response))
    return next((text for text in blocks if text is not None), response)


# ---------------------------------------------------------------- yes or no

PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'


def yes_no(response: str) -> str:
    """ "Yes" or "No" if just one of these words occurs, else "Unknown"."""
    found = {"yes", "no"} & set(without_punctuation(response.lower()).split())
    return found.pop().capitalize() if len(found) == 1 else "Unknown"


def without_punctuation(text: str, period: str = r"(?<!\d)\.(?!\d)") -> str:
    """As VQA has it: a mark that is next to a blank somewhere goes everywhere, any other becomes a blank; with a comma
    between two digits anywhere all go, so that "1,000: yes/no" has the word "yesno". period: which periods go."""
    between_digits = re.search(r"\d,\d", text) is not None
    left = text
    for mark in PUNCTUATION:
        gone = between_digits or f"{mark} " in text or f" {mark}" in text
        left = left.replace(mark, "" if gone else " ")
    # The periods behind the first 32 stay: the originals give a flag, re.UNICODE, as the count.
    return re.sub(period, "", left, count=32)

"""Injecting one error into a caption by rule: a word is exchanged for a near neighbour out of small lists.

    corrupt("A red car by two trees.", rng)
    -> {"caption": "A red car by three trees.", "right": "two trees", "wrong": "three trees", "kind": "count", ...}

Meant for any captions in English, as training data for finding errors (ViCrit, arXiv 2506.10128, where GPT-4 wrote
them). Kinds are those of ViCrit-Bench, and size.
"""

from __future__ import annotations

import random
import re
from collections.abc import Set
from typing import Any

from common.tasks.captions import EDGES, words

# Words that look or mean nearly the same without being synonyms, in groups; within a group any may replace any.
NEAR = {
    "color": "red orange pink purple, blue green turquoise, black gray brown, black grey navy, black blue, "
             "yellow orange gold, white beige yellow, gold silver bronze, maroon crimson",
    "material": "wooden metal plastic, wood steel, stone brick concrete marble, leather cotton denim "
                "wool, ceramic porcelain, paper cardboard",
    "spatial": "left right middle, above below, top bottom, upper lower, inside outside, front back, foreground "
               "background, beside behind, leftmost rightmost, horizontal vertical",
    "size": "small medium large, tiny huge, tall short, wide narrow, thick thin, long short, big little",
    "shape": "round square oval, circle square triangle star diamond cross, rectangle trapezoid, cube sphere cylinder, "
             "circular rectangular triangular, curved straight, pointed rounded",
    "condition": "open closed, wet dry, empty full, clean dirty, old new, sunny cloudy, broken intact, lit unlit, "
                 "smooth rough, bare leafy, standing sitting, smiling frowning",
    "object": "man woman, boy girl, men women, dog cat fox, horse cow donkey, sheep goat, "
              "duck goose swan, lion tiger, car truck van bus, bicycle motorcycle scooter, boat ship canoe, train "
              "tram, chair stool bench sofa, table desk shelf, cup mug bowl, fork spoon, bottle jar, apple pear "
              "peach, lemon lime, banana cucumber, shirt jacket sweater, hat cap helmet, shoe boot sandal, skirt "
              "dress, scarf tie, glove sock, window door, roof wall fence, tree bush, tulip daisy, river lake pond, "
              "hill mountain, road path bridge, lamp candle, book magazine, phone camera, laptop tablet, "
              "guitar violin, kite balloon, umbrella tent, box bag basket, pillow blanket, eagle hawk owl",
}  # fmt: skip
COUNTS = words("two three four five six seven eight nine ten eleven twelve")
LOOK_ALIKE = dict(words("ao bd co db ef fe gq hn ij ji kx lt mn nm oc pq qg rn sz tf uv vu wv xk yv zs "
                  "08 17 25 38 46 52 65 71 83 90"))  # fmt: skip
STOP = frozenset(words(
    "a an the and or but nor of in on at to by for from with without into onto over under near next between through "
    "is are was were be been being am has have had do does did can could will would may might must shall should it "
    "its this that these those there here he she they his her their who which what where when while as if than then "
    "so not no also very just each every some any both all another other one i we you my our your s t"
))  # fmt: skip


def near_words() -> dict[str, tuple[str, list[str]]]:
    """word -> (kind, its replacements); objects and shapes in the plural too."""
    table: dict[str, tuple[str, list[str]]] = {}
    for kind, groups in NEAR.items():
        for group in (part.split() for part in groups.split(",")):
            forms = [group]
            countable = {"object": group[0] not in ("man", "men", "sheep"), "shape": group[0] in ("circle", "cube")}
            if countable.get(kind):
                forms += [[w + ("es" if w.endswith(("s", "x", "sh", "ch")) else "s") for w in group]]
            for form in forms:
                for word in form:
                    known = table.get(word, (kind, []))
                    table[word] = known[0], known[1] + [w for w in form if w != word and w not in known[1]]
    for i, word in enumerate(COUNTS):
        table[word] = "count", COUNTS[max(0, i - 1) : i] + COUNTS[i + 1 : i + 2]
    return table


TABLE = near_words()
QUOTED = re.compile(r'"[^"\n]{2,80}"|“[^”\n]{2,80}”')


def misspelt(word: str, rng: random.Random) -> str:
    """A written word or number with one character exchanged for one that looks like it, in the same case."""
    places = [i for i, char in enumerate(word) if char.lower() in LOOK_ALIKE]
    i = rng.choice(places)
    new = LOOK_ALIKE[word[i].lower()]
    return word[:i] + (new.upper() if word[i].isupper() else new) + word[i + 1 :]


def replacements(word: str, following: str, quoted: bool, rng: random.Random) -> tuple[str, list[str]]:
    """(kind, possible replacements) of a word of a caption; following: the next word, "" at the end of a phrase."""
    if quoted:
        return "text", [misspelt(word, rng)] if len(word) > 2 and word.isascii() and word.isalnum() else []
    if word.isascii() and word.isdigit() and len(word) <= 3:
        if following.isalpha() and following.lower() not in STOP:
            return "count", [str(n) for n in (int(word) - 1, int(word) + 1) if n > 0]
        return "text", [misspelt(word, rng)]
    kind, options = TABLE.get(word.lower(), ("", []))
    if word[0].isupper():
        options = [w.upper() if word.isupper() and len(word) > 1 else w.capitalize() for w in options]
    return kind, list(options)


def corrupt(caption: str, rng: random.Random, known: Set[str] = frozenset()) -> dict[str, Any] | None:
    """One injected error: {"caption", "original", "right", "wrong", "kind", "start"}; None if no word can be changed.

    A word is replaced by a near neighbour of the lists above (scene text and numbers by what looks like them); the
    phrase is the 1 to 5 words around it. The wrong phrase stands nowhere else in the caption. start: its index in
    words(caption). known: words of other captions of the same data; if they allow it, nothing else is put in, because
    a word that the data never use gives itself away. Every kind that occurs is as likely; the same rng state gives the
    same error. Whether the sentence around still fits (him, her) is not checked.
    """
    spans = [(m.start() + m.group().find(core), core) for m in re.finditer(r"\S+", caption)
             if (core := m.group().strip(EDGES))]  # fmt: skip
    quotes = [m.span() for m in QUOTED.finditer(caption)]
    tokens = [core for _, core in spans]
    linked = [caption[a + len(core) : b].isspace() for (a, core), (b, _) in zip(spans, spans[1:], strict=False)]
    linked.append(False)  # linked[i]: nothing but blanks between word i and the next
    sites: dict[str, list[tuple[int, str]]] = {}
    inside, q = [], 0
    for at, _ in spans:  # both are in order
        while q < len(quotes) and quotes[q][1] <= at:
            q += 1
        inside.append(q < len(quotes) and quotes[q][0] < at)
    for i, word in enumerate(tokens):
        kind, options = replacements(word, tokens[i + 1] if linked[i] else "", inside[i], rng)
        for option in options:
            sites.setdefault(kind, []).append((i, option))
    usual = {kind: [(i, w) for i, w in part if kind == "text" or w.lower() in known] for kind, part in sites.items()}
    for choice in ([usual] if known else []) + [sites]:
        kinds = sorted(kind for kind in choice if choice[kind])
        rng.shuffle(kinds)
        for kind in kinds:
            rng.shuffle(choice[kind])
            for i, option in choice[kind][:20]:
                if made := replaced(caption, spans, linked, i, option):
                    return made | {"kind": kind}
    return None


def is_part(word: str) -> bool:
    """Whether a word before another one belongs to its phrase: a word of the lists or a number."""
    return word.lower() in TABLE or word.isdigit()


def replaced(caption: str, spans: list[tuple[int, str]], linked: list[bool], i: int,
             option: str) -> dict[str, Any] | None:  # fmt: skip
    """The caption with word i exchanged, its article adapted; None if the new phrase stands there anyway."""
    tokens = [core for _, core in spans]
    first = last = i
    while last - i < 2 and linked[last] and tokens[last + 1].lower() not in STOP:
        last += 1
    while first > 0 and last - first < 4 and linked[first - 1] and is_part(tokens[first - 1]):
        first -= 1
    edits = {i: option}
    if first > 0 and linked[first - 1] and tokens[first - 1].lower() in ("a", "an"):
        article, head = tokens[first - 1], option if first == i else tokens[first]
        vowel = head[0].lower() in "aeiou" and not head.lower().startswith(("uni", "one", "eu"))
        edits[first - 1] = article[0] + ("n" if vowel else "")
    text = caption
    for n in sorted(edits, reverse=True):
        at, core = spans[n]
        text = text[:at] + edits[n] + text[at + len(core) :]
    new = [*tokens[first:i], option, *tokens[i + 1 : last + 1]]
    wrong, all_words = [w.lower() for w in new], words(text)
    places = [n for n in range(len(all_words)) if all_words[n : n + len(wrong)] == wrong]
    if places != [first]:
        return None
    return {"caption": text, "original": caption, "right": " ".join(tokens[first : last + 1]),
            "wrong": " ".join(new), "start": first}  # fmt: skip

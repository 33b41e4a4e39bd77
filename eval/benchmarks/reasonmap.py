r"""ReasonMap: plan a route on a transit map, in short or with the stops between; ReasonMap-Plus: yes/no and counting.

Evaluators: fscdc/ReasonMap at e68dd65 (main.py, tools.py) and, for Plus, its later main_plus.py.

    accuracy    1 if the route leads from station_1 to station_2 over lines that exist and hold their stops; direction,
                order of stops and detours are not checked
    map score   0 to 20 (short) or 40 (long): how much of a map service's best matching plan the answer has, and half
                of the points for a correct route
    fixed       the default: the map score compares with the plan's own line names and arrival stops
    official    two bugs of main.py, see line_name and plan_stops; accuracy is the same
    Plus        accuracy of what stands in \boxed{} or behind "the answer is", weighted by the map's difficulty

The paper weights accuracy by difficulty with a table that is not in the code, whose weight is 1; so is it here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from benchmark import Benchmark, Line, Result, Row, bootstrap, cell, lines_by, mean_line
from common.errors import SightRLError
from extract import stated_answer

TEST_CITIES = ("los_angeles", "miami", "toronto", "singapore", "auckland", "rome", "lisboa", "beijing", "hangzhou",
               "budapest", "geneva")  # fmt: skip
LABELS = ("Route Name:", "Departure Stop:", "Arrival Stop:")
COUNT = "Number of Via Stops:"  # in one kind of the long questions; the others ask for the stops themselves
STATION = "站"  # ends the names of stops in China
Section = dict[str, str]  # of an answer: line, departure, arrival, and for long questions via
Part = dict[str, Any]  # of a reference plan: route_name, departure_stop, arrival_stop, via_stops, num_via_stops


# ---------------------------------------------------------------- rows


def table(row: Row, name: str) -> dict[str, list]:
    """A column that holds {name: list}, perhaps as JSON text; a table format may have put None for absent names."""
    value = cell(row, name, dict, str)
    try:
        value = json.loads(value) if isinstance(value, str) else value
        return {str(key): list(entry) for key, entry in value.items() if entry is not None}
    except (ValueError, AttributeError, TypeError, RecursionError):
        raise SightRLError(f"column {name} must hold an object of lists, as in the published files.") from None


def stops_of(row: Row) -> dict[str, set[str]]:
    """Line -> its stops, cleaned."""
    marks = ("（换乘站）", "（支线起始站）", " (Transfer Station)", " (Branch-starting Station)")
    lines = {}
    for line, stops in table(row, "json").items():
        lines[line] = set()
        for stop in map(str, stops):
            for mark in marks:
                stop = stop.replace(mark, "")
            lines[line].add(clean(stop))
    return lines


def plans_of(row: Row, counted: bool) -> list[list[Part]]:
    """The reference plans. counted: the answer is asked for the numbers of stops between."""
    plans = list(table(row, "routes").values())
    needed = {"route_name", "departure_stop", "arrival_stop"}
    for part in (part for plan in plans for part in plan):
        if not isinstance(part, dict) or not needed <= part.keys():
            raise SightRLError("column routes holds a plan without route_name, departure_stop or arrival_stop.")
        if counted and whole_number(str(part.get("num_via_stops"))) is None:
            raise SightRLError("column routes holds a plan without num_via_stops as a whole number.")
    return plans


# ---------------------------------------------------------------- prompts


def prompt(row: Row, scoring: str, column: str) -> str:
    """The published question, which says how to answer; said again for questions without it."""
    question = cell(row, column, str)
    if "Route Name:" in question:
        return question
    last = "\nVia Stops: the stops between, with commas (or Number of Via Stops: how many)"
    return (f"{question}\nWrite one block for each line that is taken, and two dashes (--) between blocks:\n"
            "Route Name: the line\nDeparture Stop: where to get on\nArrival Stop: where to get off"
            f"{last if column == 'question_long' else ''}")  # fmt: skip


def plus_prompt(row: Row, scoring: str) -> str:
    kind = cell(row, "type", str)
    form = "yes or no" if "TorF" in kind else "the letter of the option" if kind == "Counting1" else "the number"
    return f"{cell(row, 'question', str)}\nEnd with the answer, {form}, as \\boxed{{answer}}."


# ---------------------------------------------------------------- extraction


def clean(name: str) -> str:
    """Names as they are compared: without "Metro", commas, asterisks, brackets, blanks, hyphens; lower case."""
    for mark in ("Metro", "metro", ",", "*", "\n"):
        name = name.replace(mark, "")
    return re.sub(r"[\s\-]+", "", without_brackets(name)).lower()


def without_brackets(text: str) -> str:
    """Without every stretch from an opening to the next closing bracket, ASCII or full-width. Linear time."""
    kept, at, opened = [], 0, -1
    for mark in re.finditer("[()（）]", text):
        if mark[0] in "(（":
            opened = mark.start() if opened < 0 else opened
        elif opened >= 0:
            kept.append(text[at:opened])
            at, opened = mark.end(), -1
    return "".join(kept) + text[at:]


def after(section: str, label: str) -> str | None:
    """What follows a label and a blank up to the end of the line, if the line ends."""
    start = section.find(f"{label} ")
    end = section.find("\n", start)
    return section[start + len(label) + 1 : end] if start >= 0 and end >= 0 else None


def sections_of(response: str, question: str | None = None) -> list[Section]:
    """The blocks of an answer. question: the long one. Traps of the evaluator, kept: a short arrival is everything
    behind the label, so that closing words spoil it; a long one needs a line break behind it."""
    for mark in ("</think>", "◁/think▷"):  # thoughts are cut off, as main.py does for models that think
        if mark in response:
            response = response.rpartition(mark)[2].strip()
    sections = []
    for text in response.split("--"):
        if not all(label in text for label in LABELS):
            continue
        line, departure, arrival = (after(text, label) for label in LABELS)
        if question is None:
            arrival = text.rpartition("Arrival Stop:")[2].strip()
        found = {"line": "Wrong" if line is None else line.strip(),
                 "departure": "Wrong" if departure is None else clean(departure),
                 "arrival": "Wrong" if arrival is None else clean(arrival)}  # fmt: skip
        if question is not None:
            label = COUNT if COUNT in question else "Via Stops:"
            found["via"] = text.split(f"{label} ")[-1].strip()  # without the label the whole block
        sections.append(found)
    return sections


# ---------------------------------------------------------------- accuracy


def right_ends(row: Row, sections: Sequence[Section]) -> bool:
    first, last = clean(cell(row, "station_1", str)), clean(cell(row, "station_2", str))
    return bool(sections) and (clean(sections[0]["departure"]), clean(sections[-1]["arrival"])) == (first, last)


def connected(lines: dict[str, set[str]], sections: Sequence[Section]) -> bool:
    """Whether every line exists and has both stops, and every section begins where the one before ends."""
    for number, section in enumerate(sections):
        line = "Line 1" if "八通" in section["line"] else section["line"]  # two branches that the map counts to lines
        line = "Line 4" if "大兴" in line else line
        departure, arrival = clean(section["departure"]), clean(section["arrival"])
        if line not in lines or not {departure, arrival} <= lines[line]:
            return False
        if number + 1 < len(sections) and arrival != clean(sections[number + 1]["departure"]):
            return False
    return True


# ---------------------------------------------------------------- map score

SERVICES = {
    "auckland": {"West": "Western Line", "Sth": "Southern Line", "East": "Eastern Line"},
    "dubai": {"MRed1": "Red Line", "MRed2": "Red Line", "MGrn": "Green Line"},
    "rome": {"B1": "Line B"},
    "kl": {"MRT Putrajaya Line": "Line 12", "Ampang Line": "Line 3", "LRT Kelana Jaya Line": "Line 5",
           "KTM Tanjung Malim - Pelabuhan Klang": "Line 2", "LRT Sri Petaling Line": "Line 4",
           "MRT Kajang Line": "Line 9", "KTM Batu Caves - Pulau Sebang/Tampin": "Line 1"},
}  # fmt: skip
LETTERS = "([A-Z0-9]{1,2})"
LEGACY = [re.compile(start + LETTERS + end, re.I) for start, end in (
    (r"Metro\s+", r"[-\s]?Line"), (r"Metro\s+", ""), (r"Linea\s+", ""), ("", ""))]  # fmt: skip
SHORT_NAME = re.compile(rf"(?:Metro|Linea)\s+{LETTERS}\b.*|{LETTERS}|M(\d+)-.*|{LETTERS}\s+(?:Line|Train)", re.I)


def line_name(row: Row, service: str, said: str, scoring: str) -> str:
    """The map's name of the line that the map service calls `service`; said: the line in the answer.

    A bug of main.py: outside China it reads `said` instead of `service`, and by patterns of which the last takes any
    one or two letters, so "Line 3" is compared with "Line Li" and the two points are out of reach.
    """
    city = str(row.get("city"))
    if row["country"] == "china":
        number = re.search(r"\d+", service)
        return f"Line {whole_number(number[0])}" if number else re.sub(r"\(.*?\)", "", service).replace("地铁", "")
    if scoring == "official":
        match = next((match for pattern in LEGACY if (match := pattern.search(said))), None)
        if match is None:
            return said
        return "Line B" if match[1] == "B1" and city == "rome" and match.re is LEGACY[3] else f"Line {match[1]}"
    if service in SERVICES.get(city, {}):
        return SERVICES[city][service]
    match = SHORT_NAME.fullmatch(service.strip())
    return f"Line {next(filter(None, match.groups()))}" if match else service


def plan_stops(row: Row, part: Part, long: bool, scoring: str) -> tuple[str, str]:
    """(departure, arrival) of a part of a plan, with the word for station at the end.

    A bug of main.py (not for long answers in China): where the departure has the word already, it stands for the
    arrival too; and else the arrival gets the word even if it has it.
    """
    china = row["country"] == "china"
    departure, arrival = str(part["departure_stop"]), str(part["arrival_stop"])
    ending, word = (STATION, STATION) if china else ("Station", " Station")

    def whole(name: str) -> str:
        return name if name.endswith(ending) else name + word

    if scoring == "official" and not (china and long):
        return whole(departure), departure if departure.endswith(ending) else arrival + word
    return whole(departure), whole(arrival)


def via_count_score(section: Section, part: Part) -> float:
    """4 for the right number of stops between, less by the relative error; no number counts as 0."""
    match, gold = re.search(r"\d+", section["via"]), int(part["num_via_stops"])
    said = 0 if match is None else whole_number(match[0])
    if said == gold:
        return 4.0
    error = 10**9 if said is None else min(abs(said - gold), 10**9)
    return max(0.0, 4 - (error / gold) * 4) if gold else 0.0


def plan_points(row: Row, sections: Sequence[Section], plan: Sequence[Part], scoring: str) -> dict[str, float]:
    """Points that an answer with the right ends has for one plan, before any cap on their sum."""
    long, line, stops, counted, hits = "via" in sections[0], 0, 0, 0.0, 0
    union: set[str] = set()
    shared: set[str] = set()
    for section, part in zip(sections, plan, strict=False):
        reference = line_name(row, str(part["route_name"]), section["line"], scoring)
        same_line = clean(reference) == clean(section["line"])
        departure, arrival = plan_stops(row, part, long, scoring)
        line += 2 * same_line
        stops += (clean(departure) == clean(section["departure"])) + (clean(arrival) == clean(section["arrival"]))
        if long and COUNT in row["question_long"]:
            counted += via_count_score(section, part)
        elif long:  # stops are compared as written: a blank behind a comma makes another stop
            said = section["via"].split(",") if STATION in section["via"] else []
            names = map(str, part.get("via_stops") or ()) if row["country"] == "china" else ()  # only there it has them
            truth = {name if name.endswith(STATION) else name + STATION for name in names}
            hits += sum(stop in truth for stop in said)
            if same_line:
                union |= truth | set(said)
                shared |= truth & set(said)
    listed = (len(shared) / len(union) * 10 if union else 0.0) + min(10, hits)
    return {"ends": 1.0, "line": float(line), "stops": float(stops), "via": listed / 2 + min(10.0, counted)}


def score(row: Row, response: str, scoring: str, column: str) -> Result:
    """parts: "map_score" and what the best plan gave for it, the last of equal ones."""
    long, question = column == "question_long", cell(row, column, str)
    cell(row, "country", str)
    plans, lines = plans_of(row, long and COUNT in question), stops_of(row)
    sections = sections_of(response, question if long else None)
    ends = right_ends(row, sections)
    right = ends and connected(lines, sections)
    cap = 20.0 if long else 10.0
    parts = {"map_score": 0.0, "ends": 0.0, "line": 0.0, "stops": 0.0, "via": 0.0}
    for plan in plans if ends else ():
        points = plan_points(row, sections, plan, scoring)
        total = min(cap, sum(points.values())) + (cap if right else 0.0)
        if total >= parts["map_score"]:
            parts = {"map_score": total, **points}
    read = [[section["line"][:80], section["departure"][:80], section["arrival"][:80]] for section in sections[:20]]
    return Result(float(right), read, parts=parts)


# ---------------------------------------------------------------- Plus

LATEX = ("\\left", "\\right", "^{\\circ}", "^\\circ")
NOISE = (" ", "\\,", "\\\\", "\n", "\\text", "\\mbox", *LATEX, "{m}^3", "m^3", "{units}", "units", "{km}", "km",
         "\\!", "\\\\", *LATEX, "\\$", "$", "\\%")  # fmt: skip


def plus_answer(response: str) -> str:
    """The last box, else what follows "the answer is", without blanks, units and LaTeX's decorations. As the original
    has it, but for what can end in neither a word nor a whole number."""
    text = stated_answer(response)
    for noise in NOISE:  # one after the other: what goes can bring together what goes next
        text = text.replace(noise, "\\" if noise == "\\\\" else "")
    text = "0" + text if text.startswith(".") else text
    return text.rstrip(".").lstrip(":").strip()


def whole_number(text: str) -> int | None:
    try:
        return int(text) if len(text) < 4000 else None  # Python refuses to read much longer ones
    except ValueError:
        return None


def plus_score(row: Row, response: str, scoring: str) -> Result:
    kind, gold, said = cell(row, "type", str), whole_number(str(cell(row, "answer"))), plus_answer(response)
    if gold is None:
        raise SightRLError(f"column answer holds {str(row['answer'])[:60]!r}; it must be a whole number.")
    if "TorF" in kind:
        right = said == ("yes" if gold == 1 else "no")
    elif kind in ("Counting2", "Counting3"):
        right = whole_number(said) == gold
    elif kind == "Counting1":
        right = said in tuple("abcd") and "abcd".index(said) == gold
    else:
        raise SightRLError(f"column type holds {kind[:60]!r}; it must be TorF1, TorF2 or Counting1 to Counting3.")
    return Result(float(right), said[:80])


# ---------------------------------------------------------------- summarise


def summarise(rows: Sequence[Row], results: Sequence[Result], scoring: str, most: int) -> list[Line]:
    accuracy, *groups = lines_by(rows, results, "difficulty_city", "question_transfer_count")
    test = [number for number, row in enumerate(rows) if row.get("city") in TEST_CITIES]
    scores = [result.parts["map_score"] for result in results]
    name = f"map score (of {most})"
    return [accuracy, mean_line(name, scores, 1.0),
            mean_line("test cities", [results[number].score for number in test]),
            mean_line(f"test cities, {name}", [scores[number] for number in test], 1.0), *groups]  # fmt: skip


WEIGHTS = {"easy": 1.0, "middle": 1.5, "hard": 2.0}


def plus_summarise(rows: Sequence[Row], results: Sequence[Result], scoring: str) -> list[Line]:
    lines = lines_by(rows, results, "type", "difficulty_city")
    if not rows:
        return lines
    units = np.array([(WEIGHTS.get(str(row["difficulty_city"]), 0.0), result.score)
                      for row, result in zip(rows, results, strict=True)])  # fmt: skip
    if not units[:, 0].all():
        raise SightRLError(f"column difficulty_city must hold one of {', '.join(WEIGHTS)} in every row.")
    interval = bootstrap(lambda some: np.average(some[:, 1], weights=some[:, 0]), units)
    return [Line("weighted accuracy", float(100 * np.average(units[:, 1], weights=units[:, 0])), len(units), interval),
            *lines]  # fmt: skip


TABLE = "arXiv 2505.18675, main table (weighted by difficulty)"
TUNED = "arXiv 2505.18675, RL table (weighted by difficulty)"
SHORT = (("o3", "63.02", TABLE), ("Gemini-2.5-Flash", "46.09", TABLE), ("Doubao-415", "43.14", TABLE),
         ("4o", "41.15", TABLE), ("Qwen2.5-VL-72B", "26.65", TABLE), ("InternVL3-78B", "25.35", TABLE),
         ("QvQ-72B", "9.03", TABLE), ("Skywork-R1V", "6.86", TABLE), ("Qwen2.5-VL-3B -> GRPO", "8.68 -> 11.46", TUNED),
         ("Qwen2.5-VL-7B -> GRPO", "13.28 -> 26.22", TUNED))  # fmt: skip
LONG = (("o3", "59.11", TABLE), ("Gemini-2.5-Flash", "29.86", TABLE), ("Doubao-415", "46.09", TABLE),
        ("4o", "42.80", TABLE), ("Qwen2.5-VL-72B", "24.22", TABLE), ("InternVL3-78B", "19.62", TABLE),
        ("QvQ-72B", "4.25", TABLE), ("Skywork-R1V", "3.21", TABLE), ("Qwen2.5-VL-3B -> GRPO", "7.99 -> 10.50", TUNED),
        ("Qwen2.5-VL-7B -> GRPO", "7.12 -> 26.04", TUNED))  # fmt: skip
NOTE = ("Maps are about 5,800 x 5,400 pixels: mind --max-pixels. Published: 2,048 new tokens. Published accuracy is "
        "weighted by difficulty with a table that the code lacks, so it is not quite comparable.")  # fmt: skip


def routes(title: str, column: str, most: int, reference: tuple[tuple[str, str, str], ...]) -> Benchmark:
    return Benchmark(
        title=title, source="hf:FSCCS/ReasonMap", split="validation", size=1008, metric="accuracy",
        licence="not stated for maps and questions; the code is MIT",
        columns=("country", "city", "json", "figure", column, "station_1", "station_2", "routes"),
        prompt=partial(prompt, column=column), score=partial(score, column=column),
        images=lambda row: [cell(row, "figure")], summarise=partial(summarise, most=most),
        scorings=("fixed", "official"),
        max_new_tokens=2048, identify=lambda row, number: f"{row['city']} {number}", reference=reference, note=NOTE,
    )  # fmt: skip


BENCHMARKS = {
    "reasonmap": routes("ReasonMap (short answers)", "question_short", 20, SHORT),
    "reasonmap_long": routes("ReasonMap (long answers)", "question_long", 40, LONG),
    "reasonmap_plus": Benchmark(
        title="ReasonMap-Plus (test)", source="hf:FSCCS/ReasonMap-Plus", split="test", size=1448,
        metric="weighted accuracy", licence="not stated; the code is MIT",
        columns=("figure", "question", "answer", "type", "difficulty_city"), prompt=plus_prompt, score=plus_score,
        images=lambda row: [cell(row, "figure")], summarise=plus_summarise, max_new_tokens=2048,
        reference=(("Qwen2.5-VL-7B", "44.21", "arXiv 2510.02240, table 1"),
                   ("Qwen2.5-VL-7B, RewardMap", "74.25", "arXiv 2510.02240, table 1")),
        note="Maps are about 5,000 pixels wide: mind --max-pixels.",
    ),
}  # fmt: skip

"""What is written and shown: results.json and table.md of a benchmark, the list of benchmarks, two runs compared."""

from __future__ import annotations

import json
import platform
import re
import textwrap
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmark import Benchmark
from common.errors import SightRLError
from escape import code, markdown
from scoring import Answered, ask_judge, lines

if TYPE_CHECKING:
    from common.evaluation import Evaluation
    from common.judge import Judge

LIBRARIES = ("torch", "transformers", "numpy", "pillow", "datasets", "math-verify", "scipy", "pycocotools")
WIDTH = 100  # columns of plain text


# ---------------------------------------------------------------- results of one benchmark


def versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {"python": platform.python_version()}
    for library in LIBRARIES:
        try:
            found[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            found[library] = None
    return found


def conclude(name: str, benchmark: Benchmark, answered: Sequence[Answered], about: dict[str, Any], skipped: list[str],
             judge: Judge | None, folder: Path) -> dict[str, Any]:  # fmt: skip
    """Write results.json and table.md, and give back what is in the first. about: settings, with "scoring"."""
    from common.checkpoint import write_file

    scoring = about["scoring"]
    plain = {"lines": lines(name, benchmark, answered, scoring), "undecided": undecided(answered)}
    found: dict[str, Any] = {"benchmark": name, "title": benchmark.title, "metric": benchmark.metric, **about,
                             "rows": len(answered), "k": len(answered[0].results), "skipped": skipped,
                             "repeated": repeated(answered),
                             "truncated": share(answered, lambda item: item.truncated)}  # fmt: skip
    final = answered
    if judge is not None:
        lost = judge.lost
        final, asked = ask_judge(benchmark, answered, scoring, judge)
        found["judge"] = {"asked": asked, "lost": judge.lost - lost, "about": about_judge(benchmark, asked)}
        found |= {"lines": lines(name, benchmark, final, scoring), "undecided": undecided(final), "rule_only": plain}
    else:
        found |= plain
    found |= {"pass": passes(final), "versions": versions()}
    scores = json.dumps({item.id: [result.score for result in item.results] for item in final})  # a line, not thousands
    text = json.dumps(found, indent=1)[:-2] + f',\n "scores": {scores}\n}}\n'
    write_file(folder / "results.json", lambda path: path.write_text(text, encoding="utf-8"))
    markdown = table(benchmark, found)
    write_file(folder / "table.md", lambda path: path.write_text(markdown, encoding="utf-8"))
    return found


def share(answered: Sequence[Answered], what: Callable[[Answered], Sequence[bool]]) -> float:
    """Of all responses."""
    flags = [bool(flag) for item in answered for flag in what(item)]
    return sum(flags) / len(flags) if flags else 0.0


def undecided(answered: Sequence[Answered]) -> float:
    return share(answered, lambda item: [result.undecided for result in item.results])


def repeated(answered: Sequence[Answered]) -> int:
    """Rows with the name of an earlier one, which asking.unique told apart."""
    ids = {item.id for item in answered}
    return sum(re.sub(r"#\d+$", "", row_id) in ids - {row_id} for row_id in ids)


def about_judge(benchmark: Benchmark, asked: int) -> str:
    return "" if asked or benchmark.judge_score is not None else "this benchmark has no judge"


def passes(answered: Sequence[Answered]) -> dict[str, float]:
    """{j: chance that one of j answers scores above 0.5}."""
    from common.evaluation import CORRECT, pass_at

    k = len(answered[0].results)
    right = [[result.score > CORRECT for result in item.results] for item in answered]
    return {str(j): value for j, value in pass_at(right, [*(j for j in (1, 2, 4, 8, 16, 32) if j < k), k]).items()}


def number(value: float | None) -> str:
    """One digit behind the point, as papers print per cent; three significant digits below 1."""
    if value is None:
        return ""
    return f"{value:.1f}" if value == 0 or abs(value) >= 1 else f"{value:.3g}"


def with_interval(line: dict[str, Any]) -> str:
    ends = line["interval"]
    return number(line["value"]) + (f" [{number(ends[0])}, {number(ends[1])}]" if ends else "")


def table(benchmark: Benchmark, found: dict[str, Any]) -> str:
    """Markdown: a row per line of the benchmark, then what was done in sentences."""
    k, rule_only = found["k"], found.get("rule_only")
    head = [benchmark.metric if k == 1 else f"{benchmark.metric}, avg@{k}", *([f"pass@{k}"] if k > 1 else [])]
    head += ["without judge"] if rule_only else []
    rows = [f"| | {' | '.join([*head, 'rows'])} |", f"|---|{'---:|' * (len(head) + 1)}"]
    rule_lines = rule_only["lines"] if rule_only else found["lines"]
    for n, line in enumerate(found["lines"]):
        cells = [with_interval(line), *([number(line["pass@k"])] if k > 1 else [])]
        cells += [with_interval(rule_lines[n]) if n < len(rule_lines) else ""] if rule_only else []
        rows.append(f"| {markdown(line['name'])} | {' | '.join(cells)} | {line['count']} |")
    title = f"{code(found['model'])} on {benchmark.title}, {found['scoring']} scoring"
    return "\n".join([title, "", *rows, "", *facts(benchmark, found)]) + "\n"


def facts(benchmark: Benchmark, found: dict[str, Any]) -> list[str]:
    settings, rule = found.get("settings", {}), found.get("rule_only") or found
    answers = "one answer" if found["k"] == 1 else f"{found['k']} answers"
    votes = settings.get("votes", 1)
    what = f"{found['rows']} rows" if votes == 1 else f"{found['rows']} votes, {votes} to a row"
    texts = [f"{what} ({markdown(found['source'])}, {found['split']}), {answers} each; 95 % intervals."]
    if benchmark.size and found["rows"] != benchmark.size * votes:
        texts.append(f"The published split has {benchmark.size} rows: this is a part of it.")
    if found["missing"]:
        texts.append(f"{found['missing']} rows without a prediction are left out.")
    if found["skipped"]:
        texts.append(f"{len(found['skipped'])} rows that cannot be used are left out; the first: "
                     f"{markdown(found['skipped'][0])}")  # fmt: skip
    if found["repeated"]:
        texts.append(f"{found['repeated']} rows repeat the name of an earlier row.")
    help_is_near = rule["undecided"] and "judge" not in found and benchmark.judge_score is not None
    texts.append(f"No rule could read an answer in {rule['undecided']:.1%} of the responses"
                 f"{'; --judge decides them' if help_is_near else ''}.")  # fmt: skip
    if judge := found.get("judge"):
        texts.append(judge["about"] or f"The judge {markdown(found['judge_spec'])} was asked about {judge['asked']} "
                     f"responses; {found['undecided']:.1%} stayed undecided.")  # fmt: skip
    if settings:
        how = "greedy" if settings["temperature"] == 0 else f"temperature {settings['temperature']:g}"
        tokens, pixels = settings["max_new_tokens"], f"{settings['min_pixels']} to {settings['max_pixels']}"
        texts.append(f"Sampling: {how}, at most {tokens} tokens ({found['truncated']:.1%} cut off).")
        texts.append(f"Pictures of {pixels} pixels, {settings['frames']} frames of a video; prompts "
                     f"{settings['prompt_hash']}.")  # fmt: skip
    return texts + [f"Published: {text}." for text in published(benchmark)]


def published(benchmark: Benchmark) -> list[str]:
    """A text for every source of published numbers: "one model 62.3; another 68.2 (its source)"."""
    sources: dict[str, list[str]] = {}
    for model, value, source in benchmark.reference:
        sources.setdefault(source, []).append(f"{model} {value}")
    return [f"{'; '.join(numbers)} ({source})" for source, numbers in sources.items()]


def overview(results: Sequence[dict[str, Any]]) -> str:
    """Markdown: the first line of every benchmark."""
    rows = ["| benchmark | metric | scoring | | rows |", "|---|---|---|---:|---:|"]
    for found in results:
        line = found["lines"][0] if found["lines"] else {"value": None, "interval": None}
        name = markdown(found["benchmark"])
        cells = (name, found["metric"], found["scoring"], with_interval(line), str(found["rows"]))
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


# ---------------------------------------------------------------- two runs


def load_results(folder: Path) -> dict[str, tuple[Evaluation, dict[str, Any]]]:
    """{benchmark: (scores per row, results)} of a run's folder, of one benchmark's folder, or of an eval.json."""
    from common.evaluation import Evaluation

    files = [folder] if folder.is_file() else [p for name in ("results.json", "eval.json", "*/results.json")
                                               for p in sorted(folder.glob(name))]  # fmt: skip
    loaded: dict[str, tuple[Evaluation, dict[str, Any]]] = {}
    for file in files:
        if file.name == "eval.json":
            evaluation = Evaluation.load(file)
            loaded[evaluation.settings.get("benchmark", "world")] = (evaluation, {"scoring": ""})
            continue
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
            records = [{"id": key, "task": "all", "split": found["benchmark"], "scores": scores}
                       for key, scores in found["scores"].items()]  # fmt: skip
            loaded[found["benchmark"]] = (Evaluation(records, found["k"]), found)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            problem = f"{file} is not what this program wrote ({type(error).__name__})"
            raise SightRLError(f"{problem}; evaluate again.") from None
    if not loaded:
        raise SightRLError(f"{folder} holds no results.json or eval.json; give a folder that ./run.sh eval wrote.")
    return loaded


def compare_runs(first: Path, second: Path) -> str:
    """Markdown: per benchmark both mean scores, the paired difference and McNemar's exact test. Raises SightRLError."""
    from common.evaluation import compare_evaluations

    before, after = load_results(first), load_results(second)
    common = [name for name in before if name in after]
    if not common:
        both = f"{first} ({', '.join(before)}) and {second} ({', '.join(after)})"
        raise SightRLError(f"{both} have no benchmark in common; evaluate both on the same.")
    rows = ["| | first | second | second − first | rows | gained | lost | p |", "|---|" + "---:|" * 7]
    notes = []
    for name in common:
        (old, old_found), (new, new_found) = before[name], after[name]
        if old_found["scoring"] != new_found["scoring"]:
            scorings = f"{old_found['scoring']} in {first} and {new_found['scoring']} in {second}"
            raise SightRLError(f"{name} has {scorings}; score both alike with --predictions and --scoring.")
        paired = compare_evaluations(old, new)
        stats, test = paired["overall"], paired["mcnemar"]
        low, high = (f"{100 * end:+.1f}" for end in stats["interval"])
        cells = [markdown(name), f"{100 * stats['before']:.1f}", f"{100 * stats['after']:.1f}",
                 f"{100 * stats['difference']:+.1f} [{low}, {high}]", str(stats["questions"]), str(test["gained"]),
                 str(test["lost"]), f"{test['p']:.3g}"]  # fmt: skip
        rows.append(f"| {' | '.join(cells)} |")
        notes += differences(name, old_found, new_found, (len(old.records), len(new.records), stats["questions"]))
    what = ("Mean scores of the rows that both answered, in per cent, with 95 % intervals of the paired differences; "
            "p: McNemar's exact test on rows that turned right (gained) or wrong (lost).")  # fmt: skip
    return "\n".join([f"first: {markdown(first)}, second: {markdown(second)}", "", *rows, "", what, *notes]) + "\n"


def differences(name: str, old: dict[str, Any], new: dict[str, Any], counts: tuple[int, int, int]) -> list[str]:
    """Sentences about what was not the same."""
    texts = []
    if counts[0] != counts[2] or counts[1] != counts[2]:
        texts.append(f"{name}: only {counts[2]} of {counts[0]} and {counts[1]} rows are in both.")
    a, b = old.get("settings") or {}, new.get("settings") or {}
    changed = [key for key in sorted(set(a) & set(b) - {"model", "model_files"}) if a[key] != b[key]]
    changed += ["judge"] if (old.get("judge_spec") or "") != (new.get("judge_spec") or "") else []
    return [*texts, *([f"{name}: not the same in both: {', '.join(changed)}."] if changed else [])]


# ---------------------------------------------------------------- the list


def details(benchmark: Benchmark) -> list[tuple[str, str]]:
    size = "not stated" if benchmark.size is None else str(benchmark.size)
    texts = [("rows", f"{size} ({benchmark.split})"), ("metric", benchmark.metric), ("licence", benchmark.licence),
             ("source", benchmark.source), ("scorings", ", ".join(benchmark.scorings))]  # fmt: skip
    texts += [("published", text) for text in published(benchmark)]
    return [*texts, *([("note", benchmark.note)] if benchmark.note else [])]


def show_list(table: dict[str, Benchmark], problems: Sequence[str]) -> None:
    """Print what there is by name: a table on a terminal, paragraphs elsewhere."""
    from rich.console import Console
    from rich.table import Column, Table
    from rich.text import Text

    console = Console()
    grid = Table(Column("benchmark", max_width=WIDTH // 4), Column("", overflow="fold"), show_lines=True)
    for name, benchmark in sorted(table.items()):
        facts = details(benchmark)
        if console.is_terminal:
            parts = [Text.assemble((f"{key} ", "dim"), text) for key, text in facts]
            left = Text.assemble((name, "bold"), f"\n{benchmark.title}")
            grid.add_row(left, Text("\n").join([Text(", ").join(parts[:3]), *parts[3:]]))
            continue
        print(f"{name}: {benchmark.title}")
        for key, text in facts:
            print(textwrap.fill(f"{key}: {text}", WIDTH, initial_indent="    ", subsequent_indent="        "))
        print()
    if console.is_terminal:
        console.print(grid)
    for problem in problems:
        print(f"warning: {problem}")

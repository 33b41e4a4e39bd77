"""Evaluate a model, or answers made elsewhere, on published benchmarks, the micro-world, or your own questions.

    ./run.sh eval --model tiny --benchmarks world
    ./run.sh eval --model Qwen/Qwen2.5-VL-3B-Instruct --benchmarks mathvista,mathverse --k 8 --run-name qwen3b
    ./run.sh eval --predictions samples_mathvista.jsonl --benchmarks mathvista
    ./run.sh eval --compare runs/eval/qwen3b runs/eval/mine
    ./run.sh eval --list

A benchmark is a name out of --list (a file in eval/benchmarks/), a file of your own (bench.py), "world" (the
micro-world: its splits test, test_combo and test_counter), or any --data form of the methods (its test split).
Writes predictions.jsonl, results.json and table.md per benchmark below runs/eval/; see docs/benchmarks.md.

The code in reading order, after benchmark.py, which says what a benchmark is:

    run.py          options, and which benchmarks they name
    tasks.py        the two ways to results, call by call: ask a model, or score a file of answers
    folders.py      where results go, and what a run that goes on must have in common with its beginning
    rows.py         the rows of a benchmark and their pictures; files.py: tables on disk; frames.py: videos
    asking.py       a model's answers, each on disk at once; progress.py: how far it is
    predictions.py  answers that were made elsewhere, joined with the rows they belong to
    scoring.py      what answers earn: the benchmark's scorer, the judge, the lines of its table
    summary.py      results.json, table.md, --compare and --list; escape.py: text out of data in Markdown
    held_out.py     questions that are no benchmark: the micro-world and the --data forms
"""

from __future__ import annotations

import difflib
import math
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from common.args import saved_options, typed
from common.errors import SightRLError, main_guard

HELP = __doc__.partition("\n\nThe code")[0]  # what --help shows


@dataclass
class Args:
    model: str = "tiny"
    """Model to ask: "tiny", a folder that a run wrote, or a Hugging Face id."""
    benchmarks: tuple[str, ...] = ("world",)
    """What to ask, with blanks or commas between: names out of --list, world, FILE.py, or jsonl:FILE, parquet:FILE,
    hf:NAME and the other --data forms."""
    data: tuple[str, ...] = ()
    """Where the rows of a benchmark are, if not in the Hugging Face cache: PATH, or NAME=PATH for each (a Parquet,
    JSON, JSON-lines, TSV or CSV file in the published form, or a folder of them), or hf:OTHER-NAME."""
    media: str = ""
    """Folder where the pictures and videos lie that rows name; those not there are looked for beside the rows."""
    scoring: str = ""
    """Whose scorer says what is right, to compare with numbers made by it: official, vlmevalkit or lmms-eval (of
    ReasonMap: fixed or official); default: the first that --list names for the benchmark."""
    judge: str = ""
    """Model that decides where no rule can: "http://HOST:PORT/v1,model=NAME" or "local:FOLDER-or-ID"."""
    predictions: str = ""
    """Score the answers in this file instead of asking a model: predictions.jsonl, a table of VLMEvalKit, or a samples
    file of lmms-eval."""
    limit: int | None = None
    """Ask only so many rows; default: all of a benchmark, 96 per split of the world or of a --data form."""
    k: int | None = None
    """Answers sampled per question, for their mean score (avg@k) and the chance that one of them is right (pass@k);
    default: 1 for a benchmark, 8 for the world and the --data forms."""
    temperature: float | None = None
    """Sampling temperature, 0 is greedy; default: 0 for one answer to a benchmark, else 1."""
    top_p: float = 1.0
    """Sample from the likeliest tokens whose probabilities add up to this; of benchmarks only."""
    max_new_tokens: int | None = None
    """Longest answer in tokens; default: the benchmark's (reasoning models need more), 80 for the world and the --data
    forms."""
    frames: int = 16
    """Frames of a video, evenly spaced."""
    batch: int = 16
    """Questions asked at once; those about one picture come together, and it is encoded once."""
    seed: int = 0
    """Seed of sampling; every row has random numbers of its own; of benchmarks only."""
    prompt: str = ""
    """Text around the question; {question} is replaced. Default: a benchmark's prompt as it is, else as in training."""
    system: str | None = None
    """System message before a benchmark's prompt; default: the benchmark's, mostly none."""
    bad_rows: Literal["stop", "skip"] = "stop"
    """What to do about a row that cannot be used: stop with its number, or leave it out and count it."""
    allow_outside: bool = False
    """Let rows name pictures and videos outside the folder of the data or --media, also through links."""
    tasks: str = ""
    """Ask only these kinds of the world's or your own questions, e.g. count,locate; default: all."""
    columns: str = ""
    """Names of your own columns if they differ from question, answer, images: "question=problem"."""
    min_pixels: int | None = None
    """Smaller images are enlarged to this many pixels; default: the model's own setting."""
    max_pixels: int | None = None
    """Larger images are shrunk to this many pixels; default: the model's own setting."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Number format of the weights; auto: bfloat16 on a GPU, float32 otherwise."""
    device: str = "auto"
    """Where to compute: cpu, cuda, cuda:1, ...; auto takes a GPU if there is one."""
    out: str = "runs/eval"
    """Folder for the results."""
    run_name: str = ""
    """Name of this run's folder, in which a killed run goes on; default: model and time; of benchmarks only."""
    resume: str = ""
    """Folder of a killed run, to go on with its options."""
    compare: tuple[str, str] | None = None
    """Two folders of results, to compare row by row."""
    show_list: Annotated[bool, tyro.conf.arg(name="list")] = False
    """Show the benchmarks, or those named: rows, metric, licence, source, scorings, published numbers."""


# ---------------------------------------------------------------- options


def parse(argv: list[str]) -> Args:
    """The options; with --resume those of that run, on top of which comes what is typed. Raises SightRLError."""
    saved: dict[str, Any] = {}
    if folder := typed(argv, "resume"):
        saved = saved_options(Args, Path(folder) / "options.json") | {"resume": folder}
    default = Args(**saved)
    return tyro.cli(Args, args=argv, default=default, description=HELP)


def check(args: Args) -> None:
    """Raises SightRLError for numbers that make no sense."""
    for name in ("limit", "k", "max_new_tokens", "frames", "batch"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise SightRLError(f"--{name.replace('_', '-')} must be at least 1, not {getattr(args, name)}.")
    if args.temperature is not None and not 0 <= args.temperature < math.inf:
        raise SightRLError(f"--temperature must be 0 or more, not {args.temperature}.")
    if not 0 < args.top_p <= 1:
        raise SightRLError(f"--top-p must be above 0 and at most 1, not {args.top_p}.")
    if args.prompt and "{question}" not in args.prompt:
        raise SightRLError("--prompt needs {question} where the question goes.")


def names_in(words: tuple[str, ...]) -> list[str]:
    """The names between blanks and commas; a --data form keeps the commas behind it."""
    names: list[str] = []
    for word in words:
        rest = word
        while rest:
            name, _, rest = (rest, "", "") if is_form(rest) else rest.partition(",")
            names += [name.strip()] if name.strip() else []
    if not names:
        raise SightRLError("--benchmarks needs a name such as world; --list shows all.")
    return list(dict.fromkeys(names))


def choose(names: list[str]) -> tuple[dict[str, tuple[Any, Path]], list[str]]:
    """({name: (benchmark, its file)}, --data forms) that the names mean. Raises SightRLError for an unknown one.

    A name may be a file of benchmarks, bench.py, or one of several in it, bench.py:name.
    """
    from scoring import find_benchmarks

    files = {name: name.partition(".py")[0] + ".py" for name in names if re.search(r"\.py(:\w+)?$", name)}
    found, problems = find_benchmarks([Path(file) for file in dict.fromkeys(files.values())])
    chosen: dict[str, tuple[Any, Path]] = {}
    for name in names:
        if is_form(name):
            continue
        table = {n: b for n, b in found.items() if name not in files or b[1] == Path(files[name])}
        wanted = list(table) if name == files.get(name) else [name.rpartition(":")[2]]
        if not wanted or wanted[0] not in table:
            near = " or ".join(difflib.get_close_matches(name, found, 3))
            known = f"there are {', '.join(['world', *found])}."
            fix = f"did you mean {near}? --list shows all." if near else known
            raise SightRLError(" ".join([f"there is no benchmark {name!r}; {fix}", *problems]))
        chosen |= {n: table[n] for n in wanted}
    for problem in problems:
        print(f"warning: {problem}", file=sys.stderr)
    return chosen, [name for name in names if is_form(name)]


def is_form(name: str) -> bool:
    """Whether it is no benchmark but questions as the methods' --data has them: world, jsonl:FILE, hf:NAME, ..."""
    from common.readers import READERS  # here: --help must not wait for it

    kind, colon, _ = name.partition(":")
    return name == "world" or (bool(colon) and kind in READERS)


# ---------------------------------------------------------------- what to do


def main(args: Args) -> None:
    check(args)
    if args.show_list:
        from scoring import find_benchmarks
        from summary import show_list

        found, problems = find_benchmarks()
        if args.benchmarks != Args.benchmarks:
            found, _ = choose(names_in(args.benchmarks))
        return show_list({name: benchmark for name, (benchmark, _) in found.items()}, problems)
    if args.compare:
        from summary import compare_runs

        return print(compare_runs(*map(Path, args.compare)))
    chosen, forms = choose(names_in(args.benchmarks))
    from tasks import ask_model, score_file  # slow: --help must not wait for it

    (score_file if args.predictions else ask_model)(args, chosen, forms)


if __name__ == "__main__":
    main_guard(lambda argv: main(parse(argv)), sys.argv[1:])

"""The two ways to results: asking a model the rows of benchmarks, and scoring a file of answers."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asking import Question, Sampling, answer_all, read_answers, survey
from benchmark import Benchmark
from common.args import CommonArgs
from common.checkpoint import disk_errors, write_file
from common.distributed import is_main, start, world_size
from common.errors import SightRLError
from folders import files_hash, fingerprint, keep_settings, remember, run_folder
from predictions import own_rows, read_predictions, score_predictions
from rows import Source, open_rows
from scoring import choose_scoring
from summary import conclude, overview

if TYPE_CHECKING:
    from run import Args

Chosen = dict[str, tuple[Benchmark, Path]]  # name -> benchmark, its file


def places_of(names: list[str], words: tuple[str, ...]) -> dict[str, str]:
    """Benchmark -> where its rows are. Raises SightRLError for a place that belongs to no one."""
    places: dict[str, str] = {}
    for word in words:
        name, equals, place = word.partition("=")
        if equals and name in names:
            places[name] = place
        elif len(names) == 1 and not places:
            places[names[0]] = word
        else:
            raise SightRLError(f"--data {word} does not say whose rows these are; write NAME={word} with a name out of "
                               f"{', '.join(names)}.")  # fmt: skip
    return places


# ---------------------------------------------------------------- a model


@dataclass(frozen=True)
class Task:
    """One benchmark, read and ready to be asked."""

    name: str
    benchmark: Benchmark
    scoring: str
    source: Source
    questions: list[Question]
    skipped: list[str]
    sampling: Sampling
    settings: dict[str, Any]


def ask_model(args: Args, chosen: Chosen, forms: list[str]) -> None:
    """Ask the benchmarks and the held-out questions of --data forms. Raises SightRLError."""
    start(args.device)
    places = places_of(list(chosen), args.data)
    tasks = [prepare(args, name, *chosen[name], places.get(name, "")) for name in chosen]
    folder = begin(args, tasks) if tasks else Path()  # whatever is wrong shows before the model is loaded
    from common.training import load_model
    from held_out import ask_held_out

    names = ("model", "min_pixels", "max_pixels", "dtype", "device")
    vlm = load_model(CommonArgs(**{name: getattr(args, name) for name in names}))
    for form in forms:
        ask_held_out(args, vlm, form)
    judge = open_judge_of(args, folder) if tasks and is_main() else None
    work = [(task.name, lambda task=task: run_task(args, vlm, task, folder / task.name, judge)) for task in tasks]
    report(work, folder)


def prepare(args: Args, name: str, benchmark: Benchmark, file: Path, place: str) -> Task:
    """Read the rows of a benchmark and settle how they are asked. Raises SightRLError."""
    k = args.k or 1
    temperature = args.temperature if args.temperature is not None else float(k > 1)
    prompt, system = args.prompt or "{question}", benchmark.system if args.system is None else args.system
    tokens = args.max_new_tokens or benchmark.max_new_tokens
    votes = k if benchmark.again else 1
    sampling = Sampling(k // votes, temperature, args.top_p, tokens, args.seed, args.frames, prompt, system)
    scoring = choose_scoring(name, benchmark, args.scoring)
    source = open_rows(name, benchmark, place, args.media, args.allow_outside)
    questions, skipped = survey(name, benchmark, source, scoring, args.limit, prompt, args.bad_rows, votes)
    names = ("model", "media", "limit", "bad_rows", "min_pixels", "max_pixels", "dtype", "batch", "device")
    settings = {option: getattr(args, option) for option in names} | dataclasses.asdict(sampling) | {
        "votes": votes, "source": place or benchmark.source, "split": benchmark.split, "scoring": scoring,
        "model_files": files_hash(args.model), "scorer_hash": fingerprint(file.read_text(encoding="utf-8")),
        "rows_hash": fingerprint([(q.id, q.row, q.key) for q in questions]),
        "prompt_hash": fingerprint([system, *(q.text for q in questions)])}  # fmt: skip
    return Task(name, benchmark, scoring, source, questions, skipped, sampling, settings)


def begin(args: Args, tasks: list[Task]) -> Path:
    """The run's folder, new or with the same settings."""
    folder = run_folder(args, args.model)
    if is_main():
        for task in tasks:
            keep_settings(folder / task.name, task.settings)
        remember(args, folder)
        print(f"results go to {folder}; a stopped run goes on with --resume {folder}", file=sys.stderr)
    return folder


def run_task(args: Args, vlm: Any, task: Task, folder: Path, judge: Any) -> dict[str, Any] | None:
    """Ask, score and write; results in the first process, None in others."""
    answer_all(vlm, task.name, task.benchmark, task.source, task.questions, task.scoring, task.sampling, args.bad_rows,
               args.batch, folder)  # fmt: skip
    if not is_main():
        return None
    answered, skipped = read_answers(folder / "predictions.jsonl", task.questions)
    skipped = task.skipped + skipped
    if not answered:
        raise SightRLError(f"no row of {task.name} can be used; the first problem: {skipped[0]}")
    settings = task.settings | {"min_pixels": vlm.min_pixels, "max_pixels": vlm.max_pixels, "device": str(vlm.device),
                                "dtype": str(vlm.dtype).removeprefix("torch.")}  # fmt: skip
    about = {"model": args.model, "scoring": task.scoring, "source": settings["source"], "split": task.benchmark.split,
             "missing": 0, "judge_spec": args.judge, "settings": settings}  # fmt: skip
    return conclude(task.name, task.benchmark, answered, about, skipped, judge, folder)


# ---------------------------------------------------------------- a file


def score_file(args: Args, chosen: Chosen, forms: list[str]) -> None:
    """--predictions: the scorers without a model. Raises SightRLError."""
    if forms or len(chosen) != 1:
        raise SightRLError("--predictions needs one benchmark, the one that the answers are for: --benchmarks NAME.")
    [(name, (benchmark, _))] = chosen.items()
    path, place = Path(args.predictions).expanduser(), places_of([name], args.data).get(name, "")
    scoring, predictions = choose_scoring(name, benchmark, args.scoring), read_predictions(path)
    lacking = own_rows(benchmark, predictions)
    try:
        source = open_rows(name, benchmark, place, args.media, args.allow_outside) if place or lacking else None
    except SightRLError as error:
        raise error if place else SightRLError(f"{path} has no column {lacking!r}, and {error}") from None
    answered, skipped, missing = score_predictions(name, benchmark, scoring, predictions, source, path, args.limit,
                                                   args.bad_rows)  # fmt: skip
    folder = run_folder(args, path.stem)
    if (folder / name / "predictions.jsonl").exists():
        raise SightRLError(f"{folder / name} holds the answers of a model; give another --run-name.")
    remember(args, folder)
    with disk_errors(folder):
        (folder / name).mkdir(exist_ok=True)
    rows_from = (place or benchmark.source) if source is not None else str(path)
    about = {"model": str(path), "scoring": scoring, "source": rows_from, "split": benchmark.split, "missing": missing,
             "judge_spec": args.judge, "settings": {}}  # fmt: skip
    judge = open_judge_of(args, folder)
    report([(name, lambda: conclude(name, benchmark, answered, about, skipped, judge, folder / name))], folder)


# ---------------------------------------------------------------- both


def open_judge_of(args: Args, folder: Path) -> Any:
    from common.judge import open_judge

    return open_judge(args.judge, cache=folder / "judge_cache.jsonl", device=args.device) if args.judge else None


def report(work: list[tuple[str, Callable[[], dict[str, Any] | None]]], folder: Path) -> None:
    """Do the work of every benchmark and print its table; one that fails does not stop the others."""
    done, failed = [], []
    for name, action in work:
        try:
            found = action()
        except SightRLError as error:
            if world_size() > 1 or len(work) == 1:
                raise
            failed.append(name)
            print(f"error: {name}: {error}", file=sys.stderr)
            continue
        if found is not None:
            done.append(found)
            text = (folder / name / "table.md").read_text(encoding="utf-8")
            print(f"{text}\n{folder / name / 'results.json'}\n{folder / name / 'table.md'}\n")
    if len(done) > 1:
        write_file(folder / "table.md", lambda path: path.write_text(overview(done), encoding="utf-8"))
        print(overview(done))
    if failed:
        raise SightRLError(f"{len(failed)} of {len(work)} benchmarks failed as said above: {', '.join(failed)}.")

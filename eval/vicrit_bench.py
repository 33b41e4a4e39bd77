"""ViCrit-Bench: which phrase of the caption is wrong? Accuracy by kind of error and by kind of picture.

    python eval/vicrit_bench.py --model Qwen/Qwen2.5-VL-7B-Instruct --data hf:russwang/ViCrit-Bench
    python eval/vicrit_bench.py --predictions predictions.jsonl

Rows hold image, changed_caption, original_noun_phrases, changed_noun_phrases, and perhaps columns for the kind of
picture and of error (--domain-column, --type-column). Every answer is graded twice: "released" is the published
scorer, right if the first changed word is anywhere in the answer; "strict" is the paper's rule for training, right if
the whole changed segment is named with nothing but copied words around it. A file of predictions holds the same
columns (no image) and "prediction", the response as the model wrote it. Writes table.md and, with a model,
predictions.jsonl, which can be graded again.
Published with the released scorer: o3 47.7, Gemini 2.5 Pro 45.2, ViCrit 72B 43.0 (arXiv 2506.10128).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from common.captions import error_in, names_error, phrase_text, released_answer, released_correct
from common.errors import SightRLError, main_guard

if TYPE_CHECKING:
    from common.data import Sample

ASK = ("One phrase of this caption does not fit the picture: it names something that is not there or not so.\n"
       "{caption}\nWrite that phrase alone, exactly as it stands in the caption.")  # fmt: skip
SMALLEST = 28  # pixels; rows with a smaller side are skipped, as in the released script


@dataclass
class Args:
    predictions: str = ""
    """File of predictions to grade (JSON lines); without one a model is asked."""
    model: str = "tiny"
    """Model to ask: "tiny", a folder that a run wrote, or a Hugging Face id."""
    data: str = "hf:russwang/ViCrit-Bench"
    """The benchmark: hf:NAME, parquet:FILE or jsonl:FILE; all of its rows are asked."""
    columns: str = "question=changed_caption,answer=changed_noun_phrases"
    """Names of the columns of the caption and of the wrong phrase."""
    type_column: str = "type"
    """Column with the kind of error; rows may lack it."""
    domain_column: str = "domain"
    """Column with the kind of picture; rows may lack it."""
    prompt: str = ASK
    """The question; {caption} is replaced. Published: no think block, no box, the phrase alone."""
    limit: int = 0
    """Ask only so many rows; 0: all."""
    max_new_tokens: int = 2048
    """Longest answer in tokens. Published: 2048."""
    temperature: float = 0.0
    """Sampling temperature. Published: 0, greedy."""
    min_pixels: int | None = 224 * 224
    """Smaller images are enlarged to this many pixels. Published: 50176."""
    max_pixels: int | None = 1280 * 28 * 28
    """Larger images are shrunk to this many pixels. Published: 1003520."""
    bad_rows: Literal["stop", "skip"] = "stop"
    """What to do about a row that cannot be read: stop with its number, or skip and count it."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Number format of the weights; auto: bfloat16 on a GPU, float32 otherwise."""
    device: str = "auto"
    """Where to compute: cpu, cuda, cuda:1, ...; auto takes a GPU if there is one."""
    out: str = "runs/eval"
    """Folder for the results."""


# ------------------------------------------------------------------------------------------------------- the scorers
def released(row: dict[str, Any], prediction: str) -> float:
    """The published scorer (score.py), with wrong where the original fails: no backslash, nothing but a deletion."""
    right, wrong = (phrase_text(row.get(name)) for name in ("original_noun_phrases", "changed_noun_phrases"))
    return float(released_correct(prediction, right, wrong))


def strict(row: dict[str, Any], prediction: str) -> float:
    """The paper's rule on the same part of the response: the changed segment, with at most copied words around it."""
    right, wrong = (phrase_text(row.get(name)) for name in ("original_noun_phrases", "changed_noun_phrases"))
    caption = str(row.get("changed_caption") or "")
    return float(names_error(released_answer(prediction) or "", caption, right, wrong))


SCORERS: dict[str, Callable[[dict[str, Any], str], float]] = {"released": released, "strict": strict}


# ------------------------------------------------------------------------------------------------- rows and answers
def read_predictions(path: Path) -> list[tuple[dict[str, Any], str]]:
    """(row, prediction) of every line. Raises SightRLError for a file or line that is none."""
    from common.readers.shared import json_rows

    pairs = []
    for where, _, row in json_rows(path):
        if isinstance(row, SightRLError):
            raise row
        lacking = [c for c in ("prediction", "original_noun_phrases", "changed_noun_phrases")
                   if not isinstance(row, dict) or c not in row]  # fmt: skip
        if lacking:
            raise SightRLError(f"{where} has no {lacking[0]}; write one object a line, see --help.")
        pairs.append((row, str(row["prediction"])))
    return pairs


def all_rows(args: Args) -> list[Sample]:
    """Every row of the benchmark, however its files are split, once. Raises SightRLError if there is none."""
    from common.data import open_dataset

    found, problems = {}, []
    for split in ("test", "train", "val"):  # a single file is cut into these by its readers
        try:
            data = open_dataset(args.data, split, columns=args.columns, bad_rows=args.bad_rows)
        except SightRLError as error:
            problems.append(error)
            continue
        kept = (data.usable(i) for i in range(len(data)))
        found |= {s.id: s for s in kept if s is not None and smallest_side(s) >= SMALLEST and error_in(s)}
        for problem in data.skipped:
            print(f"skipped: {problem}")
    if not found:
        raise problems[0] if problems else SightRLError(f"{args.data} has no row with two phrases and a picture.")
    rows = [found[name] for name in sorted(found)]
    return rows[: args.limit or None]


def smallest_side(sample: Sample) -> int:
    return min((min(image.size) for image in sample.load_images()), default=0)


def ask_model(args: Args) -> list[tuple[dict[str, Any], str]]:
    """(row, response) of every row of the benchmark."""
    from common.args import CommonArgs
    from common.captions import WrongCaptions
    from common.training import ask, load_model  # slow: --help must not wait for them

    names = ("model", "min_pixels", "max_pixels", "dtype", "device")
    options = CommonArgs(prompt="{question}", **{name: getattr(args, name) for name in names})
    rows = all_rows(args)
    questions = {"test": list(WrongCaptions(rows, args.prompt))}
    answers = ask(load_model(options), options, questions, 1, args.max_new_tokens, args.temperature, lambda *_: 0.0)
    pairs = []
    for sample, record in zip(rows, answers.records, strict=True):
        made, meta = error_in(sample), sample.meta
        row = {"id": sample.id, "changed_caption": made["caption"], "original_noun_phrases": made["right"],
               "changed_noun_phrases": made["wrong"]}  # fmt: skip
        row |= {name: meta[name] for name in (args.type_column, args.domain_column) if name in meta}
        pairs.append((row, record["responses"][0]))
    return pairs


# ------------------------------------------------------------------------------------------------------------- tables
def table(pairs: list[tuple[dict[str, Any], str]], column: str = "") -> str:
    """Markdown: a row per value of a column ("" for one row), a column per scorer, per cent with 95 % intervals."""
    import numpy as np

    from common.evaluation import bootstrap_interval

    groups: dict[str, list[tuple[dict[str, Any], str]]] = {}
    for row, prediction in pairs:
        groups.setdefault(str(row.get(column, "all")), []).append((row, prediction))
    lines = [f"| {column or ' '} | rows | {' | '.join(SCORERS)} |", f"|---|---:|{'---:|' * len(SCORERS)}"]
    for name, part in sorted(groups.items()):
        cells = []
        for scorer in SCORERS.values():
            marks = np.array([scorer(row, prediction) for row, prediction in part])
            low, high = bootstrap_interval(marks)
            cells.append(f"{100 * marks.mean():.1f} [{100 * low:.1f}, {100 * high:.1f}]")
        lines.append(f"| {name} | {len(part)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def tables(args: Args, pairs: list[tuple[dict[str, Any], str]]) -> Iterable[str]:
    """All rows together, then by kind of error and of picture where rows say it."""
    yield table(pairs)
    for column in (args.type_column, args.domain_column):
        if any(column in row for row, _ in pairs):
            yield table(pairs, column)


def main(args: Args) -> None:
    if "{caption}" not in args.prompt:
        raise SightRLError("--prompt needs {caption} where the caption goes.")
    pairs = read_predictions(Path(args.predictions)) if args.predictions else ask_model(args)
    if not pairs:
        raise SightRLError(f"{args.predictions} holds no predictions.")
    name = re.sub(r"[^A-Za-z0-9.]+", "-", f"vicrit-{args.predictions or args.model}").strip("-.")[-80:]
    folder = Path(args.out) / f"{name}-{datetime.now().strftime('%Y%m%d-%H%M%S')}"
    folder.mkdir(parents=True, exist_ok=True)
    text = "\n\n".join(tables(args, pairs)) + "\n"
    (folder / "table.md").write_text(text, encoding="utf-8")
    if not args.predictions:
        lines = (json.dumps(row | {"prediction": prediction}) + "\n" for row, prediction in pairs)
        (folder / "predictions.jsonl").write_text("".join(lines), encoding="utf-8")
    print(f"{text}\n{folder / 'table.md'}")


if __name__ == "__main__":
    main_guard(main, tyro.cli(Args, description=__doc__))

"""Questions about pictures: one record, one way to open any source, one endless stream.

    open_dataset("voc:BCCD", "train") -> Dataset -> Stream(dataset, seed).next(16) -> [Sample, ...]

The readers of the single formats are in readers/, decoding is in pictures.py: no picture is read before it is needed.
A row that cannot be used gives one sentence with the file, the row and the fix.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from common.errors import SightRLError
from common.pictures import load_image


def hash_fraction(key: str) -> float:
    """A number in [0, 1) that depends on the text alone."""
    return int.from_bytes(hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big") / 2**64


@dataclass
class Sample:
    """One question about zero or more pictures, with its gold answer."""

    id: str
    """Unique and stable: "world:train:123", "train.jsonl:17" (line), "BloodImage_00012:count:RBC"."""
    question: str
    """May hold one "<image>" mark per picture; without marks the pictures come first."""
    answer: str
    """Gold answer; boxes are "[x1, y1, x2, y2]" in the frame below."""
    task: str
    """Kind of question: the row of the per-task table."""
    images: list[Any]
    """PIL images, paths or encoded bytes; see load_images."""
    answer_type: str = "text"
    """text, number, option, box, boxes or yesno: how common.rewards.accuracy compares."""
    meta: dict[str, Any] = field(default_factory=dict)
    """What else is known: choices, size, things, captions; "response" is a target for supervised warm-up."""
    where: str = ""
    """File and row, for error messages."""
    frame: tuple[float, float] | None = None
    """Width and height in which its boxes are given, such as (1000, 1000); None: pixels of the original picture."""

    def load_images(self) -> list[Image.Image]:
        """RGB pictures, in order. Raises SightRLError naming file and row when one cannot be used.

        Treat them as read-only: samples with the same picture share one object.
        """
        size = self.meta.get("size") if len(self.images) == 1 else None
        return [load_image(source, self.where or self.id, size) for source in self.images]


class Dataset:
    """The questions of one split: len(), [i], iteration, and what was left out."""

    def __init__(
        self,
        name: str,
        split: str,
        samples: Sequence[Sample],
        *,
        tasks: Iterable[str] = (),
        bad_rows: str = "stop",
        skipped: Iterable[str] = (),
        notes: Iterable[str] = (),
    ) -> None:
        self.name, self.split, self.samples, self.bad_rows = name, split, samples, bad_rows
        self.skipped = list(skipped)  # one sentence per row that could not be used
        self.notes = list(notes)  # what was left out on purpose, e.g. pictures of the test split
        self.tasks = sorted(set(tasks))
        self.broken: set[int] = set()  # rows whose picture could not be decoded

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, i: int) -> Sample:
        return self.samples[i]

    def usable(self, i: int) -> Sample | None:
        """Sample i if its pictures can be decoded, else None with an entry in skipped.

        Raises SightRLError instead with bad_rows="stop".
        """
        if i in self.broken:
            return None
        try:
            sample = self.samples[i]
            sample.load_images()
            return sample
        except SightRLError as error:
            if self.bad_rows == "stop":
                raise
            self.broken.add(i)
            self.skipped.append(str(error))
            return None

    def take(self, n: int) -> list[Sample]:
        """The first n usable samples (fewer if there are fewer): a fixed set of questions for evaluation."""
        chosen: list[Sample] = []
        for i in range(len(self)):
            if len(chosen) == n:
                break
            sample = self.usable(i)
            chosen += [sample] if sample is not None else []
        return chosen


class Stream:
    """Endless samples in an order that depends on the seed and the epoch alone; resumes exactly."""

    def __init__(self, dataset: Dataset, seed: int = 0) -> None:
        self.dataset, self.seed, self.epoch, self.cursor, self.skipped = dataset, seed, 0, 0, 0
        self.order = self.shuffled()

    def shuffled(self) -> np.ndarray:
        return np.random.default_rng([self.seed, self.epoch]).permutation(len(self.dataset))  # int64 [rows]

    def next(self, n: int) -> list[Sample]:
        """The next n usable samples; a new epoch begins whenever all rows were seen.

        Raises SightRLError for an unusable row with bad_rows="stop", and when no row of a whole epoch can be
        used.
        """
        batch: list[Sample] = []
        in_vain = 0
        while len(batch) < n:
            if self.cursor == len(self.order):
                self.epoch, self.cursor = self.epoch + 1, 0
                self.order = self.shuffled()
            sample = self.dataset.usable(int(self.order[self.cursor]))
            self.cursor += 1
            in_vain = 0 if sample is not None else in_vain + 1
            self.skipped += sample is None
            batch += [sample] if sample is not None else []
            if in_vain > len(self.dataset):
                raise SightRLError(
                    f"no row of {self.dataset.name} can be used; the first problem: {self.dataset.skipped[0]}"
                )
        return batch

    def state_dict(self) -> dict[str, int]:
        return {"seed": self.seed, "epoch": self.epoch, "cursor": self.cursor, "skipped": self.skipped,
                "rows": len(self.dataset)}  # fmt: skip

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue where state_dict() was taken. Raises SightRLError if the number of rows has changed."""
        if state["rows"] != len(self.dataset):
            raise SightRLError(
                f"{self.dataset.name} has {len(self.dataset)} {self.dataset.split} questions, but the run to "
                f"resume had {state['rows']}; use the same data and options."
            )
        self.seed, self.epoch = state["seed"], state["epoch"]
        self.cursor, self.skipped = state["cursor"], state["skipped"]
        self.order = self.shuffled()


# ---------------------------------------------------------------------------------------------------- opening
def open_dataset(
    spec: str,
    split: str,
    *,
    bad_rows: str = "stop",
    columns: str = "",
    tasks: str = "",
    seed: int = 0,
    limit: int | None = None,
    allow_outside: bool = False,
) -> Dataset:
    """Open one split of a source of questions.

    spec: world | jsonl:FILE-or-DIR[,IMAGEDIR] | parquet:FILE-or-DIR | hf:NAME-or-DIR[,CONFIG] | voc:DIR |
        coco:FILE-or-DIR[,IMAGEDIR] | images:DIR | nlvr:DIR | puzzlevqa:DIR. Readers say how each is split.
    split: "train", "val" or "test"; the micro-world also has "test_combo" and "test_counter".
    bad_rows: "stop" raises SightRLError at the first row that cannot be used, "skip" lists it in
    Dataset.skipped.
    columns: "question=problem,answer=gold,images=image" for tables with other column names; dots go into
    records.
    tasks: "count,locate" keeps only these kinds of questions; "" keeps all.
    seed: order of the rows. Kinds of questions take turns, so that any first n hold every kind. The
    micro-world is
        always in its own order.
    limit: only the first so many rows. allow_outside: let rows name pictures outside the folder of the data.
    Raises SightRLError with one sentence for whatever is wrong.
    """
    from common import readers

    if limit is not None and limit < 1:
        raise SightRLError(f"--limit is a number of rows, at least 1, not {limit}.")
    if bad_rows not in ("stop", "skip"):
        raise SightRLError(f"--bad-rows is stop or skip, not {bad_rows!r}.")
    kind, _, place = spec.partition(":")
    if kind == "world":
        samples, kinds = readers.read_world(place, split, parse_tasks(tasks), limit)
        return Dataset(spec, split, samples, tasks=kinds, bad_rows=bad_rows)
    if kind not in readers.READERS or not place:
        known = ", ".join(f"{name}:..." for name in readers.READERS)
        raise SightRLError(f"--data {spec!r} is not understood; give world or one of {known}.")
    if split not in ("train", "val", "test"):
        raise SightRLError(f"{spec} has the splits train, val and test, but no {split!r}.")
    options = readers.Options(
        split=split, columns=parse_columns(columns), bad_rows=bad_rows, allow_outside=allow_outside
    )
    samples, kinds = readers.READERS[kind](place, options)
    if not len(samples):
        problem = f"; the first problem: {options.skipped[0]}" if options.skipped else ""
        raise SightRLError(f"the {split} split of {spec} is empty{problem or ', add data to it'}.")
    wanted = known_tasks(parse_tasks(tasks), kinds, spec)
    order = [i for i in taking_turns(kinds, seed) if kinds[i] in wanted][:limit]
    chosen = samples.select(order) if hasattr(samples, "select") else [samples[i] for i in order]
    left_out = {"bad_rows": bad_rows, "skipped": options.skipped, "notes": options.notes}
    return Dataset(spec, split, chosen, tasks=(kinds[i] for i in order), **left_out)


def parse_tasks(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def known_tasks(wanted: list[str], kinds: Iterable[str], spec: str) -> set[str]:
    """The wanted kinds of questions, all without a wish. Raises SightRLError for a kind the data does not have."""
    known = set(kinds)
    if unknown := [task for task in wanted if task not in known]:
        raise SightRLError(f"--tasks: {spec} has no {unknown[0]!r}; it has {', '.join(sorted(known))}.")
    return set(wanted) or known


def parse_columns(text: str) -> dict[str, str]:
    """{"question": "problem", "answer": "gold"} of question=problem,answer=gold. Raises SightRLError."""
    from common.readers import COLUMNS

    columns = {}
    for pair in filter(None, (part.strip() for part in text.split(","))):
        name, equals, column = (part.strip() for part in pair.partition("="))
        if not equals or not column or name not in COLUMNS:
            raise SightRLError(
                f"--columns {pair!r} is not understood; write name=column with a name out of "
                f"{', '.join(COLUMNS)}, for example question=problem,answer=gold."
            )
        columns[name] = column
    return columns


def taking_turns(tasks: Sequence[str], seed: int) -> list[int]:
    """Row numbers shuffled within each task, one row of each task after the other until all are used up."""
    queues: dict[str, list[int]] = {}
    for i, task in enumerate(tasks):
        queues.setdefault(task, []).append(i)
    rng = random.Random(seed)
    for task in sorted(queues):
        rng.shuffle(queues[task])
    rows = [(place, task, i) for task, queue in queues.items() for place, i in enumerate(queue)]
    return [i for _, _, i in sorted(rows)]

"""Readers: one function per published layout, (place, options) -> (samples, task of every sample).

Each says in its docstring how the splits are made. Where nobody published a split, pictures are dealt out by
the hash of their name or content: 85 % train, 5 % val, 10 % test. So no picture sits in two splits, and rows
added later move none of the old ones (but for data of a few dozen pictures).
"""

from __future__ import annotations

from collections.abc import Sequence

from common.data import Sample, known_tasks
from common.errors import SightRLError
from common.readers.benchmarks import read_nlvr, read_puzzlevqa
from common.readers.boxes import read_coco, read_images, read_voc
from common.readers.shared import Options
from common.readers.tables import COLUMNS, read_hf, read_jsonl, read_parquet

__all__ = ["COLUMNS", "READERS", "Options", "read_world"]

READERS = {
    "jsonl": read_jsonl,
    "parquet": read_parquet,
    "hf": read_hf,
    "voc": read_voc,
    "coco": read_coco,
    "images": read_images,
    "nlvr": read_nlvr,
    "puzzlevqa": read_puzzlevqa,
}


class WorldRows(Sequence):
    """Some questions of one split of the micro-world, drawn when asked for. numbers: which."""

    def __init__(self, split: str, numbers: Sequence[int]) -> None:
        self.split, self.numbers = split, numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, i: int) -> Sample:
        from common.world import world_sample

        if not 0 <= i < len(self.numbers):
            raise IndexError(i)
        row = world_sample(self.split, self.numbers[i])
        image = row.pop("image")
        return Sample(images=[image], where=row["id"], **row)


def read_world(variant: str, split: str, wanted: list[str], limit: int | None) -> tuple[WorldRows, Sequence[str]]:
    """world: train, val, test, test_combo (held-out pairs) and test_counter (flipped answer prior)."""
    from common.world import FAMILIES, SPLITS, world_dataset_size

    if variant:
        raise SightRLError(f"the micro-world has no variant {variant!r}; write --data world.")
    if split not in SPLITS:
        raise SightRLError(f"the micro-world has the splits {', '.join(SPLITS)}, but no {split!r}.")
    families, numbers = list(FAMILIES), range(world_dataset_size(split))
    chosen = known_tasks(wanted, families, "world")
    if wanted:  # families take turns
        numbers = [i for i in numbers if families[i % len(families)] in chosen]
    return WorldRows(split, numbers[:limit]), sorted(chosen)

"""Which rows or pictures belong to which split: published parts where there are any, else a cut by hash."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from common.data import hash_fraction
from common.errors import SightRLError

PARTS = {"train": ("train", "training"), "val": ("val", "validation", "valid", "dev"), "test": ("test", "testing")}
SHARES = {"test": 0.10, "val": 0.05}  # cut from the rest by the hash of the picture where there is no official split


def official_part(available: Sequence[str], split: str, where: str) -> tuple[str, dict[str, float]]:
    """Which published part serves a split, and what other splits are cut out of it: (part, {split: share}).

    test is the published test part, or else the published validation part, or else 10 % of train; val is the
    published validation part if test is another one, or else 5 % of train; train is the rest. One part of
    unknown name is cut. Raises SightRLError when nothing serves the split.
    """
    found = {name: part for name, names in PARTS.items() for part in available if part.lower() in names}
    if not found and len(available) == 1:
        return available[0], dict(SHARES)
    plan = {"train": found.get("train"), "test": found.get("test", found.get("val"))}
    plan["val"] = found.get("val") if "test" in found else None
    shares = {name: share for name, share in SHARES.items() if plan[name] is None}
    part = plan[split] or (plan["train"] if split in shares else None)
    if part is None:
        parts = ", ".join(sorted(available)) or "none"
        raise SightRLError(f"{where} has the parts {parts}, nothing to use as {split}; name one of them {split}.")
    return part, shares if part == plan["train"] else {}


def cut(keys: Iterable[str], shares: dict[str, float]) -> dict[str, str]:
    """Split of every key (picture) by its hash: {key: "train" | "val" | "test"}.

    The lowest hashes go to the splits in `shares`, each of which gets at least one key if there are three or
    more.
    """
    ranked = sorted((hash_fraction(key), key) for key in set(keys))
    parts = {key: "train" for _, key in ranked}
    start, low = 0, 0.0
    for name, share in shares.items() if len(ranked) >= 3 else ():
        end = max(start + 1, sum(value < low + share for value, _ in ranked))
        parts |= {key: name for _, key in ranked[start:end]}
        start, low = end, low + share
    return parts


def linked(keys: Sequence[Sequence[str]]) -> list[str]:
    """One key per row such that rows which share a picture, directly or through others, get the same one."""
    parent: dict[str, str] = {}

    def root(key: str) -> str:
        parent.setdefault(key, key)
        while parent[key] != key:
            parent[key] = parent[parent[key]]
            key = parent[key]
        return key

    for row in keys:
        for key in row[1:]:
            a, b = sorted((root(row[0]), root(key)))
            parent[b] = a
    return [root(row[0]) if row else "" for row in keys]

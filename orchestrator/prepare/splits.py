"""Divides the rows into training, validation and test."""

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from orchestrator.data.source_file import SourceFile
from orchestrator.errors import UserError
from orchestrator.prepare.index import Index
from orchestrator.prepare.keys import GIVEN, HASH, place_of
from orchestrator.storage.artifact import Split

HEAVIEST = 16  # times the usual row: as much does a longer one weigh, where splits are cut


@dataclass(frozen=True)
class Bounds:
    """Where the splits end: a row's place, from 0 to 1, is the second half of its hash."""

    test: float
    validation: float
    hidden: tuple[Split, ...] = ()  # given, but without labels: nobody learns or is tested on them

    def split(self, key: str) -> Split | None:
        if len(key) > HASH:
            given = GIVEN[key[HASH:]]
            return None if given in self.hidden else given
        place = place_of(key)
        if place < self.test:
            return "test"
        return "validation" if place < self.validation else "train"


def split_bounds(
    index: Index,
    validation_fraction: float,
    test_fraction: float,
    hidden: tuple[Split, ...] = (),
) -> Bounds:
    """Bounds that give test and validation at least their share of the bytes, and one row each.

    Of three rows or more, a row is also left for each split that comes after. A row that is much
    longer than usual weighs no more than HEAVIEST of them: it would move all others otherwise.
    """
    sizes: dict[str, float] = dict(
        zip(index.keys, index.bytes, strict=True)
    )  # a duplicate counts once
    sizes = {key: size for key, size in sizes.items() if len(key) == HASH}
    if not sizes:
        raise UserError("data.source: not one of its rows is for training: all are of given splits")
    most = HEAVIEST * statistics.median(sizes.values())
    sizes = {key: min(size, most) for key, size in sizes.items()}
    order = sorted(sizes, key=place_of)
    share = np.cumsum([0, *(sizes[key] for key in order)]) / sum(sizes.values())

    def end(start: int, fraction: float, left: int) -> int:
        """The row after those from `start` on that make up the fraction."""
        if not fraction:  # that split was given
            return start
        stop = max(int(np.searchsorted(share, share[start] + fraction)), start + 1)
        return max(start, min(stop, len(order) - left))

    def bound(row: int) -> float:
        return place_of(order[row]) if row < len(order) else 1.0

    test = end(0, test_fraction, left=2)
    return Bounds(bound(test), bound(end(test, validation_fraction, left=1)), hidden)


def hidden_splits(index: Index, files: Sequence[SourceFile]) -> tuple[tuple[Split, ...], list[str]]:
    """The splits that files have by their names and whose one label no training row has, and what
    to tell of them. Public data sets keep their test labels secret: each is -1."""
    by_name = {file.split for file in files if getattr(file, "by_name", False)}
    given = [key[HASH:] for key in index.keys]
    train = {v for v, code in zip(index.values, given, strict=True) if not code}
    hidden: list[Split] = []
    notices = []
    for code, split in GIVEN.items():
        values = Counter(v for v, c in zip(index.values, given, strict=True) if c == code)
        value = next(iter(values), "")
        if split in by_name and len(values) == 1 and value and value not in train:
            hidden.append(split)
            notices.append(
                f"all {values.total():,} {split} rows have the label {value!r}, which no training "
                f"row has: they are hidden, and a share of the training rows takes their place"
            )
    return tuple(hidden), notices

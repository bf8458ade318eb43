"""Which rows are for training, validation and test: a function of their keys."""

import statistics
from dataclasses import dataclass

import numpy as np

from orchestrator.errors import UserError
from orchestrator.job.job import Job
from orchestrator.prepare.index import GIVEN, HASH, Index
from orchestrator.storage.artifact import SPLITS, Shard, Split

HEAVIEST = 16  # the weight of a longer row in the cut of splits, in median rows


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
        place = _place(key)
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
    order = sorted(sizes, key=_place)
    share = np.cumsum([0, *(sizes[key] for key in order)]) / sum(sizes.values())

    def end(start: int, fraction: float, left: int) -> int:
        """The row after those from `start` on that make up the fraction."""
        if not fraction:  # that split was given
            return start
        wanted = max(int(np.searchsorted(share, share[start] + fraction)), start + 1)
        return max(start, min(wanted, len(order) - left))

    def bound(row: int) -> float:
        return _place(order[row]) if row < len(order) else 1.0

    test = end(0, test_fraction, left=2)
    return Bounds(bound(test), bound(end(test, validation_fraction, left=1)), hidden)


def check_splits(splits: dict[Split, list[Shard]], job: Job) -> None:
    """Raises UserError if a split has no sample."""
    for split in SPLITS:
        if not splits[split]:
            raise UserError(
                f"data.source = {job.data.source}: the {split} split holds not one sample with "
                f"model.max_seq_len = {job.model.max_seq_len}: give more data, a larger "
                f"data.{'test' if split == 'train' else split}_fraction or a smaller "
                f"model.max_seq_len"
            )


def _place(key: str) -> float:
    return int(key[HASH // 2 : HASH], 16) / 2.0**64

"""One worker among those of a training, and what the workers exchange."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from orchestrator.data.arrays import Arrays, join
from orchestrator.data.sample_order import Rows


@dataclass(frozen=True)
class World:
    """One worker of `size`. All workers must call `exchange` and `gather` at the same point."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    group: dist.ProcessGroup | None = None  # with a short timeout, to notice hangs

    def share(self, rows: Rows) -> Rows:
        """This worker's part of some rows; the parts differ by at most one row."""
        return np.array_split(rows, self.size)[self.rank]

    def exchange(self, *numbers: int, patient: bool = False) -> list[list[int]]:
        """Every worker's numbers, by rank.

        Args:
            patient: wait up to an hour, where a worker may be busy before it calls this.
        """
        sent = torch.tensor(numbers, dtype=torch.int64, device=self.device)
        if self.size == 1:
            return [sent.tolist()]
        received = sent.new_empty(self.size, len(numbers))
        dist.all_gather(list(received), sent, None if patient else self.group)
        by_rank: list[list[int]] = received.tolist()
        return by_rank

    def gather(self, arrays: Arrays) -> Arrays:
        """Every worker's rows, joined."""
        if self.size == 1:
            return arrays
        parts: list[Any] = [None] * self.size
        dist.all_gather_object(parts, arrays, self.group)
        return join(parts)


def deal(costs: Sequence[int], workers: int) -> list[list[int]]:
    """The indices of the pieces of work that each worker gets, sorted.

    Pieces are dealt by falling cost, each to the worker that has least to do so far.
    """
    dealt: list[list[int]] = [[] for _ in range(workers)]
    load = [0] * workers
    for i in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        worker = load.index(min(load))
        dealt[worker].append(i)
        load[worker] += costs[i]
    return [sorted(indices) for indices in dealt]

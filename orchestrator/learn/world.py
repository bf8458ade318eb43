"""This process among the workers of a training, and what they tell one another."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from orchestrator.data.arrays import Arrays
from orchestrator.data.sample_order import Rows


@dataclass(frozen=True)
class World:
    """One worker of `size`. Every method that talks is to be called by all of them."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    group: dist.ProcessGroup | None = None  # with a short timeout: one who hangs is soon missed

    def share(self, rows: Rows) -> Rows:
        """This worker's part of some rows; the parts differ by at most one row."""
        return np.array_split(rows, self.size)[self.rank]

    def exchange(self, *numbers: int, patient: bool = False) -> list[list[int]]:
        """Every worker's numbers, by rank; `patient` where one of them may take its time before."""
        mine = torch.tensor(numbers, dtype=torch.int64, device=self.device)
        if self.size == 1:
            return [mine.tolist()]
        every = mine.new_empty(self.size, len(numbers))
        dist.all_gather(list(every), mine, None if patient else self.group)
        found: list[list[int]] = every.tolist()
        return found

    def gather(self, arrays: Arrays) -> Arrays:
        """Every worker's rows, joined."""
        if self.size == 1:
            return arrays
        boxes: list[Any] = [None] * self.size
        dist.all_gather_object(boxes, arrays, self.group)
        return join(boxes)


def deal(costs: Sequence[int], workers: int) -> list[list[int]]:
    """Which worker gets which of some pieces of work, in their order.

    The costliest is dealt first, and each to who has least to do.
    """
    dealt: list[list[int]] = [[] for _ in range(workers)]
    load = [0] * workers
    for i in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        worker = load.index(min(load))
        dealt[worker].append(i)
        load[worker] += costs[i]
    return [sorted(indices) for indices in dealt]


def join(parts: list[Arrays]) -> Arrays:
    """Rows of several batches in one; batches without any are left out."""
    filled = [part for part in parts if part]
    names = filled[0] if filled else {}
    return {name: np.concatenate([part[name] for part in filled]) for name in names}

"""What a worker learns from at each step: a function of the seed and the step alone."""

import hashlib
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

from orchestrator.artifact import PreparedData
from orchestrator.job import TrainConfig
from orchestrator.shards import Arrays, Rows, SampleOrder, ShardReader
from orchestrator.task import Batch
from orchestrator.world import World


@dataclass(frozen=True)
class MicroBatch:
    """Samples that are in memory at once. `seed` is for its dropout, wherever it is computed."""

    batch: Batch
    seed: int
    last: bool  # of this worker's in this step


class Batches:
    """The samples of a training: the order of the training split, and the rows that validate."""

    def __init__(self, prepared: PreparedData, config: TrainConfig, world: World) -> None:
        self.config = config
        self.world = world
        self.train = ShardReader(prepared, "train")
        self.validation = ShardReader(prepared, "validation")
        self.order = SampleOrder(self.train.shard_rows, config.seed)
        count = min(config.eval_rows, self.validation.num_rows)
        # Spread evenly, so that they come from every shard.
        self.validation_rows = np.linspace(0, self.validation.num_rows, count, False).astype(
            np.int64
        )
        self._thread = ThreadPoolExecutor(1, "read")
        self._ahead: tuple[int, Future[list[Arrays]]] | None = None

    def rows(self, step: int) -> Rows:
        """The rows of a step's global batch, whoever computes them."""
        size = self.config.global_batch_size
        return self.order.rows(step * size, (step + 1) * size)

    def step(self, step: int) -> Iterator[MicroBatch]:
        """This worker's micro-batches of a step; those of the next one are read meanwhile."""
        if self._ahead is not None and self._ahead[0] == step:
            arrays = self._ahead[1].result()
        else:
            arrays = self._read(step)
        self._ahead = (step + 1, self._thread.submit(self._read, step + 1))
        starts = [start for start, _ in self._pieces(self.config.global_batch_size)]
        for i, (start, piece) in enumerate(zip(starts, arrays, strict=True)):
            yield MicroBatch(
                to_device(piece, self.world.device),
                seed=hash((self.config.seed, step, start)),
                last=i + 1 == len(starts),
            )

    def validate(self) -> Iterator[Batch]:
        """This worker's batches of the validation rows."""
        for start, stop in self._pieces(len(self.validation_rows)):
            arrays = self.validation.read(self.validation_rows[start:stop])
            yield to_device(arrays, self.world.device)

    def chain(self, digest: str, step: int) -> str:
        """The digest of all rows in their order, one step further: two runs have seen the same."""
        return hashlib.sha256(bytes.fromhex(digest) + self.rows(step).tobytes()).hexdigest()

    def named(self, step: int) -> str:
        """Where a step's rows lie, for a person to look at them."""
        rows = self.rows(step).tolist()
        shown = ", ".join(map(str, rows[:8])) + (", …" if len(rows) > 8 else "")
        return f"step {step} (rows {shown} of the training split)"

    def _read(self, step: int) -> list[Arrays]:
        rows = self.rows(step)
        return [self.train.read(rows[start:stop]) for start, stop in self._pieces(len(rows))]

    def _pieces(self, total: int) -> list[tuple[int, int]]:
        """This worker's micro-batches as ranges of so many rows of all workers.

        With `deterministic` they are cut in the same places for every number of workers.
        """
        size = self.config.micro_batch_size
        if self.config.deterministic:
            cuts = self.world.share(np.arange(0, total, size))
            return [(start, min(start + size, total)) for start in cuts.tolist()]
        mine = self.world.share(np.arange(total))
        if not len(mine):
            return []
        begin, end = int(mine[0]), int(mine[-1]) + 1
        return [(start, min(start + size, end)) for start in range(begin, end, size)]


def to_device(arrays: Arrays, device: torch.device) -> Batch:
    """The arrays as tensors there; the copy to a GPU runs beside what it computes."""
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    if device.type == "cpu":
        return tensors
    return {
        name: tensor.pin_memory().to(device, non_blocking=True) for name, tensor in tensors.items()
    }

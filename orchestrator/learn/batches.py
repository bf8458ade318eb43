"""The samples of each step and worker: a function of the seed and the step alone."""

import hashlib
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from orchestrator.data.arrays import Arrays
from orchestrator.data.sample_order import Rows, SampleOrder
from orchestrator.data.shards import ShardReader
from orchestrator.infer.batch import on_host
from orchestrator.job.sections import TrainConfig
from orchestrator.learn.side_stream import Sent, SideStream
from orchestrator.learn.world import World, deal
from orchestrator.storage.artifact import PreparedData
from orchestrator.tasks.task import Batch

ENOUGH_ROWS = 32  # of a worker: with so many, rows are cut by length in two; with 128, in four
ROW_TOKENS = 4  # what a row costs besides its tokens, in tokens


@dataclass(frozen=True)
class MicroBatch:
    """Samples that go through the model at once."""

    batch: Batch
    seed: int  # of its dropout, the same on whichever worker computes it
    last: bool  # whether it is the last one of this worker in the step


class Batches:
    """The samples of a training: the order of the training split, and the rows that validate."""

    def __init__(self, prepared: PreparedData, config: TrainConfig, world: World) -> None:
        self.config = config
        self.world = world
        self.train = ShardReader(prepared, "train")
        self.validation = ShardReader(prepared, "validation")
        self.order = SampleOrder(self.train.shard_rows, config.seed)
        count = min(config.eval_rows, self.validation.num_rows)
        # Spread evenly over all shards.
        self.validation_rows = np.linspace(0, self.validation.num_rows, count, False).astype(
            np.int64
        )
        self._thread = ThreadPoolExecutor(1, "read")
        self._ahead: tuple[int, Future[list[tuple[int, Batch]]]] | None = None
        self._side = SideStream(world.device)

    def rows(self, step: int) -> Rows:
        """The rows of a step's global batch, over all workers."""
        size = self.config.global_batch_size
        return self.order.rows(step * size, (step + 1) * size)

    def first(self) -> "Batch | None":
        """One of this worker's micro-batches of the first step; None where it has none there."""
        if self._ahead is None:
            self._ahead = (0, self._thread.submit(self._read, 0))
        pieces = [piece for _, piece in self._ahead[1].result()] if self._ahead[0] == 0 else []
        return next(self._on_device(pieces[:1]), None)

    def step(self, step: int) -> Iterator[MicroBatch]:
        """This worker's micro-batches of a step. A thread reads those of the next."""
        if self._ahead is not None and self._ahead[0] == step:
            read = self._ahead[1].result()
        else:
            read = self._read(step)
        self._ahead = (step + 1, self._thread.submit(self._read, step + 1))
        numbers, pieces = [number for number, _ in read], [piece for _, piece in read]
        for i, batch in enumerate(self._on_device(pieces)):
            seed = hash((self.config.seed, step, numbers[i]))
            yield MicroBatch(batch, seed, last=i + 1 == len(pieces))

    def pieces(self, step: int) -> list[Rows]:
        """The rows of this worker's micro-batches of a step, as `step` will read them."""
        return [rows for _, rows in self._dealt(self.rows(step), self.train)]

    def validate(self) -> Iterator[Arrays]:
        """This worker's batches of the validation rows, with the columns that `Task.keep` kept."""
        for _, rows in self._dealt(self.validation_rows, self.validation):
            yield self.validation.read(rows)

    def chain(self, digest: str, step: int) -> str:
        """The digest of all rows so far, extended by a step's rows."""
        return hashlib.sha256(bytes.fromhex(digest) + self.rows(step).tobytes()).hexdigest()

    def named(self, step: int) -> str:
        """A step and its rows, for an error message."""
        rows = self.rows(step).tolist()
        shown = ", ".join(map(str, rows[:8])) + (", …" if len(rows) > 8 else "")
        return f"step {step} (rows {shown} of the training split)"

    def _read(self, step: int) -> list[tuple[int, Batch]]:
        """This worker's micro-batches of a step, with their numbers, in the CPU's memory."""
        dealt = self._dealt(self.rows(step), self.train)
        device = self.world.device
        return [(number, on_host(self.train.read(rows), device)) for number, rows in dealt]

    def _on_device(self, pieces: list[Batch]) -> Iterator[Batch]:
        """Micro-batches on the device. While one is in use, the next is copied."""
        sent: list[Sent] = []
        for piece in pieces:
            sent.append(self._side.send(piece))
            if len(sent) == 2:
                yield self._side.received(sent.pop(0))
        if sent:
            yield self._side.received(sent.pop())

    def _dealt(self, rows: Rows, reader: ShardReader) -> list[tuple[int, Rows]]:
        """This worker's micro-batches of the rows of all workers, each with a number of its own.

        Rows of similar length come together, since all are padded to the longest of their
        micro-batch, and every worker gets about as many tokens. With `deterministic` rows are cut
        in the same places for every number of workers.
        """
        size, count = self.config.micro_batch_size, len(rows)
        lengths = _lengths(rows, reader)
        if lengths is not None:
            order = np.argsort(lengths, kind="stable")
            rows, lengths = rows[order], lengths[order]
        if self.config.deterministic:
            pieces = np.split(rows, np.arange(size, count, size))
            own = self.world.share(np.arange(len(pieces))).tolist()
        elif lengths is not None:
            starts = self._starts(lengths)
            pieces = np.split(rows, starts[1:])
            longest = lengths[np.append(starts[1:], count) - 1]
            costs = [
                len(piece) * (int(most) + ROW_TOKENS)
                for piece, most in zip(pieces, longest, strict=True)
            ]
            own = deal(costs, self.world.size)[self.world.rank]
        else:
            return self._side_by_side(rows)
        return [(i, pieces[i]) for i in own if len(pieces[i])]

    def _starts(self, lengths: Rows) -> Rows:
        """Where to cut rows, sorted by length, into pieces of about as many tokens each."""
        workers, size = self.world.size, self.config.micro_batch_size
        enough = len(lengths) // (workers * ENOUGH_ROWS)
        pieces = workers * (min(max(enough, 2), 4) if enough else 1)
        tokens = np.cumsum(lengths + ROW_TOKENS)
        starts = np.searchsorted(tokens, tokens[-1] * np.arange(pieces) / pieces)
        further = [
            np.arange(start, stop, size)
            for start, stop in zip(starts, [*starts[1:], len(lengths)], strict=True)
        ]
        return np.concatenate(further)

    def _side_by_side(self, rows: Rows) -> list[tuple[int, Rows]]:
        """This worker's micro-batches of rows that all have one length."""
        size, own = self.config.micro_batch_size, self.world.share(np.arange(len(rows)))
        return [(int(own[i]), rows[own[i : i + size]]) for i in range(0, len(own), size)]


def _lengths(rows: Rows, reader: ShardReader) -> Rows | None:
    """The tokens of each row; None where all rows have one length: see `TextProcessor.padded`."""
    names = [name for name in reader.columns if name.endswith("_length")]
    if not names:
        return None
    return np.sum([reader.read(rows, names)[name] for name in names], axis=0, dtype=np.int64)

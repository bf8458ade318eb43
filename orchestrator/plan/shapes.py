"""How many rows go through the model at once, and how long they are."""

import statistics
from dataclasses import dataclass

import numpy as np

from orchestrator.data.sample_order import Rows
from orchestrator.job.job import Job
from orchestrator.job.task_registry import find_task
from orchestrator.learn.batches import ENOUGH_ROWS, Batches
from orchestrator.learn.world import World
from orchestrator.storage.artifact import PreparedData

STEPS = 24  # whose rows are looked at; a training has seen its longest rows by then, nearly


@dataclass(frozen=True)
class Shape:
    """Rows that go through the model at once, and the tokens that each is padded to.

    A model of one stack has only its own; images count their patches.
    """

    rows: int
    source: int = 0  # of the encoder
    target: int = 0  # of the decoder

    @property
    def tokens(self) -> int:
        return self.rows * (self.source + self.target)


@dataclass(frozen=True)
class Shapes:
    """The micro-batches of a worker's step: of several real steps, or of one that is assumed."""

    steps: tuple[tuple[Shape, ...], ...]
    measured: bool  # on the prepared data; else all rows are as long as they can be

    @property
    def largest(self) -> Shape:
        """The micro-batch with the most tokens."""
        return max((shape for step in self.steps for shape in step), key=lambda s: s.tokens)

    @property
    def tokens(self) -> float:
        """The tokens of a worker's step with their padding, on average."""
        return statistics.fmean(sum(shape.tokens for shape in step) for step in self.steps)


def shapes(job: Job, prepared: PreparedData | None, workers: int) -> Shapes:
    """The micro-batches of the first of so many workers.

    Rows of prepared data have the lengths that they have, where the data is on this machine.
    """
    if prepared is not None and prepared.folder.local_path is not None:
        return _measured(job, prepared, workers)
    return Shapes((_assumed(job, workers),), measured=False)


def full(job: Job, rows: int) -> Shape:
    """So many rows that are as long as the model allows."""
    length = job.model.max_seq_len
    if job.model.patches is not None:
        length = job.model.patches.count + 1
    family = job.model.family
    return Shape(
        rows,
        source=0 if family == "decoder" else length,
        target=0 if family == "encoder" else length,
    )


def _assumed(job: Job, workers: int) -> tuple[Shape, ...]:
    """The micro-batches of full rows, cut as `Batches` cuts them."""
    share = -(-job.train.global_batch_size // workers)
    pieces = 1
    if not find_task(job.task).one_shape and not job.train.deterministic:
        enough = job.train.global_batch_size // (workers * ENOUGH_ROWS)
        pieces = min(max(enough, 2), 4) if enough else 1
    rows = min(-(-share // pieces), job.train.micro_batch_size)
    counts = [rows] * (share // rows) + [share % rows] * bool(share % rows)
    return tuple(full(job, count) for count in counts)


def _measured(job: Job, prepared: PreparedData, workers: int) -> Shapes:
    batches = Batches(prepared, job.train, World(0, workers))
    columns = [name for name in batches.train.columns if name.endswith("_length")]
    steps = []
    for step in range(min(STEPS, job.train.steps or STEPS)):
        pieces = [_shape(job, rows, columns, batches) for rows in batches.pieces(step)]
        if pieces:  # with fewer rows than workers, one may have none
            steps.append(tuple(pieces))
    return Shapes(tuple(steps) or (_assumed(job, workers),), measured=bool(steps))


def _shape(job: Job, rows: Rows, columns: list[str], batches: Batches) -> Shape:
    if not columns:
        return full(job, len(rows))
    lengths = batches.train.read(rows, columns)
    longest = {name: max(int(np.max(values)), 1) for name, values in lengths.items()}
    if job.model.family == "encoder_decoder" and {"source_length", "target_length"} <= set(columns):
        # The decoder reads a target without its last token.
        return Shape(len(rows), longest["source_length"], max(longest["target_length"] - 1, 1))
    most = min(max(longest.values()), job.model.max_seq_len)
    if job.model.family == "encoder_decoder":
        return Shape(len(rows), most, most)
    return (
        Shape(len(rows), source=most)
        if job.model.family == "encoder"
        else Shape(len(rows), target=most)
    )

"""Times ten steps of a job's training on this machine, by `fit()` and without Ray.

It runs in a process of its own, with the environment of a worker and as many threads:
`python -m orchestrator.plan.calibration` reads a request as JSON and writes the figures.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from itertools import islice
from statistics import median
from typing import Any

import torch

from orchestrator.data.reading import BadRow, Note, Row
from orchestrator.data.shards import write_shard
from orchestrator.data.source_file import SourceFile
from orchestrator.errors import StageError, UserError, last_line
from orchestrator.job.cost import compiles
from orchestrator.job.job import Job
from orchestrator.learn.directive import Directive
from orchestrator.learn.fit import fit
from orchestrator.learn.memory import peak_memory
from orchestrator.learn.world import World
from orchestrator.plan.shapes import Shape, Shapes, shapes
from orchestrator.plan.speed import Calibration
from orchestrator.prepare.cleaning import read_cleaned
from orchestrator.storage.artifact import SPLITS, PreparedData
from orchestrator.storage.folder import Folder

STEPS = 10
WARM_UP = 2  # steps that do not count: memory is taken from the system, kernels are chosen
SAMPLE_BYTES = 2 << 20  # of the source, if the data is not prepared yet
SAMPLE_ROWS = 20_000


def calibrate(job: Job, files: list[SourceFile], prepared: PreparedData | None) -> Calibration:
    """Time ten steps of one of the job's workers, with the rows that it would have.

    Raises:
        UserError: if the data cannot be read, or holds too little.
        StageError: if the steps fail.
    """
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="orchestrator-plan-") as folder:
        vocab_size = None
        if prepared is None:
            prepared = prepare_sample(job, files, Folder(folder))
            vocab_size = job.tokenizer.vocab_size if job.model.init_from is None else None
        request = {
            "job": job.model_dump(mode="json"),
            "prepared": prepared.folder.uri,
            "vocab_size": vocab_size,
        }
        environment = {
            "OMP_NUM_THREADS": str(job.cluster.cpus_per_worker),
            # A task of the user's is imported from where this process found it.
            "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
        }
        done = subprocess.run(  # noqa: S603
            [sys.executable, "-P", "-m", __name__],
            input=json.dumps(request),
            env={**os.environ, **_kept_memory(), **environment},
            capture_output=True,
            text=True,
        )
    if done.returncode:
        raise StageError(f"--calibrate: ten steps failed here: {last_line(done.stderr)}")
    figures = json.loads(done.stdout.splitlines()[-1])
    timed, shapes = _read(figures.pop("timed")), _read(figures.pop("shapes"))
    return Calibration(**figures, timed=timed, shapes=shapes, load=load)


def _read(steps: list[list[dict[str, int]]]) -> Shapes:
    read = tuple(tuple(Shape(**shape) for shape in step) for step in steps)
    return Shapes(read, measured=True)


def _written(shapes: Shapes) -> list[list[dict[str, int]]]:
    return [[asdict(shape) for shape in step] for step in shapes.steps]


def _kept_memory() -> dict[str, str]:
    """The environment of workers, whose heaps keep what a step frees."""
    from orchestrator.train.preload import KEPT_MEMORY  # imports Ray

    return KEPT_MEMORY


def prepare_sample(job: Job, files: list[SourceFile], folder: Folder) -> PreparedData:
    """Encode the first rows of the data, all of them for each split, as `prepare` would.

    The vocabulary is smaller than that of all rows; the steps are timed with the job's.
    """
    task = job.build_task()
    rows = _first_rows(job, files)
    if not rows:
        raise UserError(f"data.source = {job.data.source}: its first rows hold nothing to learn")
    processor = task.fit_processor(rows)
    folder.write(processor.file_name, processor.to_bytes())
    arrays = {**task.encode(rows, processor), **task.keep(rows)}
    if not len(next(iter(arrays.values()))):
        raise UserError(
            f"data.source = {job.data.source}: its first rows hold not one sample with "
            f"model.max_seq_len = {job.model.max_seq_len}"
        )
    shard = write_shard(folder, "sample.arrow", arrays)
    return PreparedData(
        folder=folder,
        seconds=0.0,
        summary="the first rows",
        processor=processor.file_name,
        splits={split: [shard] for split in SPLITS},
        documents={},
        source_bytes=SAMPLE_BYTES,
    ).commit()


def _first_rows(job: Job, files: list[SourceFile]) -> list[Row]:
    """The first cleaned rows of several files, up to SAMPLE_BYTES of text."""
    task, rows, read = job.build_task(), [], 0
    for file in files:
        for row in islice(read_cleaned(file, task), SAMPLE_ROWS):
            if row is None or isinstance(row, BadRow | Note):
                continue
            rows.append(row)
            read += sum(len(value) for value in row.values() if isinstance(value, str))
            if read >= SAMPLE_BYTES or len(rows) >= SAMPLE_ROWS:
                return rows
    return rows


@dataclass
class Clock:
    """`fit`'s reporter: takes the time of each step."""

    wants_samples: bool = False
    ends: list[float] = field(default_factory=list)
    precision: dict[str, Any] = field(default_factory=dict)
    validated_at: float = 0.0

    def stepped(self, step: int, seconds: float) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())

    def progress(self, step: int, total_steps: int | None, values: dict[str, float]) -> None:
        pass

    def validated(self, step: int, total_steps: int, metrics: dict[str, float]) -> None:
        self.validated_at = time.perf_counter()

    def directive(self) -> Directive:
        return Directive.GO_ON

    def event(self, kind: str, **fields: Any) -> None:
        if kind == "precision":
            self.precision = fields


class WholeVocabulary:
    """A processor of the first rows, with the vocabulary that the whole data would give."""

    def __init__(self, processor: Any, vocab_size: int) -> None:
        self._processor = processor
        self.vocab_size = max(vocab_size, processor.vocab_size)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._processor, name)


def time_steps(job: Job, prepared: PreparedData, vocab_size: int | None) -> dict[str, Any]:
    """Run ten steps of one worker's share; returns the figures of a `Calibration`.

    Args:
        vocab_size: the model's; None for that of the prepared data.
    """
    torch.set_num_threads(job.cluster.cpus_per_worker)
    workers = job.cluster.fewest_workers
    task = job.build_task()
    if vocab_size is not None:
        load = task.load_processor
        task.load_processor = lambda content: WholeVocabulary(load(content), vocab_size)  # type: ignore[method-assign]
    share = -(-job.train.global_batch_size // workers)
    config = job.train.model_copy(
        update={
            "steps": STEPS,
            "minutes": None,
            "epochs": None,
            "global_batch_size": share,
            "eval_rows": max(job.train.eval_rows // workers, 1),
            "eval_every": STEPS,
            "compile": compiles(job),
        }
    )
    device = torch.device("cuda" if job.cluster.gpus_per_worker else "cpu")
    clock = Clock()
    with contextlib.redirect_stdout(sys.stderr):
        fit(task, prepared, config, World(device=device), clock)
    lasted = [after - before for before, after in zip(clock.ends, clock.ends[1:], strict=False)]
    small = job.model_copy(update={"train": config})
    # One worker of one cuts its rows in other places than one of several.
    return {
        "seconds": median(lasted[WARM_UP - 1 :]),
        "steps": STEPS,
        "precision": clock.precision.get("precision", job.train.precision),
        "reason": clock.precision.get("reason", ""),
        "validation_seconds": clock.validated_at - clock.ends[-1],
        "peak_bytes": peak_memory(device),
        "timed": _written(shapes(small, prepared, 1)),
        "shapes": _written(shapes(job, prepared, workers)),
    }


def main() -> None:
    """Answer the request on standard input."""
    request = json.load(sys.stdin)
    job = Job.model_validate(request["job"])
    folder = Folder(request["prepared"])
    prepared = PreparedData.load(folder)
    assert prepared is not None
    figures = time_steps(job, prepared, request["vocab_size"])
    sys.stdout.write(json.dumps(figures) + "\n")


if __name__ == "__main__":
    main()

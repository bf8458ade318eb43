"""A toy training, by one process or by several, and what goes wrong in it on purpose."""

import multiprocessing
import os
import pickle
import signal
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist

from orchestrator.data.shards import write_shard
from orchestrator.infer.trained_model import load_weights
from orchestrator.job.job import Job
from orchestrator.job.sections import TrainConfig
from orchestrator.learn import pace
from orchestrator.learn.batches import Batches
from orchestrator.learn.checkpoints import Checkpoints
from orchestrator.learn.directive import Directive
from orchestrator.learn.fit import fit
from orchestrator.learn.world import World
from orchestrator.processors.text import TextProcessor, TokenizerConfig
from orchestrator.storage.artifact import Checkpoint, PreparedData
from orchestrator.storage.folder import Folder
from orchestrator.tasks.task import Task

LENGTH = 8
PERIOD = 7
SPLITS = ("train", "validation", "test")
TIMEOUT = 240.0

# The server imports all that takes long, once; each worker is a fork of it and starts at once.
WORKERS = multiprocessing.get_context("forkserver")
SLOW = [
    "torch._inductor",
    "pandas",
    "pyarrow.compute",
    "pytest",
    "orchestrator.tasks.language_modelling",
]
WORKERS.set_forkserver_preload([__name__, *SLOW])


def toy_task(**model: object) -> Task[Any]:
    tiny = {"num_layers": 1, "d_model": 16, "num_heads": 2, "max_seq_len": LENGTH, **model}
    job = {"name": "toy", "task": "language_modelling", "data": {"source": "toy"}, "model": tiny}
    return Job.model_validate(job).build_task()


def toy_config(**values: object) -> TrainConfig:
    tiny = {
        "steps": 12,
        "global_batch_size": 6,
        "micro_batch_size": 6,
        "warmup_steps": 2,
        "lr": 0.01,
        "precision": "fp32",
        "eval_rows": 5,
    }
    return TrainConfig.model_validate({**tiny, **values})


def prepare_counting(folder: Folder) -> PreparedData:
    """Blocks that count modulo seven, each from its own beginning, in several shards."""
    processor = TextProcessor.fit(["abc"], TokenizerConfig(vocab_size=257))
    folder.write(processor.file_name, processor.to_bytes())
    rows = {"train": 40, "validation": 9, "test": 5}
    counting = np.add.outer(np.arange(40), np.arange(LENGTH + 1)) % PERIOD
    splits = {}
    for split in SPLITS:
        parts = np.array_split(counting[: rows[split]].astype(np.uint16), 3)
        splits[split] = [
            write_shard(
                folder,
                f"{split}-{i}.arrow",
                {"tokens": part, "bytes": np.full(len(part), LENGTH, dtype=np.int32)},
            )
            for i, part in enumerate(parts)
        ]
    return PreparedData(
        folder=folder,
        seconds=0.0,
        summary="",
        processor=processor.file_name,
        splits=splits,
        documents={},
        source_bytes=1,
    ).commit()


class Killed(Exception):
    """Stands for whatever ends a process in the middle of a training."""


@dataclass
class Listener:
    """Remembers what it hears, and may ask for something, or end the training, at a step."""

    die_in: str = ""
    die_at: int = 0
    wants_samples: bool = False
    asked: dict[int, Directive] = field(default_factory=dict)  # from a step on, once
    reports: list[tuple[int, int | None, dict[str, float]]] = field(default_factory=list)
    validations: list[tuple[int, int, dict[str, float]]] = field(default_factory=list)
    events: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)

    def stepped(self, step: int, seconds: float) -> None:
        self.steps.append(step)
        self._die("stepped", step)

    def progress(self, step: int, total_steps: int | None, values: dict[str, float]) -> None:
        self.reports.append((step, total_steps, values))
        self._die("progress", step)

    def validated(self, step: int, total_steps: int, metrics: dict[str, float]) -> None:
        self.validations.append((step, total_steps, metrics))
        self._die("validated", step)

    def directive(self) -> Directive:
        due = [step for step in self.asked if step <= self.steps[-1]]
        return max((self.asked.pop(step) for step in due), default=Directive.GO_ON)

    def event(self, kind: str, **fields: object) -> None:
        self.events.append((kind, fields))

    def heard(self, kind: str) -> list[dict[str, Any]]:
        return [fields for heard, fields in self.events if heard == kind]

    def _die(self, where: str, step: int) -> None:
        if (where, step) == (self.die_in, self.die_at):
            raise Killed


def saved_in(path: Path) -> Checkpoints:
    return Checkpoints(Folder(str(path)), toy_task().metric)


def newest(path: Path) -> Checkpoint:
    return saved_in(path).all()[-1]


def train(
    prepared: PreparedData,
    path: Path,
    config: TrainConfig,
    listener: Listener | None = None,
    **model: object,
) -> dict[str, float] | None:
    """By this process alone, with checkpoints in `path`."""
    checkpoints = saved_in(path)
    try:
        return fit(
            toy_task(**model), prepared, config, World(), listener or Listener(), checkpoints
        )
    finally:
        checkpoints.finish()  # where this process goes on, so would its thread


def final_weights(path: Path) -> torch.Tensor:
    """All the weights of the newest checkpoint in one vector."""
    model = toy_task().build_model(257, 1)
    load_weights(model, newest(path))
    return torch.nn.utils.parameters_to_vector(model.parameters()).detach()


def newest_files(path: Path) -> tuple[bytes, bytes]:
    folder = newest(path).folder
    return folder.read("model.safetensors"), folder.read("optimizer.safetensors")


def curve(path: Path) -> list[dict[str, float]]:
    """The newest checkpoint's history without how fast the steps were."""
    history = newest(path).history
    return [{k: v for k, v in point.items() if k != "throughput"} for point in history]


def ending(path: Path) -> tuple[Any, ...]:
    """All that two trainings must have in common to have ended alike."""
    return newest(path).step, newest(path).samples, *newest_files(path), curve(path)


@dataclass(frozen=True)
class Fault:
    """What befalls a worker, the first `times` that it computes one of some steps."""

    kind: Literal["nan loss", "nan gradient", "flipped bit", "kill", "other norm"]
    steps: tuple[int, ...]  # counted from 0
    rank: int | None = 0  # None: all of them
    times: int = 1

    def strike(self, task: Task[Any]) -> None:
        """Let it happen in this process."""
        times = dict.fromkeys(self.steps, self.times)
        current = -1
        batches_step, task_loss = Batches.step, task.loss

        def step(batches: Batches, number: int) -> Any:
            nonlocal current
            current = number
            return batches_step(batches, number)

        def loss(model: torch.nn.Module, batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
            if not times.get(current):
                return task_loss(model, batch)
            times[current] -= 1
            if self.kind == "other norm":  # as on a machine that adds in another order
                torch.linalg.vector_norm = _norm_with_another_last_bit
            if self.kind == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.kind == "flipped bit":
                next(model.parameters()).data.view(torch.int32)[0, 0] ^= 1 << 22
            value, count = task_loss(model, batch)
            if self.kind == "nan loss":
                value = value * torch.nan
            if self.kind == "nan gradient":
                value.register_hook(lambda gradient: gradient * torch.nan)
            return value, count

        Batches.step = step  # type: ignore[method-assign]
        task.loss = loss  # type: ignore[method-assign]


_norm = torch.linalg.vector_norm


def _norm_with_another_last_bit(x: torch.Tensor, *how: Any, **further: Any) -> torch.Tensor:
    norm = _norm(x, *how, **further)
    # Muon calls this for matrices, whose results the workers exchange.
    return norm if how or further else torch.nextafter(norm, torch.tensor(torch.inf))


@dataclass(frozen=True)
class Outcome:
    """What became of one worker; one that was killed leaves none."""

    metrics: dict[str, float] | None
    error: str
    listener: Listener


@dataclass(frozen=True)
class Disturbance:
    """What happens to a training from outside."""

    faults: tuple[Fault, ...] = ()
    asked: dict[int, Directive] = field(default_factory=dict)  # the last worker, from a step on
    agreement_seconds: float = 0.0  # an agreement after every step


def train_together(
    size: int,
    prepared: PreparedData,
    path: Path,
    config: TrainConfig,
    disturbance: Disturbance = Disturbance(),
    **model: object,
) -> list[Outcome | None]:
    """By `size` new processes, with checkpoints in `path`; what became of each, by rank."""
    return together(size, _fit, prepared.folder.uri, path, config, disturbance, model)


def together(size: int, work: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What `work(world, *arguments)` returns in each of `size` processes; None where it died."""
    meeting_point = f"/tmp/toy-{uuid.uuid4().hex}"
    pipes, processes = [], []
    for rank in range(size):
        mine, theirs = WORKERS.Pipe(duplex=False)
        process = WORKERS.Process(
            target=_worker, args=(theirs, rank, size, meeting_point, work, arguments)
        )
        process.start()
        theirs.close()
        pipes.append(mine)
        processes.append(process)
    try:
        return [_received(pipe) for pipe in pipes]
    finally:
        for process in processes:
            process.kill()
            process.join()
        Path(meeting_point).unlink(missing_ok=True)


def _received(pipe: Connection) -> Any:
    if not pipe.poll(TIMEOUT):
        raise TimeoutError("a worker does not answer")
    try:
        return pickle.loads(pipe.recv_bytes())
    except EOFError:
        return None


def _worker(
    pipe: Connection,
    rank: int,
    size: int,
    meeting_point: str,
    work: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{meeting_point}", rank=rank, world_size=size
    )
    answer = work(World(rank, size), *arguments)
    pipe.send_bytes(pickle.dumps(answer))  # whole: torch would leave tensors in this process
    pipe.close()
    dist.destroy_process_group()


def _fit(
    world: World,
    prepared_uri: str,
    path: Path,
    config: TrainConfig,
    disturbance: Disturbance,
    model: dict[str, object],
) -> Outcome:
    pace.REPORT_SECONDS, pace.AGREEMENT_SECONDS = 0.0, disturbance.agreement_seconds
    prepared = PreparedData.load(Folder(prepared_uri))
    assert prepared is not None
    task, listener = toy_task(**model), Listener()
    if world.rank == world.size - 1:
        listener.asked = dict(disturbance.asked)
    for fault in disturbance.faults:
        if fault.rank in (world.rank, None):
            fault.strike(task)
    try:
        metrics = fit(task, prepared, config, world, listener, saved_in(path))
    except Exception as error:
        return Outcome(None, f"{type(error).__name__}: {error}", listener)
    return Outcome(metrics, "", listener)

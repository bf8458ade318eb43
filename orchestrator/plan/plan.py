"""The plan of a job: what it will do, need and cost, before it starts anything."""

import math
from dataclasses import dataclass

from orchestrator.data.source_file import SourceFile
from orchestrator.data.sources import total_bytes
from orchestrator.errors import StageError, first_line
from orchestrator.job.cost import compiles
from orchestrator.job.defaults import BYTES_PER_TOKEN
from orchestrator.job.job import Job
from orchestrator.job.search_space import TuneConfig
from orchestrator.job.task_registry import find_task
from orchestrator.plan.fit import Misfit, misfits
from orchestrator.plan.goodput import Checkpointing, checkpointing
from orchestrator.plan.machines import Machines
from orchestrator.plan.memory import Memory, Mode, worker_memory
from orchestrator.plan.parameters import Parameters, count
from orchestrator.plan.scale import Costs, Scaled, Work, scaled
from orchestrator.plan.shapes import Shapes, shapes
from orchestrator.plan.speed import (
    Calibration,
    Course,
    Speed,
    StageTime,
    assumed_speed,
    stage_times,
    worker_step_flops,
)
from orchestrator.storage.artifact import PreparedData

OPEN_SHARDS = 16  # of a `ShardReader`
MAX_SHARD = 64e6  # bytes, about: of a bucket


@dataclass(frozen=True)
class Asked:
    """What the command's options say."""

    machines: Machines
    costs: Costs
    scale: tuple[int, ...] = ()  # numbers of workers to predict, besides the job's own
    calibration: Calibration | None = None


@dataclass(frozen=True)
class Plan:
    """The plan of a job. Sample counts are estimates until the data is prepared."""

    source_files: int
    source_bytes: int
    train_samples: int
    samples_are_estimated: bool
    tokens_per_step: int
    steps: int | None  # None: as many as fit into the time budget
    epochs: float | None
    accumulation: dict[int, int]  # micro-batches a step, by the number of workers
    sweep: str
    compiles: bool
    parameters: Parameters
    shapes: Shapes  # of a worker of the fewest workers
    flops_per_token: float
    total_steps: int
    speed: Speed
    precision: str
    precision_reason: str
    memory: Memory
    stages: list[StageTime]
    checkpoints: Checkpointing
    scale: list[Scaled]  # the job's own number of workers first
    misfits: list[Misfit]
    calibration: Calibration | None
    notes: list[str]

    @property
    def total_tokens(self) -> float:
        return float(self.total_steps) * self.tokens_per_step


def make_plan(
    job: Job, files: list[SourceFile], prepared: PreparedData | None, asked: Asked
) -> Plan:
    """Derive a plan without touching Ray."""
    config, machines, calibration = job.train, asked.machines, asked.calibration
    source_bytes = total_bytes(files)
    parameters, the_shapes, notes = _sizes(job, prepared, calibration)
    flops = worker_step_flops(job, parameters, the_shapes)
    speed = _speed(job, machines, parameters, calibration)
    work = _work(job, parameters, the_shapes, speed)
    scale = [
        scaled(work, machines, asked.costs, count)
        for count in dict.fromkeys((*job.cluster.range, *asked.scale))
    ]
    precision, why = choose_precision(job, the_shapes, parameters, calibration)
    mode = Mode(
        precision,
        compiles(job),
        mapped_bytes(source_bytes, prepared),
        one_shape=find_task(job.task).one_shape,
    )
    samples, estimated = _samples(job, prepared, source_bytes)
    course = Course(
        job,
        source_bytes,
        None if prepared is None else sum(s.rows for s in prepared.splits.get("test", [])),
        cores=machines.cpus or float(job.cluster.cpus_per_worker),
        step=scale[0].step,
        rows=config.global_batch_size / job.cluster.fewest_workers,
        compiled=mode.compiled,
        validation=work.speed.validation,
    )
    return Plan(
        source_files=len(files),
        source_bytes=source_bytes,
        train_samples=samples,
        samples_are_estimated=estimated,
        tokens_per_step=config.global_batch_size * job.model.max_seq_len,
        steps=config.steps,
        epochs=config.steps * config.global_batch_size / samples
        if config.steps is not None and samples
        else None,
        accumulation=_accumulation(job),
        sweep=_sweep(job.tune) if job.tune is not None else "none",
        compiles=mode.compiled,
        parameters=parameters,
        shapes=the_shapes,
        flops_per_token=flops / the_shapes.tokens,
        total_steps=scale[0].steps,
        speed=work.speed,
        precision=precision,
        precision_reason=why,
        memory=worker_memory(job, parameters, the_shapes.largest, mode),
        stages=stage_times(course),
        checkpoints=work.checkpoints,
        scale=scale,
        misfits=misfits(job, parameters, the_shapes, machines, mode),
        calibration=calibration,
        notes=notes,
    )


def _sizes(
    job: Job, prepared: PreparedData | None, calibration: Calibration | None
) -> tuple[Parameters, Shapes, list[str]]:
    """The model's parameters, a worker's micro-batches, and what the user should know of them."""
    workers, notes = job.cluster.fewest_workers, []
    try:
        parameters, the_shapes = count(job, prepared), shapes(job, prepared, workers)
    except (OSError, StageError) as error:
        notes.append(f"the prepared data cannot be read, and is assumed: {first_line(error)}")
        parameters, the_shapes = count(job, None), shapes(job, None, workers)
    if calibration is not None and not the_shapes.measured:
        the_shapes = calibration.shapes
    return parameters, the_shapes, notes


def _speed(
    job: Job, machines: Machines, parameters: Parameters, calibration: Calibration | None
) -> Speed:
    """A worker's speed: measured, or by a table."""
    if calibration is not None:
        flops = worker_step_flops(job, parameters, calibration.timed)
        reason = (
            f"measured: {calibration.steps} steps of {calibration.seconds:.3g} s here, "
            f"{calibration.workers} workers at once"
        )
        return Speed(flops / calibration.seconds, reason, calibration.validation_seconds)
    placed = machines.place(job.cluster, job.cluster.fewest_workers)
    return assumed_speed(job, placed[0].accelerator if placed else None)


def _work(job: Job, parameters: Parameters, the_shapes: Shapes, speed: Speed) -> Work:
    rows = sum(shape.rows for step in the_shapes.steps for shape in step)
    flops = worker_step_flops(job, parameters, the_shapes) * len(the_shapes.steps)
    return Work(
        job,
        parameters,
        sample_flops=flops / rows,
        sample_tokens=the_shapes.tokens * len(the_shapes.steps) / rows,
        speed=speed,
        checkpoints=checkpointing(job, parameters),
    )


def _accumulation(job: Job) -> dict[int, int]:
    """Micro-batches a step, by the number of workers."""
    batch, micro = job.train.global_batch_size, job.train.micro_batch_size
    return {
        workers: math.ceil(math.ceil(batch / workers) / micro)
        for workers in sorted(set(job.cluster.range))
    }


def choose_precision(
    job: Job,
    the_shapes: Shapes,
    parameters: Parameters,
    calibration: Calibration | None,
) -> tuple[str, str]:
    """The precision to plan with, and why: measured, named, or the one that takes more memory."""
    if calibration is not None:
        return calibration.precision, calibration.reason or "the job names it"
    if job.train.precision != "auto":
        return job.train.precision, "the job names it"
    if job.cluster.gpus_per_worker:
        return "bf16", "assumed: the training times both"
    taken = {
        name: worker_memory(job, parameters, the_shapes.largest, Mode(name)).total
        for name in ("fp32", "bf16")
    }
    most = max(taken, key=lambda name: taken[name])
    return most, "assumed, as it takes more memory: the training times both"


def mapped_bytes(source_bytes: int, prepared: PreparedData | None) -> float:
    """The bytes of the shards that a reader keeps open. Tokens have two bytes each."""
    if prepared is None:
        return min(2.0 * source_bytes / BYTES_PER_TOKEN, OPEN_SHARDS * MAX_SHARD)
    sizes = sorted(shard.bytes for shard in prepared.splits.get("train", []))
    return float(sum(sizes[-OPEN_SHARDS:]))


def _samples(job: Job, prepared: PreparedData | None, source_bytes: int) -> tuple[int, bool]:
    """The training samples, and whether they are estimated."""
    if prepared is not None:
        return prepared.rows("train"), False
    tokens = source_bytes / BYTES_PER_TOKEN
    share = 1.0 - job.data.validation_fraction - job.data.test_fraction
    return int(tokens * share / job.model.max_seq_len), True


def _sweep(config: TuneConfig) -> str:
    repeats = f", up to {config.repeats} seeds each" if config.repeats > 1 else ""
    budget = f", {config.minutes:g} minutes at most" if config.minutes else ""
    return (
        f"{config.configurations} configurations by {config.searched_by}, {config.scheduler}, "
        f"{config.steps:,} steps each{repeats}{budget}: {', '.join(sorted(config.space))}"
    )

"""The plan of a job: what it will do, need and cost, before it starts anything."""

import math
from dataclasses import dataclass

from orchestrator.data.source_file import SourceFile
from orchestrator.data.sources import total_bytes
from orchestrator.errors import StageError, first_line
from orchestrator.job.cost import compiles, train_seconds
from orchestrator.job.defaults import BYTES_PER_TOKEN
from orchestrator.job.job import Job
from orchestrator.job.search_space import TuneConfig
from orchestrator.plan.fit import Misfit, misfits
from orchestrator.plan.goodput import Checkpointing, checkpointing
from orchestrator.plan.machines import Machines
from orchestrator.plan.memory import Memory, worker_memory
from orchestrator.plan.parameters import Parameters, count
from orchestrator.plan.scale import Costs, Scaled, Work, scaled
from orchestrator.plan.shapes import Shapes, shapes
from orchestrator.plan.speed import (
    Calibration,
    Speed,
    StageTime,
    assumed_speed,
    stage_times,
    step_flops,
    train_steps,
    worker_step_flops,
)
from orchestrator.storage.artifact import PreparedData


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
    train_seconds: float  # an estimate, or the time budget if there is one
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
    config, workers = job.train, job.cluster.fewest_workers
    source_bytes = total_bytes(files)
    calibration, notes = asked.calibration, []
    try:
        parameters, the_shapes = count(job, prepared), shapes(job, prepared, workers)
    except (OSError, StageError) as error:
        notes.append(f"the prepared data cannot be read, and is assumed: {first_line(error)}")
        parameters, the_shapes = count(job, None), shapes(job, None, workers)
    if calibration is not None and not the_shapes.measured:
        the_shapes = calibration.shapes
    flops = worker_step_flops(job, parameters, the_shapes)
    machines, compiled = asked.machines, compiles(job)
    placed = machines.place(job.cluster, workers)
    speed = assumed_speed(job, placed[0].accelerator if placed else None)
    if calibration is not None:
        reason = f"measured: {calibration.steps} steps of {calibration.seconds:.3g} s here"
        speed = Speed(flops / calibration.seconds, reason, calibration.validation_seconds)
    precision, why = choose_precision(job, the_shapes, parameters, compiled, calibration)
    memory = worker_memory(job, parameters, the_shapes.largest, precision, compiled)
    step = flops / speed.flops
    steps = train_steps(job, step)
    samples, estimated = _samples(job, prepared, source_bytes)
    shape = the_shapes.steps[0]
    rows = sum(each.rows for each in shape)
    checkpoints = checkpointing(job, parameters)
    work = Work(
        job,
        parameters,
        sample_flops=sum(step_flops(job, parameters, each) for each in shape) / rows,
        sample_tokens=sum(each.tokens for each in shape) / rows,
        samples=float(steps * config.global_batch_size),
        speed=speed,
        checkpoints=checkpoints,
    )
    return Plan(
        source_files=len(files),
        source_bytes=source_bytes,
        train_samples=samples,
        samples_are_estimated=estimated,
        tokens_per_step=config.global_batch_size * job.model.max_seq_len,
        steps=config.steps,
        epochs=steps * config.global_batch_size / samples if config.steps and samples else None,
        accumulation={
            count: math.ceil(math.ceil(config.global_batch_size / count) / config.micro_batch_size)
            for count in sorted(set(job.cluster.range))
        },
        sweep=_sweep(job.tune) if job.tune is not None else "none",
        train_seconds=train_seconds(job),
        compiles=compiled,
        parameters=parameters,
        shapes=the_shapes,
        flops_per_token=flops / the_shapes.tokens,
        total_steps=steps,
        speed=speed,
        precision=precision,
        precision_reason=why,
        memory=memory,
        stages=stage_times(
            job,
            prepared,
            source_bytes,
            parameters,
            the_shapes,
            speed,
            compiled,
            machines.cpus or float(job.cluster.cpus_per_worker),
        ),
        checkpoints=checkpoints,
        scale=[
            scaled(work, machines, asked.costs, count)
            for count in dict.fromkeys((*job.cluster.range, *asked.scale))
        ],
        misfits=misfits(job, parameters, the_shapes, machines, (precision, compiled)),
        calibration=calibration,
        notes=notes,
    )


def choose_precision(
    job: Job,
    the_shapes: Shapes,
    parameters: Parameters,
    compiled: bool,
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
        name: worker_memory(job, parameters, the_shapes.largest, name, compiled).total
        for name in ("fp32", "bf16")
    }
    most = max(taken, key=lambda name: taken[name])
    return most, "assumed, as it takes more memory: the training times both"


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

"""How fast a job computes, and how long its stages take: predictions, each with its assumption."""

from dataclasses import dataclass

from orchestrator.job.cost import COMPILE_ON_CPU, COMPILE_ON_GPU, FLOPS_A_SECOND
from orchestrator.job.job import Job
from orchestrator.learn.pace import VALIDATIONS
from orchestrator.plan.machines import Accelerator
from orchestrator.plan.memory import MASKED_SHARE
from orchestrator.plan.parameters import Parameters
from orchestrator.plan.shapes import Shape, Shapes
from orchestrator.storage.artifact import PreparedData

MFU = 0.35  # share of a GPU's peak that a training reaches: published ones are 0.29 to 0.60
FORWARD = 1 / 3  # of a step's operations

# Measured with docs/plan.md's commands.
PREPARED_BYTES_A_SECOND = 0.9e6  # of a core: read, clean, tokenize, shuffle, write
PREPARE_START = 8.0  # seconds: the command, Ray, Ray Data
TRAIN_START = 7.0  # seconds: workers start and meet
EVALUATE_START = 5.0
SERVE_START = 8.0


@dataclass(frozen=True)
class Speed:
    """The operations a second that a worker reaches in training, and where the figure is from."""

    flops: float
    reason: str
    validation: float | None = None  # seconds of one, where that was measured


@dataclass(frozen=True)
class Calibration:
    """What ten steps of one worker's share of a job took here."""

    seconds: float  # of a step, the median
    steps: int
    precision: str
    reason: str  # why this precision; empty where the job names it
    validation_seconds: float
    peak_bytes: int  # of the process without Ray
    shapes: Shapes


@dataclass(frozen=True)
class StageTime:
    """The predicted seconds of a stage; None if unknown."""

    stage: str
    seconds: float | None
    reason: str


def step_flops(job: Job, parameters: Parameters, shape: Shape) -> float:
    """The operations of a forward and a backward pass: 6 for each weight of a linear map and each
    token that it sees, and 12 for each layer, width, query and key."""
    model = job.model
    width = model.num_heads * model.head_width
    source, target = shape.source, shape.target
    flops = 6.0 * source * (parameters.encoder_maps + parameters.memory_maps)
    flops += 6.0 * target * parameters.decoder_maps
    flops += 12.0 * model.num_layers * width * source**2 * bool(source)
    flops += 12.0 * model.layers_to_decode * width * target * (target + source) * bool(target)
    predicted = MASKED_SHARE * source if model.family == "encoder" else target
    return shape.rows * (flops + 6.0 * parameters.head_maps * predicted)


def worker_step_flops(job: Job, parameters: Parameters, shapes: Shapes) -> float:
    """The operations of a worker in a step, on average."""
    steps = [sum(step_flops(job, parameters, shape) for shape in step) for step in shapes.steps]
    return sum(steps) / len(steps)


def assumed_speed(job: Job, accelerator: Accelerator | None) -> Speed:
    """A worker's speed by a table."""
    sizes = job.cluster
    if not sizes.gpus_per_worker:
        each = FLOPS_A_SECOND["cpu"]
        reason = f"{each / 1e9:.0f} GFLOP/s a core, assumed: --calibrate measures it here"
        return Speed(each * sizes.cpus_per_worker, reason)
    if accelerator is None:
        each = FLOPS_A_SECOND["cuda"]
        reason = f"{each / 1e12:.0f} TFLOP/s a GPU of unknown kind, assumed"
        return Speed(each * sizes.gpus_per_worker, reason)
    reason = f"{MFU:.0%} of {accelerator.name}'s {accelerator.flops / 1e12:.0f} TFLOP/s, assumed"
    return Speed(MFU * accelerator.flops * sizes.gpus_per_worker, reason)


def stage_times(
    job: Job,
    prepared: PreparedData | None,
    source_bytes: int,
    parameters: Parameters,
    shapes: Shapes,
    speed: Speed,
    compiled: bool,
    cores: float,
) -> list[StageTime]:
    """The predicted time of each stage of a run, if it begins with nothing.

    Args:
        shapes: those of a worker of the fewest workers.
        cores: of all machines.
    """
    step = worker_step_flops(job, parameters, shapes) / speed.flops
    times = [_prepare_time(source_bytes, cores)]
    if job.tune is not None:
        times.append(_tune_time(job, step, cores))
    times.append(_train_time(job, shapes, step, compiled, speed.validation))
    row = sum(step_flops(job, parameters, shape) for shape in shapes.steps[0])
    row *= FORWARD / sum(shape.rows for shape in shapes.steps[0])
    tested = [] if prepared is None else prepared.splits.get("test", [])
    rows = sum(shard.rows for shard in tested) if prepared is not None else None
    times.append(_evaluate_time(job, rows, row / speed.flops))
    times.append(StageTime("serve", SERVE_START, "until the endpoint answers"))
    return times


def train_steps(job: Job, seconds_a_step: float) -> int:
    """The steps of a training: the job's own, or those that its minutes allow."""
    if job.train.steps is not None:
        return job.train.steps
    return max(int(60.0 * job.train.budget_minutes / seconds_a_step), 1)


def _prepare_time(source_bytes: int, cores: float) -> StageTime:
    seconds = PREPARE_START + source_bytes / (PREPARED_BYTES_A_SECOND * max(cores, 1.0))
    rate = f"{PREPARED_BYTES_A_SECOND / 1e6:.1f} MB/s a core, {cores:g} cores"
    return StageTime("prepare", seconds, f"{rate}, and {PREPARE_START:.0f} s to start")


def _tune_time(job: Job, step: float, cores: float) -> StageTime:
    tune = job.tune
    assert tune is not None
    if tune.minutes is not None:
        return StageTime("tune", 60.0 * tune.minutes, "its budget, at most")
    at_once = max(int(cores // (tune.workers * job.cluster.cpus_per_worker)), 1)
    # A step of a trial has the same samples as one of the job, dealt to the trial's workers.
    trial = tune.steps * step * job.cluster.fewest_workers / tune.workers
    waves = -(-tune.configurations * tune.repeats // at_once)
    what = f"{tune.configurations * tune.repeats} trials, {at_once} at once"
    stops = "" if tune.scheduler in ("none", "pbt") else f", at most: {tune.scheduler} stops some"
    return StageTime("tune", PREPARE_START + waves * trial, what + stops)


def _train_time(
    job: Job, shapes: Shapes, step: float, compiled: bool, validation: float | None
) -> StageTime:
    start = TRAIN_START
    if compiled:
        start += (COMPILE_ON_GPU if job.cluster.gpus_per_worker else COMPILE_ON_CPU)[1]
    if job.train.steps is None:
        return StageTime("train", start + 60.0 * job.train.budget_minutes, "its time budget")
    rows = sum(shape.rows for shape in shapes.steps[0])
    if validation is None:
        validation = job.train.eval_rows / job.cluster.fewest_workers * FORWARD * step / rows
    every = job.train.eval_every or -(-job.train.steps // VALIDATIONS)
    validations = -(-job.train.steps // every)
    seconds = start + job.train.steps * step + validations * validation
    what = f"{job.train.steps:,} steps of {step:.3g} s, {validations} validations"
    return StageTime("train", seconds, f"{what}, and {start:.0f} s to start")


def _evaluate_time(job: Job, rows: int | None, seconds_a_row: float) -> StageTime:
    if rows is None:
        return StageTime("evaluate", None, "unknown until the data is prepared")
    seconds = EVALUATE_START + rows * seconds_a_row / job.cluster.fewest_workers
    what = f"{rows:,} rows"
    if job.model.family == "encoder_decoder":
        what += ", without the texts that it generates"
    return StageTime("evaluate", seconds, f"{what}, and {EVALUATE_START:.0f} s to start")

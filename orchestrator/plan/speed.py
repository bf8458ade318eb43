"""How fast a job computes, and how long its stages take: predictions, each with its assumption."""

from dataclasses import dataclass

from orchestrator.job.cost import COMPILE_ON_CPU, COMPILE_ON_GPU, FLOPS_A_SECOND
from orchestrator.job.job import Job
from orchestrator.job.search_space import TuneConfig
from orchestrator.learn.pace import VALIDATIONS
from orchestrator.plan.machines import Accelerator
from orchestrator.plan.memory import MASKED_SHARE
from orchestrator.plan.parameters import Parameters
from orchestrator.plan.shapes import Shape, Shapes

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
    timed: Shapes  # the micro-batches of these steps
    shapes: Shapes  # those that one of the job's workers would have
    load: float  # the load average before


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


@dataclass(frozen=True)
class Course:
    """What a run's stages take their time for."""

    job: Job
    source_bytes: int
    test_rows: int | None  # None until the data is prepared
    cores: float  # of all machines
    step: float  # seconds of a step of the fewest workers
    rows: float  # of a worker's step
    compiled: bool
    validation: float | None  # seconds of one, where that was measured

    @property
    def row(self) -> float:
        """The seconds that a worker takes to predict a row."""
        return FORWARD * self.step / self.rows


def stage_times(course: Course) -> list[StageTime]:
    """The predicted time of each stage of a run, if it begins with nothing."""
    tune = [_tune_time(course, course.job.tune)] if course.job.tune is not None else []
    serve = StageTime("serve", SERVE_START, "until the endpoint answers")
    return [_prepare_time(course), *tune, _train_time(course), _evaluate_time(course), serve]


def _prepare_time(course: Course) -> StageTime:
    speed = PREPARED_BYTES_A_SECOND * max(course.cores, 1.0)
    rate = f"{PREPARED_BYTES_A_SECOND / 1e6:.1f} MB/s a core, {course.cores:g} cores"
    seconds = PREPARE_START + course.source_bytes / speed
    return StageTime("prepare", seconds, f"{rate}, and {PREPARE_START:.0f} s to start")


def _tune_time(course: Course, tune: TuneConfig) -> StageTime:
    if tune.minutes is not None:
        return StageTime("tune", 60.0 * tune.minutes, "its budget, at most")
    sizes = course.job.cluster
    at_once = max(int(course.cores // (tune.workers * sizes.cpus_per_worker)), 1)
    # A step of a trial has the same samples as one of the job, dealt to the trial's workers.
    trial = tune.steps * course.step * sizes.fewest_workers / tune.workers
    waves = -(-tune.configurations * tune.repeats // at_once)
    what = f"{tune.configurations * tune.repeats} trials, {at_once} at once"
    stops = "" if tune.scheduler in ("none", "pbt") else f", at most: {tune.scheduler} stops some"
    return StageTime("tune", PREPARE_START + waves * trial, what + stops)


def _train_time(course: Course) -> StageTime:
    train, sizes = course.job.train, course.job.cluster
    start = TRAIN_START
    if course.compiled:
        start += (COMPILE_ON_GPU if sizes.gpus_per_worker else COMPILE_ON_CPU)[1]
    if train.steps is None:
        return StageTime("train", start + 60.0 * train.budget_minutes, "its time budget")
    validation = course.validation
    if validation is None:
        validation = train.eval_rows / sizes.fewest_workers * course.row
    every = train.eval_every or -(-train.steps // VALIDATIONS)
    validations = -(-train.steps // every)
    seconds = start + train.steps * course.step + validations * validation
    what = f"{train.steps:,} steps of {course.step:.3g} s, {validations} validations"
    return StageTime("train", seconds, f"{what}, and {start:.0f} s to start")


def _evaluate_time(course: Course) -> StageTime:
    if course.test_rows is None:
        return StageTime("evaluate", None, "unknown until the data is prepared")
    seconds = course.test_rows * course.row / course.job.cluster.fewest_workers
    what = f"{course.test_rows:,} rows"
    if course.job.model.family == "encoder_decoder":
        what += ", without the texts that it generates"
    start = f"{what}, and {EVALUATE_START:.0f} s to start"
    return StageTime("evaluate", EVALUATE_START + seconds, start)

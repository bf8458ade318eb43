"""The same training on other numbers of workers: a prediction."""

from dataclasses import dataclass

from orchestrator.job.job import Job
from orchestrator.plan.goodput import Checkpointing, mtbf
from orchestrator.plan.machines import Machine, Machines
from orchestrator.plan.parameters import FP32, Parameters
from orchestrator.plan.speed import Speed

NETWORK = 10.0  # Gbit/s between machines
WITHIN = {"cpu": 10e9, "cuda": 200e9}  # bytes a second between workers of one machine
BACKWARD = 2 / 3  # of a step's computing: gradients are sent meanwhile
HOUR = 3600.0


@dataclass(frozen=True)
class Costs:
    """What the user says of the machines."""

    price: float | None = None  # dollars an hour for each machine; None: the file's
    network: float = NETWORK  # Gbit/s
    failures: float = 3.8  # of 1,000 machines in a day


@dataclass(frozen=True)
class Scaled:
    """The prediction for one number of workers."""

    workers: int
    machines: int
    batch: int  # the global batch: the job's, or more if some workers had no sample
    samples_a_second: float
    tokens_a_second: float
    step: float  # seconds
    exposed: float  # seconds of a step that wait for gradients
    mtbf: float  # seconds
    interval: float  # seconds between checkpoints
    goodput: float  # 0 to 1
    seconds: float  # of the steps, with what failures cost
    steps: int
    cost: float | None  # dollars


@dataclass(frozen=True)
class Work:
    """A training, as far as its scale does not change it."""

    job: Job
    parameters: Parameters
    sample_flops: float  # of a sample's forward and backward pass
    sample_tokens: float  # with padding
    speed: Speed
    checkpoints: Checkpointing


def scaled(work: Work, machines: Machines, costs: Costs, workers: int) -> Scaled:
    """What to expect of so many workers. The training reads as many samples as the job's own."""
    job = work.job
    placed = machines.place(job.cluster, workers)
    kind, count, each = placed or (machines.kinds[0], workers, 1)
    batch = -(-job.train.global_batch_size // workers) * workers
    compute = batch / workers * work.sample_flops / work.speed.flops
    exposed = exposed_seconds(work, costs, workers, each, compute)
    step = compute + exposed
    between = mtbf(count, costs.failures)
    interval, goodput = work.checkpoints.interval(between), work.checkpoints.goodput(between)
    if job.train.steps is None:
        seconds = 60.0 * job.train.budget_minutes
        steps = max(int(seconds * goodput / step), 1)
    else:
        steps = max(round(job.train.steps * job.train.global_batch_size / batch), 1)
        seconds = steps * step / max(goodput, 1e-9)
    return Scaled(
        workers=workers,
        machines=count,
        batch=batch,
        samples_a_second=batch / step,
        tokens_a_second=batch * work.sample_tokens / step,
        step=step,
        exposed=exposed,
        mtbf=between,
        interval=interval,
        goodput=goodput,
        seconds=seconds,
        steps=steps,
        cost=cost(kind, machines.head, count, costs, seconds),
    )


def exposed_seconds(work: Work, costs: Costs, workers: int, each: int, compute: float) -> float:
    """The seconds of a step that wait for other workers' gradients.

    A ring all-reduce sends 2 (n - 1) / n times the gradients' bytes, while the backward pass goes
    on. Muon then gathers its updates, in bf16, while nothing else does.
    """
    if workers == 1:
        return 0.0
    device = "cuda" if work.job.cluster.gpus_per_worker else "cpu"
    bandwidth = WITHIN[device] if workers <= each else costs.network * 1e9 / 8
    share = (workers - 1) / workers
    reduce = 2 * share * FP32 * work.parameters.total / bandwidth
    gather = 0.0
    if work.job.train.optimizer == "muon":
        gather = share * 2 * work.parameters.matrices / bandwidth
    return max(0.0, reduce - BACKWARD * compute) + gather


def cost(
    kind: Machine, head: Machine | None, machines: int, costs: Costs, seconds: float
) -> float | None:
    """Dollars of the machines for so long; None if a price is missing.

    `costs.price` is the one of each machine. A head that is no worker is one more.
    """
    beside = head is not None and head.name != kind.name
    price = costs.price if costs.price is not None else kind.price
    if price is None:
        return None
    extra = 0.0
    if beside and head is not None:
        of_head = costs.price if costs.price is not None else head.price
        if of_head is None:
            return None
        extra = of_head
    return (machines * price + extra) * seconds / HOUR

"""What of a job does not fit its machines, and the largest that would."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from orchestrator.job.job import Job
from orchestrator.model.config import SIZES
from orchestrator.plan.machines import Machine, Machines
from orchestrator.plan.memory import Memory, Mode, worker_memory
from orchestrator.plan.parameters import Parameters, count_model
from orchestrator.plan.shapes import Shape, Shapes

OF_OTHERS = 1.5e9  # bytes of a machine: its system, Ray's daemons, the command
SPARE = 0.4e9  # bytes of a process that waits beside each worker
USABLE = 0.95  # of a machine's memory: above it, Ray kills workers


@dataclass(frozen=True)
class Misfit:
    """One line that says what does not fit, and one that says what would."""

    what: str
    cure: str

    def __str__(self) -> str:
        return f"{self.what}; {self.cure}"


def misfits(
    job: Job, parameters: Parameters, shapes: Shapes, machines: Machines, mode: Mode
) -> list[Misfit]:
    """All that does not fit, as far as the machines are known."""
    sizes, fewest = job.cluster, job.cluster.fewest_workers
    room = machines.most_workers(sizes)
    needs = f"{sizes.cpus_per_worker} CPU" + (
        f" and {sizes.gpus_per_worker:g} GPU" if sizes.gpus_per_worker else ""
    )
    if room is not None and room < fewest:
        what = f"cluster.workers = {fewest} with {needs} each: {machines.where} has room for {room}"
        return [Misfit(what, f"the most that fit are {room}" if room else "none fits a machine")]
    placed = machines.place(sizes, fewest)
    if placed is None:
        return []
    machine, _, each = placed
    found = []
    for limit in limits(job, machine, each):

        def fits(memory: Memory, limit: Limit = limit) -> bool:
            return limit.used(memory) <= limit.bytes

        memory = worker_memory(job, parameters, shapes.largest, mode)
        if not fits(memory):
            what = (
                f"a worker needs about {limit.used(memory) / 1e9:,.1f} GB of {limit.name}, and has "
                f"{max(limit.bytes, 0) / 1e9:,.1f}"
            )
            found.append(Misfit(what, largest(job, parameters, shapes.largest, mode, fits)))
    return found


@dataclass(frozen=True)
class Limit:
    """The memory of one kind that a worker may use, in bytes."""

    name: str
    bytes: float
    used: Callable[[Memory], float]


def limits(job: Job, machine: Machine, workers: int) -> list[Limit]:
    """The limits of each of so many workers on one machine, as far as they are known."""
    found = []
    if machine.memory is not None:
        spares = SPARE * workers * job.cluster.spares
        each = (USABLE * machine.memory - OF_OTHERS - spares) / workers
        found.append(Limit(f"{machine.name}'s memory", each, lambda memory: memory.on_host))
    if job.cluster.gpus_per_worker and machine.accelerator is not None:
        of_gpu = machine.accelerator.memory * min(job.cluster.gpus_per_worker, 1.0)
        found.append(Limit(f"its {machine.accelerator.name}", of_gpu, lambda memory: memory.total))
    return found


def largest(
    job: Job,
    parameters: Parameters,
    shape: Shape,
    mode: Mode,
    fits: Callable[[Memory], bool],
) -> str:
    """The largest micro-batch that fits; if none does, the largest size of the model."""

    def with_rows(rows: int) -> bool:
        return fits(worker_memory(_at_once(job, rows), parameters, replace(shape, rows=rows), mode))

    fewest, too_many = 0, shape.rows
    while too_many - fewest > 1:
        middle = (fewest + too_many) // 2
        fewest, too_many = (middle, too_many) if with_rows(middle) else (fewest, middle)
    if fewest:
        return f"train.micro_batch_size={fewest} is the largest that fits"
    for size in reversed(SIZES):
        smaller = _sized(job, size)
        if smaller.model == job.model:
            continue
        with torch.device("meta"):
            model = smaller.build_task().build_model(parameters.vocab_size, parameters.num_outputs)
        counted = count_model(model, parameters.vocab_size, parameters.num_outputs)
        one_row = worker_memory(_at_once(smaller, 1), counted, replace(shape, rows=1), mode)
        if counted.total < parameters.total and fits(one_row):
            return (
                f"not one row fits; model.size={size} with train.micro_batch_size=1 is the largest "
                "that does"
            )
    return "not one row fits, of no size of the model"


def _at_once(job: Job, rows: int) -> Job:
    """The job with micro-batches of so many rows."""
    train = job.train.model_copy(update={"micro_batch_size": rows})
    return job.model_copy(update={"train": train})


def _sized(job: Job, size: str) -> Job:
    if job.model.init_from is not None:
        return job
    model = job.model.model_copy(
        update={**SIZES[size], "d_ff": None, "head_dim": None, "num_kv_heads": None}
    )
    return job.model_copy(update={"model": model})

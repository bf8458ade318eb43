"""The machines that a plan counts on: this one, or those of a cluster's file."""

import math
import os
from dataclasses import dataclass

import psutil

from orchestrator.job.job import Job
from orchestrator.job.sections import ClusterConfig


@dataclass(frozen=True)
class Accelerator:
    """A kind of GPU: dense bf16 operations a second by its data sheet, and its memory in bytes."""

    name: str
    flops: float
    memory: float


GB, TERA = 1e9, 1e12
GIB = 2.0**30
T4 = Accelerator("T4", 65 * TERA, 16 * GB)  # fp16: it has no bf16
A10G = Accelerator("A10G", 70 * TERA, 24 * GB)
L4 = Accelerator("L4", 121 * TERA, 24 * GB)
L40S = Accelerator("L40S", 362 * TERA, 48 * GB)
V100 = Accelerator("V100", 125 * TERA, 16 * GB)  # fp16
A100 = Accelerator("A100", 312 * TERA, 40 * GB)
A100_80 = Accelerator("A100 80 GB", 312 * TERA, 80 * GB)
H100 = Accelerator("H100", 989 * TERA, 80 * GB)
H200 = Accelerator("H200", 989 * TERA, 141 * GB)


@dataclass(frozen=True)
class Machine:
    """A kind of machine. None is unknown."""

    name: str
    most: int  # how many of it there can be
    cpus: float | None = None
    gpus: float = 0.0
    memory: float | None = None  # bytes
    accelerator: Accelerator | None = None
    price: float | None = None  # dollars an hour

    def room(self, sizes: ClusterConfig) -> int | None:
        """How many of a job's workers it has CPUs and GPUs for."""
        if self.cpus is None:
            return None
        rooms = [self.cpus / sizes.cpus_per_worker]
        if sizes.gpus_per_worker:
            rooms.append(self.gpus / sizes.gpus_per_worker)
        return math.floor(min(rooms) + 1e-9)


@dataclass(frozen=True)
class Machines:
    """All kinds of machines that workers may run on, those first that workers are placed on first,
    and the head, which has none of its own if it is one of them."""

    where: str  # for messages: `this machine`, or the file
    kinds: tuple[Machine, ...]
    head: Machine | None = None
    notes: tuple[str, ...] = ()

    def place(self, sizes: ClusterConfig, workers: int) -> tuple[Machine, int, int] | None:
        """The kind of machine for so many workers, how many machines, and workers on each.

        The first kind with room for one worker is taken; None if there is none, or its CPUs are
        unknown.
        """
        for kind in self.kinds:
            if room := kind.room(sizes):
                each = min(room, workers)
                return kind, -(-workers // each), each
        return None

    def most_workers(self, sizes: ClusterConfig) -> int | None:
        """How many workers there can be at once; None if unknown."""
        rooms = [kind.room(sizes) for kind in self.kinds]
        known = [room * kind.most for room, kind in zip(rooms, self.kinds, strict=True) if room]
        return None if None in rooms else sum(known)

    @property
    def cpus(self) -> float | None:
        """Of all machines; None if unknown."""
        every = [kind.cpus for kind in self.kinds]
        return (
            sum(cpus * kind.most for cpus, kind in zip(every, self.kinds, strict=True) if cpus)
            if None not in every
            else None
        )


def this_machine(job: Job) -> Machines:
    """The machine that this process runs on, whose GPUs Ray would count."""
    gpus = job.cluster.gpus_per_worker * job.cluster.most_workers if job else 0.0
    machine = Machine(
        "this machine",
        most=1,
        cpus=float(os.cpu_count() or 1),
        gpus=_gpus() if gpus else 0.0,
        memory=float(psutil.virtual_memory().total),
        accelerator=_accelerator() if gpus else None,
    )
    return Machines("this machine", (machine,))


def _gpus() -> float:
    import torch

    return float(torch.cuda.device_count())


def _accelerator() -> Accelerator | None:
    import torch

    if not torch.cuda.is_available():
        return None
    properties = torch.cuda.get_device_properties(0)
    known = (H200, H100, A100_80, A100, L40S, L4, A10G, V100, T4)
    alike = [each for each in known if each.name.split()[0] in properties.name]
    flops = alike[0].flops if alike else None
    if flops is None:
        return None
    return Accelerator(properties.name, flops, float(properties.total_memory))

"""Whether a training computes in fp32 or in bf16: one of its own steps is timed in both.

A processor's list of features says little: some that list bf16 multiply it four times as fast as
fp32 (Intel with AMX), others at half the speed (Intel without AMX).
"""

import math
import time
from dataclasses import dataclass
from typing import Any

import torch

from orchestrator.infer.precision import autocast
from orchestrator.learn.world import World
from orchestrator.storage.artifact import Precision
from orchestrator.tasks.task import Batch, Task

# Of a timed step. A longer step is timed with fewer rows, but not with so few that converting the
# weights to bf16 takes most of it: with one short row of MiniLM the slower one won.
STEP_SECONDS = 0.2
SECONDS = 0.5  # of all timed steps, at least
FEWEST_ROUNDS = 3  # of one step in each precision; the fastest counts
TIE = 0.03  # by so much bf16 has to be faster, since it has fewer digits


@dataclass(frozen=True)
class Choice:
    """The chosen precision, and why."""

    precision: Precision
    reason: str = ""  # empty where the job names the precision
    seconds: dict[str, float] | None = None  # of a step, where that was timed

    @property
    def notices(self) -> list[str]:
        """For the user, where the job left the precision open."""
        return [f"precision: {self.precision}: {self.reason}"] if self.reason else []

    @property
    def event(self) -> dict[str, Any]:
        """For the run's `events.jsonl`."""
        seconds = {f"{name}_seconds": value for name, value in (self.seconds or {}).items()}
        return {"precision": self.precision, "reason": self.reason, **seconds}


def choose(task: Task[Any], model: torch.nn.Module, batch: "Batch | None", world: World) -> Choice:
    """The faster precision for a step of this model. All workers time it and agree.

    Weights, gradients and random numbers do not change.

    Args:
        batch: one of this worker's micro-batches; None for a worker without samples.
    """
    if not all(able for (able,) in world.exchange(int(_can_bf16(world.device)))):
        on_gpu = world.device.type == "cuda"
        return Choice("fp32", f"no {'GPU with bf16' if on_gpu else 'avx512_bf16 in the processor'}")
    devices = [world.device] if world.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        most = _rows(task, model, batch, world.device) if batch is not None else 2**31
        rows = min(count for (count,) in world.exchange(most, patient=True))
        timed = {"fp32": 0.0, "bf16": 0.0}
        if batch is not None:
            timed = _timed(task, model, _cut(batch, rows), world.device)
    by_worker = world.exchange(*(int(1e9 * seconds) for seconds in timed.values()), patient=True)
    workers = sum(any(each) for each in by_worker)  # those with samples
    fp32, bf16 = (sum(each) / workers / 1e9 for each in zip(*by_worker, strict=True))
    precision: Precision = "bf16" if bf16 < (1 - TIE) * fp32 else "fp32"
    seconds = {"fp32": fp32, "bf16": bf16}
    other = "fp32" if precision == "bf16" else "bf16"
    reason = (
        f"a step of {rows} rows takes {seconds[precision]:.3g} s, in {other} {seconds[other]:.3g} s"
    )
    return Choice(precision, reason, seconds)


def _can_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and bool(torch.cpu._is_avx512_bf16_supported())


def _rows(task: Task[Any], model: torch.nn.Module, batch: Batch, device: torch.device) -> int:
    """How many rows of a batch a step of STEP_SECONDS can have, at least one."""
    most, rows = _length(batch), 1
    _step(task, model, _cut(batch, 1), device, "fp32")  # the first step takes longer than others
    while rows < most and _step(task, model, _cut(batch, rows), device, "fp32") < STEP_SECONDS / 2:
        rows = min(2 * rows, most)
    return rows


def _timed(
    task: Task[Any], model: torch.nn.Module, batch: Batch, device: torch.device
) -> dict[str, float]:
    """The seconds of a step in each precision: the minimum, since disturbances only add to it."""
    fastest = dict.fromkeys(("fp32", "bf16"), math.inf)
    for precision in fastest:
        _step(task, model, batch, device, precision)  # some kernels are compiled for each shape
    started, rounds = time.perf_counter(), 0
    while rounds < FEWEST_ROUNDS or time.perf_counter() - started < SECONDS:
        for precision, seconds in fastest.items():
            fastest[precision] = min(seconds, _step(task, model, batch, device, precision))
        rounds += 1
    return fastest


def _step(
    task: Task[Any], model: torch.nn.Module, batch: Batch, device: torch.device, precision: str
) -> float:
    """The seconds of a forward and a backward pass. Its gradients are discarded."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    _wait(device)
    started = time.perf_counter()
    with autocast(device, precision):
        loss, _ = task.loss(model, batch)
    torch.autograd.grad(loss, parameters, allow_unused=True)
    _wait(device)
    return time.perf_counter() - started


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _length(batch: Batch) -> int:
    return len(next(iter(batch.values())))


def _cut(batch: Batch, rows: int) -> Batch:
    """So many rows of a batch, spread evenly, since they may be sorted by length."""
    count = _length(batch)
    if rows >= count:
        return batch
    chosen = ((torch.arange(rows) + 0.5) * count / rows).long()
    return {name: tensor[chosen.to(tensor.device)] for name, tensor in batch.items()}

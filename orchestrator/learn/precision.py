"""Chooses whether a training computes in fp32 or bf16, by timing its own step in both, once.

Whether a processor lists bf16 is no guide: some multiply it four times as fast as fp32 (Intel's
AMX), others of the same family, without AMX, at half the speed.
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

# The length of a timed step. Longer steps are cut to fewer rows, but not to so few that converting
# the weights takes most of the time: with one short row of MiniLM the slower precision won.
STEP_SECONDS = 0.2
SECONDS = 0.5  # for all timed steps
FEWEST_ROUNDS = 3  # a round is one step in each precision; the quickest step counts
TIE = 0.03  # bf16 must be faster by this share, since it loses digits


@dataclass(frozen=True)
class Choice:
    """The chosen precision, and why."""

    precision: Precision
    reason: str = ""  # empty: the job sets the precision
    seconds: dict[str, float] | None = None  # of a step in each precision, if steps were timed

    @property
    def notices(self) -> list[str]:
        """A line for the user, if the job leaves the precision open."""
        return [f"precision: {self.precision}: {self.reason}"] if self.reason else []

    @property
    def event(self) -> dict[str, Any]:
        """The fields of the run's event."""
        seconds = {f"{name}_seconds": value for name, value in (self.seconds or {}).items()}
        return {"precision": self.precision, **(seconds or {"reason": self.reason})}


def choose(task: Task[Any], model: torch.nn.Module, batch: "Batch | None", world: World) -> Choice:
    """The faster precision for a step of this model. All workers time it and choose the same.

    Weights, gradients and random numbers do not change.

    Args:
        batch: one of this worker's micro-batches; None if it has none.
    """
    if not all(able for (able,) in world.exchange(int(_can_bf16(world.device)))):
        on_gpu = world.device.type == "cuda"
        return Choice("fp32", f"no {'GPU with bf16' if on_gpu else 'avx512_bf16 in the processor'}")
    devices = [world.device] if world.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        own_rows = _rows(task, model, batch, world.device) if batch is not None else 2**31
        rows = min(count for (count,) in world.exchange(own_rows, patient=True))
        own_seconds = {"fp32": 0.0, "bf16": 0.0}
        if batch is not None:
            own_seconds = _timed(task, model, _cut(batch, rows), world.device)
    nanoseconds = [int(1e9 * seconds) for seconds in own_seconds.values()]
    by_worker = world.exchange(*nanoseconds, patient=True)
    timing = sum(any(times) for times in by_worker)  # workers with a batch
    fp32, bf16 = (sum(times) / timing / 1e9 for times in zip(*by_worker, strict=True))
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
    """The number of rows with which a step takes about STEP_SECONDS; at least one."""
    most, rows = _length(batch), 1
    _step(task, model, _cut(batch, 1), device, "fp32")  # the first step also initialises
    while rows < most and _step(task, model, _cut(batch, rows), device, "fp32") < STEP_SECONDS / 2:
        rows = min(2 * rows, most)
    return rows


def _timed(
    task: Task[Any], model: torch.nn.Module, batch: Batch, device: torch.device
) -> dict[str, float]:
    """The seconds of the quickest step in each precision; other load only slows steps down."""
    quickest = dict.fromkeys(("fp32", "bf16"), math.inf)
    for precision in quickest:
        _step(task, model, batch, device, precision)  # kernels are built for each shape
    started, rounds = time.perf_counter(), 0
    while rounds < FEWEST_ROUNDS or time.perf_counter() - started < SECONDS:
        for precision, best in quickest.items():
            quickest[precision] = min(best, _step(task, model, batch, device, precision))
        rounds += 1
    return quickest


def _step(
    task: Task[Any], model: torch.nn.Module, batch: Batch, device: torch.device, precision: str
) -> float:
    """The seconds of a forward and a backward pass, whose gradients are discarded."""
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
    """The batch with `rows` of its rows, spread evenly, since they are sorted by length."""
    count = _length(batch)
    if rows >= count:
        return batch
    chosen = ((torch.arange(rows) + 0.5) * count / rows).long()
    return {name: tensor[chosen.to(tensor.device)] for name, tensor in batch.items()}

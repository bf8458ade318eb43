"""The training loop: pure torch plus a reporter. Workers of `train` run it, and trials of `tune`.

The samples of step k are a function of the seed and k alone, so a resumed run sees what an
undisturbed one would have seen, and so does a run with another number of workers.
"""

import contextlib
import math
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from orchestrator.artifact import PreparedData
from orchestrator.checkpoint import Checkpoints
from orchestrator.errors import DivergedError
from orchestrator.job import TrainConfig
from orchestrator.optimizer import build_optimizers, learning_rate
from orchestrator.shards import Arrays, Rows, SampleOrder, ShardReader
from orchestrator.task import Batch, Processor, Task

CALIBRATION_STEPS = 16  # timed to turn minutes into steps, the first ones left out
VALIDATIONS = 10  # of a training, where `eval_every` is not given
REPORT_SECONDS = 0.5
CHECK_STEPS = 10  # between looks at whether the loss is still a number


@dataclass(frozen=True)
class World:
    """This process among the workers of a training."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def share(self, rows: Rows) -> Rows:
        """This worker's part of a global batch; the parts differ by at most one row."""
        return np.array_split(rows, self.size)[self.rank]

    def sum(self, *values: torch.Tensor) -> torch.Tensor:
        """The values as one tensor, each summed over all workers."""
        stacked = torch.stack(values)
        if self.size > 1:
            dist.all_reduce(stacked)
        return stacked

    def agree(self, value: int) -> int:
        """Rank 0's value."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def gather(self, arrays: Arrays) -> Arrays:
        """Every worker's rows, joined."""
        if self.size == 1:
            return arrays
        boxes: list[Any] = [None] * self.size
        dist.all_gather_object(boxes, arrays)
        return join(boxes)


class Reporter(Protocol):
    """Who hears how a training goes; called on rank 0."""

    def progress(self, step: int, total_steps: int | None, values: dict[str, float]) -> None:
        """Twice a second: loss, lr, and throughput in what the loss is summed over: tokens, say."""

    def validated(self, step: int, total_steps: int, metrics: dict[str, float]) -> None:
        """After each validation, and after its checkpoint is committed."""


class Data:
    """The samples of a training: the order of the training split, and the rows that validate."""

    def __init__(self, prepared: PreparedData, config: TrainConfig, world: World) -> None:
        self.world = world
        self.train = ShardReader(prepared, "train")
        self.validation = ShardReader(prepared, "validation")
        self.order = SampleOrder(self.train.num_rows, config.seed)
        count = min(config.eval_rows, self.validation.num_rows)
        # Spread evenly, so that they come from every shard.
        self.validation_rows = np.linspace(0, self.validation.num_rows, count, False).astype(
            np.int64
        )

    def step(self, step: int, config: TrainConfig) -> Iterator[Batch]:
        """This worker's micro-batches of a step."""
        size = config.global_batch_size
        rows = self.world.share(self.order.rows(step * size, (step + 1) * size))
        return self._batches(self.train, rows, config.micro_batch_size)

    def validate(self, config: TrainConfig) -> Iterator[Batch]:
        """This worker's batches of the validation rows."""
        rows = self.world.share(self.validation_rows)
        return self._batches(self.validation, rows, config.micro_batch_size)

    def _batches(self, reader: ShardReader, rows: Rows, size: int) -> Iterator[Batch]:
        for i in range(0, len(rows), size):
            yield to_device(reader.read(rows[i : i + size]), self.world.device)


def fit(
    task: Task[Any],
    prepared: PreparedData,
    config: TrainConfig,
    world: World,
    reporter: Reporter,
    checkpoints: Checkpoints | None = None,
) -> dict[str, float]:
    """Train from the newest checkpoint, or from the start, to the last step.

    Returns the metrics of the last validation.

    Raises:
        DivergedError: where the loss is no longer a number.
    """
    torch.manual_seed(config.seed)
    processor = load_processor(task, prepared)
    model = task.build_model(processor.vocab_size).to(world.device)
    optimizers = build_optimizers(model, config)
    data = Data(prepared, config, world)
    pace = Pace(config, world)
    step, metrics, history = 0, dict[str, float](), list[dict[str, float]]()
    if checkpoints is not None and (saved := checkpoints.restore(model, optimizers)) is not None:
        step, pace.total_steps = saved.step, saved.total_steps
        metrics, history = saved.metrics, saved.history
    parallel = distributed(model) if world.size > 1 else model
    autocast = torch.autocast(world.device.type, torch.bfloat16, enabled=uses_bf16(config, world))

    while step != pace.total_steps:
        torch.manual_seed(hash((config.seed, step, world.rank)))  # dropout too resumes by position
        lr = learning_rate(config, step, pace.total_steps)
        loss, count = torch.zeros((), device=world.device), torch.zeros((), device=world.device)
        batches = list(data.step(step, config))
        for i, batch in enumerate(batches):
            with synchronised(parallel, last=i + 1 == len(batches)):
                with autocast:
                    batch_loss, batch_count = task.loss(parallel, batch)
                batch_loss.backward()
            loss, count = loss + batch_loss.detach(), count + batch_count
        loss, count = world.sum(loss, count)
        # DDP averaged the workers' gradients of summed losses: make them gradients of the mean.
        update(model, optimizers, lr, world.size / count, config.grad_clip)
        step += 1
        pace.step_done(loss, count)
        pace.check(step, loss)
        if world.rank == 0 and (values := pace.progress(step)) is not None:
            values["lr"] = lr
            reporter.progress(step, pace.total_steps, values)
            record(history, step, pace.total_steps, values)
        if pace.validation_due(step):
            with autocast:
                metrics = validate(task, model, processor, data, config)
            pace.validated()
            total_steps = pace.fix_total_steps(step)
            if world.rank == 0:
                if checkpoints is not None:
                    history.append({"step": step, "validation": metrics[task.metric.name]})
                    checkpoints.save(step, total_steps, model, optimizers, metrics, history)
                reporter.validated(step, total_steps, metrics)
    return metrics


def update(
    model: torch.nn.Module,
    optimizers: list[torch.optim.Optimizer],
    lr: float,
    gradient_scale: torch.Tensor,
    grad_clip: float,
) -> None:
    """One optimizer step on scaled and clipped gradients, which are then dropped."""
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    torch._foreach_mul_(gradients, gradient_scale)
    torch.nn.utils.clip_grad_norm_(model.parameters(), grad_clip)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


@torch.no_grad()
def validate(
    task: Task[Any], model: torch.nn.Module, processor: Processor, data: Data, config: TrainConfig
) -> dict[str, float]:
    """The task's metrics of the validation rows, the same on every worker."""
    model.eval()
    parts = [task.predict(model, batch, processor) for batch in data.validate(config)]
    model.train()
    metrics = task.score(data.world.gather(join(parts)))
    if not math.isfinite(metrics[task.metric.name]):
        raise DivergedError(
            f"validation {task.metric.name} is {metrics[task.metric.name]}: the training diverged; "
            f"lower train.lr = {config.lr} or raise train.warmup_steps = {config.warmup_steps}"
        )
    return metrics


def record(
    history: list[dict[str, float]], step: int, total_steps: int | None, values: dict[str, float]
) -> None:
    """Keep some two hundred points of the learning curve, however long the training."""
    last = max((point["step"] for point in history if "loss" in point), default=0)
    if step - last >= (total_steps or 0) / 200:
        history.append({"step": step, **values})


class Pace:
    """How many steps a training has, when it reports and when it validates."""

    def __init__(self, config: TrainConfig, world: World) -> None:
        self.config = config
        self.world = world
        self.total_steps = config.steps
        self.started = self.step_ended = self.reported = time.monotonic()
        self.step_seconds: list[float] = []
        self.validation_seconds = 0.0
        self.loss: torch.Tensor | float = 0.0  # since the last report, still on the device
        self.count: torch.Tensor | float = 0.0

    def step_done(self, loss: torch.Tensor, count: torch.Tensor) -> None:
        now = time.monotonic()
        if self.total_steps is None:
            self.step_seconds.append(now - self.step_ended)
        self.step_ended = now
        self.loss, self.count = self.loss + loss, self.count + count

    def check(self, step: int, loss: torch.Tensor) -> None:
        """Raise where the loss is no number; all workers look at the same steps, so all do."""
        if (step % CHECK_STEPS == 0 or step == self.total_steps) and not bool(loss.isfinite()):
            raise DivergedError(
                f"the loss is {float(loss)} at step {step}: the training diverged; "
                f"lower train.lr = {self.config.lr}"
            )

    def progress(self, step: int) -> dict[str, float] | None:
        """Mean loss and throughput since the last report, where it is time for one."""
        elapsed = self.step_ended - self.reported
        if elapsed < REPORT_SECONDS and step != self.total_steps:
            return None
        loss, count = float(self.loss), float(self.count)
        self.loss, self.count, self.reported = 0.0, 0.0, self.step_ended
        return {"loss": loss / count, "throughput": count / max(elapsed, 1e-9)}

    def validation_due(self, step: int) -> bool:
        if self.total_steps is None:
            return step == CALIBRATION_STEPS
        return step == self.total_steps or step % self._validation_interval(self.total_steps) == 0

    def validated(self) -> None:
        now = time.monotonic()
        self.validation_seconds = now - self.step_ended
        self.step_ended = now
        self.reported += self.validation_seconds  # so that speed is that of the steps alone

    def fix_total_steps(self, step: int) -> int:
        """The number of steps; with a time budget, once, from the steps timed so far.

        It is saved with the first checkpoint, so that a resumed run ends at the same step.
        """
        if self.total_steps is None:
            budget = 60.0 * self.config.budget_minutes - (self.step_ended - self.started)
            budget -= VALIDATIONS * self.validation_seconds
            # The quicker ones: much else is still starting up around the first steps.
            typical = statistics.quantiles(self.step_seconds[3:], n=4)[0]
            self.total_steps = self.world.agree(step + max(int(budget / typical), 1))
        return self.total_steps

    def _validation_interval(self, total_steps: int) -> int:
        return self.config.eval_every or -(-total_steps // VALIDATIONS)


def load_processor(task: Task[Any], prepared: PreparedData) -> Processor:
    """The processor that was fitted to the prepared data."""
    found: Processor = task.load_processor(prepared.folder.read(prepared.processor))
    return found


def uses_bf16(config: TrainConfig, world: World) -> bool:
    """Whether to compute in bf16: as the job says, else where it is the faster one."""
    if config.precision != "auto":
        return config.precision == "bf16"
    if world.device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return world.device.type == "cpu" and bool(torch.cpu._is_avx512_bf16_supported())


def distributed(model: torch.nn.Module) -> DistributedDataParallel:
    """The model with gradients averaged over workers; its buffers are constants on all of them."""
    return DistributedDataParallel(model, broadcast_buffers=False, gradient_as_bucket_view=True)


def synchronised(model: torch.nn.Module, last: bool) -> contextlib.AbstractContextManager[None]:
    """Let DDP exchange gradients only in the last backward pass of a step."""
    if last or not isinstance(model, DistributedDataParallel):
        return contextlib.nullcontext()
    context: contextlib.AbstractContextManager[None] = model.no_sync()
    return context


def to_device(arrays: Arrays, device: torch.device) -> Batch:
    return {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}


def join(parts: list[Arrays]) -> Arrays:
    """Rows of several batches in one; batches without any are left out."""
    filled = [part for part in parts if part]
    names = filled[0] if filled else {}
    return {name: np.concatenate([part[name] for part in filled]) for name in names}

"""The training loop, in pure torch. Workers of `train` run it, and trials of `tune`.

The samples of step k are a function of the seed and k alone. So a resumed run sees the samples of
an undisturbed one, and so does a run with another number of workers.
"""

import math
from typing import Any, Protocol

import torch

from orchestrator.data.arrays import join
from orchestrator.errors import DivergedError
from orchestrator.infer.precision import autocast
from orchestrator.infer.trained_model import TrainedModel, load_processor
from orchestrator.job.sections import TrainConfig
from orchestrator.learn import precision
from orchestrator.learn.agreement import Agreement, Signals
from orchestrator.learn.batches import Batches
from orchestrator.learn.directive import Directive
from orchestrator.learn.gradients import Gradients
from orchestrator.learn.optimizer import build_optimizers, learning_rate
from orchestrator.learn.pace import Pace
from orchestrator.learn.samples import Sampler
from orchestrator.learn.skipped_steps import Guard
from orchestrator.learn.snapshot import Saved, Snapshot
from orchestrator.learn.state import State
from orchestrator.learn.step_clock import StepClock
from orchestrator.learn.world import World
from orchestrator.model.hf import Outputs
from orchestrator.model.transformer import Transformer
from orchestrator.pretrained import model as pretrained
from orchestrator.storage.artifact import PreparedData
from orchestrator.storage.folder import Folder
from orchestrator.tasks.task import Task


class Reporter(Signals, Protocol):
    """Receives a training's progress."""

    wants_samples: bool  # whether to report what the model makes of a validation row

    def stepped(self, step: int, seconds: float) -> None:
        """On every worker, after each step. `seconds` exclude waiting for other workers."""

    def progress(self, step: int, total_steps: int | None, values: dict[str, float]) -> None:
        """On the first worker, twice a second: loss, lr and throughput (loss terms a second)."""

    def validated(self, step: int, total_steps: int, metrics: dict[str, float]) -> None:
        """On the first worker, after each validation."""


class Keeper(Protocol):
    """Where a training's checkpoints go: `checkpoints.Checkpoints`, or a filter before them."""

    def save(self, snapshot: Snapshot) -> None:
        """Keep a snapshot, in the background."""

    def finish(self) -> None:
        """Wait until every saved snapshot is kept."""

    def restore(self, step: int | None = None) -> Saved | None:
        """The newest checkpoint, or the one of `step`; None where there is none."""


def fit(
    task: Task[Any],
    prepared: PreparedData,
    config: TrainConfig,
    world: World,
    reporter: Reporter,
    checkpoints: Keeper | None = None,
) -> dict[str, float] | None:
    """Train from the newest checkpoint, or from the start, to the last step.

    Returns:
        The metrics of the last validation, or None where the training was asked to stop before it.

    Raises:
        DivergedError: where the loss is NaN or infinite, and going back does not help.
        StageError: where no checkpoint can be saved or read.
    """
    torch.manual_seed(config.seed)
    if config.deterministic != torch.are_deterministic_algorithms_enabled():
        torch.use_deterministic_algorithms(config.deterministic)  # seconds: imports the compiler
    processor = load_processor(task, prepared)
    model = task.build_model(processor.vocab_size, processor.num_outputs)
    model.to(world.device)
    optimizers = build_optimizers(model, config, world)
    gradients = Gradients(model, world, config.deterministic)
    guard = Guard(world.device, config.spike_sigmas)
    batches = Batches(prepared, config, world)
    state = State(model, optimizers, guard, config.precision)
    pace = Pace(config, world, batches.train.num_rows)
    if not resume(state, pace, checkpoints, world):
        if task.model.init_from is not None:
            state.notices += take_weights(model, task, Outputs.of(task, processor), world, reporter)
        begin(state, pace, task, batches, reporter)
        if checkpoints is not None and world.rank == 0:
            # If storage refuses checkpoints, the user learns it now and not in an hour.
            checkpoints.save(state.snapshot(pace.total_steps, validated=False))
    agreement = Agreement(state, batches, pace, world, reporter)
    # With its loss: else the logits, most of the memory of a large vocabulary, are copied to fp32.
    loss_of: Any = torch.compile(task.loss) if config.compile is True else task.loss
    assert state.precision != "auto"
    trained = TrainedModel(task, processor, model, world.device, state.precision)
    in_precision = autocast(world.device, state.precision)
    sampler = Sampler(trained, batches)
    clock = StepClock(world.device)

    while not pace.ended(state.step):
        clock.start()
        lr = learning_rate(config, state.step, pace.total_steps)
        for micro in batches.step(state.step):
            torch.manual_seed(micro.seed)  # dropout, too, is a function of the step
            with in_precision:
                loss, count = loss_of(model, micro.batch)
            gradients.add(loss, count, micro.last)
        seconds = clock.stop()
        loss, count = gradients.sum()
        taken = guard.judge(state.step, loss / count, gradients.clip(count, config.grad_clip))
        state.before_update()
        with in_precision:  # for the matrix products of Muon
            for optimizer in optimizers:
                optimizer.step(lr, taken)
        gradients.zero()
        state.samples = batches.chain(state.samples, state.step)
        state.step += 1

        pace.step_done(loss, count, taken)
        reporter.stepped(state.step, seconds)
        if world.rank == 0 and (values := pace.progress(state.step)) is not None:
            values["lr"] = lr
            reporter.progress(state.step, pace.total_steps, values)
            state.record(pace.total_steps, values)
        directive = agreement.reach() if pace.agreement_due(state.step) else Directive.GO_ON
        if directive is Directive.GO_BACK:
            if checkpoints is None:
                raise agreement.error
            resume(state, pace, checkpoints, world)
            continue
        saving = directive is Directive.STOP or pace.checkpoint_due(state.step)
        if validating := pace.validation_due(state.step):
            state.metrics = validate(trained, batches, config)
            if world.rank == 0 and reporter.wants_samples:
                sampler.report(state.step, pace.ended(state.step), reporter)
            pace.validated()
            total_steps = pace.fix_total_steps(state.step)
            if world.rank == 0:
                point = {"step": state.step, "validation": state.metrics[task.metric.name]}
                state.history.append(point)
                reporter.validated(state.step, total_steps, state.metrics)
        if saving and checkpoints is not None:
            if world.rank == 0:
                checkpoints.save(state.snapshot(pace.total_steps, validating))
            world.exchange(0, patient=True)  # the first worker waits here for slow storage
        if directive is Directive.STOP:
            break
    if checkpoints is not None and world.rank == 0:
        checkpoints.finish()
    return state.metrics if pace.ended(state.step) else None


def begin(state: State, pace: Pace, task: Task[Any], batches: Batches, reporter: Reporter) -> None:
    """Choose the precision, where the job leaves it open. The training keeps it from here on."""
    if state.precision != "auto":
        return
    world = batches.world
    choice = precision.choose(task, state.model, batches.first(), world)
    state.precision = choice.precision
    state.notices += choice.notices
    if world.rank == 0:
        reporter.event("precision", **choice.event)
    pace.resume(0, None)  # the first step begins now


def take_weights(
    model: Transformer, task: Task[Any], outputs: Outputs, world: World, reporter: Reporter
) -> list[str]:
    """Begin with the weights of `model.init_from`. A training that has a checkpoint needs none.

    Returns:
        On the first worker, what the user should know of them, a line each.

    Raises:
        UserError: if they cannot be read, or do not fit the model.
    """
    assert task.model.init_from is not None
    folder = Folder(task.model.init_from)
    new = pretrained.load(model, folder, outputs)
    if world.rank:
        return []
    reporter.event("began with", source=folder.uri, new=new)
    return pretrained.notices(model, folder, outputs)


def resume(state: State, pace: Pace, checkpoints: Keeper | None, world: World) -> bool:
    """Restore the newest checkpoint on all workers; False where there is none."""
    if checkpoints is None:
        return False
    saved = None
    if world.rank == 0:
        checkpoints.finish()  # the newest one may still be being written
        saved = checkpoints.restore()
    (step, *_), *_ = world.exchange(-1 if saved is None else saved.checkpoint.step, patient=True)
    if step < 0:
        return False
    if saved is None:
        saved = checkpoints.restore(step)
    assert saved is not None
    state.restore(saved)
    pace.resume(step, saved.checkpoint.total_steps)
    return True


def validate(model: TrainedModel, batches: Batches, config: TrainConfig) -> dict[str, float]:
    """The task's metrics of the validation rows, the same on every worker.

    Raises:
        DivergedError: if the task's own metric is not a finite number.
    """
    model.model.eval()
    with autocast(model.device, model.precision):  # converts the weights once for all batches
        parts = [model.predict(arrays, generate=False) for arrays in batches.validate()]
    model.model.train()
    metric = model.task.metric.name
    metrics = model.task.score(batches.world.gather(join(parts)))
    if not math.isfinite(metrics[metric]):
        raise DivergedError(
            f"validation {metric} is {metrics[metric]}: the training diverged; "
            f"lower train.lr = {config.lr} or raise train.warmup_steps = {config.warmup_steps}"
        )
    return metrics

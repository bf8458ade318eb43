"""How many steps a training has, and when it reports, validates and saves."""

import math
import statistics
import time
from typing import Any

import torch

from orchestrator.job.sections import TrainConfig
from orchestrator.learn.world import World

# Steps are timed to turn a budget of minutes into a number of steps: CALIBRATION_STEPS of them or,
# where these are short, for CALIBRATION_SECONDS or CALIBRATION_SHARE of the budget.
CALIBRATION_STEPS, CALIBRATION_SECONDS, CALIBRATION_SHARE = 16, 30.0, 0.1
CALIBRATION_PARTS = 8
VALIDATIONS = 10  # of a training, where `eval_every` is not given
REPORT_SECONDS = 0.5
AGREEMENT_SECONDS = 1.0


class Pace:
    """The clock of a training: reports follow time, validations and checkpoints follow steps."""

    def __init__(self, config: TrainConfig, world: World, rows: int) -> None:
        """With `rows` samples in the training split."""
        self.config = config
        self.world = world
        self._device: Any = torch.get_device_module(world.device)
        self.known_steps = config.steps  # None: the job has a time budget
        self.most_steps = math.inf  # of a time budget
        if config.epochs is not None:
            self.most_steps = max(math.ceil(config.epochs * rows / config.global_batch_size), 1)
            if self.most_steps <= CALIBRATION_STEPS:  # too few to be timed
                self.known_steps = self.most_steps
        self.total_steps = self.known_steps
        self.started = self.step_ended = self.reported = time.monotonic()
        self.resumed = 0
        self.next_agreement = 0
        self.last_agreement = 0, self.started
        self.calibration = CALIBRATION_STEPS
        self.step_seconds: list[float] = []
        self.validation_seconds = 0.0
        self.loss: torch.Tensor | float = 0.0  # since the last report, still on the device
        self.count: torch.Tensor | float = 0.0

    def resume(self, step: int, total_steps: int | None) -> None:
        """Go on from a checkpoint, with its number of steps if a time budget has become one."""
        self.total_steps = total_steps if total_steps is not None else self.known_steps
        self.resumed, self.calibration, self.step_seconds = step, CALIBRATION_STEPS, []
        self.next_agreement = step
        self.step_ended = self.reported = time.monotonic()
        self.last_agreement = step, self.step_ended
        self.loss, self.count = 0.0, 0.0

    def ended(self, step: int) -> bool:
        return self.total_steps is not None and step >= self.total_steps

    def step_done(self, loss: torch.Tensor, count: torch.Tensor, taken: torch.Tensor) -> None:
        if self.total_steps is None:  # steps are timed: of a GPU, not only how long it is told
            self._device.synchronize()
        now = time.monotonic()
        if self.total_steps is None:
            self.step_seconds.append(now - self.step_ended)
            if len(self.step_seconds) == CALIBRATION_STEPS:
                self.calibration = self._calibration_steps()
        self.step_ended = now
        self.loss = self.loss + torch.where(taken, loss, 0.0)
        self.count = self.count + torch.where(taken, count, 0.0)

    def progress(self, step: int) -> dict[str, float] | None:
        """Mean loss and throughput since the last report; None until the next is due."""
        elapsed = self.step_ended - self.reported
        if elapsed < REPORT_SECONDS and not self.ended(step):
            return None
        loss, count = float(self.loss), float(self.count)
        if count == 0:  # all were skipped
            return None
        self.loss, self.count, self.reported = 0.0, 0.0, self.step_ended
        return {"loss": loss / count, "throughput": count / max(elapsed, 1e-9)}

    def validation_due(self, step: int) -> bool:
        if self.total_steps is None:
            return step == min(self.resumed + self.calibration, self.most_steps)
        return self.ended(step) or step % self._validation_interval(self.total_steps) == 0

    def checkpoint_due(self, step: int) -> bool:
        """After each validation, and every `checkpoint_every` steps."""
        every = self.config.checkpoint_every
        return self.validation_due(step) or (every is not None and step % every == 0)

    def agreement_due(self, step: int) -> bool:
        """Whether the workers agree now: about once a second, and before every checkpoint."""
        return step >= self.next_agreement or self.checkpoint_due(step)

    def agreement_interval(self, step: int) -> int:
        """Steps until the next agreement, at the speed since the last. The first worker's count."""
        (last, then), self.last_agreement = self.last_agreement, (step, self.step_ended)
        seconds = (self.step_ended - then) / max(step - last, 1)
        return max(1, min(50, int(AGREEMENT_SECONDS / max(seconds, 1e-3))))

    def validated(self) -> None:
        now = time.monotonic()
        self.validation_seconds = now - self.step_ended
        self.step_ended = now
        self.reported += self.validation_seconds  # throughput counts the steps alone

    def fix_total_steps(self, step: int) -> int:
        """The number of steps. A time budget is turned into steps here, once.

        The first checkpoint keeps it, so that a resumed run ends at the same step.
        """
        if self.total_steps is None:
            steps: float = step
            if step < self.most_steps:
                steps = min(self._affordable(step), self.most_steps)
            self.total_steps = self.world.exchange(int(steps))[0][0]
        return self.total_steps

    def _affordable(self, step: int) -> int:
        """How many steps the time budget allows, those taken included."""
        budget = 60.0 * self.config.budget_minutes - (self.step_ended - self.started)
        budget -= VALIDATIONS * self.validation_seconds
        # The faster parts: other processes are still starting during the first steps.
        typical = statistics.quantiles(self._parts(), n=4)[0]
        return step + max(int(budget / typical), 1)

    def _parts(self) -> list[float]:
        """The mean seconds of a step, for each of CALIBRATION_PARTS of the timed steps."""
        size = len(self.step_seconds) // CALIBRATION_PARTS
        starts = range(0, size * CALIBRATION_PARTS, size)
        return [statistics.fmean(self.step_seconds[start : start + size]) for start in starts]

    def _calibration_steps(self) -> int:
        share = 60.0 * self.config.budget_minutes * CALIBRATION_SHARE
        seconds = min(share, CALIBRATION_SECONDS)
        typical = statistics.median(self.step_seconds)
        steps = max(int(seconds / max(typical, 1e-6)), CALIBRATION_STEPS)
        return self.world.exchange(steps)[0][0]

    def _validation_interval(self, total_steps: int) -> int:
        return self.config.eval_every or -(-total_steps // VALIDATIONS)

"""What the workers agree on about once a second: to go on, to stop, or to go back."""

import enum
from typing import Protocol

from orchestrator.errors import DivergedError
from orchestrator.learn.batches import Batches
from orchestrator.learn.pace import Pace
from orchestrator.learn.state import State
from orchestrator.learn.world import World


class Directive(enum.IntEnum):
    """What is to be done; of several, the highest."""

    GO_ON = 0
    STOP = 1  # save, and leave the rest for another time: a machine is about to be taken away, say
    GO_BACK = 2  # to the newest checkpoint


class Signals(Protocol):
    """What reaches a worker from outside, and what it tells of."""

    def directive(self) -> Directive:
        """What this worker was asked for; heard once a pulse."""

    def event(self, kind: str, **fields: object) -> None:
        """Something that belongs into the story of the run."""


class Pulse:
    """Finds what went wrong with the weights, on all workers at the same step."""

    def __init__(
        self, state: State, batches: Batches, pace: Pace, world: World, signals: Signals
    ) -> None:
        self.state = state
        self.batches = batches
        self.pace = pace
        self.world = world
        self.signals = signals
        self.skipped, _ = state.guard.look()
        self.error = DivergedError("nothing failed")  # what going back is to mend
        self.went_back_at = -1

    def take(self) -> Directive:
        """To be called by all workers, which all get the same answer.

        Raises:
            DivergedError: where going back has not helped: steps had to be skipped again, whose
                rows it names, or the workers' weights differ again.
        """
        step = self.state.step
        asked, interval = self.signals.directive(), self.pace.pulse_interval(step)
        skipped, repeated = self.state.guard.look()
        every = self.world.exchange(self.state.checksum(), int(asked), interval, repeated)
        self.pace.next_pulse = step + every[0][2]
        if skipped > self.skipped and self.world.rank == 0:
            self.signals.event("step skipped", step=step, skipped=skipped - self.skipped)
        self.skipped = skipped
        if (repeated := max(row[3] for row in every)) >= 0:
            self.error = DivergedError(
                "the training diverged: the loss or its gradient is no number, or leaps, from "
                f"{self.batches.named(repeated)} on; look at these rows, or lower "
                f"train.lr = {self.pace.config.lr}"
            )
            return self._go_back(repeated)
        if len({checksum for checksum, *_ in every}) > 1:
            self.error = DivergedError(
                f"the workers' weights differ at step {step}: a machine of theirs is faulty"
            )
            return self._go_back(step)
        return Directive(max(asked for _, asked, *_ in every))

    def _go_back(self, step: int) -> Directive:
        """What comes back before the training got any further is no accident."""
        if step <= self.went_back_at:
            raise self.error
        self.went_back_at = step
        if self.world.rank == 0:
            self.signals.event("rolled back", step=self.state.step, reason=str(self.error))
        return Directive.GO_BACK

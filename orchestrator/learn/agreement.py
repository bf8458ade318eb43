"""About once a second the workers agree on a directive: to go on, to stop, or to go back."""

from typing import NamedTuple, Protocol

from orchestrator.errors import DivergedError
from orchestrator.learn.batches import Batches
from orchestrator.learn.directive import Directive
from orchestrator.learn.pace import Pace
from orchestrator.learn.state import State
from orchestrator.learn.world import World


class Signals(Protocol):
    """What a worker hears from outside its training, and reports there."""

    def directive(self) -> Directive:
        """What this worker was asked to do. Called once per agreement."""

    def event(self, kind: str, **fields: object) -> None:
        """Report something for the run's `events.jsonl`."""


class _Report(NamedTuple):
    """What each worker sends to the others."""

    checksum: int  # of its weights and optimizers
    asked: int  # the directive it was asked for
    interval: int  # steps until the next agreement
    repeated: int  # see `GuardState`


class Agreement:
    """Compares the workers: all of them find a fault in the weights at the same step."""

    def __init__(
        self, state: State, batches: Batches, pace: Pace, world: World, signals: Signals
    ) -> None:
        self.state = state
        self.batches = batches
        self.pace = pace
        self.world = world
        self.signals = signals
        self.skipped = state.guard.look().total
        self.error = DivergedError("nothing failed")  # the reason to go back
        self.went_back_at = -1

    def reach(self) -> Directive:
        """All workers call this at the same step, and all get the same directive.

        Raises:
            DivergedError: where going back has not helped: steps were skipped again, whose rows the
                error names, or the workers' weights differ again.
        """
        step = self.state.step
        asked, interval = self.signals.directive(), self.pace.agreement_interval(step)
        skipped, repeated = self.state.guard.look()
        report = _Report(self.state.checksum(), int(asked), interval, repeated)
        reports = [_Report(*numbers) for numbers in self.world.exchange(*report)]
        self.pace.next_agreement = step + reports[0].interval
        if skipped > self.skipped and self.world.rank == 0:
            self.signals.event("step skipped", step=step, skipped=skipped - self.skipped)
        self.skipped = skipped
        if (repeated := max(report.repeated for report in reports)) >= 0:
            self.error = DivergedError(
                "the training diverged: the loss or its gradient is NaN or infinite, or jumps, "
                f"from {self.batches.named(repeated)} on; look at these rows, or lower "
                f"train.lr = {self.pace.config.lr}"
            )
            return self._go_back(repeated)
        # The first worker with each checksum.
        ranks = {report.checksum: rank for rank, report in reversed([*enumerate(reports)])}
        if len(ranks) > 1:
            workers = " and ".join(map(str, sorted(ranks.values())))
            self.error = DivergedError(
                f"weights differ between workers {workers} at step {step}: one machine computes "
                "differently; check its memory, or use machines of one kind"
            )
            return self._go_back(step)
        return Directive(max(report.asked for report in reports))

    def _go_back(self, step: int) -> Directive:
        """A fault that comes back before the training got any further is no accident.

        Raises:
            DivergedError: in that case.
        """
        if step <= self.went_back_at:
            raise self.error
        self.went_back_at = step
        if self.world.rank == 0:
            self.signals.event("rolled back", step=self.state.step, reason=str(self.error))
        return Directive.GO_BACK

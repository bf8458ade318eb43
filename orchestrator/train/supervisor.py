"""Between the workers of a training and the command that started it.

It hears each worker once a second, so that it knows who hangs and who lags, counts failures
against a budget that progress refills, and passes on what the command asks for.
"""

import statistics
import time
from dataclasses import dataclass
from typing import Any

from orchestrator.errors import StageError

LAGGING = 2.0  # times as long as the others
LAGGING_STEPS = 10  # compared, and of some length, before a worker is called a straggler
LAGGING_SECONDS = 1.0


@dataclass(frozen=True)
class Beat:
    """What a worker says of itself."""

    rank: int
    process: int
    node: str  # Ray's id of it
    host: str
    step: int
    seconds: float  # computed in all steps so far, waiting for nobody


@dataclass(frozen=True)
class Event:
    """Something that belongs into the story of the run."""

    kind: str
    fields: dict[str, Any]


@dataclass(frozen=True)
class Figures:
    """A training's latest figures."""

    step: int
    total_steps: int | None
    values: dict[str, float]


class Supervisor:
    """Workers and Ray Train's controller tell it things; the command looks at it.

    It lives in the actor that Ray Train runs in. Where that is lost, a new one begins anew, and the
    command counts how often that happens.
    """

    def __init__(self, max_failures: int, hang_seconds: float) -> None:
        self.max_failures = max_failures
        self.hang_seconds = hang_seconds
        self.messages: list[Any] = []
        self.failures = 0  # since the last progress
        self.reason = ""  # of the last failure
        self.saved_step = 0
        self.asked = 0  # the directive for all workers
        self.draining: set[str] = set()  # nodes that will be taken away
        self.failed = False  # for a reason that no retry mends
        self.group = 0  # of workers: what older ones say, or do not say any more, is nothing
        self.size = 0
        self.beats: dict[int, tuple[float, Beat]] = {}
        self.left: set[int] = set()  # those who have ended by themselves
        self.windows: dict[int, Beat] = {}  # where the measuring of each worker began
        self.lagging: set[int] = set()

    # Of the workers.

    def wants(self) -> bool:
        """Whether a group of workers that was started should train: each of its workers asks."""
        if self.failures > self.max_failures and not self.failed:
            self.put(
                StageError(
                    f"training lost its workers {self.failures} times without getting further than "
                    f"step {self.saved_step}; the last time: {self.reason}; what is saved stays"
                )
            )
        return not self.failed

    def begin(self, size: int) -> int:
        """A group of workers is about to train; returns the number that its workers have."""
        self.forget()
        self.size = size
        return self.group

    def beat(self, group: int, beat: Beat) -> tuple[int, list[str]]:
        """Returns what is asked of the worker, and which of its group's nodes are taken away."""
        if group != self.group:
            return self.asked, []
        self.beats[beat.rank] = time.monotonic(), beat
        self._look_for_stragglers(beat)
        return self.asked, sorted({b.node for _, b in self.beats.values()} & self.draining)

    def done(self, group: int, rank: int) -> None:
        """A worker ended by itself: that it falls silent is no sign."""
        if group == self.group:
            self.left.add(rank)

    def put(self, message: Any) -> None:
        """An error, an event, figures, or Ray's placement group of the workers."""
        self.messages.append(message)
        if isinstance(message, Exception):
            self.failed = True
        saved = message.fields["step"] if _is_checkpoint(message) else 0
        if saved > self.saved_step:
            self.saved_step, self.failures = saved, 0

    # Of Ray Train's controller.

    def lost(self, causes: dict[int, str], preempted: bool) -> None:
        """Workers failed; that a machine was taken away with notice is no failure."""
        if self.failed:
            return
        self.failures += not preempted
        self.reason = "; ".join(f"rank {rank}: {cause}" for rank, cause in causes.items())
        known = [beat for _, beat in self.beats.values()]
        lost = [b for b in known if (b.node in self.draining if preempted else b.rank in causes)]
        self._tell(
            "preempted" if preempted else "worker lost",
            ranks=sorted(causes),
            hosts=sorted({beat.host for beat in lost}),
            step=max((beat.step for beat in known), default=0),
            cause=self.reason,
        )
        self.forget()

    def forget(self) -> None:
        """The workers so far are gone, or will be in an instant."""
        self.group += 1
        self.beats, self.windows, self.lagging, self.left = {}, {}, set(), set()

    # Of the command.

    def look(self) -> tuple[list[Any], list[Beat], bool]:
        """The messages since the last look, the workers that hang, and whether any is at work."""
        messages, self.messages = self.messages, []
        now = time.monotonic()
        silent = {rank: now - self.beats[rank][0] for rank in self.beats.keys() - self.left}
        hanging = [rank for rank, seconds in silent.items() if seconds > self.hang_seconds]
        found = [self.beats.pop(rank)[1] for rank in hanging]
        for beat in found:
            self._tell(
                "worker hangs",
                rank=beat.rank,
                host=beat.host,
                process=beat.process,
                step=beat.step,
                silent_seconds=round(silent[beat.rank], 1),
            )
        return messages, found, bool(self.beats.keys() - self.left)

    def ask(self, directive: int) -> None:
        self.asked = max(self.asked, directive)

    def drain(self, nodes: set[str]) -> None:
        """These will be taken away: workers on them are to save and make room for others."""
        self.draining = nodes

    def _tell(self, kind: str, **fields: Any) -> None:
        self.messages.append(Event(kind, fields))

    def _look_for_stragglers(self, beat: Beat) -> None:
        """Compare how long each worker computes for a step, over the same number of steps."""
        self.windows.setdefault(beat.rank, beat)
        if len(self.beats) < max(self.size, 2):
            return
        pace, computed = {}, 0.0
        for rank, (_, latest) in self.beats.items():
            first = self.windows.get(rank, latest)
            if latest.step - first.step < LAGGING_STEPS:
                return
            pace[rank] = (latest.seconds - first.seconds) / (latest.step - first.step)
            computed = max(computed, latest.seconds - first.seconds)
        if computed < LAGGING_SECONDS:
            return
        for rank, seconds in pace.items():
            usual = statistics.median(other for r, other in pace.items() if r != rank)
            if seconds > LAGGING * usual:
                if rank not in self.lagging:
                    worker = self.beats[rank][1]
                    self._tell(
                        "straggler",
                        rank=rank,
                        host=worker.host,
                        process=worker.process,
                        step=worker.step,
                        times_as_long=round(seconds / usual, 1),
                    )
                self.lagging.add(rank)
            else:
                self.lagging.discard(rank)
        self.windows = {rank: latest for rank, (_, latest) in self.beats.items()}


def _is_checkpoint(message: Any) -> bool:
    return isinstance(message, Event) and message.kind == "checkpoint"

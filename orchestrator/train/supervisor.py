"""Between the workers of a training and the command that started it.

The supervisor gets a heartbeat from each worker once a second, so it knows which workers hang and
which are slow. It counts failures against a budget that each new checkpoint refills, and it passes
the command's requests on to the workers.
"""

import dataclasses
import statistics
import time
from dataclasses import dataclass
from typing import Any

from orchestrator.errors import TryAgainError
from orchestrator.learn.directive import Directive

# If all workers on other nodes are silent, the network of this node has failed, or Ray will soon
# notice that their nodes are lost. They get so many seconds more than one that is silent alone.
NETWORK_SECONDS = 60.0
PAUSE_SECONDS = 3.0  # between two polls: this process or the command did not run
LAGGING = 2.0  # a straggler takes this many times as long as the others
LAGGING_STEPS = 10  # compared before a worker is called a straggler
LAGGING_SECONDS = 1.0  # computed in these steps, at least


@dataclass(frozen=True)
class Heartbeat:
    """What a worker reports about itself."""

    rank: int
    process: int
    node: str  # Ray's id of the node
    host: str
    step: int
    seconds: float  # computed in all steps so far, without waiting for other workers
    memory: int = 0  # peak, in bytes


@dataclass(frozen=True)
class Event:
    """Something for the run's `events.jsonl`."""

    kind: str
    fields: dict[str, Any]


@dataclass(frozen=True)
class Figures:
    """A training's latest figures."""

    step: int
    total_steps: int | None
    values: dict[str, float]


class Supervisor:
    """Workers and Ray Train's controller report to it; the command polls it.

    It lives in the actor that Ray Train runs in. If that actor is lost, the command starts another
    one, with a new supervisor, and counts how often that happens.
    """

    def __init__(self, max_failures: int, hang_seconds: float, node: str = "") -> None:
        self.max_failures = max_failures
        self.hang_seconds = hang_seconds
        self.node = node  # Ray's id of the supervisor's own node
        self.messages: list[Any] = []  # those that the command may not have yet
        self.received = 0  # messages that the command has; they are no longer kept
        self.polled: float | None = None  # when the command polled last
        self.cut_off = False  # whether all workers on other nodes are silent
        self.failures = 0  # since the last new checkpoint
        self.reason = ""  # of the last failure
        self.saved_step = 0
        self.asked = Directive.GO_ON  # of all workers
        self.draining: set[str] = set()  # nodes that will be taken away
        self.failed = False  # for a reason that a retry cannot mend
        self.generation = 0  # number of the worker group; messages of older groups are ignored
        self.size = 0  # workers in the group
        self.heartbeats: dict[int, tuple[float, Heartbeat]] = {}
        self.ended: set[int] = set()  # ranks of workers that returned or raised
        self.windows: dict[int, Heartbeat] = {}  # where the timing of each worker began
        self.lagging: set[int] = set()

    # Called by workers.

    def may_train(self) -> bool:
        """Whether a newly started group may train. Each of its workers asks."""
        if self.failures > self.max_failures and not self.failed:
            self.put(
                TryAgainError(
                    f"training lost its workers {self.failures} times without a checkpoint after "
                    f"step {self.saved_step}; the last time: {self.reason}; the checkpoints stay"
                )
            )
        return not self.failed

    def begin_group(self, size: int) -> int:
        """A group of `size` workers is about to train; returns the generation of its workers."""
        self.forget_group()
        self.size = size
        return self.generation

    def heartbeat(self, generation: int, heartbeat: Heartbeat) -> tuple[Directive, list[str]]:
        """Returns the directive for the worker, and the nodes its group is about to lose."""
        if generation != self.generation:
            return self.asked, []
        self.heartbeats[heartbeat.rank] = time.monotonic(), heartbeat
        self._look_for_stragglers(heartbeat)
        nodes = {latest.node for _, latest in self.heartbeats.values()}
        return self.asked, sorted(nodes & self.draining)

    def worker_ended(self, generation: int, rank: int) -> None:
        """A worker returned or raised: from now on its silence does not mean that it hangs."""
        if generation == self.generation:
            self.ended.add(rank)

    def put(self, message: Any) -> None:
        """An error, an event, figures, or Ray's placement group of the workers."""
        if isinstance(message, Figures) and self.heartbeats:
            message = self._with_memory(message)
        self.messages.append(message)
        if isinstance(message, Exception):
            self.failed = True
        saved = message.fields["step"] if _is_checkpoint(message) else 0
        if saved > self.saved_step:
            self.saved_step, self.failures = saved, 0

    # Called by Ray Train's controller.

    def workers_lost(self, causes: dict[int, str], preempted: bool) -> None:
        """Workers failed. A machine that is taken away with notice does not count as a failure."""
        if self.failed:
            return
        self.failures += not preempted
        self.reason = "; ".join(f"rank {rank}: {cause}" for rank, cause in causes.items())
        known = [latest for _, latest in self.heartbeats.values()]
        lost = [h for h in known if (h.node in self.draining if preempted else h.rank in causes)]
        self._put_event(
            "preempted" if preempted else "worker lost",
            ranks=sorted(causes),
            hosts=sorted({heartbeat.host for heartbeat in lost}),
            step=max((heartbeat.step for heartbeat in known), default=0),
            cause=self.reason,
        )
        self.forget_group()

    def forget_group(self) -> None:
        """The group's workers have ended, or are about to."""
        self.generation += 1
        self.heartbeats, self.windows, self.lagging, self.ended = {}, {}, set(), set()

    # Called by the command.

    def poll(self, received: int) -> tuple[list[Any], list[Heartbeat], bool]:
        """The messages after the first `received`, the workers that hang, and whether any runs.

        Messages are kept until the command says that it has them: an answer may be lost.
        """
        del self.messages[: received - self.received]
        self.received = received
        now = time.monotonic()
        self._forgive_own_pause(now)
        running = self.heartbeats.keys() - self.ended
        silent = {rank: now - self.heartbeats[rank][0] for rank in running}
        allowed = self.hang_seconds + (NETWORK_SECONDS if self._is_cut_off(silent) else 0)
        ranks = [rank for rank, seconds in silent.items() if seconds > allowed]
        hanging = [self.heartbeats.pop(rank)[1] for rank in ranks]
        for heartbeat in hanging:
            self._put_event(
                "worker hangs",
                rank=heartbeat.rank,
                host=heartbeat.host,
                process=heartbeat.process,
                step=heartbeat.step,
                silent_seconds=round(silent[heartbeat.rank], 1),
            )
        return list(self.messages), hanging, bool(self.heartbeats.keys() - self.ended)

    def _forgive_own_pause(self, now: float) -> None:
        """Heartbeats that came while this process did not run still wait: nobody was silent."""
        pause = now - self.polled if self.polled is not None else 0.0
        self.polled = now
        if pause > PAUSE_SECONDS:
            self.heartbeats = {
                rank: (min(at + pause, now), heartbeat)
                for rank, (at, heartbeat) in self.heartbeats.items()
            }

    def _is_cut_off(self, silent: dict[int, float]) -> bool:
        """Whether all workers on other nodes are silent at once, and there are several."""
        elsewhere = [rank for rank in silent if self.heartbeats[rank][1].node != self.node]
        longest = max((silent[rank] for rank in elsewhere), default=0.0)
        shortest = min((silent[rank] for rank in elsewhere), default=0.0)
        cut_off = len(elsewhere) > 1 and shortest > self.hang_seconds / 2
        if cut_off and not self.cut_off and longest > self.hang_seconds:
            self.cut_off = True
            hosts = sorted({self.heartbeats[rank][1].host for rank in elsewhere})
            self._put_event("workers out of reach", hosts=hosts, silent_seconds=round(longest, 1))
        self.cut_off &= cut_off
        return cut_off

    def ask(self, directive: Directive) -> None:
        self.asked = max(self.asked, directive)

    def drain(self, nodes: set[str]) -> None:
        """These nodes will be taken away: workers save, and start again on others."""
        self.draining = nodes

    def _with_memory(self, figures: Figures) -> Figures:
        """Add the peak memory of the worker that takes most."""
        peak = max(heartbeat.memory for _, heartbeat in self.heartbeats.values())
        values = {**figures.values, "peak memory GB": peak / 1e9}
        return dataclasses.replace(figures, values=values)

    def _put_event(self, kind: str, **fields: Any) -> None:
        self.messages.append(Event(kind, fields))

    def _look_for_stragglers(self, heartbeat: Heartbeat) -> None:
        """Compare how long each worker computes for a step, over the same number of steps."""
        self.windows.setdefault(heartbeat.rank, heartbeat)
        if len(self.heartbeats) < max(self.size, 2):
            return
        pace, computed = {}, 0.0
        for rank, (_, latest) in self.heartbeats.items():
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
                    worker = self.heartbeats[rank][1]
                    self._put_event(
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
        self.windows = {rank: latest for rank, (_, latest) in self.heartbeats.items()}


def _is_checkpoint(message: Any) -> bool:
    return isinstance(message, Event) and message.kind == "checkpoint"

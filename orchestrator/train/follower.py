"""The command's side of a training: passes figures and events to display, TensorBoard and run."""

import os
import signal
import socket
import sys
import time
from typing import Any

import psutil
import ray
from ray.util.placement_group import PlacementGroup, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from orchestrator.errors import OrchestratorError
from orchestrator.job.job import Job
from orchestrator.learn.directive import Directive
from orchestrator.progress import Progress
from orchestrator.storage.events import EventLog
from orchestrator.storage.folder import Folder
from orchestrator.train.calls import answer
from orchestrator.train.supervisor import Event, Figures, Heartbeat

POLL_SECONDS = 0.5
NOTICE_SECONDS = 1.0
# After a worker was lost: within this time Ray notices that its node was lost, too. It checks a
# node five times, 3 s apart, for up to 10 s each.
NODE_SECONDS = 70.0
ANSWER_SECONDS = 1.0
STOP_SECONDS = 25.0  # for a last checkpoint, after Ctrl-C or SIGTERM


class Follower:
    """Polls the supervisor while workers train, and passes its messages on."""

    def __init__(self, job: Job, folder: Folder, events: EventLog, progress: Progress) -> None:
        self.supervisor: Any = None  # the actor of the latest start
        self.max_failures = job.cluster.max_failures
        self._fewest = job.cluster.fewest_workers
        self.failures: list[OrchestratorError] = []
        self._lost_controllers = 0
        self._places: PlacementGroup | None = None  # of the workers
        self._lost_nodes = {node["NodeID"] for node in ray.nodes() if not node["Alive"]}
        self._events = events
        self._progress = progress
        self._folder = folder
        self._board: Any = None
        self._total: int | None = None
        self._step = -1
        self._at_work = False
        self._draining: set[str] = set()
        self._received = 0  # messages of the supervisor so far
        self._next_notice = 0.0
        self._nodes_matter_until = 0.0

    def follow(self, supervisor: Any, training: "ray.ObjectRef[None]") -> None:
        """Pass on messages until `training`, a method call of the supervisor's actor, returns.

        Raises:
            RayError: where the call raised one.
            OrchestratorError: that a worker reported.
            KeyboardInterrupt: after a last checkpoint, if workers can save it in `STOP_SECONDS`.
        """
        self.supervisor, self._draining, self._received = supervisor, set(), 0
        try:
            self._pass_on_until(training)
            self._wait_for_lost_nodes()
        except KeyboardInterrupt:
            if self._at_work:
                self._progress.start("saving a last checkpoint", total=None, unit="")
                answer(self.supervisor.ask, Directive.STOP, patience=STOP_SECONDS / 2)
                self._pass_on_until(training, time.monotonic() + STOP_SECONDS)
            raise
        if self.failures:
            raise self.failures[0]
        ray.get(training)

    def lacking(self) -> int:
        """How many workers must have their place before the training can go on; 0 while it runs."""
        return 0 if self._at_work else self._fewest

    def close(self) -> None:
        if self._board is not None:
            self._board.close()

    def may_start_again(self, reason: str) -> bool:
        """Whether to start Ray Train again, whose controller was lost for `reason`."""
        self._lost_controllers += 1
        self._events.write("train", "controller lost", cause=reason)
        if self._places is not None:
            remove_placement_group(self._places)
            self._places = None
        return self._lost_controllers <= self.max_failures

    def _look_for_notices(self) -> None:
        """Tell the supervisor which machines will be taken away, as Ray knows it.

        The cloud provider gives Ray notice, or somebody calls `ray drain-node`. Ray Train itself
        would start a process for each group of workers to ask for this.
        """
        if time.monotonic() < self._next_notice:
            return
        self._next_notice = time.monotonic() + NOTICE_SECONDS
        draining = set(ray._private.state.state.get_draining_nodes())
        if draining != self._draining:
            self._draining = draining
            self.supervisor.drain.remote(draining)
        if time.monotonic() < self._nodes_matter_until:
            self._report_lost_nodes()

    def _pass_on_until(
        self, training: "ray.ObjectRef[None]", deadline: float | None = None
    ) -> None:
        ended = False
        while not ended:  # the last round fetches messages of just before the end
            ended = bool(ray.wait([training], timeout=POLL_SECONDS)[0])
            ended |= deadline is not None and time.monotonic() > deadline
            self._look_for_notices()
            poll = answer(self.supervisor.poll, self._received)
            messages, hanging, self._at_work = poll
            for message in messages:
                self._received += 1
                self._forward(message)
            for worker in hanging:
                _end_process(worker)

    def _forward(self, message: Any) -> None:
        if isinstance(message, OrchestratorError):
            self.failures.append(message)
        elif isinstance(message, PlacementGroup):
            self._places = message
        elif isinstance(message, Event):
            self._events.write("train", message.kind, **message.fields)
            self._note(message)
            if message.kind == "checkpoint":
                self._lost_controllers = 0
            if message.kind in ("worker lost", "preempted"):
                self._nodes_matter_until = time.monotonic() + NODE_SECONDS
        else:
            self._show(message)

    def _report_lost_nodes(self) -> list[dict[str, Any]]:
        """Write an event for each node that was lost: its workers cannot report that themselves.

        Returns the nodes that Ray believes to be alive.
        """
        nodes = ray.nodes()
        for node in nodes:
            if not node["Alive"] and node["NodeID"] not in self._lost_nodes:
                self._lost_nodes.add(node["NodeID"])
                reason = node["DeathReasonMessage"] or "no reason given"
                address = node["NodeManagerAddress"]
                self._events.write("train", "node lost", address=address, cause=reason)
        return [node for node in nodes if node["Alive"]]

    def _wait_for_lost_nodes(self) -> None:
        """Wait for Ray to notice a lost node, where the training ends before it does.

        If every node answers, no node is lost, and there is nothing to wait for.
        """
        waits = False
        while time.monotonic() < self._nodes_matter_until:
            if all(_answers(node) for node in self._report_lost_nodes()):
                break
            if not waits:
                self._progress.start("waiting for Ray to notice lost nodes", total=None, unit="")
            waits = True
            time.sleep(POLL_SECONDS)
        if waits:
            self._progress.finish()

    def _note(self, event: Event) -> None:
        """Show a choice of precision, or a sample, while the training runs."""
        fields = event.fields
        if event.kind == "precision":
            self._progress.note(f"precision {fields['precision']}: {fields['reason']}")
        elif event.kind == "sample":
            self._progress.note(f"step {fields['step']}: {fields['text']}")
            if (board := self._tensorboard()) is not None:
                board.add_text("sample", fields["text"], fields["step"])

    def _show(self, figures: Figures) -> None:
        if self._step < 0 or figures.total_steps != self._total:
            total = figures.total_steps
            self._progress.start("training", total=total, unit="steps", done=figures.step)
            self._total, self._step = total, figures.step
        self._progress.advance(figures.step - self._step)
        self._step = figures.step
        self._progress.show(figures.values)
        if (board := self._tensorboard()) is not None:
            for name, value in figures.values.items():
                board.add_scalar(name, value, figures.step)
            board.flush()

    def _tensorboard(self) -> Any:
        """The writer, or None on remote storage: TensorBoard appends to its files."""
        if self._board is None and self._folder.local_path is not None:
            self._board = _import_tensorboard().SummaryWriter(f"{self._folder}/tensorboard")
        return self._board


def _import_tensorboard() -> Any:
    """Import tensorboardX without torch, which it would import: seconds, while workers start."""
    torch = sys.modules.get("torch")
    sys.modules["torch"] = torch  # type: ignore[assignment]  # None makes its import fail
    try:
        import tensorboardX
    finally:
        if torch is None:
            del sys.modules["torch"]
    return tensorboardX


def _answers(node: dict[str, Any]) -> bool:
    """Whether a node's raylet accepts connections. It ends with its node."""
    address = node["NodeManagerAddress"], node["NodeManagerPort"]
    try:
        socket.create_connection(address, ANSWER_SECONDS).close()
    except OSError:
        return False
    return True


def _end_process(worker: Heartbeat) -> None:
    """Kill a worker that hangs, on its node. Ray Train then starts the group again."""
    its_node = NodeAffinitySchedulingStrategy(worker.node, soft=False)
    _kill.options(scheduling_strategy=its_node).remote(worker.process)


@ray.remote(num_cpus=0, max_retries=0)
def _kill(process: int) -> None:
    """Kill a process if it is one of Ray's: its number may belong to another process by now."""
    try:
        is_rays = any("ray::" in part for part in psutil.Process(process).cmdline())
    except psutil.Error:
        return
    if is_rays:
        os.kill(process, signal.SIGKILL)

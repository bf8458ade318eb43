"""What happens while workers train: passed on to a display, TensorBoard and the run's story."""

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
from orchestrator.progress import Progress
from orchestrator.storage.events import EventLog
from orchestrator.storage.folder import Folder
from orchestrator.train.supervisor import Beat, Event, Figures

POLL_SECONDS = 0.5
NOTICE_SECONDS = 1.0
# After a worker was lost, in which Ray finds out that its node was: by five checks, 3 s apart, of
# up to 10 s each.
NODE_SECONDS = 70.0
ANSWER_SECONDS = 1.0
STOP = 1  # `pulse.Directive.STOP`, whose module imports torch
STOP_SECONDS = 25.0  # for a last checkpoint, after Ctrl-C or SIGTERM


class Feed:
    """The command's side of the supervisor."""

    def __init__(self, job: Job, folder: Folder, events: EventLog, progress: Progress) -> None:
        self.supervisor: Any = None  # the actor of the latest start
        self.max_failures = job.cluster.max_failures
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
        self._next_notice = 0.0
        self._nodes_matter_until = 0.0

    def follow(self, supervisor: Any, training: "ray.ObjectRef[None]") -> None:
        """Pass on what arrives until the training, a call of the supervising actor's, has ended.

        Raises:
            RayError: of the training.
            OrchestratorError: of a worker.
            KeyboardInterrupt: after a last checkpoint where one can be had in `STOP_SECONDS`.
        """
        self.supervisor, self._draining = supervisor, set()
        try:
            self._pass_on_until(training)
            self._wait_for_lost_nodes()
        except KeyboardInterrupt:
            if self._at_work:
                self._progress.start("saving a last checkpoint", total=None, unit="")
                self.supervisor.ask.remote(STOP)
                self._pass_on_until(training, time.monotonic() + STOP_SECONDS)
            raise
        if self.failures:
            raise self.failures[0]
        ray.get(training)

    def close(self) -> None:
        if self._board is not None:
            self._board.close()

    def may_start_again(self, reason: str) -> bool:
        """Whether Ray Train itself, lost for `reason`, is worth another start."""
        self._lost_controllers += 1
        self._events.write("train", "controller lost", cause=reason)
        if self._places is not None:
            remove_placement_group(self._places)
            self._places = None
        return self._lost_controllers <= self.max_failures

    def _look_for_notices(self) -> None:
        """Whether a machine will be taken away: said by whoever takes it, or `ray drain-node`.

        Ray Train has a process of its own that asks, one for each group of workers.
        """
        if time.monotonic() < self._next_notice:
            return
        self._next_notice = time.monotonic() + NOTICE_SECONDS
        draining = set(ray._private.state.state.get_draining_nodes())
        if draining != self._draining:
            self._draining = draining
            self.supervisor.drain.remote(draining)
        if time.monotonic() < self._nodes_matter_until:
            self._tell_of_lost_nodes()

    def _pass_on_until(
        self, training: "ray.ObjectRef[None]", deadline: float | None = None
    ) -> None:
        ended = False
        while not ended:  # what arrives just before the end is fetched after it
            ended = bool(ray.wait([training], timeout=POLL_SECONDS)[0])
            ended |= deadline is not None and time.monotonic() > deadline
            self._look_for_notices()
            messages, hanging, self._at_work = ray.get(self.supervisor.look.remote())
            for message in messages:
                self._forward(message)
            for beat in hanging:
                _end_process(beat)

    def _forward(self, message: Any) -> None:
        if isinstance(message, OrchestratorError):
            self.failures.append(message)
        elif isinstance(message, PlacementGroup):
            self._places = message
        elif isinstance(message, Event):
            self._events.write("train", message.kind, **message.fields)
            if message.kind == "checkpoint":
                self._lost_controllers = 0
            if message.kind in ("worker lost", "preempted"):
                self._nodes_matter_until = time.monotonic() + NODE_SECONDS
        else:
            self._show(message)

    def _tell_of_lost_nodes(self) -> list[dict[str, Any]]:
        """A worker often fails because another one's node did, and knows nothing of that.

        Returns the nodes that live, as far as Ray knows.
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
        """Have the story tell of a lost node where the training ends before Ray knows of it.

        A node that answers is not lost; nothing is waited for where all do.
        """
        waits = False
        while time.monotonic() < self._nodes_matter_until:
            if all(_answers(node) for node in self._tell_of_lost_nodes()):
                break
            if not waits:
                self._progress.start("waiting for Ray to know of lost nodes", total=None, unit="")
            waits = True
            time.sleep(POLL_SECONDS)
        if waits:
            self._progress.finish()

    def _show(self, figures: Figures) -> None:
        if self._step < 0 or figures.total_steps != self._total:
            self._progress.start("training", total=figures.total_steps, unit="steps")
            self._total, self._step = figures.total_steps, 0
        self._progress.advance(figures.step - self._step)
        self._step = figures.step
        self._progress.show(figures.values)
        if self._board is None and self._folder.local_path is not None:
            # Its files can only be appended to on local storage.
            self._board = _tensorboard().SummaryWriter(f"{self._folder}/tensorboard")
        if self._board is not None:
            for name, value in figures.values.items():
                self._board.add_scalar(name, value, figures.step)
            self._board.flush()


def _tensorboard() -> Any:
    """tensorboardX without torch, which it imports where it can: seconds, beside the workers'."""
    here = sys.modules.get("torch")
    sys.modules["torch"] = here  # type: ignore[assignment]  # None: an import of it fails
    try:
        import tensorboardX
    finally:
        if here is None:
            del sys.modules["torch"]
    return tensorboardX


def _answers(node: dict[str, Any]) -> bool:
    """Whether a node's raylet, which dies with its node, takes connections."""
    address = node["NodeManagerAddress"], node["NodeManagerPort"]
    try:
        socket.create_connection(address, ANSWER_SECONDS).close()
    except OSError:
        return False
    return True


def _end_process(beat: Beat) -> None:
    """Have a worker that hangs killed on its node; Ray Train then starts the group again."""
    there = NodeAffinitySchedulingStrategy(beat.node, soft=False)
    _kill.options(scheduling_strategy=there).remote(beat.process)


@ray.remote(num_cpus=0, max_retries=0)
def _kill(process: int) -> None:
    """Nothing but a process of Ray's: the number may be another's by now."""
    try:
        is_rays = any("ray::" in part for part in psutil.Process(process).cmdline())
    except psutil.Error:
        return
    if is_rays:
        os.kill(process, signal.SIGKILL)

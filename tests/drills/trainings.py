"""Trainings for drills to disturb, in a thread of the test or as a command, and checks that they
leave nothing behind."""

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import ray
import yaml
from ray.exceptions import RayActorError
from ray.util.state import list_actors, list_placement_groups

from orchestrator.job.job import Job
from orchestrator.learn.checkpoints import Checkpoints
from orchestrator.run import Run
from orchestrator.storage.artifact import PreparedData, Training
from orchestrator.storage.checkpoint_files import MODEL_FILE, OPTIMIZER_FILE
from orchestrator.storage.events import EventLog, read_events
from orchestrator.storage.folder import MANIFEST, Folder
from orchestrator.tasks.task import Metric
from orchestrator.train.follower import Follower
from orchestrator.train.stage import train
from orchestrator.train.supervisor import Heartbeat
from tests.integration.conftest import Silent, tiny_job
from tests.ray_head import Head

# Micro-batches of one row make slow steps, so a fault happens in the middle of the training.
SLOW = {
    "train__steps": 150,
    "train__micro_batch_size": 1,
    # The precision is fixed: the faster one may differ between runs, and with it the bits. For a
    # model this small it is the slower one.
    "train__precision": "bf16",
    "train__checkpoint_every": 10,
    "train__eval_every": 50,
    "train__warmup_steps": 5,
    "cluster__workers": 2,
}
ACTORS = ("RayTrainWorker", "TrainController", "SynchronizationActor", "PlacementGroupCleaner")
ACTORS += ("PreemptionWatcher", "Supervisor")


def make_job(prepared: PreparedData, folder: Path, **changes: Any) -> Job:
    """A job on the prepared data, whose run is in this folder."""
    source = Path(prepared.folder.uri).parents[2]
    settings = SLOW | {"storage": str(folder / "runs")} | changes
    return Job.model_validate(tiny_job(source, **settings))


@dataclass(frozen=True)
class Ending:
    """The end of a training, which must be equal for equal trainings: the weights, the optimizer
    with the guard, and the samples."""

    step: int
    model: str
    optimizer: str
    samples: str


def ending(folder: Folder) -> Ending:
    """The ending of the training in this folder, from its newest checkpoint."""
    newest = checkpoints(folder).all()[-1]
    files = newest.files
    return Ending(newest.step, files[MODEL_FILE], files[OPTIMIZER_FILE], newest.samples)


def checkpoints(folder: Folder) -> Checkpoints:
    return Checkpoints(folder / "checkpoints", Metric("loss", "min"))


class Drill:
    """A training in a thread, and its progress while it runs."""

    def __init__(self, job: Job, prepared: PreparedData, followers: list[Follower]) -> None:
        self.run = Run(job)
        self.folder = self.run.folder / "train"
        self.training: Training | None = None
        self.error: BaseException | None = None
        self._arguments = job, prepared, self.folder, EventLog(self.run.folder), Silent()
        self._followers = followers  # the last one is this training's
        self._thread = threading.Thread(target=self._train, daemon=True)
        self._thread.start()

    def _train(self) -> None:
        try:
            self.training = train(*self._arguments)
        except BaseException as error:
            self.error = error

    def events(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in read_events(self.run.folder) if event["event"] == kind]

    def heartbeats(self) -> dict[int, Heartbeat]:
        """What each worker said last."""
        if (supervisor := self._followers[-1].supervisor) is None:  # it has only just begun
            return {}
        asked = supervisor.__ray_call__.remote(lambda self: self.heartbeats)
        try:
            found: dict[int, tuple[float, Heartbeat]] = ray.get(asked)
        except RayActorError:  # it is being replaced
            return {}
        return {rank: heartbeat for rank, (_, heartbeat) in found.items()}

    def wait_for_event(self, kind: str, count: int = 1) -> dict[str, Any]:
        self._wait_until(lambda: len(self.events(kind)) >= count, kind)
        return self.events(kind)[count - 1]

    def wait_for_step(self, step: int, workers: int = 2) -> dict[int, Heartbeat]:
        """Until so many workers are at this step or beyond; what they said then."""
        heartbeats: dict[int, Heartbeat] = {}

        def there() -> bool:
            nonlocal heartbeats
            heartbeats = self.heartbeats() if self._followers else {}
            return len(heartbeats) >= workers and all(
                heartbeat.step >= step for heartbeat in heartbeats.values()
            )

        self._wait_until(there, f"step {step}")
        return heartbeats

    def _wait_until(self, done: Callable[[], bool], what: str) -> None:
        wait_until(done, what, lambda: "" if self.is_running else f"it ended: {self.error!r}")

    def wait_until_it_goes_on(self, cause: str, before: int | None = None) -> float:
        """Wait for the first step after a fault now; prints and returns the seconds it took."""
        started = time.monotonic()
        if before is None:  # how often it had continued before the fault
            before = len(self.events("resumed"))
        first = self.wait_for_event("resumed", before + 1)["step"]
        self.wait_for_step(first + 1, workers=1)
        seconds = time.monotonic() - started
        print(f"\n{cause}: {seconds:.1f} s to the next step")
        return seconds

    @property
    def is_running(self) -> bool:
        return self._thread.is_alive()

    def join(self) -> None:
        self._thread.join(240)
        assert not self.is_running, "it does not end"

    def end(self) -> Training:
        """Wait for the training; returns it, or raises its error."""
        self.join()
        if self.error is not None:
            raise self.error
        assert self.training is not None
        return self.training


class Command:
    """`orchestrator train` or `tune` on the prepared data, in a new process session."""

    def __init__(self, job: Job, environment: dict[str, str], stage: str = "train") -> None:
        self.run = Run(job)
        self.folder = self.run.train_folder(job)
        path = Path(self.run.folder.uri).parent / "job.yaml"
        path.write_text(yaml.safe_dump(json.loads(job.model_dump_json(exclude_none=True))))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "orchestrator", stage, str(path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
            start_new_session=True,
        )

    def events(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in read_events(self.run.folder) if event["event"] == kind]

    def wait_for_event(self, kind: str, count: int = 1) -> dict[str, Any]:
        self.wait_until(lambda: len(self.events(kind)) >= count, kind)
        return self.events(kind)[count - 1]

    def wait_for_checkpoint(self, step: int) -> None:
        saved = checkpoints(self.folder)
        self.wait_until(
            lambda: any(checkpoint.step >= step for checkpoint in saved.all()),
            f"checkpoint of step {step}",
        )

    def wait_until(self, done: Callable[[], bool], what: str) -> None:
        def ended() -> str:
            return "" if self.process.poll() is None else self.process.communicate()[0]

        wait_until(done, what, ended)

    def end(self, code: int = 0) -> str:
        """Wait for the command to exit with this code; returns its output."""
        output = self.process.communicate(timeout=240)[0]
        assert self.process.returncode == code, output
        return output

    def assert_nothing_left(self, seconds: float = 15, but: tuple[str, ...] = ()) -> None:
        """Check that no process of the session is left, except those whose command has one of the
        words in `but`."""
        deadline = time.monotonic() + seconds
        while left := [
            p for p in commands_of(self.process.pid) if not any(word in p for word in but)
        ]:
            assert time.monotonic() < deadline, left
            time.sleep(0.2)


def commands_of(session: int) -> list[str]:
    """The command lines of the living processes of a session; some processes rename themselves."""
    commands = []
    for process in processes_of(session):
        with contextlib.suppress(psutil.Error):
            commands.append(" ".join(process.cmdline()))
    return commands


def wait_until(done: Callable[[], bool], what: str, ended: Callable[[], str]) -> None:
    """Wait until `done` holds, for two minutes at most, and only while the training runs."""
    deadline = time.monotonic() + 120
    while not done():
        assert not (reason := ended()), f"no {what}: {reason}"
        assert time.monotonic() < deadline, f"no {what} within two minutes"
        time.sleep(0.1)


def processes_of(session: int) -> list[psutil.Process]:
    """The living processes of a session."""
    processes = []
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE:
                processes.append(process)
        except (ProcessLookupError, psutil.NoSuchProcess):
            pass
    return processes


def assert_clean(head: Head, folder: Folder) -> None:
    """Check that no actor, placement group or half-written checkpoint is left on the cluster."""
    deadline = time.monotonic() + 30
    while left := left_over(head, folder):
        assert time.monotonic() < deadline, left
        time.sleep(0.5)


def left_over(head: Head, folder: Folder) -> list[str]:
    left = [
        f"{actor.class_name} in process {actor.pid}"
        for actor in list_actors(head.dashboard, limit=10_000)
        if actor.state != "DEAD" and actor.class_name.rsplit(".", 1)[-1] in ACTORS
    ]
    groups = list_placement_groups(head.dashboard, limit=10_000)
    left += [f"group {g.placement_group_id}" for g in groups if g.state != "REMOVED"]
    names = (folder / "checkpoints").names()
    left += [name for name in names if name.endswith(".tmp")]
    steps = [folder / "checkpoints" / name for name in names if name.startswith("step-")]
    left += [str(step) for step in steps if not step.exists(MANIFEST)]
    return left

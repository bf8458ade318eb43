"""Trainings to disturb: in a thread of the test, or by their own command; and what may stay."""

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

# Micro-batches of one row make slow steps, so that a fault comes in the midst of the training.
SLOW = {
    "train__steps": 150,
    "train__micro_batch_size": 1,
    # One of the two, since the faster one may differ from run to run, and so would the bits; of a
    # model as small as this it is the slower one.
    "train__precision": "bf16",
    "train__checkpoint_every": 10,
    "train__eval_every": 50,
    "train__warmup_steps": 5,
    "cluster__workers": 2,
}
ACTORS = ("RayTrainWorker", "TrainController", "SynchronizationActor", "PlacementGroupCleaner")
ACTORS += ("PreemptionWatcher", "Supervisor")


def make_job(prepared: PreparedData, folder: Path, **changes: Any) -> Job:
    """A job on the prepared data whose run is kept in this folder."""
    source = Path(prepared.folder.uri).parents[2]
    settings = SLOW | {"storage": str(folder / "runs")} | changes
    return Job.model_validate(tiny_job(source, **settings))


@dataclass(frozen=True)
class Ending:
    """What trainings that are the same end with: weights, optimizer and guard, and samples."""

    step: int
    model: str
    optimizer: str
    samples: str


def ending(folder: Folder) -> Ending:
    """Of the training in this folder, from its newest checkpoint."""
    newest = checkpoints(folder).all()[-1]
    files = newest.files
    return Ending(newest.step, files[MODEL_FILE], files[OPTIMIZER_FILE], newest.samples)


def checkpoints(folder: Folder) -> Checkpoints:
    return Checkpoints(folder / "checkpoints", Metric("loss", "min"))


class Drill:
    """A training in a thread, and what there is to see of it meanwhile."""

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
        found: dict[int, tuple[float, Heartbeat]] = ray.get(
            supervisor.__ray_call__.remote(lambda self: self.heartbeats)
        )
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
        """Until there is a step after the fault of this moment; prints and returns the seconds."""
        started = time.monotonic()
        if before is None:  # how often it went on before the fault
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
        """The finished training; raises what it raised."""
        self.join()
        if self.error is not None:
            raise self.error
        assert self.training is not None
        return self.training


class Command:
    """`orchestrator train`, or `tune`, on the prepared data, in a session of its own."""

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
            lambda: any(found.step >= step for found in saved.all()), f"checkpoint of step {step}"
        )

    def wait_until(self, done: Callable[[], bool], what: str) -> None:
        def ended() -> str:
            return "" if self.process.poll() is None else self.process.communicate()[0]

        wait_until(done, what, ended)

    def end(self, code: int = 0) -> str:
        """Its exit, with this code; returns what it printed."""
        said = self.process.communicate(timeout=240)[0]
        assert self.process.returncode == code, said
        return said

    def assert_nothing_left(self, seconds: float = 15, but: tuple[str, ...] = ()) -> None:
        """No process of its session, but for those whose command has one of these words."""
        deadline = time.monotonic() + seconds
        while left := [
            p for p in commands_of(self.process.pid) if not any(word in p for word in but)
        ]:
            assert time.monotonic() < deadline, left
            time.sleep(0.2)


def commands_of(session: int) -> list[str]:
    """What the living processes of a session were started as, or call themselves."""
    found = []
    for process in processes_of(session):
        with contextlib.suppress(psutil.Error):
            found.append(" ".join(process.cmdline()))
    return found


def wait_until(done: Callable[[], bool], what: str, ended: Callable[[], str]) -> None:
    """Two minutes at most, and no longer than the training runs."""
    deadline = time.monotonic() + 120
    while not done():
        assert not (reason := ended()), f"no {what}: {reason}"
        assert time.monotonic() < deadline, f"no {what} within two minutes"
        time.sleep(0.1)


def processes_of(session: int) -> list[psutil.Process]:
    """The living processes of a session."""
    found = []
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (ProcessLookupError, psutil.NoSuchProcess):
            pass
    return found


def assert_clean(head: Head, folder: Folder) -> None:
    """No actor, placement group or half-written checkpoint of a training is left on the cluster."""
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

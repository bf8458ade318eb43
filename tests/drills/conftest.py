"""Trainings that are disturbed, undisturbed ones to compare them with, and what may stay.

DRILL_SEED=7 repeats the random moments of an earlier session, which prints its own.
"""

import json
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
import yaml
from ray.util.state import list_actors, list_placement_groups

from orchestrator import train as train_module
from orchestrator.artifact import MANIFEST, Folder, PreparedData, Training
from orchestrator.checkpoint import MODEL_FILE, OPTIMIZER_FILE, Checkpoints
from orchestrator.events import EventLog, read_events
from orchestrator.feed import Feed
from orchestrator.job import Job
from orchestrator.prepare import prepare
from orchestrator.run import Run
from orchestrator.supervisor import Beat
from orchestrator.task import Metric
from orchestrator.train import train
from tests.drills.s3 import Storage, storage
from tests.integration.conftest import Silent, connected, tiny_job, write_texts
from tests.ray_head import Head, end_session, ray_head

__all__ = ["connected"]

SEED = int(os.environ.get("DRILL_SEED", random.randrange(10_000)))
chance = random.Random(SEED)

# Steps of some 50 ms, so that a fault comes in their midst.
SLOW = {
    "train__steps": 150,
    "train__micro_batch_size": 1,
    "train__checkpoint_every": 10,
    "train__eval_every": 50,
    "train__warmup_steps": 5,
    "cluster__workers": 2,
}


def pytest_report_header() -> str:
    return f"DRILL_SEED={SEED}"


@dataclass(frozen=True)
class Ending:
    """What two trainings that are the same end with: weights, optimizer and guard, and samples."""

    step: int
    model: str
    optimizer: str
    samples: str


def ending(folder: Folder) -> Ending:
    """Of the training in this folder, from its newest checkpoint."""
    newest = Checkpoints(folder / "checkpoints", Metric("loss", "min")).all()[-1]
    files = newest.files
    return Ending(newest.step, files[MODEL_FILE], files[OPTIMIZER_FILE], newest.samples)


class Drill:
    """A training in a thread, and what there is to see of it meanwhile."""

    def __init__(self, job: Job, prepared: PreparedData, feeds: list[Feed]) -> None:
        self.run = Run(job)
        self.folder = self.run.folder / "train"
        self.training: Training | None = None
        self.error: BaseException | None = None
        self._arguments = job, prepared, self.folder, EventLog(self.run.folder), Silent()
        self._feeds = feeds
        self._thread = threading.Thread(target=self._train, daemon=True)
        self._thread.start()

    def _train(self) -> None:
        try:
            self.training = train(*self._arguments)
        except BaseException as error:
            self.error = error

    def events(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in read_events(self.run.folder) if event["event"] == kind]

    def beats(self) -> dict[int, Beat]:
        """What each worker said last."""
        supervisor = self._feeds[-1].supervisor
        found: dict[int, tuple[float, Beat]] = ray.get(
            supervisor.__ray_call__.remote(lambda self: self.beats)
        )
        return {rank: beat for rank, (_, beat) in found.items()}

    def wait_for_event(self, kind: str, seconds: float = 90, count: int = 1) -> dict[str, Any]:
        self.wait_until(lambda: len(self.events(kind)) >= count, seconds, kind)
        return self.events(kind)[count - 1]

    def wait_for_step(self, step: int, workers: int = 2, seconds: float = 120) -> dict[int, Beat]:
        """Until all workers are beyond this step; what they said then."""
        beats: dict[int, Beat] = {}

        def there() -> bool:
            nonlocal beats
            beats = self.beats() if self._feeds else {}
            return len(beats) >= workers and all(beat.step >= step for beat in beats.values())

        self.wait_until(there, seconds, f"step {step}")
        return beats

    def wait_until(self, done: Callable[[], bool], seconds: float, what: str) -> None:
        deadline = time.monotonic() + seconds
        while not done():
            assert self._thread.is_alive(), f"ended before {what}: {self.error!r}"
            assert time.monotonic() < deadline, f"no {what} within {seconds:g} s"
            time.sleep(0.1)

    def wait_until_it_goes_on(self, lost_step: int, what: str) -> float:
        """Until there is a step after the fault that was just made; prints and returns seconds."""
        started = time.monotonic()
        resumed = len(self.events("resumed"))
        self.wait_for_event("resumed", count=resumed + 1)
        first = self.events("resumed")[-1]["step"]
        self.wait_for_step(first + 1, workers=1)
        seconds = time.monotonic() - started
        lost = lost_step - first
        print(f"\n{what}: {seconds:.1f} s to the next step, {lost} steps made again")
        return seconds

    def end(self, seconds: float = 180) -> Training:
        """The finished training."""
        self._thread.join(seconds)
        assert not self._thread.is_alive(), "it does not end"
        if self.error is not None:
            raise self.error
        assert self.training is not None
        return self.training


@pytest.fixture(scope="session")
def s3() -> Iterator[Storage]:
    with storage() as server:
        os.environ.update(server.environment)
        yield server


@pytest.fixture(scope="session")
def head(s3: Storage) -> Iterator[Head]:
    """Whose workers, too, know of that storage."""
    with ray_head(cpus=4) as found:
        yield found


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory, connected: Any) -> PreparedData:
    folder = tmp_path_factory.mktemp("data")
    write_texts(folder / "data")
    job = Job.model_validate(tiny_job(folder))
    run = Run(job)
    return prepare(job, run.files, run.prepare_folder(), Silent())


Begin = Callable[..., Drill]
Undisturbed = Callable[..., Ending]


@pytest.fixture
def begin(
    prepared: PreparedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Begin]:
    """Begins trainings, and proves afterwards that nothing of them stayed."""
    feeds: list[Feed] = []
    drills: list[Drill] = []

    def recorded(*arguments: Any) -> Feed:
        feeds.append(Feed(*arguments))
        return feeds[-1]

    def begin(**changes: Any) -> Drill:
        drills.append(Drill(make_job(prepared, tmp_path, **changes), prepared, feeds))
        return drills[-1]

    monkeypatch.setattr(train_module, "Feed", recorded)
    yield begin
    for drill in drills:
        drill._thread.join(120)
    feeds.clear()
    for drill in drills:
        assert_clean(drill.folder)


def make_job(prepared: PreparedData, folder: Path, **changes: Any) -> Job:
    """A job on the prepared data whose run is kept in this folder."""
    source = Path(prepared.folder.uri).parents[2]
    settings = SLOW | {"storage": str(folder / "runs")} | changes
    return Job.model_validate(tiny_job(source, **settings))


@pytest.fixture(scope="session")
def undisturbed(prepared: PreparedData, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    """How a training with these changes ends when nobody disturbs it; made once each."""
    known: dict[str, Ending] = {}

    def made(**changes: Any) -> Ending:
        key = repr(sorted(changes.items()))
        if key not in known:
            job = make_job(prepared, tmp_path_factory.mktemp("undisturbed"), **changes)
            drill = Drill(job, prepared, [])
            started = time.monotonic()
            drill.end(240)
            print(f"\nundisturbed {key}: {time.monotonic() - started:.1f} s")
            known[key] = ending(drill.folder)
        return known[key]

    return made


def take_prepared(prepared: PreparedData, job: Job) -> None:
    """Put the prepared data where the job's own command will find it."""
    source = Path(prepared.folder.uri)
    shutil.copytree(source, Path(Run(job).folder.uri) / source.name)


class Command:
    """`orchestrator train` on the prepared data, in a session of processes of its own."""

    def __init__(self, job: Job, environment: dict[str, str]) -> None:
        self.run = Run(job)
        self.folder = self.run.train_folder(job)
        path = Path(self.run.folder.uri).parent / "job.yaml"
        content = json.loads(job.model_dump_json(exclude_none=True))
        path.write_text(yaml.safe_dump(content))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "orchestrator", "train", str(path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
            start_new_session=True,
        )

    def wait_for_checkpoint(self, step: int, seconds: float = 120) -> None:
        checkpoints = Checkpoints(self.folder / "checkpoints", Metric("loss", "min"))
        deadline = time.monotonic() + seconds
        while not any(found.step >= step for found in checkpoints.all()):
            assert self.process.poll() is None, self.process.communicate()[0]
            assert time.monotonic() < deadline, f"no checkpoint of step {step}"
            time.sleep(0.1)

    def wait_for_event(self, kind: str, seconds: float = 120, count: int = 1) -> dict[str, Any]:
        deadline = time.monotonic() + seconds
        while len(self.events(kind)) < count:
            assert self.process.poll() is None, self.process.communicate()[0]
            assert time.monotonic() < deadline, f"no {kind} within {seconds:g} s"
            time.sleep(0.1)
        return self.events(kind)[count - 1]

    def end(self, seconds: float = 200, code: int = 0) -> str:
        """Its exit, with this code; returns what it printed."""
        said = self.process.communicate(timeout=seconds)[0]
        assert self.process.returncode == code, said
        return said

    def events(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in read_events(self.run.folder) if event["event"] == kind]

    def assert_nothing_left(self, seconds: float = 15, but: tuple[str, ...] = ()) -> None:
        """No process of its session, but for some that take their time."""
        deadline = time.monotonic() + seconds
        while left := [p for p in processes_of(self.process.pid) if p.name() not in but]:
            assert time.monotonic() < deadline, left
            time.sleep(0.2)


@pytest.fixture
def job(prepared: PreparedData, tmp_path: Path) -> Job:
    found = make_job(prepared, tmp_path)
    take_prepared(prepared, found)
    return found


@pytest.fixture
def commands() -> Iterator[list[Command]]:
    started: list[Command] = []
    yield started
    for command in started:
        end_session(command.process.pid)
        command.process.wait()


ACTORS = ("RayTrainWorker", "TrainController", "SynchronizationActor", "PlacementGroupCleaner")
ACTORS += ("PreemptionWatcher", "Supervisor")


def assert_clean(folder: Folder, seconds: float = 30, dashboard: str | None = None) -> None:
    """No actor, placement group or half-written checkpoint of a training is left."""
    deadline = time.monotonic() + seconds
    while left := left_over(folder, dashboard):
        assert time.monotonic() < deadline, left
        time.sleep(0.5)


def left_over(folder: Folder, dashboard: str | None) -> list[str]:
    left = [
        f"{actor.class_name} in process {actor.pid}"
        for actor in list_actors(dashboard, limit=10_000)
        if actor.state != "DEAD" and actor.class_name.rsplit(".", 1)[-1] in ACTORS
    ]
    groups = list_placement_groups(dashboard, limit=10_000)
    left += [f"group {g.placement_group_id}" for g in groups if g.state != "REMOVED"]
    names = (folder / "checkpoints").names()
    left += [name for name in names if name.endswith(".tmp")]
    steps = [folder / "checkpoints" / name for name in names if name.startswith("step-")]
    left += [str(step) for step in steps if not step.exists(MANIFEST)]
    return left


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

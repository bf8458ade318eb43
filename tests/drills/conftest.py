"""Fixtures of all drills: a cluster, prepared data, and undisturbed trainings to compare with.

A failing drill prints its seed; DRILL_SEED=7 repeats the random moments of that session.
"""

import os
import random
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.job.job import Job
from orchestrator.run import Run
from orchestrator.storage.artifact import PreparedData
from orchestrator.train import stage as train_module
from orchestrator.train.follower import Follower
from tests.drills.s3 import Storage, storage
from tests.drills.trainings import Command, Drill, Ending, assert_clean, ending, make_job
from tests.integration.conftest import connected, prepared
from tests.ray_head import Head, end_session, ray_head

__all__ = ["connected", "prepared"]

SEED = int(os.environ.get("DRILL_SEED", random.randrange(10_000)))

Begin = Callable[..., Drill]
Make = Callable[..., Job]
Undisturbed = Callable[..., Ending]


@pytest.fixture
def chance(request: pytest.FixtureRequest) -> random.Random:
    """Draws the moments of a drill. They do not depend on the drills that run before."""
    print(f"DRILL_SEED={SEED}")
    return random.Random(f"{SEED} {request.node.name}")


@pytest.fixture(scope="session")
def s3() -> Iterator[Storage]:
    with storage() as server:
        os.environ.update(server.environment)
        yield server


@pytest.fixture(scope="session")
def head(s3: Storage) -> Iterator[Head]:
    """A head whose workers have the settings of the S3 storage too."""
    with ray_head(cpus=4) as started:
        yield started


@pytest.fixture
def begin(
    head: Head, prepared: PreparedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Begin]:
    """Begins trainings, and proves afterwards that nothing of them stayed."""
    followers: list[Follower] = []
    drills: list[Drill] = []

    def recorded(*arguments: Any) -> Follower:
        followers.append(Follower(*arguments))
        return followers[-1]

    def begin(**changes: Any) -> Drill:
        drills.append(Drill(make_job(prepared, tmp_path, **changes), prepared, followers))
        return drills[-1]

    monkeypatch.setattr(train_module, "Follower", recorded)
    yield begin
    for drill in drills:
        drill.join()
        assert_clean(head, drill.folder)


@pytest.fixture(scope="session")
def undisturbed(prepared: PreparedData, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    """The ending of an undisturbed training with these changes, which runs once for each."""
    known: dict[str, Ending] = {}

    def made(**changes: Any) -> Ending:
        key = repr(sorted(changes.items()))
        if key not in known:
            job = make_job(prepared, tmp_path_factory.mktemp("undisturbed"), **changes)
            started = time.monotonic()
            drill = Drill(job, prepared, [])
            drill.end()
            print(f"\nundisturbed {key}: {time.monotonic() - started:.1f} s")
            known[key] = ending(drill.folder)
        return known[key]

    return made


@pytest.fixture
def make(prepared: PreparedData, tmp_path: Path) -> Make:
    """Makes jobs whose prepared data is where their command looks for it."""

    def make(**changes: object) -> Job:
        job = make_job(prepared, tmp_path, **changes)
        source = Path(prepared.folder.uri)
        shutil.copytree(source, Path(Run(job).folder.uri) / source.name)
        return job

    return make


@pytest.fixture
def job(make: Make) -> Job:
    return make()


@pytest.fixture
def commands() -> Iterator[list[Command]]:
    """The commands that a drill starts. They are ended even if the drill fails."""
    started: list[Command] = []
    yield started
    for command in started:
        end_session(command.process.pid)
        command.process.wait()

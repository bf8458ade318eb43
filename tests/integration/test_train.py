"""Training on Ray Train: killed workers, errors that are not retried, and identical weights."""

import contextlib
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from ray.util.state import list_actors

from orchestrator.errors import StageError
from orchestrator.job.job import Job
from orchestrator.job.sections import TrainConfig
from orchestrator.learn.batches import Batches
from orchestrator.learn.checkpoints import step_name
from orchestrator.learn.world import World
from orchestrator.run import Run
from orchestrator.storage.artifact import Checkpoint, PreparedData, Training
from orchestrator.storage.events import EventLog, read_events
from orchestrator.storage.folder import Folder
from orchestrator.train import preload
from orchestrator.train.stage import train
from tests.drills.tasks import POISON
from tests.integration.conftest import Silent, tiny_job
from tests.ray_head import Head

pytestmark = pytest.mark.usefixtures("connected")
# Micro-batches of one row make slow steps, so a fault happens in the middle of the training.
SETTINGS = {"train__steps": 60, "train__eval_every": 5, "cluster__workers": 2}
# The precision is fixed: the faster one may differ between runs, and with it the bits.
SETTINGS |= {"train__micro_batch_size": 1, "train__precision": "fp32"}


def run_train(prepared: PreparedData, folder: Path, **changes: Any) -> Training:
    job = Job.model_validate(tiny_job(folder, **SETTINGS | changes))
    run = Run(job)
    return train(job, prepared, run.folder / "train", EventLog(run.folder), Silent())


def ending(training: Training) -> tuple[dict[str, str], str]:
    """Hashes of the last weights and of the optimizer, and the digest of the sample order."""
    last = Checkpoint.load(training.folder / "checkpoints" / step_name(training.steps))
    assert last is not None
    return last.files, last.samples


def events(folder: Path, kind: str) -> list[dict[str, Any]]:
    story = read_events(Folder(str(folder / "runs" / "tiny")))
    return [event for event in story if event["event"] == kind]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, prepared: PreparedData) -> Training:
    return run_train(prepared, tmp_path_factory.mktemp("undisturbed"))


def test_the_model_learns_and_the_best_checkpoint_is_kept(undisturbed: Training) -> None:
    losses = [point["validation"] for point in undisturbed.history if "validation" in point]
    assert losses[-1] < losses[0] - 0.3
    assert undisturbed.metrics["loss"] == min(losses)
    assert undisturbed.steps == 60


def test_a_killed_worker_does_not_change_a_bit_of_the_result(
    tmp_path: Path, prepared: PreparedData, undisturbed: Training, head: Head
) -> None:
    folder = tmp_path / "runs" / "tiny" / "train" / "checkpoints"
    killed: list[int] = []

    def kill_after_the_first_checkpoint() -> None:  # the one of the start does not count
        while not list(folder.glob("step-*[1-9]*/manifest.json")):
            time.sleep(0.01)
        killed.append(worker_process(head))
        os.kill(killed[0], signal.SIGKILL)

    killer = threading.Thread(target=kill_after_the_first_checkpoint)
    killer.start()
    training = run_train(prepared, tmp_path)
    killer.join()
    assert killed
    assert ending(training) == ending(undisturbed)
    assert len(events(tmp_path, "worker lost")) == len(events(tmp_path, "resumed")) == 1


def test_a_step_with_a_nan_loss_is_skipped(tmp_path: Path, prepared: PreparedData) -> None:
    config = TrainConfig(global_batch_size=8)
    batches = Batches(prepared, config, World())
    data = tmp_path / "data"
    data.mkdir()
    np.save(data / POISON, batches.train.read(batches.rows(20)[:1])["tokens"])
    changes = {"task": "tests.drills.tasks:Poisoned", "data__source": str(data)}
    training = run_train(prepared, tmp_path, **changes)
    assert training.steps == 60
    (skipped,) = events(tmp_path, "step skipped")
    assert skipped["step"] > 20 and skipped["skipped"] == 1


def test_a_second_training_in_spare_processes_ends_in_the_same_bits(
    tmp_path: Path, prepared: PreparedData, undisturbed: Training, head: Head
) -> None:
    """Ray takes such a process only where what it was started with is the same to the byte."""
    preload.start_for_workers(2)
    deadline = time.monotonic() + 60
    while len(ready := standing_by()) < 2:
        assert time.monotonic() < deadline, ready
        time.sleep(0.2)
    before = {actor.pid for actor in list_actors(head.dashboard, limit=10_000)}
    assert ending(run_train(prepared, tmp_path)) == ending(undisturbed)
    since = [a for a in list_actors(head.dashboard, limit=10_000) if a.pid not in before]
    workers = {actor.pid for actor in since if actor.class_name.endswith("RayTrainWorker")}
    assert len(workers) == 2 and workers <= ready


def standing_by() -> set[int]:
    """The spare processes, which wait for the actor of a worker."""
    processes = set()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if "ray::IDLE" in process.cmdline()[:1] and preload.HOOK in process.environ():
                processes.add(process.pid)
    return processes


def test_a_diverged_training_is_reported_once_and_not_retried(
    tmp_path: Path, prepared: PreparedData
) -> None:
    started = time.monotonic()
    with pytest.raises(StageError, match=r"diverged.*train\.lr"):
        run_train(prepared, tmp_path, train__lr=1e30, train__warmup_steps=0, train__grad_clip=1e30)
    assert time.monotonic() - started < 60


def test_the_precision_is_measured_kept_and_reported(
    tmp_path: Path, prepared: PreparedData
) -> None:
    training = run_train(prepared, tmp_path, train__precision="auto", train__steps=5)
    (event,) = events(tmp_path, "precision")
    assert event["precision"] == training.precision == training.checkpoint().precision
    (notice,) = training.notices
    assert notice.startswith(f"precision: {training.precision}: ")


def worker_process(head: Head) -> int:
    """The process of one of the two workers."""
    alive = list_actors(head.dashboard, filters=[("state", "=", "ALIVE")], limit=200)
    workers = [actor.pid for actor in alive if actor.class_name.endswith("RayTrainWorker")]
    assert len(workers) == 2
    return max(workers)


def test_a_storage_that_refuses_checkpoints_is_named(
    tmp_path: Path, prepared: PreparedData
) -> None:
    folder = tmp_path / "runs" / "tiny" / "train"
    folder.mkdir(parents=True)
    (folder / "checkpoints").write_text("a file where a folder should be")
    with pytest.raises(StageError, match=r"cannot write .*checkpoints"):
        run_train(prepared, tmp_path, cluster__max_failures=0)

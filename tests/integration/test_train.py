"""Training on Ray Train: workers that die, errors that no retry mends, and the same weights."""

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import ray

from orchestrator.artifact import PreparedData, Training
from orchestrator.checkpoint import MODEL_FILE
from orchestrator.errors import StageError
from orchestrator.events import EventLog
from orchestrator.job import Job
from orchestrator.prepare import prepare
from orchestrator.run import Run
from orchestrator.train import train
from tests.integration.conftest import Silent, tiny_job, write_texts

pytestmark = pytest.mark.usefixtures("connected")
SETTINGS = {"train__steps": 60, "train__eval_every": 5, "cluster__workers": 2}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, connected: Any) -> PreparedData:
    folder = tmp_path_factory.mktemp("data")
    write_texts(folder / "data")
    job = Job.model_validate(tiny_job(folder))
    run = Run(job)
    return prepare(job, run.files, run.prepare_folder(), Silent())


def run_train(prepared: PreparedData, folder: Path, **changes: Any) -> Training:
    job = Job.model_validate(tiny_job(folder, **SETTINGS | changes))
    run = Run(job)
    return train(job, prepared, run.folder / "train", EventLog(run.folder), Silent())


def weights(training: Training) -> str:
    return training.checkpoint().files[MODEL_FILE]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, prepared: PreparedData) -> Training:
    return run_train(prepared, tmp_path_factory.mktemp("undisturbed"))


def test_the_model_learns_and_the_best_checkpoint_is_kept(undisturbed: Training) -> None:
    losses = [point["validation"] for point in undisturbed.history if "validation" in point]
    assert losses[-1] < losses[0] - 0.3
    assert undisturbed.metrics["loss"] == min(losses)
    assert undisturbed.steps == 60


def test_a_killed_worker_costs_no_bit_of_the_result(
    tmp_path: Path, prepared: PreparedData, undisturbed: Training
) -> None:
    folder = tmp_path / "runs" / "tiny" / "train" / "checkpoints"
    killed: list[int] = []

    def kill_after_the_first_checkpoint() -> None:
        while not list(folder.glob("step-*/manifest.json")):
            time.sleep(0.01)
        killed.append(worker_process(rank=1))
        os.kill(killed[0], signal.SIGKILL)

    killer = threading.Thread(target=kill_after_the_first_checkpoint)
    killer.start()
    # Slower steps, so that the kill comes in the midst of the training.
    training = run_train(prepared, tmp_path, train__micro_batch_size=1)
    killer.join()
    assert killed
    assert training.steps == 60
    reference = run_train(prepared, tmp_path / "reference", train__micro_batch_size=1)
    assert weights(training) == weights(reference)


def test_a_finished_training_is_bit_identical_to_another(
    tmp_path: Path, prepared: PreparedData, undisturbed: Training
) -> None:
    assert weights(run_train(prepared, tmp_path)) == weights(undisturbed)


def test_a_diverged_training_is_told_once_and_not_retried(
    tmp_path: Path, prepared: PreparedData
) -> None:
    started = time.monotonic()
    with pytest.raises(StageError, match=r"diverged.*train\.lr"):
        run_train(prepared, tmp_path, train__lr=1e30, train__warmup_steps=0, train__grad_clip=1e30)
    assert time.monotonic() - started < 60


def worker_process(rank: int) -> int:
    """The process of a Ray Train worker, found by its name among this session's actors."""
    from ray.util.state import list_actors

    workers = [
        actor
        for actor in list_actors(filters=[("state", "=", "ALIVE")], limit=200)
        if "RayTrainWorker" in actor.class_name
    ]
    assert len(workers) == 2, [actor.class_name for actor in workers]
    assert ray.is_initialized()
    return int(sorted(workers, key=lambda actor: actor.pid)[rank].pid)


def test_a_storage_that_takes_no_checkpoint_is_named(
    tmp_path: Path, prepared: PreparedData
) -> None:
    """Only the first worker writes: the second must not wait for it for ever."""
    folder = tmp_path / "runs" / "tiny" / "train"
    folder.mkdir(parents=True)
    (folder / "checkpoints").write_text("a file where a folder should be")
    with pytest.raises(StageError, match=r"cannot write .*checkpoints"):
        run_train(prepared, tmp_path, cluster__max_failures=0)

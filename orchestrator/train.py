"""Training on Ray Train: a group of workers around `fit()`, and what is done where one fails.

The checkpoints are ours, not Ray's: they go to storage with their manifest last, and a worker group
that Ray restarts, on whatever cause, continues from the newest one.
"""

import contextlib
import os
import time
import uuid
from dataclasses import dataclass
from typing import Any

import ray
import ray.train
from ray.train.backend import Backend, BackendConfig
from ray.train.v2.api.config import FailureConfig, RunConfig, ScalingConfig
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from orchestrator import spares
from orchestrator.artifact import ATTEMPT, PreparedData, Training
from orchestrator.cluster import raised_by_user_code
from orchestrator.errors import StageError, last_line
from orchestrator.events import EventLog
from orchestrator.feed import Feed
from orchestrator.folder import Folder
from orchestrator.job import Job
from orchestrator.progress import Progress

RESIZE_SECONDS = 10.0  # between looks whether an elastic group could have another size
LONGEST_CAUSE = 300  # characters


def train(
    job: Job, prepared: PreparedData, folder: Folder, events: EventLog, progress: Progress
) -> Training:
    """Train on the job's workers into `folder`, continuing what lies there.

    Raises:
        OrchestratorError: of a worker, as it raised it.
        StageError: where workers were lost `cluster.max_failures` times without any progress.
    """
    started = time.monotonic()
    progress.start("starting workers", total=None, unit="")
    feed = Feed(job, folder, events, progress)
    try:
        _until_it_ends(job, prepared, folder, feed)
    finally:
        feed.close()
        progress.finish()
        with contextlib.suppress(OSError):  # storage that refuses has been told of
            (folder / "ray").delete()
    from orchestrator.checkpoint import Checkpoints  # with torch, for which no start has to wait

    checkpoints = Checkpoints(folder / "checkpoints", job.build_task().metric)
    best = checkpoints.best()
    newest = checkpoints.all()[-1:]
    if best is None or not newest:
        raise StageError(f"training ended without a checkpoint in {checkpoints.folder}")
    metric = checkpoints.metric.name
    return Training(
        folder=folder,
        seconds=time.monotonic() - started,
        summary=f"{newest[0].step:,} steps, validation {metric} {best.metrics[metric]:.3f}",
        best_checkpoint=f"checkpoints/{best.folder.name}",
        steps=newest[0].step,
        metrics=best.metrics,
        history=newest[0].history,
    ).commit()


def _until_it_ends(job: Job, prepared: PreparedData, folder: Folder, feed: Feed) -> None:
    """Ray Train starts workers again where they fail; this starts Ray Train again where it does."""
    while True:
        attempt = uuid.uuid4().hex
        (folder / "checkpoints").write(ATTEMPT, attempt.encode())  # only it may write there now
        trainer = _trainer(job, prepared, folder, feed, attempt)
        try:
            feed.run(trainer.fit)
            return
        except (ray.train.TrainingFailedError, ray.exceptions.RayError) as error:
            if (raised := raised_by_user_code(error)) is not None:
                raise raised from error
            reason = last_line(str(error))
            if not feed.may_start_again(reason):
                raise StageError(
                    f"Ray Train failed: {reason}; what is saved stays, run it again"
                ) from error


def _trainer(
    job: Job, prepared: PreparedData, folder: Folder, feed: Feed, attempt: str
) -> DataParallelTrainer:
    settings: dict[str, Any] = {
        "job": job,
        "prepared": prepared.folder.uri,
        "folder": folder.uri,
        "made_by": made_by(job, prepared),
        "supervisor": feed.supervisor,
        "attempt": attempt,
    }
    return DataParallelTrainer(
        _work,
        train_loop_config=settings,
        backend_config=Rendezvous(),
        scaling_config=scaling(job),
        run_config=RunConfig(  # type: ignore[arg-type]  # of Ray Train V2, as all here
            name=f"{job.name}-{attempt}",  # Ray resumes whatever has the same name
            **(folder / "ray").for_ray(),
            # How often is the supervisor's to decide, which knows of progress.
            failure_config=FailureConfig(max_failures=-1),
            callbacks=[_Watch(feed.supervisor)],
            worker_runtime_env={"env_vars": spares.ENVIRONMENT},
        ),
    )


def made_by(job: Job, prepared: PreparedData) -> dict[str, Any]:
    """What the weights of a training depend on, besides the number of steps."""
    whole = job.model_dump(mode="json")
    model = {f"model.{key}": value for key, value in whole["model"].items()}
    kept = {f"train.{key}": whole["train"][key] for key in ("seed", "optimizer", "deterministic")}
    return {**model, **kept, "data": prepared.folder.name}


def scaling(job: Job) -> ScalingConfig:
    """The workers of a job in Ray's words."""
    resources = {"CPU": float(job.cluster.cpus_per_worker)}
    if job.cluster.gpus_per_worker:
        resources["GPU"] = job.cluster.gpus_per_worker
    fewest, most = job.cluster.fewest_workers, job.cluster.most_workers
    return ScalingConfig(
        num_workers=most if fewest == most else (fewest, most),
        use_gpu=job.cluster.gpus_per_worker > 0,
        resources_per_worker=resources,
        elastic_resize_monitor_interval_s=RESIZE_SECONDS,
    )


def _work(settings: dict[str, Any]) -> None:
    from orchestrator.worker import work  # torch is imported by the workers alone

    work(settings)


@dataclass
class Rendezvous(BackendConfig):
    """Tells the workers where to meet. Unlike Ray's TorchConfig it needs no torch to do so."""

    @property
    def backend_cls(self) -> type[Backend]:
        return _Rendezvous


class _Rendezvous(Backend):
    share_cuda_visible_devices = True  # so that workers of one machine see each other's GPU

    def on_start(self, worker_group: Any, backend_config: BackendConfig) -> None:
        from ray.train._internal.utils import get_address_and_port

        address, port = worker_group.execute_single(0, get_address_and_port)
        worker_group.execute(_meet_at, address, port)


def _meet_at(address: str, port: int) -> None:
    os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = address, str(port)


class _Watch(ray.train.UserCallback):
    """Lives in Ray Train's controller and tells the supervisor which workers failed."""

    def __init__(self, supervisor: Any) -> None:
        self.supervisor = supervisor

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        errors = {
            rank: getattr(error, "health_check_failure", error)  # of a process that died
            for rank, error in worker_exceptions.items()
        }
        causes = {rank: _cause(error) for rank, error in errors.items()}
        preempted = any(getattr(error, "preempted", False) for error in errors.values())
        ray.get(self.supervisor.lost.remote(causes, preempted))


def _cause(error: Exception) -> str:
    """Its last line, without the guesses that are appended to it."""
    line = last_line(str(error))
    for guesses in (" Some common causes include", " This is typically caused"):
        line = line.split(guesses)[0]
    return f"{type(error).__name__}: {line}"[:LONGEST_CAUSE]

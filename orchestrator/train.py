"""Training on Ray Train: a group of workers around `fit()`, and what is done where one fails.

The checkpoints are ours, not Ray's: they go to storage with their manifest last, and a worker group
that Ray restarts, on whatever cause, continues from the newest one.
"""

import contextlib
import time
import uuid
from typing import Any

import ray
import ray.train
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2.api.callback import RayTrainCallback
from ray.train.v2.api.config import FailureConfig, RunConfig, ScalingConfig
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from orchestrator import spares
from orchestrator.artifact import ATTEMPT, PreparedData, Training
from orchestrator.cluster import raised_by_user_code
from orchestrator.errors import StageError, last_line
from orchestrator.events import EventLog
from orchestrator.feed import Feed
from orchestrator.folder import Folder
from orchestrator.group import Places, Rendezvous, Watch, work
from orchestrator.job import Job
from orchestrator.progress import Progress

RESIZE_SECONDS = 10.0  # between looks whether an elastic group could have another size


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
    return _Trainer(
        work,
        train_loop_config=settings,
        backend_config=Rendezvous(),
        scaling_config=scaling(job),
        run_config=RunConfig(  # type: ignore[arg-type]  # of Ray Train V2, as all here
            name=f"{job.name}-{attempt}",  # Ray resumes whatever has the same name
            **(folder / "ray").for_ray(),
            # How often is the supervisor's to decide, which knows of progress.
            failure_config=FailureConfig(max_failures=-1),
            callbacks=[Watch(feed.supervisor), Places(feed.supervisor)],  # type: ignore[list-item]
            worker_runtime_env={"env_vars": spares.ENVIRONMENT},
        ),
    )


class _Trainer(DataParallelTrainer):
    """Ray's, without the processes that it starts for what this training does otherwise.

    Each takes two seconds of a core, and together they would start while the workers do: one for
    Ray Data's shards, and one to free the workers' places after a controller was lost.
    """

    def _create_default_callbacks(self) -> list[RayTrainCallback]:
        unused = (DatasetsCallback, PlacementGroupCleanerCallback)
        created = super()._create_default_callbacks()
        return [callback for callback in created if not isinstance(callback, unused)]


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

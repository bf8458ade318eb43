"""Training on Ray Train: a group of workers around `fit()`.

The checkpoints are ours, not Ray's: they go to storage with their manifest last, and a worker group
that Ray restarts, on whatever cause, continues from the newest one.
"""

import time
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch

from orchestrator.artifact import Folder, PreparedData, Training
from orchestrator.checkpoint import Checkpoints
from orchestrator.cluster import raised_by_user_code
from orchestrator.errors import DivergedError, OrchestratorError, StageError, last_line
from orchestrator.feed import Feed, MailboxReporter
from orchestrator.fit import World, fit
from orchestrator.job import Job
from orchestrator.progress import Progress


def train(job: Job, prepared: PreparedData, folder: Folder, progress: Progress) -> Training:
    """Train on the job's workers into `folder`, continuing what lies there.

    Raises:
        OrchestratorError: of a worker, as it raised it.
        StageError: where the workers were lost more than `cluster.max_failures` times.
    """
    started = time.monotonic()
    checkpoints = Checkpoints(folder / "checkpoints", job.build_task().metric)
    progress.start("starting workers", total=None, unit="")
    feed = Feed(folder, progress)
    settings: dict[str, Any] = {"job": job, "prepared": prepared.folder.uri, "folder": folder.uri}
    settings["mailbox"] = feed.mailbox
    # Ray resumes whatever has the same name, so that every start gets a new one.
    ray_folder = folder / "ray"
    trainer = ray.train.torch.TorchTrainer(
        _train_in_worker,
        train_loop_config=settings,
        scaling_config=scaling(job),
        run_config=ray.train.RunConfig(
            name=f"{job.name}-{time.time_ns()}",
            **ray_folder.for_ray(),
            failure_config=ray.train.FailureConfig(max_failures=job.cluster.max_failures),
        ),
    )
    try:
        feed.run(trainer.fit)
    except ray.train.TrainingFailedError as error:
        if not feed.failures:
            raise raised_by_user_code(error) or StageError(
                f"training lost its workers: {last_line(str(error))}; "
                f"what is saved stays, run it again"
            ) from error
    finally:
        progress.finish()
        ray_folder.delete()
    if feed.failures:
        raise feed.failures[0]
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


def scaling(job: Job) -> ray.train.ScalingConfig:
    """The workers of a job in Ray's words."""
    resources = {"CPU": float(job.cluster.cpus_per_worker)}
    if job.cluster.gpus_per_worker:
        resources["GPU"] = job.cluster.gpus_per_worker
    return ray.train.ScalingConfig(
        num_workers=job.cluster.workers,
        use_gpu=job.cluster.gpus_per_worker > 0,
        resources_per_worker=resources,
    )


def _train_in_worker(settings: dict[str, Any]) -> None:
    """One worker. That a training diverged is told, not raised: no retry would mend it."""
    job: Job = settings["job"]
    context = ray.train.get_context()
    rank = context.get_world_rank()
    torch.set_num_threads(job.cluster.cpus_per_worker)
    world = World(rank, context.get_world_size(), ray.train.torch.get_device())
    prepared = PreparedData.load(Folder(settings["prepared"]))
    if prepared is None:
        raise StageError(
            f"{settings['prepared']}: the prepared data is gone, or on no shared storage"
        )
    task = job.build_task()
    checkpoints = Checkpoints(Folder(settings["folder"]) / "checkpoints", task.metric)
    try:
        fit(task, prepared, job.train, world, MailboxReporter(settings["mailbox"]), checkpoints)
    except DivergedError as error:
        ray.get(settings["mailbox"].put.remote(error))
    except OrchestratorError as error:
        ray.get(settings["mailbox"].put.remote(error))
        raise  # the others wait for this worker: Ray has to end them

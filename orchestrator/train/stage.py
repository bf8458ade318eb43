"""Training on Ray Train: a group of workers around `fit()`, and what is done where one fails.

The checkpoints are ours, not Ray's: they go to storage with their manifest last, and a worker group
that Ray restarts, on whatever cause, continues from the newest one.
"""

import contextlib
import gc
import time
import uuid
from typing import Any

import ray

from orchestrator.cluster.connection import here, raised_by_user_code
from orchestrator.errors import StageError, last_line
from orchestrator.job.job import Job
from orchestrator.progress import Progress
from orchestrator.storage.artifact import ATTEMPT, PreparedData, Training
from orchestrator.storage.events import EventLog
from orchestrator.storage.folder import Folder
from orchestrator.train import spares
from orchestrator.train.follower import Feed
from orchestrator.train.supervisor import Supervisor

TRAINING = "training"  # the thread of the actor that Ray Train runs in


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
        train_group(job, prepared, folder, feed)
    finally:
        feed.close()
        progress.finish()
        with contextlib.suppress(OSError):  # storage that refuses has been told of
            (folder / "ray").delete()
    # These import torch, for which no start of a training has to wait.
    from orchestrator.learn.checkpoints import Checkpoints
    from orchestrator.learn.fit import begun_with

    task = job.build_task()
    checkpoints = Checkpoints(folder / "checkpoints", task.metric)
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
        precision=newest[0].precision,
        notices=[*newest[0].notices, *begun_with(task, prepared), *_profiles(folder)],
    ).commit()


def _profiles(folder: Folder) -> list[str]:
    """Where the tables of recorded steps are, a line each."""
    profiles = folder / "profile"
    tables = [name for name in profiles.names() if name.endswith(".txt")]
    return [f"profiled: {profiles}/{name} lists the slowest operators" for name in tables]


def train_group(job: Job, prepared: PreparedData, folder: Folder, feed: Feed) -> None:
    """Have the job's workers train into `folder`, and pass on to `feed` what happens there.

    Ray Train starts workers again where they fail; this starts Ray Train again where it does.

    Raises: see `train`.
    """
    while True:
        attempt = uuid.uuid4().hex
        (folder / "checkpoints").write(ATTEMPT, attempt.encode())  # only it may write there now
        settings: dict[str, Any] = {
            "job": job,
            "prepared": prepared.folder.uri,
            "folder": folder.uri,
            "made_by": made_by(job, prepared),
            "attempt": attempt,
        }
        actor: dict[str, Any] = {
            "num_cpus": 0,
            "concurrency_groups": {TRAINING: 1},  # a thread of its own, beside the supervisor's
            "scheduling_strategy": here(),
            "runtime_env": {"env_vars": spares.passed_on()},
        }
        sizes = job.cluster
        controller: Any = ray.remote(**actor)(TrainController).remote(
            sizes.max_failures, sizes.hang_seconds
        )
        try:
            training = controller.run.options(concurrency_group=TRAINING).remote(settings)
            feed.follow(controller, training)
            return
        except ray.exceptions.RayError as error:
            if (raised := raised_by_user_code(error)) is not None:
                raise raised from error
            reason = last_line(str(error))
            if not feed.may_start_again(reason):
                raise StageError(
                    f"Ray Train failed: {reason}; what is saved stays, run it again"
                ) from error
        finally:
            ray.kill(controller)


class TrainController(Supervisor):
    """The actor in whose process Ray Train runs, whose import takes seconds, beside the workers'.

    It is their supervisor, too: a process of its own would take a core as long as they start.
    """

    def run(self, settings: dict[str, Any]) -> None:
        gc.set_threshold(50_000)  # of 700: imports leave nothing to collect
        from orchestrator.train import worker_group

        myself = ray.get_runtime_context().current_actor
        worker_group.train({**settings, "supervisor": myself})


def made_by(job: Job, prepared: PreparedData) -> dict[str, Any]:
    """What the weights of a training depend on, besides the number of steps."""
    whole = job.model_dump(mode="json")
    model = {f"model.{key}": value for key, value in whole["model"].items()}
    kept = {f"train.{key}": whole["train"][key] for key in ("seed", "optimizer", "deterministic")}
    return {**model, **kept, "data": prepared.folder.name}

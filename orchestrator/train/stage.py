"""The train stage: a group of workers on Ray Train, each of which runs `fit()`.

Checkpoints do not go through Ray: `learn/checkpoints.py` writes them to storage, with their
manifest last. A worker group that Ray restarts, for any reason, continues from the newest one.
"""

import contextlib
import gc
import os
import time
import uuid
from typing import Any

import ray
from ray._private.runtime_env.constants import RAY_JOB_CONFIG_JSON_ENV_VAR

from orchestrator.cluster.connection import here, raised_by_user_code
from orchestrator.cluster.waiting import waits_shown
from orchestrator.errors import StageError, TryAgainError, last_line
from orchestrator.job.job import Job
from orchestrator.job.needs import worker_resources
from orchestrator.progress import Progress
from orchestrator.storage.artifact import ATTEMPT, PreparedData, Training
from orchestrator.storage.events import EventLog
from orchestrator.storage.files import once
from orchestrator.storage.folder import Folder
from orchestrator.storage.submitted import lasting_name
from orchestrator.train import preload
from orchestrator.train.follower import STOP_SECONDS, Follower
from orchestrator.train.supervisor import Supervisor

TRAINING = "training"  # Ray Train's thread in the actor


def train(
    job: Job, prepared: PreparedData, folder: Folder, events: EventLog, progress: Progress
) -> Training:
    """Train on the job's workers into `folder`, continuing what lies there.

    Raises:
        OrchestratorError: that a worker raised.
        StageError: where workers were lost `cluster.max_failures` times without a new checkpoint.
    """
    started = time.monotonic()
    if (note := _note_on_stopping()) is not None:
        progress.note(note)
    progress.start("starting workers", total=None, unit="")
    follower = Follower(job, folder, events, progress)
    try:
        with waits_shown(progress, worker_resources(job), follower.lacking):
            train_group(job, prepared, folder, follower)
    finally:
        follower.close()
        progress.finish()
        with contextlib.suppress(OSError), once():  # the training has reported storage that fails
            (folder / "ray").delete()
    # Imported late: these import torch, which takes seconds, and workers need none of it here.
    from orchestrator.learn.checkpoints import Checkpoints

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
        notices=[*newest[0].notices, *_profiles(folder)],
    ).commit()


def _note_on_stopping() -> str | None:
    """What the user of a submitted Ray job should know of `ray job stop`."""
    allowed = os.environ.get("RAY_JOB_STOP_WAIT_TIME_S", "3")  # Ray's default
    if RAY_JOB_CONFIG_JSON_ENV_VAR not in os.environ or float(allowed) >= STOP_SECONDS:
        return None
    return (
        f"`ray job stop` kills this job after {allowed} s, maybe without a last checkpoint: submit "
        f"it with RAY_JOB_STOP_WAIT_TIME_S=30 among the env_vars of its --runtime-env-json"
    )


def _profiles(folder: Folder) -> list[str]:
    """Where the tables of recorded steps are, a line each."""
    profiles = folder / "profile"
    tables = [name for name in profiles.names() if name.endswith(".txt")]
    return [f"profiled: {profiles}/{name} lists the slowest operators" for name in tables]


def train_group(job: Job, prepared: PreparedData, folder: Folder, follower: Follower) -> None:
    """Have the job's workers train into `folder`, and `follower` pass on their messages.

    Ray Train restarts workers that fail. This function restarts Ray Train where it fails itself.

    Raises: see `train`.
    """
    while True:
        attempt = uuid.uuid4().hex
        # From now on only this attempt may write checkpoints.
        (folder / "checkpoints").write(ATTEMPT, attempt.encode())
        settings: dict[str, Any] = {
            "job": job,
            "prepared": prepared.folder.uri,
            "folder": folder.uri,
            "made_by": made_by(job, prepared),
            "attempt": attempt,
        }
        actor: dict[str, Any] = {
            "num_cpus": 0,
            "concurrency_groups": {TRAINING: 1},  # one more thread, beside the supervisor's
            "scheduling_strategy": here(),
            "runtime_env": {"env_vars": preload.passed_on()},
        }
        sizes = job.cluster
        controller: Any = ray.remote(**actor)(TrainController).remote(
            sizes.max_failures, sizes.hang_seconds, ray.get_runtime_context().get_node_id()
        )
        try:
            training = controller.run.options(concurrency_group=TRAINING).remote(settings)
            follower.follow(controller, training)
            return
        except ray.exceptions.RayError as error:
            if (raised := raised_by_user_code(error)) is not None:
                raise raised from error
            reason = last_line(str(error))
            if not follower.may_start_again(reason):
                raise TryAgainError(
                    f"Ray Train failed: {reason}; the checkpoints stay: run it again"
                ) from error
        finally:
            ray.kill(controller)


class TrainController(Supervisor):
    """The actor in which Ray Train runs. It imports Ray Train while the workers import torch.

    It is the workers' supervisor, too. A separate process would take a core while they start.
    """

    def run(self, settings: dict[str, Any]) -> None:
        gc.set_threshold(50_000)  # 700 by default: imports leave nothing to collect
        from orchestrator.train import worker_group

        this_actor = ray.get_runtime_context().current_actor
        worker_group.train({**settings, "supervisor": this_actor})


def made_by(job: Job, prepared: PreparedData) -> dict[str, Any]:
    """The settings on which a training's weights depend, besides the number of steps."""
    whole = job.model_dump(mode="json")
    if job.model.init_from is not None:
        whole["model"]["init_from"] = lasting_name(job.model.init_from)
    model = {f"model.{key}": value for key, value in whole["model"].items()}
    kept = {f"train.{key}": whole["train"][key] for key in ("seed", "optimizer", "deterministic")}
    return {**model, **kept, "data": prepared.folder.name}

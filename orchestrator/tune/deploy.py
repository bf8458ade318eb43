"""Deploys a sweep's best trial: its weights become the training's, without another training."""

from orchestrator.errors import StageError
from orchestrator.job.job import Job
from orchestrator.learn.checkpoints import Checkpoints
from orchestrator.storage.artifact import PreparedData, Sweep, Training
from orchestrator.storage.checkpoint_files import read_verified
from orchestrator.storage.folder import MANIFEST, Folder
from orchestrator.tune.trial import trial_folder


def take_best_trial(job: Job, prepared: PreparedData, sweep: Sweep, folder: Folder) -> Training:
    """Copy the best trial's best checkpoint into `folder`, as the result of a training.

    Raises:
        StageError: where the trial has no checkpoint.
    """
    task = job.build_task()
    metric = task.metric
    checkpoints = Checkpoints(trial_folder(sweep.folder, sweep.best_trial) / "checkpoints", metric)
    best = checkpoints.best()
    if best is None:
        raise StageError(
            f"{checkpoints.folder} has no checkpoint: delete {sweep.folder} and sweep again, or "
            f"set tune.deploy_best_trial = false"
        )
    target = folder / "checkpoints" / best.folder.name
    if not target.exists(MANIFEST):
        files = [(name, [read_verified(best, name)]) for name in best.files]
        target.write_whole([*files, (MANIFEST, [best.folder.read(MANIFEST)])])
    value = best.metrics[metric.name]
    return Training(
        folder=folder,
        seconds=0.0,
        summary=f"trial {sweep.best_trial}, {best.step:,} steps, "
        f"validation {metric.name} {value:.3f}",
        best_checkpoint=f"checkpoints/{best.folder.name}",
        steps=best.step,
        metrics=best.metrics,
        history=best.history,
        precision=best.precision,
        notices=best.notices,
    ).commit()

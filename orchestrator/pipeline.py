"""The stages in order: what is finished is taken up, what is not is run."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

from orchestrator.artifact import Artifact, Evaluation, Folder, PreparedData, Sweep, Training
from orchestrator.cluster import Cluster
from orchestrator.evaluate import evaluate
from orchestrator.job import Job, Stage
from orchestrator.prepare import prepare
from orchestrator.progress import Progress
from orchestrator.run import Run, StageStatus, stage_status
from orchestrator.sources import check_columns
from orchestrator.train import train
from orchestrator.tune import tune


class Display(Progress, Protocol):
    """Whoever watches a run."""

    def stage_started(self, stage: Stage) -> None: ...

    def stage_finished(self, status: StageStatus, already: bool) -> None: ...


@dataclass(frozen=True)
class Outcome:
    """What a run came to: the artifacts of its stages, as far as it went."""

    job: Job  # with the sweep's best values
    prepared: PreparedData
    training: Training | None = None
    evaluation: Evaluation | None = None


A = TypeVar("A", bound=Artifact)


def check_room(job: Job, cluster: Cluster) -> None:
    """Raises UserError where the job's workers or its replicas do not fit the cluster."""
    sizes = job.cluster
    cluster.check_room(
        "cluster.workers", sizes.workers, sizes.cpus_per_worker, sizes.gpus_per_worker
    )
    cluster.check_room("serve.replicas", job.serve.replicas, sizes.cpus_per_worker, 0)


def run_stages(
    run: Run, until: Stage, connected: Callable[[], Cluster], display: Display
) -> Outcome:
    """Run what is not finished, in order, up to `until` or, where that is serve, to the one before.

    `connected` gives the cluster; it is not called where nothing is left to run.

    Raises:
        OrchestratorError: of the stage that failed; what is finished stays.
    """
    job = run.job

    def finish(name: Stage, kind: type[A], folder: Folder, work: Callable[[], A]) -> A:
        found = kind.load(folder)
        if found is None:
            check_room(job, connected())
            display.stage_started(name)
        artifact = work() if found is None else found
        display.stage_finished(stage_status(name, kind, folder), already=found is not None)
        return artifact

    folder = run.prepare_folder()
    if PreparedData.load(folder) is None:
        check_columns(run.files, job.build_task().columns)
    prepared = finish(
        "prepare", PreparedData, folder, lambda: prepare(job, run.files, folder, display)
    )
    if until == "prepare":
        return Outcome(job, prepared)

    if job.tune is not None:
        sweep_folder = run.tune_folder()
        finish(
            "tune",
            Sweep,
            sweep_folder,
            lambda: tune(job, prepared, sweep_folder, connected(), display),
        )
    chosen = run.chosen_job()
    assert chosen is not None
    if until == "tune":
        return Outcome(chosen, prepared)

    train_folder = run.train_folder(chosen)
    training = finish(
        "train", Training, train_folder, lambda: train(chosen, prepared, train_folder, display)
    )
    if until == "train":
        return Outcome(chosen, prepared, training)

    evaluate_folder = run.evaluate_folder(chosen)
    evaluation = finish(
        "evaluate",
        Evaluation,
        evaluate_folder,
        lambda: evaluate(chosen, prepared, training, evaluate_folder, display),
    )
    return Outcome(chosen, prepared, training, evaluation)

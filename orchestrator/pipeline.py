"""Runs the stages in order. A finished stage is not run again; its artifact is used.

Each stage's module is imported when the stage begins: Ray's libraries and torch take seconds each.
"""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from orchestrator.cluster.connection import Cluster
from orchestrator.cluster.preflight import check_disk as require_space
from orchestrator.cluster.preflight import check_nodes
from orchestrator.cluster.room import Room
from orchestrator.data.rows import check_columns
from orchestrator.data.sources import total_bytes
from orchestrator.errors import UserError
from orchestrator.job import needs
from orchestrator.job.job import Job
from orchestrator.progress import Display, Stage
from orchestrator.run import Run, stage_status
from orchestrator.serve.engines import check_engine, check_vllm, check_weights
from orchestrator.storage.artifact import (
    FINDINGS,
    Artifact,
    Evaluation,
    PreparedData,
    Sweep,
    Training,
    has_checkpoint,
)
from orchestrator.storage.folder import Folder
from orchestrator.tasks.task import reading_of


@dataclass(frozen=True)
class Outcome:
    """The artifacts of a run's stages, as far as it went."""

    job: Job  # with the sweep's best values
    prepared: PreparedData
    training: Training | None = None
    evaluation: Evaluation | None = None


A = TypeVar("A", bound=Artifact)


def check_room(job: Job, room: Room) -> None:
    """Raises UserError if the job's workers or its replicas do not fit the cluster."""
    for key, count in _workers(job).items():
        room.check(key, count, needs.worker_resources(job))
    room.check("serve.replicas", job.serve.first_replicas, needs.replica_resources(job))


def check_memory(job: Job, room: Room) -> None:
    """Raises UserError if the nodes have too little memory for the job's workers."""
    for key, count in _workers(job).items():
        room.check_memory(key, count, needs.worker_resources(job), needs.worker_bytes(job))


def _workers(job: Job) -> dict[str, int]:
    """The fewest workers of a training, and those of a trial, by the keys that say so."""
    trial = {} if job.tune is None else {"tune.workers": job.tune.workers}
    return {"cluster.workers": job.cluster.fewest_workers, **trial}


def check_disk(run: Run) -> None:
    """Raises UserError if a local storage has no room for what the unfinished stages write."""
    prepare = run.prepare_folder()
    parts = []
    if not prepare.names():
        plain = [file for file in run.files if file.kind in needs.PLAIN_TEXT]
        parts.append(("the prepared data", needs.prepared_bytes(total_bytes(plain))))
    chosen = run.chosen_job()
    if chosen is None or not run.train_folder(chosen).names():
        parts.append(("the checkpoints", needs.checkpoint_bytes(run.job)))
    what = " and ".join(name for name, _ in parts)
    require_space(run.folder, sum(size for _, size in parts), what)


def preflight(run: Run, cluster: Cluster, display: Display) -> None:
    """Check that the cluster can run the job, before anything is spent.

    The cluster that this process has started itself is this machine, and has no other nodes.

    Raises:
        UserError: if it cannot, naming the node.
    """
    check_room(run.job, cluster.room)
    display.start("checking the nodes", total=None, unit="")
    unread = [] if PreparedData.load(run.prepare_folder()) is not None else run.files
    everything = [each.uri for file in unread for each in (file, *file.beside)]
    checked = check_nodes(cluster.room, run.folder, [uri for uri in everything if "://" not in uri])
    check_memory(run.job, checked.room)
    display.finish()
    for note in checked.notes:
        display.note(note)


def check_inputs(run: Run) -> None:
    """Check what the unfinished stages need: the serving engine, `model.init_from`, the files,
    room for their artifacts.

    Only the first rows of the files are read.

    Raises:
        UserError: if the job cannot run with them.
    """
    task = run.job.build_task()
    check_engine(task)
    check_weights(run.job)
    check_vllm(run.job)
    _check_weights(run)
    if PreparedData.load(run.prepare_folder()) is None:
        check_columns(run.files, reading_of(task))
    check_disk(run)


def _check_weights(run: Run) -> None:
    job = run.job
    if job.model.init_from is None or not _needs_weights(run):
        return
    from orchestrator.model.hf import Outputs
    from orchestrator.pretrained import model as pretrained  # with torch

    task = job.build_task()
    try:
        pretrained.check(job.model, task.build_model, Outputs.of(task, None))
    except UserError as error:
        raise UserError(f"model.init_from: {error}") from None


def _needs_weights(run: Run) -> bool:
    """Whether an unfinished stage reads `model.init_from`: its tokenizer or its weights."""
    chosen = run.chosen_job()
    if chosen is None or PreparedData.load(run.prepare_folder()) is None:
        return True
    folder = run.train_folder(chosen)
    return Training.load(folder) is None and not has_checkpoint(folder)


def _export(job: Job, prepared: PreparedData, training: Training) -> None:
    """Export the model beside its checkpoints, for the `model.init_from` of other jobs and for
    Hugging Face's libraries, if they have its architecture."""
    folder = training.exported
    if not folder.exists("README.md"):  # an export writes it last
        from orchestrator.evaluate.export import export

        with contextlib.suppress(UserError):
            export(job, prepared, training, None, folder)


def run_stages(
    run: Run, until: Stage, connected: Callable[[], Cluster], display: Display
) -> Outcome:
    """Run the unfinished stages in order, up to `until`. The command itself runs serve.

    `connected` connects to the cluster. It is not called if all stages are finished.

    Raises:
        OrchestratorError: of the stage that failed. Artifacts of finished stages stay.
    """
    job = run.job

    def finish(name: Stage, kind: type[A], folder: Folder, work: Callable[[], A]) -> A:
        finished = kind.load(folder)
        if finished is None:
            check_room(job, connected().room)
            display.stage_started(name)
        artifact = work() if finished is None else finished
        status = stage_status(name, kind, folder) if name != "prepare" else run.prepare_status()
        display.stage_finished(status, already=finished is not None)
        return artifact

    def prepared_data() -> PreparedData:
        from orchestrator.prepare.stage import prepare

        return prepare(job, run.files, folder, display, run.notes)

    folder = run.prepare_folder()
    check_inputs(run)
    prepared = finish("prepare", PreparedData, folder, prepared_data)
    if until == "prepare":
        return Outcome(job, prepared)

    def sweep() -> Sweep:
        from orchestrator.tune.sweep import tune

        return tune(job, prepared, run.tune_folder(), connected(), display)

    swept = finish("tune", Sweep, run.tune_folder(), sweep) if job.tune is not None else None
    chosen = run.chosen_job()
    assert chosen is not None
    if until == "tune":
        return Outcome(chosen, prepared)

    def trained() -> Training:
        if swept is not None and chosen.tune is not None and chosen.tune.deploy_best_trial:
            from orchestrator.tune.deploy import take_best_trial

            return take_best_trial(chosen, prepared, swept, run.train_folder(chosen))
        from orchestrator.train import preload

        if chosen.weights is not None and chosen.weights.gone:
            display.note(f"model.init_from: {chosen.weights.place} is gone: a checkpoint continues")
        preload.start_for_workers(
            chosen.cluster.most_workers
        )  # while this process still imports modules
        from orchestrator.train.stage import train

        return train(chosen, prepared, run.train_folder(chosen), run.events, display)

    training = finish("train", Training, run.train_folder(chosen), trained)
    _export(chosen, prepared, training)
    if until == "train":
        return Outcome(chosen, prepared, training)

    def evaluated() -> Evaluation:
        from orchestrator.evaluate.stage import evaluate

        findings = swept.folder.read(FINDINGS).decode() if swept is not None else ""
        into = run.evaluate_folder(chosen)
        return evaluate(chosen, prepared, training, into, display, findings)

    evaluation = finish("evaluate", Evaluation, run.evaluate_folder(chosen), evaluated)
    return Outcome(chosen, prepared, training, evaluation)

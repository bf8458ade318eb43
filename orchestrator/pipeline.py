"""The stages in order: what is finished is taken up, what is not is run, one run at a time.

Every stage's folder is named by a fingerprint of its settings and of what it reads, so that a
changed job never takes up what an older one left, and a job changed back finds its own again.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, TypeVar

from orchestrator.artifact import Artifact, Evaluation, Folder, PreparedData, Sweep, Training
from orchestrator.cluster import Cluster
from orchestrator.errors import UserError
from orchestrator.evaluate import evaluate
from orchestrator.job import Job, Stage
from orchestrator.prepare import prepare
from orchestrator.progress import Progress
from orchestrator.sources import SourceFile, check_columns, find_files
from orchestrator.train import train
from orchestrator.tune import tune

State = Literal["finished", "interrupted", "pending", "skipped"]


@dataclass(frozen=True)
class StageStatus:
    """Where a stage stands. `path` and `seconds` are None until it has a folder, or an end."""

    stage: Stage
    state: State
    path: str | None = None
    seconds: float | None = None
    summary: str = ""


class Display(Progress, Protocol):
    """Whoever watches a run."""

    def stage_started(self, stage: Stage) -> None: ...

    def stage_finished(self, status: StageStatus, already: bool) -> None: ...


class Run:
    """One job's artifacts under `<storage>/<job name>/`."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.folder = storage(job) / job.name
        self._files: list[SourceFile] | None = None

    @property
    def files(self) -> list[SourceFile]:
        """The data's files, listed once. Raises UserError where there are none."""
        if self._files is None:
            self._files = find_files(self.job.data)
        return self._files

    def prepare_folder(self) -> Folder:
        fingerprint = self.job.fingerprint("prepare")
        try:
            files = self.files
        except UserError:
            # The data may have moved on once it is prepared: the newest preparation serves.
            names = [n for n in self.folder.names() if n.startswith(f"prepare-{fingerprint}-")]
            finished = [a for n in names if (a := PreparedData.load(self.folder / n)) is not None]
            if not finished:
                raise
            return finished[-1].folder
        listing = [[file.uri, file.bytes, file.modified] for file in files]
        digest = hashlib.sha256(json.dumps(listing).encode()).hexdigest()[:8]
        return self.folder / f"prepare-{fingerprint}-{digest}"

    def tune_folder(self) -> Folder:
        return self.folder / f"tune-{self.job.fingerprint('tune', self.prepare_folder().name)}"

    def chosen_job(self) -> Job | None:
        """The job with the sweep's best values, the job itself without a sweep, else None."""
        if self.job.tune is None:
            return self.job
        sweep = Sweep.load(self.tune_folder())
        return None if sweep is None else self.job.override(sweep.best)

    def train_folder(self, chosen: Job) -> Folder:
        return self.folder / f"train-{chosen.fingerprint('train', self.prepare_folder().name)}"

    def evaluate_folder(self, chosen: Job) -> Folder:
        name = self.train_folder(chosen).name
        return self.folder / f"evaluate-{chosen.fingerprint('evaluate', name)}"

    def status(self) -> list[StageStatus]:
        """Where each stage stands, without starting anything."""
        found = [_status("prepare", PreparedData, self.prepare_folder())]
        if self.job.tune is None:
            found.append(StageStatus("tune", "skipped", summary="the job has no tune section"))
        else:
            found.append(_status("tune", Sweep, self.tune_folder()))
        chosen = self.chosen_job()
        if chosen is None:
            found += [StageStatus("train", "pending"), StageStatus("evaluate", "pending")]
        else:
            found.append(_status("train", Training, self.train_folder(chosen)))
            found.append(_status("evaluate", Evaluation, self.evaluate_folder(chosen)))
        found.append(StageStatus("serve", "pending"))
        return found

    @contextlib.contextmanager
    def lease(self) -> Iterator[None]:
        """Hold the run, so that a second one of its name is refused; it ends with the process.

        Raises:
            UserError: naming the holder.
        """
        if self.folder.local_path is None:  # no storage but a local one has locks
            yield
            return
        self.folder.local_path.mkdir(parents=True, exist_ok=True)
        path = self.folder.local_path / "lease.json"
        with open(path, "a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                file.seek(0)
                raise UserError(
                    f"run {self.job.name!r} is in use by {file.read().strip()}: wait for it, or "
                    f"give this one another name"
                ) from None
            file.truncate(0)
            since = time.strftime("%Y-%m-%d %H:%M:%S")
            file.write(f"process {os.getpid()} on {socket.gethostname()} since {since}")
            file.flush()
            yield


@dataclass(frozen=True)
class Outcome:
    """What a run came to: the artifacts of its stages, as far as it went."""

    job: Job  # with the sweep's best values
    prepared: PreparedData
    training: Training | None = None
    evaluation: Evaluation | None = None


A = TypeVar("A", bound=Artifact)


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
            connected().check_room(
                job.cluster.workers, job.cluster.cpus_per_worker, job.cluster.gpus_per_worker
            )
            display.stage_started(name)
        artifact = work() if found is None else found
        display.stage_finished(_status(name, kind, folder), already=found is not None)
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


def storage(job: Job) -> Folder:
    """The job's storage. Inside a submitted Ray job a relative one goes to the home folder.

    The working directory of a submitted job is a copy that Ray deletes when the job ends.
    """
    if "://" in job.storage or Path(job.storage).is_absolute():
        return Folder(job.storage)
    base = Path.cwd()
    if "working_dir_files" in base.parts:
        base = Path.home()
    return Folder(str(base / job.storage))


def _status(stage: Stage, kind: type[Artifact], folder: Folder) -> StageStatus:
    artifact = kind.load(folder)
    if artifact is not None:
        return StageStatus(stage, "finished", str(folder), artifact.seconds, artifact.summary)
    if folder.names():
        return StageStatus(stage, "interrupted", str(folder))
    return StageStatus(stage, "pending")

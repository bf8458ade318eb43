"""One job's artifacts: where each stage's lies, where it stands, and who may write there.

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
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import httpx

from orchestrator.artifact import Artifact, Evaluation, Folder, PreparedData, Sweep, Training
from orchestrator.errors import UserError
from orchestrator.job import Job, Stage
from orchestrator.sources import SourceFile, find_files

State = Literal["finished", "running", "interrupted", "pending", "skipped"]
ENDPOINT = "endpoint.json"
LEASE = "lease"


@dataclass(frozen=True)
class StageStatus:
    """Where a stage stands. `path` and `seconds` are None until it has a folder, or an end."""

    stage: Stage
    state: State
    path: str | None = None
    seconds: float | None = None
    summary: str = ""


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
        found = [stage_status("prepare", PreparedData, self.prepare_folder())]
        if self.job.tune is None:
            found.append(StageStatus("tune", "skipped", summary="the job has no tune section"))
        else:
            found.append(stage_status("tune", Sweep, self.tune_folder()))
        chosen = self.chosen_job()
        if chosen is None:
            found += [StageStatus("train", "pending"), StageStatus("evaluate", "pending")]
        else:
            found.append(stage_status("train", Training, self.train_folder(chosen)))
            found.append(stage_status("evaluate", Evaluation, self.evaluate_folder(chosen)))
        found.append(self._endpoint_status())
        if self._is_held():
            found = [
                replace(status, state="running") if status.state == "interrupted" else status
                for status in found
            ]
        return found

    def record_endpoint(self, url: str, checkpoint: str) -> None:
        """Write down where the model is served, for `status`."""
        content = {"url": url, "checkpoint": checkpoint}
        self.folder.write(ENDPOINT, json.dumps(content).encode())

    def _endpoint_status(self) -> StageStatus:
        try:
            endpoint = json.loads(self.folder.read(ENDPOINT))
            httpx.get(f"{endpoint['url']}/healthz", timeout=2).raise_for_status()
        except (OSError, ValueError, httpx.HTTPError):
            return StageStatus("serve", "pending")
        return StageStatus("serve", "running", endpoint["checkpoint"], summary=endpoint["url"])

    def _is_held(self) -> bool:
        """Whether some process has the lease."""
        if self.folder.local_path is None or not self.folder.exists(LEASE):
            return False
        with open(self.folder.local_path / LEASE) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError:
                return True
        return False

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
        path = self.folder.local_path / LEASE
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


def stage_status(stage: Stage, kind: type[Artifact], folder: Folder) -> StageStatus:
    artifact = kind.load(folder)
    if artifact is not None:
        return StageStatus(stage, "finished", str(folder), artifact.seconds, artifact.summary)
    if folder.names():
        return StageStatus(stage, "interrupted", str(folder))
    return StageStatus(stage, "pending")

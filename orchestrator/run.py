"""A run: the folders of a job's artifacts, the status of its stages, and the lock on writing.

A stage's folder is named by a fingerprint of its settings and inputs. So a changed job never reuses
the artifact of an older one, and a job that is changed back finds its own artifacts again.
"""

import contextlib
import hashlib
import json
import os
import shlex
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx
from pydantic import BaseModel, Field

from orchestrator import __version__
from orchestrator.data.source_file import SourceFile
from orchestrator.data.sources import Listing, find_files, total_bytes
from orchestrator.errors import OrchestratorError, StoppedError, UserError, last_line
from orchestrator.job.defaults import derive, says_all
from orchestrator.job.fingerprint import fingerprint
from orchestrator.job.init_from import record_weights
from orchestrator.job.job import Job
from orchestrator.progress import Display, Stage, StageStatus
from orchestrator.storage import lease
from orchestrator.storage.artifact import Artifact, Evaluation, PreparedData, Sweep, Training
from orchestrator.storage.events import EventLog
from orchestrator.storage.folder import MANIFEST, Folder, Stamp
from orchestrator.storage.submitted import find_storage, lasting_name, lasting_stamp

ENDPOINT = "endpoint.json"
ASKED_FOR = (KeyboardInterrupt, StoppedError)  # by the user: no errors


class Served(BaseModel):
    """The content of `endpoint.json`: where a run's model is served."""

    url: str = Field(pattern=r"^https?://\S+$")
    checkpoint: str
    node: str = ""  # the address of the only node on which the URL is true; empty: anywhere


class Run:
    """One job's artifacts under `<storage>/<job name>/`.

    `job` is the given job completed with the values in `derived`.
    """

    def __init__(self, job: Job) -> None:
        self.folder = storage(job) / job.name
        self.events = EventLog(self.folder)
        self._found: Listing | UserError | None = None
        self._digest: str | None = None
        self._taken: str | None = None  # note: an earlier preparation replaces data that is gone
        self._data, self._storage = job.data, storage(job).uri
        self.derived = {} if says_all(job) else derive(job, self._source_bytes())
        self.job = job.override(self.derived)

    @property
    def files(self) -> list[SourceFile]:
        """The data's files, listed once. Raises UserError if there are none."""
        return self._listing().files

    @property
    def notes(self) -> list[str]:
        """Notes for the user about how the files were found, or what replaces them."""
        try:
            return self._listing().notes
        except UserError:
            return [] if self._taken is None else [self._taken]

    def _listing(self) -> Listing:
        if self._found is None:
            try:
                self._found = find_files(self._data, self._storage)
            except UserError as error:
                self._found = error
        if isinstance(self._found, UserError):
            raise self._found
        return self._found

    def _source_bytes(self) -> int:
        """The size of the data, or of the data last prepared if the files are gone."""
        try:
            return total_bytes(self.files)
        except UserError:
            newest = self._newest_prepared("prepare-")
            if newest is None:
                raise
            return newest[0].source_bytes

    def prepare_folder(self) -> Folder:
        """The folder of the prepared data. If the files are gone, of the newest preparation."""
        digest = fingerprint(self.job, "prepare")
        try:
            files = self.files
        except UserError as error:
            newest = self._newest_prepared(f"prepare-{digest}-")
            if newest is None:
                raise
            folder, when = newest[0].folder, datetime.fromtimestamp(newest[1] / 1e9)
            self._taken = (
                f"{error}: the data prepared {when:%Y-%m-%d %H:%M} ({folder.name}) is used"
            )
            return folder
        if self._digest is None:
            listing = [vars(_lasting(file)) for file in files]
            text = json.dumps(listing, default=vars)  # `beside` holds files, too
            self._digest = hashlib.sha256(text.encode()).hexdigest()[:8]
        return self.folder / f"prepare-{digest}-{self._digest}"

    def _newest_prepared(self, prefix: str) -> tuple[PreparedData, int] | None:
        """The newest finished preparation and its time, in nanoseconds since 1970. Names are hashes
        and have no order."""
        folders = [self.folder / name for name in self.folder.names() if name.startswith(prefix)]
        stamps = [(folder.stamps().get(MANIFEST), folder) for folder in folders]
        finished = [(stamp.modified, folder) for stamp, folder in stamps if stamp is not None]
        if not finished:
            return None
        modified, folder = max(finished, key=lambda each: each[0])
        prepared = PreparedData.load(folder)
        return None if prepared is None else (prepared, modified)

    def prepare_status(self) -> StageStatus:
        """The status of the first stage, with the current notes about its files."""
        status = stage_status("prepare", PreparedData, self.prepare_folder())
        new = [note for note in self.notes if note not in status.notices]
        return replace(status, notices=(*status.notices, *new))

    def tune_folder(self) -> Folder:
        return self.folder / f"tune-{fingerprint(self.job, 'tune', self.prepare_folder().name)}"

    def chosen_job(self) -> Job | None:
        """The job with the sweep's best values, the job itself without a sweep, else None."""
        if self.job.tune is None:
            return self.job
        sweep = Sweep.load(self.tune_folder())
        return None if sweep is None else self.job.override(sweep.best)

    def train_folder(self, chosen: Job) -> Folder:
        return self.folder / f"train-{fingerprint(chosen, 'train', self.prepare_folder().name)}"

    def evaluate_folder(self, chosen: Job) -> Folder:
        name = self.train_folder(chosen).name
        return self.folder / f"evaluate-{fingerprint(chosen, 'evaluate', name)}"

    def finished(self, chosen: Job) -> tuple[PreparedData, Training, Evaluation | None] | None:
        """The prepared data, the training and the evaluation, if any; None before the training is
        finished."""
        prepared = PreparedData.load(self.prepare_folder())
        training = Training.load(self.train_folder(chosen))
        if prepared is None or training is None:
            return None
        return prepared, training, Evaluation.load(self.evaluate_folder(chosen))

    def holder(self) -> str | None:
        """A description of the process that runs the stages now; None if there is none."""
        return lease.holder(self.folder)

    def status(self, holder: str | None) -> list[StageStatus]:
        """The status of each stage while `holder` holds the run. Starts nothing."""
        statuses = [self.prepare_status()]
        if self.job.tune is None:
            statuses.append(StageStatus("tune", "skipped", summary="the job has no tune section"))
        else:
            statuses.append(stage_status("tune", Sweep, self.tune_folder()))
        chosen = self.chosen_job()
        if chosen is None:
            statuses += [StageStatus("train", "pending"), StageStatus("evaluate", "pending")]
        else:
            statuses.append(stage_status("train", Training, self.train_folder(chosen)))
            statuses.append(stage_status("evaluate", Evaluation, self.evaluate_folder(chosen)))
        statuses.append(self._endpoint_status())
        if holder is not None:
            statuses = [
                replace(status, state="running") if status.state == "interrupted" else status
                for status in statuses
            ]
        return statuses

    def record_endpoint(self, url: str, checkpoint: str, node: str) -> None:
        """Record where the model is served, for `status`. See `Served`."""
        served = Served(url=url, checkpoint=checkpoint, node=node)
        self.folder.write(ENDPOINT, served.model_dump_json().encode())

    def _endpoint_status(self) -> StageStatus:
        try:
            served = Served.model_validate_json(self.folder.read(ENDPOINT))
            if served.node and not _is_here(served.node):
                summary = (
                    f"deployed at {served.url} of node {served.node}: ask for its status there"
                )
                return StageStatus("serve", "pending", served.checkpoint, summary=summary)
            httpx.get(f"{served.url}/healthz", timeout=2).raise_for_status()
        except (OSError, ValueError, httpx.HTTPError, httpx.InvalidURL):
            return StageStatus("serve", "pending")
        return StageStatus("serve", "running", served.checkpoint, summary=served.url)

    def lease(self) -> contextlib.AbstractContextManager[None]:
        """Hold the run, so that a second run of its name is refused. Raises: see `lease.hold`."""
        return lease.hold(self.folder, self.job.name)

    @contextlib.contextmanager
    def session(
        self,
        arguments: list[str],
        until: Stage,
        exit_code: Callable[[BaseException | None], int],
    ) -> Iterator[contextlib.ExitStack]:
        """Hold the run, and record the start and the end of a command that runs up to `until`.

        Yields the stack that holds the lease. Closing the stack releases the lease early.
        """
        held = contextlib.ExitStack()
        held.enter_context(self.lease())
        if self.job.weights is not None:
            record_weights(self.job.weights, self.folder)
        self.events.write(
            "run",
            "started",
            command=shlex.join(["orchestrator", *arguments]),
            until=until,
            version=__version__,
            process=os.getpid(),
            host=socket.gethostname(),
            directory=str(Path.cwd()),  # the base of the command's relative paths
        )
        try:
            with held:
                yield held
        except BaseException as error:
            self.events.write("run", "ended", exit_code=exit_code(error), **_reason(error))
            raise
        self.events.write("run", "ended", exit_code=exit_code(None))


class RecordedDisplay:
    """A display that also records the start and end of each stage as events."""

    def __init__(self, display: Display, events: EventLog) -> None:
        self.start, self.advance = display.start, display.advance
        self.show, self.note, self.finish = display.show, display.note, display.finish
        self._display = display
        self._events = events
        self._running: Stage | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._running is None or error is None:
            return
        event = "interrupted" if isinstance(error, ASKED_FOR) else "failed"
        self._events.write(self._running, event, **_reason(error))

    def stage_started(self, stage: Stage) -> None:
        self._running = stage
        self._events.write(stage, "started")
        self._display.stage_started(stage)

    def stage_finished(self, status: StageStatus, already: bool) -> None:
        if not already:
            self._running = None
            seconds = round(status.seconds or 0.0, 3)
            self._events.write(status.stage, "finished", seconds=seconds, summary=status.summary)
        self._display.stage_finished(status, already)


def _is_here(address: str) -> bool:
    """Whether an IP address is one of this machine's."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as probe:
        try:
            probe.bind((address, 0))  # to any free port
        except OSError:
            return False
    return True


def _reason(error: BaseException) -> dict[str, str]:
    """The error's text as a field of an event; empty if the user stopped the run."""
    if isinstance(error, ASKED_FOR):
        return {}
    if isinstance(error, OrchestratorError):
        return {"error": str(error)}
    return {"error": f"{type(error).__name__}: {last_line(str(error))}"}


def storage(job: Job) -> Folder:
    return find_storage(job.storage, Path.cwd())


def _lasting(file: SourceFile) -> SourceFile:
    """The file as its preparation is named by it, wherever Ray has copied it to."""
    name = lasting_name(file.uri)
    if name == file.uri:
        return file
    stamp = lasting_stamp(file.uri, Stamp(file.bytes, 0))
    beside = tuple(map(_lasting, file.beside))
    return replace(file, uri=name, modified=str(stamp.modified), beside=beside)


def stage_status(stage: Stage, kind: type[Artifact], folder: Folder) -> StageStatus:
    artifact = kind.load(folder)
    if artifact is not None:
        known = artifact.seconds, artifact.summary, tuple(artifact.notices)
        return StageStatus(stage, "finished", str(folder), *known)
    if folder.names():
        return StageStatus(stage, "interrupted", str(folder))
    return StageStatus(stage, "pending")

"""Actions on a sweep: stop it or a trial, resume it, copy a command."""

import contextlib
import json
import math
import os
import shlex
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from orchestrator.dashboard.catalog import FollowedRun
from orchestrator.dashboard.sweep import FollowedSweep
from orchestrator.errors import UserError, last_line
from orchestrator.job.file import read_plain
from orchestrator.job.job import Job
from orchestrator.job.task_registry import TASKS
from orchestrator.job.yaml_text import parse_value
from orchestrator.progress import STAGES
from orchestrator.storage.folder import Folder
from orchestrator.storage.scratch import own_folder
from orchestrator.storage.submitted import find_storage
from orchestrator.tune.records import request_stop

TOKEN_VARIABLE = "ORCHESTRATOR_DASHBOARD_TOKEN"  # noqa: S105 - its name
RESUME_LOG = "resumed.log"
LOOK_SECONDS = 3.0  # after a start, to catch a command that fails at once
SLACK_SECONDS = 5.0  # between the clocks of the events and of the sweep


FLAGS = {"--debug", "--no-dashboard"}  # of the command line, in full
FIND = "import sys; from importlib.util import find_spec; sys.exit(find_spec(sys.argv[1]) is None)"


@dataclass(frozen=True)
class Start:
    """How a run was started: the command line, where, and on which machine.

    It comes from the storage, and who can write there can write it: see `_check_is_safe`.
    """

    arguments: list[str]  # after `orchestrator`
    directory: str
    host: str

    @property
    def command(self) -> str:
        return shlex.join(["orchestrator", *self.arguments])


def stop_sweep(run: FollowedRun, sweep: FollowedSweep) -> None:
    """Ask the sweep to end; it can be resumed. Raises UserError if it is not running."""
    if not run.is_live(sweep):
        raise UserError(f"{sweep.run}/{sweep.name}: no process runs it: there is nothing to stop")
    request_stop(sweep.folder)


def stop_trial(run: FollowedRun, sweep: FollowedSweep, number: int) -> None:
    """Ask a trial to end for good. Raises UserError if it is not running."""
    seen = sweep.seen.get(number)
    if seen is None:
        raise UserError(f"{sweep.run}/{sweep.name}: has no trial {number}")
    if not run.is_live(sweep) or seen.trial.state != "running":
        raise UserError(f"trial {number} is not running: there is nothing to stop")
    request_stop(sweep.folder, number)


class Resumer:
    """Restarts sweeps, as processes that outlive the dashboard."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._sweeps: dict[str, str] = {}

    def is_running(self, sweep: FollowedSweep) -> bool:
        """Whether a process that was started here for this sweep still runs."""
        process = self._processes.get(sweep.run)
        resumed = self._sweeps.get(sweep.run) == sweep.name
        return resumed and process is not None and process.poll() is None

    def resume(
        self, run: FollowedRun, sweep: FollowedSweep, shown: tuple[str, str] | None = None
    ) -> tuple[Start, str]:
        """Start the command that began the sweep. Returns the command and the file of its output.

        `shown` is the command and the directory that the viewer agreed to.

        Raises:
            UserError: if it cannot be started from here, with the command, or ended at once.
        """
        if sweep.record is not None and sweep.record.state == "finished":
            raise UserError(f"{sweep.run}/{sweep.name}: is finished: there is nothing to resume")
        with self._lock:
            begun = self._processes.get(run.name)
            if begun is not None and begun.poll() is None:
                raise UserError(f"run {run.name!r} was resumed from here: that process still runs")
            if (holder := run.holder(now=True)) is not None:
                raise UserError(f"run {run.name!r} is in use by {holder}")
            start = find_start(run, sweep)
            if shown is not None and shown != (start.command, start.directory):
                raise UserError(
                    f"the command is another one by now: {start.command}, in {start.directory}: "
                    "look at it, and resume again"
                )
            _check_is_here(start)
            _check_is_safe(start, run)
            log = _log_path(run)
            process = _spawn(start, log)
            self._processes[run.name], self._sweeps[run.name] = process, sweep.name
        end = time.monotonic() + LOOK_SECONDS
        while process.poll() is None and time.monotonic() < end:
            time.sleep(0.05)
        if process.returncode:
            reason = last_line(log.read_text(errors="replace"))
            raise UserError(f"`{start.command}` ended with {process.returncode}: {reason}")
        return start, str(log)


def _spawn(start: Start, log: Path) -> subprocess.Popen[bytes]:
    try:
        file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    except OSError as error:
        raise UserError(f"{log}: cannot be written: {error.strerror}") from error
    with open(file, "ab") as output:
        return subprocess.Popen(  # noqa: S603 - our own command line, checked by `find_start`
            [sys.executable, "-P", "-m", "orchestrator", *start.arguments],
            cwd=start.directory,
            env=_environment(),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C and the end of the dashboard do not reach it
        )


def _environment() -> dict[str, str]:
    """This process's environment, in which Python does not import from its working folder."""
    environment = {name: v for name, v in os.environ.items() if name != TOKEN_VARIABLE}
    given = environment.pop("PYTHONPATH", "").split(os.pathsep)
    if kept := [path for path in given if os.path.isabs(path)]:
        environment["PYTHONPATH"] = os.pathsep.join(kept)
    return environment | {"PYTHONSAFEPATH": "1"}


def _check_is_safe(start: Start, run: FollowedRun) -> None:
    """Raises UserError unless the command runs no code of its folder and writes only to this run.

    Raises:
        UserError: if the job is another run's, or its task is not installed here.
    """
    directory = Path(start.directory)
    job, *overrides = _positionals(start.arguments[1:])
    given = read_plain(str(directory / job), overrides)
    name, task = given.get("name"), given.get("task")
    storage = given.get("storage", Job.model_fields["storage"].default)
    written = find_storage(str(storage), directory) / str(name)
    if _real(written) != _real(run.folder):
        raise UserError(
            f"`{start.command}` writes to {written}, not to {run.folder}: run it by hand"
        )
    if not isinstance(task, str) or task in TASKS or ":" not in task:
        return
    if not _is_installed(task.partition(":")[0]):
        raise UserError(
            f"task = {task}: is not installed here, and nothing is run from {start.directory} for "
            f"what a storage says: run it by hand: {start.command}"
        )


def _real(folder: Folder) -> str:
    return folder.uri if folder.local_path is None else os.path.realpath(folder.local_path)


def _is_installed(module: str) -> bool:
    """Whether the command's Python finds a module without the folder that it is started in."""
    command = [sys.executable, "-P", "-c", FIND, module]
    done = subprocess.run(  # noqa: S603
        command, cwd="/", env=_environment(), capture_output=True, check=False
    )
    return done.returncode == 0


def _check_is_here(start: Start) -> None:
    here = socket.gethostname()
    if start.host != here:
        raise UserError(
            f"the sweep was started on {start.host}, this is {here}: run there, in "
            f"{start.directory}: {start.command}"
        )
    if not os.path.isdir(start.directory):
        raise UserError(f"{start.directory}: is gone, in which it was started: {start.command}")


def _log_path(run: FollowedRun) -> Path:
    """A file in the run's folder; if that is remote, a file on this machine."""
    if run.folder.local_path is None:
        return own_folder("dashboard") / f"{run.name}-{RESUME_LOG}"
    return run.folder.local_path / RESUME_LOG


def find_start(run: FollowedRun, sweep: FollowedSweep) -> Start:
    """The command that first started the sweep; it also resumes it.

    Raises:
        UserError: where no event tells, or tells of a command that is none of ours.
    """
    starts = run.starts()
    began = sweep.record.started if sweep.record is not None else 0.0
    before = [event for event in starts if _time(event) <= began + SLACK_SECONDS]
    for event in reversed(before or starts):
        start = _start(event)
        if start is not None:
            return start
    raise UserError(f"{run.folder}: no event tells how the sweep was started: start it by hand")


def _time(event: dict[str, Any]) -> float:
    return datetime.fromisoformat(event["time"]).timestamp()


def _start(event: dict[str, Any]) -> Start | None:
    """Anyone who can write to the storage can write events. So only this package's own commands are
    started, with arguments that this module knows."""
    command, directory, host = (event.get(key) for key in ("command", "directory", "host"))
    if not (isinstance(command, str) and isinstance(directory, str) and isinstance(host, str)):
        return None
    with contextlib.suppress(ValueError):  # an unclosed quotation mark
        program, *arguments = shlex.split(command) or [""]
        stages = {"run", *STAGES} - {"prepare"}  # prepare ends before the sweep
        known = program == "orchestrator" and arguments[:1] and arguments[0] in stages
        if known and _positionals(arguments[1:]) and os.path.isabs(directory):
            return Start(arguments, directory, host)
    return None


# Overrides on a command line


def overrides_text(overrides: dict[str, Any]) -> str:
    """`train.lr=0.003 model.dropout=0.1`, quoted for a shell."""
    return shlex.join(f"{key}={value_text(value)}" for key, value in overrides.items())


def value_text(value: Any) -> str:
    """A value for the command line of a job; plain text if that has the same meaning."""
    if isinstance(value, str):
        return value if _reads_as(value, value) else _quoted(value)
    return _flow(value)


def _reads_as(text: str, value: str) -> bool:
    try:
        return bool(parse_value(text) == value)
    except yaml.YAMLError:
        return False


def _flow(value: Any) -> str:
    """YAML on one line: JSON, except for the numbers that JSON does not have."""
    if isinstance(value, float) and not math.isfinite(value):
        return ".nan" if math.isnan(value) else ".inf" if value > 0 else "-.inf"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{_quoted(str(k))}: {_flow(v)}' for k, v in value.items())}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_flow, value))}]"
    return _quoted(value) if isinstance(value, str) else json.dumps(value)


def _quoted(text: str) -> str:
    """A JSON string, with escapes for the characters that YAML requires to be escaped."""
    quoted = json.dumps(text, ensure_ascii=False)
    return "".join(c if c.isprintable() else f"\\U{ord(c):08X}" for c in quoted)


def training_command(start: Start, overrides: dict[str, Any]) -> str:
    """The command that trains with these values, with the job and overrides of the sweep's command.

    `tune=null`, since a sweep's choice would else take the place of these values.
    """
    job, *given = _positionals(start.arguments[1:])
    keys = {*overrides, "tune"}
    kept = [text for text in given if text.partition("=")[0] not in keys]
    kept = [text for text in kept if not text.startswith("tune.")]
    values = [f"{key}={value_text(value)}" for key, value in overrides.items()]
    return shlex.join(["orchestrator", "train", job, *kept, *values, "tune=null"])


def _positionals(arguments: list[str]) -> list[str]:
    """The job and its overrides, without options; empty if an option is unknown."""
    overrides: list[str] = []
    rest = iter(arguments)
    for text in rest:
        if text == "--until":
            next(rest, None)
        elif not text.startswith("-"):
            overrides.append(text)
        elif text not in FLAGS and not text.startswith("--until="):
            return []
    return overrides

"""The runs of a storage with their stages and sweeps, refreshed as they change."""

import re
import threading
import time
from typing import Any

from orchestrator.dashboard.sweep import FollowedSweep
from orchestrator.errors import StageError, UserError, first_line
from orchestrator.storage import lease
from orchestrator.storage.events import FILE, read_events
from orchestrator.storage.folder import MANIFEST, Folder
from orchestrator.tune.records import SWEEP_FILE

STAGE_FOLDER = re.compile(r"(prepare|tune|train|evaluate)-[0-9a-f]{12}(-[0-9a-f]+)?")
RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")  # as a job's name
PAUSE = 2.0  # seconds between two listings of folders on a disk
PAUSE_ELSEWHERE = 10.0  # on other storage, whose listings may cost money


class Throttle:
    """Limits how often the storage is read, however many viewers ask."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._last = float("-inf")

    def due(self) -> bool:
        if time.monotonic() - self._last < self._seconds:
            return False
        self._last = time.monotonic()
        return True


class FollowedRun:
    """One run's folder: its sweeps, stages, holder and start."""

    def __init__(self, folder: Folder) -> None:
        self.folder = folder
        self.name = folder.name
        self.sweeps: dict[str, FollowedSweep] = {}
        self.stages: dict[str, str] = {}  # state by name: finished or begun
        self._whole: set[str] = set()  # folders with a manifest
        local = folder.local_path is not None
        self._listing = Throttle(PAUSE if local else PAUSE_ELSEWHERE)
        self._asking = Throttle(PAUSE / 4 if local else PAUSE_ELSEWHERE)
        self._reading = Throttle(PAUSE if local else PAUSE_ELSEWHERE)
        self._holder: str | None = None
        self._starts: list[dict[str, Any]] = []
        self._events_size: int | None = None
        self._lock = threading.Lock()

    def refresh(self) -> None:
        """List the stages and sweeps."""
        with self._lock:
            if not self._listing.due():
                return
            names = [name for name in self.folder.names() if STAGE_FOLDER.fullmatch(name)]
            stages: dict[str, str] = {}
            for name in names:
                stage = name.split("-", 1)[0]
                if name not in self._whole and (self.folder / name).exists(MANIFEST):
                    self._whole.add(name)
                if name in self._whole or stage not in stages:
                    stages[stage] = "finished" if name in self._whole else "begun"
            self.stages = stages
            self._whole &= set(names)
            for name in set(self.sweeps) - set(names):
                del self.sweeps[name]
            for name in names:
                if name.startswith("tune-") and name not in self.sweeps:
                    folder = self.folder / name
                    if folder.exists(SWEEP_FILE):
                        self.sweeps[name] = FollowedSweep(self.name, folder)

    def holder(self, now: bool = False) -> str | None:
        """A description of the run's holder; None if there is none. `now`: do not use the cache."""
        with self._lock:
            if self._asking.due() or now:
                try:
                    self._holder = lease.holder(self.folder)
                except (OSError, StageError) as error:
                    self._holder = f"an unknown process: {first_line(error)}"
            return self._holder

    def is_live(self, sweep: FollowedSweep) -> bool:
        """Whether a process runs this sweep now: the holder works on the newest sweep."""
        if sweep.record is None or sweep.record.state != "running" or self.holder() is None:
            return False
        others = [s for s in [*self.sweeps.values()] if s.record and s.record.state == "running"]
        return sweep.record_time >= max((s.record_time for s in others), default=0.0)

    def starts(self) -> list[dict[str, Any]]:
        """The events of all starts of the run, in order."""
        with self._lock:
            if self._reading.due() and self._has_new_events():
                start = ("run", "started")
                self._starts = [
                    event
                    for event in read_events(self.folder)
                    if (event["stage"], event["event"]) == start
                ]
            return self._starts

    def _has_new_events(self) -> bool:
        """On remote storage the events are many objects, which must all be read."""
        before, self._events_size = self._events_size, self.folder.size(FILE)
        return self.folder.local_path is None or before != self._events_size


class Catalog:
    """A storage, or a single run."""

    def __init__(self, where: Folder) -> None:
        self.where = where
        names = _names(where)
        if SWEEP_FILE in names:
            raise UserError(f"{where}: is the folder of a sweep: give that of its run, around it")
        self.is_one_run = _is_run(names)
        self._runs: dict[str, FollowedRun] = {}
        self._listing = Throttle(PAUSE if where.local_path is not None else PAUSE_ELSEWHERE)
        self._lock = threading.Lock()
        if self.is_one_run:
            self._runs[where.name] = FollowedRun(where)

    def runs(self) -> list[FollowedRun]:
        """All runs, by name."""
        with self._lock:
            if not self.is_one_run and self._listing.due():
                names = set(_folders(self.where))
                self._runs = {n: run for n, run in self._runs.items() if n in names}
                for name in names - set(self._runs):
                    if _is_run((self.where / name).names()):
                        self._runs[name] = FollowedRun(self.where / name)
            runs = [self._runs[name] for name in sorted(self._runs)]
        for run in runs:
            run.refresh()
        return runs

    def run(self, name: str) -> FollowedRun:
        """A run by name. Raises UserError if there is none. No name leads out of the storage."""
        if name not in self._runs:
            self.runs()
        try:
            run = self._runs[name]
        except KeyError:
            raise UserError(f"{self.where}: has no run {name!r}") from None
        run.refresh()
        return run

    def sweep(self, run_name: str, name: str) -> tuple[FollowedRun, FollowedSweep]:
        """A sweep by name. Raises UserError if there is none, or its record cannot be read."""
        run = self.run(run_name)
        try:
            sweep = run.sweeps[name]
        except KeyError:
            raise UserError(f"{run.folder}: has no sweep {name!r}") from None
        sweep.refresh()
        if sweep.record is None:
            raise UserError(f"{sweep.folder}/{SWEEP_FILE}: cannot be read, or is gone")
        return run, sweep


def _names(where: Folder) -> list[str]:
    """The names in the storage. Raises UserError if there is no such storage."""
    if where.local_path is not None and not where.local_path.is_dir():
        kind = "is a file" if where.local_path.exists() else "there is no such folder"
        raise UserError(
            f"{where}: {kind}: give the storage of your jobs (runs, say), or the folder of one run"
        )
    try:
        return where.names()
    except (OSError, ValueError) as error:  # ValueError: of an unknown scheme, say
        raise UserError(f"{where}: cannot be read: {first_line(error)}") from error


def _is_run(names: list[str]) -> bool:
    return FILE in names or any(STAGE_FOLDER.fullmatch(name) for name in names)


def _folders(where: Folder) -> list[str]:
    files = where.stamps()
    return [name for name in where.names() if name not in files and RUN_NAME.fullmatch(name)]

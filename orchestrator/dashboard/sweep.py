"""Follows one sweep: returns the changes since a viewer last asked.

A viewer gives the cursor of its last answer and gets the trials that changed after it. Only files
that were written since are read again, and no more of them at once than fit a moment: a viewer of a
large sweep sees its first trials while the others are read.
"""

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple

from orchestrator.dashboard.curves import Curve, columns, thinned
from orchestrator.errors import StageError
from orchestrator.storage.artifact import Sweep
from orchestrator.storage.folder import MANIFEST, Folder, Stamp
from orchestrator.storage.strict_json import finite
from orchestrator.tune.records import REQUESTS, SWEEP_FILE, TRIAL_NAME, SweepRecord, Trial

PAUSE = 0.25  # seconds in which several viewers share one listing of a folder
READING = 0.4  # seconds after which an incomplete answer is sent
AT_ONCE = 16  # parallel reads on remote storage
POINTS = 120_000  # of all curves together, in a first answer
FEWEST_POINTS = 50  # of a curve, however many curves there are


@dataclass
class Seen:
    """The last read state of a trial. Its curve is stored in columns; `trial.curve` is empty."""

    trial: Trial
    curve: Curve
    version: int
    texts: dict[str, str] = field(default_factory=dict)  # JSON for the page, by metric


class Changes(NamedTuple):
    """The changes since a viewer's last request."""

    cursor: int
    whole: bool  # the viewer must drop its state
    complete: bool  # if not, the rest can be requested at once
    trials: list[str]  # as JSON


class FollowedSweep:
    """The folder of a sweep, read repeatedly. Thread-safe."""

    def __init__(self, run: str, folder: Folder) -> None:
        self.run = run
        self.folder = folder
        self.name = folder.name
        self.record: SweepRecord | None = None
        self.record_time = 0.0  # Unix time at which the record was written
        self.best: int | None = None  # of a finished sweep: the trial that it chose
        self.requests: set[str] = set()
        self.seen: dict[int, Seen] = {}
        self.unreadable: set[str] = set()
        self.complete = False  # all files of the last listing are read
        # Cursors start at the clock, so that cursors of an earlier server are older than all here.
        self.version = self._began = time.time_ns() // 1_000_000
        self._stamps: dict[str, Stamp] = {}
        self._looked = float("-inf")
        self._lock = threading.Lock()

    @property
    def trials(self) -> list[Trial]:
        with self._lock:
            return [self.seen[number].trial for number in sorted(self.seen)]

    def refresh(self, reading: float = READING) -> None:
        """Read the changes, for a limited time. Raises OSError if the storage does not answer."""
        with self._lock:
            if self.complete and time.monotonic() - self._looked < PAUSE:
                return
            stamps = self.folder.stamps()
            self._looked = time.monotonic()
            self._read_record(stamps)
            self.requests = set((self.folder / REQUESTS).stamps())
            trials = {name: s for name, s in stamps.items() if TRIAL_NAME.fullmatch(name)}
            if not _trial_names(self._stamps) <= trials.keys():
                self._forget()
            self.complete = self._read_trials(trials, reading)

    def changes(self, since: int, metric: str) -> Changes:
        """The changes after the cursor `since`; 0 returns everything."""
        with self._lock:
            whole = since < self._began
            most = max(FEWEST_POINTS, POINTS // max(1, len(self.seen)))
            changed = [seen for seen in self.seen.values() if whole or seen.version > since]
            texts = [_text(seen, metric, most) for seen in changed]
            return Changes(self.version, whole, self.complete, texts)

    def metrics(self) -> list[str]:
        """The names of all metrics."""
        with self._lock:
            names = {n for seen in self.seen.values() for n in (*seen.curve, *seen.trial.metrics)}
        return sorted(names - {"step", "seconds"})

    def _read_record(self, stamps: dict[str, Stamp]) -> None:
        for name, read in ((SWEEP_FILE, self._read_sweep), (MANIFEST, self._read_manifest)):
            if name in stamps and stamps[name] != self._stamps.get(name):
                self._stamps[name] = stamps[name]
                read()
        if SWEEP_FILE in stamps:
            self.record_time = stamps[SWEEP_FILE].modified / 1e9
        if MANIFEST not in stamps:
            self.best = None

    def _read_sweep(self) -> None:
        try:
            self.record = SweepRecord.load(self.folder)
            self.unreadable.discard(SWEEP_FILE)
        except ValueError:
            self.unreadable.add(SWEEP_FILE)

    def _read_manifest(self) -> None:
        try:
            finished = Sweep.load(self.folder)
            self.best = None if finished is None else finished.best_trial
        except StageError:
            self.unreadable.add(MANIFEST)

    def _forget(self) -> None:
        """Reset: trials are gone, so all viewers must start again."""
        self.version += 1
        self._began = self.version
        self._stamps = {n: s for n, s in self._stamps.items() if not TRIAL_NAME.fullmatch(n)}
        self.seen.clear()
        self.unreadable.clear()

    def _read_trials(self, stamps: dict[str, Stamp], reading: float) -> bool:
        """Read the changed trials until the time is up. Returns whether all were read."""
        changed = [name for name in sorted(stamps) if stamps[name] != self._stamps.get(name)]
        end = time.monotonic() + reading
        for name, content in self._contents(changed):
            if content is not None:
                self._take(name, content)
            self._stamps[name] = stamps[name]
            if time.monotonic() > end:
                break
        return all(self._stamps.get(name) == stamps[name] for name in changed)

    def _contents(self, names: list[str]) -> Iterator[tuple[str, bytes | None]]:
        """The files' contents: one by one from a disk, in parallel from remote storage."""
        if self.folder.local_path is not None or len(names) < 2:
            for name in names:
                yield name, self._content(name)
            return
        with ThreadPoolExecutor(AT_ONCE) as threads:
            for first in range(0, len(names), AT_ONCE):
                batch = names[first : first + AT_ONCE]
                yield from zip(batch, threads.map(self._content, batch), strict=True)

    def _content(self, name: str) -> bytes | None:
        try:
            return self.folder.read(name)
        except FileNotFoundError:
            return None

    def _take(self, name: str, content: bytes) -> None:
        try:
            trial = Trial.model_validate_json(content)
        except ValueError:  # a foreign or damaged file: it is reported, and the others are shown
            self.unreadable.add(name)
            return
        self.unreadable.discard(name)
        curve = columns(trial.curve)
        trial.curve = []
        self.version += 1
        self.seen[trial.number] = Seen(trial, curve, self.version)


def _trial_names(names: dict[str, Stamp]) -> set[str]:
    return {name for name in names if TRIAL_NAME.fullmatch(name)}


def _text(seen: Seen, metric: str, most: int) -> str:
    """A trial's JSON for the page, with its curve reduced. Encoded once for all viewers."""
    if metric not in seen.texts:
        whole = finite(seen.trial.model_dump(exclude={"curve", "traceback"}))
        whole["curve"] = thinned(seen.curve, metric, most)
        seen.texts[metric] = json.dumps(whole, allow_nan=False, separators=(",", ":"))
    return seen.texts[metric]

"""Saving and restoring a training: tensors as safetensors, the rest as JSON, nothing pickled.

A checkpoint appears as a whole or not at all. Its files are checked before older checkpoints are
deleted and before a training is restored from it. A damaged one is renamed to
`damaged-step-00000120-1` and never opened again.
"""

import contextlib
import errno
import hashlib
import json
import logging
import math
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

from orchestrator.errors import StageError, StorageError, UserError
from orchestrator.learn.background import Background
from orchestrator.learn.snapshot import Saved, Snapshot
from orchestrator.storage.artifact import ATTEMPT, Checkpoint
from orchestrator.storage.checkpoint_files import (
    MODEL_FILE,
    OPTIMIZER_FILE,
    DamagedError,
    check_size,
    read_tensors,
)
from orchestrator.storage.failures import failed
from orchestrator.storage.files import once
from orchestrator.storage.folder import MANIFEST, Folder, Parts
from orchestrator.tasks.task import Metric

logger = logging.getLogger(__name__)

MARKER = "damaged"  # this file marks a damaged checkpoint where storage cannot rename it
KEPT = 2  # newest checkpoints, besides the best
KEPT_DAMAGED = 3
PATIENCE = 60.0  # seconds for which commits may fail before the training ends

STEP_NAME = re.compile(r"step-(\d{8,})")
DAMAGED_NAME = re.compile(r"damaged-step-\d+-(\d+)")
TEMPORARY_NAME = re.compile(r"\.(damaged-)?step-.*\.tmp")

CURES = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space or raise the quota",
    errno.EROFS: "mount it writable",
    errno.EACCES: "allow writing there",
    errno.EPERM: "allow writing there",
}

Listener = Callable[..., None]  # takes the kind of an event and its fields as keywords


class SupersededError(StageError):
    """Another start of this training has taken over writing its checkpoints."""


def log_event(kind: str, **fields: Any) -> None:
    level = logging.INFO if kind == "checkpoint" else logging.WARNING
    logger.log(
        level, "%s: %s", kind, ", ".join(f"{name} {value}" for name, value in fields.items())
    )


class Checkpoints:
    """The checkpoints of one training, `step-00000120` and so on, in one folder.

    `made_by` holds what a training depends on, such as `{"model.d_model": 64}`: a checkpoint with
    other values is not continued. `attempt` identifies this start of the training, which stops
    writing once the file `attempt` names another start.
    """

    def __init__(
        self,
        folder: Folder,
        metric: Metric,
        made_by: dict[str, Any] | None = None,
        attempt: str = "",
        listener: Listener = log_event,
        patience: float = PATIENCE,
    ) -> None:
        self.folder = folder
        self.metric = metric
        self.made_by: dict[str, Any] = json.loads(json.dumps(made_by or {}))  # as it is read back
        self.attempt = attempt
        self.listener = listener
        self._newest: int | None = None  # the step from which another start would continue
        self._background = Background(self._commit, self._failed, patience)

    def save(self, snapshot: Snapshot) -> None:
        """Commit a snapshot in the background, then delete older checkpoints.

        Of the waiting snapshots, only the newest and the validated ones are kept. If there is no
        room for another validated one, this waits.

        Raises:
            StageError: if the last `LIMIT` commits failed, over `patience` seconds or more.
        """
        self._background.put(snapshot)

    def finish(self) -> None:
        """Wait until all saved snapshots are committed.

        Raises:
            StageError: if storage failed for `patience` seconds, naming the file and the reason.
        """
        self._background.drain()

    def all(self) -> list[Checkpoint]:
        """The committed checkpoints, oldest first, whose files have their sizes."""
        checkpoints = []
        for name in self._names():
            try:
                checkpoints.append(self._manifest(name))
            except DamagedError as error:
                logger.warning("%s; it is skipped", error)
        return checkpoints

    def best(self) -> Checkpoint | None:
        """The checkpoint with the best validation metric; of equals, the later one."""
        return self._best(self.all())

    def restore(self, step: int | None = None) -> Saved | None:
        """Read the newest whole checkpoint, and put damaged ones aside; None if there is none.

        All workers but the first give the `step` that the first has read; they put nothing aside.

        Raises:
            UserError: if the checkpoint was made with other settings, naming them.
            StageError: if the checkpoint of `step` is damaged, or storage cannot be read.
        """
        names = self._names() if step is None else [step_name(step)]
        for name in reversed(names):
            try:
                saved = self._read(name)
            except DamagedError as error:
                if step is not None:
                    raise
                self._put_aside(name, str(error))
                continue
            self._check_made_by(saved.checkpoint)
            self._newest = saved.checkpoint.step
            return saved
        return None

    def _names(self) -> list[str]:
        """The folders of checkpoints, oldest first; some may be damaged."""
        names = [name for name in self.folder.names() if STEP_NAME.fullmatch(name)]
        if self.folder.local_path is None:  # without a manifest it is not committed yet
            inside = {name: (self.folder / name).names() for name in names}
            names = [n for n in names if MANIFEST in inside[n] and MARKER not in inside[n]]
        return sorted(names, key=step_of)

    def _manifest(self, name: str) -> Checkpoint:
        """A checkpoint's manifest, after comparing the sizes of its files; cheap.

        Raises:
            DamagedError: if the manifest or a file is missing or has another content or size.
            StageError: if storage cannot be read.
        """
        folder = self.folder / name
        try:
            if folder.is_link:
                raise DamagedError(f"{folder} is a link")
            if folder.size(MARKER) is not None:
                raise DamagedError(f"{folder} was found damaged before")
            if folder.size(MANIFEST) is None or (checkpoint := Checkpoint.load(folder)) is None:
                raise DamagedError(f"{folder}/{MANIFEST} is missing")
            if step_name(checkpoint.step) != name:
                raise DamagedError(f"{folder}/{MANIFEST} is of step {checkpoint.step}")
            for file in (MODEL_FILE, OPTIMIZER_FILE):
                check_size(checkpoint, file)
        except DamagedError:
            raise
        except StageError as error:  # its manifest does not parse
            raise DamagedError(str(error)) from error
        except OSError as error:  # the files may be whole: storage does not answer now
            raise StageError(f"{folder} cannot be read: {error}") from error
        return checkpoint

    def _read(self, name: str) -> Saved:
        checkpoint = self._manifest(name)
        return Saved(
            checkpoint, *(read_tensors(checkpoint, f) for f in (MODEL_FILE, OPTIMIZER_FILE))
        )

    def _check_made_by(self, checkpoint: Checkpoint) -> None:
        then, now = checkpoint.made_by, self.made_by
        if not now:
            return
        differences = [
            f"{key} = {then.get(key, 'nothing')}, this job has {now.get(key, 'nothing')}"
            for key in sorted(then.keys() | now.keys())
            if key not in then or key not in now or then[key] != now[key]
        ]
        if differences:
            raise UserError(
                f"{checkpoint.folder} was made with {'; with '.join(differences)}: change the job "
                f"back, give it another name, or delete {self.folder} to start anew"
            )

    @once()  # a commit that fails is tried again as a whole, soon
    def _commit(self, snapshot: Snapshot) -> None:
        """Write a snapshot, check its files' sizes, then delete the checkpoints it replaces."""
        started = time.monotonic()
        name = step_name(snapshot.step)
        try:
            self._check_attempt()
            if not self._has(name):
                (self.folder / name).write_whole(self._contents(snapshot, started))
        except SupersededError as error:
            self._report("checkpoint dropped", step=snapshot.step, reason=str(error))
            return
        proved = self._manifest(name)
        self._newest = snapshot.step
        seconds = time.monotonic() - started
        self._report(
            "checkpoint", step=proved.step, seconds=seconds, bytes=sum(proved.sizes.values())
        )
        try:
            self._prune()
        except Exception as error:
            self._report("prune failed", error=str(error))

    def _has(self, name: str) -> bool:
        """Whether this step is committed already. If it is not, its folder is cleared."""
        if name in self._names():
            try:
                self._manifest(name)
                return True
            except DamagedError as error:
                self._put_aside(name, str(error))
        if self.folder.local_path is None:  # remains of a killed worker, or damaged
            (self.folder / name).delete()
        return False

    def _check_attempt(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            now = self.folder.read(ATTEMPT).decode() if self.attempt else ""
            if now != self.attempt:
                raise SupersededError(f"{self.folder} is written by attempt {now}")

    def _contents(self, snapshot: Snapshot, started: float) -> Iterator[tuple[str, Parts]]:
        """The files of a checkpoint, its manifest last."""
        files, sizes = {}, {}
        for name, packed in ((MODEL_FILE, snapshot.model), (OPTIMIZER_FILE, snapshot.optimizer)):
            files[name], sizes[name] = _digest(packed.parts), sum(map(len, packed.parts))
            self._check_attempt()  # as late as possible: digests of large files take seconds
            yield name, packed.parts
        checkpoint = Checkpoint(
            folder=self.folder / step_name(snapshot.step),
            seconds=time.monotonic() - started,
            summary=f"step {snapshot.step}",
            notices=snapshot.notices,
            step=snapshot.step,
            total_steps=snapshot.total_steps,
            metrics=snapshot.metrics,
            history=snapshot.history,
            precision=snapshot.precision,
            samples=snapshot.samples,
            made_by=self.made_by,
            files=files,
            sizes=sizes,
        )
        self._check_attempt()
        yield MANIFEST, [checkpoint.model_dump_json(indent=1).encode()]

    def _failed(self, snapshot: Snapshot, error: BaseException) -> StageError:
        """Report a failed commit; returns the error to raise if it keeps failing."""
        folder = self.folder / step_name(snapshot.step)
        reason = " ".join(str(error).split()).rstrip(".")
        if isinstance(error, StorageError) and not reason.startswith("cannot write"):
            reason = f"cannot write {folder}: {reason}"
        elif not isinstance(error, StageError):
            reason = f"cannot write {folder}: {type(error).__name__}: {reason}"
        self._report("checkpoint failed", step=snapshot.step, error=reason)
        cause = error if isinstance(error, OSError) else error.__cause__
        cure = CURES.get(getattr(cause, "errno", None) or 0, "repair the storage")
        start = "starts anew" if self._newest is None else f"continues from step {self._newest}"
        return failed(f"{reason}; {cure} and run it again: it {start}", cause)

    def _report(self, kind: str, **fields: Any) -> None:
        try:
            self.listener(kind, **fields)
        except Exception:  # an event that cannot be reported harms no checkpoint
            logger.exception("could not report %s: %s", kind, fields)

    def _put_aside(self, name: str, reason: str) -> None:
        numbers = [int(m[1]) for n in self.folder.names() if (m := DAMAGED_NAME.fullmatch(n))]
        try:
            (self.folder / name).rename(f"damaged-{name}-{max(numbers, default=0) + 1}")
        except StageError:
            if self.folder.local_path is not None:
                raise
            (self.folder / name).write(MARKER, reason.encode())
        self._report("quarantined", checkpoint=name, reason=reason)

    def _best(self, checkpoints: list[Checkpoint]) -> Checkpoint | None:
        best: tuple[float, Checkpoint] | None = None
        for checkpoint in checkpoints:
            value = checkpoint.metrics.get(self.metric.name, math.nan)
            if not math.isnan(value) and (best is None or not self.metric.better(best[0], value)):
                best = value, checkpoint
        return best[1] if best else None

    def _prune(self) -> None:
        """Delete all checkpoints but the newest and the best; none that is newer than these."""
        good = self.all()
        newest, best = good[-KEPT:], self._best(good)
        kept = {checkpoint.folder.name for checkpoint in (*newest, best) if checkpoint}
        names = self.folder.names()
        old = [n for n in names if STEP_NAME.fullmatch(n) and step_of(n) < newest[0].step]
        if self.folder.local_path is None:
            marked = [name for name in old if MARKER in (self.folder / name).names()]
            kept.update(marked[-KEPT_DAMAGED:])
        damaged = {n: int(m[1]) for n in names if (m := DAMAGED_NAME.fullmatch(n))}
        kept.update(sorted(damaged, key=damaged.__getitem__)[-KEPT_DAMAGED:])
        killed = [name for name in names if TEMPORARY_NAME.fullmatch(name)]
        for name in (name for name in (*old, *damaged, *killed) if name not in kept):
            folder = self.folder / name
            if folder.local_path is not None:
                folder = folder.rename(folder.temporary_name())  # never read in part
            folder.delete()


def step_name(step: int) -> str:
    return f"step-{step:08d}"


def step_of(name: str) -> int:
    return int(name.removeprefix("step-"))


def _digest(parts: Parts) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()

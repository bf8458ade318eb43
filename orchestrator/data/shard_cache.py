"""Copies of remote shards on this machine, shared by the user's processes and named by content.

One process copies a shard; others that need it wait for that copy. A copy gets its name once it is
whole, and each process compares it with its SHA-256 before it reads it. All copies together take at
most half of the room that would be free without them: those that were opened least recently are
deleted first. A process that has a deleted copy mapped reads on; one that opens it copies it anew.
"""

import contextlib
import fcntl
import hashlib
import logging
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from stat import S_ISREG

from orchestrator.errors import StageError
from orchestrator.storage.artifact import Shard
from orchestrator.storage.folder import Folder, no_link
from orchestrator.storage.lease import NO_LOCKS
from orchestrator.storage.scratch import own_folder

SHARE = 0.5  # of the room that would be free without copies
LONGEST_WAIT = 300.0  # seconds for another process's copy: it may be stopped, but not dead
POLL = 0.05  # seconds between two looks at a lock
IN_USE = 3_600.0  # seconds since a copy was opened last, in which its deletion is worth a warning

log = logging.getLogger(__name__)

_whole: set[tuple[int | str, ...]] = set()  # copies that this process has verified


@contextlib.contextmanager
def local_file(folder: Folder, shard: Shard) -> Iterator[Path]:
    """The path of a shard on local storage, or of its copy on this machine. The copy is not deleted
    within the block, which opens it.

    Raises:
        StageError: if the shard is missing or damaged, or there is no room for its copy.
    """
    if folder.local_path is not None:
        yield folder.local_path / shard.name
        return
    path = own_folder("shards") / shard.sha256
    with _locked(path, LONGEST_WAIT) as ours:
        if not _is_whole(path, shard):
            if ours:
                _delete_partial_copies(path)
            _make_room(path.parent, shard.bytes)
            _copy(folder, shard, path)
        status = path.lstat()
        os.utime(path, ns=(time.time_ns(), status.st_mtime_ns), follow_symlinks=False)
        yield path


def damaged_shard(
    folder: Folder, shard: Shard, reason: Exception | str, delete: Folder | Path
) -> StageError:
    """The error of a damaged shard, which names what to delete."""
    text = (getattr(reason, "strerror", None) or str(reason)).split("\n")[0]
    return StageError(
        f"{folder}/{shard.name} is missing or damaged ({text}): delete {delete} and run again"
    )


def _copy(folder: Folder, shard: Shard, path: Path) -> None:
    try:
        content = folder.read(shard.name)
    except FileNotFoundError as error:
        raise damaged_shard(folder, shard, error, delete=folder) from error
    if hashlib.sha256(content).hexdigest() != shard.sha256:
        raise damaged_shard(folder, shard, "its SHA-256 is another", delete=folder)
    partial = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    try:
        # Not synced to disk: a copy that a power cut damages is found by its SHA-256.
        with open(partial, "xb", opener=no_link) as file:
            file.write(content)
        os.replace(partial, path)
    except OSError as error:
        raise StageError(
            f"cannot copy {folder}/{shard.name} to {path.parent}: {error.strerror}; free some "
            f"space, or set TMPDIR to a folder with more"
        ) from error
    finally:
        partial.unlink(missing_ok=True)
    _whole.add(_identity(path))


def _is_whole(path: Path, shard: Shard) -> bool:
    """Whether a copy has the content of its name. Its bytes are hashed once per process."""
    try:
        identity = _identity(path)
        if not S_ISREG(path.lstat().st_mode):
            return False
        if identity not in _whole:
            with open(path, "rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != shard.sha256:
                    return False
            _whole.add(identity)
    except FileNotFoundError:
        return False
    return True


def _identity(path: Path) -> tuple[int | str, ...]:
    """Attributes that change if a file is rewritten."""
    status = path.lstat()
    return path.name, status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


# Room


def _make_room(cache: Path, needed: int) -> None:
    """Delete copies, the least recently opened first, until `needed` bytes more keep the bound."""
    found: list[tuple[float, int, Path]] = []
    for entry in os.scandir(cache):
        with contextlib.suppress(FileNotFoundError):  # deleted meanwhile
            status = entry.stat(follow_symlinks=False)
            if not entry.name.endswith(".lock") and S_ISREG(status.st_mode):
                found.append((status.st_atime, status.st_size, Path(entry.path)))
    held = sum(size for _, size, _ in found)
    bound = SHARE * (shutil.disk_usage(cache).free + held)
    for opened, size, path in sorted(found):
        if held + needed <= bound:
            return
        with _locked(path, wait=0.0) as ours:
            if not ours:  # it is being copied or opened
                continue
            path.unlink(missing_ok=True)
            _lock_of(path).unlink(missing_ok=True)
        held -= size
        if time.time() - opened < IN_USE:
            log.warning(
                "%s is full (%.1f GB): a copy of a shard that may be needed again was deleted; "
                "TMPDIR names a larger disk",
                cache,
                bound / 1e9,
            )


def _delete_partial_copies(path: Path) -> None:
    """Delete what a process left that was killed while it wrote this copy."""
    for partial in path.parent.glob(f"{path.name}.*"):
        if partial != _lock_of(path):
            partial.unlink(missing_ok=True)


# Locks


def _lock_of(path: Path) -> Path:
    return path.with_name(f"{path.name.split('.')[0]}.lock")


@contextlib.contextmanager
def _locked(path: Path, wait: float) -> Iterator[bool]:
    """Hold the lock of a copy, which ends with its holder. False if another process or thread
    still holds it after `wait` seconds."""
    lock, deadline = _lock_of(path), time.monotonic() + wait
    while True:
        with open(lock, "a", opener=no_link) as file:
            ours = _lock(file.fileno())
            if ours and _is_named(file.fileno(), lock):
                yield True
                return
        if ours:
            continue  # its last holder deleted it together with the copy
        if time.monotonic() >= deadline:
            yield False
            return
        time.sleep(POLL)


def _lock(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        # A temporary folder without locks: each process copies for itself.
    return True


def _is_named(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), path.lstat())
    except FileNotFoundError:
        return False

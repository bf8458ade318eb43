"""The lease of a run: one process at a time holds it, and a dead holder soon loses it.

On local storage the lease is a file lock, which ends with its process, also after kill -9. On a
network disk the file server frees the lock of a lost machine, by default after 90 s with NFSv4.
Storage without locks (S3, some network disks) has an object instead, which its holder rewrites
every few seconds. Another process takes over when it has seen no change of it for `EXPIRY` seconds
by its own clock. No clock of another machine counts.
"""

import contextlib
import errno
import fcntl
import json
import logging
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace

import pyarrow.fs

from orchestrator.errors import InUseError, StageError
from orchestrator.storage.failures import failed
from orchestrator.storage.files import once
from orchestrator.storage.folder import Folder, no_link

LOCK_FILE = "lease"
LEASE_OBJECT = "lease.json"
HEARTBEAT = 5.0  # seconds between two writes of the object
EXPIRY = 20.0  # seconds without a heartbeat after which the holder may be dead
SETTLE = 1.0  # seconds in which two simultaneous starts overwrite each other's claim
NO_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}

log = logging.getLogger(__name__)


@contextlib.contextmanager
def hold(folder: Folder, name: str) -> Iterator[None]:
    """Hold the run `name` in `folder`, so that a second run of that name is refused.

    Raises:
        InUseError: naming the holder; also if another run took the lease over, whatever the block
            itself raised.
        StageError: if the storage refuses.
    """
    with contextlib.ExitStack() as stack:
        try:
            way = _kept_alive if folder.local_path is None else _locked
            stack.enter_context(way(folder, name))
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise failed(f"cannot hold run {name!r} in {folder}: {error}", error) from error
            stack.enter_context(_kept_alive(folder, name))
        yield


def holder(folder: Folder) -> str | None:
    """The holder of the run in this folder: "process 7 on host since …", or None."""
    if folder.local_path is not None:
        try:
            with open(folder.local_path / LOCK_FILE) as file:
                return None if _lock(file.fileno(), fcntl.LOCK_SH) else _named(file.read())
        except FileNotFoundError:
            pass  # the lease may be an object
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
    claim = _read(folder)
    return claim.holder if claim is not None and _is_fresh(folder) else None


def _refused(name: str, holder: str) -> InUseError:
    return InUseError(
        f"run {name!r} is in use by {holder}: wait for it, or give this one another name"
    )


def _this_process() -> str:
    since = time.strftime("%Y-%m-%d %H:%M:%S %Z")
    return f"process {os.getpid()} on {socket.gethostname()} since {since}"


def _named(text: str) -> str:
    """Retry: a holder locks the file an instant before it writes its name."""
    return text.strip() or "another process"


# Local storage: a file lock


@contextlib.contextmanager
def _locked(folder: Folder, name: str) -> Iterator[None]:
    assert folder.local_path is not None
    folder.local_path.mkdir(parents=True, exist_ok=True)
    # Opened close-on-exec, the default: no child process keeps the lock.
    with open(folder.local_path / LOCK_FILE, "a+", opener=no_link) as file:
        for _ in range(10):  # a process that asks for the holder has the lock for an instant
            if _lock(file.fileno(), fcntl.LOCK_EX):
                break
            time.sleep(0.05)
        else:
            file.seek(0)
            raise _refused(name, _named(file.read()))
        file.truncate(0)
        file.write(_this_process())
        file.flush()
        yield


def _lock(file: int, kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


# Storage without locks: an object that is kept fresh


@dataclass(frozen=True)
class Claim:
    """The content of the lease object. `beats` changes with every heartbeat."""

    holder: str
    id: str
    beats: int = 0


@contextlib.contextmanager
def _kept_alive(folder: Folder, name: str) -> Iterator[None]:
    _refuse_beside_the_living(folder, name)
    claim = Claim(_this_process(), uuid.uuid4().hex)
    heart = Heart(folder, claim)
    try:
        _write(folder, claim)
        time.sleep(SETTLE)
        winner = _read(folder)
        if winner is None or winner.id != claim.id:
            raise _refused(name, "another process" if winner is None else winner.holder)
        heart.start()
        try:
            yield
        except (Exception, KeyboardInterrupt) as error:
            if heart.successor is None:
                raise
            raise InUseError(f"run {name!r} was taken over by {heart.successor}") from error
    finally:
        heart.stop()
        with contextlib.suppress(OSError):
            left = _read(folder)
            if left is not None and left.id == claim.id:
                _delete(folder, LEASE_OBJECT)


class Heart:
    """A thread that renews a claim, and interrupts the run if the claim is lost."""

    def __init__(self, folder: Folder, claim: Claim) -> None:
        self.successor: str | None = None
        self._folder = folder
        self._claim = claim
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lease", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join(timeout=HEARTBEAT)

    def _run(self) -> None:
        while not self._stopped.wait(HEARTBEAT):
            try:
                self._beat()
            except (OSError, StageError) as error:  # the next heartbeat may succeed
                log.warning("the lease in %s could not be renewed: %s", self._folder, error)
            if self.successor is not None:
                _interrupt_main_thread()
                return

    def _beat(self) -> None:
        """Read the claim first: another process may have taken over while this one slept."""
        stored = _read(self._folder)
        if stored is None:
            self.successor = f"another process, or {self._folder}/{LEASE_OBJECT} was deleted"
        elif stored.id not in (self._claim.id, ""):
            self.successor = stored.holder
        elif not self._stopped.is_set():
            self._claim = replace(self._claim, beats=self._claim.beats + 1)
            _write(self._folder, self._claim)


def _interrupt_main_thread() -> None:
    """Interrupt the run like Ctrl-C, or like SIGTERM if Ctrl-C is ignored (a shell's `&`)."""
    main = threading.main_thread().ident
    assert main is not None
    for number in (signal.SIGINT, signal.SIGTERM):
        if callable(signal.getsignal(number)):
            signal.pthread_kill(main, number)  # unlike interrupt_main(), this ends a sleep too
            return


def _refuse_beside_the_living(folder: Folder, name: str) -> None:
    """Return once the run has no holder, or its holder gives no sign of life.

    A living holder rewrites its claim every `HEARTBEAT` seconds. One that does not for `EXPIRY`
    seconds of this process's clock is dead; where the claim looks old by the storage's clock,
    which may have been set, two heartbeats decide.

    Raises:
        InUseError: if the holder lives.
    """
    claim = _read(folder)
    if claim is None:
        return
    patience = EXPIRY if _is_fresh(folder) else 2 * HEARTBEAT
    log.warning("run %r is held by %s: waiting for a sign of life", name, claim.holder)
    end = time.monotonic() + patience
    while time.monotonic() < end:
        time.sleep(HEARTBEAT / 10)
        newer = _read(folder)
        if newer is None:
            return
        if newer != claim:
            raise _refused(name, newer.holder)
    if not claim.id and _is_fresh(folder):  # another version's claim, say: its changes are not seen
        raise _refused(name, claim.holder)


def _is_fresh(folder: Folder) -> bool:
    """Whether the lease was renewed recently, compared with the modification time of a new file."""
    filesystem, path = _place(folder)
    probe = f"lease-probe-{uuid.uuid4().hex}"
    folder.write(probe, b"")
    try:
        names = [f"{path}/{LEASE_OBJECT}", f"{path}/{probe}"]
        renewed, now = (info.mtime for info in filesystem.get_file_info(names))
    finally:
        with contextlib.suppress(OSError):
            _delete(folder, probe)
    if renewed is None or now is None:
        return False
    return bool(abs((now - renewed).total_seconds()) <= EXPIRY)


def _read(folder: Folder) -> Claim | None:
    """The stored claim; None if there is none; a claim without an id if it is unreadable.

    Storage that fails is not asked again here: a heartbeat must not wait longer than a claim lasts.
    """
    for _ in range(3):  # some storages do not replace an object atomically
        try:
            return Claim(**json.loads(folder.read(LEASE_OBJECT, retry=False)))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError):
            time.sleep(0.05)
    return Claim("an unknown process", "")


def _write(folder: Folder, claim: Claim) -> None:
    with once():  # a late claim would overwrite its successor's
        folder.write(LEASE_OBJECT, json.dumps(asdict(claim)).encode())


def _delete(folder: Folder, name: str) -> None:
    filesystem, path = _place(folder)
    filesystem.delete_file(f"{path}/{name}")


def _place(folder: Folder) -> tuple[pyarrow.fs.FileSystem, str]:
    """The folder for pyarrow, which knows modification times."""
    place = folder.for_ray()
    return place.get("storage_filesystem") or pyarrow.fs.LocalFileSystem(), place["storage_path"]

"""The lease of a run, with real processes: one holds it, and whoever dies loses it."""

import contextlib
import errno
import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.fs
import pytest

import orchestrator.storage.files
from orchestrator.errors import InUseError, StageError, UserError
from orchestrator.storage import lease
from orchestrator.storage.folder import Folder

HOLD = """
import subprocess, sys, time
import pyarrow.fs
import orchestrator.storage.files
from orchestrator.storage import lease
from orchestrator.storage.folder import Folder
from orchestrator.errors import OrchestratorError

folder, root, then = sys.argv[1:]
filesystem = pyarrow.fs.SubTreeFileSystem(root, pyarrow.fs.LocalFileSystem())
orchestrator.storage.files._filesystem = lambda _: filesystem
lease.HEARTBEAT, lease.EXPIRY, lease.SETTLE = 0.15, 0.5, 0.2
print("ready", flush=True)
sys.stdin.readline()
try:
    with lease.hold(Folder(folder), "a"):
        if then == "start a child":
            subprocess.Popen(["sleep", "20"], close_fds=False, stdout=subprocess.DEVNULL)
        print("holds", flush=True)
        time.sleep(20)
except OrchestratorError as error:
    print(type(error).__name__, error, flush=True)
"""

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def remote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folder:
    filesystem = pyarrow.fs.SubTreeFileSystem(str(tmp_path), pyarrow.fs.LocalFileSystem())
    (tmp_path / "host/a").mkdir(parents=True)  # as no object store needs
    monkeypatch.setattr(orchestrator.storage.files, "_filesystem", lambda _: filesystem)
    for name, seconds in {"HEARTBEAT": 0.15, "EXPIRY": 0.5, "SETTLE": 0.2}.items():
        monkeypatch.setattr(lease, name, seconds)
    return Folder("memory-test://host/a")


@pytest.fixture(params=["local", "remote"])
def folder(request: pytest.FixtureRequest, remote: Folder, tmp_path: Path) -> Folder:
    return remote if request.param == "remote" else Folder(str(tmp_path / "runs" / "a"))


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts processes that hold a folder from the moment of `go` on."""
    started = []

    def start(folder: Folder, then: str = "wait") -> "subprocess.Popen[str]":
        command = [sys.executable, "-c", HOLD, folder.uri, str(tmp_path), then]
        pipe = subprocess.PIPE
        process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, text=True, start_new_session=True
        )
        started.append(process)
        assert line(process) == "ready"
        return process

    yield start
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def line(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def go(process: "subprocess.Popen[str]") -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def holding(process: "subprocess.Popen[str]") -> "subprocess.Popen[str]":
    go(process)
    assert line(process) == "holds"
    return process


def taken_within(folder: Folder, seconds: float) -> bool:
    """Whether the folder can be held before so many seconds have passed."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            with lease.hold(folder, "a"):
                return True
        except UserError:
            time.sleep(0.05)
    return False


def test_a_second_one_is_refused_at_once_with_the_name_of_the_first(
    folder: Folder, start: Start
) -> None:
    first = holding(start(folder))
    started = time.monotonic()
    told = rf"run 'a' is in use by process {first.pid} on .* since 2"
    with pytest.raises(UserError, match=told), lease.hold(folder, "a"):
        pass
    assert time.monotonic() - started < 2
    assert (lease.holder(folder) or "").startswith(f"process {first.pid} on ")
    assert first.poll() is None


def test_of_two_that_start_at_once_one_gets_it(folder: Folder, start: Start) -> None:
    processes = [start(folder), start(folder)]
    for process in processes:
        go(process)
    refused, first = sorted(line(process) for process in processes)
    assert first == "holds"
    assert refused.startswith("InUseError run 'a' is in use by process ")


def test_a_holder_that_was_killed_is_followed_and_leaves_no_lock_to_its_children(
    folder: Folder, start: Start
) -> None:
    process = holding(start(folder, "start a child"))
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert taken_within(folder, 5.0)
    assert lease.holder(folder) is None


def test_whoever_leaves_gives_it_back(folder: Folder) -> None:
    assert lease.holder(folder) is None
    for _ in range(2):
        with lease.hold(folder, "a"):
            assert (lease.holder(folder) or "").startswith(f"process {os.getpid()} on ")
        assert lease.holder(folder) is None
    with pytest.raises(KeyboardInterrupt), lease.hold(folder, "a"):
        raise KeyboardInterrupt
    assert lease.holder(folder) is None


def test_asking_for_the_holder_all_the_time_refuses_nobody(folder: Folder) -> None:
    done = threading.Event()

    def ask() -> None:
        while not done.is_set():
            lease.holder(folder)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        for _ in range(3):
            with lease.hold(folder, "a"):
                pass
    finally:
        done.set()
        thread.join()


# Storage without locks


def test_the_first_try_after_a_kill_waits_for_the_lease_and_gets_it(
    remote: Folder, start: Start
) -> None:
    """A scheduler starts the command again at once, on another machine, say."""
    process = holding(start(remote))
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    started = time.monotonic()
    with lease.hold(remote, "a"):
        assert time.monotonic() - started < lease.EXPIRY + lease.SETTLE + 2


def test_a_living_holder_is_found_by_its_next_sign_of_life(remote: Folder, start: Start) -> None:
    process = holding(start(remote))
    started = time.monotonic()
    told = f"in use by process {process.pid} "
    with pytest.raises(InUseError, match=told), lease.hold(remote, "a"):
        pass
    assert time.monotonic() - started < lease.EXPIRY + 1
    assert process.poll() is None


def test_local_storage_that_refuses_locks_is_held_by_an_object(
    tmp_path: Path, remote: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    folder = Folder(str(tmp_path / "b"))
    with lease.hold(folder, "b"):
        assert folder.exists(lease.LEASE_OBJECT)
        assert (lease.holder(folder) or "").startswith(f"process {os.getpid()} on ")
        with pytest.raises(UserError), lease.hold(folder, "b"):
            pass
    assert lease.holder(folder) is None


def test_a_holder_stays_one_for_longer_than_the_expiry(remote: Folder) -> None:
    with lease.hold(remote, "a"):
        end = time.monotonic() + 2 * lease.EXPIRY
        while time.monotonic() < end:
            assert lease.holder(remote) is not None
            time.sleep(0.05)
        assert remote.names() == [lease.LEASE_OBJECT]


@pytest.mark.parametrize("offset", [-3600.0, 3600.0])
def test_a_clock_that_was_set_neither_ends_a_lease_nor_keeps_a_dead_one(
    offset: float, tmp_path: Path, remote: Folder, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "host/a" / lease.LEASE_OBJECT
    is_fresh = lease._is_fresh

    def is_fresh_after_the_clock_was_set(folder: Folder) -> bool:
        os.utime(path, (time.time() + offset, time.time() + offset))
        return is_fresh(folder)

    process = holding(start(remote))
    with monkeypatch.context() as clock:
        clock.setattr(lease, "_is_fresh", is_fresh_after_the_clock_was_set)
        with pytest.raises(UserError, match="in use by"), lease.hold(remote, "a"):
            pass
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert taken_within(remote, 5.0)


def test_a_holder_that_slept_ends_where_another_has_taken_over(
    remote: Folder, start: Start
) -> None:
    sleeper = holding(start(remote))
    os.kill(sleeper.pid, signal.SIGSTOP)
    time.sleep(2 * lease.EXPIRY)
    with lease.hold(remote, "a"):
        os.kill(sleeper.pid, signal.SIGCONT)
        assert line(sleeper).startswith(
            f"InUseError run 'a' was taken over by process {os.getpid()} on "
        )
        sleeper.wait()
        assert (lease.holder(remote) or "").startswith(f"process {os.getpid()} on ")


@pytest.mark.parametrize("ignored", [signal.SIGINT, signal.SIGTERM])
def test_a_lost_lease_ends_the_block_though_a_signal_is_ignored(
    ignored: signal.Signals, tmp_path: Path, remote: Folder
) -> None:
    def stop(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(ignored, signal.SIG_IGN)
    try:
        with pytest.raises(InUseError, match=r"lease\.json was deleted"), lease.hold(remote, "a"):
            (tmp_path / "host/a" / lease.LEASE_OBJECT).unlink()
            time.sleep(10)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_a_storage_that_is_away_for_a_while_costs_no_lease(
    remote: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: Any, **options: Any) -> None:
        raise OSError("slow down")

    with lease.hold(remote, "a"):
        with monkeypatch.context() as away:
            away.setattr(Folder, "read", refuse)
            away.setattr(Folder, "write", refuse)
            time.sleep(5 * lease.HEARTBEAT)
        time.sleep(3 * lease.HEARTBEAT)
        assert lease.holder(remote) is not None


def test_an_object_that_cannot_be_read_is_a_dead_holder_s_if_nobody_renews_it(
    tmp_path: Path, remote: Folder
) -> None:
    path = tmp_path / "host/a" / lease.LEASE_OBJECT
    path.write_bytes(b'{"holder": "pro')
    renewed = threading.Event()

    def renew() -> None:
        while not renewed.wait(lease.HEARTBEAT):
            path.touch()

    thread = threading.Thread(target=renew)
    thread.start()
    try:
        told = "in use by an unknown process"
        with pytest.raises(UserError, match=told), lease.hold(remote, "a"):
            pass
    finally:
        renewed.set()
        thread.join()
    with lease.hold(remote, "a"):
        assert (lease.holder(remote) or "").startswith(f"process {os.getpid()} on ")


def test_a_storage_that_refuses_the_lease_is_told(
    remote: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: Any, **options: Any) -> None:
        raise PermissionError("access denied")

    monkeypatch.setattr(Folder, "read", refuse)
    with pytest.raises(StageError, match="access denied"), lease.hold(remote, "a"):
        pass


def test_a_lease_is_not_written_through_a_link(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_text("alias")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / lease.LOCK_FILE).symlink_to(other)
    with (
        pytest.raises(StageError, match="cannot hold"),
        lease.hold(Folder(str(tmp_path / "run")), "a"),
    ):
        pass
    assert other.read_text() == "alias"

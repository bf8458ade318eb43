"""Faults while a checkpoint is committed: kill -9 at every write, damage, full and read-only disks.

No cluster is needed: a process that saves in a loop is killed by SIGKILL, and the disk is a real
tmpfs of 4 MiB. Nothing here is a mock of the outcome.
"""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator.errors import StageError
from orchestrator.learn.checkpoints import Checkpoints
from orchestrator.learn.snapshot import Snapshot, pack
from orchestrator.storage.checkpoint_files import MODEL_FILE, OPTIMIZER_FILE
from orchestrator.storage.folder import MANIFEST, Folder
from orchestrator.tasks.task import Metric

STEPS = 5
LOSSES = {2: 0.5, 4: 0.7}  # of the validated steps; the second step stays the best
MIB = 2**20
CHANGES = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "os.link"}


def snapshot(step: int, floats: int = 24) -> Snapshot:
    """The state of a deterministic training after this step."""
    generator = torch.Generator().manual_seed(step)
    return Snapshot(
        step=step,
        total_steps=STEPS,
        model=pack({"weight": torch.randn(floats, generator=generator)}),
        optimizer=pack(
            {"moment": torch.randn(floats, generator=generator), "step": torch.tensor(step)}
        ),
        metrics={"loss": LOSSES[step]} if step in LOSSES else {},
        history=[{"step": float(step)}],
        precision="fp32",
        notices=[],
        samples=f"{step:064x}",
    )


def open_checkpoints(path: Path, **settings: Any) -> Checkpoints:
    return Checkpoints(Folder(str(path)), Metric("loss", "min"), **settings)


def assert_restored(checkpoints: Checkpoints, step: int, floats: int = 24) -> None:
    saved, expected = checkpoints.restore(), snapshot(step, floats)
    assert saved is not None and saved.checkpoint.step == step
    for tensors, packed in ((saved.model, expected.model), (saved.optimizer, expected.optimizer)):
        assert b"".join(pack(tensors).parts) == b"".join(packed.parts)
    assert saved.checkpoint.samples == expected.samples
    assert saved.checkpoint.metrics == expected.metrics


def step_folders(path: Path) -> list[int]:
    return sorted(int(folder.name.removeprefix("step-")) for folder in path.glob("step-*"))


# kill -9 at every write of a commit


def die_at(change: int) -> None:
    """Make this process kill itself before its n-th change of a file system.

    Python's audit events report most changes. `write`, which is killed halfway, and `fsync` have
    none and are wrapped. Only changes of the committing thread count, so that all runs count alike.
    """
    done, write, fsync = 0, os.write, os.fsync

    def count(last_words: Callable[[], object] = lambda: None) -> None:
        nonlocal done
        if threading.current_thread() is threading.main_thread():
            return
        done += 1
        if done == change:
            last_words()
            os.kill(os.getpid(), signal.SIGKILL)

    def counted_write(file: int, content: Any) -> int:
        count(lambda: write(file, bytes(content)[: len(content) // 2]))
        return write(file, content)

    def counted_fsync(file: int) -> None:
        count()
        fsync(file)

    def hear(event: str, args: tuple[Any, ...]) -> None:
        if event in CHANGES:
            count()

    os.write, os.fsync = counted_write, counted_fsync
    sys.addaudithook(hear)


def save_all(path: Path) -> None:
    """A training that continues from the checkpoints in `path`, and records each reported step."""

    def note(kind: str, **fields: Any) -> None:
        if kind == "checkpoint":
            with path.with_suffix(".committed").open("a") as notes:
                notes.write(f"{fields['step']}\n")

    checkpoints = open_checkpoints(path, listener=note)
    saved = checkpoints.restore()
    for step in range(saved.checkpoint.step + 1 if saved else 1, STEPS + 1):
        checkpoints.save(snapshot(step))
        checkpoints.finish()


def run_killed(path: Path, change: int) -> bool:
    """Run a process that is killed at a change; returns whether it was."""
    child = os.fork()
    if child == 0:
        die_at(change)
        save_all(path)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert status in (0, signal.SIGKILL), f"change {change}: status {status}"
    return status == signal.SIGKILL


def kill_at_every_change(root: Path) -> None:
    """For each change, run a training in a new folder that is killed there, until one survives."""
    change = 1
    while run_killed(root / str(change), change):
        change += 1


def kill_again_and_again(path: Path) -> None:
    """Kill one training at later and later changes; it continues each time."""
    change = 1
    while run_killed(path, change):
        change += 1


def run_here(function: Callable[[Path], None], path: Path) -> None:
    """Call `function` in a process without threads, which can fork after its imports."""
    code = f"from {__name__} import *; {function.__name__}(Path(sys.argv[1]))"
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", code, str(path)], cwd=root, check=True, timeout=280)


def reported_steps(path: Path) -> list[int]:
    notes = path.with_suffix(".committed")
    return [int(line) for line in notes.read_text().split()] if notes.exists() else []


def test_killed_at_every_change_the_newest_committed_checkpoint_loads(tmp_path: Path) -> None:
    run_here(kill_at_every_change, tmp_path)
    last = max(int(path.name) for path in tmp_path.iterdir() if path.is_dir())
    assert last > STEPS * 15  # each commit has at least this many changes
    seen = set()
    for change in range(1, last + 1):
        path, events = tmp_path / str(change), []
        newest = max(step_folders(path), default=0)
        seen.add(newest)
        # What has its name is whole, and what was told is there; it may have died between the two.
        assert newest - max(reported_steps(path), default=0) in (0, 1)
        checkpoints = open_checkpoints(path, listener=lambda kind, **fields: events.append(kind))  # noqa: B023
        for step in step_folders(path):
            assert checkpoints.restore(step) is not None
        if newest:
            assert_restored(checkpoints, newest)
        assert not events  # nothing was damaged
        assert newest < 3 or {2, newest - 1} <= set(
            step_folders(path)
        )  # the best, and the one before
        checkpoints.save(snapshot(STEPS + 1))
        checkpoints.finish()
        assert_restored(open_checkpoints(path), STEPS + 1)
        left = {name for name in os.listdir(path) if not name.startswith("step-")}
        assert not left and events == ["checkpoint"]
    assert seen == set(range(STEPS + 1))


def test_a_training_that_is_killed_again_and_again_still_finishes(tmp_path: Path) -> None:
    run_here(kill_again_and_again, tmp_path / "run")
    checkpoints = open_checkpoints(tmp_path / "run")
    assert_restored(checkpoints, STEPS)
    checkpoints.save(snapshot(STEPS + 1))  # an undisturbed commit removes leftovers
    checkpoints.finish()
    assert sorted(os.listdir(tmp_path / "run")) == [f"step-{n:08d}" for n in (2, STEPS, STEPS + 1)]
    assert reported_steps(tmp_path / "run") == sorted(
        reported_steps(tmp_path / "run")
    )  # no reported step was lost


# Damage to what was committed


def truncated(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize("damage", [truncated, flipped])
@pytest.mark.parametrize("name", [MODEL_FILE, OPTIMIZER_FILE, MANIFEST])
def test_a_damaged_newest_checkpoint_is_set_aside_and_its_step_repeated(
    tmp_path: Path, name: str, damage: Callable[[bytes], bytes]
) -> None:
    run_here(save_all, tmp_path / "run")
    file = tmp_path / "run" / f"step-{STEPS:08d}" / name
    file.write_bytes(damage(file.read_bytes()))
    run_here(save_all, tmp_path / "run")  # goes back one step and repeats it
    assert reported_steps(tmp_path / "run") == [1, 2, 3, 4, 5, 5]
    assert_restored(open_checkpoints(tmp_path / "run"), STEPS)
    damaged = tmp_path / "run" / f"damaged-step-{STEPS:08d}-1"
    assert (damaged / name).exists()
    assert step_folders(tmp_path / "run") == [2, STEPS - 1, STEPS]


# Full and read-only disks


def mount(*arguments: str) -> None:
    outcome = subprocess.run(["mount", *arguments], capture_output=True, text=True)
    if outcome.returncode:
        pytest.skip(f"mount {' '.join(arguments)} is refused: {outcome.stderr.strip()}")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 4 MiB."""
    path = tmp_path / "disk"
    path.mkdir()
    mount("-t", "tmpfs", "-o", "size=4m", "tmpfs", str(path))
    yield path
    subprocess.run(["umount", str(path)], check=True)


def fill(path: Path) -> Path:
    """Fill the disk except 512 KiB."""
    free = os.statvfs(path).f_bavail * os.statvfs(path).f_frsize
    filler = path / "filler"
    filler.write_bytes(bytes(free - MIB // 2))
    return filler


FLOATS = MIB // 8  # a checkpoint of 1 MiB: half a MiB each for the model and its optimizer


def test_a_full_disk_is_named_and_training_continues_after_space_is_freed(disk: Path) -> None:
    checkpoints = open_checkpoints(disk / "run", patience=0.2)
    checkpoints.save(snapshot(1, FLOATS))
    checkpoints.finish()
    filler = fill(disk)
    checkpoints.save(snapshot(2, FLOATS))
    with pytest.raises(StageError) as refusal:
        checkpoints.finish()
    assert f"cannot write {disk}/run/step-00000002/" in str(refusal.value)
    assert "No space left on device; free some space and run it again" in str(refusal.value)
    assert "it continues from step 1" in str(refusal.value)
    assert os.listdir(disk / "run") == ["step-00000001"]  # no half-written file takes space
    assert_restored(open_checkpoints(disk / "run"), 1, FLOATS)
    filler.unlink()
    checkpoints.finish()
    assert_restored(open_checkpoints(disk / "run"), 2, FLOATS)


def test_a_training_survives_if_space_is_freed_in_time(disk: Path) -> None:
    checkpoints = open_checkpoints(disk / "run", patience=60.0)
    filler = fill(disk)
    checkpoints.save(snapshot(1, FLOATS))
    threading.Timer(0.5, filler.unlink).start()
    checkpoints.finish()
    assert_restored(open_checkpoints(disk / "run"), 1, FLOATS)


def test_a_disk_that_stays_full_ends_the_training_soon(disk: Path) -> None:
    checkpoints = open_checkpoints(disk / "run", patience=0.0)
    fill(disk)
    with pytest.raises(StageError, match=r"No space left on device.*starts anew"):
        for step in range(1, 1000):
            checkpoints.save(snapshot(step, FLOATS))


def test_a_read_only_disk_is_named_and_training_continues_when_it_is_writable(disk: Path) -> None:
    checkpoints = open_checkpoints(disk / "run", patience=0.2)
    checkpoints.save(snapshot(1))
    checkpoints.finish()
    mount("-o", "remount,ro", str(disk))
    checkpoints.save(snapshot(2))
    with pytest.raises(StageError) as refusal:
        checkpoints.finish()
    assert f"cannot write {disk}/run/step-00000002" in str(refusal.value)
    assert "Read-only file system; mount it writable and run it again" in str(refusal.value)
    assert_restored(open_checkpoints(disk / "run"), 1)
    mount("-o", "remount,rw", str(disk))
    checkpoints.finish()
    assert_restored(open_checkpoints(disk / "run"), 2)
    assert sorted(os.listdir(disk / "run")) == ["step-00000001", "step-00000002"]

"""A storage that is slow, answers 503, or is full."""

import os
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from orchestrator.errors import StageError
from orchestrator.learn.checkpoints import step_of
from tests.drills.conftest import Begin, Undisturbed
from tests.drills.s3 import Storage
from tests.drills.test_commit import disk
from tests.drills.trainings import Drill, checkpoints, ending

pytestmark = [pytest.mark.usefixtures("connected"), pytest.mark.timeout(400)]
__all__ = ["disk"]
LONGER = {"train__steps": 500, "train__eval_every": 500, "train__checkpoint_every": 50}


@pytest.fixture
def well(s3: Storage) -> Iterator[Storage]:
    yield s3
    s3.delay, s3.refuses = 0.0, False


def speed(drill: Drill, seconds: float) -> float:
    """Steps a second over so many seconds."""
    before, started = drill.heartbeats()[0].step, time.monotonic()
    time.sleep(seconds)
    return (drill.heartbeats()[0].step - before) / (time.monotonic() - started)


def test_a_slow_or_refusing_storage_does_not_delay_the_training(
    begin: Begin, undisturbed: Undisturbed, well: Storage, chance: Random
) -> None:
    # Without spare processes, whose start would slow the training at some moment.
    drill = begin(**LONGER, storage="s3://drill/slow", cluster__spares=False)
    drill.wait_for_step(chance.randrange(25, 60))
    usual = speed(drill, 3)
    well.delay = 5.0
    slow = speed(drill, 8)
    well.delay, well.refuses = 0.0, True
    refused = speed(drill, 5)
    well.refuses = False
    print(f"\nsteps a second: {usual:.1f}, slow {slow:.1f}, refused {refused:.1f}")
    assert min(slow, refused) > usual / 2
    assert well.refused
    drill.end()
    assert ending(drill.folder) == undisturbed(**LONGER)
    saved = checkpoints(drill.folder)
    steps = [name for name in saved.folder.names() if name.startswith("step-")]
    assert all(saved.restore(step_of(name)) for name in steps)  # no checkpoint is incomplete
    (failed, *_) = drill.events("checkpoint failed")
    assert "s3://drill/slow" in failed["error"] and "AWS Error" in failed["error"]


def test_a_storage_that_keeps_refusing_ends_the_training_which_continues_later(
    begin: Begin, undisturbed: Undisturbed, well: Storage, chance: Random
) -> None:
    drill = begin(storage="s3://drill/refused")
    drill.wait_for_step(chance.randrange(25, 60))
    well.refuses = True
    with pytest.raises(StageError, match=r"cannot \w+ s3://drill/refused/.*run it again"):
        drill.end()
    well.refuses = False
    again = begin(storage="s3://drill/refused")
    again.end()
    assert again.events("resumed")
    assert ending(again.folder) == undisturbed()


def test_a_full_disk_ends_the_training_which_continues_after_space_is_freed(
    begin: Begin, undisturbed: Undisturbed, disk: Path, chance: Random
) -> None:
    drill = begin(storage=str(disk))
    drill.wait_for_step(chance.randrange(25, 60))
    free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
    filler = disk / "filler"
    filler.write_bytes(bytes(free - 100_000))  # a third of a checkpoint
    with pytest.raises(StageError, match=r"No space left on device; free some space"):
        drill.end()
    filler.unlink()
    again = begin(storage=str(disk))
    again.end()
    assert again.events("resumed")
    assert again.events("checkpoint failed") or drill.events("checkpoint failed")
    assert ending(again.folder) == undisturbed()

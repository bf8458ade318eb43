"""A storage that is slow, then answers 503."""

import time
from collections.abc import Iterator

import pytest

from orchestrator.checkpoint import Checkpoints
from orchestrator.errors import StageError
from orchestrator.task import Metric
from tests.drills.conftest import Begin, Drill, Undisturbed, chance, ending
from tests.drills.s3 import Storage

pytestmark = [pytest.mark.usefixtures("connected"), pytest.mark.timeout(400)]
LONGER = {"train__steps": 500, "train__eval_every": 500, "train__checkpoint_every": 50}


@pytest.fixture
def well(s3: Storage) -> Iterator[Storage]:
    yield s3
    s3.delay, s3.refuses = 0.0, False


def speed(drill: Drill, seconds: float) -> float:
    """Steps a second over so many seconds."""
    before, started = drill.beats()[0].step, time.monotonic()
    time.sleep(seconds)
    return (drill.beats()[0].step - before) / (time.monotonic() - started)


def test_a_slow_or_refusing_storage_does_not_hold_up_the_training(
    begin: Begin, undisturbed: Undisturbed, well: Storage
) -> None:
    drill = begin(**LONGER, storage="s3://drill/slow")
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
    checkpoints = Checkpoints(drill.folder / "checkpoints", Metric("loss", "min"))
    whole = [checkpoints.restore(checkpoint.step) for checkpoint in checkpoints.all()]
    assert len(whole) == len(checkpoints.folder.names())  # none is torn
    (failed, *_) = drill.events("checkpoint failed")
    assert "503" in failed["error"] or "SERVICE_UNAVAILABLE" in failed["error"]


def test_a_storage_that_goes_on_refusing_ends_the_training_which_continues_later(
    begin: Begin, undisturbed: Undisturbed, well: Storage
) -> None:
    drill = begin(storage="s3://drill/refused")
    drill.wait_for_step(chance.randrange(25, 60))
    well.refuses = True
    with pytest.raises(StageError, match=r"cannot write s3://drill/refused/.*run it again"):
        drill.end()
    well.refuses = False
    again = begin(storage="s3://drill/refused")
    again.end()
    assert again.events("resumed")
    assert ending(again.folder) == undisturbed()

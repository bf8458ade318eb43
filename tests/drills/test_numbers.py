"""Wrong numbers: a loss that is NaN, and a flipped bit in a weight of one worker."""

from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

from orchestrator.errors import DivergedError
from orchestrator.job.sections import TrainConfig
from orchestrator.learn.batches import Batches
from orchestrator.learn.world import World
from orchestrator.storage.artifact import PreparedData
from tests.drills.conftest import Begin, Undisturbed
from tests.drills.tasks import FLIP, POISON
from tests.drills.trainings import SLOW, checkpoints, ending

pytestmark = [pytest.mark.usefixtures("connected"), pytest.mark.timeout(300)]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    return folder


def poison(prepared: PreparedData, data: Path, steps: list[int], worker: int) -> list[int]:
    """Poison one row of this worker in each of these steps; returns the rows."""
    config = TrainConfig(steps=SLOW["train__steps"], global_batch_size=8)
    batches = Batches(prepared, config, World())
    rows = [int(batches.rows(step)[worker * 4]) for step in steps]
    np.save(data / POISON, batches.train.read(np.array(rows))["tokens"])
    return rows


def poisoned_job(data: Path) -> dict[str, Any]:
    return {"task": "tests.drills.tasks:Poisoned", "data__source": str(data)}


def test_a_step_with_a_nan_loss_is_skipped_by_all_workers(
    begin: Begin, prepared: PreparedData, data: Path, chance: Random
) -> None:
    poison(prepared, data, [chance.randrange(20, 80)], chance.randrange(2))
    drill = begin(**poisoned_job(data), train__spike_sigmas=0)
    training = drill.end()
    skipped = drill.events("step skipped")
    assert skipped and not drill.events("rolled back")  # some rows come again in the next epoch
    assert all(event["skipped"] == 1 for event in skipped)
    assert training.metrics["loss"] < 5


def test_losses_that_stay_nan_end_the_training_and_the_rows_are_named(
    begin: Begin, prepared: PreparedData, data: Path, chance: Random
) -> None:
    first = chance.randrange(20, 80)
    rows = poison(prepared, data, [first, first + 1, first + 2], chance.randrange(2))
    drill = begin(**poisoned_job(data))
    with pytest.raises(DivergedError, match=rf"step {first} \(rows .*\b{rows[0]}\b") as raised:
        drill.end()
    assert raised.value.exit_code == 1
    (back,) = drill.events("rolled back")
    assert f"step {first}" in back["reason"]
    assert not drill.events("worker lost")
    saved = checkpoints(drill.folder).restore()  # the checkpoint is good: bad steps were skipped
    assert saved is not None and saved.checkpoint.step <= first + 2
    assert all(tensor.isfinite().all() for tensor in saved.model.values())


def test_a_flipped_bit_is_found_and_undone(
    begin: Begin, data: Path, undisturbed: Undisturbed, chance: Random
) -> None:
    drill = begin(task="tests.drills.tasks:Flipped", data__source=str(data))
    drill.wait_for_step(chance.randrange(25, 90))
    (data / FLIP).touch()
    back = drill.wait_for_event("rolled back")
    print(f"\na flipped bit: {back}")
    drill.end()
    assert ending(drill.folder) == undisturbed()
    assert "differ" in back["reason"]
    assert not drill.events("worker lost")

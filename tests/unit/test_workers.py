"""Trainings by several processes: what one process does, and what kills of any of them leave."""

import random
from pathlib import Path

import pytest
import torch

from orchestrator.storage.artifact import PreparedData
from orchestrator.storage.folder import Folder
from tests.unit.toy import (
    Disturbance,
    Fault,
    ending,
    final_weights,
    newest,
    prepare_counting,
    toy_config,
    train_together,
)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    return prepare_counting(Folder(str(tmp_path_factory.mktemp("prepared"))))


@pytest.mark.parametrize(
    ("global_batch_size", "optimizer"),
    [(5, "adamw"), (2, "muon")],  # shares differ, or a worker has none
)
def test_several_workers_learn_what_one_does(
    prepared: PreparedData, tmp_path: Path, global_batch_size: int, optimizer: str
) -> None:
    config = toy_config(
        optimizer=optimizer, global_batch_size=global_batch_size, micro_batch_size=2, lr=0.001
    )
    outcomes = {n: train_together(n, prepared, tmp_path / str(n), config) for n in (1, 2, 3)}
    (alone,) = outcomes.pop(1)
    for size, together in outcomes.items():
        for outcome in together:
            assert outcome.metrics == pytest.approx(alone.metrics, rel=1e-3)
        losses, expected = (
            [values["loss"] for _, _, values in outcome.listener.reports]
            for outcome in (together[0], alone)
        )
        assert len(losses) == 12
        assert losses == pytest.approx(expected, rel=1e-3)
        assert newest(tmp_path / str(size)).samples == newest(tmp_path / "1").samples
        torch.testing.assert_close(
            final_weights(tmp_path / str(size)), final_weights(tmp_path / "1"), atol=1e-3, rtol=0
        )


def test_workers_without_rows_validate_on_a_single_one(
    prepared: PreparedData, tmp_path: Path
) -> None:
    config = toy_config(steps=2, optimizer="adamw", eval_rows=1)
    (alone,) = train_together(1, prepared, tmp_path / "1", config)
    for outcome in train_together(3, prepared, tmp_path / "3", config):
        assert outcome.metrics == pytest.approx(alone.metrics, rel=1e-4)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_deterministic_training_ends_in_the_same_bits_for_any_number_of_workers(
    prepared: PreparedData, tmp_path: Path, optimizer: str
) -> None:
    config = toy_config(
        deterministic=True, optimizer=optimizer, global_batch_size=5, micro_batch_size=2,
        eval_rows=9, checkpoint_every=3, eval_every=6,
    )  # fmt: skip
    model = {"dropout": 0.3, "num_layers": 2, "d_model": 32}
    for size in (1, 2, 3):
        train_together(size, prepared, tmp_path / str(size), config, **model)
        assert ending(tmp_path / str(size)) == ending(tmp_path / "1")
    for size, step in ((2, 4), (1, 7), (3, 100)):  # each is killed there, and another goes on
        kill = Disturbance((Fault("kill", (step,), rank=size - 1),))
        train_together(size, prepared, tmp_path / "elastic", config, kill, **model)
    assert ending(tmp_path / "elastic") == ending(tmp_path / "1")


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("size", [1, 3])
def test_kills_at_any_steps_of_any_workers_change_no_bit(
    prepared: PreparedData, tmp_path: Path, size: int, optimizer: str
) -> None:
    config = toy_config(optimizer=optimizer, micro_batch_size=2, checkpoint_every=3, eval_every=6)
    train_together(size, prepared, tmp_path / "whole", config, dropout=0.3)
    dice = random.Random(f"{size} {optimizer}")
    first, second = dice.randrange(12), dice.randrange(12)
    for step in sorted((first, second)):
        kill = Disturbance((Fault("kill", (step,), rank=dice.choice([None, *range(size)])),))
        outcomes = train_together(size, prepared, tmp_path / "torn", config, kill, dropout=0.3)
        assert None in outcomes
    *_, outcome = train_together(size, prepared, tmp_path / "torn", config, dropout=0.3)
    assert ending(tmp_path / "torn") == ending(tmp_path / "whole")
    assert outcome.metrics == newest(tmp_path / "whole").metrics

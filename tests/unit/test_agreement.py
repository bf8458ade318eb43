"""What workers agree on: weights that differ, and what one of them was asked for."""

from pathlib import Path

import pytest
import torch

from orchestrator.learn.directive import Directive
from orchestrator.learn.optimizer import build_optimizers
from orchestrator.learn.skipped_steps import Guard
from orchestrator.learn.state import State
from orchestrator.learn.world import World
from orchestrator.storage.artifact import PreparedData
from orchestrator.storage.folder import Folder
from tests.unit.toy import (
    Disturbance,
    Fault,
    ending,
    newest,
    prepare_counting,
    toy_config,
    toy_task,
    train_together,
)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    return prepare_counting(Folder(str(tmp_path_factory.mktemp("prepared"))))


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_the_checksum_changes_with_any_bit(optimizer: str) -> None:
    model = toy_task().build_model(257, 1)
    optimizers = build_optimizers(model, toy_config(optimizer=optimizer), World())
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    for one in optimizers:
        one.step(0.1, torch.tensor(True))
    state = State(model, optimizers, Guard(torch.device("cpu"), 6.0), "fp32")
    usual = state.checksum()
    moments = [value for one in optimizers for of in one.state.values() for value in of.values()]
    assert len(moments) > len(list(model.parameters()))
    for tensor in [*model.parameters(), *moments]:
        words = tensor.detach().view(-1).view(torch.int32)
        for bit in (0, 13, 30):
            words[-1] ^= 1 << bit
            assert state.checksum() != usual
            words[-1] ^= 1 << bit
    assert state.checksum() == usual


@pytest.fixture(scope="module")
def whole(prepared: PreparedData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where nothing went wrong."""
    path = tmp_path_factory.mktemp("whole")
    train_together(2, prepared, path, toy_config(checkpoint_every=4, eval_every=12))
    return path


@pytest.mark.parametrize(
    ("step", "rank", "agreement_seconds"), [(0, 1, 0.0), (5, 0, 0.0), (5, 1, 1e9), (11, 0, 1e9)]
)
def test_a_bit_that_flips_on_one_worker_is_found_and_undone(
    prepared: PreparedData,
    whole: Path,
    tmp_path: Path,
    step: int,
    rank: int,
    agreement_seconds: float,
) -> None:
    config = toy_config(checkpoint_every=4, eval_every=12)
    flip = Disturbance(
        (Fault("flipped bit", (step,), rank=rank),), agreement_seconds=agreement_seconds
    )
    first, second = train_together(2, prepared, tmp_path, config, flip)
    (event,) = first.listener.heard("rolled back")
    assert "weights differ" in event["reason"]
    assert first.metrics == second.metrics
    assert ending(tmp_path) == ending(whole)


def test_a_machine_that_adds_in_another_order_trains_the_same_weights(
    prepared: PreparedData, whole: Path, tmp_path: Path
) -> None:
    config = toy_config(checkpoint_every=4, eval_every=12)
    other = Disturbance((Fault("other norm", (0,), rank=1),))
    first, second = train_together(2, prepared, tmp_path, config, other)
    assert first.error == second.error == ""
    assert not first.listener.heard("rolled back")
    assert ending(tmp_path) == ending(whole)


def test_a_machine_that_keeps_flipping_bits_ends_the_training(
    prepared: PreparedData, tmp_path: Path
) -> None:
    config = toy_config(checkpoint_every=4, eval_every=12)
    flips = Disturbance((Fault("flipped bit", tuple(range(5, 12)), rank=1, times=1000),))
    for outcome in train_together(2, prepared, tmp_path, config, flips):
        assert "weights differ between workers 0 and 1 at step 6" in outcome.error
    assert newest(tmp_path).step == 4


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("size", [1, 2])
def test_a_training_that_is_asked_to_stop_saves_and_goes_on_another_time(
    prepared: PreparedData, tmp_path: Path, size: int, optimizer: str
) -> None:
    config = toy_config(eval_every=6, optimizer=optimizer)
    train_together(size, prepared, tmp_path / "whole", config, dropout=0.3)
    for step in (4, 6):  # by itself, and where a validation is due
        stop = Disturbance(asked={step: Directive.STOP})
        outcomes = train_together(size, prepared, tmp_path / "torn", config, stop, dropout=0.3)
        assert [outcome.metrics for outcome in outcomes] == [None] * size
        assert newest(tmp_path / "torn").step == step
    *_, last = train_together(size, prepared, tmp_path / "torn", config, dropout=0.3)
    assert last.metrics == newest(tmp_path / "whole").metrics
    assert ending(tmp_path / "torn") == ending(tmp_path / "whole")


def test_a_training_that_is_asked_to_stop_at_its_end_has_ended(
    prepared: PreparedData, tmp_path: Path
) -> None:
    stop = Disturbance(asked={12: Directive.STOP})
    (outcome,) = train_together(1, prepared, tmp_path, toy_config(), stop)
    assert outcome.metrics == newest(tmp_path).metrics

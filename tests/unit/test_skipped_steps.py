"""Steps that are not taken: what they leave alone, and when the training goes back for them."""

import math
from pathlib import Path

import pytest
import torch

from orchestrator.learn.batches import Batches
from orchestrator.learn.skipped_steps import REPEATED, WARM_STEPS, Guard, GuardState
from orchestrator.learn.state import GUARD
from orchestrator.learn.world import World
from orchestrator.storage.artifact import PreparedData
from orchestrator.storage.folder import Folder
from tests.unit.toy import (
    Disturbance,
    Fault,
    ending,
    newest,
    prepare_counting,
    saved_in,
    toy_config,
    train_together,
)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    return prepare_counting(Folder(str(tmp_path_factory.mktemp("prepared"))))


class Judged:
    """A guard that is shown one loss after the other."""

    def __init__(self, spike_sigmas: float = 6.0) -> None:
        self.guard = Guard(torch.device("cpu"), spike_sigmas)
        self.step = 0

    def takes(self, loss: float, norm: float = 1.0) -> bool:
        taken = self.guard.judge(self.step, torch.tensor(loss), torch.tensor(norm))
        self.step += 1
        return bool(taken)

    def take_usual(self, steps: int) -> None:
        """Losses of about 2, spread by a twentieth."""
        assert all(self.takes(2.0 + 0.05 * math.sin(step)) for step in range(steps))


@pytest.mark.parametrize(
    ("loss", "norm"), [(math.nan, 1), (math.inf, 1), (2, math.nan), (2, math.inf)]
)
def test_a_loss_or_a_gradient_that_is_no_number_is_never_taken(loss: float, norm: float) -> None:
    judged = Judged(spike_sigmas=0.0)
    assert not judged.takes(loss, norm)
    judged.take_usual(3)
    assert not judged.takes(loss, norm)
    assert judged.guard.look() == (2, -1)


def test_a_leap_is_skipped_once_the_usual_loss_is_known() -> None:
    judged = Judged()
    judged.take_usual(WARM_STEPS - 1)
    assert judged.takes(2.0)
    assert not judged.takes(20.0)
    assert judged.takes(2.0)
    assert judged.guard.look() == (1, -1)


def test_a_leap_before_is_taken() -> None:
    judged = Judged()
    judged.take_usual(WARM_STEPS - 1)
    assert judged.takes(20.0)


@pytest.mark.parametrize("loss", [2.2, 2.9, 0.0, -5.0])
def test_what_is_far_for_so_small_a_spread_but_no_leap_is_taken(loss: float) -> None:
    judged = Judged()
    judged.take_usual(2 * WARM_STEPS)
    assert judged.takes(loss)


def test_without_sigmas_no_leap_is_skipped() -> None:
    judged = Judged(spike_sigmas=0.0)
    judged.take_usual(2 * WARM_STEPS)
    assert judged.takes(1e6)


def test_a_loss_that_falls_and_then_stays_is_always_taken() -> None:
    judged = Judged()
    assert all(judged.takes(0.1 + 6.0 * math.exp(-step / 40)) for step in range(600))


def test_what_is_skipped_does_not_become_usual() -> None:
    judged = Judged()
    judged.take_usual(2 * WARM_STEPS)
    usual = judged.guard.state[:3]
    assert not any(judged.takes(loss) for loss in (20.0, math.nan, 30.0))
    assert judged.guard.state[:3] == usual


def test_only_steps_skipped_in_a_row_are_too_many() -> None:
    judged = Judged()
    for _ in range(5):
        for _ in range(REPEATED - 1):
            assert not judged.takes(math.nan)
        assert judged.takes(2.0)
    assert judged.guard.look() == (5 * (REPEATED - 1), -1)
    first = judged.step
    for _ in range(REPEATED + 4):
        assert not judged.takes(math.nan)
    assert judged.takes(2.0)
    assert judged.guard.look() == (5 * (REPEATED - 1) + REPEATED + 4, first)


def test_a_guard_goes_on_from_its_state() -> None:
    whole, resumed = Judged(), Judged()
    whole.take_usual(WARM_STEPS + 7)
    assert not whole.takes(math.nan)
    resumed.step = whole.step
    resumed.guard.tensor.copy_(whole.guard.tensor)
    for loss in (2.0, 2.2, 9.0, math.nan, 2.1, 40.0):
        assert resumed.takes(loss) == whole.takes(loss)
        assert torch.equal(resumed.guard.tensor, whole.guard.tensor)


def tensors(path: Path, step: int) -> dict[str, torch.Tensor]:
    """All that the checkpoint of a step holds."""
    saved = saved_in(path).restore(step)
    assert saved is not None
    return {**saved.model, **saved.optimizer}


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize(("kind", "step"), [("nan loss", 0), ("nan gradient", 4)])
def test_every_worker_skips_a_step_that_is_no_number_on_one(
    prepared: PreparedData, tmp_path: Path, step: int, kind: str, optimizer: str
) -> None:
    config = toy_config(steps=step + 1, eval_every=1, optimizer=optimizer)
    nan = Disturbance((Fault(kind, (step,), rank=1),))
    first, second = train_together(2, prepared, tmp_path, config, nan)
    assert first.metrics == second.metrics
    assert first.listener.heard("step skipped") == [{"step": step + 1, "skipped": 1}]
    before, after = tensors(tmp_path, step), tensors(tmp_path, step + 1)
    assert GuardState(*before.pop(GUARD)).skipped == 0
    assert GuardState(*after.pop(GUARD)).skipped == 1
    if step == 0:  # the optimizers make their tensors with the first step
        assert all(not tensor.any() for name, tensor in after.items() if name not in before)
    for name, tensor in before.items():
        assert torch.equal(after[name], tensor), name


def test_a_training_goes_on_after_skipped_steps_and_resumes_to_the_bit(
    prepared: PreparedData, tmp_path: Path
) -> None:
    config = toy_config(checkpoint_every=3, eval_every=12)
    nan = Fault("nan loss", (2, 7), rank=1)
    first, _ = train_together(2, prepared, tmp_path / "whole", config, Disturbance((nan,)))
    assert first.listener.steps == list(range(1, 13))
    assert math.isfinite(first.metrics["loss"])
    kill = Disturbance((nan, Fault("kill", (8,))))
    train_together(2, prepared, tmp_path / "torn", config, kill)
    train_together(2, prepared, tmp_path / "torn", config, Disturbance((nan,)))
    assert ending(tmp_path / "torn") == ending(tmp_path / "whole")


@pytest.mark.parametrize("agreement_seconds", [0.0, 1e9])
def test_steps_skipped_in_a_row_by_accident_are_taken_again(
    prepared: PreparedData, tmp_path: Path, agreement_seconds: float
) -> None:
    config = toy_config(checkpoint_every=4, eval_every=12)
    train_together(2, prepared, tmp_path / "whole", config)
    nan = Disturbance((Fault("nan loss", (4, 5, 6), rank=1),), agreement_seconds=agreement_seconds)
    first, _ = train_together(2, prepared, tmp_path / "healed", config, nan)
    (event,) = first.listener.heard("rolled back")
    assert "is NaN" in event["reason"]
    assert ending(tmp_path / "healed") == ending(tmp_path / "whole")


def test_steps_that_must_be_skipped_again_end_the_training_and_name_their_rows(
    prepared: PreparedData, tmp_path: Path
) -> None:
    config = toy_config(checkpoint_every=4, eval_every=12)
    rows = Batches(prepared, config, World()).rows(5)
    nan = Disturbance((Fault("nan loss", (5, 6, 7, 8, 9), rank=1, times=1000),))
    outcomes = train_together(2, prepared, tmp_path, config, nan)
    for outcome in outcomes:
        assert outcome.error.startswith("DivergedError")
        assert f"step 5 (rows {', '.join(map(str, rows))} of the training split)" in outcome.error
    assert len(outcomes[0].listener.heard("rolled back")) == 1
    assert newest(tmp_path).step == 4

"""The training loop of one worker: it learns, resumes to the bit, and tells how it goes."""

import math
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from orchestrator.data.shards import ShardReader
from orchestrator.errors import DivergedError
from orchestrator.infer.batch import to_device
from orchestrator.infer.trained_model import load_processor, load_weights
from orchestrator.learn import pace as pace_module
from orchestrator.learn.fit import fit
from orchestrator.learn.optimizer import learning_rate
from orchestrator.learn.pace import CALIBRATION_STEPS
from orchestrator.learn.world import World
from orchestrator.storage.artifact import PreparedData
from orchestrator.storage.folder import Folder
from orchestrator.tasks.task import Batch
from tests.unit.toy import (
    LENGTH,
    Killed,
    Listener,
    curve,
    ending,
    final_weights,
    newest,
    newest_files,
    prepare_counting,
    saved_in,
    toy_config,
    toy_task,
    train,
)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    return prepare_counting(Folder(str(tmp_path_factory.mktemp("prepared"))))


@pytest.fixture
def every_step_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace_module, "REPORT_SECONDS", 0.0)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_the_loss_falls_on_a_sequence_that_can_be_learned(
    prepared: PreparedData, tmp_path: Path, optimizer: str
) -> None:
    listener = Listener()
    config = toy_config(steps=80, eval_every=20, optimizer=optimizer)
    metrics = train(prepared, tmp_path, config, listener)
    losses = [metrics["loss"] for _, _, metrics in listener.validations]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] == metrics["loss"] < 0.5 < math.log(257) / 5
    assert [step for step, _, _ in listener.validations] == [20, 40, 60, 80]


@pytest.mark.parametrize(("optimizer", "dropout"), [("adamw", 0.3), ("muon", 0.0), ("muon", 0.3)])
@pytest.mark.parametrize(
    ("die_in", "die_at"), [("validated", 6), ("progress", 8), ("progress", 2), ("validated", 12)]
)
@pytest.mark.usefixtures("every_step_reports")
def test_a_killed_training_resumes_to_the_bit(
    prepared: PreparedData,
    tmp_path: Path,
    die_in: str,
    die_at: int,
    optimizer: str,
    dropout: float,
) -> None:
    config = toy_config(eval_every=3, optimizer=optimizer)
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    metrics = train(prepared, whole, config, dropout=dropout)
    with pytest.raises(Killed):
        train(prepared, torn, config, Listener(die_in, die_at), dropout=dropout)
    torch.manual_seed(99)  # nothing may depend on how random numbers stood
    assert train(prepared, torn, config, dropout=dropout) == metrics
    assert ending(torn) == ending(whole)
    assert len(curve(whole)) == 12 + 4  # so that there was something to compare


def test_a_finished_training_is_not_trained_further(prepared: PreparedData, tmp_path: Path) -> None:
    metrics = train(prepared, tmp_path, toy_config())
    files, listener = newest_files(tmp_path), Listener()
    assert train(prepared, tmp_path, toy_config(), listener) == metrics
    assert newest_files(tmp_path) == files
    assert not listener.reports and not listener.validations


def test_the_seed_decides_the_weights(prepared: PreparedData, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train(prepared, tmp_path / name, toy_config(seed=seed))
    assert newest_files(tmp_path / "a") == newest_files(tmp_path / "b")
    assert newest_files(tmp_path / "a") != newest_files(tmp_path / "c")


def test_the_metrics_are_those_of_the_saved_weights_without_dropout(
    prepared: PreparedData, tmp_path: Path
) -> None:
    metrics = train(prepared, tmp_path, toy_config(eval_rows=9), dropout=0.5)
    task = toy_task()
    model = task.build_model(257, 1)
    load_weights(model, newest(tmp_path))
    batch = to_device(ShardReader(prepared, "validation").read(range(9)), torch.device("cpu"))
    with torch.no_grad():
        predictions = task.predict(model.eval(), batch, load_processor(task, prepared))
    assert metrics == pytest.approx(task.score(predictions), rel=1e-5)
    assert newest(tmp_path).metrics == metrics


def test_every_step_draws_its_own_dropout(
    prepared: PreparedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, drawn = toy_task(), []

    def loss(model: torch.nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        drawn.append(float(torch.rand(())))
        return type(task).loss(task, model, batch)

    monkeypatch.setattr(task, "loss", loss)
    fit(task, prepared, toy_config(), World(), Listener())
    assert len(set(drawn)) == len(drawn) == 12


def test_checkpoints_change_nothing(prepared: PreparedData, tmp_path: Path) -> None:
    metrics = train(prepared, tmp_path, toy_config())
    assert fit(toy_task(), prepared, toy_config(), World(), Listener()) == metrics


def test_micro_batches_change_nothing_but_the_memory(
    prepared: PreparedData, tmp_path: Path
) -> None:
    metrics = {}
    for size in (6, 4, 1):  # whole, unevenly cut, one by one
        config = toy_config(micro_batch_size=size, optimizer="adamw", lr=0.001)
        metrics[size] = train(prepared, tmp_path / str(size), config)
    for size in (4, 1):
        torch.testing.assert_close(
            final_weights(tmp_path / str(size)), final_weights(tmp_path / "6"), atol=1e-5, rtol=0
        )
        assert metrics[size] == pytest.approx(metrics[6], abs=1e-5)


@pytest.mark.parametrize("eval_every", [1, 12])
def test_a_rate_that_is_far_too_high_is_named(
    prepared: PreparedData, tmp_path: Path, eval_every: int
) -> None:
    config = toy_config(lr=1e35, optimizer="adamw", eval_every=eval_every)
    with pytest.raises(DivergedError, match=r"train\.lr = 1e\+35"):
        train(prepared, tmp_path, config)
    metrics = [checkpoint.metrics for checkpoint in saved_in(tmp_path).all()]
    assert all(math.isfinite(value) for values in metrics for value in values.values())
    with pytest.raises(DivergedError, match=r"train\.lr = 1e\+35"):
        fit(toy_task(), prepared, config, World(), Listener())


@pytest.mark.usefixtures("every_step_reports")
def test_progress_tells_loss_rate_and_speed_of_every_step(
    prepared: PreparedData, tmp_path: Path
) -> None:
    listener, config = Listener(), toy_config(steps=30, lr=0.02)
    started = time.monotonic()
    train(prepared, tmp_path, config, listener)
    slowest = 6 * LENGTH / (time.monotonic() - started)
    assert [step for step, _, _ in listener.reports] == list(range(1, 31))
    assert {total for _, total, _ in listener.reports} == {30}
    values = [values for _, _, values in listener.reports]
    expected = [learning_rate(config, step, 30) for step in range(30)]
    assert [value["lr"] for value in values] == pytest.approx(expected)
    assert values[0]["loss"] == pytest.approx(math.log(257), rel=0.05)
    assert values[-1]["loss"] < 0.5 * values[0]["loss"]
    assert all(slowest < value["throughput"] < math.inf for value in values)


@pytest.fixture
def timed_for_16_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """However short they are."""
    monkeypatch.setattr(pace_module, "CALIBRATION_SHARE", 0.0)


@pytest.mark.usefixtures("timed_for_16_steps")
def test_a_training_in_minutes_saves_its_steps_with_the_first_checkpoint(
    prepared: PreparedData, tmp_path: Path
) -> None:
    config = toy_config(steps=None, minutes=0.02)
    killed, resumed = Listener("stepped", CALIBRATION_STEPS + 1), Listener()
    with pytest.raises(Killed):
        train(prepared, tmp_path, config, killed)
    ((step, total_steps, _),) = killed.validations
    assert step == CALIBRATION_STEPS < total_steps
    assert newest(tmp_path).total_steps == total_steps
    train(prepared, tmp_path, config, resumed)
    assert newest(tmp_path).step == total_steps
    assert {total for _, total, _ in resumed.validations} == {total_steps}


@pytest.mark.usefixtures("timed_for_16_steps")
@pytest.mark.parametrize("saved", [5, 15])
def test_a_training_in_minutes_may_be_killed_before_its_steps_are_known(
    prepared: PreparedData, tmp_path: Path, saved: int
) -> None:
    config, resumed = toy_config(steps=None, minutes=0.01, checkpoint_every=5), Listener()
    with pytest.raises(Killed):
        train(prepared, tmp_path, config, Listener("stepped", saved + 1))
    train(prepared, tmp_path, config, resumed)
    assert resumed.steps[0] == saved + 1
    assert newest(tmp_path).step == newest(tmp_path).total_steps == resumed.steps[-1]


class Waits(TorchDispatchMode):
    """Counts the numbers that the CPU asks of tensors, and those that it makes tensors of: on a GPU
    it would wait for each until all work so far is done."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.count = 0
        for owner, name in ((torch, "tensor"), (torch.Tensor, "tolist"), (torch.Tensor, "cpu")):
            monkeypatch.setattr(owner, name, self._counted(getattr(owner, name)))

    def _counted(self, function: Any) -> Any:
        def counting(*args: Any, **kwargs: Any) -> Any:
            self.count += 1
            return function(*args, **kwargs)

        return counting

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        waiting = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
        self.count += function in waiting
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_no_step_waits_for_a_number(
    prepared: PreparedData, monkeypatch: pytest.MonkeyPatch, optimizer: str, deterministic: bool
) -> None:
    monkeypatch.setattr(pace_module, "REPORT_SECONDS", 1e9)
    monkeypatch.setattr(pace_module.Pace, "agreement_interval", lambda pace, step: 1000)
    counts = []
    for steps in (4, 12):
        config = toy_config(
            steps=steps, eval_every=steps, optimizer=optimizer, deterministic=deterministic
        )
        with monkeypatch.context() as patched, Waits(patched) as waits:
            fit(toy_task(), prepared, config, World(), Listener())
        counts.append(waits.count)
    assert counts[0] == counts[1] > 0

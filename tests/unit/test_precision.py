"""The precision is chosen by timing the model's own step, once, and kept wherever it goes on."""

from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator.data.shards import ShardReader
from orchestrator.infer.batch import to_device
from orchestrator.learn import precision
from orchestrator.learn.batches import Batches
from orchestrator.learn.precision import choose
from orchestrator.learn.world import World
from orchestrator.storage.artifact import PreparedData
from orchestrator.storage.folder import Folder
from orchestrator.tasks.task import Batch
from tests.unit.toy import (
    Killed,
    Listener,
    ending,
    newest,
    prepare_counting,
    together,
    toy_config,
    toy_task,
    train,
)

CPU = torch.device("cpu")
WITH_DROPOUT = {"dropout": 0.3}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    return prepare_counting(Folder(str(tmp_path_factory.mktemp("prepared"))))


@pytest.fixture(autouse=True)
def lists_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "_can_bf16", lambda device: True)


def pretend(seconds: dict[str, float]) -> Any:
    """Time the steps, and come to this result."""
    timed = precision._timed

    def pretended(*arguments: Any) -> dict[str, float]:
        assert set(timed(*arguments)) == set(seconds)
        return seconds

    return pretended


def chosen(world: World, prepared_uri: str, seconds: list[dict[str, float]]) -> Any:
    """What this worker chooses where each of them finds its steps to take so long."""
    precision._can_bf16 = lambda device: True
    precision._timed = pretend(seconds[world.rank])
    prepared = PreparedData.load(Folder(prepared_uri))
    assert prepared is not None
    task = toy_task()
    batch = Batches(prepared, toy_config(), world).first()
    found = choose(task, task.build_model(257, 1), batch, world)
    return found.precision, found.seconds


@pytest.mark.parametrize(
    ("bf16", "faster"), [(0.1, "fp32"), (0.098, "fp32"), (0.096, "bf16"), (0.2, "fp32")]
)
def test_the_faster_one_is_chosen_and_fp32_of_equals(
    prepared: PreparedData, monkeypatch: pytest.MonkeyPatch, bf16: float, faster: str
) -> None:
    task = toy_task()
    batch = Batches(prepared, toy_config(), World()).first()
    monkeypatch.setattr(precision, "_timed", pretend({"fp32": 0.1, "bf16": bf16}))
    found = choose(task, task.build_model(257, 1), batch, World())
    assert found.precision == faster
    assert found.event == {
        "precision": faster,
        "reason": found.reason,
        "fp32_seconds": pytest.approx(0.1),
        "bf16_seconds": pytest.approx(bf16),
    }
    (notice,) = found.notices
    assert notice.startswith(f"precision: {faster}: a step of 6 rows takes 0.")


def test_without_bf16_nothing_is_timed(
    prepared: PreparedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "_can_bf16", lambda device: False)
    monkeypatch.setattr(precision, "_step", None)
    task = toy_task()
    batch = Batches(prepared, toy_config(), World()).first()
    found = choose(task, task.build_model(257, 1), batch, World())
    assert (found.precision, found.seconds) == ("fp32", None)
    assert found.notices == ["precision: fp32: no avx512_bf16 in the processor"]


def test_long_steps_are_cut_down_to_fewer_rows(
    prepared: PreparedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, seen = [0.0], []

    def loss(model: torch.nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        rows = len(batch["tokens"])
        seen.append(rows)
        clock[0] += 0.08 * rows * (1.5 if torch.is_autocast_enabled("cpu") else 1.0)
        return next(model.parameters()).sum(), torch.tensor(1.0)

    task = toy_task()
    monkeypatch.setattr(task, "loss", loss)
    monkeypatch.setattr(precision.time, "perf_counter", lambda: clock[0])
    batch = to_device(ShardReader(prepared, "train").read(range(32)), CPU)
    found = choose(task, task.build_model(257, 1), batch, World())
    assert max(seen) == 2 and clock[0] < 2.0
    assert found.seconds == pytest.approx({"fp32": 0.16, "bf16": 0.24})
    assert found.notices == [
        "precision: fp32: a step of 2 rows takes 0.16 s, in bf16 0.24 s",
    ]


def test_all_workers_take_what_is_faster_for_them_together(prepared: PreparedData) -> None:
    seconds = [{"fp32": 0.2, "bf16": 0.1}, {"fp32": 0.1, "bf16": 0.3}]
    found = together(2, chosen, prepared.folder.uri, seconds)
    assert found == [("fp32", pytest.approx({"fp32": 0.15, "bf16": 0.2}))] * 2


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("faster", ["fp32", "bf16"])
def test_measuring_changes_no_bit(
    prepared: PreparedData,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    faster: str,
    deterministic: bool,
) -> None:
    config = toy_config(deterministic=deterministic, micro_batch_size=2, eval_every=4)
    said = config.model_copy(update={"precision": faster})
    train(prepared, tmp_path / "said", said, **WITH_DROPOUT)
    monkeypatch.setattr(precision, "_timed", pretend({"fp32": 0.1, "bf16": 0.2, faster: 0.05}))
    measured, listener = config.model_copy(update={"precision": "auto"}), Listener()
    train(prepared, tmp_path / "auto", measured, listener, **WITH_DROPOUT)
    # Without the curve, whose points follow the clock.
    assert ending(tmp_path / "auto")[:4] == ending(tmp_path / "said")[:4]
    (event,) = listener.heard("precision")
    assert event["precision"] == faster == newest(tmp_path / "auto").precision
    assert newest(tmp_path / "auto").notices and not newest(tmp_path / "said").notices


@pytest.mark.parametrize("die_at", [1, 8])
def test_a_resumed_training_keeps_it_on_another_machine_too(
    prepared: PreparedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, die_at: int
) -> None:
    config = toy_config(precision="auto", eval_every=4)
    train(prepared, tmp_path / "said", toy_config(precision="bf16", eval_every=4), **WITH_DROPOUT)
    monkeypatch.setattr(precision, "_timed", pretend({"fp32": 0.2, "bf16": 0.1}))
    with pytest.raises(Killed):
        train(prepared, tmp_path / "torn", config, Listener("stepped", die_at), **WITH_DROPOUT)
    monkeypatch.setattr(precision, "_can_bf16", lambda device: False)
    listener = Listener()
    train(prepared, tmp_path / "torn", config, listener, **WITH_DROPOUT)
    assert ending(tmp_path / "torn")[:4] == ending(tmp_path / "said")[:4]
    assert not listener.heard("precision")
    assert newest(tmp_path / "torn").notices

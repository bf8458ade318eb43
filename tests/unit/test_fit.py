"""The training loop: it learns, resumes to the bit, and is the same however the work is cut."""

import itertools
import math
import multiprocessing
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from orchestrator import fit as fit_module
from orchestrator.artifact import Folder, PreparedData
from orchestrator.checkpoint import Checkpoints, load_weights
from orchestrator.errors import StageError
from orchestrator.fit import (
    CALIBRATION_STEPS,
    Data,
    Pace,
    World,
    fit,
    join,
    load_processor,
    to_device,
)
from orchestrator.job import Job, TrainConfig
from orchestrator.optimizer import learning_rate
from orchestrator.processors.text import TextProcessor, TokenizerConfig
from orchestrator.shards import ShardReader, write_shard
from orchestrator.task import Batch, Task

LENGTH = 8
PERIOD = 7
SPLITS = ("train", "validation", "test")


def toy_task(**model: object) -> Task[Any]:
    tiny = {"num_layers": 1, "d_model": 16, "num_heads": 2, "max_seq_len": LENGTH, **model}
    job = {"name": "toy", "task": "language_modelling", "data": {"source": "toy"}, "model": tiny}
    return Job.model_validate(job).build_task()


def toy_config(**values: object) -> TrainConfig:
    tiny = {
        "steps": 12,
        "global_batch_size": 6,
        "micro_batch_size": 6,
        "warmup_steps": 2,
        "lr": 0.01,
        "precision": "fp32",
        "eval_rows": 5,
    }
    return TrainConfig.model_validate({**tiny, **values})


def prepare_counting(folder: Folder, validation_rows: int = 9) -> PreparedData:
    """Blocks that count modulo seven, each from its own beginning, in several shards."""
    processor = TextProcessor.fit(["abc"], TokenizerConfig(vocab_size=257))
    folder.write(processor.file_name, processor.to_bytes())
    rows = {"train": 40, "validation": validation_rows, "test": 5}
    counting = np.add.outer(np.arange(40), np.arange(LENGTH + 1)) % PERIOD
    splits = {}
    for split in SPLITS:
        parts = np.array_split(counting[: rows[split]].astype(np.uint16), min(3, rows[split]))
        splits[split] = [
            write_shard(folder, f"{split}-{i}.arrow", {"tokens": part})
            for i, part in enumerate(parts)
        ]
    return PreparedData(
        folder=folder,
        seconds=0.0,
        summary="",
        processor=processor.file_name,
        splits=splits,
        documents={},
        source_bytes=1,
    ).commit()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    return prepare_counting(Folder(str(tmp_path_factory.mktemp("prepared"))))


class Killed(Exception):
    """Stands for whatever ends a process in the middle of a training."""


class Listener:
    """Remembers what it hears, and may kill the training at a step."""

    def __init__(self, die_in: str = "", die_at: int = 0) -> None:
        self.die_in, self.die_at = die_in, die_at
        self.reports: list[tuple[int, int | None, dict[str, float]]] = []
        self.validations: list[tuple[int, int, dict[str, float]]] = []

    def progress(self, step: int, total_steps: int | None, values: dict[str, float]) -> None:
        self.reports.append((step, total_steps, values))
        self._die("progress", step)

    def validated(self, step: int, total_steps: int, metrics: dict[str, float]) -> None:
        self.validations.append((step, total_steps, metrics))
        self._die("validated", step)

    def _die(self, where: str, step: int) -> None:
        if (where, step) == (self.die_in, self.die_at):
            raise Killed


def saved_in(path: Path) -> Checkpoints:
    return Checkpoints(Folder(str(path)), toy_task().metric)


def train(
    prepared: PreparedData,
    path: Path,
    config: TrainConfig,
    listener: Listener | None = None,
    **model: object,
) -> dict[str, float]:
    """One process, one thread, with checkpoints in `path`."""
    listener = listener or Listener()
    return fit(toy_task(**model), prepared, config, World(), listener, saved_in(path))


def final_weights(path: Path) -> torch.Tensor:
    """All the weights of the newest checkpoint in one vector."""
    model = toy_task().build_model(257)
    load_weights(model, saved_in(path).all()[-1])
    return torch.nn.utils.parameters_to_vector(model.parameters()).detach()


def newest_files(path: Path) -> tuple[bytes, bytes]:
    folder = saved_in(path).all()[-1].folder
    return folder.read("model.safetensors"), folder.read("optimizer.safetensors")


def curve(path: Path) -> list[dict[str, float]]:
    """The newest checkpoint's history without how fast the steps were."""
    history = saved_in(path).all()[-1].history
    return [{k: v for k, v in point.items() if k != "throughput"} for point in history]


@pytest.fixture
def every_step_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit_module, "REPORT_SECONDS", 0.0)


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
    torch.manual_seed(99)
    assert train(prepared, torn, config, dropout=dropout) == metrics
    assert newest_files(torn) == newest_files(whole)
    assert curve(torn) == curve(whole)
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
    model = task.build_model(257)
    load_weights(model, saved_in(tmp_path).all()[-1])
    batch = to_device(ShardReader(prepared, "validation").read(range(9)), torch.device("cpu"))
    with torch.no_grad():
        predictions = task.predict(model.eval(), batch, load_processor(task, prepared))
    assert metrics == pytest.approx(task.score(predictions), rel=1e-5)
    assert saved_in(tmp_path).all()[-1].metrics == metrics


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_the_steps_of_an_epoch_hold_each_row_once(prepared: PreparedData, workers: int) -> None:
    config = toy_config(global_batch_size=8, micro_batch_size=3)
    seen = [
        row
        for rank in range(workers)
        for step in range(5, 10)  # the second epoch of 40 rows
        for batch in Data(prepared, config, World(rank, workers)).step(step, config)
        for row in batch["tokens"].tolist()
    ]
    assert sorted(seen) == sorted(ShardReader(prepared, "train").read(range(40))["tokens"].tolist())


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


def test_a_loss_that_is_no_number_names_the_learning_rate(
    prepared: PreparedData, tmp_path: Path
) -> None:
    for eval_every in (1, 12):
        path = tmp_path / str(eval_every)
        with pytest.raises(StageError, match=r"train\.lr = 1e\+35"):
            train(prepared, path, toy_config(lr=1e35, optimizer="adamw", eval_every=eval_every))
        assert all(math.isfinite(c.metrics["loss"]) for c in saved_in(path).all())


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


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_the_shares_of_all_workers_are_the_batch(size: int) -> None:
    rows = np.arange(20, 31)
    shares = [World(rank, size).share(rows) for rank in range(size)]
    np.testing.assert_array_equal(np.concatenate(shares), rows)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_worker_without_rows_adds_none() -> None:
    assert join([]) == {}
    assert join([{}, {"x": np.array([1])}, {}])["x"].tolist() == [1]


class Clock:
    """A clock that the test turns."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(fit_module, "time", SimpleNamespace(monotonic=clock.monotonic))
    return clock


def run(
    pace: Pace,
    clock: Clock,
    step_seconds: Callable[[int], float],
    validation_seconds: float,
    terms: float = 100.0,
) -> list[dict[str, float]]:
    """The loop of `fit` without a model, each step with a loss of 2 a term; what was reported."""
    reports = []
    for step in itertools.count(1):
        clock.now += step_seconds(step)
        pace.step_done(torch.tensor(2.0 * terms), torch.tensor(terms))
        if (values := pace.progress(step)) is not None:
            reports.append(values)
        if pace.validation_due(step):
            clock.now += validation_seconds
            pace.validated()
            pace.fix_total_steps(step)
        if step == pace.total_steps:
            return reports


@pytest.mark.parametrize("validation_seconds", [0.0, 0.2])
@pytest.mark.parametrize("step_seconds", [0.02, 0.1])
def test_a_time_budget_is_kept(
    clock: Clock, step_seconds: float, validation_seconds: float
) -> None:
    pace, started = Pace(toy_config(steps=None, minutes=0.2), World()), clock.now
    run(pace, clock, lambda step: step_seconds, validation_seconds)
    assert 0.85 * 12 < clock.now - started < 1.05 * 12


def test_a_slow_first_step_does_not_shorten_a_time_budget_by_much(clock: Clock) -> None:
    pace, started = Pace(toy_config(steps=None, minutes=0.2), World()), clock.now
    run(pace, clock, lambda step: 2.0 if step == 1 else 0.1, validation_seconds=0.0)
    assert 0.85 * 12 < clock.now - started < 1.05 * 12


def test_a_budget_that_is_spent_before_it_is_measured_still_ends(clock: Clock) -> None:
    pace = Pace(toy_config(steps=None, minutes=0.01), World())
    run(pace, clock, lambda step: 1.0, validation_seconds=1.0)
    assert pace.total_steps == CALIBRATION_STEPS + 1


@pytest.mark.parametrize("eval_every", [1, 2, 3, 50])
def test_throughput_counts_the_seconds_of_steps_and_not_those_of_validations(
    clock: Clock, eval_every: int
) -> None:
    pace = Pace(toy_config(steps=50, eval_every=eval_every), World())
    reports = run(pace, clock, lambda step: 0.2, validation_seconds=30.0)
    assert [values["throughput"] for values in reports] == pytest.approx([500.0] * len(reports))
    assert [values["loss"] for values in reports] == pytest.approx([2.0] * len(reports))


@pytest.mark.parametrize("eval_every", [1, 50])
def test_progress_is_reported_about_twice_a_second_and_at_the_end(
    clock: Clock, eval_every: int
) -> None:
    pace = Pace(toy_config(steps=500, eval_every=eval_every), World())
    reports = run(pace, clock, lambda step: 0.02, validation_seconds=0.0)
    assert 18 <= len(reports) <= 21  # ten seconds of steps


def test_a_training_in_minutes_saves_its_steps_with_the_first_checkpoint(
    prepared: PreparedData, tmp_path: Path
) -> None:
    config, killed, resumed = toy_config(steps=None, minutes=0.02), Listener(), Listener()
    killed.die_in, killed.die_at = "validated", CALIBRATION_STEPS
    with pytest.raises(Killed):
        train(prepared, tmp_path, config, killed)
    ((step, total_steps, _),) = killed.validations
    assert step == CALIBRATION_STEPS < total_steps
    assert [saved.total_steps for saved in saved_in(tmp_path).all()] == [total_steps]
    train(prepared, tmp_path, config, resumed)
    assert saved_in(tmp_path).all()[-1].step == total_steps
    assert {total for _, total, _ in resumed.validations} == {total_steps}


def worker(rank: int, folder: str, results: Any) -> None:
    """One of two workers; it tells, by name of the training, its metrics or its error."""
    torch.set_num_threads(1)
    trainings = {
        "plain": toy_config(optimizer="adamw", micro_batch_size=2),
        "one validation row": toy_config(optimizer="adamw", eval_rows=1),
        "diverged": toy_config(lr=1e35, optimizer="adamw", eval_every=12),
    }
    prepared = PreparedData.load(Folder(f"{folder}/prepared"))
    assert prepared is not None
    for i, (name, config) in enumerate(trainings.items()):
        meeting_point = f"file://{folder}/meeting-{i}"
        dist.init_process_group("gloo", init_method=meeting_point, rank=rank, world_size=2)
        checkpoints = saved_in(Path(folder) / name)
        try:
            outcome = fit(toy_task(), prepared, config, World(rank, 2), Listener(), checkpoints)
        except Exception as error:
            outcome = f"{type(error).__name__}: {error}"
        results.put((name, rank, outcome))
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def two_workers(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, dict[tuple[str, int], Any]]:
    """The folder and the outcomes of trainings by two processes."""
    folder = tmp_path_factory.mktemp("two-workers")
    prepare_counting(Folder(str(folder / "prepared")))
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    workers = [context.Process(target=worker, args=(i, str(folder), results)) for i in range(2)]
    for process in workers:
        process.start()
    try:
        heard = [results.get(timeout=120) for _ in range(2 * 3)]
    finally:
        for process in workers:
            process.kill()
            process.join()
    return folder, {(name, rank): outcome for name, rank, outcome in heard}


def test_two_workers_reach_the_weights_of_one(two_workers, tmp_path: Path) -> None:
    folder, outcomes = two_workers
    prepared = PreparedData.load(Folder(str(folder / "prepared")))
    metrics = train(prepared, tmp_path, toy_config(optimizer="adamw"))
    torch.testing.assert_close(
        final_weights(folder / "plain"), final_weights(tmp_path), atol=1e-4, rtol=0
    )
    assert outcomes["plain", 0] == outcomes["plain", 1] == pytest.approx(metrics, rel=1e-4)


def test_two_workers_validate_on_a_single_row(two_workers, tmp_path: Path) -> None:
    folder, outcomes = two_workers
    prepared = PreparedData.load(Folder(str(folder / "prepared")))
    metrics = train(prepared, tmp_path, toy_config(optimizer="adamw", eval_rows=1))
    for rank in range(2):
        assert outcomes["one validation row", rank] == pytest.approx(metrics, rel=1e-4)


def test_every_worker_is_told_that_the_training_diverged(two_workers) -> None:
    _, outcomes = two_workers
    for rank in range(2):
        assert "DivergedError" in outcomes["diverged", rank]
        assert "train.lr = 1e+35" in outcomes["diverged", rank]

"""Sweeps on Ray Tune: reused actors, failing trials, and going on after an interruption."""

import json
from pathlib import Path
from typing import Any

import pytest

from orchestrator.artifact import PreparedData, Sweep
from orchestrator.cluster import Cluster
from orchestrator.errors import StageError
from orchestrator.job import Job
from orchestrator.run import Run
from orchestrator.tune import described, sample_trial, tune
from tests.integration.conftest import Silent, tiny_job

SPACE = {"train.lr": {"loguniform": [1e-4, 1e-2]}, "model.num_layers": {"choice": [1, 2]}}


def run_tune(
    prepared: PreparedData, cluster: Cluster, folder: Path, space: Any = SPACE, **settings: Any
) -> Sweep:
    sweep = {"trials": 4, "steps": 8, "space": space} | settings
    job = Job.model_validate(tiny_job(folder, tune=sweep, train={"global_batch_size": 8}))
    return tune(job, prepared, Run(job).folder / "tune", cluster, Silent())


def test_the_best_trial_wins_and_asha_stops_some(
    tmp_path: Path, prepared: PreparedData, connected: Cluster
) -> None:
    sweep = run_tune(prepared, connected, tmp_path, trials=8)
    assert [trial["number"] for trial in sweep.trials] == list(range(8))
    assert sweep.best == min(sweep.trials, key=lambda trial: trial["loss"])["overrides"]
    assert {trial["state"] for trial in sweep.trials} <= {"finished", "stopped early"}
    assert any(trial["step"] == 8 for trial in sweep.trials)


def test_an_interrupted_sweep_runs_only_the_trials_that_are_left(
    tmp_path: Path, prepared: PreparedData, connected: Cluster
) -> None:
    whole = run_tune(prepared, connected, tmp_path, scheduler="none")
    folder = whole.folder.local_path
    assert folder is not None
    (folder / "manifest.json").unlink()
    (folder / "trial-00002.json").unlink()
    before = {path.name: path.stat().st_mtime_ns for path in folder.glob("trial-*.json")}
    again = run_tune(prepared, connected, tmp_path, scheduler="none")
    after = {path.name: path.stat().st_mtime_ns for path in folder.glob("trial-*.json")}
    assert {name: after[name] for name in before} == before
    assert again.best == whole.best
    assert again.trials == whole.trials  # the lost trial came out the same to the last bit


def test_a_failing_trial_is_a_row_and_not_the_end(
    tmp_path: Path, prepared: PreparedData, connected: Cluster
) -> None:
    space = {"train.grad_clip": {"choice": [1e30]}, "train.lr": {"choice": [1e-3, 1e30]}}
    sweep = run_tune(prepared, connected, tmp_path, space, trials=6, scheduler="none")
    failed = [trial for trial in sweep.trials if trial["state"] == "failed"]
    assert failed and len(failed) < 6
    assert all(trial["overrides"]["train.lr"] == 1e30 for trial in failed)
    assert all("diverged" in trial["error"] for trial in failed)
    assert sweep.best["train.lr"] == 1e-3


def test_a_sweep_of_nothing_but_failures_says_why(
    tmp_path: Path, prepared: PreparedData, connected: Cluster
) -> None:
    space = {"train.grad_clip": {"choice": [1e30]}, "train.lr": {"choice": [1e30]}}
    with pytest.raises(StageError, match=r"every trial failed.*diverged"):
        run_tune(prepared, connected, tmp_path, space, trials=2)


def test_a_further_trial_costs_little(
    tmp_path: Path, prepared: PreparedData, connected: Cluster
) -> None:
    """Trials of one step: from the fifth on, each adds what Ray, Tune and we cost."""
    few = run_tune(prepared, connected, tmp_path / "few", trials=4, steps=1)
    many = run_tune(prepared, connected, tmp_path / "many", trials=16, steps=1)
    seconds = (many.seconds - few.seconds) / 12
    print(json.dumps({"seconds_per_further_trial": round(seconds, 3)}))
    assert seconds < 2.0


def test_a_trial_is_a_function_of_seed_and_number() -> None:
    config = Job.model_validate(tiny_job(Path("/x"), tune={"space": SPACE})).tune
    assert config is not None
    first = [sample_trial(config, number) for number in range(20)]
    assert first == [sample_trial(config, number) for number in range(20)]
    assert len({trial["train.lr"] for trial in first}) == 20
    assert {trial["model.num_layers"] for trial in first} == {1, 2}
    assert all(1e-4 <= trial["train.lr"] <= 1e-2 for trial in first)


def test_a_trial_of_text_and_numbers_is_described_on_one_line() -> None:
    overrides = {"model.activation": "gelu", "model.num_layers": 2, "train.lr": 0.0123456}
    assert described(overrides) == "model.activation=gelu, model.num_layers=2, train.lr=0.01235"

"""Sweeps on Ray Tune: reused actors, schedulers, failing trials, and resuming."""

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ray.util.state import list_actors, list_placement_groups

from orchestrator.cluster.connection import Cluster
from orchestrator.errors import StageError, StoppedError
from orchestrator.job.job import Job
from orchestrator.learn.checkpoints import Checkpoints
from orchestrator.storage.artifact import FINDINGS, PreparedData, Sweep
from orchestrator.storage.folder import Folder
from orchestrator.tune.deploy import take_best_trial
from orchestrator.tune.records import SweepRecord, Trial, read_trials, request_stop
from orchestrator.tune.sweep import described, tune
from tests.integration.conftest import Silent, tiny_job
from tests.integration.fatal_task import HUNGRY, KILLED, KILLED_ONCE
from tests.ray_head import Head

SPACE = {"train.lr": {"loguniform": [1e-4, 1e-2]}, "model.num_layers": {"choice": [1, 2]}}

RunTune = Callable[..., Sweep]


@pytest.fixture
def run_tune(tmp_path: Path, prepared: PreparedData, connected: Cluster) -> RunTune:
    """Runs a sweep in `tmp_path/sweep` with settings of the tune section."""

    def run(space: Any = SPACE, folder: str = "sweep", **settings: Any) -> Sweep:
        job = make_job(tmp_path, space=space, **settings)
        return tune(job, prepared, Folder(str(tmp_path / folder)), connected, Silent())

    return run


def make_job(folder: Path, task: str = "language_modelling", **settings: Any) -> Job:
    sweep = {"trials": 4, "steps": 8, "space": SPACE} | settings
    train = {"global_batch_size": 8, "eval_rows": 16}
    return Job.model_validate(tiny_job(folder, task=task, tune=sweep, train=train))


def recorded(folder: Path) -> list[Trial]:
    trials = read_trials(Folder(str(folder)))
    return [trials[number] for number in sorted(trials)]


def test_the_best_trial_wins_and_asha_stops_some(run_tune: RunTune, tmp_path: Path) -> None:
    sweep = run_tune(trials=12, steps=16, search="random")
    trials = recorded(tmp_path / "sweep")
    assert [trial.number for trial in trials] == list(range(12))
    assert {trial.state for trial in trials} == {"finished", "stopped early"}
    finished = [trial for trial in trials if trial.state == "finished"]
    best = min(finished, key=lambda trial: trial.metrics["loss"])
    assert (sweep.best, sweep.best_trial) == (best.overrides, best.number)
    assert all(trial.curve[-1]["loss"] == trial.metrics["loss"] for trial in trials)
    stopped = next(trial for trial in trials if trial.state == "stopped early")
    assert stopped.step < 16 and stopped.reason == f"asha at step {stopped.step}"
    findings = (tmp_path / "sweep" / FINDINGS).read_text()
    assert f"| {best.number} | {best.metrics['loss']:.4f} | 16 |" in findings
    record = SweepRecord.load(Folder(str(tmp_path / "sweep")))
    assert record is not None and (record.state, record.concurrent) == ("finished", 4)
    assert record.precision in ("fp32", "bf16") and sweep.notices == record.notices != []


@pytest.mark.parametrize("search", ["random", "tpe"])
def test_an_interrupted_sweep_runs_only_the_trials_that_are_left(
    run_tune: RunTune, tmp_path: Path, search: str
) -> None:
    settings = {"scheduler": "none", "search": search, "trials": 8, "steps": 4}
    whole = run_tune(**settings)
    folder, lost = tmp_path / "sweep", tmp_path / "sweep" / "trial-00002.json"
    before = recorded(folder)
    (folder / "manifest.json").unlink()
    lost.write_text(before[2].model_copy(update={"state": "running"}).model_dump_json())
    times = {path.name: path.stat().st_mtime_ns for path in folder.glob("trial-*.json")}
    again = run_tune(**settings)
    after = {path.name: path.stat().st_mtime_ns for path in folder.glob("trial-*.json")}
    assert [name for name in times if after[name] != times[name]] == [lost.name]
    assert again.best == whole.best
    assert recorded(folder)[2].metrics == before[2].metrics  # identical to the last bit


def test_a_failing_trial_does_not_end_the_sweep(run_tune: RunTune, tmp_path: Path) -> None:
    space = {"train.grad_clip": {"choice": [1e30]}, "train.lr": {"choice": [1e-3, 1e30]}}
    sweep = run_tune(space, trials=6, scheduler="none", search="random")
    failed = [trial for trial in recorded(tmp_path / "sweep") if trial.state == "failed"]
    assert failed and len(failed) < 6
    assert all(trial.overrides["train.lr"] == 1e30 for trial in failed)
    assert all("diverged" in trial.reason for trial in failed)
    assert all("DivergedError" in trial.traceback for trial in failed)
    assert sweep.best["train.lr"] == 1e-3


def test_a_sweep_whose_trials_all_fail_gives_the_reason(run_tune: RunTune, tmp_path: Path) -> None:
    space = {"train.grad_clip": {"choice": [1e30]}, "train.lr": {"choice": [1e30]}}
    with pytest.raises(StageError, match=r"every trial failed.*diverged"):
        run_tune(space, trials=2)
    record = SweepRecord.load(Folder(str(tmp_path / "sweep")))
    assert record is not None and record.state == "failed" and "diverged" in record.error


def test_a_further_trial_costs_little(run_tune: RunTune) -> None:
    """From the fifth trial of one step on, each measures only the overhead of Ray, Tune and this
    package."""
    few = run_tune(trials=4, steps=1, folder="few")
    many = run_tune(trials=24, steps=1, folder="many")
    seconds = (many.seconds - few.seconds) / 20
    print(json.dumps({"seconds_per_further_trial": round(seconds, 3)}))
    assert seconds < 1.0  # loose, for a busy machine; the benchmark measures about 0.1


def test_a_population_continues_from_the_weights_of_better_trials(
    run_tune: RunTune, tmp_path: Path
) -> None:
    space = {"train.lr": {"loguniform": [1e-6, 1e-2]}}
    sweep = run_tune(space, trials=6, steps=32, scheduler="pbt", deploy_best_trial=True)
    trials = recorded(tmp_path / "sweep")
    assert all(trial.state == "finished" and trial.step == 32 for trial in trials)
    exploits = [(trial, exploit) for trial in trials for exploit in trial.exploits]
    assert exploits
    for trial, exploit in exploits:
        assert exploit.donor != trial.number
        assert 1e-6 <= exploit.overrides["train.lr"] <= 1e-2
        after = [point["loss"] for point in trial.curve if point["step"] > exploit.step]
        before = [point["loss"] for point in trial.curve if point["step"] <= exploit.step]
        assert not before or not after or after[0] < before[0]
    assert sweep.best_trial == min(trials, key=lambda trial: trial.metrics["loss"]).number


def test_the_median_rule_stops_worse_trials(run_tune: RunTune, tmp_path: Path) -> None:
    space = {"train.lr": {"choice": [1e-2, 1e-2, 1e-2, 1e-2, 1e-2, 1e-7]}}
    run_tune(space, trials=16, steps=16, scheduler="median", search="random")
    trials = recorded(tmp_path / "sweep")
    stopped = [trial for trial in trials if trial.state == "stopped early"]
    assert stopped and all(trial.reason.startswith("median") for trial in stopped)


def test_repeats_have_different_seeds(run_tune: RunTune, tmp_path: Path) -> None:
    sweep = run_tune({"train.lr": {"choice": [1e-3, 1e-2]}}, repeats=3, scheduler="none")
    trials = recorded(tmp_path / "sweep")
    assert len(trials) == len(sweep.trials) == 6
    by_rate = {lr: [t for t in trials if t.overrides["train.lr"] == lr] for lr in (1e-3, 1e-2)}
    for same in by_rate.values():
        assert sorted(trial.repeat for trial in same) == [0, 1, 2]
        assert len({trial.metrics["loss"] for trial in same}) == 3
    assert " ± " in (tmp_path / "sweep" / FINDINGS).read_text()


def test_a_budget_of_minutes_ends_the_sweep(run_tune: RunTune, tmp_path: Path) -> None:
    sweep = run_tune(trials=1000, steps=64, minutes=0.15, scheduler="none")
    assert 8 < sweep.seconds < 40
    trials = recorded(tmp_path / "sweep")
    assert 0 < len(trials) < 1000
    assert {trial.state for trial in trials} <= {"finished", "stopped"}
    assert any("0.15 minutes are over" in t.reason for t in trials if t.state == "stopped")


def test_the_best_trials_weights_are_deployed(
    run_tune: RunTune, prepared: PreparedData, tmp_path: Path
) -> None:
    sweep = run_tune(trials=3, deploy_best_trial=True)
    job = make_job(tmp_path, trials=3, deploy_best_trial=True)
    training = take_best_trial(job, prepared, sweep, Folder(str(tmp_path / "train")))
    best = recorded(tmp_path / "sweep")[sweep.best_trial]
    assert training.metrics["loss"] == best.metrics["loss"]
    saved = Checkpoints(training.folder / "checkpoints", job.build_task().metric).restore()
    assert saved is not None and saved.checkpoint.step == training.steps == 8


def test_requests_of_a_user_are_carried_out(
    run_tune: RunTune, prepared: PreparedData, connected: Cluster, tmp_path: Path
) -> None:
    """A trial is stopped for good; then the sweep is stopped, and continues later."""
    folder = Folder(str(tmp_path / "sweep"))
    settings = {"trials": 5, "steps": 300, "scheduler": "none", "search": "random"}

    def ask() -> None:
        wait_for(lambda: any(t.step for t in read_trials(folder).values() if t.number == 1))
        request_stop(folder, 1)
        wait_for(lambda: read_trials(folder)[1].state == "stopped")
        request_stop(folder)

    asking = threading.Thread(target=ask)
    asking.start()
    with pytest.raises(StoppedError):
        run_tune(**settings)
    asking.join()
    record = SweepRecord.load(folder)
    assert record is not None and record.state == "stopped"
    stopped = read_trials(folder)
    assert stopped[1].reason == "stopped on request"
    assert any(trial.state == "running" for trial in stopped.values())
    sweep = run_tune(**settings)
    trials = recorded(tmp_path / "sweep")
    assert len(trials) == 5 and trials[1] == stopped[1]
    assert all(trial.state == "finished" for trial in trials if trial.number != 1)
    assert sweep.seconds > record.seconds


def test_trials_whose_processes_die_are_recorded_and_leak_nothing(
    prepared: PreparedData, head: Head, connected: Cluster, tmp_path: Path
) -> None:
    before = living(head)
    dropouts = [0.0, KILLED, KILLED_ONCE, HUNGRY]
    space = {"model.dropout": {"choice": dropouts}}
    job = make_job(tmp_path, "tests.integration.fatal_task:Fatal", space=space, scheduler="none")
    tune(job, prepared, Folder(str(tmp_path / "sweep")), connected, Silent())
    trials = recorded(tmp_path / "sweep")
    by_dropout = {trial.overrides["model.dropout"]: trial for trial in trials}
    assert [by_dropout[d].state for d in dropouts] == ["finished", "failed", "finished", "failed"]
    assert "died" in by_dropout[KILLED].reason
    assert by_dropout[HUNGRY].reason.startswith("out of memory: lower train.micro_batch_size")
    wait_for(lambda: living(head) == before)


def test_trials_of_two_workers_queue_and_leak_nothing(
    run_tune: RunTune, head: Head, tmp_path: Path
) -> None:
    before = living(head)
    space = {"train.lr": {"choice": [1e-3, 3e-3, 1e-2]}}
    run_tune(space, workers=2, steps=16, scheduler="none")
    trials = recorded(tmp_path / "sweep")
    assert [trial.state for trial in trials] == ["finished"] * 3
    assert all([point["step"] for point in trial.curve] == list(range(1, 17)) for trial in trials)
    record = SweepRecord.load(Folder(str(tmp_path / "sweep")))
    assert record is not None and (record.concurrent, record.cpus) == (2, 2)
    wait_for(lambda: living(head) == before)


def living(head: Head) -> tuple[int, int]:
    """The numbers of existing placement groups and of living actors on this head.

    Without an address Ray would ask the cluster that was started last on this machine, which
    another test has started and stopped.
    """
    groups = [g for g in list_placement_groups(head.dashboard) if g.state != "REMOVED"]
    return len(groups), len(list_actors(head.dashboard, filters=[("state", "=", "ALIVE")]))


def wait_for(happened: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_trial_of_text_and_numbers_is_described_on_one_line() -> None:
    overrides = {"model.activation": "gelu", "model.num_layers": 2, "train.lr": 0.0123456}
    assert described(overrides) == "model.activation=gelu, model.num_layers=2, train.lr=0.01235"

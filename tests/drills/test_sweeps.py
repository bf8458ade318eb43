"""A sweep's command is killed; the same command continues it and repeats no trial."""

import os
import signal
from random import Random

import pytest

from orchestrator.storage.artifact import Sweep
from orchestrator.tune.records import Trial, read_trials
from tests.drills.conftest import Make
from tests.drills.trainings import Command, assert_clean
from tests.ray_head import Head

pytestmark = [pytest.mark.usefixtures("connected"), pytest.mark.timeout(400)]
SWEEP = {
    "trials": 8,
    "steps": 60,
    "scheduler": "none",
    "search": "random",
    "space": {"train.lr": {"loguniform": [1e-4, 1e-2]}, "model.num_layers": {"choice": [1, 2]}},
}


def essence(trials: dict[int, Trial]) -> dict[int, object]:
    """What must be equal: the configuration of each trial, and its metric at each validation."""
    return {
        number: (trial.overrides, [{**point, "seconds": 0.0} for point in trial.curve])
        for number, trial in trials.items()
    }


def test_a_killed_sweep_is_continued_by_the_same_command(
    make: Make, head: Head, commands: list[Command], chance: Random
) -> None:
    commands.append(Command(make(name="undisturbed", tune=SWEEP), head.environment, "tune"))
    folder = commands[0].run.tune_folder()
    commands[0].end()
    undisturbed, whole = read_trials(folder), Sweep.load(folder)
    assert whole is not None

    job = make(name="killed", tune=SWEEP)
    commands.append(Command(job, head.environment, "tune"))
    folder, count = commands[1].run.tune_folder(), chance.randrange(1, 5)

    def some_have_ended() -> bool:
        return sum(t.state == "finished" for t in read_trials(folder).values()) >= count

    commands[1].wait_until(some_have_ended, f"{count} finished trials")
    os.kill(commands[1].process.pid, signal.SIGKILL)
    commands[1].process.wait()
    assert_clean(head, folder)
    before = {n: trial for n, trial in read_trials(folder).items() if trial.state == "finished"}
    assert count <= len(before) < 8

    commands.append(Command(job, head.environment, "tune"))
    commands[2].end()
    after, sweep = read_trials(folder), Sweep.load(folder)
    assert sweep is not None
    assert {number: after[number] for number in before} == before  # not run again
    assert essence(after) == essence(undisturbed)
    assert (sweep.best, sweep.best_trial) == (whole.best, whole.best_trial)
    assert_clean(head, folder)

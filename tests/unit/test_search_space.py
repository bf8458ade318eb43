"""What a sweep may try, and which choices go together."""

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.job.job import Job
from orchestrator.job.search_space import DEFAULT_SPACE, TuneConfig, grid, in_order

JOB: dict[str, Any] = {
    "name": "sweeps",
    "task": "language_modelling",
    "data": {"source": "python-stdlib"},
}
CHOICES = {"train.lr": {"choice": [1e-3, 3e-3]}, "model.num_layers": {"choice": [1, 2, 3]}}
RATE = {"train.lr": {"loguniform": [1e-4, 1e-2]}}
BETAS = {
    "train.optimizer": {"choice": ["adamw", "muon"]},
    "train.lr": {"loguniform": [1e-4, 1e-2]},
    "train.betas": {"choice": [[0.9, 0.95], [0.9, 0.99]], "when": {"train.optimizer": "adamw"}},
}


def config(**tune: Any) -> TuneConfig:
    made = Job.model_validate(JOB | {"tune": tune}).tune
    assert made is not None
    return made


def problems(**tune: Any) -> list[str]:
    job = Job.model_validate(JOB | {"tune": tune})
    return [".".join(key) + text for key, text in job.problems()]


def test_a_sweep_of_nothing_in_particular_has_a_space() -> None:
    assert set(config(trials=2).space) == set(DEFAULT_SPACE)
    assert set(config(trials=2, space={}).space) == set(DEFAULT_SPACE)
    assert problems(trials=20) == []


@pytest.mark.parametrize(
    ("tune", "search", "configurations"),
    [
        ({"trials": 16, "space": RATE}, "tpe", 16),
        ({"trials": 4, "space": RATE}, "random", 4),
        ({"trials": 16, "space": CHOICES}, "grid", 6),
        ({"trials": 5, "space": CHOICES}, "random", 5),
        ({"trials": 5, "space": CHOICES, "search": "tpe"}, "tpe", 5),
        ({"trials": 9, "space": RATE, "scheduler": "pbt"}, "random", 9),
    ],
)
def test_the_search_is_chosen_where_the_job_does_not(
    tune: dict[str, Any], search: str, configurations: int
) -> None:
    assert config(**tune).searched_by == search
    assert config(**tune).configurations == configurations


def test_a_grid_has_each_configuration_once_with_its_conditions() -> None:
    space = config(space=BETAS | {"train.lr": {"choice": [1e-3, 1e-2]}}).space
    found = grid(space)
    assert len(found) == 2 * (2 + 1)
    assert all(("train.betas" in each) == (each["train.optimizer"] == "adamw") for each in found)
    assert len({str(sorted(each.items())) for each in found}) == len(found)


@given(st.permutations(["a", "b", "c", "d"]))
def test_a_key_stands_behind_those_that_its_condition_looks_at(names: list[str]) -> None:
    domains: dict[str, Any] = {names[0]: {"choice": [1, 2]}}
    for before, name in itertools.pairwise(names):
        domains[name] = {"choice": [1, 2], "when": {before: 1}}
    space = TuneConfig.model_validate({"space": domains}).space
    assert in_order(space) == names


@pytest.mark.parametrize(
    ("tune", "problem"),
    [
        ({"search": "grid", "space": RATE}, "tune.search = grid: every key of the space"),
        ({"search": "grid", "trials": 4, "space": CHOICES}, "tune.trials = 4: the grid has 6"),
        ({"scheduler": "pbt", "search": "tpe"}, "tune.search = tpe: pbt samples"),
        ({"scheduler": "pbt", "repeats": 2}, "tune.repeats = 2: with pbt"),
        ({"scheduler": "pbt", "trials": 3}, "tune.trials = 3: pbt needs a population"),
        ({"scheduler": "pbt", "workers": 2}, "tune.workers = 2: pbt needs trials of one worker"),
        (
            {"scheduler": "pbt", "space": CHOICES},
            "tune.space.model.num_layers: cannot change while",
        ),
        ({"workers": 3}, "train.global_batch_size = 32: cannot be dealt evenly to tune.workers"),
        ({"deploy_best_trial": True, "repeats": 2}, "tune.repeats = 2: tune.deploy_best_trial"),
        (
            {"space": {**RATE, "train.betas": {"choice": [[0.9, 0.9]], "when": {"train.x": 1}}}},
            "tune.space.train.betas.when: train.x: is no other key of the space",
        ),
        (
            {
                "space": {
                    "train.lr": {"choice": [1e-3], "when": {"train.weight_decay": 0.1}},
                    "train.weight_decay": {"choice": [0.1], "when": {"train.lr": 1e-3}},
                }
            },
            "tune.space.train.lr.when: train.weight_decay: is no other key",
        ),
    ],
)
def test_what_does_not_go_together_is_an_error_of_the_job(
    tune: dict[str, Any], problem: str
) -> None:
    assert any(found.startswith(problem) for found in problems(**tune)), problems(**tune)


def test_a_conditional_key_is_checked_beside_what_it_needs() -> None:
    assert problems(space=BETAS) == []
    wrong = {**BETAS, "train.betas": {"choice": [[0.9, 2.0]], "when": {"train.optimizer": "adamw"}}}
    (problem,) = problems(space=wrong)
    assert problem.startswith("tune.space.train.betas: train.betas.1 = 2.0")

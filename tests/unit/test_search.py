"""Which configurations a sweep tries, in which order, and what it remembers."""

import math
from typing import Any

import pytest

from orchestrator.job.job import Job
from orchestrator.job.search_space import TuneConfig
from orchestrator.tasks.task import Metric
from orchestrator.tune.findings import at_the_edge, importances, ranked, saved_share
from orchestrator.tune.records import Trial
from orchestrator.tune.search import Search, contains, merged, sample

LOSS = Metric("loss", "min")
SPACE = {
    "train.lr": {"loguniform": [1e-4, 1e-1]},
    "train.optimizer": {"choice": ["adamw", "muon"]},
    "train.betas": {"choice": [[0.9, 0.95], [0.9, 0.99]], "when": {"train.optimizer": "adamw"}},
    "model.num_layers": {"randint": [1, 5]},
    "model.dropout": {"uniform": [0.0, 0.5]},
}


def config(**fields: Any) -> TuneConfig:
    return TuneConfig.model_validate({"space": SPACE} | fields)


def loss(overrides: dict[str, Any]) -> float:
    """Best at lr 1e-2 with muon; the other keys hardly matter."""
    distance = math.log10(overrides["train.lr"] / 1e-2) ** 2
    return 1.0 + distance + 0.5 * (overrides["train.optimizer"] == "adamw")


def run(search: Search, stop_above: float = math.inf, limit: int = 10**9) -> list[Trial]:
    """All that is left to try, one after the other, each ending at once."""
    ended = []
    while not search.exhausted and len(ended) < limit:
        assignment = search.next()
        assert assignment is not None
        trial = search.trials[assignment.number]
        reached = loss(trial.overrides) + 0.01 * trial.repeat
        early = reached > stop_above
        trial.state = "stopped early" if early else "finished"
        trial.step, trial.metrics = (25 if early else 100), {"loss": reached}
        search.ended(trial)
        ended.append(trial)
    return ended


@pytest.mark.parametrize("search", ["random", "tpe"])
def test_what_is_tried_lies_within_the_space(search: str) -> None:
    made = config(search=search, trials=30)
    for trial in run(Search(made, LOSS)):
        assert all(contains(made.space[key], value) for key, value in trial.overrides.items())
        needs_betas = trial.overrides["train.optimizer"] == "adamw"
        assert ("train.betas" in trial.overrides) == needs_betas


def test_a_sample_is_a_function_of_seed_and_number() -> None:
    made = config()
    assert [sample(made, n) for n in range(9)] == [sample(made, n) for n in range(9)]
    assert sample(made, 1) != sample(made, 2)
    assert sample(made, 1) != sample(config(seed=1), 1)


def test_tpe_finds_better_ones_than_chance() -> None:
    """The median of the last third, over three seeds each."""

    def last_third(search: str) -> float:
        found = []
        for seed in range(3):
            trials = run(Search(config(search=search, trials=36, seed=seed), LOSS))
            found += [trial.metrics["loss"] for trial in trials[24:]]
        return sorted(found)[len(found) // 2]

    assert last_third("tpe") - 1 < 0.5 * (last_third("random") - 1)


@pytest.mark.parametrize("search", ["random", "tpe"])
def test_a_sweep_that_was_killed_tries_what_it_would_have_tried(search: str) -> None:
    made = config(search=search, trials=16)
    whole = run(Search(made, LOSS))
    some = run(Search(made, LOSS), limit=11)
    rest = run(Search(made, LOSS, past=some))
    assert [trial.overrides for trial in some + rest] == [trial.overrides for trial in whole]
    assert [trial.number for trial in some + rest] == list(range(16))


def test_a_trial_that_was_interrupted_comes_first() -> None:
    made = config(trials=12)
    search = Search(made, LOSS)
    run(search, limit=3)
    interrupted = search.next()
    again = Search(made, LOSS, past=search.trials.values())
    assert again.next() == interrupted
    assert interrupted is not None and interrupted.number == 3


def test_only_configurations_that_come_through_are_repeated() -> None:
    trials = run(Search(config(trials=12, repeats=3), LOSS), stop_above=1.8)
    by_configuration = {n: [t for t in trials if t.configuration == n] for n in range(12)}
    for same in by_configuration.values():
        stopped = same[0].state == "stopped early"
        assert [trial.repeat for trial in same] == ([0] if stopped else [0, 1, 2])
    assert len({trial.number for trial in trials}) == len(trials)


def test_repeats_that_are_missing_are_made_up_for() -> None:
    made = config(trials=9, repeats=3)
    whole = run(Search(made, LOSS))
    some = whole[:5]
    rest = run(Search(made, LOSS, past=some))
    tried = sorted((trial.configuration, trial.repeat) for trial in some + rest)
    assert tried == [(n, repeat) for n in range(9) for repeat in range(3)]


def test_a_failed_trial_is_neither_repeated_nor_taken_for_good() -> None:
    made = config(trials=2, repeats=2)
    search = Search(made, LOSS)
    assignment = search.next()
    assert assignment is not None
    trial = search.trials[assignment.number]
    trial.state, trial.reason = "failed", "out of memory"
    search.ended(trial)
    assert len(run(search)) == 2  # the other one, twice
    assert [each.numbers for each in ranked(search.trials.values(), LOSS)] == [[1, 2]]


def test_an_earlier_sweep_is_where_the_next_one_begins() -> None:
    earlier = run(Search(config(trials=30, seed=5), LOSS))
    best = min(earlier, key=lambda trial: trial.metrics["loss"])
    assignment = Search(config(trials=10), LOSS, earlier=earlier).next()
    assert assignment is not None and assignment.overrides == best.overrides
    narrow = config(trials=10, space={**SPACE, "train.lr": {"loguniform": [1e-4, 2e-4]}})
    outside = Search(narrow, LOSS, earlier=earlier).next()
    assert outside is not None and outside.overrides["train.lr"] <= 2e-4


def test_a_search_that_waits_for_a_repeat_is_not_exhausted() -> None:
    search = Search(config(trials=1, repeats=2), LOSS)
    first = search.next()
    assert first is not None and search.next() is None and not search.exhausted
    trial = search.trials[0]
    trial.state, trial.metrics = "finished", {"loss": 1.0}
    search.ended(trial)
    again = search.next()
    assert again is not None and (again.configuration, again.repeat) == (0, 1)


def test_repeats_count_by_their_mean() -> None:
    trials = run(Search(config(trials=3, repeats=3), LOSS))
    (first, *_) = merged(trials, LOSS)
    assert first.metrics["loss"] == pytest.approx(loss(first.overrides) + 0.01)
    best = ranked(trials, LOSS)[0]
    assert best.value == min(trial.metrics["loss"] for trial in merged(trials, LOSS))
    assert best.spread == pytest.approx(0.01)


def test_what_came_less_far_is_not_better_for_it() -> None:
    def trial(number: int, step: int, **fields: Any) -> Trial:
        return Trial(number=number, configuration=number, overrides={}, step=step, **fields)

    trials = [
        trial(0, 1, state="stopped early", metrics={"loss": 0.1}),
        trial(1, 9, state="finished", metrics={"loss": 0.5}),
    ]
    assert [each.numbers for each in ranked(trials, LOSS)] == [[1], [0]]
    assert saved_share(trials, 9) == pytest.approx(8 / 18)


def test_importances_name_the_key_that_matters() -> None:
    made = config(trials=60, search="random")
    found = importances(made.space, LOSS, run(Search(made, LOSS)))
    assert max(found, key=lambda key: found[key]) == "train.lr"
    assert sum(found.values()) == pytest.approx(1.0)
    assert importances(made.space, LOSS, []) == {}


def test_a_best_value_at_the_end_of_its_range_is_told() -> None:
    data = {"source": "python-stdlib"}
    settings = {"name": "a", "task": "language_modelling", "data": data, "tune": {"space": SPACE}}
    job = Job.model_validate(settings)
    middle = {"train.lr": 3e-3, "model.num_layers": 2, "model.dropout": 0.2}
    assert at_the_edge(job, middle) == []
    (lr, layers) = at_the_edge(job, middle | {"train.lr": 0.09, "model.num_layers": 4})
    assert lr == "train.lr = 0.09 lies at the end of its range (0.1): widen it"
    assert layers.startswith("model.num_layers = 4 lies at the end of its range (4)")
    # Beyond these ends there is nothing.
    assert at_the_edge(job, middle | {"model.dropout": 0.001, "model.num_layers": 1}) == []

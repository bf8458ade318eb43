"""Which configuration a sweep tries next: from a grid, at random, or by TPE.

A configuration is a function of the sweep's seed, its own number and, with TPE, the trials that
ended before it. Their results come from their records, so a sweep that was killed loses none.
"""

import statistics
import warnings
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import FrozenTrial, TrialState

from orchestrator.job.search_space import Domain, TuneConfig, grid, in_order
from orchestrator.tasks.task import Metric
from orchestrator.tune.records import Trial

optuna.logging.set_verbosity(optuna.logging.WARNING)

FIRST_AT_RANDOM = 10  # configurations before TPE has enough results
ENDED = ("finished", "stopped early", "stopped", "failed")
REMEMBERED_BEST = 3  # configurations of earlier sweeps, which are tried first


@dataclass(frozen=True)
class Assignment:
    """A trial for Tune to run."""

    number: int
    configuration: int
    repeat: int
    overrides: dict[str, Any]


class Search:
    """Hands out trials: first interrupted ones, then repeats of finished ones, then new ones."""

    def __init__(
        self,
        config: TuneConfig,
        metric: Metric,
        past: Iterable[Trial] = (),
        earlier: Iterable[Trial] = (),
    ) -> None:
        """With `past` trials of this sweep, and `earlier` ones of other sweeps to learn from."""
        self.config = config
        self.metric = metric
        self.trials = {trial.number: trial for trial in past}
        self._interrupted = deque(t for t in self.trials.values() if t.state == "running")
        self._repeats: deque[tuple[Trial, int]] = deque()  # of a trial, with which seed
        for trial in sorted(self.trials.values(), key=lambda trial: trial.number):
            if trial.state == "finished":
                self._plan_repeats(trial)
        self._grid = _shuffled_grid(config) if config.searched_by == "grid" else []
        known = [t for t in earlier if t.overrides.keys() <= config.space.keys()]
        self._earlier = [t for t in known if t.state in ("finished", "stopped early")]
        self._next = 1 + max((t.configuration for t in self.trials.values()), default=-1)

    @property
    def expected(self) -> int:
        """The number of trials, as far as it is known. Trials that stop early have no repeats."""
        begun = len({t.configuration for t in self.trials.values()})
        return len(self.trials) + len(self._repeats) + self.config.configurations - begun

    def next(self) -> Assignment | None:
        """The next trial; None where there is none now. Repeats may follow when a trial ends."""
        if self._interrupted:
            trial = self._interrupted.popleft()
            return Assignment(trial.number, trial.configuration, trial.repeat, trial.overrides)
        number = 1 + max(self.trials, default=-1)
        if self._repeats:
            first, repeat = self._repeats.popleft()
            again = Assignment(number, first.configuration, repeat, first.overrides)
            return self._begun(again)
        if self._next < self.config.configurations:
            configuration = self._next
            self._next += 1
            overrides = self._configuration(configuration)
            return self._begun(Assignment(number, configuration, 0, overrides))
        return None

    @property
    def exhausted(self) -> bool:
        """Whether `next` will never return another trial."""
        running = any(trial.state == "running" for trial in self.trials.values())
        nothing_new = self._next >= self.config.configurations
        return nothing_new and not (self._repeats or self._interrupted or running)

    def ended(self, trial: Trial) -> None:
        """Take in a trial that ended."""
        self.trials[trial.number] = trial
        if trial.state == "finished":
            self._plan_repeats(trial)

    def _begun(self, assignment: Assignment) -> Assignment:
        self.trials[assignment.number] = Trial(
            number=assignment.number,
            configuration=assignment.configuration,
            repeat=assignment.repeat,
            overrides=assignment.overrides,
        )
        return assignment

    def _plan_repeats(self, trial: Trial) -> None:
        """Plan further seeds for a configuration whose first trial finished."""
        if trial.repeat:
            return
        same = [t for t in self.trials.values() if t.configuration == trial.configuration]
        begun = {t.repeat for t in same}
        self._repeats += [(trial, n) for n in range(1, self.config.repeats) if n not in begun]

    def _configuration(self, number: int) -> dict[str, Any]:
        if self._grid:
            return self._grid[number]
        if number < len(best := self._best_of_earlier()):
            return best[number]
        if self.config.searched_by == "random":
            return sample(self.config, number)
        return self._ask(number)

    def _best_of_earlier(self) -> list[dict[str, Any]]:
        """The best configurations of earlier sweeps, without repetitions."""
        sign = 1 if self.metric.mode == "min" else -1
        ranked = sorted(self._earlier, key=lambda t: sign * t.metrics[self.metric.name])
        best: list[dict[str, Any]] = []
        for trial in ranked:
            whole = all(
                name in trial.overrides or not domain.applies(trial.overrides)
                for name, domain in self.config.space.items()
            )
            if whole and trial.overrides not in best and self._inside(trial.overrides):
                best.append(trial.overrides)
        return best[:REMEMBERED_BEST]

    def _inside(self, overrides: dict[str, Any]) -> bool:
        return all(contains(self.config.space[name], value) for name, value in overrides.items())

    def _ask(self, number: int) -> dict[str, Any]:
        """TPE's proposal, given all trials so far."""
        seed = int(np.random.default_rng((self.config.seed, number)).integers(2**32))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            sampler = optuna.samplers.TPESampler(
                seed=seed,
                n_startup_trials=min(FIRST_AT_RANDOM, max(2, self.config.configurations // 3)),
                multivariate=True,
                group=True,
                constant_liar=True,  # counts running trials as bad, so that none is proposed twice
            )
        study = make_study(self.config.space, self.metric, self._memory(), sampler)
        trial = study.ask()
        values: dict[str, Any] = {}
        for name in in_order(self.config.space):
            domain = self.config.space[name]
            if domain.applies(values):
                values[name] = _suggested(trial, name, domain)
        return values

    def _memory(self) -> list[Trial]:
        inside = [trial for trial in self._earlier if self._inside(trial.overrides)]
        return [*inside, *merged(self.trials.values(), self.metric)]


def _shuffled_grid(config: TuneConfig) -> list[dict[str, Any]]:
    """The grid in random order. In its own order trials may get ever better, so ASHA stops none."""
    points = grid(config.space)
    return [points[i] for i in np.random.default_rng(config.seed).permutation(len(points))]


def sample(config: TuneConfig, number: int) -> dict[str, Any]:
    """A random configuration: a function of the sweep's seed and its number alone."""
    random = np.random.default_rng((config.seed, number))
    values: dict[str, Any] = {}
    for name in in_order(config.space):
        drawn = _draw(config.space[name], random)  # always, so that later draws stay the same
        if config.space[name].applies(values):
            values[name] = drawn
    return values


def _draw(domain: Domain, random: np.random.Generator) -> Any:
    if domain.choice is not None:
        return domain.choice[int(random.integers(len(domain.choice)))]
    if domain.randint is not None:
        return int(random.integers(*domain.randint))
    if domain.loguniform is not None:
        low, high = np.log(domain.loguniform)
        return float(np.exp(random.uniform(low, high)))
    assert domain.uniform is not None
    return float(random.uniform(*domain.uniform))


def merged(trials: Iterable[Trial], metric: Metric) -> list[Trial]:
    """One trial for each configuration, with the mean result of its repeats."""
    by_configuration: dict[int, list[Trial]] = {}
    for trial in sorted(trials, key=lambda trial: trial.number):
        by_configuration.setdefault(trial.configuration, []).append(trial)
    means = []
    for first, *others in by_configuration.values():
        values = [
            trial.metrics[metric.name]
            for trial in (first, *others)
            if trial.state != "failed" and metric.name in trial.metrics
        ]
        if others and values:
            mean = {**first.metrics, metric.name: statistics.fmean(values)}
            first = first.model_copy(update={"metrics": mean})
        means.append(first)
    return means


def make_study(
    space: dict[str, Domain],
    metric: Metric,
    trials: Iterable[Trial],
    sampler: optuna.samplers.BaseSampler | None = None,
) -> optuna.Study:
    """The trials as an Optuna study, for its samplers and its importances."""
    directions = optuna.study.StudyDirection
    direction = directions.MINIMIZE if metric.mode == "min" else directions.MAXIMIZE
    study = optuna.create_study(direction=direction, sampler=sampler)
    study.add_trials([_frozen(space, metric, trial) for trial in trials])
    return study


def _frozen(space: dict[str, Domain], metric: Metric, trial: Trial) -> FrozenTrial:
    values = {name: value for name, value in trial.overrides.items() if name in space}
    reached = trial.metrics.get(metric.name)
    state, value, steps = TrialState.RUNNING, None, {}
    if trial.state == "finished" and reached is not None:
        state, value = TrialState.COMPLETE, reached
    elif trial.state in ENDED:  # a failed trial has no value and counts as the worst
        state = TrialState.PRUNED
        if trial.state != "failed" and reached is not None:
            steps = {trial.step: reached}
    return optuna.trial.create_trial(
        state=state,
        value=value,
        params={name: _number_of(space[name], value) for name, value in values.items()},
        distributions={name: distribution(space[name]) for name in values},
        intermediate_values=steps,
    )


def distribution(domain: Domain) -> BaseDistribution:
    """A domain as Optuna's distribution. A choice becomes its index, since it may be any value."""
    if domain.choice is not None:
        return CategoricalDistribution(range(len(domain.choice)))
    if domain.randint is not None:
        return IntDistribution(domain.randint[0], domain.randint[1] - 1)
    if domain.loguniform is not None:
        return FloatDistribution(*domain.loguniform, log=True)
    assert domain.uniform is not None
    return FloatDistribution(*domain.uniform)


def _suggested(trial: optuna.Trial, name: str, domain: Domain) -> Any:
    if domain.choice is not None:
        return domain.choice[trial.suggest_categorical(name, range(len(domain.choice)))]
    if domain.randint is not None:
        return trial.suggest_int(name, domain.randint[0], domain.randint[1] - 1)
    if domain.loguniform is not None:
        return trial.suggest_float(name, *domain.loguniform, log=True)
    assert domain.uniform is not None
    return trial.suggest_float(name, *domain.uniform)


def contains(domain: Domain, value: Any) -> bool:
    if domain.choice is not None:
        return value in domain.choice
    low, high = domain.randint or domain.loguniform or domain.uniform or (0, 0)
    return isinstance(value, int | float) and low <= value <= high - (domain.randint is not None)


def _number_of(domain: Domain, value: Any) -> Any:
    return domain.choice.index(value) if domain.choice is not None else value

"""Which trials continue: Ray Tune's schedulers, restored after a sweep was killed."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ray.tune.schedulers import (
    ASHAScheduler,
    FIFOScheduler,
    MedianStoppingRule,
    PopulationBasedTraining,
    TrialScheduler,
)

from orchestrator.job.search_space import Domain, TuneConfig
from orchestrator.tasks.task import Metric
from orchestrator.tune.records import Trial
from orchestrator.tune.search import sample

VALIDATIONS = 16  # of a trial that is not stopped; schedulers decide at validations
REDUCTION = 4  # at each rung, ASHA lets a trial continue if it is in the best quarter so far
RUNGS = (1, 2, 4, 8)  # numbers of the validations at which ASHA decides
PERTURBATIONS = 8  # of a population's trial, at most
QUANTILE = 0.25  # of a population: the worst quarter copies from the best quarter


def scheduler(config: TuneConfig, metric: Metric, warmup_steps: int) -> TrialScheduler:
    """The scheduler that a job names."""
    if config.scheduler == "asha":
        return _Halving(config, metric, rungs(config, warmup_steps))
    if config.scheduler == "median":
        return MedianStoppingRule(
            time_attr="step",
            metric=metric.name,
            mode=metric.mode,
            grace_period=_validated_at(config, VALIDATIONS // 4),
        )
    if config.scheduler == "pbt":
        return _Population(config, metric)
    return FIFOScheduler()


def rungs(config: TuneConfig, warmup_steps: int) -> list[int]:
    """The steps at which ASHA decides, the last one first.

    In the first half of the warm-up, results say little.
    """
    steps = {_validated_at(config, number) for number in RUNGS} - {config.steps}
    return sorted((step for step in steps if step >= warmup_steps / 2), reverse=True)


def decides_at(config: TuneConfig, warmup_steps: int, step: int) -> bool:
    """Whether the scheduler must see the validation at `step` before the trial continues."""
    if config.scheduler == "asha":
        return step in rungs(config, warmup_steps)
    return config.scheduler != "none"


def _validated_at(config: TuneConfig, number: int) -> int:
    """The step of a trial's n-th validation."""
    return min(config.steps, number * -(-config.steps // VALIDATIONS))


class _Halving(ASHAScheduler):
    """Ray's scheduler with more rungs. Its own rungs are REDUCTION times as far apart as the last.

    The first trials always continue, since there are no others to compare with. With more rungs
    that costs less: in a sweep of 48 trials, 19 % of all steps in place of 24 %, and the best or
    second-best trial was found as often (docs/log.md). Li et al. 2018, arXiv 1810.05934.
    """

    def __init__(self, config: TuneConfig, metric: Metric, steps: list[int]) -> None:
        super().__init__(
            time_attr="step",
            metric=metric.name,
            mode=metric.mode,
            # Beyond the last step, or Ray would count finished trials as stopped.
            max_t=config.steps + 1,
            reduction_factor=REDUCTION,
        )
        (bracket,) = self._brackets
        bracket._rungs = [(step, {}) for step in steps]


class _Population(PopulationBasedTraining):
    """Ray's scheduler, but a trial that takes another one's weights keeps its own number."""

    def __init__(self, config: TuneConfig, metric: Metric) -> None:
        self._space = config.space

        def drawn(name: str) -> Any:
            def draw() -> Any:
                self._draws += 1
                return sample(config, 10**6 + self._draws)[name]

            return draw

        self._draws = 0
        super().__init__(
            time_attr="step",
            metric=metric.name,
            mode=metric.mode,
            perturbation_interval=_validated_at(config, VALIDATIONS // PERTURBATIONS),
            quantile_fraction=QUANTILE,
            hyperparam_mutations={
                "overrides": {
                    name: domain.choice if domain.choice is not None else drawn(name)
                    for name, domain in config.space.items()
                }
            },
        )

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        # Ray refuses searchers here, since they do not learn of changed values. This sweep's search
        # draws at random, so it does not need to learn of them.
        without_searcher: Any = _Past(trial.trial_id)
        super().on_trial_add(without_searcher, trial)

    def _get_new_config(self, trial: Any, trial_to_clone: Any) -> tuple[dict[str, Any], Any]:
        config, operations = super()._get_new_config(trial, trial_to_clone)
        config["donor"], config["number"] = config["number"], trial.config["number"]
        config["overrides"] = {
            name: _within(self._space[name], value) for name, value in config["overrides"].items()
        }
        return config, operations


def _within(domain: Domain, value: Any) -> Any:
    """A perturbed value, limited to the domain's range."""
    ends = domain.uniform or domain.loguniform
    if ends is not None:
        return min(max(float(value), ends[0]), ends[1])
    if domain.randint is not None:
        return min(max(round(value), domain.randint[0]), domain.randint[1] - 1)
    return value


@dataclass(eq=False)
class _Past:
    """Stands for a Ray trial, and for Tune's controller, where a past trial is replayed."""

    trial_id: str
    search_alg: None = None

    def get_live_trials(self) -> list[Any]:
        return []


def replay(chosen: TrialScheduler, trials: Iterable[Trial]) -> None:
    """Show a new scheduler the validations of trials that ended before it was created."""
    if not isinstance(chosen, ASHAScheduler | MedianStoppingRule):
        return
    for trial in trials:
        if trial.state == "running" or not trial.curve:
            continue
        past: Any = _Past(f"past-{trial.number}")
        chosen.on_trial_add(past, past)
        for point in trial.curve:
            chosen.on_trial_result(past, past, dict(point))
        chosen.on_trial_complete(past, past, dict(trial.curve[-1]))

"""A sweep's report: the best configurations, which keys mattered, which ranges were too narrow."""

import contextlib
import math
import statistics
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import optuna

from orchestrator.errors import UserError
from orchestrator.job.job import Job
from orchestrator.job.search_space import Domain
from orchestrator.tasks.task import Metric
from orchestrator.tune.records import Trial
from orchestrator.tune.search import make_study, merged

SHOWN = 10  # configurations on the leaderboard
EDGE = 0.05  # of a range: so close to its end, the best value may lie outside the range
FEWEST = 4  # ended configurations that importances need


@dataclass(frozen=True)
class Ranked:
    """A configuration and its result, the mean over its repeats."""

    numbers: list[int]  # of its trials
    overrides: dict[str, Any]
    value: float
    spread: float | None  # standard deviation over the repeats
    steps: int
    complete: bool  # whether none of its trials was stopped


def ranked(trials: Iterable[Trial], metric: Metric) -> list[Ranked]:
    """Configurations that have a result, the best first, and complete ones before others.

    A trial that was stopped early has trained for fewer steps, so its result does not compare.
    """
    by_configuration: dict[int, list[Trial]] = {}
    for trial in sorted(trials, key=lambda trial: trial.number):
        if trial.state != "failed" and metric.name in trial.metrics:
            by_configuration.setdefault(trial.configuration, []).append(trial)
    results = []
    for repeats in by_configuration.values():
        values = [trial.metrics[metric.name] for trial in repeats]
        results.append(
            Ranked(
                numbers=[trial.number for trial in repeats],
                overrides=repeats[0].overrides,
                value=statistics.fmean(values),
                spread=statistics.stdev(values) if len(values) > 1 else None,
                steps=min(trial.step for trial in repeats),
                complete=all(trial.state == "finished" for trial in repeats),
            )
        )
    sign = 1 if metric.mode == "min" else -1
    return sorted(results, key=lambda result: (not result.complete, sign * result.value))


def importances(
    space: dict[str, Domain], metric: Metric, trials: Iterable[Trial]
) -> dict[str, float]:
    """The share of each key in the difference between good and bad trials, by key.

    The shares sum to 1. Empty for fewer than FEWEST trials. Watanabe et al. 2023, PED-ANOVA.
    """
    ended = [trial for trial in merged(trials, metric) if trial.state != "running"]
    whole = [trial.model_copy(update={"state": "finished"}) for trial in ended if trial.metrics]
    if len(whole) < FEWEST:
        return {}
    shares: dict[str, float] = {}
    # Optuna fails where all values are equal.
    with contextlib.suppress(Exception), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        evaluator = optuna.importance.PedAnovaImportanceEvaluator()
        study = make_study(space, metric, whole)
        shares = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return {key: value for key, value in shares.items() if math.isfinite(value)}


def at_the_edge(job: Job, best: dict[str, Any]) -> list[str]:
    """A sentence for each best value that lies at an end of its range, if the job may exceed it."""
    assert job.tune is not None
    sentences = []
    for key, value in best.items():
        domain = job.tune.space[key]
        ends = domain.loguniform or domain.uniform or domain.randint
        if ends is None:
            continue
        low, high = ends if domain.randint is None else (ends[0], ends[1] - 1)
        share = (value - low) / (high - low) if high > low else 0.5
        if domain.loguniform is not None:
            share = math.log(value / low) / math.log(high / low)
        if EDGE < share < 1 - EDGE:
            continue
        end, other = (low, high) if share <= EDGE else (high, low)
        beyond = end * end / other if domain.loguniform is not None else 2 * end - other
        if _may_be(job, key, type(value)(beyond)):
            end_of_range = f"the end of its range ({end:g})"
            sentences.append(f"{key} = {value:.4g} lies at {end_of_range}: widen it")
    return sentences


def _may_be(job: Job, key: str, value: Any) -> bool:
    """Whether a job may have this value, unlike a dropout below 0."""
    try:
        job.override({key: value})
    except UserError:
        return False
    return True


def saved_share(trials: Iterable[Trial], steps: int) -> float:
    """The share of all steps that the scheduler saved by stopping trials early."""
    ran = [trial for trial in trials if trial.state in ("finished", "stopped early")]
    whole = steps * len(ran)
    return 1 - sum(trial.step for trial in ran) / whole if whole else 0.0


def findings(job: Job, trials: list[Trial], order: list[Ranked]) -> str:
    """A sweep's report, in Markdown."""
    assert job.tune is not None
    metric, space = job.build_task().metric, job.tune.space
    important = importances(space, metric, trials)
    warnings_of_ranges = at_the_edge(job, order[0].overrides)
    counts = [f"{sum(t.state == state for t in trials)} {state}" for state in _states(trials)]
    lines = [
        "## The sweep",
        "",
        f"{len(trials)} trials: {', '.join(counts)}. {job.tune.scheduler} saved "
        f"{saved_share(trials, job.tune.steps):.0%} of their steps.",
        "",
        *_leaderboard(order, metric, sorted(space)),
        "",
        *[f"**{text}.**\n" for text in warnings_of_ranges],
        *_space(space, order[0].overrides, important),
    ]
    return "\n".join(lines) + "\n"


def _states(trials: list[Trial]) -> list[str]:
    return sorted({trial.state for trial in trials})


def _leaderboard(order: list[Ranked], metric: Metric, keys: list[str]) -> list[str]:
    varied = [key for key in keys if len({str(each.overrides.get(key)) for each in order}) > 1]
    rows = [
        [
            " ".join(map(str, each.numbers)),
            f"{each.value:.4f}" + (f" ± {each.spread:.4f}" if each.spread is not None else ""),
            f"{each.steps:,}",
            *[shown(each.overrides.get(key)) for key in varied],
        ]
        for each in order[:SHOWN]
    ]
    return table(["trial", metric.name, "steps", *varied], rows)


def _space(
    space: dict[str, Domain], best: dict[str, Any], important: dict[str, float]
) -> list[str]:
    rows = [
        [
            f"`{key}`",
            shown(best.get(key)),
            ", ".join(
                f"{kind} {shown(values)}"
                for kind, values in space[key].model_dump(exclude_none=True).items()
            ),
            f"{important[key]:.0%}" if key in important else "",
        ]
        for key in sorted(space, key=lambda key: (-important.get(key, 0.0), key))
    ]
    return table(["key", "best", "tried", "importance"], rows)


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    """A table in Markdown."""
    return [
        "| " + " | ".join(head) + " |",
        "| --- " * len(head) + "|",
        *["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows],
    ]


def shown(value: Any) -> str:
    """A value as text, floats rounded."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(shown, value))}]"
    return str(value)

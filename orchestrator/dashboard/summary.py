"""The summary of a sweep: state, progress, time left, best configuration and resources."""

import time
from collections import Counter, defaultdict
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from orchestrator.dashboard.sweep import FollowedSweep
from orchestrator.storage.strict_json import finite
from orchestrator.tune.records import SweepRecord, Trial


@dataclass(frozen=True)
class Best:
    """The best configuration so far, with the trial that represents it."""

    trial: Trial
    numbers: list[int]  # its trials
    value: float  # the mean over its trials
    complete: bool  # all of its trials ran to the end


def summarize(sweep: FollowedSweep, live: bool) -> dict[str, Any]:
    """The figures above the trials. `live`: a process runs this sweep now."""
    record, trials = sweep.record, sweep.trials
    assert record is not None
    state = "interrupted" if record.state == "running" and not live else record.state
    elapsed = record.seconds + (max(0.0, time.time() - sweep.record_time) if live else 0.0)
    running = [trial for trial in trials if trial.state == "running"] if live else []
    best = find_best(record, trials, sweep.best)
    return finite(
        {
            "run": sweep.run,
            "sweep": sweep.name,
            **record.model_dump(exclude={"state", "seconds"}),
            "state": state,
            "live": live,
            "elapsed": elapsed,
            "progress": progress(record, trials),
            "eta": time_left(record, trials, elapsed) if live else None,
            "counts": Counter(_shown_state(trial, live) for trial in trials),
            "resources": {
                "trials": len(running),
                "cpus": len(running) * record.cpus,
                "gpus": len(running) * record.gpus,
                "hosts": Counter(trial.host for trial in running if trial.host),
            },
            "best": None
            if best is None
            else {"number": best.trial.number, "value": best.value, "repeats": len(best.numbers)},
            "stopping": live and "stop" in sweep.requests,
            "stopping_trials": _stopping(sweep.requests) if live else [],
            "unreadable": sorted(sweep.unreadable),
        }
    )


def _shown_state(trial: Trial, live: bool) -> str:
    return "interrupted" if trial.state == "running" and not live else trial.state


def _stopping(requests: set[str]) -> list[int]:
    numbers = [name.removeprefix("stop-") for name in requests if name.startswith("stop-")]
    return sorted(int(number) for number in numbers if number.isdecimal())


def trial_value(trial: Trial, metric: str) -> float | None:
    """The value of a trial's metric; None if it has no finite one."""
    value = trial.metrics.get(metric)
    return None if value is None else finite(float(value))


def find_best(record: SweepRecord, trials: list[Trial], chosen: int | None) -> Best | None:
    """The best configuration so far; of a finished sweep the one of the trial that it chose.

    A configuration that is run several times counts by its mean. One whose trials went all the
    way comes before others, as when a sweep chooses: what ran for fewer steps may yet get worse.
    """
    groups: dict[int, list[tuple[float, Trial]]] = defaultdict(list)
    for trial in trials:
        value = trial_value(trial, record.metric)
        if value is not None and trial.state != "failed":
            groups[trial.configuration].append((value, trial))
    means = [_mean(group) for group in groups.values()]
    if chosen is not None:
        means = [best for best in means if chosen in best.numbers] or means
    sign = 1.0 if record.mode == "min" else -1.0
    return min(means, key=lambda best: (not best.complete, sign * best.value), default=None)


def _mean(group: list[tuple[float, Trial]]) -> Best:
    trials = sorted((trial for _, trial in group), key=lambda trial: trial.number)
    return Best(
        trial=trials[0],
        numbers=[trial.number for trial in trials],
        value=fmean(value for value, _ in group),
        complete=all(trial.state == "finished" for trial in trials),
    )


def progress(record: SweepRecord, trials: list[Trial]) -> float:
    """The finished share of the sweep. Begun trials count by their steps."""
    if record.state == "finished":
        return 1.0
    total = max(1, record.trials * record.repeats)
    return min(1.0, sum(_done(trial, record) for trial in trials) / total)


def _done(trial: Trial, record: SweepRecord) -> float:
    return min(1.0, trial.step / max(1, record.steps)) if trial.state == "running" else 1.0


def time_left(record: SweepRecord, trials: list[Trial], elapsed: float) -> float | None:
    """The estimated seconds to the end, by the pace so far; None before the first trial ends."""
    ended = [trial.seconds for trial in trials if trial.state != "running" and trial.seconds > 0]
    begun = [
        trial.seconds * record.steps / trial.step
        for trial in trials
        if trial.state == "running" and trial.step and trial.seconds > 0
    ]
    known = ended or begun
    by_budget = None if record.minutes is None else max(0.0, record.minutes * 60 - elapsed)
    if not known:
        return by_budget
    done = sum(_done(trial, record) for trial in trials)
    left = max(0.0, record.trials * record.repeats - done)
    by_trials = left * sum(known) / len(known) / max(1, record.concurrent)
    return by_trials if by_budget is None else min(by_trials, by_budget)

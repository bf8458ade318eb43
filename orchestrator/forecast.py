"""How long the rest of a run takes: of each stage as far as it is known, and said so where not."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from orchestrator.job.cost import train_seconds
from orchestrator.job.job import Job
from orchestrator.progress import STAGES, Stage, StageStatus

Forecast = dict[Stage, float | None]  # seconds of each stage ahead; None if nobody knows


def forecast(
    job: Job, statuses: list[StageStatus], events: list[dict[str, Any]], until: Stage
) -> Forecast:
    """The expected seconds of each stage up to `until` that is neither finished nor skipped.

    The time budget of a training or a sweep counts first, then how long the stage took when a run
    of this name last finished it. For a training of `train.steps` that never finished it is an
    estimate from the model's size; for all else it is None.
    """
    ahead = STAGES[: STAGES.index(until) + 1]
    states = {status.stage: status.state for status in statuses}
    return {
        stage: _budget(job, stage) or _last_seconds(events, stage) or _estimate(job, stage)
        for stage in ahead
        if states.get(stage) not in ("finished", "skipped")
    }


def _budget(job: Job, stage: Stage) -> float | None:
    if stage == "train" and job.train.steps is None:
        return 60.0 * job.train.budget_minutes
    if stage == "tune" and job.tune is not None and job.tune.minutes is not None:
        return 60.0 * job.tune.minutes
    return None


def _last_seconds(events: list[dict[str, Any]], stage: Stage) -> float | None:
    for event in reversed(events):
        seconds = event.get("seconds")
        if (event.get("stage"), event.get("event")) == (stage, "finished") and seconds:
            return float(seconds)
    return None


def _estimate(job: Job, stage: Stage) -> float | None:
    return train_seconds(job) if stage == "train" else None


def time_left(expected: Mapping[Stage, float | None], current: float | None = None) -> str:
    """The time that stages need, such as `about 4 min + evaluate`; `` if there are none.

    Args:
        expected: the seconds of each stage that is not finished, the one that runs first.
        current: what the first stage still needs, where that is known better.
    """
    seconds = dict(expected)
    if seconds and current is not None:
        seconds[next(iter(seconds))] = current
    known = [value for value in seconds.values() if value is not None]
    unknown = [stage for stage, value in seconds.items() if value is None]
    parts = [f"about {_in_words(sum(known))}"] if known else []
    return " + ".join([*parts, *([", ".join(unknown)] if unknown else [])])


def time_left_of(expected: Forecast, events: list[dict[str, Any]], now: datetime) -> str:
    """The same of a run in another process, by the time at which its stage started."""
    if not expected:
        return ""
    stage, seconds = next(iter(expected.items()))
    started = [e for e in events if (e.get("stage"), e.get("event")) == (stage, "started")]
    if seconds is None or not started:
        return time_left(expected)
    elapsed = (now - datetime.fromisoformat(started[-1]["time"]).astimezone(UTC)).total_seconds()
    return time_left(expected, max(seconds - elapsed, 0.0))


def _in_words(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"

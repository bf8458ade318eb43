"""Estimates how long the rest of a run takes, and names the stages whose time is unknown."""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from orchestrator.job.cost import train_seconds
from orchestrator.job.job import Job
from orchestrator.progress import STAGES, Stage, StageStatus

Event = dict[str, Any]
SecondsLeft = Mapping[Stage, float | None]  # None: unknown


@dataclass(frozen=True)
class Estimate:
    """The estimated seconds of a stage. A stage with a limit ends by then, at any pace."""

    seconds: float
    is_limit: bool = False

    def left(self, elapsed: float) -> float | None:
        """The seconds that are left; None if the stage took longer than the estimate."""
        if elapsed > self.seconds and not self.is_limit:
            return None
        return max(self.seconds - elapsed, 0.0)


Forecast = dict[Stage, Estimate | None]  # None: unknown


class Pace:
    """Measures how fast an activity counts its units, over the latter half of its time."""

    def __init__(self, total: float | None, done: float, now: float) -> None:
        """`done` units were finished before `now`, when the activity began."""
        self._total = total
        self._began = now
        self._counts = deque([(now, done)])

    def count(self, amount: float, now: float) -> None:
        """Count `amount` more units as done."""
        self._counts.append((now, self._counts[-1][1] + amount))
        middle = (self._began + now) / 2
        while len(self._counts) > 2 and self._counts[1][0] <= middle:
            self._counts.popleft()

    def seconds_left(self, now: float) -> float | None:
        """The seconds to the end; None without a total, or before a unit is counted."""
        (first_time, first), (last_time, last) = self._counts[0], self._counts[-1]
        if self._total is None or last <= first or last_time <= first_time:
            return None
        seconds_per_unit = (last_time - first_time) / (last - first)
        return max((self._total - last) * seconds_per_unit - (now - last_time), 0.0)


def forecast(job: Job, statuses: list[StageStatus], events: list[Event], until: Stage) -> Forecast:
    """The estimate of each stage up to `until` that is neither finished nor skipped.

    A time budget comes first, then the time of the stage when a run of this name last finished it.
    A training of `train.steps` that never finished is estimated from the model's size.
    """
    ahead = STAGES[: STAGES.index(until) + 1]
    states = {status.stage: status.state for status in statuses}
    return {
        stage: _budget(job, stage) or _from_last_run(job, stage, events) or _from_size(job, stage)
        for stage in ahead
        if states.get(stage) not in ("finished", "skipped")
    }


def seconds_left(estimate: Estimate | None, elapsed: float, measured: float | None) -> float | None:
    """The seconds that a stage still needs, `elapsed` seconds after its start.

    Args:
        measured: the same by the pace of the stage, which is better than the estimate.
    """
    estimated = None if estimate is None else estimate.left(elapsed)
    if measured is None or estimated is None:
        return estimated if measured is None else measured
    return min(measured, estimated) if estimate is not None and estimate.is_limit else measured


def before_start(ahead: Forecast) -> dict[Stage, float | None]:
    """The seconds of stages that have not started."""
    return {stage: seconds_left(estimate, 0.0, None) for stage, estimate in ahead.items()}


def from_events(
    ahead: Forecast, job: Job, events: list[Event], now: datetime
) -> dict[Stage, float | None]:
    """The seconds left of each stage of a run in another process, whose first stage may run.

    The pace of a training is the one of its checkpoints.
    """
    left = before_start(ahead)
    stage = next(iter(ahead), None)
    starts = [i for i, event in enumerate(events) if _is(event, stage, "started")]
    if stage is None or not starts:
        return left
    session = events[starts[-1] :]
    measured = None
    if stage == "train" and (pace := _pace_of_checkpoints(job.train.steps, session)):
        measured = pace.seconds_left(now.timestamp())
    elapsed = now.timestamp() - _time(session[0])
    return {**left, stage: seconds_left(ahead[stage], elapsed, measured)}


def until_of(events: list[Event]) -> Stage:
    """The last stage that the command of the newest start runs."""
    started = [event for event in events if _is(event, "run", "started")]
    until = started[-1].get("until") if started else None
    return until if until in STAGES else "serve"


def in_words(left: SecondsLeft) -> str:
    """The time that all stages need, such as `4 min + evaluate`, where evaluate's is unknown."""
    known = [seconds for seconds in left.values() if seconds is not None]
    unknown = ", ".join(stage for stage, seconds in left.items() if seconds is None)
    if not known:
        return "unknown" if unknown else ""
    return _rounded(sum(known)) + (f" + {unknown}" if unknown else "")


def _budget(job: Job, stage: Stage) -> Estimate | None:
    if stage == "train" and job.train.steps is None:
        return Estimate(60.0 * job.train.budget_minutes)
    if stage == "tune" and job.tune is not None and job.tune.minutes is not None:
        return Estimate(60.0 * job.tune.minutes, is_limit=True)
    return None


def _from_last_run(job: Job, stage: Stage, events: list[Event]) -> Estimate | None:
    """The time of the stage when it last finished; of a training, scaled to the job's steps."""
    ends = [i for i, event in enumerate(events) if _is(event, stage, "finished")]
    if not ends or not events[ends[-1]].get("seconds"):
        return None
    seconds = float(events[ends[-1]]["seconds"])
    starts = [i for i in range(ends[-1]) if _is(events[i], stage, "started")]
    if stage != "train" or job.train.steps is None or not starts:
        return Estimate(seconds)
    checkpoints = _checkpoints(events[starts[-1] : ends[-1]])
    if len(checkpoints) < 2 or checkpoints[-1][1] <= checkpoints[0][1]:
        return Estimate(seconds)
    (first_time, first), (last_time, last) = checkpoints[0], checkpoints[-1]
    training = min(last_time - first_time, seconds)
    return Estimate(seconds - training + training / (last - first) * job.train.steps)


def _from_size(job: Job, stage: Stage) -> Estimate | None:
    return Estimate(train_seconds(job)) if stage == "train" else None


def _pace_of_checkpoints(steps: int | None, events: list[Event]) -> Pace | None:
    """The pace of a training of `steps` steps, by the events since its start."""
    checkpoints = _checkpoints(events)
    if not checkpoints:
        return None
    (began, done), *others = checkpoints
    pace = Pace(steps, done, began)
    for time, step in others:
        pace.count(step - done, time)
        done = step
    return pace


def _checkpoints(events: list[Event]) -> list[tuple[float, float]]:
    """The time and the step of each checkpoint."""
    return [
        (_time(event), float(event["step"]))
        for event in events
        if _is(event, "train", "checkpoint") and isinstance(event.get("step"), int)
    ]


def _is(event: Event, stage: str | None, name: str) -> bool:
    return (event["stage"], event["event"]) == (stage, name)


def _time(event: Event) -> float:
    return datetime.fromisoformat(event["time"]).timestamp()


def _rounded(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"

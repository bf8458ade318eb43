"""How long the rest of a run takes, as far as it is known."""

import io
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from rich.console import Console

from orchestrator.display import TerminalDisplay
from orchestrator.forecast import (
    Estimate,
    Pace,
    before_start,
    forecast,
    from_events,
    in_words,
    seconds_left,
    until_of,
)
from orchestrator.job.job import Job
from orchestrator.progress import Stage, StageStatus

PENDING = [StageStatus("prepare", "finished"), StageStatus("tune", "skipped")]
PENDING += [StageStatus("train", "pending"), StageStatus("evaluate", "pending")]
NOW = datetime(2026, 1, 1, 12, 0, tzinfo=UTC)


def make_job(tune: dict[str, Any] | None = None, **train: Any) -> Job:
    sections = {"train": train, **({"tune": tune} if tune else {})}
    return Job.model_validate(
        {"name": "a", "task": "language_modelling", "data": {"source": "x"}, **sections}
    )


def event(stage: str, name: str, minutes_ago: float = 0.0, **fields: Any) -> dict[str, Any]:
    at = NOW - timedelta(minutes=minutes_ago)
    return {"time": at.isoformat(), "stage": stage, "event": name, **fields}


def finished(stage: str, seconds: float) -> dict[str, Any]:
    return event(stage, "finished", seconds=seconds)


def expected(job: Job, events: list[dict[str, Any]], until: Stage) -> dict[Stage, float | None]:
    return before_start(forecast(job, PENDING, events, until))


def test_a_time_budget_counts_more_than_how_long_the_last_training_took() -> None:
    events = [finished("train", 7.0), finished("evaluate", 3.0), finished("evaluate", 5.0)]
    assert expected(make_job(minutes=2), events, "serve") == {
        "train": 120.0,
        "evaluate": 5.0,
        "serve": None,
    }
    assert expected(make_job(steps=9), events, "train") == {"train": 7.0}


def test_a_training_of_steps_that_never_ran_is_estimated_by_its_size() -> None:
    few, many = (expected(make_job(steps=steps), [], "train")["train"] for steps in (10, 1000))
    assert few is not None and many == pytest.approx(100 * few)


def test_the_last_training_is_scaled_to_the_steps_of_this_one() -> None:
    events = [
        event("train", "started", 10),
        event("train", "checkpoint", 8, step=0),
        event("train", "checkpoint", 7, step=50),
        event("train", "checkpoint", 6, step=100),
        finished("train", 4 * 60.0),
    ]
    # Two minutes for 100 steps, and two to start and to end.
    for steps, minutes in ((100, 4), (1000, 22)):
        assert expected(make_job(steps=steps), events, "train")["train"] == pytest.approx(
            60 * minutes
        )


def test_what_nobody_knows_is_named() -> None:
    assert in_words({}) == ""
    assert in_words({"train": 200.0, "evaluate": None, "serve": None}) == "3 min + evaluate, serve"
    assert in_words({"train": 12.0, "evaluate": 20.0}) == "32 s"
    assert in_words({"prepare": None, "train": None}) == "unknown"
    assert in_words({"train": 7200.0}) == "2.0 h"


def test_a_stage_that_takes_longer_than_expected_is_unknown_and_not_about_to_end() -> None:
    assert seconds_left(Estimate(60.0), 20.0, None) == 40.0
    assert seconds_left(Estimate(60.0), 61.0, None) is None
    assert seconds_left(Estimate(60.0, is_limit=True), 61.0, None) == 0.0
    assert seconds_left(None, 5.0, None) is None


def test_the_measured_pace_counts_more_than_an_estimate_but_ends_at_a_limit() -> None:
    assert seconds_left(Estimate(60.0), 20.0, 300.0) == 300.0
    assert seconds_left(None, 20.0, 300.0) == 300.0
    assert seconds_left(Estimate(60.0, is_limit=True), 20.0, 300.0) == 40.0
    assert seconds_left(Estimate(60.0, is_limit=True), 20.0, 3.0) == 3.0


def test_the_time_of_a_sweep_is_a_limit() -> None:
    job = make_job(tune={"minutes": 2})
    ahead = forecast(job, [StageStatus("tune", "pending")], [], "tune")
    assert ahead["tune"] == Estimate(120.0, is_limit=True)


def test_units_of_an_earlier_run_do_not_quicken_the_pace() -> None:
    pace = Pace(total=100, done=50, now=0.0)
    assert pace.seconds_left(1.0) is None
    pace.count(10, now=10.0)
    assert pace.seconds_left(10.0) == pytest.approx(40.0)
    assert pace.seconds_left(15.0) == pytest.approx(35.0)  # between two counts time passes


def test_the_pace_forgets_a_slow_start() -> None:
    pace = Pace(total=1000, done=0, now=0.0)
    pace.count(1, now=100.0)  # compiling, say
    for second in range(101, 301):
        pace.count(1, now=float(second))
    assert pace.seconds_left(300.0) == pytest.approx(1000 - 201)


def test_an_activity_without_a_total_has_no_end() -> None:
    pace = Pace(total=None, done=0, now=0.0)
    pace.count(1, now=1.0)
    assert pace.seconds_left(1.0) is None


def test_another_process_counts_from_the_start_of_the_stage() -> None:
    events = [event("train", "started", 50), event("train", "started", 4)]
    ahead = forecast(make_job(minutes=10), PENDING, events, "evaluate")
    left = from_events(ahead, make_job(minutes=10), events, NOW)
    assert left == {"train": pytest.approx(6 * 60.0), "evaluate": None}
    assert from_events({}, make_job(), events, NOW) == {}
    assert from_events(ahead, make_job(minutes=10), [], NOW) == before_start(ahead)


def test_another_process_measures_a_training_by_its_checkpoints() -> None:
    events = [
        event("train", "checkpoint", 60, step=400),  # of an earlier start
        event("train", "started", 5),
        event("train", "checkpoint", 4, step=400),
        event("train", "checkpoint", 2, step=500),
    ]
    job = make_job(steps=1000)
    left = from_events(forecast(job, PENDING, events, "train"), job, events, NOW)
    assert left == {"train": pytest.approx((10 - 2) * 60.0)}


def test_the_last_stage_is_the_one_of_the_newest_command() -> None:
    assert until_of([]) == "serve"
    assert until_of([event("run", "started", until="train")]) == "train"
    assert until_of([event("run", "started", until="train"), event("run", "started")]) == "serve"


def test_a_log_has_the_time_of_the_whole_run() -> None:
    output = io.StringIO()
    display = TerminalDisplay(Console(file=output, width=200))
    display.expect({"prepare": None, "train": Estimate(120.0), "evaluate": None})
    display.stage_started("prepare")
    display.stage_finished(StageStatus("prepare", "finished", seconds=1.0), already=False)
    display.stage_started("train")
    display.start("training", total=10, unit="steps")
    display._logged = float("-inf")
    display.advance(0)
    assert "prepare: started  ETA 2 min + prepare, evaluate" in output.getvalue()
    assert "training: 0/10 steps  ETA 2 min + evaluate" in output.getvalue()


def test_a_training_in_progress_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    output = io.StringIO()
    display = TerminalDisplay(Console(file=output, width=200))
    display.expect({"train": Estimate(5.0), "evaluate": Estimate(60.0)})
    display.stage_started("train")
    display.start("training", total=100, unit="steps", done=40)
    now[0] = 20.0
    display.advance(20)
    assert "training: 60/100 steps  ETA 2 min" in output.getvalue()  # 40 s and 60 s


@pytest.mark.parametrize("width", [80, 120])
def test_a_narrow_terminal_shows_the_time_of_the_run_whole(width: int) -> None:
    output = io.StringIO()
    console = Console(file=output, width=width, force_terminal=True, color_system=None)
    display = TerminalDisplay(console)
    display.expect({"train": Estimate(300.0), "evaluate": None, "serve": None})
    display.stage_started("train")
    display.start("training", total=30_000, unit="steps")
    display.show({"loss": 2.345, "tokens/s": 12345.0, "lr": 1e-3, "validation loss": 2.9})
    display.bar.refresh()
    display.finish()
    assert "ETA 5 min + evaluate, serve" in output.getvalue()
    assert "loss 2.345  12,345 tokens/s" in output.getvalue()

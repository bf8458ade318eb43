"""How long the rest of a run takes, as far as it is known."""

import io
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from rich.console import Console

from orchestrator.display import TerminalDisplay
from orchestrator.forecast import forecast, time_left, time_left_of
from orchestrator.job.job import Job
from orchestrator.progress import StageStatus

PENDING = [StageStatus("prepare", "finished"), StageStatus("tune", "skipped")]
PENDING += [StageStatus("train", "pending"), StageStatus("evaluate", "pending")]


def make_job(**train: Any) -> Job:
    return Job.model_validate(
        {"name": "a", "task": "language_modelling", "data": {"source": "x"}, "train": train}
    )


def finished(stage: str, seconds: float) -> dict[str, Any]:
    return {"stage": stage, "event": "finished", "seconds": seconds}


def test_a_time_budget_counts_more_than_how_long_the_last_training_took() -> None:
    events = [finished("train", 7.0), finished("evaluate", 3.0), finished("evaluate", 5.0)]
    expected = forecast(make_job(minutes=2), PENDING, events, "serve")
    assert expected == {"train": 120.0, "evaluate": 5.0, "serve": None}
    assert forecast(make_job(steps=9), PENDING, events, "train") == {"train": 7.0}


def test_a_training_of_steps_that_never_ran_is_estimated_by_its_size() -> None:
    few, many = (
        forecast(make_job(steps=steps), PENDING, [], "train")["train"] for steps in (10, 1000)
    )
    assert few is not None and many == pytest.approx(100 * few)


def test_what_nobody_knows_is_said() -> None:
    assert time_left({}) == ""
    assert time_left({"train": 200.0, "evaluate": None, "serve": None}) == (
        "about 3 min + evaluate, serve"
    )
    assert time_left({"train": 200.0, "evaluate": 20.0}, current=12.0) == "about 32 s"
    assert time_left({"prepare": None}) == "prepare"
    assert time_left({"train": 7200.0}) == "about 2.0 h"


def test_another_process_counts_from_the_start_of_the_stage() -> None:
    now = datetime(2026, 1, 1, 12, 0, tzinfo=UTC)
    started = {"stage": "train", "event": "started"}
    old, new = ({**started, "time": (now - timedelta(minutes=m)).isoformat()} for m in (50, 4))
    assert time_left_of({"train": 600.0, "evaluate": None}, [old, new], now) == (
        "about 6 min + evaluate"
    )
    assert time_left_of({"train": 60.0}, [old, new], now) == "about 0 s"


def test_a_log_has_the_time_of_the_whole_run() -> None:
    output = io.StringIO()
    display = TerminalDisplay(Console(file=output, width=200))
    display.expect({"prepare": None, "train": 120.0, "evaluate": None})
    display.stage_started("prepare")
    display.stage_finished(StageStatus("prepare", "finished", seconds=1.0), already=False)
    display.stage_started("train")
    display.start("training", total=10, unit="steps")
    display._logged = float("-inf")
    display.advance(1)
    assert "training: 1/10 steps  run: about 2 min + evaluate" in output.getvalue()

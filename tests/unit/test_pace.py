"""When a training reports, validates, saves and ends."""

import itertools
import random
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch

from orchestrator.learn import pace as pace_module
from orchestrator.learn.pace import CALIBRATION_STEPS, Pace
from orchestrator.learn.world import World
from tests.unit.toy import toy_config

ROWS = 10_000


class Clock:
    """A clock that the test turns."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(pace_module, "time", SimpleNamespace(monotonic=clock.monotonic))
    return clock


def run(
    pace: Pace,
    clock: Clock,
    step_seconds: Callable[[int], float],
    validation_seconds: float,
    terms: float = 100.0,
    first: int = 1,
) -> list[dict[str, float]]:
    """The loop of `fit` without a model, each step with a loss of 2 a term; what was reported."""
    reports = []
    for step in itertools.count(first):
        clock.now += step_seconds(step)
        pace.step_done(torch.tensor(2.0 * terms), torch.tensor(terms), torch.tensor(True))
        if (values := pace.progress(step)) is not None:
            reports.append(values)
        if pace.validation_due(step):
            clock.now += validation_seconds
            pace.validated()
            pace.fix_total_steps(step)
        if step == pace.total_steps:
            return reports


@pytest.mark.parametrize("validation_seconds", [0.0, 0.2])
@pytest.mark.parametrize("step_seconds", [0.02, 0.1])
def test_a_time_budget_is_kept(
    clock: Clock, step_seconds: float, validation_seconds: float
) -> None:
    pace, started = Pace(toy_config(steps=None, minutes=0.2), World(), ROWS), clock.now
    run(pace, clock, lambda step: step_seconds, validation_seconds)
    assert 0.85 * 12 < clock.now - started < 1.05 * 12


def test_a_slow_first_step_does_not_shorten_a_time_budget_by_much(clock: Clock) -> None:
    pace, started = Pace(toy_config(steps=None, minutes=0.2), World(), ROWS), clock.now
    run(pace, clock, lambda step: 2.0 if step == 1 else 0.1, validation_seconds=0.0)
    assert 0.85 * 12 < clock.now - started < 1.05 * 12


def test_a_time_budget_is_kept_where_steps_differ_and_the_first_second_is_slow(
    clock: Clock,
) -> None:
    chance = random.Random(0)
    pace, started = Pace(toy_config(steps=None, minutes=2), World(), ROWS), clock.now
    run(pace, clock, lambda step: chance.uniform(0.02, 0.06) * (3 if step < 30 else 1), 0.1)
    assert 0.9 * 120 < clock.now - started < 1.05 * 120


def test_a_budget_that_is_spent_before_it_is_measured_still_ends(clock: Clock) -> None:
    pace = Pace(toy_config(steps=None, minutes=0.01), World(), ROWS)
    run(pace, clock, lambda step: 1.0, validation_seconds=1.0)
    assert pace.total_steps == CALIBRATION_STEPS + 1


@pytest.mark.parametrize("eval_every", [1, 2, 3, 50])
def test_throughput_counts_the_seconds_of_steps_and_not_those_of_validations(
    clock: Clock, eval_every: int
) -> None:
    pace = Pace(toy_config(steps=50, eval_every=eval_every), World(), ROWS)
    reports = run(pace, clock, lambda step: 0.2, validation_seconds=30.0)
    assert [values["throughput"] for values in reports] == pytest.approx([500.0] * len(reports))
    assert [values["loss"] for values in reports] == pytest.approx([2.0] * len(reports))


@pytest.mark.parametrize("eval_every", [1, 50])
def test_progress_is_reported_about_twice_a_second_and_at_the_end(
    clock: Clock, eval_every: int
) -> None:
    pace = Pace(toy_config(steps=500, eval_every=eval_every), World(), ROWS)
    reports = run(pace, clock, lambda step: 0.02, validation_seconds=0.0)
    assert 18 <= len(reports) <= 21  # ten seconds of steps


def agreements(
    pace: Pace, clock: Clock, step_seconds: Callable[[int], float], steps: int
) -> list[int]:
    """The steps after which the workers of a training compare notes."""
    found = []
    for step in range(1, steps + 1):
        clock.now += step_seconds(step)
        pace.step_done(torch.tensor(2.0), torch.tensor(1.0), torch.tensor(True))
        if pace.agreement_due(step):
            pace.next_agreement = step + pace.agreement_interval(step)
            found.append(step)
    return found


@pytest.mark.parametrize(("step_seconds", "apart"), [(0.001, 50), (0.1, 9), (0.6, 1), (5.0, 1)])
def test_there_is_a_pulse_about_once_a_second(
    clock: Clock, step_seconds: float, apart: int
) -> None:
    pace = Pace(toy_config(steps=1000, eval_every=1000), World(), ROWS)
    found = agreements(pace, clock, lambda step: step_seconds, 200)
    assert found[0] == 1
    distances = {later - earlier for earlier, later in itertools.pairwise(found)}
    assert distances <= {apart, apart + 1}


def test_slow_first_steps_do_not_make_all_later_pulses_frequent(clock: Clock) -> None:
    pace = Pace(toy_config(steps=1000, eval_every=1000), World(), ROWS)
    found = agreements(pace, clock, lambda step: 60.0 if step == 1 else 0.02, 500)
    assert len(found) < 15


def test_there_is_a_pulse_before_each_checkpoint(clock: Clock) -> None:
    pace = Pace(toy_config(steps=100, eval_every=15, checkpoint_every=4), World(), ROWS)
    found = agreements(pace, clock, lambda step: 0.001, 100)
    assert {step for step in range(1, 101) if pace.checkpoint_due(step)} <= set(found)


def test_steps_that_were_skipped_are_not_reported(clock: Clock) -> None:
    pace = Pace(toy_config(steps=50), World(), ROWS)
    for loss, taken in ((2.0, True), (float("nan"), False), (4.0, True)):
        clock.now += 0.4
        pace.step_done(torch.tensor(loss), torch.tensor(1.0), torch.tensor(taken))
    values = pace.progress(3)
    assert values is not None
    assert values["loss"] == pytest.approx(3.0)
    clock.now += 1.0
    pace.step_done(torch.tensor(float("nan")), torch.tensor(1.0), torch.tensor(False))
    assert pace.progress(4) is None


@pytest.mark.parametrize("resumed", [1, 14, 15])
def test_a_time_budget_is_measured_anew_where_it_was_not_yet_turned_into_steps(
    clock: Clock, resumed: int
) -> None:
    pace, started = Pace(toy_config(steps=None, minutes=0.2), World(), ROWS), clock.now
    pace.resume(resumed, None)
    run(pace, clock, lambda step: 0.1, 0.0, first=resumed + 1)
    assert 0.85 * 12 < clock.now - started < 1.05 * 12


@pytest.mark.parametrize(("rows", "steps"), [(200, 100), (30, 15), (1, 1), (10**9, 117)])
def test_so_many_epochs_end_a_time_budget_before_its_time(
    clock: Clock, rows: int, steps: int
) -> None:
    pace = Pace(toy_config(steps=None, minutes=0.2, epochs=3), World(), rows)
    run(pace, clock, lambda step: 0.1, validation_seconds=0.0)
    assert pace.total_steps == pytest.approx(steps, abs=0 if rows < 10**9 else 5)


@pytest.mark.parametrize("resumed", [5, 17, 19])
def test_a_resumed_training_ends_with_its_epochs_too(clock: Clock, resumed: int) -> None:
    pace = Pace(toy_config(steps=None, minutes=0.2, epochs=3), World(), rows=40)
    pace.resume(resumed, None)
    run(pace, clock, lambda step: 0.1, validation_seconds=0.0, first=resumed + 1)
    assert pace.total_steps == 20

"""The time of a step: a CPU's at once, a GPU's when it has passed."""

import time

import pytest
import torch

from orchestrator.learn.step_clock import StepClock


def test_on_a_cpu_it_times_each_step() -> None:
    clock = StepClock(torch.device("cpu"))
    for seconds in (0.05, 0.0):
        clock.start()
        time.sleep(seconds)
        assert seconds <= clock.stop() < seconds + 0.04
        time.sleep(0.05)  # waiting for other workers does not count


class FakeEvent:
    """Of a GPU that has got as far as `reached`; there is none here."""

    reached = 0.0  # milliseconds
    now = 0.0  # at which the GPU will come to the next event

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing
        self.at = -1.0

    def record(self) -> None:
        self.at = FakeEvent.now

    def query(self) -> bool:
        return self.at <= FakeEvent.reached

    def elapsed_time(self, end: "FakeEvent") -> float:
        assert self.query() and end.query(), "reading it would wait for the GPU"
        return end.at - self.at


def test_a_gpu_s_time_is_read_late_and_belongs_to_its_own_steps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(FakeEvent, "now", 0.0)
    clock, told = StepClock(torch.device("cuda")), []
    # The GPU computes 100 ms a step, 300 ms from the fifth on, and waits 50 ms for other workers.
    for step in range(10):
        clock.start()
        FakeEvent.now += 300.0 if step >= 4 else 100.0
        monkeypatch.setattr(FakeEvent, "reached", 150.0 * (step - 1))  # it lags behind the CPU
        told.append(clock.stop())
        FakeEvent.now += 50.0
    assert told[:2] == [0.0, 0.0]  # nothing has passed yet
    assert told[2:6] == pytest.approx([0.1] * 4)
    monkeypatch.setattr(FakeEvent, "reached", 1e9)  # the CPU has waited for it
    clock.start()
    FakeEvent.now += 300.0
    assert clock.stop() == pytest.approx(0.3)

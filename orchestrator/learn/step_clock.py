"""How long this worker computes in each step, without the time that it waits for other workers."""

import time
from collections import deque
from typing import Any

import torch


class StepClock:
    """Times the part of each step between `start` and `stop`.

    On a GPU it is the GPU's time, between two events in its stream. Reading them would wait for the
    GPU, so a step's time is read after it has passed, often during a later step.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._started: Any = 0.0
        self._running: deque[tuple[Any, Any]] = deque()  # events of steps that are not read yet
        self._seconds = 0.0

    def start(self) -> None:
        self._started = _event() if self._on_gpu else time.perf_counter()

    def stop(self) -> float:
        """The seconds of this step on a CPU; on a GPU the mean of the steps that ended since the
        last call, or the same as there if none did."""
        if not self._on_gpu:
            return time.perf_counter() - self._started
        self._running.append((self._started, _event()))
        ended = []
        while self._running and self._running[0][1].query():
            started, stopped = self._running.popleft()
            ended.append(started.elapsed_time(stopped) / 1000)
        if ended:
            self._seconds = sum(ended) / len(ended)
        return self._seconds


def _event() -> Any:
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event

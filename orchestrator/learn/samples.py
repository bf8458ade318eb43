"""After validations, what the model makes of one validation row: see `Task.sample`.

This is for a person who watches the training, and changes nothing about it.
"""

import time
from typing import Any

import torch

from orchestrator.learn.agreement import Signals
from orchestrator.learn.batches import Batches, to_device
from orchestrator.learn.precision import autocast
from orchestrator.model.transformer import Transformer
from orchestrator.storage.artifact import Precision
from orchestrator.tasks.task import Processor, Task

SHARE = 0.02  # of the training's time; the first and the last sample are taken in any case


class Sampler:
    """Reports what the model makes of the first validation row, as events named `sample`."""

    def __init__(
        self,
        task: Task[Any],
        model: Transformer,
        processor: Processor,
        batches: Batches,
        precision: Precision,
    ) -> None:
        self._task = task
        self._model = model
        self._processor = processor
        self._batches = batches
        self._precision = precision
        self._started = time.monotonic()
        self._seconds = 0.0  # of all samples
        self._failed = False

    def report(self, step: int, last: bool, signals: Signals) -> None:
        """Take a sample, unless samples have taken more than their share of the time.

        A sample that fails is reported and ends the sampling, not the training.
        """
        started = time.monotonic()
        if self._failed or (self._seconds > SHARE * (started - self._started) and not last):
            return
        try:
            text = self._sample()
        except Exception as error:
            self._failed = True
            signals.event("sample failed", step=step, error=f"{type(error).__name__}: {error}")
            return
        self._seconds += time.monotonic() - started
        if text is not None:
            signals.event("sample", step=step, text=text)

    @torch.no_grad()
    def _sample(self) -> str | None:
        device, rows = self._batches.world.device, self._batches.validation_rows[:1]
        batch = to_device(self._batches.validation.read(rows), device)
        self._model.eval()
        try:
            with (
                torch.random.fork_rng([device] if device.type == "cuda" else []),
                autocast(device, self._precision),
            ):
                return self._task.sample(self._model, batch, self._processor)
        finally:
            self._model.train()

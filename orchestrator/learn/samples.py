"""After validations, what the model makes of one validation row: see `Task.sample`.

This is for a person who watches the training, and changes nothing about it.
"""

import time

import torch

from orchestrator.infer.batch import to_device
from orchestrator.infer.precision import autocast
from orchestrator.infer.trained_model import TrainedModel
from orchestrator.learn.agreement import Signals
from orchestrator.learn.batches import Batches

SHARE = 0.02  # of the training's time; the first and the last sample are taken in any case


class Sampler:
    """Reports what the model makes of the first validation row, as events named `sample`."""

    def __init__(self, trained: TrainedModel, batches: Batches) -> None:
        self._trained = trained
        self._batches = batches
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
        trained, device = self._trained, self._trained.device
        batch = to_device(self._batches.validation.read(self._batches.validation_rows[:1]), device)
        trained.model.eval()
        try:
            with (
                torch.random.fork_rng([device] if device.type == "cuda" else []),
                autocast(device, trained.precision),
            ):
                return trained.task.sample(trained.model, batch, trained.processor)
        finally:
            trained.model.train()

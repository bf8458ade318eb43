"""Answers of one pass, for all routes that need them: rows to predictions, in shared batches."""

import asyncio
import time
from concurrent.futures import CancelledError
from dataclasses import dataclass
from typing import Any

from orchestrator.data.arrays import Arrays
from orchestrator.data.columns import of_kind
from orchestrator.data.reading import Row
from orchestrator.errors import UserError
from orchestrator.infer.batcher import (
    Batch,
    Batcher,
    BatchLimits,
    Compute,
    DeadlineError,
    Encode,
)
from orchestrator.infer.trained_model import TrainedModel
from orchestrator.job.job import Job
from orchestrator.serve.metrics import Observer, ended
from orchestrator.storage.strict_json import finite

MARGIN = 16  # the most tokens that a task adds to a row's own


@dataclass(frozen=True)
class Prediction:
    """What the task predicts for one row."""

    row: Row  # cleaned
    answers: Arrays  # of `Task.predict` and `Task.answer`, (1, ...)
    is_cut: bool  # at max_seq_len


class Predictor:
    """A trained model behind a batcher. The task cleans and encodes rows as it did to train."""

    def __init__(
        self,
        job: Job,
        trained: TrainedModel,
        observer: Observer,
        limits: BatchLimits | None = None,
    ) -> None:
        """
        Args:
            limits: of batches and of the queue; by default the job's queue, and usual batches.
        """
        self.model_name = job.name
        self.trained = trained
        self.task, self.processor = trained.task, trained.processor
        self._seconds = job.serve.deadline_seconds
        self._observer = observer
        limits = limits or BatchLimits(waiting=job.serve.max_queued_requests)
        self._batcher = Batcher(limits, self._computed)
        self._compute = trained.predict
        # A row's columns until a request fills in the task's inputs: None where the target is.
        columns = self.task.columns
        optional = {c: of_kind(columns[c], None, optional=True) for c in self.task.optional}
        self._empty_row = dict.fromkeys(columns) | optional

    def close(self) -> None:
        self._batcher.close()

    async def predict(self, inputs: list[dict[str, str]]) -> list[Prediction]:
        """The predictions for rows of the task's inputs, in order.

        Raises:
            UserError: if a row lacks a column or any content, naming it by its number.
            FullError: if too many requests wait.
            DeadlineError: if there is no answer within `serve.deadline_seconds`.
        """
        rows: list[Row] = []
        cut: list[bool] = []

        def encode() -> Arrays:
            rows.extend(self._row(number, row) for number, row in enumerate(inputs))
            arrays = self.task.encode(rows, self.processor)
            if len(next(iter(arrays.values()))) != len(rows):
                raise UserError(f"an input is longer than {self.task.model.max_seq_len} tokens")
            cut.extend(self._is_cut(row, number, arrays) for number, row in enumerate(rows))
            return arrays

        answers = await self.compute(self._compute, encode)
        return [Prediction(*each) for each in zip(rows, answers, cut, strict=True)]

    def reply(self, prediction: Prediction) -> dict[str, Any]:
        """The endpoint's own answer for a row."""
        reply: dict[str, Any] = finite(self.task.reply(prediction.answers, 0, self.processor))
        return reply | ({"truncated": True} if prediction.is_cut else {})

    async def compute(self, compute: Compute, encode: Encode) -> list[Arrays]:
        """What `compute` makes of the rows that `encode` encodes, batched with those of others.

        Cancelling this frees the request's place.
        """
        begin = time.monotonic()
        future = self._batcher.submit(compute, encode, begin + self._seconds)
        self._show()
        reason = "error"
        try:
            async with asyncio.timeout(self._seconds):  # the batcher sees to those that wait
                answers = await asyncio.wrap_future(future)
            reason = "stop"
        except (asyncio.CancelledError, CancelledError):
            reason = "cancelled"
            raise
        except (TimeoutError, DeadlineError):
            reason = "deadline"
            raise DeadlineError(
                f"there was no answer within {self._seconds:g} s: try again later"
            ) from None
        finally:
            self._observer.measure("e2e_request_latency_seconds", time.monotonic() - begin)
            ended(self._observer, reason)
            self._show()
        return answers

    def _computed(self, batch: Batch) -> None:
        for seconds in batch.waited:
            self._observer.measure("request_queue_time_seconds", seconds)
        self._observer.measure("orchestrator_batch_rows", batch.rows)
        self._observer.add("prompt_tokens", batch.real_tokens)
        if padding := batch.tokens - batch.real_tokens:
            self._observer.add("orchestrator_padding_tokens", padding)

    def _show(self) -> None:
        self._observer.show("num_requests_waiting", self._batcher.waiting)
        self._observer.show("num_requests_running", self._batcher.running)

    def _is_cut(self, row: Row, number: int, arrays: Arrays) -> bool:
        """Whether a row was cut at `max_seq_len`: with a larger one, more tokens are encoded."""
        size = sum(len(text.encode()) for text in row.values() if text) + MARGIN
        if size <= self.task.model.max_seq_len // 2:  # one of a row's texts may get only half of it
            return False
        larger = self.task.model.model_copy(update={"max_seq_len": 2 * size})
        task = type(self.task)(self.task.data, self.task.tokenizer, larger)
        uncut = task.encode([row], self.processor)
        lengths = [name for name in arrays if name.endswith("_length")]
        return any(uncut[name].max(initial=0) > arrays[name][number] for name in lengths)

    def _row(self, number: int, inputs: dict[str, str]) -> Row:
        """The cleaned row of a request's inputs.

        Raises:
            UserError: naming the input by its number, if it lacks a column or any content.
        """
        columns = set(self.task.inputs)
        if not columns - set(self.task.optional) <= set(inputs) <= columns:
            names = ", ".join(sorted(columns))
            raise UserError(
                f"inputs[{number}]: must hold {names}, not {', '.join(inputs) or 'nothing'}"
            )
        try:
            "".join(inputs.values()).encode()
        except UnicodeEncodeError:
            raise UserError(f"inputs[{number}]: is not valid Unicode") from None
        try:
            cleaned = self.task.clean({**self._empty_row, **inputs})
        except ValueError as error:
            raise UserError(f"inputs[{number}]: {error}") from None
        if cleaned is None:
            raise UserError(f"inputs[{number}]: holds nothing")
        return cleaned

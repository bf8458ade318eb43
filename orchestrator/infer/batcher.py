"""Dynamic batching for answers of one pass: the rows of several requests share a forward pass.

A single thread computes, in rounds. A round takes the requests that wait, in order, encodes them,
sorts their rows by length and cuts them into batches, so that a batch has little padding. A request
gets its rows back as soon as the last of them is computed.

While a round computes, the next one's requests arrive. Their clients have just been answered, so
all of them ask again within moments: a round waits for as many requests as the last one had, but
not longer than `BatchLimits.window` after that. A request that comes to an idle thread does not
wait.
"""

import logging
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from orchestrator.data.arrays import Arrays
from orchestrator.errors import StageError
from orchestrator.infer.generation import FullError

Compute = Callable[[Arrays], Arrays]  # encoded rows to answers, (rows, ...) each
Encode = Callable[[], Arrays]

logger = logging.getLogger(__name__)

BATCHES = 4  # of a round, about: the more, the less padding, and the longer new requests wait


class DeadlineError(StageError):
    """A request was not answered by its deadline: HTTP status 504."""


@dataclass(frozen=True)
class BatchLimits:
    """What a batch and the queue may hold."""

    tokens: int = 2048  # of a batch: its rows times the longest one
    rows: int = 64  # of a batch
    waiting: int = 64  # requests
    window: float = 0.003  # seconds

    @property
    def round_tokens(self) -> int:
        return BATCHES * self.tokens


@dataclass(frozen=True)
class Batch:
    """A batch that was computed, for whoever watches."""

    rows: int
    tokens: int  # with padding
    real_tokens: int
    seconds: float
    waited: tuple[float, ...]  # seconds in the queue, of each request that begins with this batch


BatchListener = Callable[[Batch], None]


@dataclass(eq=False)
class _Request:
    compute: Compute
    encode: Encode
    deadline: float
    future: "Future[list[Arrays]]" = field(default_factory=Future)
    submitted: float = field(default_factory=time.monotonic)
    has_begun: bool = False
    answers: list[Arrays | None] = field(default_factory=list)

    def is_open(self) -> bool:
        """Whether somebody still waits for the answer. One that is late is failed here."""
        if not self.future.done() and time.monotonic() > self.deadline:
            waited = time.monotonic() - self.submitted
            self.fail(DeadlineError(f"there was no answer within {waited:.1f} s: try again later"))
        return not self.future.done()

    def fail(self, error: BaseException) -> None:
        with suppress(InvalidStateError):  # cancelled meanwhile, by the client's thread
            self.future.set_exception(error)

    def add(self, row: int, answer: Arrays) -> None:
        self.answers[row] = answer
        answers = [answer for answer in self.answers if answer is not None]
        if len(answers) == len(self.answers):
            with suppress(InvalidStateError):
                self.future.set_result(answers)


@dataclass(frozen=True)
class _Row:
    request: _Request
    number: int
    arrays: Arrays  # without the axis of rows
    length: int


class Batcher:
    """Answers requests of any thread by one thread of its own."""

    def __init__(self, limits: BatchLimits, listener: BatchListener = lambda batch: None) -> None:
        self.limits = limits
        self._listener = listener
        self._waiting: deque[_Request] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._running = 0  # requests of the round
        self._usual = 1  # requests of the last round
        self._ended = 0.0  # the last round, by time.monotonic()
        self._seconds = 0.0  # a request's share of a round, of late
        self._thread = threading.Thread(target=self._run, name="batcher", daemon=True)
        self._thread.start()

    def submit(
        self, compute: Compute, encode: Encode, deadline: float = float("inf")
    ) -> "Future[list[Arrays]]":
        """Queue a request. Its result has the arrays of each row, (1, ...), in order.

        Args:
            compute: the same function for rows that may share a batch.
            encode: makes the rows' arrays; the thread calls it. Arrays named `<name>_length` tell
                how many of a row's tokens are real.
            deadline: by time.monotonic(). The result is a DeadlineError if it passes before the
                request's last batch begins.

        Returns:
            a future; its `cancel` frees the request's place. What `encode` and `compute` raise
            becomes its exception, and that of no other request.

        Raises:
            FullError: if as many requests wait as may.
        """
        request = _Request(compute, encode, deadline)
        with self._changed:
            if self._closed:
                raise StageError("the endpoint is closing")
            if len(self._waiting) >= self.limits.waiting:
                self._waiting = deque(r for r in self._waiting if not r.future.done())
            if len(self._waiting) >= self.limits.waiting:
                seconds = len(self._waiting) * self._seconds
                raise FullError(
                    f"{len(self._waiting)} requests wait, as many as may: try again later", seconds
                )
            self._waiting.append(request)
            self._changed.notify()
        return request.future

    def close(self) -> None:
        """Cancel what waits, and end the thread after its batch."""
        with self._changed:
            self._closed = True
            for request in self._waiting:
                request.future.cancel()
            self._waiting.clear()
            self._changed.notify()

    @property
    def waiting(self) -> int:
        """The requests in the queue."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """The requests that the thread works on."""
        return self._running

    def _run(self) -> None:
        while self._gather():
            begin = time.monotonic()
            requests, rows = self._take()
            try:
                for batch in _cut(rows, self.limits):
                    if self._closed:
                        break
                    self._answer(batch)
            except Exception as error:  # the thread goes on: later requests may be sound
                logger.exception("a round of predictions failed")
                for request in requests:
                    request.fail(error)
            if self._closed:
                for request in requests:
                    request.future.cancel()
            self._ended = time.monotonic()
            self._usual, self._running = max(len(requests), 1), 0
            share = (self._ended - begin) / self._usual
            self._seconds = share if not self._seconds else 0.8 * self._seconds + 0.2 * share

    def _gather(self) -> bool:
        """Wait for the next round's requests; False once the batcher is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            window = self._ended + self.limits.window - time.monotonic()
            if window > 0:
                self._changed.wait_for(
                    lambda: len(self._waiting) >= self._usual or self._closed, window
                )
        return not self._closed

    def _take(self) -> tuple[list[_Request], list[_Row]]:
        """The requests of a round, in the order of the queue, and their encoded rows."""
        requests: list[_Request] = []
        rows: list[_Row] = []
        tokens = 0
        while tokens < self.limits.round_tokens:
            with self._changed:
                if not self._waiting:
                    break
                request = self._waiting.popleft()
                self._running += 1
            requests.append(request)
            if request.is_open():
                new = _encoded(request)
                tokens += sum(row.length for row in new)
                rows += new
        return requests, rows

    def _answer(self, batch: list[_Row]) -> None:
        """Compute a batch. If that fails, compute the rows of each of its requests alone."""
        rows = [row for row in batch if row.request.is_open()]
        if not rows:
            return
        begin = time.monotonic()
        requests = list(dict.fromkeys(row.request for row in rows))
        try:
            arrays = {name: np.stack([row.arrays[name] for row in rows]) for name in rows[0].arrays}
            answers = rows[0].request.compute(arrays)
            for i, row in enumerate(rows):
                row.request.add(row.number, {name: v[i : i + 1] for name, v in answers.items()})
        except Exception as error:
            if len(requests) == 1:
                requests[0].fail(error)
                return
            for request in requests:
                self._answer([row for row in rows if row.request is request])
            return
        seconds = time.monotonic() - begin
        new = [request for request in requests if not request.has_begun]
        for request in new:
            request.has_begun = True
        report = Batch(
            rows=len(rows),
            tokens=len(rows) * max(row.length for row in rows),
            real_tokens=sum(row.length for row in rows),
            seconds=seconds,
            waited=tuple(begin - request.submitted for request in new),
        )
        try:
            self._listener(report)
        except Exception:
            logger.exception("a batch was computed, but not reported")


def _encoded(request: _Request) -> list[_Row]:
    """The rows of a request; none if it has failed or is answered already."""
    try:
        arrays = request.encode()
        count = len(next(iter(arrays.values()))) if arrays else 0
        request.answers = [None] * count
        if not count:
            request.future.set_result([])
        lengths = [array for name, array in arrays.items() if name.endswith("_length")]
        return [
            _Row(
                request,
                number,
                {name: array[number] for name, array in arrays.items()},
                max((int(array[number]) for array in lengths), default=1),
            )
            for number in range(count)
        ]
    except Exception as error:
        request.fail(error)
        return []


def _cut(rows: list[_Row], limits: BatchLimits) -> Iterator[list[_Row]]:
    """Batches of rows that one call can compute, short rows first."""
    groups: defaultdict[Any, list[_Row]] = defaultdict(list)
    for row in rows:
        shapes = tuple((name, np.shape(value)) for name, value in row.arrays.items())
        groups[row.request.compute, shapes].append(row)
    for group in groups.values():
        batch: list[_Row] = []
        for row in sorted(group, key=lambda row: row.length):
            is_full = (len(batch) + 1) * row.length > limits.tokens or len(batch) >= limits.rows
            if batch and is_full:
                yield batch
                batch = []
            batch.append(row)
        yield batch

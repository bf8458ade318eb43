"""What an endpoint counts and measures while it answers. It knows no Ray.

Names are vLLM's where vLLM has the metric, so that dashboards made for it need little change.
`serve/ray_metrics.py` gives them to Ray's metrics endpoint.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from orchestrator.infer.generation import (
    Generated,
    GenerationRequest,
    Generator,
    Handle,
    Listener,
)

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


@dataclass(frozen=True)
class Definition:
    """A metric: what it tells, its labels, and for a histogram the upper ends of its buckets."""

    kind: Literal["counter", "histogram", "gauge"]
    description: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


METRICS = {
    "time_to_first_token_seconds": Definition(
        "histogram", "from a request's arrival to its first token", (), SECONDS
    ),
    "inter_token_latency_seconds": Definition(
        "histogram", "between two tokens of a request", (), SECONDS
    ),
    "e2e_request_latency_seconds": Definition(
        "histogram", "from a request's arrival to its whole answer", (), SECONDS
    ),
    "request_queue_time_seconds": Definition(
        "histogram", "from a request's arrival to the start of its computation", (), SECONDS
    ),
    "num_requests_running": Definition("gauge", "requests that are computed now"),
    "num_requests_waiting": Definition("gauge", "requests in the queue"),
    "kv_cache_usage_perc": Definition("gauge", "share of the cache that is in use; 1: all of it"),
    "prompt_tokens": Definition("counter", "tokens of requests"),
    "generation_tokens": Definition("counter", "tokens of answers"),
    "request_success": Definition(
        "counter", "requests that ended, by how they ended", ("finished_reason",)
    ),
    "orchestrator_batch_rows": Definition(
        "histogram", "rows of a batch of predictions", (), (1, 2, 4, 8, 16, 32, 64)
    ),
    "orchestrator_padding_tokens": Definition("counter", "tokens of batches that are padding"),
    "orchestrator_logged_requests": Definition("counter", "requests written to the log"),
    "orchestrator_unlogged_requests": Definition(
        "counter", "requests of the log's sample that were dropped, by the reason", ("reason",)
    ),
    "orchestrator_model_info": Definition(
        "gauge", "1 for a version that is loaded", ("version", "checkpoint")
    ),
}

# vLLM calls a request that its client gave up "abort".
REASONS = {"cancelled": "abort"}


class Observer(Protocol):
    """Who counts. The methods may be called from any thread, and return at once."""

    def add(self, name: str, amount: float = 1.0, **labels: str) -> None:
        """Count up the counter of this name in `METRICS`."""

    def measure(self, name: str, value: float, **labels: str) -> None:
        """Add a value to a histogram."""

    def show(self, name: str, value: float, **labels: str) -> None:
        """Set a gauge."""


class Unobserved:
    """Counts nothing."""

    def add(self, name: str, amount: float = 1.0, **labels: str) -> None: ...

    def measure(self, name: str, value: float, **labels: str) -> None: ...

    def show(self, name: str, value: float, **labels: str) -> None: ...


UNOBSERVED = Unobserved()


@runtime_checkable
class ReportsLoad(Protocol):
    """A generator that tells how busy it is. For another one there are no gauges."""

    @property
    def running(self) -> int:
        """The requests that it computes."""

    @property
    def waiting(self) -> int:
        """The requests in its queue."""

    @property
    def cache_usage(self) -> float:
        """The share of its cache that is in use, 0 to 1."""


def ended(observer: Observer, reason: str) -> None:
    """Count a request that ended in this way."""
    observer.add("request_success", finished_reason=REASONS.get(reason, reason))


def observed(generator: Generator, observer: Observer) -> Generator:
    """A generator whose requests are measured, and whose load is shown if it reports it."""
    return generator if observer is UNOBSERVED else _Observed(generator, observer)


class _Observed:
    def __init__(self, generator: Generator, observer: Observer) -> None:
        self._generator = generator
        self._observer = observer

    def submit(self, request: GenerationRequest, listener: Listener) -> Handle:
        watch = _Watch(request, listener, self._observer, self._show)
        handle = self._generator.submit(request, watch)
        self._observer.add("prompt_tokens", len(request.prompt) + len(request.source or ()))
        self._show()
        return handle

    def close(self) -> None:
        self._generator.close()

    def _show(self) -> None:
        generator = self._generator
        if isinstance(generator, ReportsLoad):
            self._observer.show("num_requests_running", generator.running)
            self._observer.show("num_requests_waiting", generator.waiting)
            self._observer.show("kv_cache_usage_perc", generator.cache_usage)


class _Watch:
    """A request's listener, with a clock."""

    def __init__(
        self,
        request: GenerationRequest,
        listener: Listener,
        observer: Observer,
        show: Callable[[], None],
    ) -> None:
        self._listener = listener
        self._observer = observer
        self._show = show
        self._submitted = time.monotonic()
        self._last: float | None = None  # when the last token came

    def __call__(self, generated: Generated) -> None:
        self._listener(generated)  # first: the client waits for it
        now, observer = time.monotonic(), self._observer
        if generated.waited is not None:
            observer.measure("request_queue_time_seconds", generated.waited)
        if generated.tokens:
            observer.add("generation_tokens", len(generated.tokens))
            if self._last is None:
                observer.measure("time_to_first_token_seconds", now - self._submitted)
            else:  # several tokens of one step share its time
                gap = (now - self._last) / len(generated.tokens)
                for _ in generated.tokens:
                    observer.measure("inter_token_latency_seconds", gap)
            self._last = now
        if generated.ending is not None:
            observer.measure("e2e_request_latency_seconds", now - self._submitted)
            ended(observer, generated.ending)
            self._show()

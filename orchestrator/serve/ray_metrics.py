"""The metrics of `serve/metrics.py` through Ray's own metrics endpoint.

Ray puts `ray_` before each name, and Prometheus' `_total` behind counters. Each node's agent
answers for its processes, on the port that `ray start --metrics-export-port` names.
"""

from ray.util.metrics import Counter, Gauge, Histogram

from orchestrator.serve.metrics import METRICS


class RayObserver:
    """Counts in a process of a Ray cluster, under the model's name."""

    def __init__(self, model_name: str) -> None:
        self._model = model_name
        self._counters: dict[str, Counter] = {}
        self._histograms: dict[str, Histogram] = {}
        self._gauges: dict[str, Gauge] = {}
        for name, metric in METRICS.items():
            labels = ("model_name", *metric.labels)
            if metric.kind == "counter":
                self._counters[name] = Counter(name, metric.description, labels)
            elif metric.kind == "histogram":
                buckets = list(metric.buckets)
                self._histograms[name] = Histogram(name, metric.description, buckets, labels)
            else:
                self._gauges[name] = Gauge(name, metric.description, labels)

    def add(self, name: str, amount: float = 1.0, **labels: str) -> None:
        if amount > 0:  # Ray refuses to add nothing
            self._counters[name].inc(amount, {"model_name": self._model, **labels})

    def measure(self, name: str, value: float, **labels: str) -> None:
        self._histograms[name].observe(value, {"model_name": self._model, **labels})

    def show(self, name: str, value: float, **labels: str) -> None:
        self._gauges[name].set(value, {"model_name": self._model, **labels})

"""What the endpoint counts and measures, and that Ray takes all of it."""

import json
import re
import threading
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from starlette.testclient import TestClient

from orchestrator.infer.generation import (
    Ending,
    FullError,
    Generated,
    GenerationRequest,
    Handle,
    Listener,
    Token,
)
from orchestrator.infer.generation_engine import EngineLimits, GenerationEngine
from orchestrator.model.config import ModelConfig
from orchestrator.model.generate import GREEDY
from orchestrator.model.transformer import Transformer
from orchestrator.serve.app import make_app
from orchestrator.serve.metrics import METRICS, observed
from orchestrator.serve.ray_metrics import RayObserver
from orchestrator.serve.text_engine import TextEngine
from tests.unit.predicting import app_for
from tests.unit.served import JOB, trained_model

DASHBOARD = Path(__file__).parents[2] / "cluster/grafana/endpoint.json"


class Recorder:
    """An observer that refuses what Ray would, and remembers the rest."""

    def __init__(self) -> None:
        self.totals: defaultdict[Any, float] = defaultdict(float)
        self.measured: defaultdict[str, list[float]] = defaultdict(list)
        self.shown: dict[str, float] = {}

    def add(self, name: str, amount: float = 1.0, **labels: str) -> None:
        self.check("counter", name, labels)
        assert amount > 0
        self.totals[(name, *labels.values())] += amount

    def measure(self, name: str, value: float, **labels: str) -> None:
        self.check("histogram", name, labels)
        assert value >= 0
        self.measured[name].append(value)

    def show(self, name: str, value: float, **labels: str) -> None:
        self.check("gauge", name, labels)
        self.shown[name] = value

    @staticmethod
    def check(kind: str, name: str, labels: dict[str, str]) -> None:
        assert METRICS[name].kind == kind and set(METRICS[name].labels) == set(labels)


class Toy:
    """A generator whose tokens come when the test says so."""

    def __init__(self) -> None:
        self.listeners: list[Listener] = []
        self.closed = self.full = False

    def submit(self, request: GenerationRequest, listener: Listener) -> Handle:
        if self.full:
            raise FullError("full", 1.0)
        self.listeners.append(listener)
        return self

    def cancel(self) -> None:
        self.listeners[-1](Generated(ending="cancelled"))

    def close(self) -> None:
        self.closed = True


class Busy(Toy):
    """One that tells its load."""

    waiting, cache_usage = 3, 0.25

    @property
    def running(self) -> int:
        return len(self.listeners)


REQUEST = GenerationRequest([1, 2, 3], 5, None, GREEDY)
A = Token(1, -0.5)


def test_a_generation_is_measured_from_its_arrival_to_its_end() -> None:
    toy, recorder = Busy(), Recorder()
    generator, got = observed(toy, recorder), list[Generated]()
    generator.submit(REQUEST, got.append)
    assert recorder.totals["prompt_tokens",] == 3
    assert recorder.shown == {
        "num_requests_running": 1,
        "num_requests_waiting": 3,
        "kv_cache_usage_perc": 0.25,
    }
    listener = toy.listeners[0]
    steps = [
        Generated(waited=0.5),
        Generated(tokens=(A,)),
        Generated(tokens=(A,)),
        Generated(tokens=(A, A)),
        Generated(ending="length"),
    ]
    for step in steps:
        time.sleep(0.02)
        listener(step)
    assert got == steps  # the listener is told all, unchanged
    assert recorder.totals["generation_tokens",] == 4
    assert recorder.totals["request_success", "length"] == 1
    measured = recorder.measured
    assert measured["request_queue_time_seconds"] == [0.5]
    assert len(measured["time_to_first_token_seconds"]) == 1
    assert measured["time_to_first_token_seconds"][0] >= 0.04
    gaps = measured["inter_token_latency_seconds"]
    assert len(gaps) == 3 and gaps[0] >= 0.02 and gaps[1] == gaps[2] >= 0.01
    assert measured["e2e_request_latency_seconds"][0] >= 0.1


@pytest.mark.parametrize(
    ("ending", "reason"),
    [("stop", "stop"), ("cancelled", "abort"), ("deadline", "deadline"), ("error", "error")],
)
def test_every_ending_is_counted_by_its_name(ending: Ending, reason: str) -> None:
    toy, recorder = Toy(), Recorder()
    observed(toy, recorder).submit(REQUEST, lambda generated: None)
    toy.listeners[0](Generated(ending=ending))
    assert recorder.totals["request_success", reason] == 1 and not recorder.shown
    assert "time_to_first_token_seconds" not in recorder.measured


def test_a_refused_generation_is_not_counted_and_closing_passes_on() -> None:
    toy, recorder = Toy(), Recorder()
    generator = observed(toy, recorder)
    toy.full = True
    with pytest.raises(FullError):
        generator.submit(REQUEST, lambda generated: None)
    assert not recorder.totals
    generator.close()
    assert toy.closed


def test_a_cancelled_generation_is_an_abort() -> None:
    toy, recorder = Toy(), Recorder()
    observed(toy, recorder).submit(REQUEST, lambda generated: None).cancel()
    assert recorder.totals["request_success", "abort"] == 1


def test_the_real_engine_tells_its_load_and_how_long_a_request_waited() -> None:
    torch.manual_seed(0)
    config = ModelConfig(num_layers=1, d_model=16, num_heads=2, max_seq_len=32)
    engine = GenerationEngine(Transformer(config, 50).eval(), EngineLimits(slots=1))
    recorder, ends = Recorder(), [threading.Event(), threading.Event()]
    generator = observed(engine, recorder)
    begin = time.monotonic()
    for end in ends:
        generator.submit(REQUEST, lambda piece, end=end: piece.ending and end.set())
    assert all(end.wait(20) for end in ends)
    generator.close()
    first, second = recorder.measured["request_queue_time_seconds"]
    assert 0 <= first < second < time.monotonic() - begin
    assert recorder.totals["generation_tokens",] == 2 * REQUEST.max_tokens
    assert recorder.totals["request_success", "length"] == 2
    assert len(recorder.measured["inter_token_latency_seconds"]) == 2 * (REQUEST.max_tokens - 1)
    gauges = {"num_requests_running", "num_requests_waiting", "kv_cache_usage_perc"}
    assert gauges <= recorder.shown.keys()


def test_predictions_are_measured() -> None:
    recorder = Recorder()
    api, engine = app_for("text_classification", observer=recorder)
    with TestClient(api) as client:
        inputs = [{"text": "a good one"}, {"text": "a"}]
        client.post("/v1/predict", json={"inputs": inputs}).raise_for_status()
        client.post("/v1/predict", json={"inputs": [{"text": " "}]})
        client.post("/v1/predict", json={"inputs": [{"text": "a"}]}).raise_for_status()
    engine.predictor._batcher._thread.join(20)  # it reports a batch after it has answered
    text = engine.predictor.processor.text
    lengths = [len(text.encode(row["text"])) for row in inputs]
    assert recorder.totals["prompt_tokens",] == sum(lengths) + lengths[1]
    assert recorder.totals["orchestrator_padding_tokens",] == lengths[0] - lengths[1]
    assert recorder.totals["request_success", "stop"] == 2
    assert recorder.totals["request_success", "error"] == 1
    assert recorder.measured["orchestrator_batch_rows"] == [2, 1]
    assert len(recorder.measured["request_queue_time_seconds"]) == 2
    assert len(recorder.measured["e2e_request_latency_seconds"]) == 3
    assert recorder.shown["num_requests_waiting"] == 0


def test_ray_takes_every_metric_and_label() -> None:
    assert not ray.is_initialized()
    observer = RayObserver("tiny")
    for name, metric in METRICS.items():
        labels = dict.fromkeys(metric.labels, "x")
        if metric.kind == "counter":
            observer.add(name, 2, **labels)
            observer.add(name, 0, **labels)
        elif metric.kind == "histogram":
            observer.measure(name, 0.5, **labels)
        else:
            observer.show(name, 3, **labels)
    assert not ray.is_initialized()


def test_the_dashboard_asks_for_metrics_that_exist_by_the_names_that_prometheus_has() -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    expressions = [t["expr"] for panel in dashboard["panels"] for t in panel["targets"]]
    exported: dict[str, str] = {}  # by Prometheus' name, which Ray's agent makes
    for name, metric in METRICS.items():
        suffix = {"counter": "_total", "histogram": "_bucket", "gauge": ""}[metric.kind]
        exported[f"ray_{name}{suffix}"] = name
    asked = {name for text in expressions for name in re.findall(r"\bray_\w+", text)}
    assert asked <= exported.keys()
    assert {exported[name] for name in asked} == METRICS.keys()  # nothing is left out
    for text in expressions:
        assert text.count("(") == text.count(")") and "$model" in text
    for panel in dashboard["panels"]:
        legends = " ".join(target["legendFormat"] for target in panel["targets"])
        known = {label for metric in METRICS.values() for label in metric.labels}
        assert set(re.findall(r"\{\{(\w+)\}\}", legends)) <= known
    places = [tuple(panel["gridPos"][key] for key in "xy") for panel in dashboard["panels"]]
    assert len(set(places)) == len(places)


def test_the_page_names_every_metric() -> None:
    page = (DASHBOARD.parents[2] / "docs/serving.md").read_text()
    assert [name for name in METRICS if f"`{name}" not in page] == []


def test_a_text_that_a_stop_text_ends_is_counted_as_stopped() -> None:
    recorder = Recorder()
    engine = TextEngine(JOB, trained_model(), recorder)
    body = {"prompt": "the dog", "seed": 3, "max_tokens": 20}
    with TestClient(make_app(JOB.name, engine)) as client:
        whole = client.post("/v1/completions", json=body).json()["choices"][0]["text"]
        client.post("/v1/completions", json=body | {"stop": whole[4:6]})
    reasons = {key[1] for key in recorder.totals if key[0] == "request_success"}
    assert reasons == {"length", "stop"}

"""Serving engines: a class and a line in the registry are all that a new one takes."""

from collections import Counter
from typing import Any

import pytest
from fastapi import FastAPI
from pydantic import BaseModel
from starlette.testclient import TestClient

from orchestrator.errors import UserError
from orchestrator.infer.trained_model import TrainedModel
from orchestrator.job.job import Job
from orchestrator.job.task_registry import TASKS
from orchestrator.serve import engines
from orchestrator.serve.app import make_app
from orchestrator.serve.engine import Engine
from orchestrator.serve.engines import check_engine, check_weights, engine_of
from orchestrator.serve.metrics import UNOBSERVED, Observer
from orchestrator.tasks.language_modelling import LanguageModelling
from orchestrator.tasks.task import Task


class Words(BaseModel):
    words: list[str]


class Counts(BaseModel):
    counts: dict[str, int]


class CountingEngine(Engine):
    """A stub: counts words, without a model."""

    path = "counts"
    purpose = "counts words"

    def __init__(self, job: Job, trained: TrainedModel, observer: Observer = UNOBSERVED) -> None:
        self.job = job
        self.closed = False

    def add_routes(self, api: FastAPI) -> None:
        api.post("/v1/counts")(self.answer)

    def close(self) -> None:
        self.closed = True

    def answer(self, request: Words) -> Counts:
        if not request.words:
            raise UserError("words is empty")
        return Counts(counts=Counter(request.words))

    @staticmethod
    def sample_request(task: Task[Any], prompt: str) -> dict[str, Any]:
        return {"words": prompt.split()}

    @staticmethod
    def sample_answer(content: Any) -> str:
        return str(content["counts"])


def job_of(task: str) -> Job:
    return Job.model_validate({"name": "a", "task": task, "data": {"source": "python-stdlib"}})


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> Task[Any]:
    """A task that names a new engine."""
    monkeypatch.setitem(engines.ENGINES, "counts", f"{__name__}:CountingEngine")
    monkeypatch.setattr(LanguageModelling, "serves", "counts")
    return job_of("language_modelling").build_task()


def test_a_new_engine_answers_over_http(counting: Task[Any]) -> None:
    job = job_of("language_modelling")
    engine_class = engine_of(counting)
    engine = engine_class(job, TrainedModel(counting, None, None))  # type: ignore[arg-type]
    assert isinstance(engine, CountingEngine)
    with TestClient(make_app(job.name, engine)) as client:
        body = engine_class.sample_request(counting, "to be or not to be")
        answer = client.post("/v1/counts", json=body)
        assert answer.json() == {"counts": {"to": 2, "be": 2, "or": 1, "not": 1}}
        assert engine_class.sample_answer(answer.json()).startswith("{'to': 2")
        assert client.post("/v1/counts", json={"words": 3}).status_code == 422
        empty = client.post("/v1/counts", json={"words": []})
        assert (empty.status_code, empty.json()["error"]["message"]) == (400, "words is empty")
        elsewhere = client.post("/v1/predict", json={})
        assert elsewhere.status_code == 404
        assert "this model counts words: POST /v1/counts" in elsewhere.json()["error"]["message"]
        assert client.get("/v1/models").json()["data"][0]["id"] == job.name
        assert client.get("/healthz").json() == {"status": "ok"}
        schema = client.get("/openapi.json").json()
        assert {"Words", "Counts"} <= schema["components"]["schemas"].keys()
        assert not engine.closed
    assert engine.closed


@pytest.mark.parametrize("task", TASKS)
def test_every_task_names_an_engine(task: str) -> None:
    assert issubclass(engine_of(job_of(task).build_task()), Engine)


def test_an_unknown_engine_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LanguageModelling, "serves", "predicitons")
    with pytest.raises(UserError, match=r"LanguageModelling\.serves = 'predicitons'.*predictions"):
        check_engine(job_of("language_modelling").build_task())


@pytest.mark.parametrize(
    ("task", "gpus", "reason"),
    [
        ("language_modelling", 1, "for CPUs: set serve.gpus_per_replica to 0"),
        ("text_classification", 0, "only models that generate text have them"),
    ],
)
def test_weights_of_8_bits_are_refused_where_nothing_computes_with_them(
    task: str, gpus: int, reason: str
) -> None:
    serve = {"weights": "int8", "gpus_per_replica": gpus}
    job = Job.model_validate({**job_of(task).model_dump(), "serve": serve})
    with pytest.raises(UserError, match=f"serve.weights = int8: .*{reason}"):
        check_weights(job)

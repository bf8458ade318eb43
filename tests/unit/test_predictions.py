"""Predictions: equal alone and in company, bounded, and honest about what was not read whole."""

import asyncio
import json
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from starlette.testclient import TestClient

from orchestrator.infer.trained_model import TrainedModel
from orchestrator.job.job import Job
from orchestrator.learn.checkpoints import Checkpoints
from orchestrator.learn.snapshot import Snapshot, pack
from orchestrator.serve.metrics import UNOBSERVED
from orchestrator.serve.predictions import PredictionEngine
from orchestrator.serve.predictor import Predictor
from orchestrator.storage.artifact import PreparedData, Training
from orchestrator.storage.folder import Folder
from tests.unit.predicting import CONTEXT, app_for, trained_for
from tests.unit.predicting import ROWS as ROWS_OF_TASKS
from tests.unit.served import listening

ROWS: dict[str, dict[str, str]] = {
    "text_classification": {"text": "a good one", "label": "yes"},
    "extractive_question_answering": {
        "context": "a dog sleeps",
        "question": "who",
        "answer": "dog",
        "answer_start": "2",
    },
    "question_answering": {"context": "a dog sleeps", "question": "who", "answer": "dog"},
}


SECONDS = 20.0
JSON = {"content-type": "application/json"}
WORDS = CONTEXT.split()


def predict(predictor: Predictor, rows: list[dict[str, str]]) -> list[dict[str, Any]]:
    return [predictor.reply(p) for p in asyncio.run(predictor.predict(rows))]


def engine_for(folder: Folder, task_name: str) -> PredictionEngine:
    model = {"num_layers": 1, "d_model": 16, "num_heads": 2, "max_seq_len": 24}
    data = {"source": "python-stdlib"}
    job = Job.model_validate({"name": "a", "task": task_name, "data": data, "model": model})
    task = job.build_task()
    row = task.clean(ROWS[task_name])
    assert row is not None
    processor = task.fit_processor([row] * 20)
    (folder / "prepare").write(processor.file_name, processor.to_bytes())
    prepared = PreparedData(
        folder=folder / "prepare", seconds=0, summary="", processor=processor.file_name,
        splits={}, documents={}, source_bytes=0,
    )  # fmt: skip
    torch.manual_seed(0)
    weights = task.build_model(processor.vocab_size, processor.num_outputs).state_dict()
    checkpoints = Checkpoints(folder / "train", task.metric)
    checkpoints.save(
        Snapshot(
            step=1, total_steps=1, model=pack(weights), optimizer=pack({}), metrics={}, history=[],
            samples="", precision="fp32", notices=[],
        )
    )  # fmt: skip
    checkpoints.finish()
    training = Training(
        folder=folder / "train", seconds=0, summary="", best_checkpoint="step-00000001", steps=1,
        metrics={}, history=[], precision="fp32",
    )  # fmt: skip
    trained = TrainedModel.load(task, prepared, training.checkpoint())
    return PredictionEngine(job, trained)


@pytest.mark.parametrize("task_name", ROWS)
def test_a_text_that_was_cut_says_so(tmp_path: Path, task_name: str) -> None:
    engine = engine_for(Folder(str(tmp_path)), task_name)
    inputs = engine.predictor.task.inputs
    short = {name: ROWS[task_name][name] for name in inputs}
    rows: list[dict[str, Any]] = [short]
    rows += [short | {name: "z" * 40} for name in inputs]
    outputs = predict(engine.predictor, rows)
    assert [output.get("truncated") for output in outputs] == [
        None,
        *[True] * (len(rows) - 1),
    ]


def test_a_text_that_fits_just_so_is_whole(tmp_path: Path) -> None:
    engine = engine_for(Folder(str(tmp_path)), "text_classification")
    rows = [{"text": "z" * length} for length in (23, 24, 25)]  # and a space before it
    outputs = predict(engine.predictor, rows)
    processor = engine.predictor.processor
    tokens = [len(processor.text.encode(row["text"])) for row in rows]
    cut = [output.get("truncated", False) for output in outputs]
    assert cut == [count > 24 for count in tokens] and any(cut) and not all(cut)


def rows_for(task_name: str) -> list[dict[str, str]]:
    """Rows of the task's inputs, of very different lengths."""
    first = ROWS_OF_TASKS[task_name][0]
    inputs = trained_for(task_name)[1].task.inputs
    texts = [" ".join(WORDS[:count]) for count in (1, 3, 12, 2, 7, 4)]
    return [{name: first[name] for name in inputs} | {inputs[0]: text} for text in texts]


@pytest.mark.parametrize("task_name", ROWS_OF_TASKS)
def test_an_answer_is_the_same_alone_and_in_company(task_name: str) -> None:
    """Padding changes the last bits of a float, and nothing else."""
    job, trained = trained_for(task_name, max_seq_len=24)
    predictor, rows = Predictor(job, trained, UNOBSERVED), rows_for(task_name)
    alone = [predict(predictor, [row])[0] for row in rows]
    together = predict(predictor, rows)
    padded = trained.predict(
        trained.task.encode([trained.task.clean(predictor_row(trained, row)) for row in rows],
                            trained.processor)
    )  # fmt: skip
    assert len({json.dumps(answer) for answer in alone}) > 1  # the rows differ
    for number, (one, other) in enumerate(zip(alone, together, strict=True)):
        whole = trained.task.reply(padded, number, trained.processor) | {"truncated": True}
        for name, value in one.items():
            assert other[name] == close_to(value) and whole[name] == close_to(value), name
    predictor.close()


def close_to(value: Any) -> Any:
    return value if isinstance(value, str) else pytest.approx(value, rel=1e-4, abs=1e-6)


def predictor_row(trained: TrainedModel, row: dict[str, str]) -> Any:
    return dict.fromkeys(trained.task.columns) | dict.fromkeys(trained.task.optional, "") | row


def test_a_row_that_is_wrong_is_named_and_disturbs_nobody() -> None:
    api, _ = app_for("text_classification")
    with TestClient(api) as client:
        good, bad = {"text": "a good one"}, {"text": "  "}
        for inputs, message in (
            ([good, bad], "inputs[1]: holds nothing"),
            ([{"txt": "a"}], "inputs[0]: must hold text, not txt"),
            ([good, {"text": "\ud800"}], "inputs[1]: is not valid Unicode"),
        ):
            body = json.dumps({"inputs": inputs}).encode()
            answer = client.post("/v1/predict", content=body, headers=JSON)
            assert (answer.status_code, answer.json()["error"]["message"]) == (400, message)
        answer = client.post("/v1/predict", json={"inputs": [good], "model": "tiny"})
        assert answer.status_code == 200 and answer.json()["outputs"][0]["label"]
        assert client.post("/v1/predict", json={"inputs": [good], "model": "x"}).status_code == 404
        assert client.post("/v1/predict", json={"inputs": [good] * 65}).status_code == 422


class Held:
    """A model whose computation waits until it may go."""

    def __init__(self, engine: PredictionEngine) -> None:
        self.may_go, self.is_held, self.rows = threading.Event(), threading.Event(), 0
        self._predict = engine.predictor.trained.predict
        engine.predictor._compute = self.predict

    def predict(self, arrays: Any) -> Any:
        self.is_held.set()
        assert self.may_go.wait(SECONDS)
        self.rows += len(arrays["tokens"])
        return self._predict(arrays)


def ask(url: str, answers: list[httpx.Response]) -> threading.Thread:
    def post() -> None:
        body = {"inputs": [{"text": "a good one"}]}
        answers.append(httpx.post(f"{url}/v1/predict", json=body, timeout=SECONDS))

    thread = threading.Thread(target=post)
    thread.start()
    return thread


def until(holds: Any) -> None:
    deadline = time.monotonic() + SECONDS
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_more_requests_than_may_wait_get_429() -> None:
    api, engine = app_for("text_classification", {"max_queued_requests": 1})
    held, answers = Held(engine), list[httpx.Response]()
    with listening(api) as url:
        threads = [ask(url, answers)]
        assert held.is_held.wait(SECONDS)
        threads.append(ask(url, answers))
        until(lambda: engine.predictor._batcher.waiting == 1)
        refused = httpx.post(f"{url}/v1/predict", json={"inputs": [{"text": "a"}]})
        held.may_go.set()
        for thread in threads:
            thread.join(SECONDS)
    assert refused.status_code == 429 and int(refused.headers["retry-after"]) >= 1
    assert refused.json()["error"]["code"] == "queue_full"
    assert [answer.status_code for answer in answers] == [200, 200]


def test_a_request_past_its_deadline_gets_504() -> None:
    """Whether it waits or is computed: the answer does not wait for the thread."""
    api, engine = app_for("text_classification", {"deadline_seconds": 0.3})
    held, answers = Held(engine), list[httpx.Response]()
    with listening(api) as url:
        first = ask(url, answers)
        assert held.is_held.wait(SECONDS)
        late = ask(url, answers)
        until(lambda: engine.predictor._batcher.waiting == 1)
        first.join(SECONDS)
        late.join(SECONDS)
        held.may_go.set()
        assert "within 0.3 s" in answers[0].json()["error"]["message"]
        until(lambda: engine.predictor._batcher.running == 0)
    assert [answer.status_code for answer in answers] == [504, 504]
    assert held.rows == 1  # the one that waited is not computed


def test_a_client_that_leaves_is_not_computed_for() -> None:
    api, engine = app_for("text_classification")
    held, answers = Held(engine), list[httpx.Response]()
    with listening(api) as url:
        stays = ask(url, answers)
        assert held.is_held.wait(SECONDS)
        with pytest.raises(httpx.ReadTimeout):
            body = {"inputs": [{"text": "gone"}] * 9}
            httpx.post(f"{url}/v1/predict", json=body, timeout=0.2)
        queue = engine.predictor._batcher._waiting
        until(lambda: all(request.future.cancelled() for request in queue))
        held.may_go.set()
        stays.join(SECONDS)
        httpx.post(f"{url}/v1/predict", json={"inputs": [{"text": "a"}]}).raise_for_status()
    assert answers[0].status_code == 200 and held.rows == 2


def test_a_fault_of_the_model_is_the_faulty_requests_alone() -> None:
    api, engine = app_for("text_classification")
    predict_rows = engine.predictor.trained.predict

    def faulty(arrays: Any) -> Any:
        if (arrays["tokens_length"] > 20).any():
            raise RuntimeError("a kernel failed")
        return predict_rows(arrays)

    engine.predictor._compute = faulty
    with TestClient(api, raise_server_exceptions=False) as client:
        long = client.post("/v1/predict", json={"inputs": [{"text": "zq" * 30}]})
        short = client.post("/v1/predict", json={"inputs": [{"text": "a"}]})
    assert (long.status_code, short.status_code) == (500, 200)
    assert "a kernel failed" in long.json()["error"]["message"]


def test_probabilities_of_many_requests_at_once_are_each_ones_own() -> None:
    api, engine = app_for("text_classification")
    texts = [" ".join(WORDS[: 1 + number % 9]) + str(number) for number in range(24)]
    expected = predict(engine.predictor, [{"text": text} for text in texts])

    async def all_at_once(url: str) -> list[Any]:
        async with httpx.AsyncClient(base_url=url, timeout=SECONDS) as client:
            bodies = ({"inputs": [{"text": text}]} for text in texts)
            posts = (client.post("/v1/predict", json=body) for body in bodies)
            return [answer.json()["outputs"][0] for answer in await asyncio.gather(*posts)]

    with listening(api) as url:
        outputs = asyncio.run(all_at_once(url))
    for output, answer in zip(outputs, expected, strict=True):
        values = [list(each["probabilities"].values()) for each in (output, answer)]
        np.testing.assert_allclose(*values, rtol=1e-4, atol=1e-6)

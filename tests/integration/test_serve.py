"""The endpoint on Ray Serve, over HTTP."""

import json
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import httpx
import pytest
import ray
import yaml
from ray import serve
from ray.serve.context import _get_global_client
from ray.serve.schema import ServeDeploySchema

from orchestrator.application import Arguments, application
from orchestrator.cluster.connection import Cluster
from orchestrator.errors import StageError, UserError
from orchestrator.job.job import Job
from orchestrator.prepare.stage import prepare
from orchestrator.run import Run
from orchestrator.serve.deploy import Deployed, deploy, rollback
from orchestrator.serve.history import History
from orchestrator.serve.logged import read_requests
from orchestrator.serve.metrics import METRICS
from orchestrator.storage.artifact import PreparedData, Training
from orchestrator.storage.folder import Folder
from orchestrator.train.stage import train
from tests.integration.conftest import Silent, tiny_job, write_texts
from tests.ray_head import free_port

# Metrics that a model which generates text does not have at once.
LATER = {"orchestrator_batch_rows", "orchestrator_padding_tokens"}
LATER |= {"orchestrator_logged_requests", "orchestrator_unlogged_requests"}


@pytest.fixture(scope="module")
def trained(
    tmp_path_factory: pytest.TempPathFactory, connected: Cluster
) -> tuple[Job, PreparedData, Training]:
    folder = tmp_path_factory.mktemp("serve")
    write_texts(folder / "data")
    settings = {"port": free_port(), "max_tokens": 8, "log": {"share": 1}}
    job = Job.model_validate(tiny_job(folder, serve=settings))
    run = Run(job)
    prepared = prepare(job, run.files, run.prepare_folder(), Silent())
    return job, prepared, train(job, prepared, run.train_folder(job), run.events, Silent())


@pytest.fixture(scope="module")
def deployed(trained: tuple[Job, PreparedData, Training]) -> Deployed:
    return deploy(*trained, None, History(Run(trained[0]).folder), Silent())


@pytest.fixture(scope="module")
def url(deployed: Deployed) -> str:
    return deployed.address.url


def test_a_completion_has_the_shape_of_openais(url: str) -> None:
    body = {"model": "tiny", "prompt": "the the", "max_tokens": 5, "temperature": 0}
    answer = httpx.post(f"{url}/v1/completions", json=body)
    assert answer.status_code == 200
    content = answer.json()
    assert content["object"] == "text_completion" and content["model"] == "tiny"
    assert content["choices"][0]["finish_reason"] in ("length", "stop")
    assert content["usage"]["completion_tokens"] <= 5
    assert httpx.post(f"{url}/v1/completions", json=body).json()["choices"] == content["choices"]


def test_a_stream_joins_to_the_whole_answer(url: str) -> None:
    body = {"prompt": "the the", "max_tokens": 8, "seed": 1}
    whole = httpx.post(f"{url}/v1/completions", json=body).json()["choices"][0]["text"]
    text = ""
    with httpx.stream("POST", f"{url}/v1/completions", json=body | {"stream": True}) as answer:
        events = [line.removeprefix("data: ") for line in answer.iter_lines() if line]
    assert events.pop() == "[DONE]"
    for event in events:
        text += json.loads(event)["choices"][0]["text"]
    assert text == whole


def test_models_and_health_answer(url: str) -> None:
    models = httpx.get(f"{url}/v1/models").json()
    assert [model["id"] for model in models["data"]] == ["tiny"]
    assert httpx.get(f"{url}/healthz").json() == {"status": "ok"}


def test_the_first_answer_is_text(
    deployed: Deployed, trained: tuple[Job, PreparedData, Training]
) -> None:
    assert isinstance(deployed.answer, str) and deployed.what == "deployed"
    [record] = History(Run(trained[0]).folder).read()
    assert (record.version, record.outcome) == (deployed.version, "serving")


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 400),
        (b'{"prompt": 5}', 422),
        (b'{"prompt": "a", "temperature": NaN}', 422),
        (b'{"prompt": "a", "temperature": 1e400}', 422),
        (b'{"prompt": "a", "max_tokens": 100000000000}', 422),
        (b'{"prompt": "a", "max_tokens": 1000}', 400),
        (b'{"prompt": "' + b"the " * 100 + b'"}', 400),
        (b'{"prompt": "a", "model": "gpt-4"}', 404),
        (b'{"prompt": "a", "n": 1000}', 422),
        (b'{"prompt": "a", "stream": 3}', 422),
        (b'{"prompt": "\\ud800"}', 422),
        (b'{"prompt": "\xff"}', 400),
        (b"[" * 10_000, 400),
        (b'{"prompt": "' + b"a" * (1 << 20) + b'"}', 413),
    ],
)
def test_bad_requests_get_an_error_in_openais_envelope(url: str, body: bytes, status: int) -> None:
    headers = {"content-type": "application/json"}
    answer = httpx.post(f"{url}/v1/completions", content=body, headers=headers)
    assert answer.status_code == status, answer.text
    assert answer.json()["error"]["message"]


def test_unknown_routes_and_methods_get_the_same_envelope(url: str) -> None:
    for answer in (httpx.get(f"{url}/v3"), httpx.get(f"{url}/v1/completions")):
        assert answer.status_code in (404, 405)
        assert answer.json()["error"]["message"]


def test_the_metrics_are_on_rays_own_port_by_the_names_of_the_dashboard(url: str) -> None:
    body = {"prompt": "the the", "max_tokens": 5, "temperature": 0}
    tokens = httpx.post(f"{url}/v1/completions", json=body).json()["usage"]["completion_tokens"]
    [node] = [node for node in ray.nodes() if node["Alive"]]
    port = node["MetricsExportPort"]
    kinds = {"counter": "_total", "histogram": "_count", "gauge": ""}
    generating = [name for name in METRICS if name not in LATER]
    expected = {f"ray_{name}{kinds[METRICS[name].kind]}" for name in generating}
    deadline, found = time.monotonic() + 60, dict[str, float]()
    while not expected <= found.keys() or found["ray_generation_tokens_total"] < tokens:
        assert time.monotonic() < deadline, expected - found.keys()
        time.sleep(1)
        found = metrics_of(httpx.get(f"http://127.0.0.1:{port}/metrics").text, "tiny")
    assert found["ray_orchestrator_model_info"] == 1
    assert found["ray_num_requests_running"] == found["ray_num_requests_waiting"] == 0


def metrics_of(page: str, model: str) -> dict[str, float]:
    """The sum of each metric of a model, in Prometheus' text format."""
    found: defaultdict[str, float] = defaultdict(float)
    for line in page.splitlines():
        name, _, rest = line.partition("{")
        labels, _, value = rest.rpartition("} ")
        if f'model_name="{model}"' in labels:
            found[name] += float(value.split()[0])
    return dict(found)


def test_ray_serves_own_errors_are_in_openais_envelope(url: str) -> None:
    body = {"prompt": "the", "n": 8, "max_tokens": 28}
    answer = httpx.post(
        f"{url}/v1/completions", json=body, headers={"x-request-timeout-seconds": "0.001"}
    )
    assert answer.status_code == 408
    assert "timed out" in answer.json()["error"]["message"]


def test_an_answer_has_the_id_of_its_request(url: str) -> None:
    for given, same in (("mine-1", True), ("not a name", False)):
        answer = httpx.get(f"{url}/v1/models", headers={"x-request-id": given})
        (identity,) = answer.headers.get_list("x-request-id", split_commas=True)
        assert (identity == given) == same


def test_a_deployment_without_its_checkpoint_fails_with_the_reason(
    url: str, trained: tuple[Job, PreparedData, Training], tmp_path: Path
) -> None:
    job, prepared, training = trained
    broken: dict[str, Any] = training.model_dump() | {"folder": Folder(str(tmp_path))}
    other = job.model_copy(
        update={"name": "broken", "serve": job.serve.model_copy(update={"route_prefix": "/b"})}
    )
    with pytest.raises(StageError, match=str(tmp_path)):
        deploy(other, prepared, Training(**broken), None, History(Folder(str(tmp_path))), Silent())
    assert httpx.get(f"{url}/healthz").status_code == 200


def test_a_route_of_another_application_is_refused(
    url: str, trained: tuple[Job, PreparedData, Training], tmp_path: Path
) -> None:
    job, prepared, training = trained
    history = History(Folder(str(tmp_path)))
    with pytest.raises(UserError, match="route_prefix"):
        deploy(
            job.model_copy(update={"name": "other"}), prepared, training, None, history, Silent()
        )
    [record] = history.read()
    assert record.outcome == "refused" and "route_prefix" in record.reason


def test_an_unchanged_version_is_not_deployed_again(
    deployed: Deployed, trained: tuple[Job, PreparedData, Training]
) -> None:
    history = History(Run(trained[0]).folder)
    again = deploy(*trained, None, history, Silent())
    assert (again.version, again.what) == (deployed.version, "already served")
    assert len(history.read()) == 1


def test_other_settings_of_the_same_checkpoint_are_served_at_once(
    url: str, deployed: Deployed, trained: tuple[Job, PreparedData, Training]
) -> None:
    job, prepared, training = trained
    other = job.model_copy(update={"serve": job.serve.model_copy(update={"max_tokens": 3})})
    history = History(Run(job).folder)
    changed = deploy(other, prepared, training, None, history, Silent())
    assert changed.what == f"in place of {deployed.version}"
    answer = httpx.post(f"{url}/v1/completions", json={"prompt": "the", "temperature": 0})
    assert answer.headers["x-model-version"] == changed.version
    assert answer.json()["usage"]["completion_tokens"] <= 3
    back = rollback(job, history, Silent())
    assert back.version == deployed.version
    actions = [(each.action, each.outcome) for each in history.read()]
    assert actions[-2:] == [("updated", "serving"), ("rolled back", "serving")]


def test_the_application_of_a_config_file_answers_as_the_run_it_names(
    trained: tuple[Job, PreparedData, Training], url: str, tmp_path: Path
) -> None:
    """As a RayService deploys it: by import path and arguments, in a process of the cluster."""
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump(trained[0].model_dump(mode="json", exclude_unset=True)))
    deployed = {
        "name": "by-config",
        "route_prefix": "/by-config",
        "import_path": "orchestrator.application:application",
        "args": {"job": str(file), "overrides": ["serve.max_tokens=4", "serve.open=true"]},
    }
    _get_global_client().deploy_apps(ServeDeploySchema(applications=[deployed]), _blocking=True)
    try:
        root = url.removesuffix("/")
        body = {"prompt": "the the", "temperature": 0}
        answer = httpx.post(f"{root}/by-config/v1/completions", json=body)
        assert answer.status_code == 200, answer.text
        assert answer.json()["usage"]["completion_tokens"] <= 4
    finally:
        serve.delete("by-config")  # later tests need its CPU
    assert "by-config" not in serve.status().applications
    # A replica that ends writes what it has logged.
    logged = {each.id: each for each in read_requests(Run(trained[0]).folder)}
    mine = logged[answer.headers["x-request-id"]]
    assert mine.request == body and mine.answer == answer.json() and mine.status == 200
    assert mine.path == "/v1/completions" and mine.complete


def test_the_application_of_a_run_that_is_not_finished_says_what_to_run(
    trained: tuple[Job, PreparedData, Training], tmp_path: Path
) -> None:
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump(trained[0].model_dump(mode="json", exclude_unset=True)))
    with pytest.raises(UserError, match=r"run it first .*: orchestrator train \S+ train.steps=31"):
        application(Arguments(job=str(file), overrides=["train.steps=31", "serve.open=true"]))

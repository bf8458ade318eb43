"""API keys: who gets an answer, and which addresses need them."""

import hashlib
import hmac
import json
from pathlib import Path
from typing import Any

import openai
import pytest
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError
from starlette.testclient import TestClient

from orchestrator.application import Arguments, application
from orchestrator.errors import JobError, UserError
from orchestrator.job.api_keys import digest_of, is_loopback, read_keys
from orchestrator.job.file import load_job
from orchestrator.job.fingerprint import fingerprint
from orchestrator.serve.access import Keys
from orchestrator.serve.app import MAX_BODY_BYTES
from orchestrator.serve.release import Release
from tests.unit.predicting import app_for
from tests.unit.served import listening

KEY, OTHER = "sk-first", "sk-second"
JOB = "name: a\ntask: language_modelling\ndata: {source: python-stdlib}\n"
OPEN = ["/healthz", "/v2/health/live", "/v2/health/ready"]
GUARDED = ["/v1/models", "/v2", "/v2/models/tiny", "/v2/models/tiny/ready", "/openapi.json", "/no"]


@pytest.fixture(scope="module")
def client() -> Any:
    api, _ = app_for("text_classification", keys=[digest_of(KEY), digest_of(OTHER)])
    with TestClient(api) as found:
        yield found


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def refused(answer: Any) -> str:
    """The message of a refusal, which must be in OpenAI's envelope."""
    assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer"
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == "invalid_api_key"
    return str(error["message"])


# The endpoint


@pytest.mark.parametrize("key", [KEY, OTHER])
def test_each_key_opens_every_route(client: TestClient, key: str) -> None:
    body = {"inputs": [{"text": "a good one"}]}
    assert client.post("/v1/predict", json=body, headers=bearer(key)).status_code == 200
    assert client.get("/v1/models", headers=bearer(key)).status_code == 200
    assert client.get("/v1/models", headers={"authorization": f"bearer  {key}"}).status_code == 200


@pytest.mark.parametrize("path", OPEN)
def test_health_needs_no_key(client: TestClient, path: str) -> None:
    assert client.get(path).status_code == 200


@pytest.mark.parametrize("path", GUARDED)
def test_every_other_route_needs_one_even_if_it_does_not_exist(
    client: TestClient, path: str
) -> None:
    assert "is missing: send Authorization: Bearer KEY" in refused(client.get(path))
    assert refused(client.post(path, json={}))


@pytest.mark.parametrize(
    "header",
    [
        "",
        KEY,
        "Bearer",
        "Bearer ",
        "Bearer é",
        f"Basic {KEY}",
        f"Bearer {KEY}x",
        f"Bearer {KEY[:-1]}",
        f"Bearer {KEY},{OTHER}",
        f"Bearer {digest_of(KEY)}",
        f"Bearer {'x' * 5000}",
    ],
)
def test_a_wrong_key_is_refused(client: TestClient, header: str) -> None:
    headers = [(b"authorization", header.encode("latin-1"))]
    assert "is not valid here" in refused(client.get("/v1/models", headers=headers))


def test_two_keys_at_once_are_refused(client: TestClient) -> None:
    headers = [("authorization", f"Bearer {KEY}"), ("authorization", "Bearer x")]
    refused(client.get("/v1/models", headers=headers))


def test_a_body_is_not_read_before_its_key_is_known(client: TestClient) -> None:
    refused(client.post("/v1/predict", content=b"x" * (MAX_BODY_BYTES + 1)))


@pytest.mark.parametrize(
    "path", ["/healthz/../v1/models", "http://testserver//healthz", "/healthz/", "/%2fhealthz"]
)
def test_health_lends_its_freedom_to_no_other_path(client: TestClient, path: str) -> None:
    assert client.get(path).status_code == 401


def test_below_a_prefix_health_is_still_free_and_nothing_else() -> None:
    api, _ = app_for("text_classification", keys=[digest_of(KEY)])
    with TestClient(api, root_path="/b") as client:
        assert client.get("/b/healthz").status_code == 200
        refused(client.get("/b/v1/models"))
        assert client.get("/b/v1/models", headers=bearer(KEY)).status_code == 200


def test_each_hash_is_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[bytes, bytes]] = []
    real = hmac.compare_digest

    def compare(given: bytes, known: bytes) -> bool:
        compared.append((given, known))
        return real(given, known)

    monkeypatch.setattr(hmac, "compare_digest", compare)
    api, _ = app_for("text_classification", keys=[digest_of(KEY), digest_of(OTHER)])
    with TestClient(api) as client:
        client.get("/v1/models", headers=bearer(KEY))
    assert [known.decode() for _, known in compared] == [digest_of(KEY), digest_of(OTHER)]


def test_the_openai_client_sends_its_key_as_the_endpoint_wants_it() -> None:
    with listening(app_for("text_classification", keys=[digest_of(KEY)])[0]) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0)
        assert [model.id for model in client.models.list()] == ["tiny"]
        with pytest.raises(openai.AuthenticationError, match="not valid here") as wrong:
            client.with_options(api_key="sk-wrong").models.list()
        assert wrong.value.code == "invalid_api_key"


def test_hugging_faces_client_does_too() -> None:
    with listening(app_for("text_classification", keys=[digest_of(KEY)])[0]) as url:
        assert InferenceClient(model=url, token=KEY).text_classification("a good one")
        with pytest.raises(HfHubHTTPError, match="401"):
            InferenceClient(model=url, token="sk-wrong").text_classification("a good one")


# Health and metadata


def test_the_open_inference_protocol_tells_of_the_model() -> None:
    api, _ = app_for("extractive_question_answering", version="train-1/step-2")
    with TestClient(api) as client:
        assert client.get("/v2/health/live").json() == {"live": True}
        assert client.get("/v2/health/ready").json() == {"ready": True}
        server = client.get("/v2").json()
        assert server["name"] == "orchestrator" and server["version"]
        model = client.get("/v2/models/tiny").json()
        assert (model["name"], model["versions"]) == ("tiny", ["train-1/step-2"])
        assert [tensor["name"] for tensor in model["inputs"]] == ["context", "question"]
        assert client.get("/v2/models/tiny/ready").json() == {"name": "tiny", "ready": True}
        for path in ("/v2/models/other", "/v2/models/other/ready"):
            answer = client.get(path)
            assert answer.status_code == 404
            assert answer.json()["error"]["code"] == "model_not_found"


def test_every_route_documents_its_errors_in_openais_envelope() -> None:
    api, _ = app_for("text_classification")
    with TestClient(api) as client:
        schema = client.get("/openapi.json").json()
    assert {"/", "/v1/predict", "/v1/embeddings", "/v2/models/{name}"} <= schema["paths"].keys()
    for path in schema["paths"].values():
        for operation in path.values():
            assert {"200", "4XX", "5XX"} == operation["responses"].keys()
            content = operation["responses"]["4XX"]["content"]["application/json"]
            assert content["schema"]["$ref"].endswith("/ErrorResponse")


# The job


def load(folder: Path, serve: str) -> Any:
    file = folder / "job.yaml"
    file.write_text(JOB + (f"serve: {{{serve}}}\n" if serve else ""))
    return load_job(str(file))


def keys_file(folder: Path, content: str) -> Path:
    file = folder / "keys.txt"
    file.write_text(content)
    return file


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.com", "''"])
def test_others_are_refused_where_there_are_no_keys(tmp_path: Path, host: str) -> None:
    with pytest.raises(JobError, match=r"serve\.host.*set serve\.keys.*or serve\.open") as error:
        load(tmp_path, f"host: {host!r}" if host != "''" else "host: ''")
    assert error.value.exit_code == 2 and len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.8.8.8"])
def test_this_machine_needs_none(tmp_path: Path, host: str) -> None:
    assert is_loopback(host)
    assert load(tmp_path, f"host: '{host}'").serve.keys is None


def test_keys_or_the_users_word_open_it_to_others(tmp_path: Path) -> None:
    file = keys_file(tmp_path, f"# mine\n\n{digest_of(KEY)} alice  # laptop\n{digest_of(OTHER)}\n")
    assert load(tmp_path, f"host: 0.0.0.0, keys: {file}").serve.host == "0.0.0.0"
    assert load(tmp_path, "host: 0.0.0.0, open: true").serve.open
    assert read_keys(str(file)) == [digest_of(KEY), digest_of(OTHER)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (KEY, "keys.txt:1: must begin with the SHA-256"),
        (f"{digest_of(KEY)}\n{digest_of(KEY)[:-1]} bob", "keys.txt:2: must begin"),
        ("# nobody\n\n", "keys.txt: holds no key"),
        ("", "keys.txt: holds no key"),
        ("#" * ((1 << 20) + 1), "keys.txt: is larger than"),
    ],
)
def test_a_file_of_keys_that_is_wrong_is_refused_by_its_line(
    tmp_path: Path, content: str, message: str
) -> None:
    file = keys_file(tmp_path, content)
    with pytest.raises(JobError, match=r"serve\.keys = ") as error:
        load(tmp_path, f"keys: {file}")
    assert message in str(error.value) and len(str(error.value).splitlines()) == 1
    assert KEY not in str(error.value)


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none.txt: cannot be read: No such file"):
        load(tmp_path, f"keys: {tmp_path / 'none.txt'}")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="cannot be read: is no text"):
        read_keys(str(tmp_path / "binary"))


def test_upper_case_and_a_byte_order_mark_are_no_fault(tmp_path: Path) -> None:
    file = keys_file(tmp_path, f"\ufeff{digest_of(KEY).upper()} alice\n")
    assert read_keys(str(file)) == [digest_of(KEY)]


def test_the_documented_command_makes_a_key_that_is_accepted(tmp_path: Path) -> None:
    key = "sk-made"
    line = f"{hashlib.sha256(key.encode()).hexdigest()} alice\n"
    api, _ = app_for("text_classification", keys=read_keys(str(keys_file(tmp_path, line))))
    with TestClient(api) as client:
        assert client.get("/v1/models", headers=bearer(key)).status_code == 200


def test_a_config_file_of_ray_serve_needs_them_wherever_it_listens(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(JOB)
    with pytest.raises(UserError, match=r"job.yaml: .* set serve\.keys .* or serve\.open"):
        application(Arguments(job=str(file)))
    with pytest.raises(UserError, match="holds no finished training"):
        storage = f"storage={tmp_path}"
        application(Arguments(job=str(file), overrides=["serve.open=true", storage]))


def test_replicas_get_the_files_hashes_without_a_restart(tmp_path: Path) -> None:
    job = load(tmp_path, f"keys: {keys_file(tmp_path, digest_of(KEY))}, max_queued_requests: 9")
    release = Release(job, "prepared", "training", "step", "0" * 12, (digest_of(KEY),))
    deployment = release.bind()._bound_deployment
    assert deployment.user_config == {"keys": [digest_of(KEY)]}
    assert KEY not in repr(release) and digest_of(KEY) not in repr(release)
    # A replica takes what its engine's queue refuses, since Ray Serve's own refusals are bare.
    assert deployment.max_ongoing_requests > job.serve.max_queued_requests


def test_a_key_is_valid_until_it_is_withdrawn() -> None:
    keys = Keys([digest_of(KEY)])
    api, _ = app_for("text_classification", keys=keys)
    with TestClient(api) as client:
        assert client.get("/v1/models", headers=bearer(KEY)).status_code == 200
        keys.set([digest_of(OTHER)])
        assert client.get("/v1/models", headers=bearer(KEY)).status_code == 401
        assert client.get("/v1/models", headers=bearer(OTHER)).status_code == 200


def test_keys_change_no_stages_result(tmp_path: Path) -> None:
    file = keys_file(tmp_path, digest_of(KEY))
    plain, keyed = load(tmp_path, ""), load(tmp_path, f"keys: {file}, open: true")
    for stage in ("prepare", "tune", "train", "evaluate", "serve"):
        assert fingerprint(plain, stage) == fingerprint(keyed, stage)
    assert json.loads(keyed.model_dump_json())["serve"]["keys"] == str(file)

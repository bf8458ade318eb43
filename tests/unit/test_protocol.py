"""The completions API: what a request may hold, and that every wrong one gets a 4xx answer."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi import FastAPI
from pydantic import BaseModel, ValidationError
from starlette.testclient import TestClient

from orchestrator.errors import UserError
from orchestrator.infer.generation import FullError
from orchestrator.serve.app import MAX_BODY_BYTES, make_app
from orchestrator.serve.completion_protocol import CompletionRequest
from orchestrator.serve.protocol import require_model
from orchestrator.serve.text_engine import TextEngine
from orchestrator.serve.text_request import TextRequest

PATH = "/v1/completions"
NEUTRAL = {**TextRequest.neutral, **CompletionRequest.neutral}


class Count(BaseModel):
    length: int


class Counting(TextEngine):
    """Answers completion requests without a model."""

    def __init__(self) -> None:
        """Needs no model."""

    def add_routes(self, api: FastAPI) -> None:
        api.post(PATH)(self.count)

    def close(self) -> None:
        """There is nothing to end."""

    def count(self, request: CompletionRequest) -> Count:
        match request.prompt:
            case "wrong":
                raise UserError("the prompt is wrong")
            case "full":
                raise FullError("too many wait", retry_after=2.1)
            case "broken":
                raise RuntimeError("a bug\nwith details")
        require_model(request.model, "tiny")
        return Count(length=len(request.prompt))


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    app = make_app("tiny", Counting())
    with TestClient(app, raise_server_exceptions=False) as found:
        yield found


def post(client: TestClient, body: Any) -> Any:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return client.post(PATH, content=content, headers={"content-type": "application/json"})


def error(answer: Any) -> dict[str, Any]:
    """The error of an answer, which must be in OpenAI's envelope."""
    assert 400 <= answer.status_code < 500, answer.text
    assert set(answer.json()) == {"error"}
    found: dict[str, Any] = answer.json()["error"]
    assert set(found) == {"message", "type", "param", "code"}
    assert found["message"] and found["type"]
    return found


# What a request may hold


def test_a_prompt_is_all_that_a_request_needs() -> None:
    request = CompletionRequest(prompt="")
    assert (request.n, request.stops, request.echo, request.seed) == (1, [], False, None)


@pytest.mark.parametrize(
    ("stop", "stops"), [(None, []), ("a", ["a"]), (["a", "b"], ["a", "b"]), ([], [])]
)
def test_stop_is_a_text_or_a_list_of_texts(stop: Any, stops: list[str]) -> None:
    assert CompletionRequest(prompt="x", stop=stop).stops == stops


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": 0},
        {"temperature": 2, "top_p": 1e-9},
        {"max_tokens": 1},
        {"max_tokens": None, "stop": None, "seed": None},
        {"stop": ["x" * 200] * 32},
        {"max_tokens": 0, "echo": True},
        {"logprobs": 0},
        {"logprobs": 20},
        {"stream": True, "stream_options": {"include_usage": True}},
        {"prompt": [0]},
        {"prompt": [[2**31 - 1], [1, 2]]},
        {"prompt": ["a", "b"]},
        {"prompt": ["a"] * 16, "n": 8},
        {"n": 8},
        {"seed": 2**63 - 1},
        {"prompt": "\x00🙂"},
        {"stream": False},
    ],
)
def test_values_at_the_ends_of_their_ranges_are_accepted(fields: dict[str, Any]) -> None:
    CompletionRequest.model_validate({"prompt": "x"} | fields)


WRONG = [
    ("temperature", float("nan")),
    ("temperature", float("inf")),
    ("temperature", -0.1),
    ("temperature", 2.1),
    ("temperature", "warm"),
    ("temperature", True),
    ("top_p", 0),
    ("top_p", 1.1),
    ("top_p", float("nan")),
    ("top_k", -1),
    ("repetition_penalty", 5e-324),  # logits divided by it are infinite
    ("n", 0),
    ("n", -1),
    ("n", 10**30),
    ("n", 1.5),
    ("max_tokens", -1),
    ("max_tokens", 10**30),
    ("stop", ""),
    ("stop", ["a", ""]),
    ("stop", ["a"] * 33),
    ("stop", ["a"] * 100_000),
    ("stop", "x" * 201),
    ("stop", [1]),
    ("stop", {"a": "b"}),
    ("seed", -1),
    ("seed", 2**63),
    ("prompt", None),
    ("prompt", 3),
    ("prompt", {"a": "b"}),
    ("prompt", "\ud800"),
    ("model", "\ud800"),
    ("model", "x" * 1000),
    ("model", 3),
    ("user", "x" * 1000),
    ("echo", 3),
    ("logit_bias", {"5": 1}),
    ("presence_penalty", 0.1),
    ("presence_penalty", False),
    ("frequency_penalty", -1),
    ("best_of", 2),
    ("best_of", True),
    ("suffix", ""),
    ("stream_options", {}),
    ("messages", None),
    ("prompt", []),
    ("prompt", [[]]),
    ("prompt", [-1]),
    ("prompt", [2**31]),
    ("prompt", [True]),
    ("prompt", [1.5]),
    ("prompt", ["a", [1]]),
    ("prompt", ["a", 1]),
    ("prompt", ["a"] * 129),
    ("prompt", ["a", "\ud800"]),
    ("max_tokens", 0),
    ("logprobs", 21),
    ("logprobs", -1),
    ("logprobs", True),
    ("stream", "yes"),
    ("stream_options", {"include_usage": True}),
    ("prompt", [["a"]]),
    ("messages", []),
]


@pytest.mark.parametrize(("field", "value"), WRONG, ids=lambda value: repr(value)[:30])
def test_a_wrong_value_is_refused(field: str, value: Any) -> None:
    with pytest.raises(ValidationError):
        CompletionRequest.model_validate({"prompt": "x"} | {field: value})


@pytest.mark.parametrize(
    "fields",
    [
        dict.fromkeys(set(CompletionRequest.model_fields) - {"prompt"}),
        dict.fromkeys(NEUTRAL),
        {"logit_bias": {}, "presence_penalty": 0, "frequency_penalty": 0.0, "best_of": 1},
        {"stream": False, "temperature": 1, "top_p": 1},
    ],
)
def test_what_clients_send_unasked_is_as_if_it_were_not_sent(fields: dict[str, Any]) -> None:
    request = CompletionRequest.model_validate({"prompt": "x"} | fields)
    assert request == CompletionRequest(prompt="x")


@pytest.mark.parametrize("name", NEUTRAL)
def test_what_is_not_served_is_refused_by_its_name(client: TestClient, name: str) -> None:
    answer = post(client, {"prompt": "x", name: 3})
    assert answer.status_code == 422 and error(answer)["param"] == name


def test_a_request_without_a_prompt_is_refused() -> None:
    with pytest.raises(ValidationError):
        CompletionRequest.model_validate({"max_tokens": 3})


# What the endpoint answers


def test_a_sound_request_reaches_the_route(client: TestClient) -> None:
    answer = post(client, {"prompt": "four"})
    assert (answer.status_code, answer.json()) == (200, {"length": 4})


def test_a_request_just_within_the_limit_is_not_cut(client: TestClient) -> None:
    answer = post(client, {"prompt": "x" * 1_000_000})
    assert (answer.status_code, answer.json()) == (200, {"length": 1_000_000})


@pytest.mark.parametrize(("field", "value"), WRONG, ids=lambda value: repr(value)[:30])
def test_a_wrong_value_is_answered_by_the_name_of_its_field(
    field: str, value: Any, client: TestClient
) -> None:
    answer = post(client, {"prompt": "x"} | {field: value})
    assert answer.status_code in (400, 422)
    assert field in error(answer)["message"]


def test_a_field_is_named_in_the_envelope(client: TestClient) -> None:
    assert error(post(client, {"prompt": "x", "n": 0}))["param"] == "n"
    assert error(post(client, {"prompt": "x", "logprobs": 21}))["param"] == "logprobs"
    assert error(post(client, {"prompt": [[]]}))["param"] == "prompt"
    assert error(post(client, {}))["param"] == "prompt"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{bad",
        b'{"prompt": "cut',
        b"null",
        b"[]",
        b"3",
        b'"text"',
        b'{"prompt": "\xff"}',
        b"\xff\xfe\x00",
        b'{"prompt": "x", "\\ud800": 1}',
        b'{"prompt": "x", "temperature": 1e400}',
        b'{"prompt": "x", "temperature": NaN}',
        b'{"prompt": "x", "temperature": -Infinity}',
        b'{"prompt": "x", "n": ' + b"9" * 5000 + b"}",
        b'{"prompt": "x", "prompt": 3}',
        b"[" * 10_000,
        b"[" * 10_000 + b"]" * 10_000,
        b'{"prompt": ' + b"[" * 10_000 + b"]" * 10_000 + b"}",
        b'{"prompt": ' * 10_000 + b"1" + b"}" * 10_000,
        b'{"prompt": ' + b"[" * 500 + b"]" * 500 + b"}",
    ],
    ids=lambda body: repr(body[:30]),
)
def test_a_body_that_is_no_request_is_answered_with_4xx(body: bytes, client: TestClient) -> None:
    error(post(client, body))


def test_a_body_of_another_type_is_answered_with_4xx(client: TestClient) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""):
        error(client.post(PATH, content=b"prompt=x", headers={"content-type": kind}))


def test_invalid_json_blames_no_field(client: TestClient) -> None:
    assert error(post(client, b"{bad"))["param"] is None


@pytest.mark.parametrize("path", [PATH, "/nowhere"])
def test_a_body_over_a_mebibyte_is_refused_whoever_it_is_for(path: str, client: TestClient) -> None:
    answer = client.post(path, content=b" " * (MAX_BODY_BYTES + 1))
    assert answer.status_code == 413
    error(answer)


def test_an_endless_body_is_refused_without_being_read_to_its_end(client: TestClient) -> None:
    sent = 0

    async def run() -> list[dict[str, Any]]:
        answers: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            nonlocal sent
            sent += 1 << 16
            assert sent < 8 * MAX_BODY_BYTES
            return {"type": "http.request", "body": b"x" * (1 << 16), "more_body": True}

        async def send(message: Any) -> None:
            answers.append(message)

        scope = {"type": "http", "method": "POST", "path": PATH, "headers": [], "query_string": b""}
        await client.app(scope, receive, send)  # type: ignore[arg-type]
        return answers

    assert client.portal is not None
    answers = client.portal.call(run)
    assert answers[0]["status"] == 413
    assert sent <= 2 * MAX_BODY_BYTES


@pytest.mark.parametrize("path", ["/", "/nowhere", "/v1", "/docs", "/%ff", "/v1/completions/x"])
def test_an_unknown_path_is_404(path: str, client: TestClient) -> None:
    for method in ("GET", "POST"):
        answer = client.request(method, path)
        assert answer.status_code == 404
        error(answer)


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH"])
def test_another_method_is_405_and_told_which_are_allowed(method: str, client: TestClient) -> None:
    answer = client.request(method, PATH)
    assert answer.status_code == 405
    error(answer)
    assert answer.headers["allow"] == "POST"


def test_a_mistake_that_the_model_finds_is_400_in_its_words(client: TestClient) -> None:
    answer = post(client, {"prompt": "wrong"})
    assert answer.status_code == 400
    assert error(answer)["message"] == "the prompt is wrong"


def test_another_model_is_404_with_the_code_that_clients_know(client: TestClient) -> None:
    answer = post(client, {"prompt": "x", "model": "other"})
    assert answer.status_code == 404
    assert error(answer)["code"] == "model_not_found"
    assert "'tiny'" in error(answer)["message"]


def test_a_full_queue_is_429_and_says_when_to_come_back(client: TestClient) -> None:
    answer = post(client, {"prompt": "full"})
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "3")
    assert error(answer)["message"] == "too many wait"


def test_a_fault_of_ours_is_500_in_the_envelope(client: TestClient) -> None:
    answer = post(client, {"prompt": "broken"})
    assert answer.status_code == 500
    assert answer.json()["error"]["message"] == "a bug"

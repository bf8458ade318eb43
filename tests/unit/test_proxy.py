"""What Ray Serve's proxy answers by itself, behind the endpoint's middlewares."""

import asyncio
from typing import Any

import httpx
import pytest
from ray.serve._private.http_util import (
    RequestIdMiddleware,
    convert_object_to_asgi_messages,
    validate_http_proxy_callback_return,
)
from starlette.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.types import ASGIApp

from orchestrator.serve.proxy import LOST, middlewares


def ask(app: ASGIApp, headers: dict[str, str] | None = None) -> httpx.Response:
    """The answer of an app behind the middlewares, in Ray Serve's order."""
    app = RequestIdMiddleware(app)
    for middleware in validate_http_proxy_callback_return(middlewares()):
        made: Any = middleware.cls
        app = made(app, *middleware.args, **middleware.kwargs)

    async def asked() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app)) as client:
            return await client.get("http://endpoint/v1/models", headers=headers or {})

    return asyncio.run(asked())


def of_proxy(status: int, text: str, headers: Any = None) -> ASGIApp:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        for message in convert_object_to_asgi_messages(text, status, headers):
            await send(message)

    return app


@pytest.mark.parametrize(
    ("status", "kind", "retry"),
    [
        (404, "invalid_request_error", None),
        (408, "server_error", None),
        (429, "rate_limit_error", "1"),
        (503, "server_error", "1"),
    ],
)
def test_errors_of_the_proxy_get_the_envelope(status: int, kind: str, retry: str | None) -> None:
    answer = ask(of_proxy(status, "Path '/x' not found."))
    assert answer.status_code == status
    error = answer.json()["error"]
    assert error["message"] == "Path '/x' not found." and error["type"] == kind
    assert error.keys() == {"message", "type", "param", "code"}
    assert answer.headers.get("retry-after") == retry
    assert answer.headers["content-length"] == str(len(answer.content))


def test_the_proxys_own_retry_after_is_kept() -> None:
    answer = ask(of_proxy(429, "full", [(b"retry-after", b"7")]))
    assert answer.headers["retry-after"] == "7"


def test_a_replica_that_is_lost_before_its_answer_is_an_error_to_try_again() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        """As the proxy does when an actor dies."""

    answer = ask(app)
    assert answer.status_code == 503 and answer.json()["error"]["message"] == LOST
    assert answer.headers["retry-after"] == "1"


@pytest.mark.parametrize(
    "response",
    [
        PlainTextResponse("nothing here", 404),
        PlainTextResponse("fine"),
        JSONResponse({"error": "own"}, 503),
        StreamingResponse(iter([b"a", b"b"]), 200, media_type="text/plain"),
    ],
)
def test_answers_of_replicas_pass_as_they_are(response: Any) -> None:
    answer = ask(response)
    assert answer.status_code == response.status_code
    assert answer.headers["content-type"] == response.headers["content-type"]
    body = b"ab" if isinstance(response, StreamingResponse) else response.body
    assert answer.content == body


def test_health_of_the_proxy_passes_as_it_is() -> None:
    assert ask(of_proxy(200, "success")).text == "success"


@pytest.mark.parametrize("given", ["mine-1", "not a name", None])
def test_an_answer_has_one_id(given: str | None) -> None:
    answer = ask(of_proxy(200, "success"), {"x-request-id": given} if given else {})
    ids = answer.headers.get_list("x-request-id", split_commas=True)
    assert len(ids) == 1
    assert (ids[0] == given) == (given == "mine-1") and " " not in ids[0]

"""The endpoint's HTTP API: FastAPI in front of a serving engine. It knows no Ray."""

import math
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from orchestrator.errors import StageError, UserError, first_line
from orchestrator.infer.batcher import DeadlineError
from orchestrator.infer.generation import FullError
from orchestrator.serve import health
from orchestrator.serve.access import Keys, RequireKey
from orchestrator.serve.engine import Engine
from orchestrator.serve.envelope import ERRORS, error_response
from orchestrator.serve.log_requests import LogRequests
from orchestrator.serve.protocol import ErrorDetail, RefusedError, require_model
from orchestrator.serve.redirects import RelativeRedirects
from orchestrator.serve.request_id import RequestId
from orchestrator.serve.request_log import RequestLog
from orchestrator.serve.split import Split, Switch

MAX_BODY_BYTES = 1 << 20


class LimitBody:
    """Refuses bodies over MAX_BODY_BYTES while they arrive, before they are parsed."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] != "http.request":
                return  # the client has disconnected
            body += message.get("body", b"")
            if len(body) > MAX_BODY_BYTES:
                detail = ErrorDetail(message=f"the body is larger than {MAX_BODY_BYTES} bytes")
                await error_response(413, detail)(scope, receive, send)
                return
            if not message.get("more_body", False):
                break
        whole: list[Message] = [{"type": "http.request", "body": bytes(body), "more_body": False}]

        async def replay() -> Message:
            return whole.pop() if whole else await receive()

        await self.app(scope, replay, send)


def make_api(
    engine: Engine,
    version: str = "1",
    switch: Switch | None = None,
    log: RequestLog | None = None,
) -> FastAPI:
    """An API without routes, whose errors are in OpenAI's envelope. Its end closes the engine and
    the log.

    Args:
        version: names the model's version in each answer.
        switch: says which requests another version answers.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        engine.close()
        if log is not None:
            log.close()

    api = FastAPI(
        title="orchestrator", docs_url=None, redoc_url=None, lifespan=lifespan, responses=ERRORS
    )
    api.add_middleware(Split, switch=switch or Switch(), version=version)
    api.add_middleware(LimitBody)

    @api.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        is_json = first["type"] != "json_invalid"  # otherwise `loc` is a position in the body
        param = ".".join(str(part) for part in first["loc"][1:]) or None if is_json else None
        message = str(first["msg"]).removeprefix("Value error, ")
        status = 422 if is_json else 400
        text = f"{param}: {message}" if param else message
        return error_response(status, ErrorDetail(message=text, param=param))

    @api.exception_handler(HTTPException)
    async def refused(_: Request, error: HTTPException) -> Response:
        detail = ErrorDetail(message=str(error.detail))
        return error_response(error.status_code, detail, error.headers)

    @api.exception_handler(UserError)
    async def wrong(_: Request, error: UserError) -> Response:
        return error_response(400, ErrorDetail(message=str(error)))

    @api.exception_handler(RefusedError)
    async def refused_as(_: Request, error: RefusedError) -> Response:
        kind = "invalid_request_error" if error.status < 500 else "server_error"
        detail = ErrorDetail(message=str(error), type=kind, param=error.param, code=error.code)
        return error_response(error.status, detail)

    @api.exception_handler(FullError)
    async def full(_: Request, error: FullError) -> Response:
        detail = ErrorDetail(message=str(error), type="rate_limit_error", code="queue_full")
        seconds = max(math.ceil(error.retry_after), 1)
        return error_response(429, detail, {"Retry-After": str(seconds)})

    @api.exception_handler(StageError)
    async def closing(_: Request, error: StageError) -> Response:
        return error_response(503, ErrorDetail(message=str(error), type="server_error"))

    @api.exception_handler(DeadlineError)
    async def late(_: Request, error: DeadlineError) -> Response:
        detail = ErrorDetail(message=str(error), type="timeout_error", code="deadline")
        return error_response(504, detail)

    @api.exception_handler(Exception)
    async def failed(_: Request, error: Exception) -> Response:
        return error_response(500, ErrorDetail(message=first_line(error), type="server_error"))

    return api


def make_app(
    model_name: str,
    engine: Engine,
    *,
    version: str = "1",
    inputs: tuple[str, ...] = (),
    keys: Keys | Sequence[str] = (),
    switch: Switch | None = None,
    log: RequestLog | None = None,
    behind_proxy: bool = False,
) -> FastAPI:
    """The API of one model: its engine's routes, and those that every model has.

    Args:
        version: names the checkpoint and its settings, in each answer's `x-model-version`.
        inputs: the names of what a request holds.
        keys: the SHA-256 of each API key. If there are any, every route needs one but health
            and the page.
        switch: says which requests another version answers; by default none.
        log: keeps a sample of the requests; the end of the API closes it.
        behind_proxy: whether Ray Serve's proxy is in front, which names each request.
    """
    api = make_api(engine, version, switch, log)
    if log is not None:
        api.add_middleware(LogRequests, log=log)
    api.add_middleware(RequireKey, keys=keys if isinstance(keys, Keys) else Keys(keys))
    api.add_middleware(RelativeRedirects)
    api.add_middleware(RequestId, behind_proxy=behind_proxy)
    engine.add_routes(api)

    card = {
        "id": model_name,
        "object": "model",
        "created": int(time.time()),
        "owned_by": "orchestrator",
    }

    @api.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [card]}

    @api.get("/v1/models/{name}")
    async def model(name: str) -> dict[str, Any]:
        require_model(name, model_name)
        return card

    health.add_routes(api, model_name, version, inputs)

    @api.exception_handler(404)
    async def unknown(request: Request, _: Exception) -> Response:
        served = f"this model {engine.purpose}: POST /v1/{engine.path}"
        return error_response(404, ErrorDetail(message=f"no {request.url.path} here; {served}"))

    return api

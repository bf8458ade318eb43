"""The endpoint's HTTP API: FastAPI in front of a serving engine. It knows no Ray."""

import asyncio
import functools
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from orchestrator.errors import UserError
from orchestrator.serve.engine import Engine
from orchestrator.serve.protocol import ErrorDetail

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


def error_response(
    status: int, detail: ErrorDetail, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    return JSONResponse({"error": detail.model_dump()}, status_code=status, headers=headers)


def make_api() -> FastAPI:
    """An API without routes, whose errors are in OpenAI's envelope."""
    api = FastAPI(title="orchestrator", docs_url=None, redoc_url=None)
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

    return api


def make_app(model_name: str, engine: Engine) -> FastAPI:
    """The API of one model, whose engine answers in a thread of its own."""
    api = make_api()
    created = int(time.time())
    thread = ThreadPoolExecutor(max_workers=1)

    @api.post(f"/v1/{engine.path}")
    @functools.wraps(engine.answer)  # FastAPI reads the types of request and answer from it
    async def answer(request: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(thread, engine.answer, request)

    @api.get("/v1/models")
    async def models() -> dict[str, Any]:
        model = {
            "id": model_name,
            "object": "model",
            "created": created,
            "owned_by": "orchestrator",
        }
        return {"object": "list", "data": [model]}

    @api.get("/healthz")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @api.exception_handler(404)
    async def unknown(request: Request, _: Exception) -> Response:
        served = f"this model {engine.purpose}: POST /v1/{engine.path}"
        return error_response(404, ErrorDetail(message=f"no {request.url.path} here; {served}"))

    return api

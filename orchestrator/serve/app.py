"""The endpoint: FastAPI in front of a deployment of models, on Ray Serve."""

import asyncio
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from ray import serve
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from orchestrator.errors import UserError
from orchestrator.job.job import Job
from orchestrator.serve.completions import Completer
from orchestrator.serve.predictions import Predictor
from orchestrator.serve.protocol import (
    CompletionRequest,
    CompletionResponse,
    ErrorDetail,
    PredictionRequest,
    PredictionResponse,
)
from orchestrator.storage.artifact import PreparedData, Training
from orchestrator.storage.folder import Folder

MAX_BODY_BYTES = 1 << 20


class LimitBody:
    """Refuse bodies over MAX_BODY_BYTES while they come in, before anybody parses them."""

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
                return  # the client has gone
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
    """Routes that do not need the model, and errors in OpenAI's envelope."""
    api = FastAPI(title="orchestrator", docs_url=None, redoc_url=None)
    api.add_middleware(LimitBody)

    @api.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        is_json = first["type"] != "json_invalid"  # else `loc` is a position in the body
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


api = make_api()


@serve.deployment
@serve.ingress(api)
class Endpoint:
    """One replica: a model, and one thread that computes."""

    def __init__(self, job: Job, prepared_uri: str, training_uri: str) -> None:
        torch.set_num_threads(job.cluster.cpus_per_worker)
        prepared = PreparedData.load_required(Folder(prepared_uri))
        training = Training.load_required(Folder(training_uri))
        self.name, self.created = job.name, int(time.time())
        self.completer, self.predictor = None, None
        if job.build_task().serves == "completions":
            self.completer = Completer(job, prepared, training)
        else:
            self.predictor = Predictor(job, prepared, training)
        self.thread = ThreadPoolExecutor(max_workers=1)

    @api.post("/v1/completions")
    async def completions(self, request: CompletionRequest) -> CompletionResponse:
        if self.completer is None:
            raise HTTPException(404, "this model makes predictions: POST /v1/predict")
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self.thread, self.completer.complete, request)

    @api.post("/v1/predict")
    async def predict(self, request: PredictionRequest) -> PredictionResponse:
        if self.predictor is None:
            raise HTTPException(404, "this model completes text: POST /v1/completions")
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self.thread, self.predictor.predict, request)

    @api.get("/v1/models")
    async def models(self) -> dict[str, Any]:
        model = {
            "id": self.name,
            "object": "model",
            "created": self.created,
            "owned_by": "orchestrator",
        }
        return {"object": "list", "data": [model]}

    @api.get("/healthz")
    async def healthz(self) -> dict[str, str]:
        return {"status": "ok"}

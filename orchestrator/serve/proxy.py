"""Ray Serve's own errors in OpenAI's envelope: those of its proxy, which no replica answers.

A proxy calls `middlewares` if the environment of its Ray node names it, before `ray start`:

    export RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=orchestrator.serve.proxy:middlewares

The cluster that a command starts by itself has it set (`cluster/connection.py`).
"""

from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from orchestrator.serve.envelope import error_response
from orchestrator.serve.protocol import ErrorDetail
from orchestrator.serve.request_id import RequestId

# No application there; no answer within the proxy's time; the queue is full; no replica.
STATUSES = (404, 408, 429, 503)
LOST = "the replica that was to answer is gone: ask again"


def middlewares() -> list[Middleware]:
    """The last one sees a request first."""
    return [Middleware(OwnErrors), Middleware(RequestId)]


class OwnErrors:
    """Writes the proxy's own errors anew; the answers of replicas pass as they are."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun, own, text = False, 0, bytearray()
        retry: str | None = None

        async def rewritten(message: Message) -> None:
            nonlocal begun, own, retry
            if message["type"] == "http.response.start":
                begun = True
                headers = Headers(raw=[(name, value) for name, value in message["headers"]])
                if message["status"] in STATUSES and _is_of_proxy(headers):
                    own, retry = message["status"], headers.get("retry-after")
            if not own:
                await send(message)
            elif message["type"] == "http.response.body":
                text.extend(message.get("body", b""))

        await self.app(scope, receive, rewritten)
        if not begun:
            own = 503
            text.extend(LOST.encode())
        if own:
            kind = "invalid_request_error" if own == 404 else "server_error"
            kind = "rate_limit_error" if own == 429 else kind
            code = "queue_full" if own == 429 else None
            detail = ErrorDetail(message=text.decode(errors="replace"), type=kind, code=code)
            wait = {} if own in (404, 408) else {"Retry-After": retry or "1"}
            await error_response(own, detail, wait)(scope, receive, send)


def _is_of_proxy(headers: Headers) -> bool:
    """Whether the proxy wrote these headers. It gives plain text without its length, which web
    frameworks never leave out."""
    return headers.get("content-type", "").startswith("text/plain") and not (
        {"content-length", "transfer-encoding"} & set(headers.keys())
    )

"""Hands requests and their answers to the log, on their way through the application."""

import asyncio
import time

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from orchestrator.serve.access import path_below
from orchestrator.serve.connection import CLIENT_LEFT
from orchestrator.serve.exchange import Exchange
from orchestrator.serve.forwarding import INSIDE
from orchestrator.serve.request_id import HEADER
from orchestrator.serve.request_log import LARGEST, RequestLog
from orchestrator.serve.split import VERSION_HEADER


class LogRequests:
    """Logs a sample of the requests that ask the model: those with a whole body (`POST`)."""

    def __init__(self, app: ASGIApp, log: RequestLog) -> None:
        self.app = app
        self._log = log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_asked = scope["type"] == "http" and scope["method"] == "POST" and INSIDE not in scope
        if not is_asked or not self._log.draws():
            await self.app(scope, receive, send)
            return
        watch = _Watch(receive, send)
        path, began, begin = path_below(scope), time.time(), time.monotonic()
        failure = 0
        try:
            await self.app(scope, watch.receive, watch.send)
        except asyncio.CancelledError:
            failure = CLIENT_LEFT
            raise
        except Exception:  # it becomes an answer further out
            failure = 500
            raise
        finally:
            if watch.is_read:
                exchange = Exchange(
                    id=Headers(scope=scope).get(HEADER, ""),
                    began=began,
                    path=path,
                    version=watch.version,
                    status=watch.status or failure or CLIENT_LEFT,
                    complete=watch.is_sent,
                    seconds=time.monotonic() - begin,
                    request=bytes(watch.request),
                    answer=bytes(watch.answer),
                    is_stream=watch.is_stream,
                )
                self._log.add(exchange)


class _Watch:
    """Looks at the messages of one request, and keeps no more of them than the log takes."""

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive, self._send = receive, send
        self.request, self.answer = bytearray(), bytearray()
        self.status = 0
        self.version = ""
        self.is_read = self.is_sent = self.is_stream = False

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.request" and not self.is_read:
            _extend(self.request, message)
            self.is_read = not message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        await self._send(message)
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = Headers(raw=message.get("headers", []))
            self.version = headers.get(VERSION_HEADER, "")
            self.is_stream = headers.get("content-type", "").startswith("text/event-stream")
        elif message["type"] == "http.response.body":
            _extend(self.answer, message)
            self.is_sent = not message.get("more_body", False)


def _extend(content: bytearray, message: Message) -> None:
    """Add a message's part. What is too large for the log stays so, and grows no more."""
    if len(content) <= 2 * LARGEST:
        content += message.get("body", b"")

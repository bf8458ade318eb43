"""A request that one version of a model hands to another, and the answer as it comes back.

Both are plain values, so that they can cross processes. It knows no Ray.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from typing import Any

from starlette.types import ASGIApp, Message, Scope

INSIDE = "orchestrator.inside"  # in the scope of a request that came by no network: checked already


@dataclass(frozen=True)
class Forwarded:
    """A whole HTTP request."""

    method: str
    path: str  # below the route's prefix
    headers: list[tuple[bytes, bytes]]
    body: bytes
    query: bytes = b""

    def scope(self) -> Scope:
        return {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "scheme": "http",
            "method": self.method,
            "path": self.path,
            "raw_path": self.path.encode(),
            "root_path": "",
            "query_string": self.query,
            "headers": self.headers,
            "client": None,
            "server": None,
            "state": {},
            INSIDE: True,
        }


async def respond(app: ASGIApp, request: Forwarded) -> AsyncGenerator[Message, None]:
    """The ASGI messages of an app's answer. To close the iterator tells the app: its client left.

    Raises: what the app raises.
    """
    messages: asyncio.Queue[Message | None] = asyncio.Queue()
    left = asyncio.Event()
    given = False

    async def receive() -> Message:
        nonlocal given
        if not given:
            given = True
            return {"type": "http.request", "body": request.body, "more_body": False}
        await left.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        messages.put_nowait(dict(message))

    async def run() -> None:
        try:
            await app(request.scope(), receive, send)
        finally:
            messages.put_nowait(None)

    running = asyncio.create_task(run())
    try:
        while (message := await messages.get()) is not None:
            yield message
        await running
    finally:
        left.set()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


@dataclass(frozen=True)
class Answer:
    """A whole answer."""

    status: int
    headers: dict[str, str]
    body: bytes


async def whole(messages: AsyncIterator[Message]) -> Answer:
    """The answer that the messages make up. Raises: what the iterator raises, EOFError if it ends
    before the answer does."""
    start: Any = None
    body = bytearray()
    async for message in messages:
        if message["type"] == "http.response.start":
            start = message
        elif message["type"] == "http.response.body":
            body += message.get("body", b"")
            if not message.get("more_body", False):
                break
    else:
        raise EOFError("the answer ends before its end")
    if start is None:
        raise EOFError("the answer has no beginning")
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in start["headers"]}
    return Answer(start["status"], headers, bytes(body))

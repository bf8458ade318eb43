"""While a new version is tried, it answers a share of the requests: a part of the old version.

The old version hands requests over, and answers itself whatever the new one fails at. So a bad
version costs no client an answer, and there is no further process on a request's way while no
version is tried. It knows no Ray.
"""

import asyncio
import contextlib
import hashlib
import json
import time
import uuid
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from orchestrator.serve.access import path_below
from orchestrator.serve.forwarding import INSIDE, Answer, Forwarded, whole
from orchestrator.serve.samples import Arm, Sample, sketch_of

VERSION_HEADER = "x-model-version"
MOST_SHADOWS = 8  # requests at once that are only copied: more would slow the clients' own
MOST_SAMPLES = 10_000  # that wait for their reader

Ask = Callable[[Forwarded], AsyncGenerator[Message, None]]


@dataclass(frozen=True)
class Trial:
    """A new version that is tried: who asks it, and for which shares of the requests."""

    ask: Ask
    canary: float = 0.0  # answered by the new version
    shadow: float = 0.0  # answered by the old one, and copied to the new one
    patience: float = 60.0  # seconds, after which the old version answers


@dataclass
class Switch:
    """What a replica's `Split` looks at with each request, and where it leaves what it saw."""

    trial: Trial | None = None
    samples: list[Sample] = field(default_factory=list)

    def record(self, sample: Sample) -> None:
        if len(self.samples) < MOST_SAMPLES:
            self.samples.append(sample)

    def taken(self) -> list[Sample]:
        """The samples since the last call."""
        samples, self.samples = self.samples, []
        return samples


class Split:
    """Answers by the app, or by the version that is tried. Bodies must be whole (`LimitBody`)."""

    def __init__(self, app: ASGIApp, switch: Switch, version: str) -> None:
        self.app = app
        self._switch = switch
        self._version = version
        self._shadows: set[asyncio.Task[None]] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        send = self._named(send)
        trial = self._switch.trial
        if trial is None or scope["method"] != "POST" or INSIDE in scope:
            await self.app(scope, receive, send)
            return
        message = await receive()
        body = message.get("body", b"")
        given = [message]

        async def again() -> Message:
            return given.pop() if given else await receive()

        request = Forwarded(
            scope["method"], path_below(scope), list(scope["headers"]), body, scope["query_string"]
        )
        place = _place(Headers(scope=scope), body)
        refused = 0
        if place < trial.canary:
            refused = await self._handed_over(trial, request, send)
            if not refused:
                return
        answer = await self._own(scope, again, send)
        if answer is None:
            return
        if 400 <= refused < 500:  # right, if the old version refuses the request too
            self._switch.record(Sample("new", answer.status < 400, 0.0, f"status {refused}"))
        copied = trial.canary <= place < trial.canary + trial.shadow
        if copied and len(self._shadows) < MOST_SHADOWS:
            task = asyncio.create_task(self._copy(trial, request, answer))
            self._shadows.add(task)
            task.add_done_callback(self._shadows.discard)

    async def _handed_over(self, trial: Trial, request: Forwarded, send: Send) -> int:
        """0 if the new version has answered, else the status with which it would have."""
        begin = time.monotonic()
        started = False
        async with contextlib.aclosing(trial.ask(request)) as messages:
            try:
                async with asyncio.timeout(trial.patience):
                    head = [await anext(messages)]
                    status: int = head[0]["status"]
                    if _is_stream(head[0]):
                        # It fails before its first event, if it fails at all.
                        head.append(await anext(messages))
                    else:
                        head += [message async for message in messages]
                if status >= 500 or not _is_complete(head):
                    raise EOFError
                if status >= 400:
                    return status
                started = True
                body = bytearray()
                for message in head:
                    body += message.get("body", b"")
                    await send(message)
                async for message in messages:
                    body += message.get("body", b"")
                    await send(message)
            except Exception:  # whatever it is: the old version is there
                self._switch.record(Sample("new", True, time.monotonic() - begin))
                if started:
                    raise
                return 500
        kind = Headers(raw=head[0]["headers"]).get("content-type", "")
        self._record("new", status, time.monotonic() - begin, kind, bytes(body))
        return 0

    async def _own(self, scope: Scope, receive: Receive, send: Send) -> Answer | None:
        """Answer by the app. Returns the answer, if it is complete."""
        begin = time.monotonic()
        status, kind, body, ended = 0, "", bytearray(), False

        async def watched(message: Message) -> None:
            nonlocal status, kind, ended
            if message["type"] == "http.response.start":
                status = message["status"]
                kind = Headers(raw=message["headers"]).get("content-type", "")
            elif message["type"] == "http.response.body":
                body.extend(message.get("body", b""))
                ended = not message.get("more_body", False)
            await send(message)

        try:
            await self.app(scope, receive, watched)
        finally:
            if ended:
                self._record("old", status, time.monotonic() - begin, kind, bytes(body))
        return Answer(status, {"content-type": kind}, bytes(body)) if ended else None

    async def _copy(self, trial: Trial, request: Forwarded, own: Answer) -> None:
        begin = time.monotonic()
        try:
            async with asyncio.timeout(trial.patience):
                answer = await whole(trial.ask(request))
        except Exception:
            self._switch.record(Sample("new", True, time.monotonic() - begin))
            return
        seconds = time.monotonic() - begin
        kind = answer.headers.get("content-type", "")
        ours = sketch_of(own.headers["content-type"], own.body)
        agrees = sketch_of(kind, answer.body) == ours and answer.status == own.status
        self._record("new", answer.status, seconds, kind, answer.body, agrees)

    def _record(
        self,
        arm: Arm,
        status: int,
        seconds: float,
        kind: str,
        body: bytes,
        agrees: bool | None = None,
    ) -> None:
        content = sketch_of(kind, body) if status < 500 else ""
        self._switch.record(Sample(arm, status >= 500, seconds, content, agrees))

    def _named(self, send: Send) -> Send:
        """`send`, with the version in the answer's headers, unless the other one is there."""

        async def named(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(raw=list(message.get("headers", [])))
                headers.setdefault(VERSION_HEADER, self._version)
                message = {**message, "headers": headers.raw}
            await send(message)

        return named


def _place(headers: Headers, body: bytes) -> float:
    """Where a request falls between 0 and 1: for a user, or for a request's id, always the same."""
    name = headers.get("x-request-id") or uuid.uuid4().hex
    with contextlib.suppress(ValueError, RecursionError):
        content = json.loads(body)
        if isinstance(content, dict) and isinstance(content.get("user"), str):
            name = content["user"]
    digest = hashlib.sha256(name.encode(errors="surrogatepass")).digest()
    return int.from_bytes(digest[:8]) / 2**64


def _is_stream(start: Message) -> bool:
    kind = Headers(raw=start.get("headers", [])).get("content-type", "")
    return kind.startswith("text/event-stream")


def _is_complete(messages: list[Message]) -> bool:
    """Whether these messages are a whole answer, or the begin of a stream."""
    return len(messages) > 1 and (
        _is_stream(messages[0]) or not messages[-1].get("more_body", False)
    )

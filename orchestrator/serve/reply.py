"""Answers a request for text: whole, or as a stream of server-sent events while it is generated."""

import json
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from fastapi import Request
from fastapi.responses import Response, StreamingResponse
from pydantic import BaseModel
from starlette.types import Receive, Scope, Send

from orchestrator.errors import OrchestratorError
from orchestrator.serve.choices import Part
from orchestrator.serve.connection import unless_client_leaves
from orchestrator.serve.protocol import CachedTokens, ErrorDetail, Usage
from orchestrator.serve.sequences import Sequences
from orchestrator.serve.text_model import Generation

# What the description of a route says of a stream, beside the whole answer.
STREAMS: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {}}}}


class Reply(ABC):
    """One request's choices, and how an API writes them."""

    def __init__(self, generation: Generation) -> None:
        self.choices = generation.choices
        self.prompt_tokens = generation.prompt_tokens

    @abstractmethod
    def whole(self, parts: list[Part]) -> BaseModel:
        """The answer, from all that each choice consists of."""

    @abstractmethod
    def opening(self) -> Sequence[BaseModel]:
        """The chunks of a stream before anything is generated."""

    @abstractmethod
    def chunk(self, index: int, part: Part) -> BaseModel:
        """The chunk that adds a part to a choice."""

    @abstractmethod
    def usage_chunk(self, usage: Usage) -> BaseModel:
        """The last chunk, which has no choice."""

    def usage(self) -> Usage:
        """What has been read and generated for all choices."""
        generated = sum(choice.completion_tokens for choice in self.choices)
        cached = sum(choice.cached_tokens for choice in self.choices)
        return Usage(
            prompt_tokens=self.prompt_tokens,
            completion_tokens=generated,
            total_tokens=self.prompt_tokens + generated,
            prompt_tokens_details=CachedTokens(cached_tokens=min(cached, self.prompt_tokens)),
        )


async def answer(request: Request, sequences: Sequences, reply: Reply) -> Response:
    """The whole answer. A client that leaves cancels its sequences.

    Raises:
        RefusedError: if the model failed.
    """

    async def collect() -> list[Part]:
        parts = [Part()] * len(reply.choices)
        async for index, part in _parts(sequences, reply):
            parts[index] += part
        return parts

    try:
        parts = await unless_client_leaves(request, collect())
    finally:
        sequences.close()
    return Response(reply.whole(parts).model_dump_json(), media_type="application/json")


def stream(sequences: Sequences, reply: Reply, include_usage: bool) -> Response:
    """The answer as it is generated. A client that leaves cancels its sequences."""
    return EventStream(_events(sequences, reply, include_usage), sequences.close)


class EventStream(StreamingResponse):
    """Server-sent events. `close` is called when the last one is sent, or the client has left."""

    def __init__(self, events: AsyncIterator[bytes], close: Callable[[], None]) -> None:
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(events, media_type="text/event-stream", headers=headers)
        self._close = close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._close()


async def _parts(sequences: Sequences, reply: Reply) -> AsyncIterator[tuple[int, Part]]:
    async for index, piece in sequences.pieces():
        part = reply.choices[index].write(piece)
        if part.finish_reason is not None:
            sequences.stop(index)  # a stop text ends it before the engine does
        if part != Part():
            yield index, part


async def _events(sequences: Sequences, reply: Reply, include_usage: bool) -> AsyncIterator[bytes]:
    try:
        for chunk in reply.opening():
            yield _event(_content(chunk, include_usage))
        async for index, part in _parts(sequences, reply):
            yield _event(_content(reply.chunk(index, part), include_usage))
        if include_usage:
            yield _event(reply.usage_chunk(reply.usage()).model_dump())
    except OrchestratorError as error:  # after the status: the client reads it from the stream
        yield _event({"error": ErrorDetail(message=str(error), type="server_error").model_dump()})
    yield b"data: [DONE]\n\n"


def _content(chunk: BaseModel, include_usage: bool) -> Any:
    """A chunk's content, whose usage is null if the last chunk has it, and else not there."""
    return chunk.model_dump(exclude=None if include_usage else {"usage"})


def _event(content: Any) -> bytes:
    return f"data: {json.dumps(content)}\n\n".encode()

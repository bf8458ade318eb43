"""What the peers' endpoints share: `POST /v1/completions` for the token ids of one prompt."""

import asyncio
import socket
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from tokenizers import Tokenizer

from benchmarks.served_model import EXPORT

READY = "listens on port "
PAUSE = 0.01


class Body(BaseModel):
    prompt: list[int]
    max_tokens: int
    temperature: float = 0.0


class Generator(ABC):
    """Continues prompts greedily."""

    @abstractmethod
    async def generate(self, prompt: list[int], max_tokens: int) -> list[int]:
        """The new tokens."""


@dataclass
class Waiting:
    """A request that waits for a batch."""

    prompt: list[int]
    max_tokens: int
    answer: "asyncio.Future[list[int]]" = field(default_factory=asyncio.Future)


Reply = Callable[[Waiting, list[int]], None]


class Batching(Generator):
    """Computes what waits as one batch, up to `most` requests; what arrives meanwhile waits.

    When a batch is answered, its clients ask again one after the other: the next batch waits for as
    many, until none has come for PAUSE seconds.
    """

    def __init__(self, most: int, compute: Callable[[list[Waiting], Reply], None]) -> None:
        """
        Args:
            compute: answers each request of a batch by calling the function that it gets.
        """
        self._most = most
        self._compute = compute
        self._usual = 1
        self._queue: asyncio.Queue[Waiting] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None

    async def generate(self, prompt: list[int], max_tokens: int) -> list[int]:
        if self._task is None:
            self._task = asyncio.create_task(self._run())
        waiting = Waiting(prompt, max_tokens)
        self._queue.put_nowait(waiting)
        return await waiting.answer

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()

        def reply(waiting: Waiting, tokens: list[int]) -> None:
            loop.call_soon_threadsafe(waiting.answer.set_result, tokens)

        while True:
            batch = await self._gather()
            try:
                await asyncio.to_thread(self._compute, batch, reply)
            except Exception as error:
                for waiting in batch:
                    if not waiting.answer.done():
                        waiting.answer.set_exception(error)

    async def _gather(self) -> list[Waiting]:
        batch = [await self._queue.get()]
        while len(batch) < self._most and not (self._queue.empty() and len(batch) >= self._usual):
            try:
                batch.append(await asyncio.wait_for(self._queue.get(), PAUSE))
            except TimeoutError:
                break
        self._usual = len(batch)
        return batch


def peer_app(folder: Path, generator: Generator) -> FastAPI:
    """The endpoint of a peer."""
    tokenizer = Tokenizer.from_file(str(folder / EXPORT / "tokenizer.json"))
    app = FastAPI()

    @app.post("/v1/completions")
    async def completions(body: Body) -> dict[str, Any]:
        tokens = await generator.generate(body.prompt, body.max_tokens)
        return {
            "choices": [{"text": tokenizer.decode(tokens)}],
            "usage": {"completion_tokens": len(tokens)},
        }

    return app


def listen(app: FastAPI) -> None:
    """Serve on a free port of this machine, whose number is printed."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(256)  # connections wait here until the server accepts them
        print(f"{READY}{listener.getsockname()[1]}", flush=True)
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False))
        server.run(sockets=[listener])


def folder_argument() -> Path:
    return Path(sys.argv[1])

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


class Batching(Generator):
    """Computes what waits as one batch, up to `most` requests; what arrives meanwhile waits.

    `compute` gets a batch and a function that answers one of its requests, in a thread.
    """

    def __init__(
        self, most: int, compute: Callable[[list[Waiting], Callable[..., None]], None]
    ) -> None:
        self._most = most
        self._compute = compute
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
            batch = [await self._queue.get()]
            await asyncio.sleep(0.002)  # clients that ask at once are in one batch
            while len(batch) < self._most and not self._queue.empty():
                batch.append(self._queue.get_nowait())
            try:
                await asyncio.to_thread(self._compute, batch, reply)
            except Exception as error:
                for waiting in batch:
                    if not waiting.answer.done():
                        waiting.answer.set_exception(error)


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

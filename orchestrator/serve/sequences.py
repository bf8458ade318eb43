"""The sequences that one client's request generates, from the engine's thread to the event loop."""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import ClassVar
from weakref import WeakKeyDictionary

from orchestrator.infer.generation import (
    Ending,
    FullError,
    Generated,
    GenerationRequest,
    Generator,
    Handle,
)
from orchestrator.serve.protocol import RefusedError

FAILURES: dict[Ending | None, tuple[int, str]] = {
    "error": (500, "the model failed"),
    "deadline": (504, "the request took longer than it may"),
    "cancelled": (503, "the endpoint is being closed"),
}
PATIENCE = 1.0  # seconds after which a place is looked for again, at the latest


class Arrivals:
    """What the engine's thread has for an event loop: a step wakes the loop once, not once for each
    of its sequences."""

    by_loop: ClassVar[WeakKeyDictionary[asyncio.AbstractEventLoop, "Arrivals"]] = (
        WeakKeyDictionary()
    )

    def __init__(self) -> None:
        self._calls: deque[Callable[[], None]] = deque()
        self._will_wake = False

    def put(self, call: Callable[[], None], loop: asyncio.AbstractEventLoop) -> None:
        """Have the loop make a call. Any thread may call this."""
        self._calls.append(call)
        if not self._will_wake:
            self._will_wake = True
            with contextlib.suppress(RuntimeError):  # the loop has ended, and nobody listens
                loop.call_soon_threadsafe(self._make_calls)

    def _make_calls(self) -> None:
        self._will_wake = False  # first: what is put from now on is either seen here or wakes
        while self._calls:
            self._calls.popleft()()


class Sequences:
    """Submits a request's sequences, and collects what the engine adds to each.

    A request whose first sequence has found a place is not refused later: the others wait until
    there is one for them, too.
    """

    def __init__(
        self,
        generator: Generator,
        requests: Sequence[GenerationRequest],
        only_whole: bool = False,
    ) -> None:
        """Submit as many as there is room for; call it on the event loop.

        Args:
            only_whole: what is added to a sequence is one piece, which comes when it has ended.

        Raises:
            UserError: if one does not fit the model's context.
            FullError: if there is room for none.
        """
        self._generator = generator
        self._loop = asyncio.get_running_loop()
        self._arrivals = Arrivals.by_loop.setdefault(self._loop, Arrivals())
        self._arrived: asyncio.Queue[tuple[int, Generated]] = asyncio.Queue()
        self._held: dict[int, list[Generated]] | None = {} if only_whole else None
        self._waiting = deque(enumerate(requests))
        self._running: dict[int, Handle] = {}
        self._submit()

    async def pieces(self) -> AsyncIterator[tuple[int, Generated]]:
        """What is added, with the number of its sequence, until all have ended.

        Raises:
            RefusedError: if a sequence ends otherwise than by its tokens, or `max_tokens`.
        """
        while self._waiting or self._running:
            if not self._running:
                await self._find_place()
            index, piece = await self._arrived.get()
            if index not in self._running:
                continue  # it has been stopped
            if piece.ending in FAILURES:
                status, reason = FAILURES[piece.ending]
                raise RefusedError(f"{reason}: {piece.error}" if piece.error else reason, status)
            if piece.ending is not None:
                del self._running[index]
                self._submit_more()
            yield index, piece

    def stop(self, index: int) -> None:
        """Generate no more for a sequence whose text has ended; nothing more of it is collected."""
        handle = self._running.pop(index, None)
        if handle is not None:
            handle.cancel("stop")
            self._submit_more()

    def close(self) -> None:
        """Generate no more for any."""
        self._waiting.clear()
        for handle in self._running.values():
            handle.cancel()
        self._running.clear()

    def _submit(self) -> None:
        while self._waiting:
            index, request = self._waiting[0]
            try:
                handle = self._generator.submit(request, partial(self._listen, index))
            except FullError:
                if self._running:
                    return
                raise
            except Exception:
                self.close()
                raise
            self._waiting.popleft()
            self._running[index] = handle

    def _submit_more(self) -> None:
        with contextlib.suppress(FullError):  # `pieces` tries again
            self._submit()

    async def _find_place(self) -> None:
        """Others have taken the places of this request's sequences: wait for one."""
        while not self._running:
            try:
                self._submit()
            except FullError as error:
                await asyncio.sleep(min(error.retry_after, PATIENCE))

    def _listen(self, index: int, piece: Generated) -> None:
        """Called by the engine's thread."""
        if self._held is not None:
            pieces = self._held.setdefault(index, [])
            pieces.append(piece)
            if piece.ending is None:
                return
            piece = joined(self._held.pop(index))
        self._arrivals.put(partial(self._arrived.put_nowait, (index, piece)), self._loop)


def joined(pieces: Sequence[Generated]) -> Generated:
    """All pieces of a sequence as one."""
    return replace(
        pieces[0],  # it alone has the prompt, and what is told once
        tokens=tuple(token for piece in pieces for token in piece.tokens),
        ending=pieces[-1].ending,
        error=pieces[-1].error,
    )

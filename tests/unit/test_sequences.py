"""One client's sequences: submitted as there is room, and cancelled when the client leaves."""

import asyncio
import hashlib
import threading
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from orchestrator.errors import UserError
from orchestrator.infer.generation import (
    Ending,
    FullError,
    Generated,
    GenerationRequest,
    Listener,
    Token,
)
from orchestrator.model.generate import GREEDY
from orchestrator.serve.app import make_app
from orchestrator.serve.protocol import RefusedError
from orchestrator.serve.sequences import Sequences
from tests.unit.served import JOB, PLAIN, listening, tiny_engine

NAN = float("nan")


@dataclass
class Slot:
    request: GenerationRequest
    listener: Listener
    cancelled: str = ""

    def cancel(self, ending: Ending = "cancelled") -> None:
        self.cancelled = ending

    def end(self, ending: Any = "stop", error: str = "") -> None:
        self.listener(Generated(tokens=(Token(5, NAN),), ending=ending, error=error))


@dataclass
class Room:
    """A generator with a number of places, whose sequences end when a test says so."""

    places: int
    slots: list[Slot] = field(default_factory=list)
    submitted: Callable[[Slot], None] = lambda slot: None

    def submit(self, request: GenerationRequest, listener: Listener) -> Slot:
        if request.prompt == [666]:
            raise UserError("does not fit")
        if len(self.slots) >= self.places:
            raise FullError("full", 0.01)
        self.slots.append(Slot(request, listener))
        self.submitted(self.slots[-1])
        return self.slots[-1]

    def close(self) -> None:
        for slot in self.slots:
            slot.end("cancelled")


def asked(number: int) -> GenerationRequest:
    return GenerationRequest([number], 1, None, GREEDY)


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 20))


def test_a_request_without_a_place_is_refused_at_once() -> None:
    async def work() -> None:
        with pytest.raises(FullError):
            Sequences(Room(0), [asked(1)])

    run(work())


def test_later_sequences_wait_for_a_place_instead_of_being_refused() -> None:
    room = Room(2)

    async def work() -> None:
        sequences = Sequences(room, [asked(number) for number in range(5)])
        assert [slot.request.prompt for slot in room.slots] == [[0], [1]]
        room.slots[1].end()
        found = []
        async for index, piece in sequences.pieces():
            found.append(index)
            assert piece.ending == "stop"
            del room.slots[index == 1 and len(room.slots) > 1]
            sequences._submit_more()
            if room.slots:
                room.slots[0].end()
        assert sorted(found) == [0, 1, 2, 3, 4]

    run(work())


def test_places_that_others_took_are_waited_for() -> None:
    room = Room(1)

    async def work() -> None:
        sequences = Sequences(room, [asked(0), asked(1)])
        pieces = sequences.pieces()
        room.slots[0].end()
        assert (await anext(pieces))[0] == 0  # the slot still counts, as if another had taken it
        room.submitted = lambda slot: slot.end()
        threading.Timer(0.05, room.slots.clear).start()
        assert (await anext(pieces))[0] == 1

    run(work())


def test_one_that_does_not_fit_cancels_the_others() -> None:
    room = Room(9)

    async def work() -> None:
        with pytest.raises(UserError, match="does not fit"):
            Sequences(room, [asked(1), asked(666)])
        assert [slot.cancelled for slot in room.slots] == ["cancelled"]

    run(work())


def test_a_stopped_sequence_is_cancelled_and_not_waited_for() -> None:
    room = Room(9)

    async def work() -> None:
        sequences = Sequences(room, [asked(0), asked(1)])
        sequences.stop(0)
        room.slots[0].end("cancelled")
        room.slots[1].end()
        assert [index async for index, _ in sequences.pieces()] == [1]
        assert [slot.cancelled for slot in room.slots] == ["stop", ""]

    run(work())


@pytest.mark.parametrize(
    ("ending", "status"), [("error", 500), ("deadline", 504), ("cancelled", 503)]
)
def test_an_ending_that_is_none_of_the_models_is_an_error(ending: str, status: int) -> None:
    room = Room(1)

    async def work() -> None:
        sequences = Sequences(room, [asked(0)])
        room.slots[0].end(ending, "why")
        with pytest.raises(RefusedError, match="why") as caught:
            async for _ in sequences.pieces():
                pass
        assert caught.value.status == status

    run(work())


def test_pieces_for_a_loop_that_has_ended_are_dropped() -> None:
    room = Room(1)

    async def work() -> None:
        Sequences(room, [asked(0)])

    run(work())
    room.slots[0].end()  # in the engine's thread it would end the engine


# Over HTTP


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("begun", [False, True])
def test_a_client_that_leaves_frees_its_places(stream: bool, begun: bool) -> None:
    room = Room(9)
    body = {"prompt": ["a", "b"], "n": 2, "stream": stream, "max_tokens": 5}
    with listening(make_app(JOB.name, tiny_engine(PLAIN, room))) as url:

        async def ask_and_leave() -> None:
            async with httpx.AsyncClient(base_url=url) as client:
                asking = asyncio.create_task(client.post("/v1/completions", json=body))
                while len(room.slots) < 4:
                    await asyncio.sleep(0.01)
                if begun:
                    for slot in room.slots:
                        slot.listener(Generated(tokens=(Token(70, NAN),)))
                    await asyncio.sleep(0.1)
                asking.cancel()

        asyncio.run(ask_and_leave())
        wait_until(lambda: all(slot.cancelled == "cancelled" for slot in room.slots))


def test_a_full_engine_is_429_before_a_stream_begins() -> None:
    with listening(make_app(JOB.name, tiny_engine(PLAIN, Room(0)))) as url:
        for stream in (False, True):
            body = {"prompt": "a", "stream": stream}
            answer = httpx.post(f"{url}/v1/completions", json=body)
            assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")
            assert answer.json()["error"]["type"] == "rate_limit_error"


@pytest.mark.parametrize(
    ("keys", "user", "expected"),
    [
        ([], None, "127.0.0.1"),
        ([], "me", "me"),
        (["key"], "me", "Bearer key"),
    ],
)
def test_requests_wait_in_the_name_of_their_client(
    keys: list[str], user: str | None, expected: str
) -> None:
    room = Room(1, submitted=lambda slot: slot.end())
    digests = [hashlib.sha256(key.encode()).hexdigest() for key in keys]
    with listening(make_app(JOB.name, tiny_engine(PLAIN, room), keys=digests)) as url:
        headers = {"Authorization": "Bearer key"}
        body = {"prompt": "a", "user": user}
        answer = httpx.post(f"{url}/v1/completions", json=body, headers=headers)
    assert answer.status_code == 200
    assert room.slots[0].request.client == expected


def test_an_engine_that_closes_is_503() -> None:
    engine = tiny_engine()
    with listening(make_app(JOB.name, engine)) as url:
        engine.close()
        answer = httpx.post(f"{url}/v1/completions", json={"prompt": "a"})
    assert answer.status_code == 503 and answer.json()["error"]["type"] == "server_error"


@pytest.mark.parametrize("stream", [False, True])
def test_a_fault_of_the_model_reaches_the_client(stream: bool) -> None:
    room = Room(9, submitted=lambda slot: slot.end("error", "out of memory"))
    with listening(make_app(JOB.name, tiny_engine(PLAIN, room))) as url:
        answer = httpx.post(f"{url}/v1/completions", json={"prompt": "a", "stream": stream})
    assert answer.status_code == (200 if stream else 500)
    assert "out of memory" in answer.text and "server_error" in answer.text


def test_a_whole_answer_comes_as_one_piece() -> None:
    async def work() -> None:
        room = Room(2)
        sequences = Sequences(room, [asked(0), asked(1)], only_whole=True)
        first, second = (slot.listener for slot in room.slots)
        first(Generated((Token(1, NAN),), (Token(5, -1.0),), cached_tokens=3, waited=0.5))
        second(Generated(tokens=(Token(8, -1.0),)))
        first(Generated(tokens=(Token(6, -2.0),)))
        first(Generated(tokens=(Token(7, -3.0),), ending="length"))
        second(Generated(ending="stop"))
        found = {index: piece async for index, piece in sequences.pieces()}
        assert [token.id for token in found[0].tokens] == [5, 6, 7]
        assert (found[0].ending, found[0].cached_tokens, found[0].waited) == ("length", 3, 0.5)
        assert len(found[0].prompt) == 1
        assert ([token.id for token in found[1].tokens], found[1].ending) == ([8], "stop")

    run(work())


def test_what_a_step_adds_wakes_the_loop_once() -> None:
    async def work() -> None:
        loop = asyncio.get_running_loop()
        wakes = []
        wake = loop.call_soon_threadsafe
        loop.call_soon_threadsafe = lambda *args: wakes.append(args) or wake(*args)  # type: ignore
        room = Room(8)
        both = [Sequences(room, [asked(n) for n in range(4)]) for _ in range(2)]
        for _ in range(3):
            before = len(wakes)
            for slot in room.slots:
                slot.listener(Generated(tokens=(Token(5, NAN),)))
            assert len(wakes) == before + 1, "of all requests' sequences together"
            for sequences in both:
                pieces = sequences.pieces()
                assert [(await anext(pieces))[0] for _ in range(4)] == [0, 1, 2, 3]

    run(work())

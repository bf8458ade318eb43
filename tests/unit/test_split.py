"""A version that is tried answers a share of the requests, and no client notices a bad one."""

import asyncio
import json
from collections.abc import AsyncGenerator, Callable
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request
from fastapi.responses import Response, StreamingResponse
from starlette.types import Message

from orchestrator.serve.app import LimitBody
from orchestrator.serve.forwarding import Forwarded, respond
from orchestrator.serve.split import VERSION_HEADER, Ask, Split, Switch, Trial

pytestmark = pytest.mark.anyio
Route = Callable[[Request], Any]


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


def version(name: str, answer: Route, switch: Switch | None = None) -> FastAPI:
    """An endpoint of one route."""
    api = FastAPI()
    api.add_middleware(Split, switch=switch or Switch(), version=name)
    api.add_middleware(LimitBody)
    api.post("/v1/completions")(answer)
    return api


def replying(text: str, status: int = 200) -> Route:
    async def answer(request: Request) -> Response:
        content = {"choices": [{"finish_reason": text}], "usage": {"completion_tokens": 5}}
        body = await request.body()
        content["got"] = len(body)  # type: ignore[assignment]
        return Response(json.dumps(content), status, media_type="application/json")

    return answer


def asking(api: FastAPI) -> Ask:
    def ask(request: Forwarded) -> AsyncGenerator[Message, None]:
        return respond(api, request)

    return ask


async def post(api: FastAPI, count: int = 1, **body: Any) -> list[httpx.Response]:
    transport = httpx.ASGITransport(api, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
        sent = [client.post("/v1/completions", json=body or {"prompt": "a"}) for _ in range(count)]
        return list(await asyncio.gather(*sent))


def versions(answers: list[httpx.Response]) -> list[str]:
    return [answer.headers[VERSION_HEADER] for answer in answers]


def tried(new: Route, canary: float = 1.0, **options: Any) -> tuple[FastAPI, Switch]:
    switch = Switch()
    old = version("old", replying("length"), switch)
    switch.trial = Trial(asking(version("new", new)), canary, **options)
    return old, switch


async def test_without_a_trial_the_served_version_answers() -> None:
    switch = Switch()
    answers = await post(version("old", replying("stop"), switch), 3)
    assert versions(answers) == ["old"] * 3 and switch.taken() == []


async def test_the_new_version_gets_the_whole_request() -> None:
    api, switch = tried(replying("stop"))
    [answer] = await post(api, prompt="a" * 1000)
    assert answer.headers[VERSION_HEADER] == "new"
    assert answer.json()["choices"][0]["finish_reason"] == "stop" and answer.json()["got"] > 1000
    [sample] = switch.taken()
    assert (sample.arm, sample.failed, sample.sketch) == ("new", False, "stop 2^2 tokens")


async def test_a_share_of_the_requests_goes_to_the_new_version() -> None:
    api, switch = tried(replying("stop"), canary=0.25)
    answered = versions(await post(api, 400))
    assert 60 <= answered.count("new") <= 140
    assert sum(s.arm == "new" for s in switch.samples) == answered.count("new")
    assert len(switch.samples) == 400


async def test_a_user_stays_with_one_version() -> None:
    api, _ = tried(replying("stop"), canary=0.5)
    answered = {str(n): set(versions(await post(api, 5, user=str(n)))) for n in range(20)}
    assert all(len(seen) == 1 for seen in answered.values())
    assert {name for seen in answered.values() for name in seen} == {"old", "new"}


async def broken(_: Request) -> Response:
    raise RuntimeError("no such weights")


async def dying(_: Request) -> Response:
    async def body() -> AsyncGenerator[bytes, None]:
        yield b'{"half":'
        raise RuntimeError("killed")

    return StreamingResponse(body(), media_type="application/json")


async def hanging(_: Request) -> Response:
    await asyncio.sleep(60)
    return Response()


@pytest.mark.parametrize("new", [broken, dying, hanging, replying("error", 503)])
async def test_what_the_new_version_fails_at_the_old_one_answers(new: Route) -> None:
    api, switch = tried(new, patience=0.5)
    answers = await post(api, 4)
    assert [answer.status_code for answer in answers] == [200] * 4
    assert versions(answers) == ["old"] * 4
    samples = switch.taken()
    assert sum(s.failed and s.arm == "new" for s in samples) == 4
    assert sum(not s.failed and s.arm == "old" for s in samples) == 4


async def test_a_version_that_cannot_be_reached_costs_no_answer() -> None:
    api, switch = tried(replying("stop"))

    async def ask(_: Forwarded) -> AsyncGenerator[Message, None]:
        raise ConnectionError("the replica was killed")
        yield {}

    switch.trial = Trial(ask, 1.0)
    assert versions(await post(api, 2)) == ["old", "old"]
    assert sum(s.failed for s in switch.taken()) == 2


@pytest.mark.parametrize(("own", "failed"), [(200, True), (422, False)])
async def test_a_refusal_is_a_failure_if_the_old_version_answers(own: int, failed: bool) -> None:
    switch = Switch()
    api = version("old", replying("x", own), switch)
    switch.trial = Trial(asking(version("new", replying("y", 422))), 1.0)
    [answer] = await post(api)
    assert answer.status_code == own and versions([answer]) == ["old"]
    assert [s.failed for s in switch.taken() if s.arm == "new"] == [failed]


async def test_a_stream_of_the_new_version_is_passed_on_as_it_comes() -> None:
    sent: list[float] = []

    async def events() -> AsyncGenerator[bytes, None]:
        for _ in range(3):
            sent.append(asyncio.get_running_loop().time())
            yield b"data: a\n\n"
            await asyncio.sleep(0.1)

    async def streaming(_: Request) -> Response:
        return StreamingResponse(events(), media_type="text/event-stream")

    api, switch = tried(streaming)
    messages: list[float] = []

    async def send(message: Message) -> None:
        if message.get("body"):
            messages.append(asyncio.get_running_loop().time())

    whole = [{"type": "http.request", "body": b"{}", "more_body": False}]

    async def receive() -> Message:
        return whole.pop() if whole else {"type": "http.disconnect"}

    scope = Forwarded("POST", "/v1/completions", [], b"{}").scope()
    del scope["orchestrator.inside"]
    await api(scope, receive, send)
    assert len(messages) == 3
    for came, left in zip(messages, sent, strict=True):
        assert came - left < 0.08  # each before the next one is made
    assert [s.sketch for s in switch.taken()] == ["text/event-stream 2^4 bytes"]


async def test_a_client_that_leaves_ends_the_new_versions_work() -> None:
    ended = asyncio.Event()

    async def endless(_: Request) -> Response:
        async def events() -> AsyncGenerator[bytes, None]:
            try:
                while True:
                    yield b"data: a\n\n"
                    await asyncio.sleep(0.01)
            finally:
                ended.set()

        return StreamingResponse(events(), media_type="text/event-stream")

    messages = respond(version("new", endless), Forwarded("POST", "/v1/completions", [], b"{}"))
    await anext(messages)
    await anext(messages)
    await messages.aclose()
    await asyncio.wait_for(ended.wait(), 2)


async def test_shadows_are_copies_and_change_no_answer() -> None:
    api, switch = tried(replying("stop"), canary=0.0, shadow=1.0)
    assert versions(await post(api, 3)) == ["old"] * 3
    await asyncio.sleep(0.2)
    samples = switch.taken()
    assert [s.agrees for s in samples if s.arm == "new"] == [False] * 3  # "stop", not "length"
    api, switch = tried(broken, canary=0.0, shadow=1.0)
    assert [answer.status_code for answer in await post(api, 3)] == [200] * 3
    await asyncio.sleep(0.2)
    assert sum(s.failed for s in switch.taken()) == 3


async def test_a_forwarded_request_is_not_handed_on() -> None:
    """The new version may be the old one of a trial that is over."""
    api, _ = tried(replying("stop"))
    messages = [m async for m in respond(api, Forwarded("POST", "/v1/completions", [], b"{}"))]
    assert (VERSION_HEADER.encode(), b"old") in messages[0]["headers"]

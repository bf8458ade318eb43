"""Clients that ask an endpoint for completions: as many as there are at once, or at random times.

What is asked depends on the seed alone, so all sides of a round get the same requests.
"""

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import pairwise

import httpx
import numpy as np

PROMPT_TOKENS = (16, 256)  # from, to
NEW_TOKENS = (16, 64)
WARM = 1.0  # seconds before a measurement begins
PERCENTILES = (50, 95, 99)


@dataclass(frozen=True)
class Ask:
    """A request."""

    prompt: list[int]
    max_tokens: int


@dataclass(frozen=True)
class Answer:
    """An answered request: when it was sent, when each piece of text came, and when it ended."""

    sent: float
    ended: float
    tokens: int
    text: str
    pieces: list[float] = field(default_factory=list)  # of a stream

    @property
    def latency(self) -> float:
        return self.ended - self.sent


@dataclass(frozen=True)
class Load:
    """What was measured under one load, in seconds."""

    tokens_a_second: float
    requests_a_second: float
    latency: list[float]  # at PERCENTILES
    answers: int
    first_token: list[float] = field(default_factory=list)  # at PERCENTILES; of streams
    gaps: list[float] = field(default_factory=list)  # between tokens, at PERCENTILES; of streams

    @property
    def p95(self) -> float:
        return self.latency[PERCENTILES.index(95)]


def asks(seed: int, vocabulary: int) -> Iterator[Ask]:
    """Endless requests. Their tokens are random, so no prompt begins like another."""
    draw = random.Random(seed)
    while True:
        length = draw.randint(*PROMPT_TOKENS)
        prompt = [draw.randrange(1, vocabulary) for _ in range(length)]
        yield Ask(prompt, draw.randint(*NEW_TOKENS))


async def closed_loop(url: str, clients: int, seconds: float, requests: Iterator[Ask]) -> Load:
    """Each client has one request at a time, and sends the next when it is answered."""
    answers: list[Answer] = []
    begin = time.monotonic() + WARM
    end = begin + seconds

    async def client(http: httpx.AsyncClient) -> None:
        while time.monotonic() < end:
            answers.append(await ask(http, next(requests)))

    async with connected(url) as http:
        await asyncio.gather(*(client(http) for _ in range(clients)))
    return summary(answers, begin, end)


async def poisson(
    url: str, rate: float, seconds: float, requests: Iterator[Ask], seed: int, streams: bool = False
) -> Load:
    """Requests arrive at random times, `rate` a second, whether earlier ones are answered or not.

    The latency counts from the arrival.
    """
    draw = random.Random(seed)
    begin = time.monotonic() + WARM
    end = begin + seconds
    tasks: list[asyncio.Task[Answer]] = []
    async with connected(url) as http:
        arrival = time.monotonic()
        while (arrival := arrival + draw.expovariate(rate)) < end:
            await asyncio.sleep(arrival - time.monotonic())
            work = ask(http, next(requests), streams, arrival)
            tasks.append(asyncio.create_task(work))
        answers = await asyncio.gather(*tasks)
    return summary(answers, begin, end)


async def texts(url: str, requests: Sequence[Ask]) -> list[str]:
    """The answers to requests, sent all at once."""
    async with connected(url) as http:
        return [a.text for a in await asyncio.gather(*(ask(http, each) for each in requests))]


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[httpx.AsyncClient]:
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=300.0, limits=limits) as http:
        yield http


async def ask(
    http: httpx.AsyncClient, request: Ask, streams: bool = False, sent: float | None = None
) -> Answer:
    """Send one request, and wait for all of its answer.

    Args:
        sent: when the request counts as sent; None: now.

    Raises:
        RuntimeError: if the endpoint refuses it, or gives fewer tokens than asked for.
    """
    sent = time.monotonic() if sent is None else sent
    body = {"prompt": request.prompt, "max_tokens": request.max_tokens, "temperature": 0.0}
    if streams:
        answer = await _stream(http, body, sent)
    else:
        response = await http.post("/v1/completions", json=body)
        if response.status_code != 200:
            raise RuntimeError(f"status {response.status_code}: {response.text[:500]}")
        content = response.json()
        tokens, text = content["usage"]["completion_tokens"], content["choices"][0]["text"]
        answer = Answer(sent, time.monotonic(), tokens, text)
    if answer.tokens != request.max_tokens:
        raise RuntimeError(f"{answer.tokens} tokens came, not {request.max_tokens}")
    return answer


async def _stream(http: httpx.AsyncClient, body: dict[str, object], sent: float) -> Answer:
    options = {"stream": True, "stream_options": {"include_usage": True}}
    pieces, text, tokens = [], "", 0
    async with http.stream("POST", "/v1/completions", json={**body, **options}) as response:
        if response.status_code != 200:
            raise RuntimeError(f"status {response.status_code}: {await response.aread()!r}")
        async for line in response.aiter_lines():
            if not line.startswith("data: {"):
                continue
            content = json.loads(line.removeprefix("data: "))
            if content.get("usage"):
                tokens = content["usage"]["completion_tokens"]
            elif content["choices"][0]["text"]:
                pieces.append(time.monotonic())
                text += content["choices"][0]["text"]
    return Answer(sent, time.monotonic(), tokens, text, pieces)


def summary(answers: Sequence[Answer], begin: float, end: float) -> Load:
    """The figures between two times.

    Of a request that is only partly in them, the part of its time that is counts, so that a batch
    that ends shortly after `end` is neither lost nor counted whole. Latencies are those of all
    requests that were sent before `end`, as all of these are waited for.
    """
    shares = [
        max(min(a.ended, end) - max(a.sent, begin), 0) / max(a.latency, 1e-9) for a in answers
    ]
    within = [a for a in answers if a.ended > begin]
    gaps = [after - before for a in within for before, after in pairwise(a.pieces)]
    first = [a.pieces[0] - a.sent for a in within if a.pieces]
    tokens = sum(share * a.tokens for share, a in zip(shares, answers, strict=True))
    return Load(
        tokens_a_second=tokens / (end - begin),
        requests_a_second=sum(shares) / (end - begin),
        latency=percentiles([a.latency for a in within]),
        answers=len(within),
        first_token=percentiles(first),
        gaps=percentiles(gaps),
    )


def percentiles(values: Sequence[float]) -> list[float]:
    """The values at PERCENTILES; none of no values."""
    return np.percentile(values, PERCENTILES).tolist() if values else []

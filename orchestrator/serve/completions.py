"""`POST /v1/completions`: the model continues prompts."""

import asyncio
import math
import time
import uuid
from collections.abc import Sequence
from functools import partial

from fastapi import FastAPI, Request
from fastapi.responses import Response

from orchestrator.infer.generation import GenerationRequest
from orchestrator.processors.spelling import Spelling
from orchestrator.serve.choices import Choice, Echo, Part, PlacedToken
from orchestrator.serve.completion_protocol import (
    CompletionChoice,
    CompletionRequest,
    CompletionResponse,
    Logprobs,
)
from orchestrator.serve.protocol import RefusedError, Usage, require_model
from orchestrator.serve.reply import STREAMS, Reply, answer, stream
from orchestrator.serve.sequences import Sequences
from orchestrator.serve.text_model import Generation, TextModel, client_of

LEAST_LOGPROB = -9999.0  # OpenAI's number for minus infinity, which JSON lacks


def add_completions(api: FastAPI, model: TextModel) -> None:
    """Add the route to an API."""

    @api.post("/v1/completions", response_model=CompletionResponse, responses=STREAMS)
    async def completions(request: Request, body: CompletionRequest) -> Response:
        require_model(body.model, model.name)
        # In a thread: a long text takes a while, and other clients' streams go on meanwhile.
        generation = await asyncio.to_thread(read, model, body, client_of(request, body.user))
        # A stop text may end a text before its sequence.
        only_whole = not (body.stream or body.stops)
        sequences = Sequences(model.generator, generation.requests, only_whole)
        reply = CompletionReply(model, generation, lists_tokens=body.logprobs is not None)
        if body.stream:
            return stream(sequences, reply, body.include_usage)
        return await answer(request, sequences, reply)


def read(model: TextModel, body: CompletionRequest, client: str) -> Generation:
    """A sequence for each choice of each prompt, in this order.

    Raises:
        RefusedError: if a prompt has an unknown token, or does not fit the model's context.
    """
    prompts = [_prompt_of(model, prompt) for prompt in body.prompts]
    generation, deadline = Generation([], [], sum(len(t) for t, _ in prompts)), model.deadline()
    for tokens, echo in prompts:
        max_tokens = model.tokens_to_generate(len(tokens), body.max_tokens)
        # Clients that want the prompt's log-probabilities ask for one token, and count on it.
        scores = body.echo and body.logprobs is not None
        end_token = None if scores and max_tokens == 1 else model.processor.end_token
        for number in range(body.n):
            generation.requests.append(
                GenerationRequest(
                    prompt=tokens,
                    max_tokens=max_tokens,
                    end_token=end_token,
                    sampling=body.sampling(number),
                    logprobs=body.logprobs,
                    prompt_logprobs=scores,
                    client=client,
                    deadline=deadline,
                )
            )
            generation.choices.append(
                Choice(
                    model.processor,
                    prompt=tokens,
                    stops=body.stops,
                    echo=echo if body.echo else None,
                    spelling=None if body.logprobs is None else model.spelling,
                )
            )
    return generation


class CompletionReply(Reply):
    """Choices in the layout of OpenAI's completions."""

    def __init__(self, model: TextModel, generation: Generation, lists_tokens: bool) -> None:
        super().__init__(generation)
        self._spelling = model.spelling
        self._lists_tokens = lists_tokens
        self._new = partial(
            CompletionResponse,
            id=f"cmpl-{uuid.uuid4().hex}",
            created=int(time.time()),
            model=model.name,
        )

    def whole(self, parts: list[Part]) -> CompletionResponse:
        choices = [self._choice(index, part) for index, part in enumerate(parts)]
        return self._new(choices=choices, usage=self.usage())

    def opening(self) -> list[CompletionResponse]:
        return []

    def chunk(self, index: int, part: Part) -> CompletionResponse:
        return self._new(choices=[self._choice(index, part)])

    def usage_chunk(self, usage: Usage) -> CompletionResponse:
        return self._new(choices=[], usage=usage)

    def _choice(self, index: int, part: Part) -> CompletionChoice:
        logprobs = logprobs_of(part.tokens, self._spelling) if self._lists_tokens else None
        return CompletionChoice(
            index=index, text=part.text, logprobs=logprobs, finish_reason=part.finish_reason
        )


def logprobs_of(placed: Sequence[PlacedToken], spelling: Spelling) -> Logprobs:
    """Tokens in OpenAI's older layout. The likeliest tokens are listed by their text; the token
    itself is among them, even if it is not likely."""
    found = Logprobs(text_offset=[], token_logprobs=[], tokens=[], top_logprobs=[])
    for each in placed:
        token, text = each.token, spelling.text_of(each.token.id)
        found.text_offset.append(each.offset)
        found.tokens.append(text)
        if math.isnan(token.logprob):
            found.token_logprobs.append(None)
            found.top_logprobs.append(None)
            continue
        top: dict[str, float] = {}
        for number, logprob in (*token.top, (token.id, token.logprob)):
            top.setdefault(spelling.text_of(number), max(logprob, LEAST_LOGPROB))
        found.token_logprobs.append(max(token.logprob, LEAST_LOGPROB))
        found.top_logprobs.append(top)
    return found


def _prompt_of(model: TextModel, prompt: str | list[int]) -> tuple[list[int], Echo]:
    """A prompt's tokens, and what its echo is. Token ids are taken as they are.

    Raises:
        RefusedError: if a token id is unknown.
    """
    processor = model.processor
    if isinstance(prompt, str):
        # A document begins after an end token, so an empty prompt begins a new document.
        added = [processor.end_token, *processor.opening]
        tokens = processor.encode_plain_batch([prompt])[0]
        return [*added, *tokens], Echo(prompt, len(added))
    largest = max(prompt)
    if largest >= processor.vocab_size:
        raise RefusedError(
            f"prompt: token id {largest} is not in the vocabulary of {processor.vocab_size}",
            param="prompt",
        )
    return prompt, Echo(processor.decode(prompt), 0)

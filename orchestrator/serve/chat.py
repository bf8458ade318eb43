"""`POST /v1/chat/completions`: the model answers in a conversation."""

import asyncio
import time
import uuid
from functools import partial
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import Response

from orchestrator.infer.generation import GenerationRequest, Token
from orchestrator.processors.chat_template import ChatTemplate
from orchestrator.processors.spelling import Spelling
from orchestrator.serve.chat_protocol import (
    Answer,
    ChatChoice,
    ChatChunk,
    ChatLogprobs,
    ChatRequest,
    ChatResponse,
    ChunkChoice,
    Delta,
    TokenLogprob,
    TopLogprob,
    conversation_of,
)
from orchestrator.serve.choices import Choice, Part
from orchestrator.serve.completions import LEAST_LOGPROB
from orchestrator.serve.protocol import RefusedError, Usage, require_model
from orchestrator.serve.reply import STREAMS, Reply, answer, stream
from orchestrator.serve.sequences import Sequences
from orchestrator.serve.text_model import Generation, TextModel, client_of


def add_chat(api: FastAPI, model: TextModel, template: ChatTemplate | None) -> None:
    """Add the route to an API."""

    @api.post("/v1/chat/completions", response_model=ChatResponse, responses=STREAMS)
    async def chat(request: Request, body: ChatRequest) -> Response:
        require_model(body.model, model.name)
        client = client_of(request, body.user)
        generation = await asyncio.to_thread(read, model, template, body, client)
        # A stop text may end a text before its sequence.
        only_whole = not (body.stream or body.stops)
        sequences = Sequences(model.generator, generation.requests, only_whole)
        reply = ChatReply(model, generation, lists_tokens=body.logprobs)
        if body.stream:
            return stream(sequences, reply, body.include_usage)
        return await answer(request, sequences, reply)


def read(
    model: TextModel, template: ChatTemplate | None, body: ChatRequest, client: str
) -> Generation:
    """A sequence for each choice.

    Raises:
        RefusedError: if the model has no chat template, or it refuses the messages, or the
            conversation does not fit the model's context.
    """
    tokens = conversation_tokens(template, conversation_of(body.messages))
    given = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    max_tokens = model.tokens_to_generate(len(tokens), given)
    deadline = model.deadline()
    requests = [
        GenerationRequest(
            prompt=tokens,
            max_tokens=max_tokens,
            end_token=model.processor.end_token,
            sampling=body.sampling(number),
            logprobs=(body.top_logprobs or 0) if body.logprobs else None,
            client=client,
            deadline=deadline,
        )
        for number in range(body.n)
    ]
    spelling = model.spelling if body.logprobs else None
    choices = [Choice(model.processor, tokens, body.stops, spelling=spelling) for _ in requests]
    return Generation(requests, choices, len(tokens))


def conversation_tokens(
    template: ChatTemplate | None, conversation: list[dict[str, str]]
) -> list[int]:
    """The tokens of a conversation, up to the beginning of its next answer. Raises RefusedError."""
    if template is None:
        raise RefusedError(
            "this model has no chat template: model.init_from names no folder, or its folder had "
            "none when the data was prepared; POST /v1/completions continues plain text",
            code="no_chat_template",
            param="messages",
        )
    try:
        tokens = template.encode(conversation)
    except ValueError as error:
        raise RefusedError(str(error), param="messages") from None
    if not tokens:
        raise RefusedError("the model's chat template makes nothing of these messages")
    return tokens


class ChatReply(Reply):
    """Choices in the layout of OpenAI's chat completions."""

    def __init__(self, model: TextModel, generation: Generation, lists_tokens: bool) -> None:
        super().__init__(generation)
        self._spelling = model.spelling
        self._lists_tokens = lists_tokens
        self._head: dict[str, Any] = {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": model.name,
        }
        self._new_chunk = partial(ChatChunk, **self._head)

    def whole(self, parts: list[Part]) -> ChatResponse:
        choices = [
            ChatChoice(
                index=index,
                message=Answer(content=part.text),
                logprobs=self._logprobs(part),
                finish_reason=part.finish_reason or "stop",
            )
            for index, part in enumerate(parts)
        ]
        return ChatResponse(**self._head, choices=choices, usage=self.usage())

    def opening(self) -> list[ChatChunk]:
        delta = Delta(role="assistant", content="")
        return [
            self._new_chunk(choices=[ChunkChoice(index=index, delta=delta)])
            for index in range(len(self.choices))
        ]

    def chunk(self, index: int, part: Part) -> ChatChunk:
        choice = ChunkChoice(
            index=index,
            delta=Delta(content=part.text) if part.text else Delta(),
            logprobs=self._logprobs(part),
            finish_reason=part.finish_reason,
        )
        return self._new_chunk(choices=[choice])

    def usage_chunk(self, usage: Usage) -> ChatChunk:
        return self._new_chunk(choices=[], usage=usage)

    def _logprobs(self, part: Part) -> ChatLogprobs | None:
        if not self._lists_tokens:
            return None
        return ChatLogprobs(
            content=[_token_logprob(each.token, self._spelling) for each in part.tokens]
        )


def _token_logprob(token: Token, spelling: Spelling) -> TokenLogprob:
    top = [
        TopLogprob(
            token=spelling.text_of(number),
            bytes=list(spelling.bytes_of(number)),
            logprob=max(logprob, LEAST_LOGPROB),
        )
        for number, logprob in token.top
    ]
    return TokenLogprob(
        token=spelling.text_of(token.id),
        bytes=list(spelling.bytes_of(token.id)),
        logprob=max(token.logprob, LEAST_LOGPROB),
        top_logprobs=top,
    )

"""`/tokenize`, `/detokenize` and `/tokenizer_info`, in vLLM's layout: clients that send token ids,
such as lm-eval, ask for them."""

import asyncio
from typing import Annotated, Any

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field, model_validator

from orchestrator.processors.chat_template import ChatTemplate
from orchestrator.serve.chat import conversation_tokens
from orchestrator.serve.chat_protocol import Message, conversation_of
from orchestrator.serve.completion_protocol import MAX_PROMPT
from orchestrator.serve.protocol import RefusedError, require_model
from orchestrator.serve.text_model import TextModel
from orchestrator.serve.text_request import require_unicode


class TokenizeRequest(BaseModel):
    """A text, or a conversation."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str | None = Field(None, max_length=200)
    prompt: str | None = Field(None, max_length=MAX_PROMPT)
    messages: list[Message] | None = Field(None, min_length=1, max_length=1000)
    add_special_tokens: bool = True  # those that /v1/completions puts before a text
    return_token_strs: bool = False

    @model_validator(mode="after")
    def _check(self) -> "TokenizeRequest":
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("takes prompt or messages")
        require_unicode("prompt", self.prompt or "")
        return self


class TokenizeResponse(BaseModel):
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class DetokenizeRequest(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    model: str | None = Field(None, max_length=200)
    tokens: list[Annotated[int, Field(ge=0, lt=2**31)]] = Field(max_length=MAX_PROMPT)


class DetokenizeResponse(BaseModel):
    prompt: str


def add_tokens(api: FastAPI, model: TextModel, template: ChatTemplate | None) -> None:
    """Add the routes to an API."""
    processor = model.processor

    def encode(body: TokenizeRequest) -> TokenizeResponse:
        if body.messages is not None:
            tokens = conversation_tokens(template, conversation_of(body.messages))
        else:
            tokens = _text_tokens(model, body.prompt or "", body.add_special_tokens)
        spell = model.spelling.text_of
        return TokenizeResponse(
            count=len(tokens),
            max_model_len=model.context,
            tokens=tokens,
            token_strs=[spell(token) for token in tokens] if body.return_token_strs else None,
        )

    @api.post("/tokenize")
    async def tokenize(body: TokenizeRequest) -> TokenizeResponse:
        require_model(body.model, model.name)
        return await asyncio.to_thread(encode, body)

    @api.post("/detokenize")
    async def detokenize(body: DetokenizeRequest) -> DetokenizeResponse:
        require_model(body.model, model.name)
        if max(body.tokens, default=0) >= processor.vocab_size:
            raise RefusedError(
                f"tokens: {max(body.tokens)} is not in the vocabulary of {processor.vocab_size}",
                param="tokens",
            )
        decode = processor.tokenizer.decode
        text = await asyncio.to_thread(decode, body.tokens, skip_special_tokens=False)
        return DetokenizeResponse(prompt=text)

    @api.get("/tokenizer_info")
    async def tokenizer_info() -> dict[str, Any]:
        return {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": model.context,
            "vocab_size": processor.vocab_size,
            "add_bos_token": False,
            "chat_template": processor.chat_template,
            **processor.special_names,
        }


def _text_tokens(model: TextModel, text: str, add_special_tokens: bool) -> list[int]:
    """The tokens of a text. A text that is the name of a special token is that token.

    Clients learn the ids of the names in /tokenizer_info in this way. Within a longer text a name
    is plain text, as in a prompt.
    """
    processor = model.processor
    number = processor.tokenizer.token_to_id(text)
    if number is not None and text in processor.special_names.values():
        return [number]
    added = [processor.end_token, *processor.opening] if add_special_tokens else []
    return [*added, *processor.encode_plain_batch([text])[0]]

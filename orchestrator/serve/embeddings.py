"""`POST /v1/embeddings`: a vector of length 1 for each text, in OpenAI's API."""

import base64
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from fastapi import FastAPI, Request
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    field_validator,
)

from orchestrator.data.arrays import Arrays
from orchestrator.infer.embedding import TextEmbedding
from orchestrator.processors.text import TextProcessor
from orchestrator.serve.connection import unless_client_leaves
from orchestrator.serve.predictor import Predictor
from orchestrator.serve.protocol import RefusedError, require_model

MOST = 2048  # texts of a request, as OpenAI's

Text = Annotated[str, Field(max_length=1_000_000)]
Tokens = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
Inputs = (
    Text
    | Annotated[list[Text], Field(min_length=1, max_length=MOST)]
    | Tokens
    | Annotated[list[Tokens], Field(min_length=1, max_length=MOST)]
)


class EmbeddingRequest(BaseModel):
    """A text, texts, the token ids of a text, or a list of these."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str | None = Field(None, max_length=200)
    input: Inputs
    encoding_format: Literal["float", "base64"] | None = "float"
    dimensions: int | None = Field(None, ge=1)
    user: str | None = Field(None, max_length=200)

    @field_validator("input", mode="wrap")
    @classmethod
    def _one_of_these(cls, given: Any, check: ValidatorFunctionWrapHandler) -> Any:
        try:
            return check(given)
        except ValidationError:
            raise ValueError(
                f"must be a text, the token ids of a text, or a list of up to {MOST} of these"
            ) from None

    @property
    def inputs(self) -> list[str | list[int]]:
        """The input as a list of texts, or of lists of token ids."""
        given: Any = self.input
        is_one = isinstance(given, str) or isinstance(given[0], int)
        return [given] if is_one else given


class Embedding(BaseModel):
    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingUsage(BaseModel):
    prompt_tokens: int
    total_tokens: int


class EmbeddingResponse(BaseModel):
    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage


class Embedder:
    """Embeds texts in the batches that the predictor makes."""

    def __init__(self, predictor: Predictor, processor: TextProcessor) -> None:
        self.predictor = predictor
        self.processor = processor
        config = predictor.trained.model.config
        self.context, self.width = config.max_seq_len, config.d_model
        self._compute = TextEmbedding(predictor.trained).embed

    async def embed(self, inputs: Sequence[str | list[int]]) -> tuple[npt.NDArray[np.float32], int]:
        """The vectors (texts, d_model), and the number of tokens.

        Raises:
            RefusedError: if a text is longer than the model's context, or no text.
        """
        counts: list[int] = []

        def encode() -> Arrays:
            rows = [self._tokens(number, given) for number, given in enumerate(inputs)]
            counts.append(sum(map(len, rows)))
            return self.processor.padded("tokens", rows, self.context)

        answers = await self.predictor.compute(self._compute, encode)
        return np.concatenate([answer["embedding"] for answer in answers]), counts[0]

    def _tokens(self, number: int, given: str | list[int]) -> list[int]:
        name = f"input[{number}]"
        if isinstance(given, str):
            try:
                given.encode()
            except UnicodeEncodeError:
                raise RefusedError(f"{name}: is not valid Unicode", param="input") from None
            tokens = self.processor.encode(given)
            if not given.strip() or not tokens:
                raise RefusedError(f"{name}: holds nothing", param="input")
        else:
            tokens = given
            if max(tokens) >= self.processor.vocab_size:
                raise RefusedError(
                    f"{name}: {max(tokens)} is no token id: there are {self.processor.vocab_size}",
                    param="input",
                )
        if len(tokens) > self.context:
            raise RefusedError(
                f"{name}: its {len(tokens)} tokens are more than the model's context of "
                f"{self.context}",
                code="context_length_exceeded",
                param="input",
            )
        return tokens


def embedder_of(predictor: Predictor) -> Embedder | None:
    """What embeds texts with the predictor's model; None unless that is an encoder of texts."""
    processor = getattr(predictor.processor, "text", predictor.processor)
    if predictor.trained.model.config.family != "encoder":
        return None
    return Embedder(predictor, processor) if isinstance(processor, TextProcessor) else None


def add_routes(api: FastAPI, embedder: Embedder) -> None:
    model_name = embedder.predictor.model_name

    @api.post("/v1/embeddings")
    async def embeddings(request: EmbeddingRequest, http: Request) -> EmbeddingResponse:
        require_model(request.model, model_name)
        if request.dimensions not in (None, embedder.width):
            raise RefusedError(
                f"dimensions = {request.dimensions}: this model's vectors have {embedder.width}",
                param="dimensions",
            )
        vectors, tokens = await unless_client_leaves(http, embedder.embed(request.inputs))
        is_float = request.encoding_format != "base64"
        data = [
            Embedding(index=i, embedding=vector.tolist() if is_float else _base64(vector))
            for i, vector in enumerate(vectors)
        ]
        usage = EmbeddingUsage(prompt_tokens=tokens, total_tokens=tokens)
        return EmbeddingResponse(data=data, model=model_name, usage=usage)


def _base64(vector: npt.NDArray[np.float32]) -> str:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()

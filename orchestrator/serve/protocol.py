"""Requests and answers as pydantic models, checked before the model computes anything.

Completions follow OpenAI's API.
"""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from orchestrator.errors import UserError

# Fields of OpenAI's that clients send by default. Only these values, and null, are accepted.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "best_of": (1,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "logprobs": (),
    "presence_penalty": (0,),
    "stream_options": (),
    "suffix": (),
}


class CompletionRequest(BaseModel):
    """`POST /v1/completions`. Unknown fields are refused, not ignored."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, strict=True)

    model: str | None = Field(None, max_length=200)
    prompt: str = Field(max_length=1_000_000)
    max_tokens: int | None = Field(None, ge=1, le=1_000_000)
    temperature: float = Field(1.0, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0, le=1_000_000)  # not in OpenAI's API, but common; 0: no limit
    repetition_penalty: float = Field(1.0, gt=0, le=10)  # not in OpenAI's API either; 1: no penalty
    n: int = Field(1, ge=1, le=8)
    stop: str | list[str] | None = None
    seed: int | None = Field(None, ge=0, lt=2**63)
    echo: bool = False
    stream: Literal[False] = False
    user: str | None = Field(None, max_length=200)

    @model_validator(mode="before")
    @classmethod
    def _without_neutral(cls, data: Any) -> Any:
        """Drop what changes nothing: null for a default, and the values in `NEUTRAL`."""
        if not isinstance(data, dict):
            return data
        kept = {name: value for name, value in data.items() if not _is_neutral(name, value)}
        prompt = kept.get("prompt")
        if isinstance(prompt, list) and len(prompt) == 1:
            kept["prompt"] = prompt[0]
        return kept

    @model_validator(mode="after")
    def _check_texts(self) -> "CompletionRequest":
        try:
            self.prompt.encode()
        except UnicodeEncodeError:
            raise ValueError("prompt is not valid Unicode") from None
        if len(self.stops) > 4 or any(not 0 < len(stop) <= 200 for stop in self.stops):
            raise ValueError("stop takes up to 4 texts of 1 to 200 characters")
        return self

    @property
    def stops(self) -> list[str]:
        if self.stop is None:
            return []
        return [self.stop] if isinstance(self.stop, str) else self.stop


def _is_neutral(name: Any, value: Any) -> bool:
    if value is None:
        return name in NEUTRAL or (name in CompletionRequest.model_fields and name != "prompt")
    return not isinstance(value, bool) and value in NEUTRAL.get(name, ())


class Choice(BaseModel):
    index: int
    text: str
    finish_reason: Literal["stop", "length"]
    logprobs: None = None


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class CompletionResponse(BaseModel):
    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage


class PredictionRequest(BaseModel):
    """`POST /v1/predict`: rows with the task's input columns."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str | None = Field(None, max_length=200)
    inputs: list[dict[str, str]] = Field(min_length=1, max_length=64)


class PredictionResponse(BaseModel):
    """One output for each input, in the same order. `Task.reply` decides what it holds."""

    model: str
    outputs: list[dict[str, Any]]


class ErrorDetail(BaseModel):
    """The content of `error` in OpenAI's error envelope."""

    message: str
    type: str = "invalid_request_error"
    param: str | None = None
    code: str | None = None


class RefusedError(UserError):
    """A request that is refused with an HTTP status, and a code that clients know."""

    def __init__(
        self, message: str, status: int = 400, code: str | None = None, param: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param


def require_model(given: str | None, served: str) -> None:
    """Raises RefusedError, status 404, if a request names another model than the one served."""
    if given not in (None, served):
        raise RefusedError(
            f"model {given!r} is not served here; {served!r} is", 404, "model_not_found", "model"
        )

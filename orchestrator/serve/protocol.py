"""What the routes share: predictions, usage and errors, as pydantic models.

Requests are checked before the model computes anything. Completions and chats have modules of their
own.
"""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from orchestrator.errors import UserError


class CachedTokens(BaseModel):
    cached_tokens: int


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens


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

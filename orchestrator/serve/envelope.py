"""Errors in OpenAI's envelope."""

from collections.abc import Mapping
from typing import Any

from fastapi.responses import JSONResponse
from pydantic import BaseModel

from orchestrator.serve.protocol import ErrorDetail


class ErrorResponse(BaseModel):
    """The answer to a request that fails."""

    error: ErrorDetail


# What FastAPI documents for every route, in place of its own envelope of status 422.
ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ErrorResponse, "description": "The request is refused"},
    "5XX": {"model": ErrorResponse, "description": "The endpoint failed"},
}


def error_response(
    status: int, detail: ErrorDetail, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    return JSONResponse({"error": detail.model_dump()}, status_code=status, headers=headers)

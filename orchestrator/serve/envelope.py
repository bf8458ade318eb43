"""Errors in OpenAI's envelope."""

from collections.abc import Mapping

from fastapi.responses import JSONResponse

from orchestrator.serve.protocol import ErrorDetail


def error_response(
    status: int, detail: ErrorDetail, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    return JSONResponse({"error": detail.model_dump()}, status_code=status, headers=headers)

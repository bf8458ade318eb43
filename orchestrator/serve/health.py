"""Health and metadata: `/healthz`, and the Open Inference Protocol's routes, version 2.

https://github.com/open-inference/open-inference-protocol
"""

from typing import Any

from fastapi import FastAPI

from orchestrator import __version__
from orchestrator.serve.protocol import require_model

HEALTH_PATHS = frozenset({"/healthz", "/v2/health/live", "/v2/health/ready"})


def add_routes(api: FastAPI, model_name: str, model_version: str, inputs: tuple[str, ...]) -> None:
    """Add the routes of a loaded model: an application exists once its model can answer.

    Args:
        model_version: names the checkpoint and its settings.
        inputs: the names of what a request holds, all texts.
    """

    @api.get("/healthz")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @api.get("/v2/health/live")
    async def live() -> dict[str, bool]:
        return {"live": True}

    @api.get("/v2/health/ready")
    async def ready() -> dict[str, bool]:
        return {"ready": True}

    @api.get("/v2")
    async def server() -> dict[str, Any]:
        return {"name": "orchestrator", "version": __version__, "extensions": []}

    @api.get("/v2/models/{name}")
    async def model(name: str) -> dict[str, Any]:
        require_model(name, model_name)
        return {
            "name": model_name,
            "versions": [model_version],
            "platform": "orchestrator",
            "inputs": [_text(name) for name in inputs],
            "outputs": [_text("output")],
        }

    @api.get("/v2/models/{name}/ready")
    async def model_ready(name: str) -> dict[str, Any]:
        require_model(name, model_name)
        return {"name": model_name, "ready": True}


def _text(name: str) -> dict[str, Any]:
    """A tensor of texts, whose number is free."""
    return {"name": name, "datatype": "BYTES", "shape": [-1]}

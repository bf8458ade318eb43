"""The playground: a page at `GET /` on which one tries the model, through the endpoint's own API.

Its files need no API key, since browsers send none when they open an address. The page asks for
the key, and sends it with its requests.
"""

from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.responses import FileResponse, Response
from pydantic import BaseModel

from orchestrator.tasks.task import Task

STATIC = Path(__file__).parent / "static"
BASE = Path(__file__).parents[1] / "static" / "base.css"  # shared with the dashboard
NAMES = ("api.js", "form.js", "page.js", "predict.js", "text.js", "style.css", "icon.svg")
FILES = {"/": STATIC / "index.html", **{f"/playground/{name}": STATIC / name for name in NAMES}}
FILES["/playground/base.css"] = BASE
PAGE_PATHS = frozenset(FILES)
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


class Input(BaseModel):
    """A field of a row for `POST /v1/predict`."""

    name: str
    optional: bool


class Text(BaseModel):
    """What a model that generates text can do.

    `max_tokens` are generated if a request does not say how many, `prompt` is the job's
    `serve.sample_prompt`.
    """

    chat: bool
    context: int
    max_tokens: int
    prompt: str


class Description(BaseModel):
    """What the page must know of the model. It has either `text` or `inputs`."""

    model: str
    task: str
    text: Text | None = None
    inputs: list[Input] = []


def inputs_of(task: Task[Any]) -> list[Input]:
    return [Input(name=name, optional=name in task.optional) for name in task.inputs]


def add_routes(api: FastAPI, description: Description) -> None:
    """Add the page, its files, and `GET /v1/playground`, which it reads first."""

    @api.get("/v1/playground")
    async def describe() -> Description:
        return description

    def add_file(path: str, file: Path) -> None:
        @api.api_route(path, methods=["GET", "HEAD"], include_in_schema=False)
        async def content() -> Response:
            return FileResponse(file, headers=HEADERS)

    for path, file in FILES.items():
        add_file(path, file)

"""The dashboard's routes: one static page, and the JSON that it fetches."""

import importlib.util
import json
import socket
import time
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel

from orchestrator import __version__
from orchestrator.dashboard import actions
from orchestrator.dashboard.access import Guard
from orchestrator.dashboard.catalog import Catalog, FollowedRun
from orchestrator.dashboard.curves import plain_list
from orchestrator.dashboard.importance import Importances
from orchestrator.dashboard.summary import summarize
from orchestrator.dashboard.sweep import READING, FollowedSweep
from orchestrator.errors import OrchestratorError, UserError, first_line
from orchestrator.storage.strict_json import finite

STATIC = Path(__file__).parent / "static"
BASE = Path(__file__).parents[1] / "static" / "base.css"  # shared with the playground
LOG_FILE = "log.txt"
LOG_BYTES = 100_000  # the end of a trial's log
HOUR = {"Cache-Control": "max-age=3600"}


class Shown(BaseModel):
    """What a viewer was shown before it was to be started."""

    command: str
    directory: str


def plotly_file() -> Path:
    """plotly.js, from plotly's Python package. The package is not imported."""
    spec = importlib.util.find_spec("plotly")
    if spec is None or spec.origin is None:
        raise UserError("the dashboard needs plotly: pip install plotly")
    return Path(spec.origin).parent / "package_data" / "plotly.min.js"


def make_app(catalog: Catalog, token: str | None, hosts: frozenset[str] | None) -> FastAPI:
    """The dashboard of a storage; `token` and `hosts` as in `Guard`."""
    app = FastAPI(title="orchestrator", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(Guard, token=token, hosts=hosts)
    _add_errors(app)
    resumer = actions.Resumer()
    _add_views(app, catalog, resumer)
    _add_actions(app, catalog, resumer)
    plotly = plotly_file()

    @app.get("/")
    def page() -> Response:
        return FileResponse(STATIC / "index.html", headers={"Cache-Control": "no-cache"})

    @app.get("/base.css")
    def style() -> Response:
        return FileResponse(BASE, headers={"Cache-Control": "no-cache"})

    @app.get("/plotly.js")
    def library() -> Response:
        return FileResponse(plotly, media_type="text/javascript", headers=HOUR)

    app.mount("/static", StaticFiles(directory=STATIC))
    return app


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(OrchestratorError)
    def refused(_: Request, error: OrchestratorError) -> Response:
        return JSONResponse({"error": str(error)}, status_code=400)

    @app.exception_handler(RequestValidationError)
    def invalid(_: Request, error: RequestValidationError) -> Response:
        return JSONResponse({"error": str(error.errors()[0]["msg"])}, status_code=422)

    @app.exception_handler(OSError)
    def unread(_: Request, error: OSError) -> Response:
        text = f"the storage does not answer: {first_line(error)}"
        return JSONResponse({"error": text}, status_code=503)


def _add_views(app: FastAPI, catalog: Catalog, resumer: actions.Resumer) -> None:
    of_sweeps = Importances()

    @app.get("/api/runs")
    def runs() -> Response:
        end = time.monotonic() + READING  # for all of them; the rest comes with the next request
        views = [_run_view(run, resumer, end) for run in catalog.runs()]
        return JSONResponse(
            {
                "storage": str(catalog.where),
                "host": socket.gethostname(),
                "version": __version__,
                "runs": views,
            }
        )

    @app.get("/api/runs/{run_name}/sweeps/{name}")
    def sweep(run_name: str, name: str, since: int = 0, metric: str = "") -> Response:
        run, sweep = catalog.sweep(run_name, name)
        assert sweep.record is not None
        changes = sweep.changes(since, metric or sweep.record.metric)
        head = {
            "summary": _sweep_view(run, sweep, resumer),
            "metrics": sweep.metrics(),
            "cursor": changes.cursor,
            "whole": changes.whole,
            "complete": changes.complete,
        }
        text = json.dumps(head, allow_nan=False)
        trials = ",".join(changes.trials)
        return Response(f'{text[:-1]}, "trials": [{trials}]}}', media_type="application/json")

    @app.get("/api/runs/{run_name}/sweeps/{name}/importance")
    def importances(run_name: str, name: str) -> Response:
        _, sweep = catalog.sweep(run_name, name)
        return JSONResponse(of_sweeps.of(sweep))

    @app.get("/api/runs/{run_name}/sweeps/{name}/trials/{number}")
    def trial(run_name: str, name: str, number: int) -> Response:
        run, sweep = catalog.sweep(run_name, name)
        return JSONResponse(_trial_view(run, sweep, number))


def _add_actions(app: FastAPI, catalog: Catalog, resumer: actions.Resumer) -> None:
    @app.post("/api/runs/{run_name}/sweeps/{name}/stop")
    def stop(run_name: str, name: str) -> Response:
        actions.stop_sweep(*catalog.sweep(run_name, name))
        return JSONResponse({"done": "the sweep was asked to stop"})

    @app.post("/api/runs/{run_name}/sweeps/{name}/trials/{number}/stop")
    def stop_trial(run_name: str, name: str, number: int) -> Response:
        actions.stop_trial(*catalog.sweep(run_name, name), number)
        return JSONResponse({"done": f"trial {number} was asked to stop"})

    @app.post("/api/runs/{run_name}/sweeps/{name}/resume")
    def resume(run_name: str, name: str, shown: Shown | None = None) -> Response:
        agreed = None if shown is None else (shown.command, shown.directory)
        start, log = resumer.resume(*catalog.sweep(run_name, name), agreed)
        done = f"resumed by `{start.command}` in {start.directory}; its output goes to {log}"
        return JSONResponse({"done": done, **_start_view(start)})


def _run_view(run: FollowedRun, resumer: actions.Resumer, end: float) -> dict[str, Any]:
    sweeps = list(run.sweeps.values())
    for sweep in sweeps:
        sweep.refresh(max(0.0, end - time.monotonic()))
    return {
        "name": run.name,
        "folder": str(run.folder),
        "holder": run.holder(),
        "stages": run.stages,
        "sweeps": [_sweep_view(run, s, resumer) for s in sweeps if s.record is not None],
    }


def _sweep_view(run: FollowedRun, sweep: FollowedSweep, resumer: actions.Resumer) -> dict[str, Any]:
    """The summary, with the command line of its best configuration."""
    view = summarize(sweep, run.is_live(sweep))
    if view["best"] is not None:
        view["best"] |= _as_commands(run, sweep, view["best"]["number"])
    start = _start_or_none(run, sweep)
    view["start"] = None if start is None else _start_view(start)
    ended = view["state"] in ("stopped", "interrupted", "failed")
    view["starting"] = ended and resumer.is_running(sweep)
    view["resumable"] = ended and not view["starting"] and run.holder() is None
    return view


def _trial_view(run: FollowedRun, sweep: FollowedSweep, number: int) -> dict[str, Any]:
    """One trial in full: every point of its curves, its log and its error."""
    seen = sweep.seen.get(number)
    if seen is None:
        raise UserError(f"{sweep.run}/{sweep.name}: has no trial {number}")
    trial = finite(seen.trial.model_dump(exclude={"curve"}))
    trial["curve"] = {name: plain_list(values, 10) for name, values in seen.curve.items()}
    return {**trial, **_as_commands(run, sweep, number), "log": _log(sweep, number)}


def _as_commands(run: FollowedRun, sweep: FollowedSweep, number: int) -> dict[str, str]:
    overrides = sweep.seen[number].trial.overrides
    start = _start_or_none(run, sweep)
    return {
        "overrides_text": actions.overrides_text(overrides),
        "command": "" if start is None else actions.training_command(start, overrides),
    }


def _start_or_none(run: FollowedRun, sweep: FollowedSweep) -> actions.Start | None:
    try:
        return actions.find_start(run, sweep)
    except UserError:
        return None


def _start_view(start: actions.Start) -> dict[str, Any]:
    return {**vars(start), "command": start.command}


def _log(sweep: FollowedSweep, number: int) -> str:
    folder = sweep.folder / f"trial-{number:05d}"
    if folder.is_link or folder.size(LOG_FILE) is None:
        return ""  # a link could show any file of this machine
    try:
        content = folder.tail(LOG_FILE, LOG_BYTES)
    except (FileNotFoundError, NotADirectoryError):
        return ""
    return content.decode("utf-8", "replace")

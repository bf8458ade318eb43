"""The dashboard's server: `orchestrator dashboard`, by default on the loopback address."""

import ipaddress
import secrets
import socket
import threading
import time
from collections.abc import Callable
from urllib.parse import quote

import uvicorn

from orchestrator.dashboard.app import make_app
from orchestrator.dashboard.catalog import Catalog
from orchestrator.errors import OrchestratorError, UserError
from orchestrator.storage.folder import Folder

HOST = "127.0.0.1"
PORT = 8600
SHORTEST_TOKEN = 16


def serve(
    where: str, host: str, port: int, token: str | None, announce: Callable[[str], None]
) -> None:
    """Serve the dashboard of a storage, or of one run, until Ctrl-C.

    `announce` gets the address once it answers. Where others can reach it, a token is asked for:
    the given one, or one that is made here.

    Raises:
        UserError: if there is no such storage, or the address is taken.
    """
    if token is not None and len(token) < SHORTEST_TOKEN:
        raise UserError(f"token: has {len(token)} characters: give at least {SHORTEST_TOKEN}")
    catalog = Catalog(Folder(where))
    is_local = _is_loopback(host)
    if token is None and not is_local:
        token = secrets.token_urlsafe(32)
    names = frozenset({"localhost", "127.0.0.1", "::1", host.lower()}) if is_local else None
    app = make_app(catalog, token, names)
    with _bind(host, port) as listening:
        address = _address(host, listening.getsockname()[1], token)
        threading.Thread(target=_read_ahead, args=[catalog], daemon=True).start()
        announce(address)
        # No log of requests: the first address has the token in it.
        config = uvicorn.Config(app, access_log=False, log_level="warning", server_header=False)
        uvicorn.Server(config).run(sockets=[listening])


def _read_ahead(catalog: Catalog) -> None:
    """Read all sweeps while the browser opens."""
    try:
        for run in catalog.runs():
            for sweep in run.sweeps.values():
                while not sweep.complete:
                    sweep.refresh()
                    time.sleep(0.01)  # let waiting requests run
                if sweep.record is not None:
                    sweep.changes(0, sweep.record.metric)  # this also reduces its curves
    except (OSError, OrchestratorError):
        return  # the first request reports the error


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _bind(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:  # the latter of a port beyond 65535
        reason = getattr(error, "strerror", None) or str(error)
        advice = "--port gives it another port, --host another address"
        raise UserError(f"cannot listen on {host}:{port}: {reason}: {advice}") from error


def _address(host: str, port: int, token: str | None) -> str:
    """The address to open. For a wildcard address it has this machine's host name."""
    name = socket.gethostname() if host in ("0.0.0.0", "::", "") else host  # noqa: S104
    shown = f"[{name}]" if ":" in name else name
    query = "" if token is None else f"?token={quote(token, safe='')}"
    return f"http://{shown}:{port}/{query}"

"""Access to the dashboard: lets a request through, refuses it, or asks for the token."""

import hashlib
import secrets
from collections.abc import Mapping
from urllib.parse import urlsplit

from starlette.datastructures import MutableHeaders
from starlette.requests import HTTPConnection
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MARK = "x-orchestrator"  # a header that pages of other sites cannot send
SECURITY_HEADERS = {
    # All content is from this host; Plotly sets inline styles.
    "Content-Security-Policy": "default-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",  # the first address has the token in it
    "Cross-Origin-Opener-Policy": "same-origin",
}
ASK = "open the address that `orchestrator dashboard` printed, or the one with your token"


class Guard:
    """Middleware in front of every route.

    `token`: asked for if it is not None. `hosts`: the names under which this server may be
    addressed, None for any. A page of another site can let its own name lead to 127.0.0.1, and
    then read answers as if they were its own; only the Host header tells.
    """

    def __init__(self, app: ASGIApp, token: str | None, hosts: frozenset[str] | None) -> None:
        self.app = app
        self.hosts = hosts
        self._token = token
        # The cookie is not the token itself: that opens the dashboard in other browsers, too.
        self._pass = "" if token is None else hashlib.sha256(f"cookie {token}".encode()).hexdigest()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        answer = self._answer(HTTPConnection(scope), scope["method"])
        await (answer or self.app)(scope, receive, send_with_headers)

    def _answer(self, request: HTTPConnection, method: str) -> Response | None:
        """The response in place of the app's; None lets the request through."""
        host = request.headers.get("host", "")
        if self.hosts is not None and _host_name(host) not in self.hosts:
            return _refusal(403, f"this dashboard answers under {', '.join(sorted(self.hosts))}")
        if self._token is not None and (answer := self._unlock(request)) is not None:
            return answer
        if method not in ("GET", "HEAD") and not _is_own(request.headers, host):
            return _refusal(403, "this request comes from the page of another site")
        return None

    def _unlock(self, request: HTTPConnection) -> Response | None:
        assert self._token is not None
        # With the port in the name: browsers share cookies between ports.
        name = f"orchestrator-{(request.scope.get('server') or ('', 0))[1]}"
        given = request.query_params.get("token")
        if given is not None and request.url.path == "/":
            if not _same(given, self._token):
                return _refusal(401, f"this is not the token: {ASK}")
            answer = RedirectResponse("/", status_code=303)
            # Not strict: a link on another site may open the address.
            answer.set_cookie(name, self._pass, httponly=True, samesite="lax")
            return answer
        scheme, _, bearer = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and _same(bearer.strip(), self._token):
            return None
        if _same(request.cookies.get(name, ""), self._pass):
            return None
        return _refusal(401, f"a token is needed: {ASK}")


def _host_name(host: str) -> str:
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _is_own(headers: Mapping[str, str], host: str) -> bool:
    """Whether the dashboard's own page sent a request that changes something."""
    origin = headers.get("origin")
    own = origin is None or origin.partition("://")[2] == host
    return MARK in headers and headers.get("sec-fetch-site", "same-origin") == "same-origin" and own


def _same(given: str, expected: str) -> bool:
    return secrets.compare_digest(given.encode(), expected.encode())


def _refusal(status: int, message: str) -> Response:
    return JSONResponse({"error": message}, status_code=status)

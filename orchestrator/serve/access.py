"""API keys: with them, all routes need `Authorization: Bearer KEY`, but health and the files of the
playground's page."""

import hashlib
import hmac
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from orchestrator.serve.envelope import error_response
from orchestrator.serve.forwarding import INSIDE
from orchestrator.serve.health import HEALTH_PATHS
from orchestrator.serve.playground import PAGE_PATHS
from orchestrator.serve.protocol import ErrorDetail


class Keys:
    """The API keys that are valid now. Without any, every request is let in."""

    def __init__(self, digests: Sequence[str] = ()) -> None:
        """
        Args:
            digests: the SHA-256 of each key, in lower-case hexadecimal digits.
        """
        self.set(digests)

    def set(self, digests: Sequence[str]) -> None:
        self.digests = tuple(digest.encode() for digest in digests)


class RequireKey:
    """Refuses requests without a known key, before their body is read."""

    def __init__(self, app: ASGIApp, keys: Keys) -> None:
        self.app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or not self._keys.digests or _is_free(scope):
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope).getlist("authorization")
        if INSIDE in scope or (len(headers) == 1 and self._is_known(headers[0])):
            state = {
                **scope.get("state", {}),
                "client": "".join(headers),
            }  # as `request.state.client`
            await self.app({**scope, "state": state}, receive, send)
            return
        asked = "is not valid here" if headers else "is missing: send Authorization: Bearer KEY"
        detail = ErrorDetail(message=f"the API key {asked}", code="invalid_api_key")
        answer = error_response(401, detail, {"WWW-Authenticate": "Bearer"})
        await answer(scope, receive, send)

    def _is_known(self, header: str) -> bool:
        scheme, _, key = header.partition(" ")
        given = hashlib.sha256(key.strip().encode("latin-1")).hexdigest().encode()
        # Each hash is compared, and each in constant time: how long it takes tells nothing.
        found = [hmac.compare_digest(given, digest) for digest in self._keys.digests]
        return scheme.lower() == "bearer" and any(found)


def _is_free(scope: Scope) -> bool:
    path = path_below(scope)
    is_read = scope.get("method") in ("GET", "HEAD")
    return path in HEALTH_PATHS or (is_read and path in PAGE_PATHS)


def path_below(scope: Scope) -> str:
    """The path below the route's prefix."""
    path: str = scope.get("path", "")
    prefix: str = scope.get("root_path", "")
    if prefix and path == prefix:
        return "/"
    return path.removeprefix(prefix) if prefix and path.startswith(f"{prefix}/") else path

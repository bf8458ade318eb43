"""The id of a request, `x-request-id`: the client's own, if it is a name, else a new one.

Ray Serve's proxy gives every request an id, and writes it into the answer. Behind another server
the application does it.
"""

import re
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADER = "x-request-id"
SANE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")


class RequestId:
    """Puts an id into the headers of a request that has none, and into those of its answer."""

    def __init__(self, app: ASGIApp, behind_proxy: bool = False) -> None:
        """
        Args:
            behind_proxy: whether Ray Serve's proxy writes the id into the answers. It repeats what
                the client gave, so a new id is written here.
        """
        self.app = app
        self._behind_proxy = behind_proxy

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = Headers(scope=scope).getlist(HEADER)
        if is_sane(given):
            identity = given[0]
            if self._behind_proxy:
                await self.app(scope, receive, send)
                return
        else:
            identity = uuid.uuid4().hex
            others = [(name, value) for name, value in scope["headers"] if name != HEADER.encode()]
            scope = {**scope, "headers": [*others, (HEADER.encode(), identity.encode())]}

        async def named(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": list(message.get("headers", []))}
                MutableHeaders(scope=message)[HEADER] = identity
            await send(message)

        await self.app(scope, receive, named)


def is_sane(given: list[str]) -> bool:
    """Whether a client's headers name its request: one name, of 128 characters at most."""
    return len(given) == 1 and SANE.fullmatch(given[0]) is not None

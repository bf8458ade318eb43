"""Redirects without scheme and host, which only a proxy with TLS in front knows."""

from urllib.parse import urlsplit

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class RelativeRedirects:
    """Makes the application's redirects, which add a slash to a path or take it away, relative."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def relative(message: Message) -> None:
            if message["type"] == "http.response.start" and 300 <= message["status"] < 400:
                message = {**message, "headers": list(message.get("headers", []))}
                headers = MutableHeaders(scope=message)
                if "location" in headers:
                    headers["location"] = beside(headers["location"])
            await send(message)

        await self.app(scope, receive, relative)


def beside(location: str) -> str:
    """The reference by which a path finds itself with or without its last slash.

    It names no parent folder that a proxy may have put before the path or cut off it.
    """
    parts = urlsplit(location)
    *_, last = parts.path.rstrip("/").split("/")
    reference = f"./{last}/" if parts.path.endswith("/") else f"../{last}"
    return reference + (f"?{parts.query}" if parts.query else "")

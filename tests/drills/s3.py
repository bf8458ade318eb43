"""A real S3 server, moto, in a process of its own, behind a proxy that can be slow or broken.

The server is no dependency of ours: it needs an older python-dateutil than the tested one. So it
has an environment of its own, `make s3-server`, and tests that need it are skipped without it.
"""

import contextlib
import http.client
import re
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Literal
from xml.etree import ElementTree

import pytest

from tests.ray_head import free_port

REGION = "us-east-1"
BUCKET = "drill"
SERVER = Path(sys.prefix) / "s3" / "bin" / "moto_server"
HOP = {"connection", "transfer-encoding", "content-length", "keep-alive", "date", "server"}
SLOW_DOWN = (
    b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
)
RESET = struct.pack("ii", 1, 0)  # linger for no time: what is closed is reset

Kind = Literal[
    "slow down",  # 503, the server is not asked
    "reset",  # the connection is reset before an answer, the server is not asked
    "cut upload",  # the connection is reset when half of the request has arrived
    "lost answer",  # the server does it, its answer is lost
    "short body",  # half of the answer's body, then the connection is closed
    "broken body",  # half of the answer's body, then the connection is reset
    "stall",  # nothing for `seconds`, then the answer
]
ANY: tuple[Kind, ...] = ("slow down", "reset", "lost answer", "short body", "broken body")


@dataclass
class Fault:
    """What happens to the next `times` requests of this method whose path and query match."""

    kind: Kind
    method: str
    matching: str
    times: int = 1
    seconds: float = 0.0
    done: int = 0


class Storage(ThreadingHTTPServer):
    """The proxy: what clients know as S3."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, server_port: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.behind = server_port
        self.delay = 0.0  # seconds before each answer
        self.refuses = False  # answers 503
        self.refused = 0  # requests
        self.faults: list[Fault] = []
        self.every = 0  # one request in so many meets one of ANY in turn; 0: none
        self.requests: list[tuple[str, str]] = []  # method, path with query
        self._lock = threading.Lock()

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables with which a process uses this server as S3."""
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.server_port}",
            "AWS_REGION": REGION,
            "AWS_ACCESS_KEY_ID": "drill",
            "AWS_SECRET_ACCESS_KEY": "drill",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def fail(
        self, kind: Kind, method: str, matching: str = "", times: int = 1, seconds: float = 0.0
    ) -> Fault:
        """Break the next requests that match. Returns the fault, whose `done` counts them."""
        self.faults.append(Fault(kind, method, matching, times, seconds))
        return self.faults[-1]

    def heal(self) -> None:
        self.delay, self.refuses, self.refused, self.every = 0.0, False, 0, 0
        self.faults.clear()
        self.requests.clear()

    def count(self, method: str, matching: str) -> int:
        """The requests so far of this method whose path and query match."""
        return sum(m == method and bool(re.search(matching, p)) for m, p in self.requests)

    def unfinished_uploads(self) -> list[str]:
        """The keys of multipart uploads that were neither completed nor aborted."""
        status, content = self.ask("GET", f"/{BUCKET}?uploads")
        assert status == 200, content
        uploads = ElementTree.fromstring(content).iter()
        return [e.text or "" for e in uploads if e.tag.rsplit("}", 1)[-1] == "Key"]

    def ask(
        self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None
    ) -> tuple[int, bytes]:
        """A request straight to the server; returns the status and the body of its answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.behind, timeout=30)
        with contextlib.closing(connection):
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            return answer.status, answer.read()

    def next_fault(self, method: str, path: str) -> Fault | None:
        with self._lock:
            self.requests.append((method, path))
            for fault in self.faults:
                due = fault.done < fault.times and fault.method == method
                if due and re.search(fault.matching, path):
                    fault.done += 1
                    return fault
            if self.every and len(self.requests) % self.every == 0:
                return Fault(ANY[len(self.requests) // self.every % len(ANY)], method, path)
        return None

    def shutdown_request(self, request: socket.socket) -> None:  # type: ignore[override]
        if request.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8) == RESET:
            request.close()  # without the orderly end that comes first otherwise
        else:
            super().shutdown_request(request)

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # clients hang up, and that is what is tried


@contextlib.contextmanager
def storage() -> Iterator[Storage]:
    """A server with one empty bucket, and the proxy before it. Skips where there is no server."""
    if not SERVER.exists():
        pytest.skip(
            f"no S3 server: make s3-server, or: python -m venv {sys.prefix}/s3 && "
            f"{sys.prefix}/s3/bin/pip install -r tests/s3_requirements.txt"
        )
    port = free_port()
    command = [SERVER, "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        with Storage(port) as server:
            _wait_for(server, process)
            assert server.ask("PUT", f"/{BUCKET}")[0] == 200
            threading.Thread(target=server.serve_forever, daemon=True).start()
            yield server
            server.shutdown()
    finally:
        process.kill()
        process.wait()


def _wait_for(server: Storage, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError):
            server.ask("GET", "/")
            return
        time.sleep(0.1)
    raise RuntimeError(f"the S3 server did not come up: exit code {process.poll()}")


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Storage

    def log_message(self, format: str, *arguments: object) -> None:
        pass

    def do_GET(self) -> None:
        fault = self.server.next_fault(self.command, self.path)
        kind = fault.kind if fault else None
        if kind == "cut upload":
            self.rfile.read1(max(1, int(self.headers.get("Content-Length", 2)) // 2))
            return self._reset()
        body = self._read()
        time.sleep(self.server.delay)
        if self.server.refuses or kind == "slow down":
            self.server.refused += self.server.refuses
            return self._answer(503, [], SLOW_DOWN)
        if kind == "reset":
            return self._reset()
        if fault is not None and kind == "stall":
            time.sleep(fault.seconds)
        status, headers, content = self._forward(body)
        if kind == "lost answer":
            return self._reset()
        if kind in ("short body", "broken body"):
            self._answer(status, headers, content, sent=len(content) // 2)
            return self._reset() if kind == "broken body" else self._close()
        self._answer(status, headers, content)

    do_HEAD = do_PUT = do_POST = do_DELETE = do_GET

    def _read(self) -> bytes:
        """The body of the request, in the encoding of its content."""
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        content = []
        while (size := int(self.rfile.readline().split(b";")[0], 16)) > 0:
            content.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        return b"".join(content)

    def _forward(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.server.behind, timeout=120)
        with contextlib.closing(connection):
            connection.putrequest(
                self.command, self.path, skip_host=True, skip_accept_encoding=True
            )
            for name, value in self.headers.items():
                if name.lower() not in HOP | {"expect"}:
                    connection.putheader(name, value)
            connection.putheader("Content-Length", str(len(body)))
            connection.endheaders(body)
            answer = connection.getresponse()
            headers = [(k, v) for k, v in answer.getheaders() if k.lower() not in HOP]
            content = answer.read()
            if self.command == "HEAD":
                headers.append(("Content-Length", answer.headers.get("Content-Length", "0")))
            return answer.status, headers, content

    def _answer(
        self,
        status: int,
        headers: list[tuple[str, str]],
        content: bytes,
        sent: int | None = None,
    ) -> None:
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        if self.command != "HEAD":
            if status != 204:
                self.send_header("Content-Length", str(len(content)))
        elif all(name != "Content-Length" for name, _ in headers):
            self.send_header("Content-Length", "0")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[:sent])
            self.wfile.flush()

    def _reset(self) -> None:
        """Close the connection so that the client gets a reset, not an end."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self._close()

    def _close(self) -> None:
        self.close_connection = True

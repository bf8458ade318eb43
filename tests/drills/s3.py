"""A server with the part of S3 that pyarrow uses, which can be slow or refuse requests.

Objects are in memory. Signatures are not checked, and multipart uploads are not supported.
"""

import contextlib
import hashlib
import threading
import time
from collections.abc import Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit
from xml.etree import ElementTree
from xml.sax.saxutils import escape

REGION = "us-east-1"


class Storage(ThreadingHTTPServer):
    """Objects by `/bucket/key`, with the time of their last modification."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.objects: dict[str, tuple[bytes, float]] = {}
        self.delay = 0.0  # seconds before each answer
        self.refuses = False  # answers 503
        self.refused = 0  # requests

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


@contextlib.contextmanager
def storage() -> Iterator[Storage]:
    with Storage() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Storage

    def log_message(self, format: str, *arguments: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._begin()
        if len(self.key.split("/")) == 2:  # a bucket
            return self._answer(200)
        self._give_object()

    def do_GET(self) -> None:
        self._begin()
        if "list-type" in self.query:
            return self._list()
        self._give_object()

    def do_PUT(self) -> None:
        self._begin()
        if not self._is_refused():
            self.server.objects[self.key] = self.body, time.time()
            self._answer(200, headers={"ETag": _tag(self.body)})

    def do_DELETE(self) -> None:
        self._begin()
        if not self._is_refused():
            self.server.objects.pop(self.key, None)
            self._answer(204)

    def do_POST(self) -> None:
        """Only the deletion of many objects is supported."""
        self._begin()
        if self._is_refused():
            return
        if "delete" not in self.query:
            return self._answer(501)
        for element in ElementTree.fromstring(self.body).iter():
            if element.tag.endswith("Key"):
                self.server.objects.pop(f"{self.key}/{element.text}", None)
        self._answer(200, b"<DeleteResult></DeleteResult>")

    def _begin(self) -> None:
        parts = urlsplit(self.path)
        self.key = unquote(parts.path).rstrip("/") or "/"
        if parts.path.endswith("/") and self.key.count("/") > 1:
            self.key += "/"  # the marker of a folder
        self.query = parse_qs(parts.query, keep_blank_values=True)
        self.body = self._read()
        time.sleep(self.server.delay)

    def _read(self) -> bytes:
        """The body, which the client may send in signed or checked chunks."""
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = self._chunks()
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if "aws-chunked" not in self.headers.get("Content-Encoding", ""):
            return body
        content = b""
        while (size := int(body.split(b"\r\n", 1)[0].split(b";")[0], 16)) > 0:
            body = body.split(b"\r\n", 1)[1]
            content, body = content + body[:size], body[size + 2 :]
        return content

    def _chunks(self) -> bytes:
        content = b""
        while (size := int(self.rfile.readline().split(b";")[0], 16)) > 0:
            content += self.rfile.read(size)
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        return content

    def _is_refused(self) -> bool:
        if self.server.refuses:
            self.server.refused += 1
            error = b"<Error><Code>ServiceUnavailable</Code><Message>a drill</Message></Error>"
            self._answer(503, error)
        return self.server.refuses

    def _give_object(self) -> None:
        if self._is_refused():
            return
        if self.key not in self.server.objects:
            return self._answer(404, b"<Error><Code>NoSuchKey</Code></Error>")
        content, changed = self.server.objects[self.key]
        headers = {"ETag": _tag(content), "Last-Modified": formatdate(changed, usegmt=True)}
        byte_range = self.headers.get("Range", "").removeprefix("bytes=")
        if not byte_range:
            return self._answer(200, content, headers)
        first, _, last = byte_range.partition("-")
        part = content[int(first) : int(last) + 1 if last else None]
        headers["Content-Range"] = f"bytes {first}-{int(first) + len(part) - 1}/{len(content)}"
        self._answer(206, part, headers)

    def _list(self) -> None:
        if self._is_refused():
            return
        prefix = self.query.get("prefix", [""])[0]
        delimiter = self.query.get("delimiter", [""])[0]
        bucket = self.key.rstrip("/")
        contents, folders = "", set()
        for path, (content, changed) in sorted(self.server.objects.items()):
            key = path.removeprefix(f"{bucket}/")
            if key == path or not key.startswith(prefix):
                continue
            head, separator, _ = (
                key[len(prefix) :].partition(delimiter) if delimiter else ("", "", "")
            )
            if separator:
                folders.add(f"{prefix}{head}{delimiter}")
                continue
            at = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(changed))
            contents += f"<Contents><Key>{escape(key)}</Key><LastModified>{at}</LastModified>"
            contents += f"<Size>{len(content)}</Size></Contents>"
        for folder in sorted(folders):
            contents += f"<CommonPrefixes><Prefix>{escape(folder)}</Prefix></CommonPrefixes>"
        listing = f"<ListBucketResult><IsTruncated>false</IsTruncated>{contents}</ListBucketResult>"
        self._answer(200, listing.encode())

    def _answer(
        self, status: int, content: bytes = b"", headers: dict[str, str] | None = None
    ) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _tag(content: bytes) -> str:
    return f'"{hashlib.md5(content).hexdigest()}"'

"""The bytes of one source file, decompressed, and refused where they begin as another format."""

import io
from typing import Any

import pyarrow as pa

from orchestrator.data.heads import HEAD, Head, refuse
from orchestrator.errors import UserError, first_line
from orchestrator.storage.files import SteadyFile

LOCAL_BUFFER, REMOTE_BUFFER = 1 << 20, 8 << 20  # remote: a request each
# What the suffixes of compressed files are called by pyarrow, and how such files begin.
COMPRESSIONS = {"gz": ("gzip", b"\x1f\x8b"), "zst": ("zstd", b"\x28\xb5\x2f\xfd")}


def open_stream(
    uri: str, kind: str, head: Head, size: int | None = None
) -> "io.BufferedReader[Any]":
    """The content, decompressed where the name says so.

    Raises:
        UserError: where it cannot be read, or its first bytes are those of something else.
    """
    buffer = REMOTE_BUFFER if "://" in uri else LOCAL_BUFFER
    raw: io.BufferedReader[Any] = io.BufferedReader(SteadyFile(uri, size), buffer)
    start = raw.peek(HEAD)[:HEAD]
    suffix = uri.lower().rsplit(".", 1)[-1]
    if suffix in COMPRESSIONS and start:
        name, magic = COMPRESSIONS[suffix]
        if not start.startswith(magic):
            refuse(uri, kind, start, head)
            cause = "its content is not compressed so: name it as what it is"
            raise UserError(f"{uri}: is named .{suffix}, but {cause}")
        unpacked = pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), name)
        stream: io.BufferedReader[Any] = io.BufferedReader(_Unpacked(unpacked, raw), LOCAL_BUFFER)
        try:
            start = stream.peek(HEAD)[:HEAD]
        except (OSError, pa.ArrowException) as error:
            raise damaged(uri, error) from error
    else:
        stream = raw
    refuse(uri, kind, start, head)
    return stream


def open_whole(
    uri: str, kind: str, head: Head, size: int | None = None
) -> "io.BufferedReader[Any]":
    """A file to jump about in; a compressed one is read whole."""
    if uri.lower().endswith(tuple(f".{suffix}" for suffix in COMPRESSIONS)):
        with open_stream(uri, kind, head, size) as stream:
            try:
                return io.BufferedReader(io.BytesIO(stream.read()))
            except (OSError, pa.ArrowException) as error:
                raise damaged(uri, error) from error
    raw = io.BufferedReader(SteadyFile(uri, size), LOCAL_BUFFER)
    refuse(uri, kind, raw.peek(HEAD)[:HEAD], head)
    return raw


def damaged(uri: str, error: BaseException) -> UserError:
    """What to tell of a file that cannot be read to its end: nobody knows how much is missing."""
    return UserError(
        f"{uri}: is damaged or cut off ({first_line(error)}): download or write it again"
    )


class _Unpacked(io.RawIOBase):
    """A decompressing stream that keeps what it reads from."""

    def __init__(self, stream: pa.NativeFile, source: "io.BufferedReader[Any]") -> None:
        self._stream, self._source = stream, source

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return int(self._stream.readinto(buffer))

    def close(self) -> None:
        if not self.closed:
            self._stream.close()
            self._source.close()
        super().close()

"""Opens source files: decompresses them, and refuses files that begin like another format."""

import io
from typing import Any

import pyarrow as pa

from orchestrator.data.heads import HEAD, Head, refuse
from orchestrator.errors import UserError, first_line
from orchestrator.storage.files import SteadyFile

LOCAL_BUFFER, REMOTE_BUFFER = 1 << 20, 8 << 20  # a remote buffer is one request
# Suffixes of compressed files, with pyarrow's names and the first bytes.
COMPRESSIONS = {"gz": ("gzip", b"\x1f\x8b"), "zst": ("zstd", b"\x28\xb5\x2f\xfd")}


def open_stream(
    uri: str, kind: str, head: Head, size: int | None = None
) -> "io.BufferedReader[Any]":
    """The content, decompressed according to the name.

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
    """The file for random access; a compressed file is read whole."""
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
    """The error of a file that cannot be read to its end. An unknown number of rows is missing."""
    return UserError(
        f"{uri}: is damaged or cut off ({first_line(error)}): download or write it again"
    )


class _Unpacked(io.RawIOBase):
    """A decompressing stream that also closes its source."""

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

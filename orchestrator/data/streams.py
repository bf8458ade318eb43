"""The bytes of one source file, local or remote, read on after a passing error of the storage."""

import io
import logging
import os
import time
from collections.abc import Callable
from typing import Any, TypeVar

import pyarrow as pa

from orchestrator.data.heads import HEAD, Head, refuse
from orchestrator.errors import UserError, first_line
from orchestrator.storage.folder import locate

log = logging.getLogger(__name__)

WAITS = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0)  # seconds between tries, a minute in all
LASTING = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
DENIED = ("ACCESS_DENIED", "NO_SUCH_", "INVALID_ACCESS_KEY")  # the same as pyarrow's S3 says it
LOCAL_BUFFER, REMOTE_BUFFER = 1 << 20, 8 << 20  # remote: a request each
# What the suffixes of compressed files are called by pyarrow, and how such files begin.
COMPRESSIONS = {"gz": ("gzip", b"\x1f\x8b"), "zst": ("zstd", b"\x28\xb5\x2f\xfd")}

T = TypeVar("T")


class SteadyFile(io.RawIOBase):
    """A file that is opened again, and read on from its place, where the storage fails.

    Raises:
        UserError: where it goes on failing, or the file is shorter than it was listed.
    """

    def __init__(self, uri: str, size: int | None = None) -> None:
        self._uri = uri
        self._listed = size
        self._at = 0
        self._handle: Any = None
        self._size: int = self._tried(self._measure)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        self._at = start + offset
        return self._at

    def readinto(self, buffer: Any) -> int:
        count = self._tried(lambda: self._read(buffer))
        self._at += count
        if not count and len(buffer) and self._at < (self._listed or 0):
            raise UserError(
                f"{self._uri}: ends after {self._at:,} of {self._listed:,} bytes: it was written "
                f"or cut off since it was listed; start again once it is whole"
            )
        return count

    def close(self) -> None:
        if not self.closed:
            self._drop()
        super().close()

    def _opened(self) -> Any:
        if self._handle is None:
            self._handle = _open_once(self._uri)
        return self._handle

    def _measure(self) -> int:
        self._opened().seek(0, os.SEEK_END)
        return int(self._opened().tell())

    def _read(self, buffer: Any) -> int:
        handle = self._opened()
        if handle.tell() != self._at:
            handle.seek(min(self._at, self._size))
        return int(handle.readinto(buffer))

    def _drop(self) -> None:
        handle, self._handle = self._handle, None
        if handle is not None:
            try:
                handle.close()
            except (OSError, pa.ArrowException):
                log.debug("closing %s", self._uri, exc_info=True)

    def _tried(self, work: Callable[[], T]) -> T:
        waits = iter(WAITS)
        while True:
            try:
                return work()
            except (OSError, pa.ArrowException) as error:
                self._drop()
                wait = None if _lasts(error) else next(waits, None)
                if wait is None:
                    tries = "" if _lasts(error) else f", tried for {sum(WAITS):.0f} s"
                    reason = getattr(error, "strerror", None) or first_line(error)
                    raise UserError(f"{self._uri}: cannot be read: {reason}{tries}") from error
                log.warning("%s: %s; trying again in %g s", self._uri, first_line(error), wait)
                time.sleep(wait)


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


def open_file(uri: str, kind: str, head: Head, size: int | None = None) -> "io.BufferedReader[Any]":
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


def _open_once(uri: str) -> Any:
    if "://" not in uri:
        return open(uri, "rb", buffering=0)
    filesystem, path = locate(uri)
    return filesystem.open_input_file(path)


def _lasts(error: BaseException) -> bool:
    return isinstance(error, LASTING) or any(word in str(error) for word in DENIED)

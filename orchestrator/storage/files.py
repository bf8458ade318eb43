"""Files of any storage: where they lie, how long to wait for an answer, and when to ask again.

Sources and artifacts are opened here alone, so that a storage that fails in passing stops neither.
"""

import contextlib
import contextvars
import functools
import io
import logging
import os
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.fs

from orchestrator.errors import UserError, first_line

log = logging.getLogger(__name__)

S3_SECONDS = 60.0  # for an answer; pyarrow would take 3 s of silence for an error
WAITS = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0)  # seconds between tries, a minute in all
PATIENCE = 120.0  # seconds after which no new try begins: a silent storage fails slowly
LASTING = (
    FileNotFoundError,
    PermissionError,
    IsADirectoryError,
    NotADirectoryError,
    ValueError,  # ArrowInvalid: of an unknown scheme, say
)
# The same in the words of pyarrow's S3. NO_SUCH_UPLOAD passes: a completed upload is uploaded anew.
DENIED = (
    "ACCESS_DENIED",
    "NO_SUCH_BUCKET",
    "NO_SUCH_KEY",
    "INVALID_ACCESS_KEY",
    "SIGNATURE_DOES_NOT_MATCH",
    "INVALID_CLIENT_TOKEN_ID",
)

T = TypeVar("T")

_again = contextvars.ContextVar("again", default=True)  # whether `tried` tries again


def locate(uri: str) -> tuple[pyarrow.fs.FileSystem, str]:
    """The file system of a path or URI, and the path in it."""
    if "://" in uri:
        scheme, path = uri.split("://", 1)
        return _filesystem(f"{scheme}://{path.split('/', 1)[0]}"), path
    return pyarrow.fs.LocalFileSystem(), os.path.abspath(os.path.expanduser(uri))


def open_file(uri: str) -> Any:
    """A file to read and to jump about in, unbuffered. Raises OSError or ArrowException."""
    if "://" not in uri:
        return open(uri, "rb", buffering=0)
    filesystem, path = locate(uri)
    return filesystem.open_input_file(path)


def tried(uri: str, work: Callable[[], T]) -> T:
    """What `work` returns, called again while the storage fails: for a minute, or for two
    minutes and one more try if the storage answers nothing. `work` must bear being repeated.

    Raises:
        OSError, ArrowException: the last one; at once where no wait mends it.
    """
    waits, deadline = iter(WAITS if _again.get() else ()), time.monotonic() + PATIENCE
    while True:
        try:
            return work()
        except (OSError, pa.ArrowException) as error:
            wait = None if lasts(error) else next(waits, None)
            if wait is None or time.monotonic() > deadline:
                raise
            log.warning("%s: %s; trying again in %g s", uri, first_line(error), wait)
            time.sleep(wait)


@contextlib.contextmanager
def once() -> Iterator[None]:
    """Within it, this thread asks a failing storage once: its caller tries again on its own."""
    token = _again.set(False)
    try:
        yield
    finally:
        _again.reset(token)


def lasts(error: BaseException) -> bool:
    """Whether no wait mends an error: the file is missing, or access is denied."""
    return isinstance(error, LASTING) or any(word in str(error) for word in DENIED)


@functools.cache
def _filesystem(scheme_and_host: str) -> pyarrow.fs.FileSystem:
    filesystem, _ = pyarrow.fs.FileSystem.from_uri(scheme_and_host)
    if isinstance(filesystem, pyarrow.fs.S3FileSystem):
        # What a URI cannot say. Small files take one request so, not three.
        build, (options,) = filesystem.__reduce__()
        return build(options | {"allow_delayed_open": True, "request_timeout": S3_SECONDS})
    return filesystem


class SteadyFile(io.RawIOBase):
    """A file that is opened again, and read on from its place, where the storage fails.

    It is for files that nobody rewrites. What may be rewritten is read whole in one try.

    Raises:
        UserError: where the storage goes on failing, or the file is shorter than it was listed.
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
            self._handle = open_file(self._uri)
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
        try:
            return tried(self._uri, lambda: self._dropping(work))
        except (OSError, pa.ArrowException) as error:
            tries = "" if lasts(error) else f", tried for {sum(WAITS):.0f} s"
            reason = getattr(error, "strerror", None) or first_line(error)
            raise UserError(f"{self._uri}: cannot be read: {reason}{tries}") from error

    def _dropping(self, work: Callable[[], T]) -> T:
        """What `work` returns; where it fails, the next try opens the file anew."""
        try:
            return work()
        except (OSError, pa.ArrowException):
            self._drop()
            raise

"""The one way to files, local or remote: where they are, how they are opened, tried again.

Sources (`data/streams.py`) and artifacts (`storage/folder.py`) share its time-outs and retries.
"""

import errno
import functools
import logging
import os
import time
from collections.abc import Callable
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.fs

from orchestrator.errors import first_line

log = logging.getLogger(__name__)

S3_SECONDS = 60.0  # for an answer; pyarrow's default takes 3 s of silence for an error
WAITS = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0)  # seconds between tries, a minute in all
LASTING = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
LASTING_NUMBERS = (errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL, errno.EMFILE)
DENIED = ("ACCESS_DENIED", "NO_SUCH_", "INVALID_ACCESS_KEY")  # the same in the words of S3

T = TypeVar("T")


@functools.cache
def _filesystem(scheme_and_host: str) -> pyarrow.fs.FileSystem:
    found, _ = pyarrow.fs.FileSystem.from_uri(scheme_and_host)
    if isinstance(found, pyarrow.fs.S3FileSystem):
        # What an URI cannot say. Small files are to take one request, not three.
        build, (options,) = found.__reduce__()
        return build(options | {"allow_delayed_open": True, "request_timeout": S3_SECONDS})
    return found


def locate(uri: str) -> tuple[pyarrow.fs.FileSystem, str]:
    """The file system of a path or URI, and the path in it."""
    if "://" in uri:
        scheme, path = uri.split("://", 1)
        return _filesystem(f"{scheme}://{path.split('/', 1)[0]}"), path
    return pyarrow.fs.LocalFileSystem(), os.path.abspath(os.path.expanduser(uri))


def open_binary(uri: str) -> Any:
    """A file to read from, with `seek` and `tell`; unbuffered."""
    if "://" not in uri:
        return open(uri, "rb", buffering=0)
    filesystem, path = locate(uri)
    return filesystem.open_input_file(path)


def retried(work: Callable[[], T], uri: str, drop: Callable[[], None] | None = None) -> T:
    """The result of `work`, which is called again after a passing error of the storage.

    Args:
        uri: what `work` reads, for the log.
        drop: called after each error, before the next try.

    Raises:
        OSError, pyarrow.ArrowException: if the error lasts, or all tries fail.
    """
    waits = iter(WAITS)
    while True:
        try:
            return work()
        except (OSError, pa.ArrowException) as error:
            if drop is not None:
                drop()
            wait = None if is_lasting(error) else next(waits, None)
            if wait is None:
                raise
            log.warning("%s: %s; trying again in %g s", uri, first_line(error), wait)
            time.sleep(wait)


def is_lasting(error: BaseException) -> bool:
    """Whether a next try would fail in the same way."""
    is_known = isinstance(error, LASTING) or getattr(error, "errno", None) in LASTING_NUMBERS
    return is_known or any(word in str(error) for word in DENIED)

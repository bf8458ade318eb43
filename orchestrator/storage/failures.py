"""Errors of storage: which of them pass, so that the same command may succeed later."""

import errno

from orchestrator.errors import StageError, StorageError, TryAgainError
from orchestrator.storage.files import lasts


class StorageDownError(TryAgainError, StorageError):
    """A storage that kept failing, and that may answer later though nobody mends anything."""


# Of a network disk. A full disk or a missing permission stays until somebody does something.
PASSING = {
    errno.EIO,
    errno.EAGAIN,
    errno.EPIPE,
    errno.ESTALE,
    errno.EREMOTEIO,
    errno.ETIMEDOUT,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
    errno.ENETDOWN,
    errno.ENETUNREACH,
    errno.ENETRESET,
    errno.ECONNABORTED,
    errno.ECONNREFUSED,
    errno.ECONNRESET,
}
# What object storage says begins so, in pyarrow's words.
REMOTE = ("AWS Error", "google::cloud::Status", "Azure")


def passes(error: BaseException | None) -> bool:
    """Whether a storage's error may be gone later though nobody mends anything."""
    if not isinstance(error, OSError) or lasts(error):
        return False
    if isinstance(error, (ConnectionError, TimeoutError)) or error.errno in PASSING:
        return True
    return error.errno is None and any(word in str(error) for word in REMOTE)


def failed(text: str, error: BaseException | None) -> StageError:
    """The error of a stage whose storage raised `error`: a TryAgainError if that passes."""
    return TryAgainError(text) if passes(error) else StageError(text)

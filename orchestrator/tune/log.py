"""The output of a trial, in a file: on local storage at once, elsewhere when the trial ends."""

import contextlib
import io
import logging
from collections.abc import Iterator

from orchestrator.errors import StageError
from orchestrator.storage.folder import Folder, no_link

LOG = "log.txt"
LONGEST = 1 << 20  # characters; a trial may print without end


class _Log(io.TextIOBase):
    """A stream that creates its file with the first text."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._written = 0
        self._kept: list[str] = []

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        if text and self._written < LONGEST:
            self._written += len(text)
            path = self._folder.local_path
            if path is None:
                self._kept.append(text)
            else:
                path.mkdir(parents=True, exist_ok=True)
                log = path / LOG
                with open(log, "a", encoding="utf-8", errors="replace", opener=no_link) as file:
                    file.write(text)
        return len(text)

    def finish(self) -> None:
        if self._kept:
            with contextlib.suppress(StageError):
                self._folder.write(LOG, "".join(self._kept).encode("utf-8", "replace"))


@contextlib.contextmanager
def logged(folder: Folder) -> Iterator[None]:
    """Send output, errors and log records of the block to the folder's `log.txt`."""
    log = _Log(folder)
    handler = logging.StreamHandler(log)
    handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    logging.getLogger().addHandler(handler)
    try:
        with contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
            yield
    finally:
        logging.getLogger().removeHandler(handler)
        log.finish()

"""Writes records beside the sweep: a trial that has reported waits for no disk."""

import logging
import threading
import time

from orchestrator.storage.folder import Folder

RETRY_SECONDS = 1.0
PATIENCE = 30.0

logger = logging.getLogger(__name__)


class Writer:
    """A thread that writes files of a folder; of several contents of one file, the last."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._changed = threading.Condition()
        self._waiting: dict[str, bytes] = {}
        self._busy = False
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="records", daemon=True)
        self._thread.start()

    def put(self, name: str, content: bytes) -> None:
        with self._changed:
            self._waiting[name] = content
            self._changed.notify_all()

    def flush(self) -> None:
        """Return when all is written, or the storage has refused for a while."""
        with self._changed:
            self._changed.wait_for(lambda: not (self._waiting or self._busy), PATIENCE)

    def close(self) -> None:
        self.flush()
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if self._closed:
                    return
                name = next(iter(self._waiting))
                content, self._busy = self._waiting.pop(name), True
            refused = not self._written(name, content)
            with self._changed:
                self._busy = False
                if refused:
                    self._waiting.setdefault(name, content)
                self._changed.notify_all()
            if refused:
                time.sleep(RETRY_SECONDS)

    def _written(self, name: str, content: bytes) -> bool:
        try:
            self._folder.write(name, content)
        except Exception as error:  # a storage that refuses now may take it later
            logger.warning("%s", error)
            return False
        return True

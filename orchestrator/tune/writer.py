"""Writes records in a thread, so that no trial waits for storage."""

import logging
import threading
import time

from orchestrator.storage.folder import Folder

RETRY_SECONDS = 1.0
PATIENCE = 30.0

logger = logging.getLogger(__name__)


class Writer:
    """A thread that writes files of a folder. Of several contents for a file, the last counts."""

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
        """Return when all is written, or storage has failed for PATIENCE seconds."""
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
            failed = not self._written(name, content)
            with self._changed:
                self._busy = False
                if failed:
                    self._waiting.setdefault(name, content)
                self._changed.notify_all()
            if failed:
                time.sleep(RETRY_SECONDS)

    def _written(self, name: str, content: bytes) -> bool:
        try:
            self._folder.write(name, content)
        except Exception as error:  # the next attempt may succeed
            logger.warning("%s", error)
            return False
        return True

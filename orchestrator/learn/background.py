"""Commits snapshots in a thread beside the training, and retries where storage refuses them."""

import threading
import time
from collections.abc import Callable

from orchestrator.errors import StageError
from orchestrator.learn.snapshot import Snapshot

LIMIT = 3  # commits that fail in a row, over `patience`, before the training gets the error
RETRY_SECONDS = 0.5


class Background:
    """A thread that commits snapshots in order: one is being written, and one more may wait."""

    def __init__(
        self,
        commit: Callable[[Snapshot], None],
        failed: Callable[[Snapshot, BaseException], StageError],
        patience: float,
    ) -> None:
        self._commit = commit
        self._failed = failed
        self._patience = patience
        self._changed = threading.Condition()
        self._queue: list[Snapshot] = []  # the first is being written while the thread runs
        self._running = False
        self._thread = threading.Thread()
        self._failures = 0  # in a row
        self._failing_since = 0.0  # when the first of them was given up
        self._error = StageError("nothing failed")

    def put(self, snapshot: Snapshot) -> None:
        """Queue a snapshot. It replaces snapshots that wait, except those with a validation.

        Raises:
            StageError: where the last `LIMIT` commits failed, the first of them `patience`
                seconds ago, or no place in the queue came free.
        """
        with self._changed:
            failing = time.monotonic() - self._failing_since
            if self._failures >= LIMIT and failing >= self._patience:
                self._failures = 0
                raise self._error
            written = int(self._running)
            waiting = [other for other in self._queue[written:] if other.metrics]
            self._queue = self._queue[:written] + waiting
        self._wait_until_fewer_than(2)
        with self._changed:
            self._queue.append(snapshot)
            self._start()

    def drain(self) -> None:
        """Return when all snapshots are committed.

        Raises:
            StageError: where storage refused one for `patience` seconds.
        """
        self._wait_until_fewer_than(1)
        with self._changed:
            self._changed.wait_for(lambda: not self._running)
            thread = self._thread
        if thread.ident is not None:
            thread.join()  # a thread that frees tensors while Python exits aborts the process

    def _wait_until_fewer_than(self, limit: int) -> None:
        """Wait as long as it takes for slow storage, and for `patience` where storage fails."""
        deadline: float | None = None
        while True:
            with self._changed:
                if len(self._queue) >= limit:
                    self._start()
                self._changed.wait_for(lambda: len(self._queue) < limit or not self._running)
                if len(self._queue) < limit:
                    return
                error = self._error
            deadline = deadline or time.monotonic() + self._patience
            if time.monotonic() >= deadline:
                raise error
            time.sleep(min(RETRY_SECONDS, self._patience))

    def _start(self) -> None:
        """Start the thread, which ends when there is nothing to commit."""
        if not self._running:
            self._running = True
            self._thread = threading.Thread(target=self._run, name="checkpoints", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while True:
            with self._changed:
                if not self._queue:
                    self._stop()
                    return
                snapshot = self._queue[0]
            try:
                self._commit(snapshot)
            except BaseException as error:  # of any kind: the training may be waiting
                failure = self._failed(snapshot, error)
                failure.__cause__ = error
                with self._changed:
                    if not self._failures:
                        self._failing_since = time.monotonic()
                    self._failures, self._error = self._failures + 1, failure
                    self._stop()
                return
            with self._changed:
                self._failures = 0
                self._queue.pop(0)
                self._changed.notify_all()

    def _stop(self) -> None:
        self._running = False
        self._changed.notify_all()

"""A thread beside the training that commits its snapshots, and keeps at it where it is refused."""

import threading
import time
from collections.abc import Callable

from orchestrator.errors import StageError
from orchestrator.learn.snapshot import Snapshot

LIMIT = 3  # commits that fail in a row before the training is told
RETRY_SECONDS = 0.5


class Background:
    """A thread that commits snapshots in their order: one is written while one more may wait."""

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
        self._error = StageError("nothing failed")

    def put(self, snapshot: Snapshot) -> None:
        with self._changed:
            if self._failures >= LIMIT:
                self._failures = 0
                raise self._error
            written = int(self._running)
            waiting = [one for one in self._queue[written:] if one.metrics]
            self._queue = self._queue[:written] + waiting
        self._wait_until_fewer_than(2)
        with self._changed:
            self._queue.append(snapshot)
            self._start()

    def drain(self) -> None:
        self._wait_until_fewer_than(1)
        with self._changed:
            self._changed.wait_for(lambda: not self._running)
            thread = self._thread
        if thread.ident is not None:
            thread.join()  # one that frees tensors while Python ends would abort the process

    def _wait_until_fewer_than(self, limit: int) -> None:
        """Storage may be as slow as it is; where it refuses, it is asked again for a while."""
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
        """The thread lives as long as there is something to commit."""
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
            except BaseException as error:  # whatever it is, someone may wait for this thread
                failure = self._failed(snapshot, error)
                failure.__cause__ = error
                with self._changed:
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

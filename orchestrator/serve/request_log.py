"""Writes the log of requests. A request never waits for it and never fails by it: what cannot be
kept is dropped and counted."""

import logging
import random
import re
import threading
import time
from collections import deque
from datetime import UTC, datetime, timedelta
from typing import Any

from orchestrator.errors import first_line
from orchestrator.job.request_log import Redact, RequestLogConfig, find_redaction
from orchestrator.serve.exchange import Exchange
from orchestrator.serve.logged import FOLDER, LoggedRequest, encoded, new_name, written_at
from orchestrator.serve.metrics import UNOBSERVED, Observer
from orchestrator.storage.files import once
from orchestrator.storage.folder import Folder
from orchestrator.storage.strict_json import finite

log = logging.getLogger(__name__)

FILE_BYTES = 4 << 20  # of requests and answers, before compression
FILE_SECONDS = 30.0  # after which a request is written at the latest
LOOK_SECONDS = 600.0  # between two looks for old files while nothing comes
LARGEST = 1 << 20  # bytes of an answer that is kept
MOST_WAITING = 32 << 20  # bytes that wait for the storage
CLOSING_SECONDS = 10.0
STALE = timedelta(hours=1)  # of a file that a killed process left half written
TEMPORARY = re.compile(r"\..*\.tmp")


class RequestLog:
    """A thread that writes requests into files, and deletes the oldest ones."""

    def __init__(
        self,
        config: RequestLogConfig,
        run: Folder,
        observer: Observer = UNOBSERVED,
        seconds: float = FILE_SECONDS,
    ) -> None:
        """
        Args:
            run: its folder `requests` holds the files.
            seconds: how long a request waits for others that share its file.

        Raises:
            UserError: if the redaction cannot be imported.
        """
        self._share, self._days = config.share, timedelta(days=config.days)
        self._bytes = config.megabytes << 20
        self._file_bytes = min(FILE_BYTES, self._bytes // 8)
        self._redact: Redact | None = None
        if config.redact is not None:
            self._redact = find_redaction(config.redact)
        self._folder, self._observer, self._seconds = run / FOLDER, observer, seconds
        self._waiting: deque[tuple[float, Exchange]] = deque()  # since when
        self._size = 0  # of all that wait
        self._changed = threading.Condition()
        self._closed = self._failing = False
        self._told = False  # of a redaction that fails: once, since it may fail for each request
        self._thread = threading.Thread(target=self._run, name="request-log", daemon=True)
        self._thread.start()

    def draws(self) -> bool:
        """Whether a request is in the sample."""
        return self._share >= 1 or random.random() < self._share  # noqa: S311

    def add(self, exchange: Exchange) -> None:
        """Keep a request; returns at once."""
        if exchange.size > 2 * LARGEST:
            return self._dropped("large")
        with self._changed:
            if self._closed or self._size + exchange.size > MOST_WAITING:
                return self._dropped("full")
            self._waiting.append((time.monotonic(), exchange))
            self._size += exchange.size
            if len(self._waiting) == 1 or self._size >= self._file_bytes:
                self._changed.notify()

    def close(self) -> None:
        """Write what waits, for some seconds at most."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(CLOSING_SECONDS)

    def _run(self) -> None:
        while True:
            exchanges, is_last = self._taken()
            try:
                with once():
                    self._write(exchanges)
            except Exception as error:  # whatever it is, requests go on
                self._dropped("storage", len(exchanges))
                if not self._failing:
                    log.warning("requests are not logged: %s", first_line(error))
                self._failing = True
            else:
                self._failing = False
            if is_last:
                return

    def _taken(self) -> tuple[list[Exchange], bool]:
        """The requests of the next file, when it is time for it, and whether it is the last one."""
        idle = time.monotonic() + LOOK_SECONDS
        taken: list[Exchange] = []
        with self._changed:
            while not self._closed and self._size < self._file_bytes:
                due = self._waiting[0][0] + self._seconds if self._waiting else idle
                if (left := due - time.monotonic()) <= 0:
                    break
                self._changed.wait(left)
            size = 0
            while self._waiting and size < self._file_bytes:
                exchange = self._waiting.popleft()[1]
                taken.append(exchange)
                size += exchange.size
            self._size -= size
            return taken, self._closed and not self._waiting

    def _write(self, exchanges: list[Exchange]) -> None:
        requests = [request for each in exchanges if (request := self._logged(each)) is not None]
        now = datetime.now(UTC)
        content = encoded(requests) if requests else b""
        if len(content) > self._bytes:
            return self._dropped("large", len(requests))
        self._make_room(now, len(content))
        if requests:
            self._folder.write(new_name(now), content)
            self._observer.add("orchestrator_logged_requests", len(requests))

    def _logged(self, exchange: Exchange) -> LoggedRequest | None:
        """What is kept of a request: nothing, if its redaction fails or says so."""
        request = exchange.logged()
        if self._redact is None:
            return request
        given = {
            "path": request.path,
            "status": request.status,
            "request": request.request,
            "answer": request.answer,
        }
        try:
            kept: Any = self._redact(given)
            if kept is None:
                return None
            contents = finite({"request": kept["request"], "answer": kept["answer"]})
            redacted = LoggedRequest(**{**vars(request), **contents})
            encoded([redacted])  # it may hold what JSON cannot
        except Exception as error:  # of the user's function: its message may hold personal data
            if not self._told:
                log.warning("serve.log.redact failed: %s", type(error).__name__)
            self._told = True
            self._dropped("redaction")
            return None
        return redacted

    def _make_room(self, now: datetime, size: int) -> None:
        """Delete what is too old, and the oldest files until so many bytes have room."""
        stamps = self._folder.stamps()
        total = sum(stamps[name].size for name in stamps if written_at(name) is not None) + size
        for name in sorted(stamps):
            written = written_at(name)
            if written is None:
                modified = datetime.fromtimestamp(stamps[name].modified / 1e9, UTC)
                if TEMPORARY.fullmatch(name) and now - modified > STALE:
                    self._folder.remove(name)
            elif total > self._bytes or now - written > self._days:
                self._folder.remove(name)
                total -= stamps[name].size

    def _dropped(self, reason: str, count: int = 1) -> None:
        self._observer.add("orchestrator_unlogged_requests", count, reason=reason)

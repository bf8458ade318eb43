"""The events of a run: what happened and when, one JSON object per line.

On local storage a line is appended to `events.jsonl`. Other storage cannot append: there
each writer rewrites an object of its own, since a run has few events.
"""

import collections
import heapq
import json
import logging
import math
import os
import threading
import time
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from orchestrator.storage.files import once
from orchestrator.storage.folder import Folder, no_link

FILE = "events.jsonl"
OBJECTS = "events"
REMEMBERED = 1_000  # events that wait for the storage, and events per object
LONGEST_TEXT = 10_000  # characters of a value that is written
RETRY_SECONDS = 5.0
LONGEST_SHOWN = 500  # characters of a value that is shown

log = logging.getLogger(__name__)


class EventLog:
    """Writes events of a run. Several threads and processes may write to one folder."""

    def __init__(self, folder: Folder) -> None:
        self.folder = folder
        self._lines: collections.deque[bytes] = collections.deque(maxlen=REMEMBERED)
        self._object = _object_name()
        self._lock = threading.Lock()
        self._warned = False
        self._retry: threading.Timer | None = None

    def write(self, stage: str, event: str, **fields: Any) -> None:
        """Append an event. Never raises: a training must not end because of its event log."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        head = {"time": now, "stage": stage, "event": event}
        line = _encode({**head, **fields, "time": now})
        with self._lock:
            self._lines.append(line)
            self._write()

    def _write(self) -> None:
        try:
            self._append() if self.folder.local_path is not None else self._rewrite()
        except Exception as error:
            # Unwritten events stay in `_lines`; a retry writes them even if no event follows.
            if not self._warned:
                log.warning("events cannot be written: %s", error)
            self._warned = True
            if self._retry is None:
                self._retry = threading.Timer(RETRY_SECONDS, self._write_again)
                self._retry.daemon = True
                self._retry.start()

    def _write_again(self) -> None:
        with self._lock:
            self._retry = None
            self._write()

    def _append(self) -> None:
        assert self.folder.local_path is not None
        self.folder.local_path.mkdir(parents=True, exist_ok=True)
        file = no_link(str(self.folder.local_path / FILE), os.O_RDWR | os.O_APPEND | os.O_CREAT)
        try:
            size = os.fstat(file).st_size
            torn = size > 0 and os.pread(file, 1, size - 1) != b"\n"
            while self._lines:
                line = b"\n" * torn + self._lines[0]
                if os.write(file, line) < len(line):
                    raise OSError(f"no room for {self.folder}/{FILE}")
                self._lines.popleft()
                torn = False
        finally:
            os.close(file)

    def _rewrite(self) -> None:
        with once():  # it is tried again anyway, and who writes an event must not wait
            (self.folder / OBJECTS).write(self._object, b"".join(self._lines))
        if len(self._lines) == REMEMBERED:
            self._lines.clear()
            self._object = _object_name()


def read_events(folder: Folder) -> list[dict[str, Any]]:
    """All events of a run in order. Lines that were cut by a crash are left out."""
    if folder.local_path is not None:
        return _decode(_read(folder, FILE))
    objects = folder / OBJECTS
    stories = [_decode(_read(objects, name)) for name in objects.names()]
    return list(heapq.merge(*stories, key=lambda event: event["time"]))


def describe(event: Mapping[str, Any]) -> str:
    """The fields of an event except its time, stage and name, as `key value` pairs."""
    pairs = {name: value for name, value in event.items() if name not in ("time", "stage", "event")}
    return ", ".join(f"{name.replace('_', ' ')} {_text(value)}" for name, value in pairs.items())


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.5g}"
    text = value.strip() if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= LONGEST_SHOWN else text[:LONGEST_SHOWN] + "…"


def _object_name() -> str:
    return f"{time.time_ns():020d}-{uuid.uuid4().hex[:8]}.jsonl"


def _encode(event: dict[str, Any]) -> bytes:
    """An event as a line of strict JSON."""
    pairs = (f"{json.dumps(name)}: {_json(value)}" for name, value in event.items())
    return f"{{{', '.join(pairs)}}}\n".encode("utf-8", "replace")


def _json(value: Any) -> str:
    try:
        return json.dumps(_plain(value), ensure_ascii=False, allow_nan=False)
    except Exception:  # a value's own methods may raise anything
        return json.dumps(f"<{type(value).__name__}>")


def _plain(value: Any) -> Any:
    """The value in JSON's types."""
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):  # of numpy or torch
        return _plain(value.tolist())
    text = str(value)
    return text if len(text) <= LONGEST_TEXT else text[:LONGEST_TEXT] + "…"


def _read(folder: Folder, name: str) -> bytes:
    try:
        return folder.read(name)
    except FileNotFoundError:
        return b""


def _decode(content: bytes) -> list[dict[str, Any]]:
    return [event for line in content.split(b"\n") if (event := _event(line)) is not None]


def _event(line: bytes) -> dict[str, Any] | None:
    try:
        event = json.loads(line)
        datetime.fromisoformat(event["time"])
        return event if {"stage", "event"} <= event.keys() else None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None

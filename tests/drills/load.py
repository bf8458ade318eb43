"""Clients that ask an endpoint without a pause, and remember every answer."""

import threading
from collections import Counter
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import httpx


@dataclass
class Load:
    """A few clients at once, from `with` to its end."""

    url: str
    body: dict[str, Any]
    clients: int = 2
    statuses: Counter[int | str] = field(default_factory=Counter)
    versions: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    slowest: float = 0.0

    def __enter__(self) -> Self:
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(n,)) for n in range(self.clients)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()

    def reset(self) -> None:
        self.statuses.clear()
        self.versions.clear()

    def _ask(self, number: int) -> None:
        count = 0
        with httpx.Client(timeout=60) as client:
            while not self._ended.is_set():
                count += 1
                body = {**self.body, "user": f"{number}-{count}"}
                try:
                    answer = client.post(f"{self.url}/v1/completions", json=body)
                except httpx.HTTPError as error:
                    self.statuses[type(error).__name__] += 1
                    self.failures.append(repr(error))
                    continue
                self.statuses[answer.status_code] += 1
                self.versions[answer.headers.get("x-model-version", "none")] += 1
                self.slowest = max(self.slowest, answer.elapsed.total_seconds())
                if answer.status_code != 200:
                    self.failures.append(f"{answer.status_code}: {answer.text[:200]}")

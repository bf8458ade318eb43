"""Who is next, in which slot, and how much of the waiting prompts a step computes."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Generic, TypeVar

# A shorter common prefix is no reason to overwrite a slot that keeps more than twice as much.
WORTH_KEEPING = 16
FEWEST = 8  # tokens of a prompt that are worth a call of their own
RATE_SECONDS = 30.0  # over which the rate of finished requests is taken

T = TypeVar("T")


class FairQueue(Generic[T]):
    """Waiting requests: clients take turns, each one's own are in order."""

    def __init__(self) -> None:
        self._by_client: dict[str, deque[T]] = {}  # the client whose turn it is comes first
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[T]:
        for waiting in self._by_client.values():
            yield from waiting

    def push(self, client: str, item: T) -> None:
        self._by_client.setdefault(client, deque()).append(item)
        self._count += 1

    def pop(self) -> T:
        """The next one. Its client's turn comes again after all others'."""
        client = next(iter(self._by_client))
        waiting = self._by_client.pop(client)
        item = waiting.popleft()
        if waiting:
            self._by_client[client] = waiting
        self._count -= 1
        return item

    def remove(self, leaves: Callable[[T], bool]) -> list[T]:
        """Take out all for which `leaves` is true."""
        removed = [item for item in self if leaves(item)]
        if removed:
            kept = {c: deque(i for i in w if not leaves(i)) for c, w in self._by_client.items()}
            self._by_client = {client: waiting for client, waiting in kept.items() if waiting}
            self._count -= len(removed)
        return removed


class Rate:
    """How many requests end in a second, from which follows when a place in the queue is free."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._ends: deque[float] = deque()
        self._start = clock()

    def count(self) -> None:
        self._ends.append(self._clock())

    def retry_after(self) -> float:
        """Seconds until the next request ends, from 1 to 60, by the last 30 seconds."""
        now = self._clock()
        while self._ends and self._ends[0] < now - RATE_SECONDS:
            self._ends.popleft()
        span = min(now - self._start, RATE_SECONDS)
        return min(max(span / max(len(self._ends), 1), 1.0), 60.0)


def common_prefix(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens two sequences begin with alike."""
    length = min(len(first), len(second))
    if first[:length] == second[:length]:
        return length
    return next(i for i in range(length) if first[i] != second[i])


def choose_slot(kept: Iterable[tuple[int, int, int]]) -> tuple[int, int]:
    """The slot for a request, and how many of its tokens serve.

    Args:
        kept: for each free slot, the least recently used first: its number, its tokens, and how
            many of these the request begins with.
    """
    best, oldest = None, None
    for slot, tokens, prefix in kept:
        if oldest is None:
            oldest = (slot, prefix)
        worth = prefix and (prefix >= WORTH_KEEPING or 2 * prefix >= tokens)
        if worth and (best is None or prefix > best[1]):
            best = (slot, prefix)
    chosen = best or oldest
    assert chosen is not None, "a request is given a slot only when one is free"
    return chosen


def prompt_shares(remaining: list[int], budget: int) -> list[int]:
    """How many prompt tokens of each sequence a step computes: as equal shares of `budget` as can
    be, so that a short prompt does not wait for a long one. Without enough for FEWEST each, the
    oldest, which come first, have them."""
    shares: list[int] = []
    for i, tokens in enumerate(remaining):
        share = min(tokens, budget, max(budget // (len(remaining) - i), FEWEST))
        shares.append(share)
        budget -= share
    return shares

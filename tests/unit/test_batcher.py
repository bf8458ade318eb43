"""Dynamic batching: requests share batches, and each gets its own rows and its own errors."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.data.arrays import Arrays
from orchestrator.errors import StageError
from orchestrator.infer.batcher import Batch, Batcher, BatchLimits, DeadlineError
from orchestrator.infer.generation import FullError

WIDTH = 32
SECONDS = 20.0


class Model:
    """Adds up the tokens of each row; a row of one zero token is an error. It can be held up."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []  # the lengths of their rows
        self.may_go = threading.Event()
        self.may_go.set()
        self.is_held = threading.Event()

    def total(self, arrays: Arrays) -> Arrays:
        self.batches.append(arrays["tokens_length"].tolist())
        if not self.may_go.is_set():
            self.is_held.set()
            assert self.may_go.wait(SECONDS)
        totals = [
            row[:length].sum()
            for row, length in zip(arrays["tokens"], arrays["tokens_length"], strict=True)
        ]
        if 0 in totals:
            raise ValueError("a row of zeros")
        return {"total": np.array(totals), "length": arrays["tokens_length"]}

    def largest(self, arrays: Arrays) -> Arrays:
        return {"largest": arrays["tokens"].max(1)}

    def hold(self, batcher: Batcher) -> "Future[list[Arrays]]":
        """Let the thread begin a batch and stay in it, so that further requests wait."""
        self.may_go.clear()
        first = batcher.submit(self.total, rows([1]))
        assert self.is_held.wait(SECONDS)
        return first


def rows(*tokens: list[int]) -> Callable[[], Arrays]:
    array = np.zeros((len(tokens), WIDTH), dtype=np.int64)
    for i, row in enumerate(tokens):
        array[i, : len(row)] = row
    lengths = np.array([len(row) for row in tokens], dtype=np.int32)
    return lambda: {"tokens": array, "tokens_length": lengths}


def totals(future: "Future[list[Arrays]]") -> list[int]:
    answers = future.result(SECONDS)
    assert all(values.shape == (1,) for answer in answers for values in answer.values())
    return [int(answer["total"][0]) for answer in answers]


@pytest.fixture
def model() -> Model:
    return Model()


@pytest.fixture
def make() -> Iterator[Callable[..., Batcher]]:
    made: list[Batcher] = []

    def new(listener: Callable[[Batch], None] = lambda batch: None, **limits: Any) -> Batcher:
        made.append(Batcher(BatchLimits(**limits), listener))
        return made[-1]

    yield new
    for batcher in made:
        batcher.close()


def test_a_request_gets_its_own_rows_in_their_order(model: Model, make: Any) -> None:
    batcher = make()
    assert totals(batcher.submit(model.total, rows([5, 5, 5], [1], [2, 2]))) == [15, 1, 4]


def test_requests_that_wait_share_batches_sorted_by_length(model: Model, make: Any) -> None:
    batcher = make(tokens=12)
    first = model.hold(batcher)
    lengths = [6, 1, 2, 5, 1, 2]
    futures = [batcher.submit(model.total, rows([7] * length)) for length in lengths]
    model.may_go.set()
    assert totals(first) == [1]
    assert [totals(future) for future in futures] == [[7 * length] for length in lengths]
    assert model.batches[1:] == [[1, 1, 2, 2], [5, 6]]  # four rows times two, two times six


def test_a_batch_has_at_most_so_many_rows(model: Model, make: Any) -> None:
    batcher = make(rows=2)
    assert totals(batcher.submit(model.total, rows(*[[3]] * 5))) == [3] * 5
    assert [len(batch) for batch in model.batches] == [2, 2, 1]


def test_a_row_longer_than_a_batch_is_computed_alone(model: Model, make: Any) -> None:
    batcher = make(tokens=4)
    assert totals(batcher.submit(model.total, rows([1] * 9, [2], [2]))) == [9, 2, 2]
    assert model.batches == [[1, 1], [9]]


@given(st.lists(st.lists(st.integers(1, WIDTH), max_size=5), min_size=1, max_size=12), st.data())
def test_no_row_is_lost_or_given_to_another(requests: list[list[int]], data: Any) -> None:
    model = Model()
    limits = BatchLimits(
        tokens=data.draw(st.integers(1, 80)), rows=data.draw(st.integers(1, 6)), window=0.0
    )
    batcher = Batcher(limits)
    tokens = [[[9 * i + j + 1] * n for j, n in enumerate(r)] for i, r in enumerate(requests)]
    futures = [batcher.submit(model.total, rows(*request)) for request in tokens]
    assert [totals(f) for f in futures] == [[sum(row) for row in r] for r in tokens]
    for batch in model.batches:
        assert len(batch) == 1 or len(batch) * max(batch) <= limits.tokens
        assert len(batch) <= limits.rows
    batcher.close()


def test_computations_of_two_kinds_share_no_batch(model: Model, make: Any) -> None:
    batcher = make()
    first = model.hold(batcher)
    largest = batcher.submit(model.largest, rows([3, 4], [1]))
    total = batcher.submit(model.total, rows([3, 4], [1]))
    model.may_go.set()
    assert totals(first) == [1] and totals(total) == [7, 1]
    assert [int(a["largest"][0]) for a in largest.result(SECONDS)] == [4, 1]


def test_an_error_in_one_requests_rows_is_that_requests_alone(model: Model, make: Any) -> None:
    batcher = make()
    first = model.hold(batcher)
    good = [batcher.submit(model.total, rows([number])) for number in (1, 2)]
    bad = batcher.submit(model.total, rows([5], [0]))
    more = batcher.submit(model.total, rows([3]))
    model.may_go.set()
    assert totals(first) == [1] and [totals(f) for f in (*good, more)] == [[1], [2], [3]]
    with pytest.raises(ValueError, match="a row of zeros"):
        bad.result(SECONDS)
    assert totals(batcher.submit(model.total, rows([4]))) == [4]


def test_rows_that_cannot_be_encoded_fail_their_request_alone(model: Model, make: Any) -> None:
    def broken() -> Arrays:
        raise KeyError("text")

    batcher = make()
    first = model.hold(batcher)
    bad, good = batcher.submit(model.total, broken), batcher.submit(model.total, rows([2]))
    model.may_go.set()
    assert totals(first) == [1] and totals(good) == [2]
    with pytest.raises(KeyError):
        bad.result(SECONDS)


def test_a_full_queue_refuses_and_says_when_to_come_again(model: Model, make: Any) -> None:
    batcher = make(waiting=2)
    totals(batcher.submit(model.total, rows([1])))  # how long a request takes is known now
    model.hold(batcher)
    for _ in range(2):
        batcher.submit(model.total, rows([1]))
    with pytest.raises(FullError, match="2 requests wait") as refused:
        batcher.submit(model.total, rows([1]))
    assert 0 < refused.value.retry_after < SECONDS
    model.may_go.set()


def test_a_cancelled_request_frees_its_place_and_is_not_computed(model: Model, make: Any) -> None:
    batcher = make(waiting=1)
    first = model.hold(batcher)
    gone = batcher.submit(model.total, rows([5] * 7))
    assert gone.cancel()
    stays = batcher.submit(model.total, rows([5] * 3))
    model.may_go.set()
    assert totals(first) == [1] and totals(stays) == [15]
    assert model.batches == [[1], [3]]
    with pytest.raises(CancelledError):
        gone.result(SECONDS)


def test_a_request_cancelled_between_its_batches_stops_there(model: Model, make: Any) -> None:
    batcher = make(rows=1)
    model.may_go.clear()
    gone = batcher.submit(model.total, rows([1], [2], [3]))
    assert model.is_held.wait(SECONDS)
    gone.cancel()
    model.may_go.set()
    assert totals(batcher.submit(model.total, rows([4]))) == [4]
    assert len(model.batches) == 2


def test_a_request_that_is_late_fails_without_being_computed(model: Model, make: Any) -> None:
    batcher = make()
    first = model.hold(batcher)
    late = batcher.submit(model.total, rows([5]), deadline=time.monotonic() + 0.01)
    in_time = batcher.submit(model.total, rows([6]), deadline=time.monotonic() + SECONDS)
    time.sleep(0.02)
    model.may_go.set()
    with pytest.raises(DeadlineError, match="no answer within"):
        late.result(SECONDS)
    assert totals(first) == [1] and totals(in_time) == [6]
    assert model.batches == [[1], [1]]


def test_closing_cancels_what_waits(model: Model, make: Any) -> None:
    batcher = make()
    first = model.hold(batcher)
    waiting = batcher.submit(model.total, rows([1]))
    batcher.close()
    model.may_go.set()
    assert totals(first) == [1]
    with pytest.raises(CancelledError):
        waiting.result(SECONDS)
    with pytest.raises(StageError, match="closing"):
        batcher.submit(model.total, rows([1]))


def test_a_request_to_an_idle_batcher_does_not_wait_for_others(model: Model, make: Any) -> None:
    batcher = make(window=SECONDS)
    begin = time.monotonic()
    assert [totals(batcher.submit(model.total, rows([1]))) for _ in range(3)] == [[1]] * 3
    assert time.monotonic() - begin < SECONDS / 2


def test_clients_that_ask_again_at_once_share_the_next_batch(model: Model, make: Any) -> None:
    batcher = make(window=SECONDS / 10)
    first = model.hold(batcher)
    pair = [batcher.submit(model.total, rows([2])) for _ in range(2)]
    model.may_go.set()
    assert [totals(future) for future in (first, *pair)] == [[1], [2], [2]]
    again = batcher.submit(model.total, rows([3]))
    time.sleep(0.05)  # within the window, the thread waits for as many as last time
    other = batcher.submit(model.total, rows([3]))
    assert [totals(again), totals(other)] == [[3], [3]]
    assert model.batches == [[1], [1, 1], [1, 1]]


def test_a_listener_learns_of_every_batch(model: Model, make: Any) -> None:
    batches: list[Batch] = []
    batcher = make(batches.append, tokens=8)
    totals(batcher.submit(model.total, rows([1], [1] * 3, [1] * 4)))
    totals(batcher.submit(model.total, rows([2])))
    assert [(b.rows, b.tokens, b.real_tokens) for b in batches[:2]] == [(2, 6, 4), (1, 4, 4)]
    assert [len(b.waited) for b in batches[:2]] == [1, 0]


def test_a_listener_that_fails_stops_nothing(model: Model, make: Any) -> None:
    def fail(batch: Batch) -> None:
        raise RuntimeError("no metrics today")

    batcher = make(fail)
    assert [totals(batcher.submit(model.total, rows([n]))) for n in (1, 2)] == [[1], [2]]


def test_arrays_that_no_batch_can_hold_end_no_thread(model: Model, make: Any) -> None:
    class Unhashable:
        __hash__ = None  # type: ignore[assignment]

        def __call__(self, arrays: Arrays) -> Arrays:
            return arrays

    batcher = make()
    bad = batcher.submit(Unhashable(), rows([1]))
    with pytest.raises(TypeError, match="unhashable"):
        bad.result(SECONDS)
    assert totals(batcher.submit(model.total, rows([2]))) == [2]

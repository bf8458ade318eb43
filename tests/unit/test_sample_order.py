"""The order of samples: every epoch whole, the same for any workers, a few shards at a time."""

import itertools
import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from orchestrator.data.sample_order import Rows, SampleOrder

seeds = st.one_of(st.integers(0, 3), st.integers(0, 2**63 - 1), st.just(2**63 - 1))
sizes = st.lists(st.integers(0, 40) | st.sampled_from([0, 1, 300]), min_size=1, max_size=40)
orders = st.builds(
    SampleOrder, sizes.filter(any).map(tuple), seeds, st.sampled_from([1, 2, 3, 8, 100])
)
mixed = st.builds(  # with enough rows for no two epochs to be alike by chance
    SampleOrder, st.lists(st.integers(10, 60), min_size=1, max_size=20).map(tuple), seeds
)


def epochs_of(order: SampleOrder, count: int, first: int = 0) -> Rows:
    """Whole epochs, one a line."""
    start, stop = first * order.num_rows, (first + count) * order.num_rows
    return order.rows(start, stop).reshape(count, order.num_rows)


def shard_of(order: SampleOrder, rows: Rows) -> Rows:
    return np.searchsorted(np.cumsum(order.shard_rows), rows, side="right")


@given(orders, st.integers(0, 10**6) | st.just(2**62))
def test_every_epoch_holds_each_row_exactly_once(order: SampleOrder, first: int) -> None:
    for epoch in epochs_of(order, 3, first):
        np.testing.assert_array_equal(np.sort(epoch), np.arange(order.num_rows))


@given(orders, st.lists(st.integers(0, 3000), min_size=2, max_size=6).map(sorted))
def test_slices_put_together_equal_one_large_call(order: SampleOrder, cuts: list[int]) -> None:
    parts = [order.rows(start, stop) for start, stop in itertools.pairwise(cuts)]
    np.testing.assert_array_equal(np.concatenate(parts), order.rows(cuts[0], cuts[-1]))


@given(orders, st.integers(1, 100), st.data())
def test_changing_workers_and_resuming_anywhere_change_no_batch_and_lose_no_row(
    order: SampleOrder, batch: int, data: st.DataObject
) -> None:
    """A training that starts anew, with other workers, at some of its steps."""
    assume(order.num_rows <= 20 * batch)
    steps = -(-3 * order.num_rows // batch)
    resumed_at = data.draw(st.sets(st.integers(0, steps - 1), max_size=4))
    seen, workers = [], 1
    for step in range(steps):
        if step in resumed_at:  # all that a new process knows is the configuration and the step
            order = SampleOrder(order.shard_rows, order.seed, order.window)
            workers = data.draw(st.integers(1, 5))
        rows = [order.rows(step * batch, (step + 1) * batch) for _ in range(workers)]
        shares = [np.array_split(rows[rank], workers)[rank] for rank in range(workers)]
        assert sum(map(len, shares)) == batch
        seen.append(np.concatenate(shares))
    stream = np.concatenate(seen)
    np.testing.assert_array_equal(stream, order.rows(0, steps * batch))
    for epoch in stream[: 3 * order.num_rows].reshape(3, order.num_rows):
        np.testing.assert_array_equal(np.sort(epoch), np.arange(order.num_rows))


@given(st.integers(1, 7), seeds)
def test_a_batch_larger_than_the_data_spans_epochs(num_rows: int, seed: int) -> None:
    rows = SampleOrder((num_rows,), seed).rows(0, 64)
    assert np.bincount(rows).tolist() == pytest.approx([64 / num_rows] * num_rows, abs=1)


@given(mixed)
def test_epochs_differ_from_one_another_and_from_the_order_of_the_file(order: SampleOrder) -> None:
    assume(order.num_rows >= 50)
    epochs = [*epochs_of(order, 4), np.arange(order.num_rows)]
    for one, other in itertools.combinations(epochs, 2):
        assert (one != other).mean() > 0.5


@given(mixed)
def test_neighbouring_seeds_give_different_orders(order: SampleOrder) -> None:
    assume(order.num_rows >= 50 and order.seed < 2**63 - 1)
    other = SampleOrder(order.shard_rows, order.seed + 1)
    assert (epochs_of(order, 1) != epochs_of(other, 1)).mean() > 0.5


@given(orders, st.integers(0, 5), st.data())
def test_a_batch_smaller_than_any_window_reads_two_windows_of_shards_at_most(
    order: SampleOrder, epoch: int, data: st.DataObject
) -> None:
    filled = [rows for rows in order.shard_rows if rows]
    shards = len(filled) // -(-len(filled) // order.window)  # of the smallest window there can be
    batch = sum(sorted(filled)[:shards])
    start = epoch * order.num_rows + data.draw(st.integers(0, order.num_rows))
    rows = order.rows(start, start + batch)
    assert len(np.unique(shard_of(order, rows))) <= 2 * order.window


def test_no_window_is_a_mere_rest_that_a_batch_skips_over() -> None:
    order = SampleOrder((10,) * 13, seed=0, window=4)  # 4 + 3 + 3 + 3 shards, not 4 + 4 + 4 + 1
    for end in range(130, 130 * 200, 130):
        assert len(np.unique(shard_of(order, order.rows(end - 25, end + 5)))) <= 8


@pytest.mark.parametrize("shards", [9, 17, 40, 63])
def test_all_rows_of_a_shard_lie_within_one_window(shards: int) -> None:
    order = SampleOrder((25,) * shards, seed=5)
    (epoch,) = shard_of(order, epochs_of(order, 1))
    reach = [np.ptp(np.flatnonzero(epoch == shard)) for shard in range(shards)]
    assert max(reach) < 8 * 25


def test_windows_hold_other_shards_in_every_epoch() -> None:
    order = SampleOrder((10,) * 32, seed=1)
    first = [frozenset(shard_of(order, epoch[:80]).tolist()) for epoch in epochs_of(order, 20)]
    assert len(set(first)) == 20
    assert frozenset().union(*first) == set(range(32))


@pytest.mark.parametrize(("shards", "window"), [((100,), 8), ((10,) * 10, 4), ((1,) * 100, 8)])
def test_every_row_comes_everywhere_in_the_epoch_about_equally_often(
    shards: tuple[int, ...], window: int
) -> None:
    epochs = epochs_of(SampleOrder(shards, seed=0, window=window), 4000)
    for position in (0, 50, 99):
        counts = np.bincount(epochs[:, position], minlength=100)
        assert counts.min() > 10 and counts.max() < 90  # 40 expected, 6.3 standard deviation


@pytest.mark.parametrize("num_rows", [2, 3, 4, 5])
def test_so_few_rows_come_in_all_the_orders_there_are(num_rows: int) -> None:
    epochs = epochs_of(SampleOrder((num_rows,), seed=0), 6000)
    assert len({tuple(epoch) for epoch in epochs}) == np.prod(range(1, num_rows + 1))


@pytest.mark.parametrize("epoch", [0, 1, 7])
def test_rows_close_in_the_order_have_nothing_to_do_with_one_another(epoch: int) -> None:
    """One window of 8 shards: correlations of 8,000 independent rows have a deviation of 0.011."""
    order = SampleOrder((1000,) * 8, seed=2)
    rows, following = epochs_of(order, 2, epoch)
    for lag in (1, 2, 3, 32, 1000):
        assert abs(np.corrcoef(rows[lag:], rows[:-lag])[0, 1]) < 0.05
    assert abs(np.corrcoef(rows, np.arange(8000))[0, 1]) < 0.05
    assert abs(np.corrcoef(rows, following)[0, 1]) < 0.05
    parity = (rows % 2).astype(float)
    assert abs(np.corrcoef(parity[1:], parity[:-1])[0, 1]) < 0.05


def test_a_batch_draws_evenly_on_the_shards_of_its_window() -> None:
    order = SampleOrder((1000,) * 64, seed=4)
    (epoch,) = epochs_of(order, 1)
    for batch in epoch[: 8000 - 8000 % 256].reshape(-1, 256)[:31]:
        _, counts = np.unique(shard_of(order, batch), return_counts=True)
        assert len(counts) == 8
        assert counts.min() > 10 and counts.max() < 60  # 32 expected, 5.2 standard deviation


def test_ten_billion_rows_cost_little_memory_and_time() -> None:
    order = SampleOrder((10**6,) * 10**4, seed=3)
    tracemalloc.start()
    rows = order.rows(7 * 10**10 - 500, 7 * 10**10 + 500)  # half of it in the next epoch
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 5_000_000
    for half in (rows[:500], rows[500:]):
        assert len(set(half.tolist())) == 500
        assert len(np.unique(shard_of(order, half))) <= 8
    assert rows.min() >= 0 and rows.max() < 10**10

    started = time.perf_counter()
    for step in range(100):
        order.rows(step * 256, (step + 1) * 256)
    assert time.perf_counter() - started < 1  # 0.02 s, but machines that run tests are busy


@pytest.mark.parametrize("shards", [(), (0,), (0, 0, 0)])
def test_no_rows_have_no_order(shards: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="without any row"):
        SampleOrder(shards, seed=0)


def test_a_window_holds_a_shard_at_least() -> None:
    with pytest.raises(ValueError, match="window = 0"):
        SampleOrder((5,), seed=0, window=0)


@given(orders, st.integers(0, 1000))
def test_no_positions_are_no_rows(order: SampleOrder, start: int) -> None:
    assert order.rows(start, start).shape == (0,)

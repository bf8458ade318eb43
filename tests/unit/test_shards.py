"""The order of samples, and shards read back by position."""

import hashlib
import itertools
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.artifact import Folder, PreparedData
from orchestrator.shards import Arrays, SampleOrder, ShardReader, write_shard

orders = st.builds(SampleOrder, st.integers(1, 5000), st.integers(0, 2**64 - 1))


def reader_of(folder: Folder, *shards: Arrays) -> ShardReader:
    """A reader of a training split that holds these shards."""
    written = [write_shard(folder, f"{i}.arrow", shard) for i, shard in enumerate(shards)]
    prepared = PreparedData(
        folder=folder,
        seconds=0.0,
        summary="",
        processor="",
        splits={"train": written, "validation": [], "test": []},
        documents={},
        source_bytes=0,
    )
    return ShardReader(prepared, "train")


def samples(count: int, seed: int) -> Arrays:
    """Rows of three columns that differ in shape and type."""
    random = np.random.default_rng(seed)
    return {
        "tokens": random.integers(0, 2**16, (count, 5), dtype=np.uint16),
        "image": random.normal(size=(count, 2, 3)).astype(np.float32),
        "label": random.integers(-(2**40), 2**40, count),
    }


@given(orders, st.integers(0, 10**6))
def test_every_epoch_holds_each_row_exactly_once(order: SampleOrder, epoch: int) -> None:
    start = epoch * order.num_rows
    rows = order.rows(start, start + order.num_rows)
    np.testing.assert_array_equal(np.sort(rows), np.arange(order.num_rows))


@given(orders, st.lists(st.integers(0, 12_000), min_size=2, max_size=6).map(sorted))
def test_slices_put_together_equal_one_large_call(order: SampleOrder, cuts: list[int]) -> None:
    parts = [order.rows(start, stop) for start, stop in itertools.pairwise(cuts)]
    np.testing.assert_array_equal(np.concatenate(parts), order.rows(cuts[0], cuts[-1]))


@given(st.integers(50, 5000), st.integers(0, 2**64 - 1))
def test_epochs_differ_from_one_another_and_from_the_order_of_the_file(
    num_rows: int, seed: int
) -> None:
    epochs = SampleOrder(num_rows, seed).rows(0, 4 * num_rows).reshape(4, num_rows)
    assert len({tuple(epoch) for epoch in [*epochs, np.arange(num_rows)]}) == 5


@given(st.integers(50, 5000), st.integers(0, 2**64 - 2))
def test_neighbouring_seeds_give_different_orders(num_rows: int, seed: int) -> None:
    first, second = (SampleOrder(num_rows, s).rows(0, num_rows) for s in (seed, seed + 1))
    assert (first != second).mean() > 0.5


def test_every_row_comes_everywhere_in_the_epoch_about_equally_often() -> None:
    epochs = SampleOrder(100, seed=0).rows(0, 100 * 4000).reshape(4000, 100)
    for position in (0, 50, 99):
        counts = np.bincount(epochs[:, position], minlength=100)
        assert counts.min() > 10 and counts.max() < 90  # 40 expected, 6.3 standard deviation


def test_ten_billion_rows_cost_no_more_than_the_rows_asked_for() -> None:
    order = SampleOrder(10**10, seed=3)
    tracemalloc.start()
    rows = order.rows(7 * 10**10 - 500, 7 * 10**10 + 500)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1_000_000
    for half in (rows[:500], rows[500:]):  # two epochs
        assert len(set(half.tolist())) == 500
    assert rows.min() >= 0 and rows.max() < 10**10


@given(st.lists(st.integers(0, 16), max_size=40))
def test_rows_come_in_the_order_asked_for_with_repeats(tmp_path_factory, wanted: list[int]) -> None:
    parts = [samples(count, seed=count) for count in (7, 1, 9)]
    reader = reader_of(Folder(str(tmp_path_factory.mktemp("shards"))), *parts)
    assert reader.num_rows == 17
    found = reader.read(wanted)
    assert found.keys() == parts[0].keys()
    for name, column in found.items():
        expected = np.concatenate([part[name] for part in parts])[wanted]
        np.testing.assert_array_equal(column, expected)
        assert column.dtype == expected.dtype


@pytest.mark.parametrize(
    "dtype", ["bool", "uint8", "int16", "uint16", "int64", "float16", "float32", "float64"]
)
@pytest.mark.parametrize("shape", [(6,), (6, 2), (6, 2, 3)])
def test_every_number_type_survives(tmp_path: Path, shape: tuple[int, ...], dtype: str) -> None:
    values = np.random.default_rng(0).integers(0, 2, shape).astype(dtype)
    found = reader_of(Folder(str(tmp_path)), {"x": values}).read(range(6))["x"]
    np.testing.assert_array_equal(found, values)
    assert found.dtype == values.dtype


def test_strided_arrays_are_written_as_they_look(tmp_path: Path) -> None:
    values = np.arange(48).reshape(8, 6)[::2, ::-3]
    found = reader_of(Folder(str(tmp_path)), {"x": values}).read([3, 0])
    np.testing.assert_array_equal(found["x"], values[[3, 0]])


def test_what_was_read_can_be_changed_without_changing_the_shard(tmp_path: Path) -> None:
    reader = reader_of(Folder(str(tmp_path)), samples(4, seed=0))
    before = reader.read([2])["tokens"].copy()
    reader.read([2])["tokens"][:] = 0
    np.testing.assert_array_equal(reader.read([2])["tokens"], before)


@pytest.mark.parametrize("row", [-1, 5])
def test_a_row_that_does_not_exist_raises(tmp_path: Path, row: int) -> None:
    reader = reader_of(Folder(str(tmp_path)), samples(3, seed=0), samples(2, seed=1))
    with pytest.raises(IndexError):
        reader.read([row])


def test_a_shard_is_described_as_it_lies_on_disk(tmp_path: Path) -> None:
    shard = write_shard(Folder(str(tmp_path)), "a.arrow", samples(7, seed=0))
    content = (tmp_path / "a.arrow").read_bytes()
    assert shard.rows == 7
    assert shard.bytes == len(content)
    assert shard.sha256 == hashlib.sha256(content).hexdigest()


def test_the_same_rows_give_the_same_file(tmp_path: Path) -> None:
    shards = [write_shard(Folder(str(tmp_path)), name, samples(7, seed=0)) for name in "ab"]
    assert shards[0].sha256 == shards[1].sha256

"""Which rows a worker learns from: all workers together see each batch once, in its order."""

from pathlib import Path

import numpy as np
import pytest
import torch

from orchestrator.data.arrays import join
from orchestrator.data.shards import ShardReader, write_shard
from orchestrator.errors import StageError
from orchestrator.job.sections import TrainConfig
from orchestrator.learn.batches import Batches
from orchestrator.learn.world import World
from orchestrator.storage.artifact import PreparedData
from orchestrator.storage.folder import Folder
from orchestrator.tasks.task import Batch
from tests.unit.toy import prepare_counting, toy_config

NOTHING = "00" * 32


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    return prepare_counting(Folder(str(tmp_path_factory.mktemp("prepared"))))


def tokens(batches: list[Batch]) -> list[list[int]]:
    return [row for batch in batches for row in batch["tokens"].tolist()]


def learned(
    prepared: PreparedData, config: TrainConfig, workers: int, step: int
) -> list[list[int]]:
    """The samples of a step, of all workers by rank."""
    return [
        row
        for rank in range(workers)
        for micro in Batches(prepared, config, World(rank, workers)).step(step)
        for row in micro.batch["tokens"].tolist()
    ]


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("global_batch_size", [2, 5, 8])  # none for some, uneven, even
def test_the_workers_together_learn_from_the_batch_in_its_order(
    prepared: PreparedData, global_batch_size: int, deterministic: bool
) -> None:
    config = toy_config(
        global_batch_size=global_batch_size, micro_batch_size=2, deterministic=deterministic
    )
    batches, reader = Batches(prepared, config, World()), ShardReader(prepared, "train")
    for step in (0, 1, 7, 30):
        expected = reader.read(batches.rows(step))["tokens"].tolist()
        assert len(expected) == global_batch_size
        for workers in (1, 2, 3):
            assert learned(prepared, config, workers, step) == expected


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_the_steps_of_an_epoch_hold_each_row_once(prepared: PreparedData, workers: int) -> None:
    config = toy_config(global_batch_size=8, micro_batch_size=3)
    epoch = range(5, 10)  # the second one of 40 rows
    seen = [row for step in epoch for row in learned(prepared, config, workers, step)]
    assert sorted(seen) == sorted(ShardReader(prepared, "train").read(range(40))["tokens"].tolist())


def test_no_micro_batch_is_larger_than_allowed_and_one_of_a_worker_is_the_last(
    prepared: PreparedData,
) -> None:
    config = toy_config(global_batch_size=11, micro_batch_size=2)
    for workers in (1, 2, 3):
        for rank in range(workers):
            micros = list(Batches(prepared, config, World(rank, workers)).step(0))
            assert max(len(micro.batch["tokens"]) for micro in micros) <= 2
            assert [micro.last for micro in micros] == [False] * (len(micros) - 1) + [True]


@pytest.mark.parametrize("validating", [False, True])
def test_deterministic_cuts_are_the_same_for_any_number_of_workers(
    prepared: PreparedData, validating: bool
) -> None:
    config = toy_config(global_batch_size=7, micro_batch_size=2, eval_rows=7, deterministic=True)

    def cuts(workers: int) -> list[tuple[object, ...]]:
        every = [Batches(prepared, config, World(rank, workers)) for rank in range(workers)]
        if validating:
            return [(tokens([batch]),) for one in every for batch in one.validate()]
        return [(tokens([m.batch]), m.seed) for one in every for m in one.step(3)]

    assert len(cuts(1)) == 4
    assert cuts(2) == cuts(3) == cuts(5) == cuts(1)


def test_every_micro_batch_has_a_seed_of_its_own(prepared: PreparedData) -> None:
    config = toy_config(global_batch_size=6, micro_batch_size=1)
    seeds = [
        micro.seed
        for rank in range(3)
        for step in range(50)
        for micro in Batches(prepared, config, World(rank, 3)).step(step)
    ]
    assert len(set(seeds)) == len(seeds) == 300


def test_steps_may_be_asked_for_in_any_order(prepared: PreparedData) -> None:
    batches = Batches(prepared, toy_config(), World())
    for step in (3, 4, 5, 2, 3, 9, 9):
        fresh = Batches(prepared, toy_config(), World())
        found, expected = ([micro.batch for micro in one.step(step)] for one in (batches, fresh))
        assert tokens(found) == tokens(expected)


def test_a_batch_is_nobody_elses(prepared: PreparedData) -> None:
    batches = Batches(prepared, toy_config(), World())
    (first,), (second,) = batches.step(0), batches.step(1)
    kept = second.batch["tokens"].clone()
    first.batch["tokens"].zero_()
    assert torch.equal(second.batch["tokens"], kept)


def test_a_damaged_shard_is_named_by_the_step_that_needs_it(tmp_path: Path) -> None:
    prepared = prepare_counting(Folder(str(tmp_path)))
    batches = Batches(prepared, toy_config(global_batch_size=2), World())
    damaged = prepared.splits["train"][-1]
    (tmp_path / damaged.name).write_bytes(b"")
    with pytest.raises(StageError, match=damaged.name):
        for step in range(20):
            list(batches.step(step))


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_the_workers_together_validate_on_each_row_once(
    prepared: PreparedData, workers: int
) -> None:
    config = toy_config(eval_rows=100, micro_batch_size=2)
    every = [Batches(prepared, config, World(rank, workers)) for rank in range(workers)]
    seen = [row for one in every for row in tokens(one.validate())]
    assert seen == ShardReader(prepared, "validation").read(range(9))["tokens"].tolist()


def test_the_digest_tells_whether_two_runs_saw_the_same(prepared: PreparedData) -> None:
    def digest(steps: range, seed: int = 0, begin: str = NOTHING) -> str:
        batches = Batches(prepared, toy_config(seed=seed), World(0, 2))
        for step in steps:
            begin = batches.chain(begin, step)
        return begin

    assert digest(range(3)) == digest(range(2, 3), begin=digest(range(2)))
    different = [digest(range(3)), digest(range(2)), digest(range(1, 4)), digest(range(3), seed=1)]
    assert len(set(different)) == 4


def test_a_step_is_named_with_its_rows(prepared: PreparedData) -> None:
    few = Batches(prepared, toy_config(global_batch_size=2), World())
    first, second = few.rows(7)
    assert few.named(7) == f"step 7 (rows {first}, {second} of the training split)"
    many = Batches(prepared, toy_config(global_batch_size=32), World())
    assert "…" in many.named(7) and len(many.named(7)) < 100


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_the_shares_of_all_workers_are_the_batch(size: int) -> None:
    rows = np.arange(20, 31)
    shares = [World(rank, size).share(rows) for rank in range(size)]
    np.testing.assert_array_equal(np.concatenate(shares), rows)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_worker_without_rows_adds_none() -> None:
    assert join([]) == {}
    assert join([{}, {"x": np.array([1])}, {}])["x"].tolist() == [1]


# Rows of different lengths

SHORT, LONG = 2, 40


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    """Rows of many lengths, named by `row`, none twice."""
    folder = Folder(str(tmp_path_factory.mktemp("uneven")))
    chance = np.random.default_rng(0)
    lengths = chance.integers(SHORT, LONG, 512).astype(np.int32)
    arrays = {
        "tokens": np.zeros((512, LONG), dtype=np.uint16),
        "tokens_length": lengths,
        "row": np.arange(512, dtype=np.int32),
    }
    shards = [write_shard(folder, "a.arrow", arrays)]
    return PreparedData(
        folder=folder,
        seconds=0.0,
        summary="",
        processor="tokenizer.json",
        splits={"train": shards, "validation": shards, "test": shards},
        documents={},
        source_bytes=1,
    ).commit()


def micros(prepared: PreparedData, config: TrainConfig, workers: int) -> list[list[list[int]]]:
    """Of each worker, the lengths of each of its micro-batches of a step."""
    return [
        [m.batch["tokens_length"].tolist() for m in Batches(prepared, config, world).step(1)]
        for world in (World(rank, workers) for rank in range(workers))
    ]


def cost(batches: list[list[int]]) -> int:
    """Tokens that are computed, padding included."""
    return sum(len(lengths) * max(lengths) for lengths in batches)


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("global_batch_size", [3, 128, 130])
def test_rows_of_a_length_come_together_and_none_is_lost(
    uneven: PreparedData, global_batch_size: int, deterministic: bool
) -> None:
    config = toy_config(
        global_batch_size=global_batch_size, micro_batch_size=16, deterministic=deterministic
    )
    rows = sorted(Batches(uneven, config, World()).rows(1).tolist())
    for workers in (1, 2, 3):
        seen = [
            row
            for rank in range(workers)
            for m in Batches(uneven, config, World(rank, workers)).step(1)
            for row in m.batch["row"].tolist()
        ]
        assert sorted(seen) == rows


def test_little_of_a_step_is_padding_and_the_workers_have_as_much_to_do(
    uneven: PreparedData,
) -> None:
    config = toy_config(global_batch_size=128, micro_batch_size=64)
    one, other = micros(uneven, config, 2)
    real = sum(sum(lengths) for lengths in [*one, *other])
    assert cost(one) + cost(other) < 1.3 * real < 0.75 * 128 * LONG
    assert abs(cost(one) - cost(other)) < 0.2 * cost(one)


def test_deterministic_cuts_of_uneven_rows_are_the_same_for_any_number_of_workers(
    uneven: PreparedData,
) -> None:
    config = toy_config(global_batch_size=100, micro_batch_size=16, deterministic=True)
    whole = [piece for worker in micros(uneven, config, 1) for piece in worker]
    for workers in (2, 3, 7):
        assert [p for worker in micros(uneven, config, workers) for p in worker] == whole

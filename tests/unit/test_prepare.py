"""Preparing data: the parts that need no cluster."""

import hashlib
import json
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from orchestrator.data.reading import BadRow, Note
from orchestrator.errors import UserError
from orchestrator.job.job import Job
from orchestrator.prepare.buckets import count_buckets, shuffled
from orchestrator.prepare.index import Index, quarantine
from orchestrator.prepare.keys import record, table_of
from orchestrator.prepare.splits import Bounds, hidden_splits, split_bounds
from orchestrator.storage.artifact import SPLITS
from orchestrator.storage.folder import Folder
from orchestrator.tasks.task import Task

JOB = Job.model_validate(
    {"name": "a", "task": "language_modelling", "data": {"source": "x", "max_bad_rows": 2}}
)
TASK = JOB.build_task()


def key(number: int) -> str:
    return hashlib.blake2b(str(number).encode(), digest_size=16).hexdigest()


def split_bytes(sizes: list[int], fraction: float, copies: int = 1) -> dict[str, list[int]]:
    """The sizes of the rows in each split, for rows that each stand in the data `copies` times."""
    index: Any = SimpleNamespace(
        keys=[key(i) for i in range(len(sizes))] * copies, bytes=sizes * copies
    )
    bounds = split_bounds(index, validation_fraction=fraction, test_fraction=fraction)
    splits: dict[str, list[int]] = {split: [] for split in SPLITS}
    for i, size in enumerate(sizes):
        splits[bounds.split(key(i))].append(size)
    return splits


# Splits


@pytest.mark.parametrize("rows", [3, 4, 5, 10, 24, 30, 100])
@pytest.mark.parametrize("copies", [1, 3])
def test_three_rows_are_enough_for_one_in_every_split(rows: int, copies: int) -> None:
    assert all(split_bytes([10] * rows, fraction=0.02, copies=copies).values())


@pytest.mark.parametrize("giant", range(8))
def test_a_row_that_outweighs_all_others_leaves_every_split_one(giant: int) -> None:
    sizes = [1] * 8
    sizes[giant] = 10_000
    assert all(split_bytes(sizes, fraction=0.02).values())


@pytest.mark.parametrize("fraction", [0.01, 0.05, 0.2])
@pytest.mark.parametrize("seed", range(5))
def test_test_and_validation_get_at_least_their_share_and_little_more(
    fraction: float, seed: int
) -> None:
    sizes = [random.Random(seed * 10_000 + i).randint(1, 100) for i in range(2000)]
    splits = split_bytes(sizes, fraction)
    share = {split: sum(rows) / sum(sizes) for split, rows in splits.items()}
    assert fraction <= share["test"] < fraction + 0.005
    assert fraction <= share["validation"] < fraction + 0.005
    assert share["train"] > 1 - 2 * fraction - 0.01


def test_copies_of_rows_do_not_move_the_bounds() -> None:
    sizes = [random.Random(i).randint(1, 100) for i in range(200)]
    assert split_bytes(sizes, 0.1, copies=1) == split_bytes(sizes, 0.1, copies=4)


@pytest.mark.parametrize("giant", range(0, 300, 7))
def test_one_long_row_leaves_most_rows_for_training(giant: int) -> None:
    sizes = [100] * 300
    sizes[giant] = 3_000_000
    assert len(split_bytes(sizes, fraction=0.02)["train"]) > 250


def test_two_rows_or_one_stop_nothing() -> None:
    for rows in (1, 2):
        assert sum(len(found) for found in split_bytes([10] * rows, 0.02).values()) == rows


def test_a_row_is_in_the_split_where_the_second_half_of_its_key_lies() -> None:
    bounds = Bounds(test=0.25, validation=0.5)
    ends = ["0000", "3fff", "4000", "7fff", "8000", "ffff"]
    found = [bounds.split("f" * 16 + end + "0" * 12) for end in ends]
    assert found == ["test", "test", "validation", "validation", "train", "train"]


# Records


def test_a_row_becomes_a_record_with_a_key_of_its_cleaned_content() -> None:
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    texts = composed, decomposed, "other"
    records = [record(TASK.clean({"text": text}), TASK, 8) for text in texts]
    assert records[0] == records[1]
    assert records[0]["text"] == composed
    assert records[0]["key"] != records[2]["key"]
    assert all(0 <= each["bucket"] < 8 and each["bytes"] > 0 for each in records)
    assert not any(each["aside"] for each in records)


def test_the_number_of_buckets_changes_no_key() -> None:
    keys = {record({"text": "x"}, TASK, buckets)["key"] for buckets in (1, 8, 1000)}
    assert len(keys) == 1


def test_rows_are_spread_over_all_buckets() -> None:
    buckets = [record({"text": str(i)}, TASK, 4)["bucket"] for i in range(1000)]
    assert min(np.bincount(buckets, minlength=4)) > 150


def test_empty_and_bad_rows_have_no_key_and_no_content() -> None:
    bad = BadRow("a.csv", 3, "is bad")
    for row, kept in (
        (TASK.clean({"text": " \n"}), ""),
        (bad, {"file": "a.csv", "row": 3, "reason": "is bad", "is_fault": True}),
    ):
        found = record(row, TASK, 8)
        assert (found["key"], found["text"], found["bytes"]) == ("", "", 0)
        assert found["bucket"] < 0
        assert (json.loads(found["aside"]) if found["aside"] else "") == kept


def test_a_table_holds_every_record_as_it_was() -> None:
    texts = ["plain", "ends in NUL\x00", "\x00", "long" * 1000, "🙂", " "]
    records = [record({"text": text}, TASK, 8) for text in texts]
    records.append(record(BadRow("a", 1, "b"), TASK, 8))
    table = table_of(records)
    assert set(table) == set(records[0])
    for name, column in table.items():
        assert [str(value) for value in column] == [str(each[name]) for each in records]


def test_one_long_row_does_not_make_the_others_as_large() -> None:
    records = [record({"text": text}, TASK, 8) for text in ["x" * 100_000, *["short"] * 63]]
    assert table_of(records)["text"].nbytes < 1_000_000


# Buckets and order


def test_buckets_grow_in_number_with_the_data_not_in_size() -> None:
    counts = [count_buckets(1 << power) for power in range(45)]
    assert counts == sorted(counts)
    assert counts[0] == 1
    assert max((1 << power) / count for power, count in enumerate(counts)) <= 64 << 20


def test_shuffling_keeps_the_rows_of_all_columns_together() -> None:
    arrays = {"a": np.arange(100), "b": np.arange(200).reshape(100, 2)}
    mixed = shuffled(arrays, seed=(3, 1))
    assert sorted(mixed["a"]) == list(range(100))
    assert list(mixed["a"]) != list(range(100))
    assert (mixed["b"][:, 0] == 2 * mixed["a"]).all()


def test_the_seed_decides_the_order() -> None:
    arrays = {"a": np.arange(100)}
    orders = [list(shuffled(arrays, seed=seed)["a"]) for seed in [(1, 2), (1, 2), (2, 1)]]
    assert orders[0] == orders[1] != orders[2]


def test_shuffling_nothing_gives_nothing() -> None:
    assert shuffled({"a": np.empty((0, 3))}, seed=(0,))["a"].shape == (0, 3)


# Rows that are not kept

BAD = [BadRow("b.csv", 7, "is not csv"), BadRow("b.csv", 3, "is short"), BadRow("a.txt", 9, "ä?")]
GOOD = [{"text": str(i)} for i in range(200)]


def index_of(rows: list[Any], task: Task[Any] = TASK, code: str = "") -> Index:
    """What the driver knows of cleaned rows, of bad ones, of None for an empty one, of notes."""
    places = (f"{i}" if code else "" for i in range(len(rows)))
    return Index([table_of([record(row, task, 8, next(places), code) for row in rows])])


def kept(folder: Folder) -> list[Any]:
    return [json.loads(line) for line in folder.read("quarantine.jsonl").splitlines()]


def test_bad_rows_up_to_the_cap_are_kept_in_order(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    quarantine(index_of([*BAD[:2], *GOOD]), JOB, folder)
    assert [(row["file"], row["row"], row["reason"]) for row in kept(folder)] == [
        ("b.csv", 3, "is short"),
        ("b.csv", 7, "is not csv"),
    ]


def test_bad_rows_over_the_cap_end_the_stage_and_are_kept_all_the_same(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    with pytest.raises(UserError) as caught:
        quarantine(index_of([*BAD, *GOOD]), JOB, folder)
    told = str(caught.value)
    assert all(word in told for word in ("3 of 203 rows (1.5 %)", "data.max_bad_rows = 2"))
    assert "a.txt, row 9: ä?" in told
    assert f"{tmp_path}/quarantine.jsonl" in told
    assert len(told.splitlines()) == 1
    assert len(kept(folder)) == 3


@pytest.mark.parametrize(
    ("bad", "rows", "fails"),
    [
        (1, 5, True),
        (1, 10, False),
        (10, 400, False),
        (11, 400, True),
        (100, 10_000, False),
        (101, 10_000, True),
    ],
)
def test_without_a_cap_of_the_job_a_share_of_each_split_may_be_bad(
    bad: int, rows: int, fails: bool, tmp_path: Path
) -> None:
    found = [BadRow("a.csv", i, "is bad") for i in range(bad)] + [None] * (rows - bad)
    job = JOB.override({"data.max_bad_rows": None})
    for code, what in (("", "source rows"), ("t", "test rows"), ("v", "validation rows")):
        index = index_of(found, code=code)
        if not fails:
            quarantine(index, job, Folder(str(tmp_path)))
            continue
        with pytest.raises(UserError, match=f"{bad:,} of {rows:,} {what}"):
            quarantine(index, job, Folder(str(tmp_path)))


def test_a_split_s_bad_rows_do_not_hide_among_another_s(tmp_path: Path) -> None:
    tested = [BadRow("t.csv", i, "is bad") for i in range(20)]
    index = index_of([*[None] * 10_000])
    index._add(table_of([record(row, TASK, 8, "", "t") for row in [*tested, *[None] * 20]]))
    with pytest.raises(UserError, match="20 of 40 test rows"):
        quarantine(index, JOB.override({"data.max_bad_rows": None}), Folder(str(tmp_path)))


def test_without_bad_rows_the_quarantine_is_empty(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    quarantine(index_of(GOOD), JOB.override({"data.max_bad_rows": 0}), folder)
    assert kept(folder) == []


def test_what_is_not_kept_is_told_with_counts_and_the_first_place() -> None:
    left = [BadRow("a.csv", i, "no label", is_fault=False) for i in (5, 3)]
    notes = [Note("b.csv", "columns are parted by ';'"), Note("a.csv", "columns are parted by ';'")]
    index = index_of([*GOOD, *BAD, *left, None, *notes])
    assert index.read.total() == 206 and index.empty == 1
    assert index.notices() == [
        "a.csv and 1 more: columns are parted by ';'",
        "3 of 206 rows (1.5 %) are set aside; the first: a.txt, row 9: ä?",
        "1 of 206 rows (0.49 %) are left out: nothing is in them",
        "2 of 206 rows (0.97 %) are left out: no label (a.csv, row 3 first)",
    ]


def test_why_no_row_is_left_is_told_by_the_first_one() -> None:
    assert index_of([Note("a.csv", "holds no rows")]).why_nothing() == "holds no rows"
    assert index_of([None, None]).why_nothing() == "not one of its rows holds any text"
    assert index_of([*BAD, None]).why_nothing().endswith("the first: a.txt, row 9: ä?")


# Labels, and rows that come twice

LABELS = Job.model_validate(
    {"name": "a", "task": "text_classification", "data": {"source": "x"}}
).build_task()


def labelled(*pairs: tuple[str, str]) -> list[dict[str, str]]:
    return [{"text": text, "label": label} for text, label in pairs]


def test_every_value_has_a_row_that_the_processor_sees() -> None:
    rows = labelled(*((f"text {i}", f"label {i % 40}") for i in range(400)))
    index = index_of(rows, LABELS)
    splits = ["train" if i % 3 else "test" for i in range(len(index.keys))]
    last = sorted(index.keys)[20]
    seen = {
        value
        for key, value, split in zip(index.keys, index.values, splits, strict=True)
        if split == "train" and (key <= last or key in index.first_of_each_value(splits, last))
    }
    known = zip(index.values, splits, strict=True)
    assert seen == {value for value, split in known if split == "train"}
    assert len(index.first_of_each_value(splits, last)) <= 40


def test_values_are_counted_once_a_row_and_by_split() -> None:
    index = index_of(labelled(("a", "x"), ("a", "x"), ("b", "x"), ("c", "y")), LABELS)
    found = index.values_by_split(["train", "train", "test", "train"])
    assert found == {"train": {"x": 1, "y": 1}, "test": {"x": 1}, "validation": {}}


def test_test_rows_that_repeat_training_rows_are_counted_whatever_their_labels() -> None:
    index = index_of(labelled(("a", "x"), ("b", "x"), ("a", "y"), ("c", "y")), LABELS)
    assert index.repeats(["train", "train", "test", "test"], LABELS) == [
        "1 of 2 test rows (50 %) repeat the text of a training row: what they score is known"
    ]
    assert index.repeats(["train", "train", "train", "test"], LABELS) == []


def test_a_named_split_whose_labels_are_hidden_is_left_out_and_told() -> None:
    index = index_of(labelled(("a", "0"), ("b", "1")), LABELS)
    hidden = [record(row, LABELS, 8, str(i), "t") for i, row in enumerate(labelled(("c", "-1")))]
    index._add(table_of(hidden))
    named: Any = [SimpleNamespace(split="test", by_name=True)]
    given: Any = [SimpleNamespace(split="test", by_name=False)]
    splits, (told,) = hidden_splits(index, named)
    assert splits == ("test",) and "'-1'" in told
    assert Bounds(0.1, 0.2, splits).split(index.keys[-1]) is None
    assert hidden_splits(index, given) == ((), [])


# Splits that are given, and rows that belong together


def test_rows_of_a_given_split_stay_in_it_and_are_never_duplicates() -> None:
    records = [record({"text": "same"}, TASK, 4, f"{i} a.txt", "t") for i in range(3)]
    assert len({each["key"] for each in records}) == 3
    bounds = Bounds(test=0.0, validation=0.1)
    assert {bounds.split(each["key"]) for each in records} == {"test"}
    plain = [record({"text": str(i)}, TASK, 4)["key"] for i in range(300)]
    assert {bounds.split(key) for key in plain} == {"train", "validation"}


def test_no_share_is_taken_for_a_split_that_is_given() -> None:
    keys = [key(i) for i in range(100)] + [key(i) + "t" for i in range(50)]
    index: Any = SimpleNamespace(keys=keys, bytes=[10] * 150)
    bounds = split_bounds(index, validation_fraction=0.1, test_fraction=0.0)
    found = [bounds.split(each) for each in keys]
    assert found[100:] == ["test"] * 50 and "test" not in found[:100]
    assert found[:100].count("validation") in range(10, 13)


def test_pairs_that_share_a_source_come_into_one_split() -> None:
    settings = {"name": "a", "task": "translation", "data": {"source": "x"}}
    task = Job.model_validate(settings).build_task()
    bounds = Bounds(test=0.3, validation=0.6)
    for source in map(str, range(40)):
        rows = [{"source": source, "target": target} for target in "abc"]
        keys = [record(row, task, 4)["key"] for row in rows]
        assert len(set(keys)) == 3
        assert len({bounds.split(each) for each in keys}) == 1

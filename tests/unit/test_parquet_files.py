"""Parquet files: the types that are read, and what a file can lack."""

import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from orchestrator.errors import UserError
from tests.unit.reading import ANSWERED, LABELLED, PAIR, TEXT, read, refused


def parquet(path: Path, **columns: Any) -> Path:
    pyarrow.parquet.write_table(pa.table(columns), path, row_group_size=100)
    return path


@pytest.mark.parametrize(
    ("value", "label"),
    [
        (Decimal("12.50"), "12.50"),
        (1.5, "1.5"),
        (float("nan"), ""),
        (3, "3"),
        (True, "true"),
        ("x", "x"),
        (None, ""),
    ],
)
def test_every_type_of_value_is_read(value: Any, label: str, tmp_path: Path) -> None:
    path = parquet(tmp_path / "a.parquet", text=["a"], label=[value])
    assert read(path) == ([{"text": "a", "label": label}], [], [])


@pytest.mark.parametrize(
    ("label", "shown"),
    [
        ([datetime.date(2026, 1, 1)], "date32"),
        ([datetime.datetime(2026, 1, 1)], "timestamp"),
        ([["x"]], "list"),
        ([{"a": 1}], "struct<a>"),
        (pa.array([b"0" * 16], pa.uuid()), "uuid"),
    ],
)
def test_another_type_is_refused_by_the_schema(label: Any, shown: str, tmp_path: Path) -> None:
    told = refused(parquet(tmp_path / "a.parquet", text=["a"], label=label))
    assert "column 'label' is " in told and shown in told and "data.columns" in told


def test_a_list_of_messages_is_no_text(tmp_path: Path) -> None:
    path = parquet(tmp_path / "a.parquet", messages=[[{"role": "user", "content": "x"}]])
    told = refused(path, TEXT, columns={"text": "messages"})
    assert "column 'messages' is list<struct<role, content>>, not text" in told


def test_binary_text_is_read_and_told(tmp_path: Path) -> None:
    rows, bad, notes = read(parquet(tmp_path / "a.parquet", text=["ä".encode(), b"\xff"]), TEXT)
    assert (rows, [row.row for row in bad]) == ([{"text": "ä"}], [2])
    assert notes == ["column 'text' is binary, and is read as text"]


def test_nested_columns_have_dotted_names(tmp_path: Path) -> None:
    nested = [{"en": "a", "de": "b"}]
    path = parquet(tmp_path / "a.parquet", translation=nested, **{"translation.de": ["c"]})
    columns = {"source": "translation.en", "target": "translation.de"}
    assert read(path, PAIR, columns=columns)[0] == [{"source": "a", "target": "c"}]


@pytest.mark.parametrize("layout", ["struct", "list"])
def test_hugging_faces_answers_are_read(layout: str, tmp_path: Path) -> None:
    struct = {"text": ["x", "y"], "answer_start": [0, 2]}
    several = [{"text": "x", "answer_start": 0}, {"text": "y", "answer_start": 2}]
    answers = [struct if layout == "struct" else several]
    path = parquet(tmp_path / "a.parquet", context=["x y"], question=["?"], answers=answers)
    assert read(path, ANSWERED)[0] == [
        {"context": "x y", "question": "?", "answer": ["x", "y"], "answer_start": [0, 2]}
    ]


def test_a_damaged_row_group_is_an_error_not_a_bad_row(tmp_path: Path) -> None:
    path = parquet(tmp_path / "a.parquet", text=[f"text number {i}" for i in range(1000)])
    content = bytearray(path.read_bytes())
    middle = len(content) // 3
    content[middle : middle + 400] = b"\xff" * 400
    path.write_bytes(content)
    assert "damaged" in refused(path, TEXT)


def test_a_file_of_several_without_the_column_is_named(tmp_path: Path) -> None:
    for i in range(12):
        parquet(tmp_path / f"{i:02}.parquet", text=["a"], label=[1])
    parquet(tmp_path / "99.parquet", text=["a"], target=[1])
    with pytest.raises(UserError, match=r"99\.parquet: has no column 'label'.*text, target"):
        read(tmp_path, LABELLED)


def test_an_empty_file_is_no_parquet_file(tmp_path: Path) -> None:
    parquet(tmp_path / "a.parquet", text=["a"])
    (tmp_path / "b.parquet").write_bytes(b"")
    with pytest.raises(UserError, match=r"b\.parquet: is empty"):
        read(tmp_path, TEXT)

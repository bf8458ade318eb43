"""Kinds of columns: what a new one has to bring, and what then works by itself."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from orchestrator.data.arrow_types import is_binary, is_text
from orchestrator.data.config import DataConfig
from orchestrator.data.kinds.kind import Kind, type_name
from orchestrator.data.kinds.registry import KINDS
from orchestrator.data.reading import BadRow
from orchestrator.errors import UserError
from orchestrator.prepare.index import Index
from orchestrator.prepare.keys import record, table_of
from tests.unit.reading import read, refused, write
from tests.unit.test_prepare import TASK

COLUMNS = {"text": "text", "clip": "sound"}


def read_sound(value: Any, encoding: str | None) -> bytes:
    """Bytes, base64 in a text, or Hugging Face's `{bytes, path}`."""
    if isinstance(value, dict):
        value = value.get("bytes")
    if isinstance(value, str):
        value = base64.b64decode(value, validate=True)
    if not isinstance(value, bytes):
        raise ValueError(f"is {type_name(value)}, not a sound")
    return value


def suits(type_: Any) -> bool:
    inside = type_.get("bytes") if isinstance(type_, dict) else type_
    return is_binary(inside) or is_text(inside)


SOUND = Kind(
    name="sound",
    noun="a sound",
    read=read_sound,
    suits=suits,
    mend="write it as bytes",
    is_required=True,
    is_plural=True,
    blank=b"",
)


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KINDS, "sound", SOUND)


def parquet(**columns: Any) -> bytes:
    sink = io.BytesIO()
    pyarrow.parquet.write_table(pa.table(columns), sink)
    return sink.getvalue()


@pytest.mark.usefixtures("toy")
def test_a_registered_kind_is_read_from_every_format(tmp_path: Path) -> None:
    encoded = base64.b64encode(b"a\0").decode()
    write(tmp_path / "a.jsonl", json.dumps({"text": "one", "clips": encoded}) + "\n")
    write(tmp_path / "b.csv", f"text,clip\ntwo,{encoded}\n")
    clips = [{"bytes": b"a\0", "path": "a.wav"}]
    write(tmp_path / "c.parquet", parquet(text=["three"], clip=clips))
    rows, bad, _ = read(tmp_path, COLUMNS)
    assert rows == [{"text": text, "clip": b"a\0"} for text in ("one", "two", "three")]
    assert not bad


@pytest.mark.usefixtures("toy")
def test_a_value_of_another_kind_sets_its_row_aside(tmp_path: Path) -> None:
    content = '{"text": "one", "clip": 3}\n{"text": "two", "clip": null}\n'
    path = write(tmp_path / "a.jsonl", content)
    rows, bad, _ = read(path, COLUMNS)
    reasons = ["'clip' is int, not a sound", "has no 'clip'"]
    assert (rows, bad) == ([], [BadRow(str(path), i + 1, r) for i, r in enumerate(reasons)])


@pytest.mark.usefixtures("toy")
def test_a_parquet_column_of_another_type_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", parquet(text=["x"], clip=[1.5]))
    assert "column 'clip' is double, not a sound: write it as bytes" in refused(path, COLUMNS)


@pytest.mark.usefixtures("toy")
def test_bytes_are_hashed_and_kept_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TASK, "columns", COLUMNS)
    rows = [{"text": "x", "clip": clip} for clip in (b"a\0", b"a", b"a" * 100, b"a")]
    records = [record(row, TASK, 8) for row in (*rows, BadRow("a.jsonl", 9, "is bad"))]
    keys = [each["key"] for each in records]
    assert len(set(keys[:4])) == 3 and keys[1] == keys[3]
    assert records[2]["bytes"] - records[1]["bytes"] == 99
    table = table_of(records)
    assert table["clip"].tolist() == [*(row["clip"] for row in rows), b""]
    assert len(Index([table]).keys) == 4


def test_a_kind_that_nobody_knows_is_refused() -> None:
    with pytest.raises(UserError, match="column 'label' has the unknown kind 'valu'; did you mean"):
        DataConfig(source="x").reading({"text": "text", "label": "valu"})

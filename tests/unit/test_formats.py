"""Formats of source files: what a new one has to bring, and what then works by itself."""

import contextlib
from pathlib import Path

import pytest

from orchestrator.data.columns import check_names
from orchestrator.data.config import DataConfig
from orchestrator.data.formats.decoding import lines_of, open_text
from orchestrator.data.formats.format import Format, Rows
from orchestrator.data.formats.registry import FORMATS
from orchestrator.data.reading import BadRow, Note, Reading
from orchestrator.data.rows import check_columns, read_rows
from orchestrator.data.source_file import SourceFile
from orchestrator.data.sources import find_files
from orchestrator.errors import UserError
from tests.unit.reading import LABELLED, write


def check(file: SourceFile, reading: Reading) -> None:
    with contextlib.closing(rows(file, reading)) as begun:
        check_names([row for _, row in begun if isinstance(row, dict)], file.uri, reading, "")


def rows(file: SourceFile, reading: Reading) -> Rows:
    """A row a line: `text=good film label=1`."""
    with open_text(file, reading) as (text, notes):
        yield from ((0, note) for note in notes)
        for number, line in lines_of(text, file, reading):
            pairs = [field.partition("=") for field in line.strip().split("; ")]
            if all(equals for _, equals, _ in pairs):
                yield number, {name: value for name, _, value in pairs}
            else:
                yield number, BadRow(file.uri, number, "has a field without =")


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FORMATS, "pairs", Format("pairs", ("pairs", "kv"), check, rows))


@pytest.mark.usefixtures("toy")
def test_a_registered_format_is_found_checked_and_read(tmp_path: Path) -> None:
    write(tmp_path / "a.kv", "text=good film; label=1\nnonsense\n")
    write(tmp_path / "b.PAIRS", "label=0; text=bad film\n")
    write(tmp_path / "c.pairs", "")
    data = DataConfig(source=str(tmp_path))
    files = find_files(data).files
    reading = data.reading(LABELLED)
    check_columns(files, reading)
    assert [row for file in files for row in read_rows(file, reading)] == [
        {"text": "good film", "label": "1"},
        BadRow(str(tmp_path / "a.kv"), 2, "has a field without ="),
        {"text": "bad film", "label": "0"},
        Note(str(tmp_path / "c.pairs"), "is empty"),
    ]


@pytest.mark.usefixtures("toy")
def test_a_registered_format_is_named_where_formats_are_listed(tmp_path: Path) -> None:
    write(tmp_path / "a.unknown", "x")
    with pytest.raises(UserError, match=r"parquet, pairs file, nor one of these \.gz"):
        find_files(DataConfig(source=str(tmp_path / "a.unknown")))


@pytest.mark.usefixtures("toy")
def test_a_registered_format_is_checked_before_anything_starts(tmp_path: Path) -> None:
    data = DataConfig(source=str(write(tmp_path / "a.kv", "text=good film\n")))
    with pytest.raises(UserError, match="has no column 'label'; its columns are text"):
        check_columns(find_files(data).files, data.reading(LABELLED))


def test_python_is_no_format_of_users(tmp_path: Path) -> None:
    write(tmp_path / "a.py", "x = 1\n")
    with pytest.raises(UserError, match="holds no txt, jsonl, json, csv, tsv, parquet file"):
        find_files(DataConfig(source=str(tmp_path)))

"""Files as users bring them, read for the tests."""

from pathlib import Path
from typing import Any

import pytest

from orchestrator.data.config import DataConfig
from orchestrator.data.reading import BadRow, Note
from orchestrator.data.rows import check_columns, read_rows
from orchestrator.data.sources import find_files
from orchestrator.errors import UserError

TEXT: dict[str, str] = {"text": "text"}
LABELLED: dict[str, str] = {"text": "text", "label": "value"}
PAIR: dict[str, str] = {"source": "text", "target": "text"}
ANSWERED: dict[str, str] = {
    "context": "text",
    "question": "text",
    "answer": "answers",
    "answer_start": "starts",
}


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def read(
    source: Path, columns: dict[str, str] = LABELLED, /, **settings: Any
) -> tuple[list[dict[str, Any]], list[BadRow], list[str]]:
    """The rows, the bad rows and the notes of a source."""
    data = DataConfig(source=str(source), **settings)
    optional = ("answer_start",) if "answer_start" in columns else ()
    reading = data.reading(columns, optional, lines=True)
    files, notes = find_files(data)
    check_columns(files, reading)
    found = [row for file in files for row in read_rows(file, reading)]
    notes = [*notes, *(row.text for row in found if isinstance(row, Note))]
    bad = [row for row in found if isinstance(row, BadRow)]
    return [row for row in found if isinstance(row, dict)], bad, notes


def refused(source: Path, columns: dict[str, str] = LABELLED, /, **settings: Any) -> str:
    """The one line in which a file is refused."""
    with pytest.raises(UserError) as caught:
        read(source, columns, **settings)
    told = str(caught.value)
    assert len(told.splitlines()) == 1 and source.name in told
    return told

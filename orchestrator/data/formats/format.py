"""The interface of a source format: names, a check, and rows."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from orchestrator.data.reading import Reading
from orchestrator.data.source_file import SourceFile

# Pairs of a row's number in the file and the raw row, a BadRow or a Note.
Rows = Iterator[tuple[int, Any]]


@dataclass(frozen=True)
class Format:
    """One format. Its module is beside this one, and a line in `registry.py` makes it known.

    `check` looks at the head of a file and raises UserError where a column is missing, say. `rows`
    reads a file to its end: a row that cannot be read comes out as a BadRow, and a file of which
    nobody knows how many rows are missing raises UserError. A row is an object by column names.
    """

    name: str  # the value of `data.format`
    suffixes: tuple[str, ...]  # of file names: lower case, without `.`
    check: Callable[[SourceFile, Reading], None]
    rows: Callable[[SourceFile, Reading], Rows]
    is_offered: bool = True  # in `data.format`, and for files with these suffixes
    may_be_settings: bool = False  # if beside files of other formats; not read there

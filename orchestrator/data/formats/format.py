"""What a format of source files is: names, a check, and rows."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from orchestrator.data.reading import Reading
from orchestrator.data.source_file import SourceFile

# Each row's number in the file, and a row as the file has it, a BadRow or a Note.
Rows = Iterator[tuple[int, Any]]


@dataclass(frozen=True)
class Format:
    """One format. Its module is beside this one, and a line in `registry.py` makes it known.

    `check` looks at the head of a file and raises UserError where a column is missing, say. `rows`
    reads a file to its end: a row that cannot be read comes out as a BadRow, and a file of which
    nobody knows how many rows are missing raises UserError. A row is an object by column names.
    """

    name: str  # as `data.format` has it
    suffixes: tuple[str, ...]  # of the names of such files: lower case, without `.`
    check: Callable[[SourceFile, Reading], None]
    rows: Callable[[SourceFile, Reading], Rows]
    is_offered: bool = True  # to users: by `data.format`, and by the suffixes of files
    may_be_settings: bool = False  # in a folder with files of other formats: not read there

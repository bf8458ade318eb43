"""Reads source files row by row.

A row that cannot be read never stops the reading: it comes out as a `BadRow` with its file, its row
and the reason, to be counted and kept. A file that is damaged, cut off or something else than its
name says is an error: nobody knows how many rows are missing.
"""

from collections import Counter
from collections.abc import Iterator

from orchestrator.data.columns import take
from orchestrator.data.formats.decoding import EMPTY
from orchestrator.data.formats.parallel import check_parallel, read_parallel
from orchestrator.data.formats.registry import FORMATS
from orchestrator.data.reading import BadRow, Note, Reading, Row
from orchestrator.data.source_file import SourceFile
from orchestrator.errors import UserError

CHECKED = 8  # files of each format and split whose heads are checked first


def check_columns(files: list[SourceFile], reading: Reading) -> None:
    """Check the heads of some files of each format, so that mistakes are found at once.

    Raises:
        UserError: naming the file and what is wrong with it: a missing column, say.
    """
    for column in reading.names:
        if column not in reading.columns:
            known = ", ".join(reading.columns)
            raise UserError(
                f"data.columns.{column}: is no column of this task, which reads {known}"
            )
    seen: Counter[tuple[str, str | None]] = Counter()
    for file in files:
        seen[file.kind, file.split] += 1
        if seen[file.kind, file.split] > CHECKED or not file.bytes:
            continue
        check = check_parallel if file.beside else FORMATS[file.kind].check
        check(file, reading)


def read_rows(file: SourceFile, reading: Reading) -> Iterator[Row | BadRow | Note]:
    """The rows of a file in order, with bad rows and notes in their places.

    Raises:
        UserError: where the file cannot be read to its end.
    """
    for _, row in numbered_rows(file, reading):
        yield row


def numbered_rows(file: SourceFile, reading: Reading) -> Iterator[tuple[int, Row | BadRow | Note]]:
    """Like `read_rows`, with each row's number in the file."""
    read = read_parallel if file.beside else FORMATS[file.kind].rows
    is_explained = False  # by a row, or by a note that the file is empty
    for number, row in read(file, reading):
        is_explained = is_explained or not isinstance(row, Note) or row.text == EMPTY
        if isinstance(row, BadRow | Note):
            yield number, row
        else:
            yield number, take(row, reading, file.uri, number)
    if not is_explained:
        yield 0, Note(file.uri, "holds no rows")

"""Reading source files row by row.

A row that cannot be read never stops the reading: it comes out as a `BadRow` with its file, its row
and the reason, to be counted and kept. A file that is damaged, cut off or something else than its
name says is an error: nobody knows how many rows are missing.
"""

from collections import Counter
from collections.abc import Callable, Iterator

from orchestrator.data.columns import check_names, take
from orchestrator.data.formats.json_files import check_json, read_json
from orchestrator.data.formats.parquet_files import check_parquet, read_parquet
from orchestrator.data.formats.tables import check_table, read_table
from orchestrator.data.formats.texts import (
    EMPTY,
    Found,
    open_text,
    read_documents,
    read_lines,
    read_parallel,
    read_python,
)
from orchestrator.data.reading import BadRow, Note, Reading, Row
from orchestrator.data.sources import SourceFile
from orchestrator.errors import UserError

HEADS = 8  # files of each kind and split that are looked at before anything is started

READERS: dict[str, Callable[[SourceFile, Reading], Found]] = {
    "py": read_python,
    "jsonl": read_json,
    "json": read_json,
    "csv": read_table,
    "tsv": read_table,
    "parquet": read_parquet,
}
CHECKS: dict[str, Callable[[SourceFile, Reading], None]] = {
    "jsonl": check_json,
    "json": check_json,
    "csv": check_table,
    "tsv": check_table,
    "parquet": check_parquet,
}


def check_columns(files: list[SourceFile], reading: Reading) -> None:
    """Look at the heads of some files of each format, so that a mistake costs nothing.

    Raises:
        UserError: naming the file and what is wrong with it: a column that it lacks, say.
    """
    for column in reading.data.columns:
        if column not in reading.columns:
            known = ", ".join(reading.columns)
            raise UserError(
                f"data.columns.{column}: is no column of this task, which reads {known}"
            )
    seen: Counter[tuple[str, str | None]] = Counter()
    for file in files:
        seen[file.kind, file.split] += 1
        if seen[file.kind, file.split] > HEADS or not file.bytes:
            continue
        if file.beside:
            _check_parallel(file, reading)
        elif file.kind in ("txt", "py"):
            _check_text(file, reading)
        elif file.kind in CHECKS:
            CHECKS[file.kind](file, reading)


def _check_parallel(file: SourceFile, reading: Reading) -> None:
    there = [each.column for each in (file, *file.beside)]
    check_names([dict.fromkeys(there)], file.uri, reading, "")
    for each in (file, *file.beside):
        with open_text(each, reading):
            pass


def _check_text(file: SourceFile, reading: Reading) -> None:
    lacking = [column for column in reading.needed if reading.name(column) != reading.text_column]
    if lacking:
        raise UserError(
            f"{file.uri}: is a {file.kind} file, which has no column {lacking[0]!r}: give a csv or "
            f"jsonl file (data.format: csv, where it is one), or set data.columns.{lacking[0]}: "
            f"$folder or $file"
        )
    if file.kind == "txt":
        with open_text(file, reading):
            pass


def read_rows(file: SourceFile, reading: Reading) -> Iterator[Row | BadRow | Note]:
    """The rows of a file in its order, bad ones and notes in their places.

    Raises:
        UserError: where the file cannot be read to its end.
    """
    for _, row in numbered_rows(file, reading):
        yield row


def numbered_rows(file: SourceFile, reading: Reading) -> Iterator[tuple[int, Row | BadRow | Note]]:
    """The same as `read_rows`, each with its number in the file."""
    if file.beside:
        reader: Callable[[SourceFile, Reading], Found] = read_parallel
    elif file.kind == "txt":
        reader = read_lines if reading.lines else read_documents
    else:
        reader = READERS[file.kind]
    is_told = False
    for number, found in reader(file, reading):
        is_told = is_told or not isinstance(found, Note) or found.text == EMPTY
        if isinstance(found, BadRow | Note):
            yield number, found
        else:
            yield number, take(found, reading, file.uri, number)
    if not is_told:
        yield 0, Note(file.uri, "holds no rows")

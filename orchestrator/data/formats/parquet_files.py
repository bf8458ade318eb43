"""Parquet files, row by row."""

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from orchestrator.data.arrow_types import in_words, is_binary, nested
from orchestrator.data.columns import MISSING, check_names, find
from orchestrator.data.formats.format import Format, Rows
from orchestrator.data.heads import PAGES, Head
from orchestrator.data.kinds.registry import KINDS
from orchestrator.data.reading import BadRow, Note, Reading
from orchestrator.data.source_file import SourceFile
from orchestrator.data.streams import damaged
from orchestrator.errors import UserError

HEAD = Head(magic=b"PAR1", refused=PAGES)
ROWS_AT_ONCE = 1024


def _check(file: SourceFile, reading: Reading) -> None:
    """Raises UserError if a file's schema shows that it cannot be read."""
    with file.open_whole(HEAD) as stream:
        _opened(stream, file, reading)


def _rows(file: SourceFile, reading: Reading) -> Rows:
    with file.open_whole(HEAD) as stream:
        if not stream.peek(1):
            raise UserError(
                f"{file.uri}: is empty, and no parquet file: download or write it again"
            )
        table, types = _opened(stream, file, reading)
        for name in sorted(name for name, type_ in types.items() if is_binary(type_)):
            yield 0, Note(file.uri, f"column {name!r} is binary, and is read as text")
        number = 0
        for row in _batched(table, list(types), file):
            number += 1
            bad = isinstance(row, str)
            yield number, BadRow(file.uri, number, str(row)) if bad else row
        if number != table.metadata.num_rows:
            raise UserError(
                f"{file.uri}: has {number:,} of {table.metadata.num_rows:,} rows: it is damaged"
            )


def _opened(
    stream: Any, file: SourceFile, reading: Reading
) -> tuple[pyarrow.parquet.ParquetFile, dict[str, pa.DataType]]:
    """The file, and the columns to read with their types."""
    if not stream.peek(4).startswith(b"PAR"):  # PAR1, or PARE if it is encrypted
        raise UserError(
            f"{file.uri}: is no parquet file, which begins with PAR1: its name or data.format says "
            f"otherwise, or it is damaged"
        )
    try:
        table = pyarrow.parquet.ParquetFile(stream)
        schema = table.schema_arrow
        # Look up a row of types, with nested types as objects, like a row of values.
        row: dict[str, Any] = {field.name: nested(field.type) for field in schema}
    except (OSError, EOFError, pa.ArrowException, UnicodeDecodeError) as error:
        raise damaged(file.uri, error) from error
    check_names([row], file.uri, reading, "")
    types: dict[str, pa.DataType] = {}
    for column in reading.columns:
        outer, type_ = find(row, column, reading)
        if type_ is MISSING:
            continue
        if schema.names.count(outer) > 1:
            raise UserError(
                f"{file.uri}: has {schema.names.count(outer)} columns named {outer!r}: rename one"
            )
        types[outer] = schema.field(outer).type
        kind = KINDS[reading.columns[column]]
        if not kind.suits(type_):
            raise UserError(
                f"{file.uri}: column {reading.name(column)!r} is {in_words(type_)}, not "
                f"{kind.noun}: {kind.mend}"
            )
    return table, types


def _batched(
    table: pyarrow.parquet.ParquetFile, names: list[str], file: SourceFile
) -> Iterator[dict[str, Any] | str]:
    """Rows of some columns, and bad rows."""
    batches = table.iter_batches(batch_size=ROWS_AT_ONCE, columns=names)
    while True:
        try:
            batch = next(batches, None)
        except (OSError, EOFError, pa.ArrowException, MemoryError, OverflowError) as error:
            raise damaged(file.uri, error) from error
        if batch is None:
            return
        columns = {name: batch.column(name) for name in names}
        for i in range(batch.num_rows):
            try:
                yield {name: column[i].as_py() for name, column in columns.items()}
            except UnicodeDecodeError as error:
                yield f"is not UTF-8: {error.reason}"


PARQUET = Format("parquet", ("parquet",), _check, _rows)

"""Parquet files, row by row."""

from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from orchestrator.data.columns import MISSING, check_names, value_of
from orchestrator.data.formats.format import Format, Rows
from orchestrator.data.heads import PAGES, Head
from orchestrator.data.reading import BadRow, Kind, Note, Reading
from orchestrator.data.source_file import SourceFile
from orchestrator.data.streams import damaged
from orchestrator.errors import UserError

HEAD = Head(magic=b"PAR1", refused=PAGES)
ROWS_AT_ONCE = 1024
WRITE = {
    "text": "write it as text, or name another column with data.columns",
    "value": "write it as text or numbers, or name another column with data.columns",
    "answers": "write it as text or a list of texts",
    "starts": "write it as whole numbers or lists of them",
}


def _check(file: SourceFile, reading: Reading) -> None:
    """Raises UserError where a file's schema shows that it cannot be read."""
    with file.open_whole(HEAD) as stream:
        _opened(stream, file, reading)


def _rows(file: SourceFile, reading: Reading) -> Rows:
    with file.open_whole(HEAD) as stream:
        if not stream.peek(1):
            raise UserError(
                f"{file.uri}: is empty, and no parquet file: download or write it again"
            )
        table, types = _opened(stream, file, reading)
        for name in sorted(name for name, kind in types.items() if _is_binary(kind)):
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
    """The file, and the columns that are to be read, with their types."""
    if not stream.peek(4).startswith(b"PAR"):  # PAR1, or PARE where it is encrypted
        raise UserError(
            f"{file.uri}: is no parquet file, which begins with PAR1: its name or data.format says "
            f"otherwise, or it is damaged"
        )
    try:
        table = pyarrow.parquet.ParquetFile(stream)
        schema = table.schema_arrow
        # A row of types, nested ones as objects, is looked up like a row of values.
        row: dict[str, Any] = {field.name: _nested(field.type) for field in schema}
    except (OSError, EOFError, pa.ArrowException, UnicodeDecodeError) as error:
        raise damaged(file.uri, error) from error
    check_names([row], file.uri, reading, "")
    names: dict[str, pa.DataType] = {}
    for column, kind in reading.columns.items():
        found = value_of(row, column, reading)
        if found is MISSING:
            continue
        outer = _outer(row, column, reading)
        if schema.names.count(outer) > 1:
            raise UserError(
                f"{file.uri}: has {schema.names.count(outer)} columns named {outer!r}: rename one"
            )
        names[outer] = schema.field(outer).type
        if not _suits(kind, found):
            raise UserError(
                f"{file.uri}: column {reading.name(column)!r} is {_shown(found)}, not "
                f"{'text' if kind == 'text' else f'a {kind}' if kind == 'value' else kind}: "
                f"{WRITE[kind]}"
            )
    return table, names


def _batched(
    table: pyarrow.parquet.ParquetFile, names: list[str], file: SourceFile
) -> Iterator[dict[str, Any] | str]:
    """Rows of some columns, or why one is none."""
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


def _nested(kind: pa.DataType) -> Any:
    """A type, a struct as an object of types and a list of structs as a list of one."""
    if pa.types.is_struct(kind):
        return {field.name: _nested(field.type) for field in kind}
    if _is_list(kind) and pa.types.is_struct(kind.value_type):
        return [_nested(kind.value_type)]
    return kind


def _outer(row: dict[str, Any], column: str, reading: Reading) -> str:
    """The column of the file that a column of the task's lies in."""
    name = reading.name(column)
    if column not in reading.names and name not in row:
        kind = reading.columns[column]
        if kind == "answers":
            name = f"{name}s"
        elif kind == "starts":
            answers = next(c for c, other in reading.columns.items() if other == "answers")
            return _outer(row, answers, reading)
    while name not in row:
        name = name.rpartition(".")[0]
    return name


def _suits(kind: Kind, found: Any) -> bool:
    if kind == "text":
        return _is_text(found) or (_is_list(found) and _is_text(found.value_type))
    if kind == "value":
        return _is_value(found)
    inside = (
        found.get("text" if kind == "answers" else "answer_start", found)
        if isinstance(found, dict)
        else found
    )
    if isinstance(inside, list):  # of objects, or of what a name found in each of them
        each = inside[0] if inside else None
        inside = (
            each.get("text" if kind == "answers" else "answer_start")
            if isinstance(each, dict)
            else each
        )
    if _is_list(inside):
        inside = inside.value_type
    return _is_value(inside)


def _is_list(kind: Any) -> bool:
    types = pa.types
    is_list = (types.is_list, types.is_large_list, types.is_fixed_size_list)
    return isinstance(kind, pa.DataType) and any(check(kind) for check in is_list)


def _is_text(kind: Any) -> bool:
    types = pa.types
    strings = (types.is_string, types.is_large_string, types.is_string_view, types.is_null)
    return _is_one_of(kind, *strings, _is_binary)


def _is_binary(kind: Any) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _is_value(kind: Any) -> bool:
    types = pa.types
    numbers = (types.is_integer, types.is_floating, types.is_boolean, types.is_decimal)
    return _is_text(kind) or _is_one_of(kind, *numbers)


def _is_one_of(kind: Any, *checks: Callable[[pa.DataType], bool]) -> bool:
    """Whether a type, or that of a dictionary's values, passes a check. An extension type never
    does."""
    if not isinstance(kind, pa.DataType) or isinstance(kind, pa.BaseExtensionType):
        return False
    if pa.types.is_dictionary(kind):
        return _is_one_of(kind.value_type, *checks)
    return any(check(kind) for check in checks)


def _shown(found: Any) -> str:
    """A type in words."""
    if isinstance(found, dict):
        return f"struct<{', '.join(found)}>"
    if isinstance(found, list):
        return f"list<{_shown(found[0])}>"
    return str(found)


PARQUET = Format("parquet", ("parquet",), _check, _rows)

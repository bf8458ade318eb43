"""Reading source files row by row.

A row that cannot be read never stops the reading: it comes out as a `BadRow` with its file, its row
and the reason, to be counted and kept.
"""

import csv
import io
import itertools
import json
import tokenize
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet

from orchestrator.errors import UserError, first_line
from orchestrator.sources import SourceFile
from orchestrator.task import DataConfig, Kind, LeftOut, Row, Task

MAX_FIELD = 1 << 28  # bytes of one csv field
DELIMITERS = {"csv": ",", "tsv": "\t"}
PLACES = ("$file", "$folder")  # columns that every file has: its name and its folder's


@dataclass(frozen=True)
class BadRow:
    """A row that was set aside. Rows count from 1; row 0 is the whole file."""

    file: str
    row: int
    reason: str
    is_fault: bool = True  # else the row is sound, and says nothing: `LeftOut`

    def __str__(self) -> str:
        return f"{self.file}{f', row {self.row}' if self.row else ''}: {self.reason}"


@dataclass(frozen=True)
class Note:
    """Something about a file that its user is told, once: that its columns are parted by `;`."""

    file: str
    text: str


@dataclass(frozen=True)
class Reading:
    """What is read of each row, and how."""

    data: DataConfig
    columns: dict[str, Kind]  # the task's, and what they hold
    lines: bool = False  # a row of a txt file is a line, not a document
    optional: tuple[str, ...] = ()  # of the columns

    @classmethod
    def of(cls, task: Task[Any]) -> "Reading":
        lines = task.lines if task.data.lines is None else task.data.lines
        return cls(task.data, task.columns, lines, task.optional)

    def name(self, column: str) -> str:
        """What the files call a column of the task's."""
        return str(self.data.columns.get(column, column))

    @property
    def may_lack(self) -> list[str]:
        return [self.name(column) for column in self.optional]

    @property
    def names(self) -> list[str]:
        return [name for column in self.columns if (name := self.name(column)) not in PLACES]


def check_columns(files: list[SourceFile], reading: Reading) -> None:
    """Look at the head of one file of each format, so that a wrong column costs nothing.

    Raises:
        UserError: naming the column, the file and the columns that it has.
    """
    for column in reading.data.columns:
        if column not in reading.columns:
            known = ", ".join(reading.columns)
            raise UserError(
                f"data.columns.{column}: is no column of this task, which reads {known}"
            )
    first = {(file.kind, file.split): file for file in reversed(files)}
    for file in first.values():
        there = _column_names(file, reading)
        for column in reading.columns:
            name = reading.name(column)
            needed = column not in reading.optional or column in reading.data.columns
            if there is not None and needed and name not in (*there, *PLACES):
                raise UserError(
                    f"{file.uri}: has no column {name!r}; its columns are "
                    f"{', '.join(there) or 'none'}: set data.columns.{column}"
                )


def read_cleaned(file: SourceFile, task: Task[Any]) -> Iterator[Row | BadRow | None]:
    """What a task makes of a file's rows, in their order; None where nothing is in one."""
    for number, row in _numbered(file, Reading.of(task)):
        try:
            yield row if isinstance(row, BadRow) else task.clean(row)
        except ValueError as error:
            yield BadRow(file.uri, number, str(error), not isinstance(error, LeftOut))


def read_rows(file: SourceFile, reading: Reading) -> Iterator[Row | BadRow]:
    """The rows of a file in its order, bad ones in their places."""
    for _, row in _numbered(file, reading):
        yield row


def _numbered(file: SourceFile, reading: Reading) -> Iterator[tuple[int, Row | BadRow]]:
    readers = {
        "txt": _read_lines if reading.lines else _read_documents,
        "py": _read_python,
        "jsonl": _read_jsonl,
        "json": _read_json,
        "csv": _read_csv,
        "tsv": _read_csv,
        "parquet": _read_parquet,
    }
    try:
        for number, found in (_read_parallel if file.beside else readers[file.kind])(file, reading):
            if isinstance(found, BadRow):
                yield number, found
            else:
                yield number, _checked(found, reading, file, number)
    except (OSError, EOFError, pa.ArrowException) as error:
        yield 0, BadRow(file.uri, 0, f"cannot be read: {first_line(error)}")


Found = Iterator[tuple[int, Any]]  # each row's number and what stands there, or a BadRow


def _column_names(file: SourceFile, reading: Reading) -> list[str] | None:
    """The columns of a table's head, or None where it cannot be read (which its rows will tell)."""
    if file.beside:
        return [each.column for each in (file, *file.beside)]
    if file.kind in ("txt", "py"):
        return None
    try:
        if file.kind == "parquet":
            with file.open_whole() as stream:
                return list(pyarrow.parquet.read_schema(stream).names)
        if file.kind == "json":
            _, head = next(_read_json(file, reading))
        else:
            _, line = next(_lines(file))
            text = line.decode("utf-8-sig")
            if file.kind in DELIMITERS:
                names = next(csv.reader([text], delimiter=DELIMITERS[file.kind]), [])
                return names if reading.data.header else _numbers(names)
            head = json.loads(text)
        return list(head) if isinstance(head, dict) else None
    except (OSError, StopIteration, ValueError, RecursionError, csv.Error, pa.ArrowException):
        return None


def _numbers(fields: list[str]) -> list[str]:
    """What columns without a header are called: 0, 1, ..."""
    return [str(i) for i in range(len(fields))]


def _lines(file: SourceFile) -> Iterator[tuple[int, bytes]]:
    """Numbered lines, from 1, with their ends."""
    with file.open() as stream, io.BufferedReader(stream, 1 << 20) as buffered:
        yield from enumerate(buffered, start=1)


def _decoded(lines: Iterable[tuple[int, bytes]], file: SourceFile) -> Iterator[tuple[int, Any]]:
    """Lines as text, with their ends, or the reason why not."""
    for number, line in lines:
        try:
            yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            reason = f"is not UTF-8: {error.reason} at byte {error.start}"
            yield number, BadRow(file.uri, number, reason)


def _read_python(file: SourceFile, reading: Reading) -> Found:
    """A source file, decoded as it declares itself to be (PEP 263)."""
    try:
        with tokenize.open(file.uri) as stream:
            yield 1, {reading.names[0]: stream.read()}
    except (SyntaxError, UnicodeDecodeError, LookupError) as error:
        yield 0, BadRow(file.uri, 0, f"cannot be decoded: {first_line(error)}")


def _read_documents(file: SourceFile, reading: Reading) -> Found:
    """A document a file; a long one is cut at the first blank line past its limit."""
    limit = reading.data.max_document_bytes
    document: list[str] = []
    size = 0
    for number, line in _decoded(_lines(file), file):
        if isinstance(line, BadRow):
            yield number, line
            continue
        document.append(line)
        size += len(line.encode())
        if (size >= limit and not line.strip()) or size >= 4 * limit:
            yield number, {reading.names[0]: "".join(document)}
            document, size = [], 0
    if document:
        yield 0, {reading.names[0]: "".join(document)}


def _read_lines(file: SourceFile, reading: Reading) -> Found:
    for number, line in _decoded(_lines(file), file):
        if isinstance(line, BadRow):
            yield number, line
        else:
            yield number, {reading.names[0]: line.rstrip("\r\n")}


def _read_parallel(file: SourceFile, reading: Reading) -> Found:
    """Text files side by side, a row from the same line of each."""
    files = (file, *file.beside)
    with ExitStack() as stack:
        streams = [
            stack.enter_context(io.BufferedReader(stack.enter_context(each.open()), 1 << 20))
            for each in files
        ]
        for number, lines in enumerate(itertools.zip_longest(*streams), start=1):
            if None in lines:
                short = files[lines.index(None)]
                reason = f"has {number - 1} lines, fewer than the file beside it"
                yield number, BadRow(short.uri, number, reason)
                return
            row = {}
            for each, line in zip(files, lines, strict=True):
                ((_, text),) = _decoded([(number, line)], each)
                row[each.column] = text if isinstance(text, BadRow) else text.rstrip("\r\n")
            yield number, next((v for v in row.values() if isinstance(v, BadRow)), row)


def _read_jsonl(file: SourceFile, reading: Reading) -> Found:
    for number, line in _decoded(_lines(file), file):
        if isinstance(line, BadRow):
            yield number, line
        elif line.strip():
            try:
                yield number, json.loads(line)
            except (ValueError, RecursionError) as error:
                yield number, BadRow(file.uri, number, f"is not JSON: {first_line(error)}")


def _read_json(file: SourceFile, reading: Reading) -> Found:
    """A list of objects, or SQuAD's layout, a row a question."""
    with file.open() as stream:
        try:
            content = json.loads(stream.read())
        except (ValueError, RecursionError) as error:
            yield 0, BadRow(file.uri, 0, f"is not JSON: {first_line(error)}")
            return
    if isinstance(content, dict) and isinstance(content.get("data"), list):
        yield from enumerate(_squad(content["data"]), start=1)
    elif isinstance(content, list):
        yield from enumerate(content, start=1)
    else:
        yield 0, BadRow(file.uri, 0, "is neither a list of objects nor in SQuAD's layout")


def _squad(articles: list[Any]) -> Iterator[Any]:
    """Rajpurkar et al. 2016: articles of paragraphs of questions, the first answer of each."""
    for article in articles:
        for paragraph in article.get("paragraphs", []):
            for question in paragraph.get("qas", []):
                answers = question.get("answers") or [{}]
                yield {
                    "context": paragraph.get("context"),
                    "question": question.get("question"),
                    "answer": answers[0].get("text"),
                    "answer_start": answers[0].get("answer_start"),
                }


def _read_csv(file: SourceFile, reading: Reading) -> Found:
    csv.field_size_limit(MAX_FIELD)
    # A tab needs no quotes, so that one in a tsv file is text.
    quoting: Literal[0, 3] = csv.QUOTE_NONE if file.kind == "tsv" else csv.QUOTE_MINIMAL
    with file.open() as stream, io.BufferedReader(stream, 1 << 20) as buffered:
        # Undecodable bytes become lone surrogates, which `_checked` finds in their row.
        text = io.TextIOWrapper(buffered, "utf-8-sig", errors="surrogateescape", newline="")
        reader = csv.reader(text, strict=True, delimiter=DELIMITERS[file.kind], quoting=quoting)
        names = next(reader, []) if reading.data.header else None
        while True:
            try:
                fields = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield 0, BadRow(file.uri, reader.line_num, f"is not {file.kind}: {error}")
                continue
            if not fields:
                continue
            if names is None:
                names = _numbers(fields)
            if len(fields) != len(names):
                expected = "the header" if reading.data.header else "the first row"
                reason = f"has {len(fields)} fields, {expected} {len(names)}"
                yield 0, BadRow(file.uri, reader.line_num, reason)
                continue
            yield reader.line_num, dict(zip(names, fields, strict=True))


def _read_parquet(file: SourceFile, reading: Reading) -> Found:
    with file.open_whole() as stream:
        table = pyarrow.parquet.ParquetFile(stream)
        there = table.schema_arrow.names
        missing = [name for name in reading.names if name not in (*there, *reading.may_lack)]
        if missing:
            yield 0, BadRow(file.uri, 0, f"has no column {missing[0]!r}")
            return
        names = [name for name in reading.names if name in there]
        number = 0
        for batch in table.iter_batches(batch_size=1024, columns=names):
            for i in range(batch.num_rows):
                number += 1
                try:
                    yield number, {name: batch.column(name)[i].as_py() for name in names}
                except UnicodeDecodeError as error:
                    yield number, BadRow(file.uri, number, f"is not UTF-8: {error.reason}")


def _checked(row: object, reading: Reading, file: SourceFile, number: int) -> Row | BadRow:
    """A row with just the task's columns, as text: what is to be a value may be a number, too."""
    if not isinstance(row, dict):
        return BadRow(file.uri, number, f"is {type(row).__name__}, not an object with columns")
    path = PurePosixPath(file.uri)
    row = {**row, "$file": path.name, "$folder": path.parent.name}
    found = {}
    for column, kind in reading.columns.items():
        name = reading.name(column)
        value = row.get(name)
        if value is None and column in reading.optional:
            value = ""
        if value is None:
            return BadRow(file.uri, number, f"has no {name!r}")
        if isinstance(value, list) and all(isinstance(part, str) for part in value):
            value = "\n".join(value)  # paragraphs, the lines of a poem
        if kind == "value" and isinstance(value, bool | int | float):
            value = json.dumps(value)
        if not isinstance(value, str):
            return BadRow(file.uri, number, f"{name!r} is {type(value).__name__}, not text")
        try:
            value.encode()
        except UnicodeEncodeError:
            return BadRow(file.uri, number, f"{name!r} is not valid UTF-8")
        found[column] = value
    return found

"""csv and tsv files, row by row."""

import csv
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from orchestrator.columns import MISSING, check_names, undecoded, value_of
from orchestrator.errors import UserError
from orchestrator.quotes import MEND, Swallowed, opened
from orchestrator.reading import BadRow, Note, Reading
from orchestrator.sources import SourceFile
from orchestrator.texts import Found, lines_of, open_text

MAX_FIELD = 1 << 28  # characters of one field
DELIMITERS = {"csv": ",", "tsv": "\t"}
NAMES = {"\t": "tabs"}  # of delimiters that one cannot see
OTHERS = (",", ";", "\t", "|")
FIRST_LINES = 20  # that are looked at for how the table is written
EXCEL = re.compile(r'"?sep=(.)"?\s*')  # Excel's own first line


@dataclass(frozen=True)
class Dialect:
    """How a table is written, and what its columns are called."""

    delimiter: str
    quoted: bool
    names: list[str]
    skipped: int  # lines before the header, or the first row
    note: str = ""

    def records(self, lines: Iterator[str]) -> Iterator[list[str]]:
        quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if self.quoted else csv.QUOTE_NONE
        return csv.reader(lines, strict=True, delimiter=self.delimiter, quoting=quoting)


def check_table(file: SourceFile, reading: Reading) -> None:
    """Raises UserError where a table's head shows that it cannot be read."""
    with open_text(file, reading, newline="") as (text, _):
        head = [line for _, line in itertools.islice(lines_of(text, file, reading), FIRST_LINES)]
        if head:
            _dialect(head, file, reading)


def read_table(file: SourceFile, reading: Reading) -> Found:
    csv.field_size_limit(MAX_FIELD)
    with open_text(file, reading, newline="") as (text, notes):
        yield from ((0, note) for note in notes)
        lines = lines_of(text, file, reading)
        head = list(itertools.islice(lines, FIRST_LINES))
        if not head:
            return
        dialect = _dialect([line for _, line in head], file, reading)
        if dialect.note:
            yield 0, Note(file.uri, dialect.note)
        rest = itertools.islice(itertools.chain(head, lines), dialect.skipped, None)
        yield from _Table(file, reading, dialect, _Lines(rest)).rows()


class _Lines:
    """Lines for the csv parser that keeps those of the record at hand."""

    def __init__(self, lines: Iterator[tuple[int, str]]) -> None:
        self._lines = lines
        self.record: list[str] = []
        self.last = 0  # the number of the last line

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        self.last, line = next(self._lines)
        self.record.append(line)
        return line

    @property
    def first(self) -> int:
        return self.last - len(self.record) + 1


class _Table:
    """One pass over a table's records."""

    def __init__(self, file: SourceFile, reading: Reading, dialect: Dialect, lines: _Lines) -> None:
        self._file, self._reading, self._dialect, self._lines = file, reading, dialect, lines
        row = {name: name for name in dialect.names}
        values = {
            value_of(row, column, reading)
            for column, kind in reading.columns.items()
            if kind in ("value", "starts")
        } - {MISSING}
        places = [dialect.names.index(name) for name in values]
        is_meant = reading.data.quoted is True
        self._row = 0  # the number of the row at hand
        self._swallowed = Swallowed(dialect.delimiter, len(dialect.names), places, is_meant)

    def rows(self) -> Found:
        dialect, uri, lines = self._dialect, self._file.uri, self._lines
        records = dialect.records(lines)
        headers = left_quoted = 0
        left_open = not dialect.quoted and self._reading.data.quoted is None
        if self._reading.data.header:
            next(records)
        while True:
            lines.record.clear()
            self._row += 1
            try:
                fields = next(records)
            except StopIteration:
                break
            except csv.Error as error:
                yield lines.last, self._broken(error)
                continue
            if not fields:
                self._row -= 1
                continue
            if self._reading.data.header and _is_header(fields, dialect.names):
                headers += 1
                self._row -= 1
            elif len(fields) != len(dialect.names):
                yield lines.first, self._unequal(fields)
            else:
                self._swallowed.add(fields, self._row, lines.first, lines.record)
                if left_open and '""' in lines.record[0]:
                    left_quoted += sum(map(_is_quoted, fields))
                row = dict(zip(dialect.names, fields, strict=True))
                yield lines.first, self._decoded(row)
        if headers:
            where = (
                "1 line repeats the header, and is"
                if headers == 1
                else (f"{headers:,} lines repeat the header, and are")
            )
            yield 0, Note(uri, f"{where} skipped")
        if left_quoted:
            told = f"{left_quoted:,} fields stand in quotes with doubled quotes inside"
            yield 0, Note(uri, f"{told}, and are taken as they are: set data.quoted: true")
        yield from ((0, note) for note in self._swallowed.judge(uri))

    def _decoded(self, row: dict[str, str]) -> dict[str, str] | BadRow:
        """The row, or why it is none where a column that is read has bytes that are no text."""
        for column in self._reading.columns:
            name = self._reading.name(column)
            value = row.get(name, "")
            reason = None if value.isascii() else undecoded(value, self._reading.data)
            if reason is not None:
                return BadRow(self._file.uri, self._lines.first, f"{name!r} is not valid {reason}")
        return row

    def _unequal(self, fields: list[str]) -> BadRow:
        lines, names = self._lines, self._dialect.names
        header = "the header" if self._reading.data.header else "the first row"
        reason = f"has {len(fields)} fields, {header} {len(names)}"
        if not lines.record[-1].endswith(("\n", "\r")) and len(fields) < len(names):
            raise UserError(
                f"{self._file.uri}: line {lines.last}, the last, {reason}, and no end: the file is "
                f"cut off; download or write it again, or delete that line"
            )
        if len(lines.record) > 1:
            reason = f"{reason} (lines {lines.first} to {lines.last})"
            if self._reading.data.quoted is None and self._swallowed.holds_row(lines.record):
                raise UserError(
                    f"{self._file.uri}: line {lines.first}: a quote opens and closes on line "
                    f"{lines.last} only, and that record {reason}: {MEND}"
                )
        return BadRow(self._file.uri, lines.first, reason)

    def _broken(self, error: csv.Error) -> BadRow:
        """A record that is no csv; a bad row where it is certain that the next line is another."""
        lines, uri = self._lines, self._file.uri
        if "unexpected end" in str(error):
            line = lines.first + opened(lines.record, self._dialect.delimiter)
            swallowed = lines.last - line
            raise UserError(
                f"{uri}: line {line} (row {self._row}): a quote opens and is never closed, up to "
                f"the end of the file {swallowed:,} lines later: {MEND}"
            )
        reason = f"is not {self._file.kind}: {error}"
        if len(lines.record) > 1:
            line = lines.first + opened(lines.record[:-1], self._dialect.delimiter)
            raise UserError(
                f"{uri}: line {lines.last}: {reason}, within the quotes that line {line} opens: "
                f"{MEND}"
            )
        text = lines.record[0]
        is_whole = text.count(self._dialect.delimiter) + 1 >= len(self._dialect.names)
        if text.count('"') % 2 or not is_whole:
            raise UserError(f"{uri}: line {lines.last}: {reason}: {MEND}")
        return BadRow(uri, lines.last, reason)


def _is_header(fields: list[str], names: list[str]) -> bool:
    return fields == names or [fields[0].removeprefix("\ufeff"), *fields[1:]] == names


def _is_quoted(text: str) -> bool:
    return len(text) > 1 and text[0] == text[-1] == '"' and '""' in text[1:-1]


def _dialect(head: list[str], file: SourceFile, reading: Reading) -> Dialect:
    """How the table is written, by its first lines.

    Raises:
        UserError: where it cannot be read so.
    """
    usual = DELIMITERS[file.kind]
    skipped = 0
    if excel := EXCEL.fullmatch(head[0]):
        usual, skipped = excel[1], 1
    skipped += sum(1 for _ in itertools.takewhile(lambda line: not line.strip(), head[skipped:]))
    lines = head[skipped:]
    if not lines:
        raise UserError(f"{file.uri}: begins with {len(head)} blank lines: it holds no table")
    found = None
    for delimiter in (usual, *OTHERS):
        dialect = _written(delimiter, lines, skipped, file, reading)
        if dialect is not None and _fits(dialect, lines, reading, is_usual=delimiter == usual):
            found = dialect
            break
    if found is None:
        found = _written(usual, lines, skipped, file, reading)
    if found is None:
        raise UserError(
            f"{file.uri}: line {skipped + 1}: its first line is not {file.kind}, a quote stands "
            f"within a field: {lines[0].strip()[:200]}: {MEND}"
        )
    _check(found, lines, file, reading)
    if found.delimiter == DELIMITERS[file.kind]:
        return found
    shown = NAMES.get(found.delimiter, repr(found.delimiter))
    note = f"columns are parted by {shown}"
    return Dialect(found.delimiter, found.quoted, found.names, found.skipped, note)


def _written(
    delimiter: str, lines: list[str], skipped: int, file: SourceFile, reading: Reading
) -> Dialect | None:
    """The table as written with this delimiter, or None where its first record is no csv."""
    if reading.data.quoted is not None:
        quoted = reading.data.quoted
    elif file.kind == "tsv" and delimiter == "\t":  # a tab needs no quotes, so that one is text
        parts = lines[0].rstrip("\r\n").split(delimiter)
        quoted = all(len(part) > 1 and part[0] == part[-1] == '"' for part in parts)
    else:
        quoted = True
    try:
        names = next(Dialect(delimiter, quoted, [], skipped).records(iter(lines)), [])
    except csv.Error:
        return None
    if not reading.data.header:
        names = [str(i) for i in range(len(names))]
    return Dialect(delimiter, quoted, names, skipped)


def _fits(dialect: Dialect, lines: list[str], reading: Reading, is_usual: bool) -> bool:
    """Whether all columns that are needed are found so."""
    row = {name: name for name in dialect.names}
    if any(value_of(row, column, reading) is MISSING for column in reading.needed):
        return False
    if is_usual or reading.data.header:
        return True
    counts = {line.count(dialect.delimiter) for line in lines if line.strip()}
    return len(counts) == 1 and counts != {0}


def _check(dialect: Dialect, lines: list[str], file: SourceFile, reading: Reading) -> None:
    names, data = dialect.names, reading.data
    first = {name.strip().lower() for name in next(dialect.records(iter(lines)), [])}
    if not data.header and first >= {column.lower() for column in reading.needed}:
        raise UserError(
            f"{file.uri}: line {dialect.skipped + 1}: its first line names the columns, and "
            f"data.header is false: set data.header: true"
        )
    row = {name: name for name in names}
    hint = "; where its first line is a row, set data.header: false" if data.header else ""
    check_names([row], file.uri, reading, hint)
    for column in reading.columns:
        name = value_of(row, column, reading)
        if name is not MISSING and names.count(name) > 1:
            raise UserError(
                f"{file.uri}: line {dialect.skipped + 1}: its header names {name!r} "
                f"{names.count(name)} times ({', '.join(names)}): rename one of them"
            )

"""csv and tsv files, row by row."""

import csv
import itertools
from collections.abc import Iterator

from orchestrator.data.columns import MISSING, value_of
from orchestrator.data.formats.decoding import lines_of, open_text
from orchestrator.data.formats.dialects import Dialect, bare, dialect_of, shown
from orchestrator.data.formats.format import Format, Rows
from orchestrator.data.formats.quotes import MEND, Swallowed, opened
from orchestrator.data.heads import OBJECTS, PAGES, Head
from orchestrator.data.kinds.registry import KINDS
from orchestrator.data.reading import BadRow, Note, Reading
from orchestrator.data.source_file import SourceFile
from orchestrator.data.undecoded import undecoded
from orchestrator.errors import UserError

HEAD = Head(refused=PAGES + OBJECTS)
MAX_FIELD = 1 << 28  # characters of one field
FIRST_LINES = 20  # from which the dialect is detected


def _check(file: SourceFile, reading: Reading) -> None:
    """Raises UserError if a table's head shows that it cannot be read."""
    csv.field_size_limit(MAX_FIELD)
    with open_text(file, reading, HEAD, newline="") as (text, _):
        head = _head(lines_of(text, file, reading))
        if head:
            dialect_of(head, file, reading)


def _rows(file: SourceFile, reading: Reading) -> Rows:
    csv.field_size_limit(MAX_FIELD)
    with open_text(file, reading, HEAD, newline="") as (text, notes):
        yield from ((0, note) for note in notes)
        lines = lines_of(text, file, reading)
        head = _head(lines)
        if not head:
            return
        dialect = dialect_of(head, file, reading)
        if dialect.note:
            yield 0, Note(file.uri, dialect.note)
        rest = itertools.islice(itertools.chain(head, lines), dialect.skipped, None)
        yield from _Table(file, reading, dialect, _Lines(rest)).rows()


def _head(lines: Iterator[tuple[int, str]]) -> list[tuple[int, str]]:
    """The first lines with their numbers, from the first that is not blank."""
    begun = itertools.dropwhile(lambda numbered: not numbered[1].strip(), lines)
    return list(itertools.islice(begun, FIRST_LINES))


class _Lines:
    """Lines for the csv parser; keeps the lines of the current record."""

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
            if KINDS[kind].is_short
        } - {MISSING}
        places = [dialect.names.index(name) for name in values]
        is_meant = reading.quoted is True
        self._row = 0  # the number of the current row
        self._swallowed = Swallowed(dialect.delimiter, len(dialect.names), places, is_meant)

    def rows(self) -> Rows:
        dialect, uri, lines = self._dialect, self._file.uri, self._lines
        records = dialect.records(lines)
        headers = left_quoted = 0
        left_open = not dialect.quoted and self._reading.quoted is None
        if self._reading.header:
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
            if not fields or (len(dialect.names) > 1 and not "".join(lines.record).strip()):
                self._row -= 1
                continue
            if self._reading.header and _is_header(fields, dialect.names):
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
            text = f"{left_quoted:,} fields stand in quotes with doubled quotes inside"
            yield 0, Note(uri, f"{text}, and are taken as they are: set data.quoted: true")
        yield from ((0, note) for note in self._swallowed.judge(uri))

    def _decoded(self, row: dict[str, str]) -> dict[str, str] | BadRow:
        """The row, or a bad row if a column that is read could not be decoded."""
        for column in self._reading.columns:
            name = self._reading.name(column)
            value = row.get(name, "")
            reason = None if value.isascii() else undecoded(value, self._reading.encoding)
            if reason is not None:
                return BadRow(self._file.uri, self._lines.first, f"{name!r} is not valid {reason}")
        return row

    def _unequal(self, fields: list[str]) -> BadRow:
        lines, names = self._lines, self._dialect.names
        header = "the header" if self._reading.header else "the first row"
        reason = f"has {len(fields)} fields, {header} {len(names)}"
        if not lines.record[-1].endswith(("\n", "\r")) and len(fields) < len(names):
            raise UserError(
                f"{self._file.uri}: line {lines.last}, the last, {reason}, and no end: the file is "
                f"cut off; download or write it again, or delete that line"
            )
        if len(lines.record) > 1:
            reason = f"{reason} (lines {lines.first} to {lines.last})"
            if self._reading.quoted is None and self._swallowed.holds_row(lines.record):
                raise UserError(
                    f"{self._file.uri}: line {lines.first}: a quote opens and closes on line "
                    f"{lines.last} only, and that record {reason}: {MEND}"
                )
        if len(fields) > len(names):
            reason += f": a field that holds {shown(self._dialect.delimiter)} stands in quotes"
        return BadRow(self._file.uri, lines.first, reason)

    def _broken(self, error: csv.Error) -> BadRow:
        """The result for an invalid record: a bad row if the next line is certainly another
        record."""
        lines, uri = self._lines, self._file.uri
        if "unexpected end" in str(error):
            line = lines.first + opened(lines.record, self._dialect.delimiter)
            swallowed = lines.last - line
            end = "the end of the file" + (f" {swallowed:,} lines later" if swallowed else "")
            raise UserError(
                f"{uri}: line {line} (row {self._row}): a quote opens and is never closed, up to "
                f"{end}: {MEND}"
            )
        reason = f"is not {self._file.kind}: {error}"
        if '\\"' in "".join(lines.record):
            reason += ' (a quote within a field is doubled, "", not escaped, \\")'
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
    return fields == names or [bare(name) for name in fields] == names


def _is_quoted(text: str) -> bool:
    return len(text) > 1 and text[0] == text[-1] == '"' and '""' in text[1:-1]


CSV = Format("csv", ("csv",), _check, _rows)
TSV = Format("tsv", ("tsv",), _check, _rows)

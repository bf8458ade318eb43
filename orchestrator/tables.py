"""csv and tsv files, row by row."""

import csv
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from orchestrator.columns import MISSING, check_names, undecoded, value_of
from orchestrator.errors import UserError, printable
from orchestrator.quotes import MEND, Swallowed, opened
from orchestrator.reading import BadRow, Note, Reading
from orchestrator.sources import SourceFile
from orchestrator.texts import Found, lines_of, open_text

MAX_FIELD = 1 << 28  # characters of one field
DELIMITERS = {"csv": ",", "tsv": "\t"}
NAMES = {"\t": "tabs"}  # of delimiters that one cannot see
OTHERS = (",", ";", "\t", "|")
FIRST_LINES = 20  # that are looked at for how the table is written
FEWEST_QUOTED = 3  # rows that show that texts stand in quotes
NUMBER = re.compile(r"[-+]?[0-9.]*(?:[eE][-+]?[0-9]+)?")  # or nothing
EXCEL = re.compile(r'"?sep=(.)"?\s*', re.I)  # Excel's own first line


@dataclass(frozen=True)
class Dialect:
    """How a table is written, and what its columns are called."""

    delimiter: str
    quoted: bool
    names: list[str]
    skipped: int  # of the first lines, those before the header, or the first row
    line: int  # the number of the header, or of the first row
    is_spaced: bool = False  # a space stands behind each delimiter
    note: str = ""

    def records(self, lines: Iterator[str]) -> Iterator[list[str]]:
        quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if self.quoted else csv.QUOTE_NONE
        return csv.reader(
            lines,
            strict=True,
            delimiter=self.delimiter,
            quoting=quoting,
            skipinitialspace=self.is_spaced,
        )


def check_table(file: SourceFile, reading: Reading) -> None:
    """Raises UserError where a table's head shows that it cannot be read."""
    with open_text(file, reading, newline="") as (text, _):
        head = _head(lines_of(text, file, reading))
        if head:
            _dialect(head, file, reading)


def read_table(file: SourceFile, reading: Reading) -> Found:
    csv.field_size_limit(MAX_FIELD)
    with open_text(file, reading, newline="") as (text, notes):
        yield from ((0, note) for note in notes)
        lines = lines_of(text, file, reading)
        head = _head(lines)
        if not head:
            return
        dialect = _dialect(head, file, reading)
        if dialect.note:
            yield 0, Note(file.uri, dialect.note)
        rest = itertools.islice(itertools.chain(head, lines), dialect.skipped, None)
        yield from _Table(file, reading, dialect, _Lines(rest)).rows()


def _head(lines: Iterator[tuple[int, str]]) -> list[tuple[int, str]]:
    """The first numbered lines, from the first one on that is not blank."""
    begun = itertools.dropwhile(lambda numbered: not numbered[1].strip(), lines)
    return list(itertools.islice(begun, FIRST_LINES))


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
            if not fields or (len(dialect.names) > 1 and not "".join(lines.record).strip()):
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
        if len(fields) > len(names):
            reason += f": a field that holds {_shown(self._dialect.delimiter)} stands in quotes"
        return BadRow(self._file.uri, lines.first, reason)

    def _broken(self, error: csv.Error) -> BadRow:
        """A record that is no csv; a bad row where it is certain that the next line is another."""
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
    return fields == names or [_bare(name) for name in fields] == names


def _bare(name: str) -> str:
    return name.strip().lstrip("\ufeff")


def _shown(delimiter: str) -> str:
    return NAMES.get(delimiter, repr(delimiter))


def _stands_in_quotes(field: str) -> bool:
    return len(field) > 1 and field[0] == field[-1] == '"'


def _all_in_quotes(rows: list[list[str]]) -> bool:
    """Whether rows, some at least, are written with all their texts in quotes, and no number."""
    texts = [[field for field in row if not NUMBER.fullmatch(field)] for row in rows]
    return len(rows) >= FEWEST_QUOTED and all(
        row and all(map(_stands_in_quotes, row)) for row in texts
    )


def _is_quoted(text: str) -> bool:
    return len(text) > 1 and text[0] == text[-1] == '"' and '""' in text[1:-1]


def _dialect(head: list[tuple[int, str]], file: SourceFile, reading: Reading) -> Dialect:
    """How the table is written, by its first lines.

    Raises:
        UserError: where it cannot be read so.
    """
    usual = DELIMITERS[file.kind]
    skipped = 0
    if excel := EXCEL.fullmatch(head[0][1]):
        usual, skipped = excel[1], 1
    blank = itertools.takewhile(lambda numbered: not numbered[1].strip(), head[skipped:])
    skipped += sum(1 for _ in blank)
    lines = [line for _, line in head[skipped:]]
    if not lines:
        raise UserError(f"{file.uri}: line 1: is {head[0][1].strip()}, and no table follows")
    line = head[skipped][0]
    found = None
    for delimiter in (usual, *OTHERS):
        dialect = _written(delimiter, lines, (skipped, line), file, reading)
        if dialect is not None and _fits(dialect, lines, reading, is_usual=delimiter == usual):
            found = dialect
            break
    if found is None:
        found = _written(usual, lines, (skipped, line), file, reading)
    if found is None:
        raise UserError(
            f"{file.uri}: line {line}: its first line is not {file.kind}, a quote stands "
            f"within a field: {printable(lines[0].strip()[:200])}: {MEND}"
        )
    _check(found, lines, file, reading)
    told = []
    if found.delimiter != DELIMITERS[file.kind]:
        told.append(f"columns are parted by {_shown(found.delimiter)}")
    names = found.names
    if reading.data.header:
        names, note = _named(found, lines)
        told += [note] if note else []
    return replace(found, names=names, note="; ".join(told))


def _named(dialect: Dialect, lines: list[str]) -> tuple[list[str], str]:
    """The columns' names, where the first rows all have one field more or less than the header: a
    delimiter at the end of each, or a row's name before it, which R gives no name of its own."""
    names, rows = dialect.names, []
    try:
        for fields in itertools.islice(dialect.records(iter(lines)), 1, None):
            rows.append(fields)
    except csv.Error:  # of a row that goes on behind the first lines, or is none
        pass
    rows = [fields for fields in rows if fields]
    lengths = {len(fields) for fields in rows}
    if len(rows) > 1 and lengths == {len(names) + 1}:
        if not any(fields[-1] for fields in rows):
            return [*names, ""], ""
        if all(fields[0].isdecimal() for fields in rows):
            firsts = [int(fields[0]) for fields in rows]
            if firsts == list(range(firsts[0], firsts[0] + len(firsts))):
                return ["", *names], "rows have one field more than the header, their numbers"
    if len(rows) > 1 and lengths == {len(names) - 1} and not names[-1]:
        return names[:-1], ""
    return names, ""


def _written(
    delimiter: str, lines: list[str], place: tuple[int, int], file: SourceFile, reading: Reading
) -> Dialect | None:
    """The table as written with this delimiter, or None where its first record is no csv."""
    if reading.data.quoted is not None:
        quoted = reading.data.quoted
    elif file.kind == "tsv" and delimiter == "\t":  # a tab needs no quotes, so that one is text
        split = [line.rstrip("\r\n").split(delimiter) for line in lines if line.strip()]
        first, rows = split[0], split[1:] if reading.data.header else split
        quoted = all(map(_stands_in_quotes, first)) or _all_in_quotes(rows)
    else:
        quoted = True
    dialect = Dialect(delimiter, quoted, [], *place)
    read = {reading.name(column) for column in reading.columns}
    try:
        names = next(dialect.records(iter(lines)), [])
        further = names[1:] if reading.data.header else []
        if further and all(name.startswith(" ") and name not in read for name in further):
            dialect = replace(dialect, is_spaced=True)
            names = next(dialect.records(iter(lines)), [])
    except csv.Error:
        return None
    if reading.data.header:
        names = [name if name in read else _bare(name) for name in names]
    else:
        names = [str(i) for i in range(len(names))]
    return replace(dialect, names=names)


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
            f"{file.uri}: line {dialect.line}: its first line names the columns, and "
            f"data.header is false: set data.header: true"
        )
    row = {name: name for name in names}
    if any(value_of(row, column, reading) is MISSING for column in reading.needed):
        _check_lines(dialect, lines, file, reading)
    hint = "; where its first line is a row, set data.header: false" if data.header else ""
    check_names([row], file.uri, reading, hint)
    for column in reading.columns:
        name = value_of(row, column, reading)
        if name is not MISSING and names.count(name) > 1:
            raise UserError(
                f"{file.uri}: line {dialect.line}: its header names {name!r} "
                f"{names.count(name)} times ({printable(', '.join(names))}): rename one of them"
            )


def _check_lines(dialect: Dialect, lines: list[str], file: SourceFile, reading: Reading) -> None:
    """Raises UserError where the header is no text, or another line than the first."""
    reason = undecoded(lines[0], reading.data)
    if reason is not None:
        raise UserError(f"{file.uri}: line {dialect.line}: its header is not {reason}")
    needed = {reading.name(column) for column in reading.needed}
    for number, line in enumerate(lines[1:] if reading.data.header else [], dialect.line + 1):
        for delimiter in (dialect.delimiter, *OTHERS):
            if needed <= {_bare(name.strip('" \r\n')) for name in line.split(delimiter)}:
                raise UserError(
                    f"{file.uri}: line {number} names the columns, and the first line does not: "
                    f"delete the lines above it"
                )

"""Detects the dialect of a csv or tsv file from its first lines: delimiter, quotes, names."""

import csv
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from orchestrator.data.columns import MISSING, check_names, value_of
from orchestrator.data.formats.quotes import MEND
from orchestrator.data.reading import Reading
from orchestrator.data.source_file import SourceFile
from orchestrator.data.undecoded import undecoded
from orchestrator.errors import UserError, printable

DELIMITERS = {"csv": ",", "tsv": "\t"}
NAMES = {"\t": "tabs"}  # of invisible delimiters
OTHERS = (",", ";", "\t", "|")
FEWEST_QUOTED = 3  # rows that prove that texts are quoted
NUMBER = re.compile(r"[-+]?[0-9.]*(?:[eE][-+]?[0-9]+)?")  # or nothing
EXCEL = re.compile(r'"?sep=(.)"?\s*', re.I)  # Excel's own first line


@dataclass(frozen=True)
class Dialect:
    """The dialect of a table, and the names of its columns."""

    delimiter: str
    quoted: bool
    names: list[str]
    skipped: int  # lines before the header, or before the first row
    line: int  # the number of the header, or of the first row
    is_spaced: bool = False  # a space follows each delimiter
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


def dialect_of(head: list[tuple[int, str]], file: SourceFile, reading: Reading) -> Dialect:
    """The dialect of a table, from its first lines.

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
    chosen = None
    for delimiter in (usual, *OTHERS):
        dialect = _written(delimiter, lines, (skipped, line), file, reading)
        if dialect is not None and _fits(dialect, lines, reading, is_usual=delimiter == usual):
            chosen = dialect
            break
    if chosen is None:
        chosen = _written(usual, lines, (skipped, line), file, reading)
    if chosen is None:
        raise UserError(
            f"{file.uri}: line {line}: its first line is not {file.kind}, a quote stands "
            f"within a field: {printable(lines[0].strip()[:200])}: {MEND}"
        )
    _check(chosen, lines, file, reading)
    notes = []
    if chosen.delimiter != DELIMITERS[file.kind]:
        notes.append(f"columns are parted by {shown(chosen.delimiter)}")
    names = chosen.names
    if reading.header:
        names, note = _named(chosen, lines)
        notes += [note] if note else []
    return replace(chosen, names=names, note="; ".join(notes))


def _named(dialect: Dialect, lines: list[str]) -> tuple[list[str], str]:
    """The columns' names, corrected if all first rows have one field more or less than the header:
    a delimiter at the end of rows, or R's row names, which have no column name."""
    names, rows = dialect.names, []
    try:
        for fields in itertools.islice(dialect.records(iter(lines)), 1, None):
            rows.append(fields)
    except csv.Error:  # a row that continues after the first lines, or is invalid
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
    """The dialect with this delimiter; None if the first record is then no csv."""
    if reading.quoted is not None:
        quoted = reading.quoted
    elif file.kind == "tsv" and delimiter == "\t":  # fields with tabs are rare, so a quote is text
        split = [line.rstrip("\r\n").split(delimiter) for line in lines if line.strip()]
        first, rows = split[0], split[1:] if reading.header else split
        quoted = all(map(_stands_in_quotes, first)) or _all_in_quotes(rows)
    else:
        quoted = True
    dialect = Dialect(delimiter, quoted, [], *place)
    read = {reading.name(column) for column in reading.columns}
    try:
        names = next(dialect.records(iter(lines)), [])
        further = names[1:] if reading.header else []
        if further and all(name.startswith(" ") and name not in read for name in further):
            dialect = replace(dialect, is_spaced=True)
            names = next(dialect.records(iter(lines)), [])
    except csv.Error:
        return None
    if reading.header:
        names = [name if name in read else bare(name) for name in names]
    else:
        names = [str(i) for i in range(len(names))]
    return replace(dialect, names=names)


def _fits(dialect: Dialect, lines: list[str], reading: Reading, is_usual: bool) -> bool:
    """Whether this dialect has all required columns."""
    row = {name: name for name in dialect.names}
    if any(value_of(row, column, reading) is MISSING for column in reading.needed):
        return False
    if is_usual or reading.header:
        return True
    counts = {line.count(dialect.delimiter) for line in lines if line.strip()}
    return len(counts) == 1 and counts != {0}


def _check(dialect: Dialect, lines: list[str], file: SourceFile, reading: Reading) -> None:
    names = dialect.names
    first = {name.strip().lower() for name in next(dialect.records(iter(lines)), [])}
    if not reading.header and first >= {column.lower() for column in reading.needed}:
        raise UserError(
            f"{file.uri}: line {dialect.line}: its first line names the columns, and "
            f"data.header is false: set data.header: true"
        )
    row = {name: name for name in names}
    if any(value_of(row, column, reading) is MISSING for column in reading.needed):
        _check_lines(dialect, lines, file, reading)
    hint = "; where its first line is a row, set data.header: false" if reading.header else ""
    check_names([row], file.uri, reading, hint)
    for column in reading.columns:
        name = value_of(row, column, reading)
        if name is not MISSING and names.count(name) > 1:
            raise UserError(
                f"{file.uri}: line {dialect.line}: its header names {name!r} "
                f"{names.count(name)} times ({printable(', '.join(names))}): rename one of them"
            )


def _check_lines(dialect: Dialect, lines: list[str], file: SourceFile, reading: Reading) -> None:
    """Raises UserError if the header cannot be decoded, or is not the first line."""
    reason = undecoded(lines[0], reading.encoding)
    if reason is not None:
        raise UserError(f"{file.uri}: line {dialect.line}: its header is not {reason}")
    needed = {reading.name(column) for column in reading.needed}
    for number, line in enumerate(lines[1:] if reading.header else [], dialect.line + 1):
        for delimiter in (dialect.delimiter, *OTHERS):
            if needed <= {bare(name.strip('" \r\n')) for name in line.split(delimiter)}:
                raise UserError(
                    f"{file.uri}: line {number} names the columns, and the first line does not: "
                    f"delete the lines above it"
                )


def bare(name: str) -> str:
    return name.strip().lstrip("\ufeff")


def shown(delimiter: str) -> str:
    return NAMES.get(delimiter, repr(delimiter))


def _stands_in_quotes(field: str) -> bool:
    return len(field) > 1 and field[0] == field[-1] == '"'


def _all_in_quotes(rows: list[list[str]]) -> bool:
    """Whether some rows exist, and all have all texts in quotes, but no numbers."""
    texts = [[field for field in row if not NUMBER.fullmatch(field)] for row in rows]
    return len(rows) >= FEWEST_QUOTED and all(
        row and all(map(_stands_in_quotes, row)) for row in texts
    )

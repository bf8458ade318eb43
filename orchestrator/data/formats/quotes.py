"""Detects rows that a stray quote swallows: a parser takes them, up to the next quote, for one
field.

No rule of csv forbids such a record, but its lines look like rows of the table themselves.
"""

from dataclasses import dataclass, field

from orchestrator.data.reading import Note
from orchestrator.errors import UserError

SHARE = 0.8  # share of a record's lines that look like rows
FEWEST = 4  # the fewest such lines if there is no column of values to compare
RARE = 0.01  # share of records; if more of them have several lines, such texts are normal
FEWEST_LINES = 20  # the fewest lines of a table in which something can be rare
LONG = 50  # lines of a record that is worth a note
MOST_VALUES, LONGEST_VALUE = 10_000, 200  # values that are kept, and characters of each
MEND = (
    "close the quote or double it, or set data.quoted: false where no field stands in quotes "
    "(true, where this is one field)"
)


@dataclass
class _Values:
    """The values of a column in records of one line."""

    seen: set[str] = field(default_factory=set)
    are_numbers: bool = True

    def add(self, value: str) -> None:
        if value in self.seen or not value.strip():
            return
        self.are_numbers = self.are_numbers and _is_number(value)
        if len(self.seen) < MOST_VALUES:
            self.seen.add(value)

    def hold(self, piece: str) -> bool:
        if not piece.strip() or not self.seen:
            return False
        return piece in self.seen or (self.are_numbers and _is_number(piece))


@dataclass(frozen=True)
class _Suspect:
    row: int
    first: int
    last: int
    rows: list[list[str]]  # the columns of values of the lines that look like rows
    ends_fit: bool  # the first and the last line look like rows, too
    is_quoted: bool  # the lines after the first one begin with a quote


class Swallowed:
    """Collects a table's records, in order, and judges them at the end."""

    def __init__(self, delimiter: str, width: int, places: list[int], is_meant: bool) -> None:
        """`places` are the indices of columns of values; `is_meant` says that all quotes are
        intended."""
        self._delimiter, self._width, self._is_meant = delimiter, width, is_meant
        self._values = {place: _Values() for place in places}
        self._suspects: list[_Suspect] = []
        self._records = self._long_records = self._lines = 0
        self._longest = (0, 0)
        self._all_quoted = True  # whether all records of one line begin with a quote

    def add(self, fields: list[str], row: int, first: int, lines: list[str]) -> None:
        """Add a record with its row number, its lines, and the number of the first line."""
        self._records += 1
        self._lines += len(lines)
        if len(lines) == 1:
            self._all_quoted = self._all_quoted and lines[0].startswith('"')
            for place, values in self._values.items():
                values.add(fields[place])
            return
        self._long_records += 1
        self._longest = max(self._longest, (len(lines), -first))
        pieces = [line.rstrip("\r\n").split(self._delimiter) for line in lines]
        rows = [row for row in pieces if len(row) == self._width]
        if self._width > 1 and len(rows) >= SHARE * len(lines):
            kept = [
                [row[place].strip('"')[:LONGEST_VALUE] for place in self._values] for row in rows
            ]
            ends_fit = len(pieces[0]) == len(pieces[-1]) == self._width
            last = first + len(lines) - 1
            is_quoted = all(line.startswith('"') for line in lines[1:])
            self._suspects.append(
                _Suspect(row, first, last, kept if self._values else [], ends_fit, is_quoted)
            )

    def holds_row(self, lines: list[str]) -> bool:
        """Whether a line of a record could be a row."""
        split = (line.rstrip("\r\n").split(self._delimiter) for line in lines)
        return self._width > 1 and any(len(row) == self._width for row in split)

    def judge(self, uri: str) -> list[Note]:
        """Notes on the longest record, and on records that may be rows.

        Raises:
            UserError: where a record is rows that a quote has swallowed, naming its lines.
        """
        for suspect in self._suspects:
            if not self._is_meant and self._is_rows(suspect):
                raise UserError(
                    f"{uri}: line {suspect.first} (row {suspect.row}): a quote opens and closes on "
                    f"line {suspect.last} only, and the {suspect.last - suspect.first + 1} lines "
                    f"up to there look like rows: {MEND}"
                )
        notes = []
        few = [suspect for suspect in self._suspects if self._may_be_rows(suspect)]
        if few and not self._is_meant:
            where = f"lines {few[0].first} to {few[0].last} are one row by its quotes"
            more = f", and {len(few) - 1} more such rows" if few[1:] else ""
            notes.append(Note(uri, f"{where}, and look like rows{more}: if they are, {MEND}"))
        count, first = self._longest[0], -self._longest[1]
        # With one column, nothing else distinguishes a text of several lines from rows.
        is_odd = self._width == 1 and count > 1 and self._is_rare() and not self._is_meant
        is_odd = is_odd and self._lines >= FEWEST_LINES
        if count > LONG or is_odd:
            lines = f"lines {first} to {first + count - 1}"
            notes.append(Note(uri, f"{lines} are one row, the longest, by its quotes"))
        return notes

    def _is_rows(self, suspect: _Suspect) -> bool:
        if self._is_unlike_rows(suspect):
            return False
        lines = suspect.last - suspect.first + 1
        if any(values.seen for values in self._values.values()):
            known = [
                all(v.hold(p) for v, p in zip(self._values.values(), row, strict=True) if v.seen)
                for row in suspect.rows
            ]
            return sum(known) >= SHARE * lines
        return self._is_rare() and suspect.ends_fit and lines >= FEWEST

    def _may_be_rows(self, suspect: _Suspect) -> bool:
        """Whether a record could be rows, if columns of values cannot decide: there are none, or
        too few rows to compare with."""
        lines = suspect.last - suspect.first + 1
        is_judged = any(v.seen for v in self._values.values()) and lines <= self._records
        if is_judged or self._is_unlike_rows(suspect):
            return False
        return self._is_rare() and suspect.ends_fit

    def _is_unlike_rows(self, suspect: _Suspect) -> bool:
        """Whether all records of one line begin with a quote, but these lines do not."""
        return self._all_quoted and self._records > self._long_records and not suspect.is_quoted

    def _is_rare(self) -> bool:
        return self._long_records <= max(2, RARE * self._records)


def opened(lines: list[str], delimiter: str) -> int:
    """The index of the line in a record that opened the quote which is open at the end."""
    found, is_open, is_start, was_quote = 0, False, True, False
    for number, line in enumerate(lines):
        for character in line:
            if is_open:
                if character == '"':
                    is_open, was_quote = False, True
            elif character == '"' and was_quote:  # a doubled quote
                is_open, was_quote = True, False
            elif character == '"' and is_start:
                found, is_open, is_start = number, True, False
            else:
                is_start, was_quote = character in (delimiter, "\r", "\n"), False
    return found


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return text == text.strip()  # excludes words and numbers of a text, such as "eggs, 2"

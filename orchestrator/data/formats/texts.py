"""txt files: a row is a line or a document, as the task or `data.lines` says."""

import re
from collections.abc import Iterator
from typing import TextIO

from orchestrator.data.formats.decoding import Damage, lines_of, open_text
from orchestrator.data.formats.format import Format, Rows
from orchestrator.data.reading import BadRow, Reading
from orchestrator.data.source_file import SourceFile
from orchestrator.data.undecoded import undecoded
from orchestrator.errors import UserError

SPACE = re.compile(r"\s")


def check_one_column(file: SourceFile, reading: Reading) -> None:
    """Raises UserError if a task needs more than the single column of a text file."""
    lacking = [column for column in reading.needed if reading.name(column) != reading.text_column]
    if lacking:
        raise UserError(
            f"{file.uri}: is a {file.kind} file, which has no column {lacking[0]!r}: give a csv or "
            f"jsonl file (data.format: csv, where it is one), or set data.columns.{lacking[0]}: "
            f"$folder or $file"
        )


def _check(file: SourceFile, reading: Reading) -> None:
    check_one_column(file, reading)
    with open_text(file, reading):
        pass


def _rows(file: SourceFile, reading: Reading) -> Rows:
    return _lines(file, reading) if reading.lines else _documents(file, reading)


def _lines(file: SourceFile, reading: Reading) -> Rows:
    with open_text(file, reading) as (text, notes):
        yield from ((0, note) for note in notes)
        for number, line in lines_of(text, file, reading):
            reason = undecoded(line, reading.encoding)
            if reason is None:
                yield number, {reading.text_column: line.rstrip("\r\n")}
            else:
                yield number, BadRow(file.uri, number, f"is not {reason}")


def _documents(file: SourceFile, reading: Reading) -> Rows:
    """One document per file; a long file is cut at the first blank line after the limit."""
    limit = reading.max_document_bytes
    document: list[str] = []
    size = 0
    with open_text(file, reading) as (text, notes):
        yield from ((0, note) for note in notes)
        damage = Damage(file, reading, text.encoding)
        for number, piece, may_end in _pieces(text, limit):
            damage.look(number, piece)
            reason = undecoded(piece, reading.encoding)
            if reason is not None:
                yield number, BadRow(file.uri, number, f"is not {reason}")
                continue
            document.append(piece)
            size += len(piece.encode())
            if (size >= limit and may_end) or size >= 4 * limit:
                yield number, {reading.text_column: "".join(document)}
                document, size = [], 0
    if document:
        yield 0, {reading.text_column: "".join(document)}


def _pieces(text: TextIO, limit: int) -> Iterator[tuple[int, str, bool]]:
    """Lines with their numbers, and whether a document may end there: at blank lines.

    A line that is longer than a document may be comes in pieces, cut at spaces.
    """
    number, rest = 1, ""
    while part := text.readline(4 * limit):
        rest += part
        while len(rest) >= limit and _size(rest) >= 4 * limit:
            cut = _cut(rest, limit)
            yield number, rest[:cut], True
            rest = rest[cut:]
        if part.endswith("\n"):
            if rest:
                yield number, rest, not rest.strip()
            number, rest = number + 1, ""
    if rest:
        yield number, rest, True


def _size(text: str) -> int:
    return len(text.encode(errors="surrogatepass"))


def _cut(text: str, limit: int) -> int:
    """The position at which to cut a text: after the first space past `limit` bytes."""
    sample = text[: 4 * limit]
    most = len(sample) * limit // _size(sample)
    space = SPACE.search(text, max(most, 1), 4 * most)
    cut = space.end() if space is not None else 4 * most
    return max(cut, 1)


TXT = Format("txt", ("txt", "text"), _check, _rows)

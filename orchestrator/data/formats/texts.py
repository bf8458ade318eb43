"""Text of files: decoded, line by line, as documents, or side by side.

A byte that is no text becomes a lone surrogate, so that its row alone is set aside.
"""

import codecs
import io
import itertools
import re
import tokenize
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TextIO

import pyarrow as pa

from orchestrator.data.columns import UNDECODED, undecoded
from orchestrator.data.heads import HEAD
from orchestrator.data.reading import BadRow, Note, Reading
from orchestrator.data.sources import SourceFile
from orchestrator.data.streams import damaged
from orchestrator.errors import UserError, first_line

Found = Iterator[tuple[int, Any]]  # each row's number and what stands there, a BadRow or a Note

BOMS = [  # the longer ones first: UTF-32's begins with UTF-16's
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
]
EMPTY = "is empty"
MARK = "orchestrator-mark"
NULS = "\0" * 16  # no text holds so many: a file system that crashed fills its blocks with them
MOST_CONTROLS, FEWEST_BYTES = 0.05, 64  # of what no text has, and that can be judged
TERMINAL = b"\x08\x1b"  # of logs in colour, and of manual pages
SPACE = re.compile(r"\s")


@contextmanager
def reading_errors(file: SourceFile) -> Iterator[None]:
    """Raises UserError where a file cannot be read to its end."""
    try:
        yield
    except (OSError, EOFError, pa.ArrowException) as error:
        raise damaged(file.uri, error) from error


@contextmanager
def open_text(
    file: SourceFile, reading: Reading, newline: str = "\n"
) -> Iterator[tuple[TextIO, list[Note]]]:
    """The decoded content, and what its user should know of how it is decoded."""
    codecs.register_error(MARK, _marked)
    with reading_errors(file), file.open() as stream:
        head = stream.peek(HEAD)[:HEAD]
        name, notes = _encoding(head, file, reading)
        if not head:
            notes = [Note(file.uri, EMPTY)]
        if newline == "\n" and b"\r" in head and b"\n" not in head:
            newline = "\r"  # as on old Macs
        yield io.TextIOWrapper(stream, name, errors=MARK, newline=newline), notes


def lines_of(text: TextIO, file: SourceFile, reading: Reading) -> Iterator[tuple[int, str]]:
    """Numbered lines, from 1, with their ends."""
    damage = _Damage(file, reading, text.encoding)
    for number, line in enumerate(text, start=1):
        damage.look(number, line)
        yield number, line


class _Damage:
    """Looks at lines, in their order, for what only a damaged or cut-off file has."""

    def __init__(self, file: SourceFile, reading: Reading, encoding: str) -> None:
        self._file, self._data = file, reading.data
        self._is_certain = encoding in ("utf-16", "utf-32")  # by its byte-order mark
        self._undecoded = False

    def look(self, number: int, line: str) -> None:
        if NULS in line:
            raise UserError(
                f"{self._file.uri}: line {number} holds NUL bytes: the file is damaged, or no text"
            )
        if line.isascii() or not UNDECODED.search(line):
            return
        # A character that the end of the file cuts, where all before it is sound.
        sound_before = not self._undecoded and not UNDECODED.search(line.rstrip()[:-3])
        if sound_before and UNDECODED.match(line[-1]):
            reason = undecoded(line, self._data)
            other = "" if self._is_certain else f", or is not {reason}"
            raise UserError(
                f"{self._file.uri}: line {number}, the last, ends within a character: the file is "
                f"cut off{other}"
            )
        self._undecoded = True


def _marked(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    found = error.object[error.start : error.end]
    return "".join(chr(0xDC00 + byte) for byte in found), error.end


def _encoding(head: bytes, file: SourceFile, reading: Reading) -> tuple[str, list[Note]]:
    """By the byte-order mark, which is certain, by data.encoding, or UTF-8."""
    for mark, name in BOMS:
        if head.startswith(mark):
            notes = [] if name == "utf-8-sig" else [f"is {name.upper()}, as its first bytes say"]
            return name, [Note(file.uri, text) for text in notes]
    if reading.data.encoding is not None:
        name = codecs.lookup(reading.data.encoding).name
        if name in ("utf-16", "utf-32") and head:
            raise UserError(
                f"{file.uri}: begins with no byte-order mark, so that data.encoding = "
                f"{reading.data.encoding} does not say how its bytes are ordered: set "
                f"data.encoding: {name}-le, or {name}-be"
            )
        return reading.data.encoding, []
    nuls = [head[i::2].count(0) / max(len(head[i::2]), 1) for i in (0, 1)]
    if max(nuls) > 0.3:
        name = "utf-16-be" if nuls[0] > nuls[1] else "utf-16-le"
        if min(nuls) > 0.3:
            raise UserError(
                f"{file.uri}: is full of NUL bytes: it is damaged, no text, or UTF-32 (set "
                f"data.encoding: utf-32-le)"
            )
        raise UserError(
            f"{file.uri}: holds a NUL byte for every character, as UTF-16 does: set "
            f"data.encoding: {name}"
        )
    controls = sum((byte < 9 or 13 < byte < 32) and byte not in TERMINAL for byte in head)
    if controls > MOST_CONTROLS * len(head) and len(head) >= FEWEST_BYTES:
        raise UserError(
            f"{file.uri}: holds bytes that no text has: it is no {file.kind} file, or UTF-16 (set "
            f"data.encoding: utf-16-le)"
        )
    return "utf-8", []


def read_python(file: SourceFile, reading: Reading) -> Found:
    """A source file, decoded as it declares itself to be (PEP 263)."""
    try:
        with tokenize.open(file.uri) as stream:
            yield 1, {reading.text_column: stream.read()}
    except (SyntaxError, UnicodeDecodeError, LookupError) as error:
        yield 0, BadRow(file.uri, 0, f"cannot be decoded: {first_line(error)}")
    except OSError as error:
        raise UserError(f"{file.uri}: cannot be read: {first_line(error)}") from error


def read_lines(file: SourceFile, reading: Reading) -> Found:
    with open_text(file, reading) as (text, notes):
        yield from ((0, note) for note in notes)
        for number, line in lines_of(text, file, reading):
            reason = undecoded(line, reading.data)
            if reason is None:
                yield number, {reading.text_column: line.rstrip("\r\n")}
            else:
                yield number, BadRow(file.uri, number, f"is not {reason}")


def read_documents(file: SourceFile, reading: Reading) -> Found:
    """A document a file; a long one is cut at the first blank line past its limit."""
    limit = reading.data.max_document_bytes
    document: list[str] = []
    size = 0
    with open_text(file, reading) as (text, notes):
        yield from ((0, note) for note in notes)
        damage = _Damage(file, reading, text.encoding)
        for number, piece, may_end in _pieces(text, limit):
            damage.look(number, piece)
            reason = undecoded(piece, reading.data)
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
    """Numbered lines, and whether a document may end there: those that are blank.

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
    """Where a text is to be cut: behind the first space past so many bytes."""
    sample = text[: 4 * limit]
    most = len(sample) * limit // _size(sample)
    space = SPACE.search(text, max(most, 1), 4 * most)
    cut = space.end() if space is not None else 4 * most
    return max(cut, 1)


def read_parallel(file: SourceFile, reading: Reading) -> Found:
    """Text files side by side, a row from the same line of each."""
    files = (file, *file.beside)
    with ExitStack() as stack:
        opened = [stack.enter_context(open_text(each, reading)) for each in files]
        yield from ((0, note) for _, notes in opened for note in notes)
        streams = [
            lines_of(text, each, reading) for each, (text, _) in zip(files, opened, strict=True)
        ]
        for number, found in enumerate(itertools.zip_longest(*streams), start=1):
            if None in found:
                rest = [found, *itertools.zip_longest(*streams)]
                yield 0, Note(*_blank_tail(files, rest, number - 1))
                return
            lines = [line for _, line in found]
            reasons = [undecoded(line, reading.data) for line in lines]
            row = {
                each.column: line.rstrip("\r\n") for each, line in zip(files, lines, strict=True)
            }
            bad = next((i for i, reason in enumerate(reasons) if reason is not None), None)
            if bad is None:
                yield number, row
            else:
                yield number, BadRow(files[bad].uri, number, f"is not {reasons[bad]}")


def _blank_tail(files: tuple[SourceFile, ...], rest: list[Any], equal: int) -> tuple[str, str]:
    """Which file has blank lines behind the last line of another, and what to tell of them.

    Raises:
        UserError: where these lines are not all blank.
    """
    if any(each is not None and each[1].strip() for row in rest for each in row):
        raise _unequal(files, equal, rest)
    longest = max(range(len(files)), key=lambda i: sum(row[i] is not None for row in rest))
    is_one = len(rest) == 1
    told = f"{len(rest):,} blank line{'' if is_one else 's'} at its end {'is' if is_one else 'are'}"
    return files[longest].uri, f"{told} skipped: another file that belongs to it has fewer"


def _unequal(files: tuple[SourceFile, ...], equal: int, rest: list[Any]) -> UserError:
    counts = [equal + sum(row[i] is not None for row in rest) for i in range(len(files))]
    told = ", ".join(f"{f.uri} has {n:,} lines" for f, n in zip(files, counts, strict=True))
    return UserError(
        f"{told}: files that belong together line by line have as many, so one is cut off, or "
        f"lines are missing within it"
    )

"""Decodes files to text and lines.

A byte that is no text becomes a lone surrogate, so that its row alone is set aside.
"""

import codecs
import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

import pyarrow as pa

from orchestrator.data.heads import ANY, HEAD, Head
from orchestrator.data.reading import Note, Reading
from orchestrator.data.source_file import SourceFile
from orchestrator.data.streams import damaged
from orchestrator.data.undecoded import UNDECODED, undecoded
from orchestrator.errors import UserError

BOMS = [  # longer ones first: UTF-32's begins with UTF-16's
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
]
EMPTY = "is empty"
MARK = "orchestrator-mark"
NULS = "\0" * 16  # no text has so many: a crashed file system fills blocks with them
MOST_CONTROLS, FEWEST_BYTES = 0.05, 64  # of what no text has, and that can be judged
TERMINAL = b"\x08\x1b"  # in coloured logs and manual pages


@contextmanager
def reading_errors(file: SourceFile) -> Iterator[None]:
    """Raises UserError if a file cannot be read to its end."""
    try:
        yield
    except (OSError, EOFError, pa.ArrowException) as error:
        raise damaged(file.uri, error) from error


@contextmanager
def open_text(
    file: SourceFile, reading: Reading, head: Head = ANY, newline: str = "\n"
) -> Iterator[tuple[TextIO, list[Note]]]:
    """The decoded content, and notes for the user on the decoding."""
    codecs.register_error(MARK, _marked)
    with reading_errors(file), file.open(head) as stream:
        start = stream.peek(HEAD)[:HEAD]
        name, notes = _encoding(start, file, reading)
        if not start:
            notes = [Note(file.uri, EMPTY)]
        if newline == "\n" and b"\r" in start and b"\n" not in start:
            newline = "\r"  # as on old Macs
        yield io.TextIOWrapper(stream, name, errors=MARK, newline=newline), notes


def lines_of(text: TextIO, file: SourceFile, reading: Reading) -> Iterator[tuple[int, str]]:
    """Lines with their numbers, from 1, and their line ends."""
    damage = Damage(file, reading, text.encoding)
    for number, line in enumerate(text, start=1):
        damage.look(number, line)
        yield number, line


class Damage:
    """Checks lines, in order, for signs of a damaged or cut-off file."""

    def __init__(self, file: SourceFile, reading: Reading, encoding: str) -> None:
        self._file, self._encoding = file, reading.encoding
        self._is_certain = encoding in ("utf-16", "utf-32")  # known from the byte-order mark
        self._undecoded = False

    def look(self, number: int, line: str) -> None:
        if NULS in line:
            raise UserError(
                f"{self._file.uri}: line {number} holds NUL bytes: the file is damaged, or no text"
            )
        if line.isascii() or not UNDECODED.search(line):
            return
        # The end of the file cuts a character, and everything before is valid.
        sound_before = not self._undecoded and not UNDECODED.search(line.rstrip()[:-3])
        if sound_before and UNDECODED.match(line[-1]):
            reason = undecoded(line, self._encoding)
            other = "" if self._is_certain else f", or is not {reason}"
            raise UserError(
                f"{self._file.uri}: line {number}, the last, ends within a character: the file is "
                f"cut off{other}"
            )
        self._undecoded = True


def _marked(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    undecodable = error.object[error.start : error.end]
    return "".join(chr(0xDC00 + byte) for byte in undecodable), error.end


def _encoding(head: bytes, file: SourceFile, reading: Reading) -> tuple[str, list[Note]]:
    """The encoding: of the byte-order mark, of data.encoding, or UTF-8."""
    for mark, name in BOMS:
        if head.startswith(mark):
            notes = [] if name == "utf-8-sig" else [f"is {name.upper()}, as its first bytes say"]
            return name, [Note(file.uri, text) for text in notes]
    if reading.encoding is not None:
        name = codecs.lookup(reading.encoding).name
        if name in ("utf-16", "utf-32") and head:
            raise UserError(
                f"{file.uri}: begins with no byte-order mark, so that data.encoding = "
                f"{reading.encoding} does not say how its bytes are ordered: set "
                f"data.encoding: {name}-le, or {name}-be"
            )
        return reading.encoding, []
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

"""Parallel text files: each file is a column, and equal line numbers are a row. This is no format:
the job names each file with its column."""

import itertools
from contextlib import ExitStack
from typing import Any

from orchestrator.data.columns import check_names
from orchestrator.data.formats.decoding import lines_of, open_text
from orchestrator.data.formats.format import Rows
from orchestrator.data.reading import BadRow, Note, Reading
from orchestrator.data.source_file import SourceFile
from orchestrator.data.undecoded import undecoded
from orchestrator.errors import UserError


def check_parallel(file: SourceFile, reading: Reading) -> None:
    """Raises UserError if a column has no file, or a file is no text."""
    files = (file, *file.beside)
    check_names([dict.fromkeys(each.column for each in files)], file.uri, reading, "")
    for each in files:
        with open_text(each, reading):
            pass


def read_parallel(file: SourceFile, reading: Reading) -> Rows:
    """Rows from the same line of each file."""
    files = (file, *file.beside)
    with ExitStack() as stack:
        opened = [stack.enter_context(open_text(each, reading)) for each in files]
        yield from ((0, note) for _, notes in opened for note in notes)
        streams = [
            lines_of(text, each, reading) for each, (text, _) in zip(files, opened, strict=True)
        ]
        for number, numbered in enumerate(itertools.zip_longest(*streams), start=1):
            if None in numbered:
                rest = [numbered, *itertools.zip_longest(*streams)]
                yield 0, _blank_tail(files, rest, number - 1)
                return
            lines = [line for _, line in numbered]
            reasons = [undecoded(line, reading.encoding) for line in lines]
            row = {
                each.column: line.rstrip("\r\n") for each, line in zip(files, lines, strict=True)
            }
            bad = next((i for i, reason in enumerate(reasons) if reason is not None), None)
            if bad is None:
                yield number, row
            else:
                yield number, BadRow(files[bad].uri, number, f"is not {reasons[bad]}")


def _blank_tail(files: tuple[SourceFile, ...], rest: list[Any], equal: int) -> Note:
    """The note on a file with blank lines after the last line of another file.

    Raises:
        UserError: where these lines are not all blank.
    """
    if any(each is not None and each[1].strip() for row in rest for each in row):
        raise _unequal(files, equal, rest)
    longest = max(range(len(files)), key=lambda i: sum(row[i] is not None for row in rest))
    ending, verb = ("", "is") if len(rest) == 1 else ("s", "are")
    lines = f"{len(rest):,} blank line{ending} at its end {verb}"
    return Note(files[longest].uri, f"{lines} skipped: another file that belongs to it has fewer")


def _unequal(files: tuple[SourceFile, ...], equal: int, rest: list[Any]) -> UserError:
    counts = [equal + sum(row[i] is not None for row in rest) for i in range(len(files))]
    lengths = ", ".join(f"{f.uri} has {n:,} lines" for f, n in zip(files, counts, strict=True))
    return UserError(
        f"{lengths}: files that belong together line by line have as many, so one is cut off, or "
        f"lines are missing within it"
    )

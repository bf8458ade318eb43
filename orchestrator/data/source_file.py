"""A source file: its place, its format, and how it is opened."""

import io
from dataclasses import dataclass
from typing import Any

from orchestrator.data.heads import ANY, Head
from orchestrator.data.streams import open_stream, open_whole
from orchestrator.storage.artifact import Split


@dataclass(frozen=True)
class SourceFile:
    """One input file. `uri` opens it; the size and time tell whether it has changed.

    The name of the folder of the prepared data is a hash of these fields with their names and
    order: a field that is renamed makes every run prepare its data again.
    """

    uri: str
    kind: str  # the name of its format, a key of `formats.registry.FORMATS`
    bytes: int
    modified: str
    split: Split | None = None  # the split of all its rows; None: by their keys
    column: str = ""  # of parallel text files: the column of its lines
    beside: tuple["SourceFile", ...] = ()  # further columns, line by line
    by_name: bool = False  # whether `split` comes from the file's name, not from the job

    def open(self, head: Head = ANY) -> "io.BufferedReader[Any]":
        """A stream of the content, decompressed according to the name.

        Raises:
            UserError: where it cannot be read, or begins as no file of its format does.
        """
        return open_stream(self.uri, self.kind, head, self.bytes)

    def open_whole(self, head: Head = ANY) -> "io.BufferedReader[Any]":
        """The file for random access; a compressed file is read whole. Raises: see `open`."""
        return open_whole(self.uri, self.kind, head, self.bytes)

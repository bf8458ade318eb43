"""What is read of a file's rows, and what comes out beside rows: bad ones, and notes."""

from dataclasses import dataclass
from typing import Any, Literal

from orchestrator.data.config import DataConfig

# One raw sample: a value for each of the task's columns. A request to the endpoint has None in
# place of what it does not bring: the label, say.
Row = dict[str, Any]
# What a column holds: text only; a number or truth value too; the answers to a question, one text
# or several; the places where they start, one whole number or several.
Kind = Literal["text", "value", "answers", "starts"]

PLACES = ("$file", "$folder")  # columns that every file has: its name and its folder's


@dataclass(frozen=True)
class BadRow:
    """A row that was set aside. Rows count from 1; row 0 is the whole file."""

    file: str
    row: int
    reason: str
    is_fault: bool = True  # else the row is sound, and says nothing: `LeftOut`

    def __str__(self) -> str:
        return f"{self.file}{f', row {self.row}' if self.row else ''}: {self.reason}"


@dataclass(frozen=True)
class Note:
    """Something about a file that its user is told, once: that its columns are parted by `;`."""

    file: str
    text: str


@dataclass(frozen=True)
class Reading:
    """What is read of each row, and how."""

    data: DataConfig
    columns: dict[str, Kind]  # the task's, and what they hold
    lines: bool = False  # a row of a txt file is a line, not a document
    optional: tuple[str, ...] = ()  # of the columns

    def name(self, column: str) -> str:
        """What the files call a column of the task's."""
        return str(self.data.columns.get(column, column))

    @property
    def text_column(self) -> str:
        """What the one column of a text file is called."""
        return next(name for column in self.columns if (name := self.name(column)) not in PLACES)

    @property
    def needed(self) -> list[str]:
        """The task's columns without which a file cannot be read."""
        return [
            column
            for column in self.columns
            if (column not in self.optional or column in self.data.columns)
            and self.name(column) not in PLACES
        ]

"""What is read of a file's rows, and what comes out beside rows: bad ones, and notes."""

from dataclasses import dataclass, field
from typing import Any

from orchestrator.data.kinds.registry import check_kinds

# One raw sample: a value for each of the task's columns. A request to the endpoint has None in
# place of what it does not bring: the label, say.
Row = dict[str, Any]
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
    """What is read of each row, and how: the task's columns, and what the job says of its files."""

    columns: dict[str, str]  # the task's, and their kinds, keys of `kinds.registry.KINDS`
    optional: tuple[str, ...] = ()  # of the columns
    names: dict[str, str | int] = field(default_factory=dict)  # in the files, where they differ
    lines: bool = False  # a row of a txt file is a line, not a document
    header: bool = True  # csv and tsv files begin with names
    encoding: str | None = None  # of text; None: UTF-8, or as a byte-order mark says
    quoted: bool | None = None  # fields may stand in quotes; None: as the file looks
    max_document_bytes: int = 16_384  # longer txt files are cut into documents

    def __post_init__(self) -> None:
        check_kinds(self.columns)

    def name(self, column: str) -> str:
        """What the files call a column of the task's."""
        return str(self.names.get(column, column))

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
            if (column not in self.optional or column in self.names)
            and self.name(column) not in PLACES
        ]

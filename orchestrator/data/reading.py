"""How files are read, and what reading yields besides rows: bad rows and notes."""

from dataclasses import dataclass, field
from typing import Any

from orchestrator.data.kinds.registry import check_kinds

# One raw sample: a value for each of the task's columns. In a request to the endpoint, columns that
# are no input, such as the label, are None.
Row = dict[str, Any]
PLACES = ("$file", "$folder")  # columns of every file: its name, and its folder's


@dataclass(frozen=True)
class BadRow:
    """A row that was set aside. Rows count from 1; row 0 is the whole file."""

    file: str
    row: int
    reason: str
    is_fault: bool = True  # False: the row is valid but has nothing to learn (`LeftOut`)

    def __str__(self) -> str:
        return f"{self.file}{f', row {self.row}' if self.row else ''}: {self.reason}"


@dataclass(frozen=True)
class Note:
    """A remark about a file for the user, such as: its columns are separated by `;`."""

    file: str
    text: str


@dataclass(frozen=True)
class Reading:
    """How rows are read: the task's columns, and the job's settings for its files."""

    columns: dict[str, str]  # the task's columns with their kinds, keys of `KINDS`
    optional: tuple[str, ...] = ()  # columns that a row may lack
    names: dict[str, str | int] = field(default_factory=dict)  # the files' own names of columns
    lines: bool = False  # a row of a txt file is a line, not a document
    header: bool = True  # csv and tsv files begin with names
    encoding: str | None = None  # of text; None: UTF-8, or as a byte-order mark says
    quoted: bool | None = None  # fields may stand in quotes; None: as the file looks
    max_document_bytes: int = 16_384  # longer txt files are cut into documents

    def __post_init__(self) -> None:
        check_kinds(self.columns)

    def name(self, column: str) -> str:
        """The files' name of a task's column."""
        return str(self.names.get(column, column))

    @property
    def text_column(self) -> str:
        """The name of the single column of a text file."""
        return next(name for column in self.columns if (name := self.name(column)) not in PLACES)

    @property
    def needed(self) -> list[str]:
        """The columns that a file must have."""
        return [
            column
            for column in self.columns
            if (column not in self.optional or column in self.names)
            and self.name(column) not in PLACES
        ]

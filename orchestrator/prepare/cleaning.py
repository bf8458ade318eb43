"""Reads the rows of a file and cleans them with the task."""

from collections.abc import Iterator
from typing import Any

from orchestrator.data.reading import BadRow, Note, Row
from orchestrator.data.rows import numbered_rows
from orchestrator.data.source_file import SourceFile
from orchestrator.tasks.task import LeftOut, Task, reading_of


def read_cleaned(file: SourceFile, task: Task[Any]) -> Iterator[Row | BadRow | Note | None]:
    """The cleaned rows of a file, in order; None for empty rows.

    Raises:
        UserError: where the file cannot be read to its end.
    """
    for number, row in numbered_rows(file, reading_of(task)):
        try:
            yield row if isinstance(row, BadRow | Note) else task.clean(row)
        except ValueError as error:
            yield BadRow(file.uri, number, str(error), not isinstance(error, LeftOut))

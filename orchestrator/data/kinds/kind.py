"""What a kind of column is: where a file has it, what a task gets of it, what it cannot be."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

NAMES = {list: "a list", dict: "an object", type(None): "null"}


@dataclass(frozen=True)
class Kind:
    """One kind of column. Its module is beside this one, and a line in `registry.py` makes it
    known.

    `read` makes of a file's value what a task gets, and raises ValueError, with a reason that goes
    on behind the column's name, where the value is of another kind. It gets None for null and for
    a column that a row does not have, and the job's `data.encoding`. `suits` says whether a parquet
    column can hold the kind, by its type, a struct being an object of types (`arrow_types.py`).
    """

    name: str  # as tasks have it in `columns`
    noun: str  # as messages name it: "a value"
    read: Callable[[Any, str | None], Any]
    suits: Callable[[Any], bool]
    mend: str  # what to do about a parquet column of another type
    is_required: bool = False  # null makes a bad row, except in an optional column
    is_short: bool = False  # no value goes over several lines of a csv file
    is_plural: bool = False  # found as `answers`, too, where the column is called `answer`
    inside: str | None = None  # found in the objects of a column of this other kind, too
    blank: str | bytes = ""  # in the cleaned column of a row that is set aside


def type_name(value: Any) -> str:
    """What a value is, as a message names it."""
    return NAMES.get(type(value), type(value).__name__)

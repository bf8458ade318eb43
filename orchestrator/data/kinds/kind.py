"""The interface of a kind of column: where files have it, and how its values are read."""

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

    name: str  # in `Task.columns`
    noun: str  # in messages: "a value"
    read: Callable[[Any, str | None], Any]
    suits: Callable[[Any], bool]
    mend: str  # what to do about a parquet column of another type
    is_required: bool = False  # null makes a bad row, unless the column is optional
    is_short: bool = False  # no value has several lines in a csv file
    is_plural: bool = False  # also found as `answers` if the column is `answer`
    inside: str | None = None  # also found inside the objects of a column of this kind
    blank: str | bytes = ""  # the value in rows that are set aside


def type_name(value: Any) -> str:
    """The type of a value for messages."""
    return NAMES.get(type(value), type(value).__name__)

"""A task's columns: finding them in the rows of files, and reading their values."""

from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from orchestrator.data.kinds.kind import type_name
from orchestrator.data.kinds.registry import KINDS
from orchestrator.data.reading import PLACES, BadRow, Reading, Row
from orchestrator.errors import UserError, first_line, printable

MISSING: Any = object()  # marks a column that a row does not have
NO_VALUE = "is missing"
MOST_NAMES, LONGEST_NAME = 20, 60  # the most names in a message, and characters of each


class Place(NamedTuple):
    """The place of a value in a row: the row's column that holds it, and the value."""

    outer: str
    value: Any


NOWHERE = Place("", MISSING)


def value_of(row: Mapping[str, Any], column: str, reading: Reading) -> Any:
    """A row's value for a column of the task, or MISSING."""
    return find(row, column, reading).value


def find(row: Mapping[str, Any], column: str, reading: Reading) -> Place:
    """The place of a task's column in a row: under its name or, if the job does not map it, where
    its kind looks. NOWHERE if the row does not have it."""
    name = reading.name(column)
    place = _at(row, name)
    if place.value is not MISSING or column in reading.names:
        return place
    kind = KINDS[reading.columns[column]]
    if kind.is_plural:
        return _at(row, f"{name}s")
    if kind.inside is not None:
        return _inside(row, name, kind.inside, reading)
    return NOWHERE


def _inside(row: Mapping[str, Any], name: str, kind: str, reading: Reading) -> Place:
    """A value inside the objects of another column of the task."""
    column = next((column for column, other in reading.columns.items() if other == kind), None)
    outer, objects = NOWHERE if column is None else find(row, column, reading)
    if isinstance(objects, dict):
        return Place(outer, objects.get(name, MISSING))
    if isinstance(objects, list) and objects and all(isinstance(each, dict) for each in objects):
        return Place(outer, [each.get(name) for each in objects])
    return NOWHERE


def _at(row: Any, name: str) -> Place:
    """A value by its name; a dotted name, such as `translation.en`, looks into nested objects."""
    if isinstance(row, Mapping) and name in row:
        return Place(name, row[name])
    outer, dot, inner = name.partition(".")
    while dot and isinstance(row, Mapping):
        if outer in row:
            nested = row[outer]
            if isinstance(nested, list) and any(isinstance(each, dict) for each in nested):
                values = [_at(each, inner).value for each in nested]
                return Place(outer, MISSING if MISSING in values else values)
            return Place(outer, _at(nested, inner).value)
        more, dot, inner = inner.partition(".")
        outer = f"{outer}.{more}"
    return NOWHERE


def check_names(rows: Sequence[Mapping[str, Any]], uri: str, reading: Reading, hint: str) -> None:
    """Raises UserError if a required column is in none of a file's first rows."""
    for column in reading.needed:
        if all(value_of(row, column, reading) is MISSING for row in rows):
            names = list(dict.fromkeys(name for row in rows for name in _names(row)))
            shown = ", ".join(printable(name[:LONGEST_NAME]) for name in names[:MOST_NAMES])
            if len(names) > MOST_NAMES:
                shown += f" and {len(names) - MOST_NAMES:,} more"
            raise UserError(
                f"{uri}: has no column {reading.name(column)!r}; its columns are "
                f"{shown or 'none'}: set data.columns.{column}{hint}"
            )


def _names(row: Mapping[str, Any]) -> list[str]:
    """The names of a row's columns; nested ones are dotted."""
    names: list[str] = []
    for name, value in row.items():
        nested = isinstance(value, Mapping) and value and all(isinstance(k, str) for k in value)
        names += [f"{name}.{inner}" for inner in value] if nested else [str(name)]
    return names


def take(row: object, reading: Reading, uri: str, number: int) -> Row | BadRow:
    """A row with the task's columns only, read by their kinds."""
    if not isinstance(row, dict):
        return BadRow(uri, number, f"is {type_name(row)}, not an object with columns")
    taken: Row = {}
    for column, kind in reading.columns.items():
        name = reading.name(column)
        value = _of_path(uri, name) if name in PLACES else value_of(row, column, reading)
        try:
            taken[column] = of_kind(kind, value, reading.encoding, column in reading.optional)
        except ValueError as error:
            missing = str(error) == NO_VALUE
            reason = f"has no {name!r}" if missing else f"{name!r} {first_line(error)}"
            return BadRow(uri, number, reason)
    return taken


def of_kind(kind: str, value: Any, encoding: str | None = None, optional: bool = False) -> Any:
    """A value, read by its kind.

    Raises:
        ValueError: where the value is of another kind, or missing.
    """
    if value is MISSING:
        value = None
    if value is not None and hasattr(value, "item") and not isinstance(value, str | bytes):
        value = value.item()  # a numpy scalar
    if value is None and KINDS[kind].is_required and not optional:
        raise ValueError(NO_VALUE)
    return KINDS[kind].read(value, encoding)


def _of_path(uri: str, name: str) -> str:
    path = PurePosixPath(uri)
    return path.name if name == "$file" else path.parent.name

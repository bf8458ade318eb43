"""Columns of a row: where a file has them, and what may stand in each kind."""

import math
import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from pathlib import PurePosixPath
from typing import Any

from orchestrator.data.reading import PLACES, BadRow, Kind, Reading, Row
from orchestrator.errors import UserError, first_line, printable

MISSING: Any = object()  # in place of a column that a row does not have
NAMES = {list: "a list", dict: "an object", type(None): "null"}
MOST_NAMES, LONGEST_NAME = 20, 60  # that a message shows, and characters of one
SQUAD_AS_TEXT = re.compile(r"""\{\s*['"](?:text|answer_start)['"]\s*:""")  # by a csv export
UNDECODED = re.compile("[\udc00-\udcff]")  # a byte that is no text: see `texts`


def value_of(row: Mapping[str, Any], column: str, reading: Reading) -> Any:
    """What a row of a file has in a column of the task's, or MISSING.

    `answers` stands for `answer`, and holds where the answers start, in Hugging Face's SQuAD.
    """
    name = reading.name(column)
    found = at(row, name)
    if found is not MISSING or column in reading.names:
        return found
    kind = reading.columns[column]
    if kind == "answers":
        return at(row, f"{name}s")
    if kind == "starts":
        answers = next((c for c, other in reading.columns.items() if other == "answers"), None)
        inside = MISSING if answers is None else value_of(row, answers, reading)
        if isinstance(inside, dict):
            return inside.get(name, MISSING)
        if isinstance(inside, list) and inside and all(isinstance(each, dict) for each in inside):
            return [each.get(name) for each in inside]
    return MISSING


def at(row: Any, name: str) -> Any:
    """A value by its name, or by a dotted one: `translation.en` of nested objects."""
    if isinstance(row, Mapping) and name in row:
        return row[name]
    outer, dot, inner = name.partition(".")
    while dot and isinstance(row, Mapping):
        if outer in row:
            nested = row[outer]
            if isinstance(nested, list) and any(isinstance(each, dict) for each in nested):
                found = [at(each, inner) for each in nested]
                return MISSING if MISSING in found else found
            return at(nested, inner)
        more, dot, inner = inner.partition(".")
        outer = f"{outer}.{more}"
    return MISSING


def check_names(rows: Sequence[Mapping[str, Any]], uri: str, reading: Reading, hint: str) -> None:
    """Raises UserError where none of a file's first rows has a column that is needed."""
    for column in reading.needed:
        if all(value_of(row, column, reading) is MISSING for row in rows):
            names = list(dict.fromkeys(name for row in rows for name in _shown(row)))
            there = ", ".join(printable(name[:LONGEST_NAME]) for name in names[:MOST_NAMES])
            if len(names) > MOST_NAMES:
                there += f" and {len(names) - MOST_NAMES:,} more"
            raise UserError(
                f"{uri}: has no column {reading.name(column)!r}; its columns are "
                f"{there or 'none'}: set data.columns.{column}{hint}"
            )


def _shown(row: Mapping[str, Any]) -> list[str]:
    """The names that a row has, nested ones with a dot."""
    names: list[str] = []
    for name, value in row.items():
        nested = isinstance(value, Mapping) and value and all(isinstance(k, str) for k in value)
        names += [f"{name}.{inner}" for inner in value] if nested else [str(name)]
    return names


def take(row: object, reading: Reading, uri: str, number: int) -> Row | BadRow:
    """A row with just the task's columns, as their kinds say."""
    if not isinstance(row, dict):
        what = NAMES.get(type(row), type(row).__name__)
        return BadRow(uri, number, f"is {what}, not an object with columns")
    found: Row = {}
    for column, kind in reading.columns.items():
        name = reading.name(column)
        value = _place(uri, name) if name in PLACES else value_of(row, column, reading)
        if value is MISSING and column in reading.optional:
            value = None if kind != "text" else ""
        try:
            found[column] = of_kind(kind, value, reading.encoding, column in reading.optional)
        except ValueError as error:
            said = f"has no {name!r}" if str(error) == NO_VALUE else f"{name!r} {first_line(error)}"
            return BadRow(uri, number, said)
    return found


NO_VALUE = "is missing"


def of_kind(kind: Kind, value: Any, encoding: str | None, optional: bool = False) -> Any:
    """A value as text, or a list for answers and their starts.

    Raises:
        ValueError: where it is of another kind.
    """
    if value is MISSING:
        value = None
    if value is not None and hasattr(value, "item") and not isinstance(value, str | bytes):
        value = value.item()  # a numpy scalar
    if kind == "answers":
        return [_valid(text, encoding) for text in _answers(value)]
    if kind == "starts":
        return _starts(value)
    if kind == "value":
        return _valid(_value(value), encoding)
    if value is None and not optional:
        raise ValueError(NO_VALUE)
    return _valid("" if value is None else _text(value, encoding), encoding)


def _text(value: Any, encoding: str | None) -> str:
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        return "\n".join(value)  # paragraphs, the lines of a poem
    if isinstance(value, bytes):
        try:
            return value.decode(encoding or "utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"is not UTF-8: {error.reason} at byte {error.start}") from None
    if not isinstance(value, str):
        raise ValueError(f"is {NAMES.get(type(value), type(value).__name__)}, not text")
    return value


def _value(value: Any) -> str:
    """Blank where there is none: null, or pandas' NaN."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"  # as JSON has it
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, Decimal):
        return format(value, "f") if value.is_finite() else ""
    if isinstance(value, bytes):
        return value.decode()
    if not isinstance(value, str):
        raise ValueError(f"is {NAMES.get(type(value), type(value).__name__)}, not a value")
    return value


def _answers(value: Any) -> list[str]:
    """Of one text, a list of texts, or the layouts of SQuAD: none for an unanswerable question."""
    if isinstance(value, dict):
        if "text" not in value:
            raise ValueError("is an object without 'text', not an answer")
        value = value["text"]
    if value is None or value == "":
        return []
    if isinstance(value, str) and SQUAD_AS_TEXT.match(value):
        raise ValueError("is an object written as text: write the rows as jsonl or parquet")
    found = []
    for each in value if isinstance(value, list) else [value]:
        if isinstance(each, dict):
            each = each.get("text")
        found.append(_value(each))
    return found


def _starts(value: Any) -> list[int]:
    if isinstance(value, dict):
        if "answer_start" not in value:
            raise ValueError("is an object without 'answer_start'")
        value = value["answer_start"]
    found = []
    for each in value if isinstance(value, list) else [value]:
        if isinstance(each, dict):
            each = each.get("answer_start")
        found += [_start(part) for part in (each.split() if isinstance(each, str) else [each])]
    return [start for start in found if start is not None]


def _start(value: Any) -> int | None:
    try:
        return None if value is None else max(int(float(value)), 0)
    except (ValueError, TypeError, OverflowError):
        raise ValueError(f"is {value!r}, not where an answer starts") from None


def _valid(text: str, encoding: str | None) -> str:
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            encoding = undecoded(text, encoding) or "UTF-8"
            raise ValueError(f"is not valid {encoding}") from None
    return text


def undecoded(text: str, encoding: str | None) -> str | None:
    """What a text is not, where bytes of it could not be decoded: `UTF-8: byte 0xe9`."""
    found = None if text.isascii() else UNDECODED.search(text)
    if found is None:
        return None
    byte = ord(found[0]) - 0xDC00
    mend = "set data.encoding, such as latin-1" if encoding is None else "see data.encoding"
    return f"{encoding or 'UTF-8'}: byte 0x{byte:02x}; {mend}"


def _place(uri: str, name: str) -> str:
    path = PurePosixPath(uri)
    return path.name if name == "$file" else path.parent.name

"""`answers`: the accepted answers to a question. `starts`: where they begin in its context.

Both come alone, in a list, or in the objects of SQuAD: `{text, answer_start}`, or a list of those.
"""

import re
from typing import Any

from orchestrator.data.arrow_types import is_list, is_value
from orchestrator.data.kinds.kind import Kind
from orchestrator.data.kinds.values import read_value

SQUAD_AS_TEXT = re.compile(r"""\{\s*['"](?:text|answer_start)['"]\s*:""")  # written by csv exports
TEXTS, STARTS_IN = "text", "answer_start"  # keys of SQuAD's objects


def _read_answers(value: Any, encoding: str | None) -> list[str]:
    """The answers as texts; an empty list for an unanswerable question."""
    try:
        value = _unwrapped(value, TEXTS)
    except KeyError:
        raise ValueError(f"is an object without {TEXTS!r}, not an answer") from None
    if value is None or value == "":
        return []
    if isinstance(value, str) and SQUAD_AS_TEXT.match(value):
        raise ValueError("is an object written as text: write the rows as jsonl or parquet")
    return [read_value(each, encoding) for each in (value if isinstance(value, list) else [value])]


def _read_starts(value: Any, encoding: str | None) -> list[int]:
    """Positions in characters; an empty list if a row has none."""
    try:
        value = _unwrapped(value, STARTS_IN)
    except KeyError:
        raise ValueError(f"is an object without {STARTS_IN!r}") from None
    numbers: list[Any] = []
    for each in value if isinstance(value, list) else [value]:
        numbers += each.split() if isinstance(each, str) else [each]
    return [_start(number) for number in numbers if number is not None]


def _start(value: Any) -> int:
    try:
        return max(int(float(value)), 0)
    except (ValueError, TypeError, OverflowError):
        raise ValueError(f"is {value!r}, not where an answer starts") from None


def _suit_answers(type_: Any) -> bool:
    return _hold_values(type_, TEXTS)


def _suit_starts(type_: Any) -> bool:
    return _hold_values(type_, STARTS_IN)


def _hold_values(type_: Any, name: str) -> bool:
    try:
        inside = _unwrapped(type_, name)
    except KeyError:
        return False
    if isinstance(inside, list):  # a list of objects: one represents all of them
        inside = inside[0]
    return is_value(inside.value_type if is_list(inside) else inside)


def _unwrapped(content: Any, name: str) -> Any:
    """The value under a name, of an object or of each object of a list; other values unchanged.

    Raises:
        KeyError: where one object alone has no such name.
    """
    if isinstance(content, dict):
        content = content[name]
    if isinstance(content, list):
        return [each.get(name) if isinstance(each, dict) else each for each in content]
    return content


ANSWERS = Kind(
    name="answers",
    noun="answers",
    read=_read_answers,
    suits=_suit_answers,
    mend="write it as text or a list of texts",
    is_plural=True,
)
STARTS = Kind(
    name="starts",
    noun="starts",
    read=_read_starts,
    suits=_suit_starts,
    mend="write it as whole numbers or lists of them",
    is_short=True,
    inside=ANSWERS.name,
)

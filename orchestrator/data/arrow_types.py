"""Types of parquet columns, and which kinds of values they can hold.

A struct stands as an object of types, and a list of structs as a list of one such object: so a row
of types is looked up like a row of values.
"""

from collections.abc import Callable
from typing import Any

import pyarrow as pa


def nested(type_: pa.DataType) -> Any:
    """A type; a struct as an object of types, a list of structs as a list with one such object."""
    if pa.types.is_struct(type_):
        return {field.name: nested(field.type) for field in type_}
    if is_list(type_) and pa.types.is_struct(type_.value_type):
        return [nested(type_.value_type)]
    return type_


def in_words(type_: Any) -> str:
    """The name of a type, nested or not, in messages."""
    if isinstance(type_, dict):
        return f"struct<{', '.join(type_)}>"
    if isinstance(type_, list):
        return f"list<{in_words(type_[0])}>"
    return str(type_)


def is_list(type_: Any) -> bool:
    types = pa.types
    checks = (types.is_list, types.is_large_list, types.is_fixed_size_list)
    return isinstance(type_, pa.DataType) and any(check(type_) for check in checks)


def is_text(type_: Any) -> bool:
    """Whether the values are texts, encoded texts, or all null."""
    types = pa.types
    strings = (types.is_string, types.is_large_string, types.is_string_view, types.is_null)
    return _is_one_of(type_, *strings, is_binary)


def is_binary(type_: Any) -> bool:
    return pa.types.is_binary(type_) or pa.types.is_large_binary(type_)


def is_value(type_: Any) -> bool:
    """Whether the values are texts, numbers or truth values."""
    types = pa.types
    numbers = (types.is_integer, types.is_floating, types.is_boolean, types.is_decimal)
    return is_text(type_) or _is_one_of(type_, *numbers)


def _is_one_of(type_: Any, *checks: Callable[[pa.DataType], bool]) -> bool:
    """Whether a type, or the value type of a dictionary, passes a check. Extension types never
    do."""
    if not isinstance(type_, pa.DataType) or isinstance(type_, pa.BaseExtensionType):
        return False
    if pa.types.is_dictionary(type_):
        return _is_one_of(type_.value_type, *checks)
    return any(check(type_) for check in checks)

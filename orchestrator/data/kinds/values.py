"""`value`: a text, a number or a truth value, as text; blank if a row has none."""

import math
from decimal import Decimal
from typing import Any

from orchestrator.data.arrow_types import is_value
from orchestrator.data.kinds.kind import Kind, type_name
from orchestrator.data.undecoded import valid


def read_value(value: Any, encoding: str | None) -> str:
    """A value as text. Null and NaN (pandas' null) are blank.

    Raises:
        ValueError: where it is a list, say.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"  # as in JSON
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, Decimal):
        return format(value, "f") if value.is_finite() else ""
    if isinstance(value, bytes):
        value = value.decode()
    if not isinstance(value, str):
        raise ValueError(f"is {type_name(value)}, not a value")
    return valid(value, encoding)


VALUE = Kind(
    name="value",
    noun="a value",
    read=read_value,
    suits=is_value,
    mend="write it as text or numbers, or name another column with data.columns",
    is_short=True,
)

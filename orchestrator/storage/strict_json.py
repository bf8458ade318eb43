"""Strict JSON, for all readers: without NaN and Infinity, which Python writes and reads."""

import json
import math
from typing import Any


def dumps(value: Any, indent: int | None = None) -> str:
    """A value as JSON text; NaN and infinities are null."""
    return json.dumps(finite(value), indent=indent, ensure_ascii=False, allow_nan=False)


def finite(value: Any) -> Any:
    """A value of JSON's types, with null for NaN and infinities."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value

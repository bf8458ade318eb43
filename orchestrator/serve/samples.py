"""What is known of an answer when versions are compared: how it ended, how long it took, and a
rough sketch of what it says. No text of a client or of a model is kept."""

import json
import math
from dataclasses import dataclass
from typing import Any, Literal

Arm = Literal["old", "new"]


@dataclass(frozen=True)
class Sample:
    """One answer of one of two versions."""

    arm: Arm
    failed: bool  # a status of 500 and more, or no answer
    seconds: float
    sketch: str = ""  # of the content: see `sketch_of`
    agrees: bool | None = None  # with the other version's answer to the same request, if both gave


def sketch_of(content_type: str, body: bytes) -> str:
    """A few words on an answer, of which a model has few different ones: a label, or how a text
    ended and its length to a power of two."""
    if content_type.startswith("application/json"):
        try:
            content = json.loads(body)
        except ValueError:
            return "no JSON"
        return _of_json(content) or f"{_magnitude(len(body))} bytes"
    return f"{content_type.partition(';')[0]} {_magnitude(len(body))} bytes"


def _of_json(content: Any) -> str:
    """The first choice's end and length, or the first label; empty if there is neither."""
    if isinstance(content, dict) and isinstance(content.get("choices"), list):
        ends = {str(choice.get("finish_reason")) for choice in content["choices"]}
        usage = content.get("usage") or {}
        return f"{'/'.join(sorted(ends))} {_magnitude(usage.get('completion_tokens', 0))} tokens"
    pending = [content]
    while pending:
        value = pending.pop(0)
        if isinstance(value, dict):
            if isinstance(label := value.get("label"), str | int):
                return f"label {label}"
            pending += value.values()
        elif isinstance(value, list):
            pending += value[:1]
    return ""


def _magnitude(count: float) -> str:
    return "0" if count <= 0 else f"2^{math.floor(math.log2(count))}"

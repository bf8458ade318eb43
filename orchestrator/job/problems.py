"""Validation errors of a job as lines `file:line:column: key: what is wrong`."""

import functools
import re
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from orchestrator.errors import did_you_mean
from orchestrator.job.job import Job
from orchestrator.job.keys import Key
from orchestrator.job.yaml_text import Source

MAX_SHOWN = 80  # characters of a value in a message


def describe(error: ValidationError, source: Source) -> list[str]:
    """One line per wrong key, in the order of the file."""
    lines: dict[Key, str] = {}
    for details in error.errors():
        key = _key(details, source.data)
        lines.setdefault(key, f"{source.place(key)}: {_explain(details, key, source.data)}")
    return list(lines.values())


def _key(details: ErrorDetails, data: Any) -> Key:
    """The path of an error without pydantic's own entries, such as the member of a union."""
    location = [str(part) for part in details["loc"]]
    key: list[str] = []
    for part in location:
        if isinstance(data, dict) and part in data:
            data = data[part]
        elif isinstance(data, list) and part.isdigit() and int(part) < len(data):
            data = data[int(part)]
        elif details["type"] != "missing" or part != location[-1]:
            break
        key.append(part)
    return tuple(key)


def _explain(details: ErrorDetails, key: Key, data: dict[str, Any]) -> str:
    name = ".".join(key)
    if details["type"] == "extra_forbidden":
        known = _known_keys(key[:-1])
        advice = did_you_mean(key[-1], known) or f"known here: {', '.join(known)}"
        return f"{name}: unknown key; {advice}"
    if details["type"] == "missing":
        return f"{name}: is missing; add it"
    message = details["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    value = details["input"]
    if isinstance(value, dict | list):
        return f"{name}: {message}" if name else message
    if details["type"] == "literal_error":
        known = re.findall(r"'([^']*)'", details["ctx"]["expected"])
        if advice := did_you_mean(str(value), known):
            message += f"; {advice}"
    text = "null" if value is None else shown(str(value))
    return f"{name} = {text}: {message}"


def shown(text: str) -> str:
    """A value for a message, on one line and shortened."""
    line = " ".join(text.split())
    return line if len(line) <= MAX_SHOWN else f"{line[:MAX_SHOWN]}…"


@functools.cache
def _known_keys(section: Key) -> list[str]:
    """The known keys of a section of a job."""
    schema = Job.model_json_schema()
    node: dict[str, Any] = schema
    for name in section:
        node = node.get("properties", {}).get(name) or node.get("additionalProperties") or {}
        for option in [node, *node.get("anyOf", [])]:
            if "$ref" in option:
                node = schema["$defs"][option["$ref"].rsplit("/", 1)[1]]
    return [*node.get("properties", {}), *([] if section else ["base"])]

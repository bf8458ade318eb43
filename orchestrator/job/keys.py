"""Dotted keys of a job, such as `train.lr`."""

from typing import Any

Key = tuple[str, ...]  # the path of a value in a job: ("train", "lr")


def set_key(data: dict[str, Any], name: str, value: Any) -> Key:
    """Set a dotted key in plain job data. Missing sections are created. Returns the key's path."""
    key = tuple(name.split("."))
    if key[:2] == ("tune", "space") and len(key) > 2:
        key = ("tune", "space", ".".join(key[2:]))  # a key of the space is itself dotted
    for part in key[:-1]:
        if not isinstance(data.get(part), dict):
            data[part] = {}
        data = data[part]
    data[key[-1]] = value
    return key

"""Reads a JSON object from a folder, such as the settings of a foreign model."""

import json
from typing import Any

from orchestrator.errors import UserError
from orchestrator.storage.folder import Folder

LFS = b"version https://git-lfs"  # the content of a file that git has not fetched


def read_object(folder: Folder, name: str) -> dict[str, Any]:
    """
    Raises:
        FileNotFoundError: if there is no such file.
        UserError: if it cannot be read, or is no JSON object.
    """
    try:
        content = folder.read(name)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileNotFoundError(name) from error
    except (OSError, ValueError) as error:  # ValueError: of an unknown scheme, say
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise UserError(f"{folder}/{name} cannot be read: {reason}") from None
    if content.startswith(LFS):
        raise UserError(f"{folder}/{name} is a pointer of git lfs, not the file (git lfs pull)")
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError too
        reason = str(error).splitlines()[0]
        raise UserError(f"{folder}/{name} is no JSON: {reason}: was it cut off?") from None
    if not isinstance(value, dict):
        raise UserError(f"{folder}/{name} is no JSON object")
    return value

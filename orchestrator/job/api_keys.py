"""`serve.keys`: a file of API keys, as hashes, and whether an endpoint may listen without one.

A line holds the SHA-256 of a key, 64 hexadecimal digits, and perhaps a name. `#` begins a comment.
Keys are long and random, so a plain hash of one cannot be reversed.
"""

import hashlib
import ipaddress
import re
from pathlib import Path

from orchestrator.errors import UserError
from orchestrator.job.keys import Key
from orchestrator.job.sections import ServeConfig

LARGEST = 1 << 20  # bytes of the file


def digest_of(key: str) -> str:
    """The hash by which a key is known."""
    return hashlib.sha256(key.encode()).hexdigest()


def read_keys(path: str) -> list[str]:
    """The hashes of a file, in lower case. A relative path starts at the working directory.

    Raises:
        UserError: naming the line, if the file is missing, has no key, or a line is not a hash.
    """
    try:
        content = Path(path).expanduser().read_bytes()
        text = content[: LARGEST + 1].decode("utf-8-sig")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "is no text"
        raise UserError(f"{path}: cannot be read: {reason}") from None
    if len(content) > LARGEST:
        raise UserError(f"{path}: is larger than {LARGEST} bytes")
    digests = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.partition("#")[0].split(maxsplit=1)
        if not words:
            continue
        if not re.fullmatch(r"[0-9A-Fa-f]{64}", words[0]):
            raise UserError(
                f"{path}:{number}: must begin with the SHA-256 of a key, 64 hexadecimal digits"
            )
        digests.append(words[0].lower())
    if not digests:
        raise UserError(f"{path}: holds no key")
    return digests


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def unguarded(serve: ServeConfig, host: str) -> str:
    """Why nobody may listen on `host` without keys; empty if that is allowed."""
    if serve.keys is not None or serve.open or is_loopback(host):
        return ""
    return (
        "others reach this address, and whoever does may ask: set serve.keys to a file of API "
        "keys, or serve.open to true"
    )


def access_problems(serve: ServeConfig) -> list[tuple[Key, str]]:
    """What is wrong with the keys: the setting, and the rest of the sentence."""
    if problem := unguarded(serve, serve.host):
        return [(("serve", "host"), f" = {serve.host}: {problem}")]
    if serve.keys is None:
        return []
    try:
        read_keys(serve.keys)
    except UserError as error:
        return [(("serve", "keys"), f" = {error}")]
    return []

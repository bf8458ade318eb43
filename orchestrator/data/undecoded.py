"""Bytes that cannot be decoded: each becomes a lone surrogate in the decoded text."""

import re

UNDECODED = re.compile("[\udc00-\udcff]")


def undecoded(text: str, encoding: str | None) -> str | None:
    """Why a text could not be decoded, such as `UTF-8: byte 0xe9`; None if it could."""
    match = None if text.isascii() else UNDECODED.search(text)
    if match is None:
        return None
    byte = ord(match[0]) - 0xDC00
    mend = "set data.encoding, such as latin-1" if encoding is None else "see data.encoding"
    return f"{encoding or 'UTF-8'}: byte 0x{byte:02x}; {mend}"


def valid(text: str, encoding: str | None) -> str:
    """The text itself. Raises ValueError if it contains such a surrogate."""
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            reason = undecoded(text, encoding) or "UTF-8"
            raise ValueError(f"is not valid {reason}") from None
    return text

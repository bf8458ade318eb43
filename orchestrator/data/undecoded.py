"""Bytes that are no text: a lone surrogate stands for each of them in a decoded text."""

import re

UNDECODED = re.compile("[\udc00-\udcff]")


def undecoded(text: str, encoding: str | None) -> str | None:
    """What a text is not, where bytes of it could not be decoded: `UTF-8: byte 0xe9`."""
    match = None if text.isascii() else UNDECODED.search(text)
    if match is None:
        return None
    byte = ord(match[0]) - 0xDC00
    mend = "set data.encoding, such as latin-1" if encoding is None else "see data.encoding"
    return f"{encoding or 'UTF-8'}: byte 0x{byte:02x}; {mend}"


def valid(text: str, encoding: str | None) -> str:
    """The text itself. Raises ValueError where a surrogate stands in it."""
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            reason = undecoded(text, encoding) or "UTF-8"
            raise ValueError(f"is not valid {reason}") from None
    return text

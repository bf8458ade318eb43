"""Detects files of another format than their name says, by their first bytes."""

from dataclasses import dataclass
from typing import NamedTuple

from orchestrator.errors import UserError

HEAD = 4096  # bytes that are checked


class Beginning(NamedTuple):
    """How files of one type begin, the type's name, and what the user can do."""

    start: bytes
    what: str
    mend: str


@dataclass(frozen=True)
class Head:
    """How files of one format begin; other beginnings are refused for every format."""

    magic: bytes = b""  # their first bytes, which other formats refuse
    refused: tuple[Beginning, ...] = ()  # beginnings in lower case, after white space


ANY = Head()

MARKUP = "a web page (HTML)", "the link may have expired; download the data again"
PAGES = (
    Beginning(b"<!doctype html", *MARKUP),
    Beginning(b"<html", *MARKUP),
    Beginning(b"<head", *MARKUP),
    Beginning(b"<body", *MARKUP),
    Beginning(b"<?xml", "XML, such as a storage's error message", "download the data again"),
)
OBJECT = "JSON", "set data.format: json, or jsonl for one object a line"
OBJECTS = tuple(Beginning(start, *OBJECT) for start in (b'{"', b'[{"', b"[\n", b"[\r\n", b"{\n"))
UNZIP = "unzip it and name the file inside"
EXPORT = "export it as csv (or write it as parquet)"
PICTURE = "a picture", "data.source takes text and tables only"
MAGIC = [
    Beginning(*each)
    for each in (
        (b"version https://git-lfs.github.com/spec/v1", "a Git LFS pointer", "run git lfs pull"),
        (b"/annex/objects/", "a git-annex pointer", "run git annex get"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Excel or Word file", EXPORT),
        (b"%PDF", "a PDF", "extract its text"),
        (b"\x1f\x8b", "compressed by gzip", "give its name the ending .gz"),
        (b"\x28\xb5\x2f\xfd", "compressed by zstd", "give its name the ending .zst"),
        (b"BZh", "compressed by bzip2", "unpack it (bunzip2)"),
        (b"\xfd7zXZ\x00", "compressed by xz", "unpack it (unxz)"),
        (b"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it and name the file inside"),
        (b"Rar!\x1a\x07", "a rar archive", "unpack it and name the file inside"),
        (b"PAR1", "a parquet file", "set data.format: parquet, or name it .parquet"),
        (b"ARROW1", "an Arrow file", "write it as parquet"),
        (b"Obj\x01", "an Avro file", "write it as parquet"),
        (b"ORC", "an ORC file", "write it as parquet"),
        (b"SQLite format 3\x00", "an SQLite data base", EXPORT),
        (b"\x89HDF\r\n\x1a\n", "an HDF5 file", EXPORT),
        (b"\x93NUMPY", "a NumPy array", EXPORT),
        (b"\x80\x04\x95", "a Python pickle", EXPORT),
        (b"\x80\x05\x95", "a Python pickle", EXPORT),
        (b"{\\rtf", "an RTF document", "save it as plain text"),
        (b"\x89PNG\r\n", *PICTURE),
        (b"\xff\xd8\xff", *PICTURE),
        (b"GIF8", *PICTURE),
    )
]
# Types of zip archives, by the names of the files inside.
ZIPS = [
    Beginning(b"xl/", "an Excel workbook", EXPORT),
    Beginning(b"word/", "a Word document", "save it as plain text"),
    Beginning(b"opendocument.spreadsheet", "a LibreOffice table", EXPORT),
]
ZIP_STARTS = (b"PK\x03\x04", b"PK\x05\x06")
LETTERS = (b"BZh", b"ORC", b"GIF8", b"ARROW1")  # beginnings that a text may have, too


def refuse(uri: str, kind: str, content: bytes, head: Head = ANY) -> None:
    """Raises UserError if the first bytes of a file are not those of its format."""
    other = _other(content, head)
    if other is not None:
        raise UserError(f"{uri}: is {other.what}, not {kind}: {other.mend}")


def _other(content: bytes, head: Head) -> Beginning | None:
    """The detected type of a file of another format; None if it may be of this one."""
    if head.magic and content.startswith(head.magic):
        return None
    if content.startswith(ZIP_STARTS):
        inside = next((each for each in ZIPS if each.start in content), None)
        return inside or Beginning(b"", "a zip archive", UNZIP)
    for each in MAGIC:
        # Binary files soon have bytes that no text has.
        if content.startswith(each.start) and (
            each.start not in LETTERS or _is_binary(content[:256])
        ):
            return each
    if content[257:262] == b"ustar":
        return Beginning(b"", "a tar archive", "unpack it and name the files inside")
    start = content.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    return next((each for each in head.refused if start.startswith(each.start)), None)


def _is_binary(content: bytes) -> bool:
    return any(byte < 9 for byte in content)

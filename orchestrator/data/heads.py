"""What a file is by its first bytes, where its name says something else."""

from orchestrator.errors import UserError

HEAD = 4096  # bytes that are looked at

TABLES = ("csv", "tsv", "json", "jsonl", "parquet")
UNZIP = "unzip it and name the file inside"
EXPORT = "export it as csv (or write it as parquet)"
PICTURE = "a picture", "data.source takes text and tables only"
# How files of other kinds begin, what they are, and what to do.
MAGIC: list[tuple[bytes, str, str]] = [
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
]
ZIPS: list[tuple[bytes, str, str]] = [
    (b"xl/", "an Excel workbook", EXPORT),
    (b"word/", "a Word document", "save it as plain text"),
    (b"opendocument.spreadsheet", "a LibreOffice table", EXPORT),
]
TEXT_MAGIC = {"BZh", "ORC", "GIF8", "ARROW1"}  # of letters alone: a text may begin so


def refuse(uri: str, kind: str, head: bytes) -> None:
    """Raises UserError where a file of this kind cannot begin like that."""
    found = _what(kind, head)
    if found is not None:
        what, mend = found
        raise UserError(f"{uri}: is {what}, not {kind}: {mend}")


def _what(kind: str, head: bytes) -> tuple[str, str] | None:
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        for inside, what, mend in ZIPS:
            if inside in head:
                return what, mend
        return "a zip archive", UNZIP
    for magic, what, mend in MAGIC:
        if not head.startswith(magic) or (kind == "parquet" and magic == b"PAR1"):
            continue
        # Letters alone may begin a text, of which binary files have other bytes soon.
        if magic.decode("latin-1") in TEXT_MAGIC and not _is_binary(head[:256]):
            continue
        return what, mend
    if head[257:262] == b"ustar":
        return "a tar archive", "unpack it and name the files inside"
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if kind in TABLES and start.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        return "a web page (HTML)", "the link may have expired; download the data again"
    if kind in TABLES and start.startswith(b"<?xml"):
        return "XML, such as a storage's error message", "download the data again"
    if kind in ("csv", "tsv") and start.startswith((b'{"', b'[{"', b"[\n", b"[\r\n", b"{\n")):
        return "JSON", "set data.format: json, or jsonl for one object a line"
    return None


def _is_binary(head: bytes) -> bool:
    return any(byte < 9 for byte in head)

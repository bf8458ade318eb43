"""Where raw rows come from: finding the files of `data.source` and reading them row by row.

A row that cannot be read never stops the reading: it comes out as a `BadRow` with its file, its row
and the reason, to be counted and kept.
"""

import csv
import functools
import io
import itertools
import json
import os
import re
import sysconfig
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet

from orchestrator.errors import UserError
from orchestrator.task import DataConfig, Row

PYTHON_STDLIB = "python-stdlib"
FORMATS = ("txt", "jsonl", "csv", "parquet")
COMPRESSIONS = ("gz", "zst")
MAX_FIELD = 1 << 28  # bytes of one csv field


@dataclass(frozen=True)
class SourceFile:
    """One input file. `uri` opens it; the size and time tell whether it has changed."""

    uri: str
    kind: str  # one of FORMATS, or "py"
    bytes: int
    modified: str

    def open(self) -> pa.NativeFile:
        """A stream of its content, decompressed where its name says so."""
        filesystem, path = _resolve(self.uri)
        return filesystem.open_input_stream(path, compression="detect")


@dataclass(frozen=True)
class BadRow:
    """A row that was set aside. Rows count from 1; row 0 is the whole file."""

    file: str
    row: int
    reason: str


def find_files(data: DataConfig) -> list[SourceFile]:
    """Every file of `data.source`, sorted by name.

    Raises:
        UserError: where there is none, or one is of an unknown format.
    """
    sources = [data.source] if isinstance(data.source, str) else data.source
    found: dict[str, SourceFile] = {}
    for source in sources:
        files = _stdlib_files() if source == PYTHON_STDLIB else _find(source)
        found |= {file.uri: file for file in files}
    return [found[uri] for uri in sorted(found)]


def check_columns(files: list[SourceFile], columns: list[str]) -> None:
    """Look at the head of one file of each format, so that a wrong column costs nothing.

    Raises:
        UserError: naming the column, the file and the columns that it has.
    """
    first = {file.kind: file for file in reversed(files)}
    for kind, file in first.items():
        names = _column_names(file) if kind in ("jsonl", "csv", "parquet") else None
        missing = [column for column in columns if names is not None and column not in names]
        if missing:
            raise UserError(
                f"{file.uri}: has no column {missing[0]!r}; its columns are "
                f"{', '.join(names or []) or 'none'}: set data.text_column"
            )


def read_rows(file: SourceFile, data: DataConfig, columns: list[str]) -> Iterator[Row | BadRow]:
    """The rows of a file in its order, bad ones in their places."""
    readers = {"txt": _read_text, "jsonl": _read_jsonl, "csv": _read_csv, "parquet": _read_parquet}
    try:
        if file.kind == "py":
            yield from _read_python(file, columns)
        else:
            yield from readers[file.kind](file, data, columns)
    except (OSError, EOFError, pa.ArrowException) as error:
        yield BadRow(file.uri, 0, f"cannot be read: {_first_line(error)}")


def _stdlib_files() -> list[SourceFile]:
    found = []
    for folder, inside, files in os.walk(sysconfig.get_path("stdlib")):
        if "site-packages" in inside:
            inside.remove("site-packages")  # not entered
        found += [Path(folder, file) for file in files if file.endswith(".py")]
    return [_local_file(path, "py") for path in found if path.is_file()]


def _local_file(path: Path, kind: str) -> SourceFile:
    stat = path.stat()
    return SourceFile(str(path), kind, stat.st_size, str(stat.st_mtime_ns))


def _find(source: str) -> list[SourceFile]:
    """The files of a path, a folder, a glob or a URI."""
    refused = f"data.source = {source}"
    try:
        name = _local(source)
        is_glob = any(character in name for character in "*?[")
        filesystem, path = _resolve(_glob_root(name) if is_glob else name)
        info = filesystem.get_file_info(path)
        if info.type == pyarrow.fs.FileType.NotFound:
            raise UserError(f"{refused}: no such file or folder")
        if info.type == pyarrow.fs.FileType.File:
            infos = [info]
        else:
            infos = filesystem.get_file_info(pyarrow.fs.FileSelector(path, recursive=True))
        infos = [i for i in infos if i.is_file and not _is_hidden(i.path, path)]
    except (OSError, RuntimeError, ValueError, pa.ArrowException) as error:
        raise UserError(f"{refused}: {_first_line(error)}") from error
    if is_glob:
        pattern = _glob_pattern(_resolve(name)[1])
        infos = [info for info in infos if pattern.fullmatch(info.path)]
    # In a folder, files of other kinds stand beside the data; a file that is named must be data.
    named = infos and not is_glob and infos[0].path == path
    known = [info for info in infos if named or _kind(info.path) is not None]
    if not known:
        raise UserError(f"{refused}: holds no {', '.join(FORMATS)} file")
    if all(info.size == 0 for info in known):
        raise UserError(f"{refused}: is empty")
    scheme = name.split("://", 1)[0] + "://" if "://" in name else ""
    files = []
    for info in known:
        kind = _kind(info.path)
        if kind is None:
            raise UserError(
                f"{refused}: is no {', '.join(FORMATS)} file, nor one of these .gz/.zst"
            )
        files.append(SourceFile(scheme + info.path, kind, info.size, str(info.mtime_ns)))
    return files


def _local(source: str) -> str:
    """The path that a file:// URI stands for; any other source as it is."""
    if not source.startswith("file://"):
        return source
    if not source.startswith("file:///"):
        raise ValueError("a file URI has an absolute path: file:///data")
    return unquote(source.removeprefix("file://"))


def _is_hidden(path: str, root: str) -> bool:
    """Whether the file, or a folder between it and the root, is not meant to be read."""
    below = path.removeprefix(root) or PurePosixPath(path).name
    return any(part.startswith((".", "_")) for part in PurePosixPath(below).parts)


def _glob_pattern(pattern: str) -> re.Pattern[str]:
    """`*` and `?` stay within a folder, `**/` is any number of folders, `[...]` as in a shell."""
    translated = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}

    def translate(match: re.Match[str]) -> str:
        token = match[0]
        if token in translated:
            return translated[token]
        if len(token) > 1:
            members = token[1:-1].removeprefix("!").replace("\\", "\\\\").replace("^", "\\^")
            return f"[{'^' if token[1] == '!' else ''}{members}]"
        return re.escape(token)

    return re.compile(re.sub(r"\*\*/|\*\*|\*|\?|\[[^]/]+\]|.", translate, pattern, flags=re.S))


@functools.cache
def _remote(scheme_and_host: str) -> pyarrow.fs.FileSystem:
    return pyarrow.fs.FileSystem.from_uri(scheme_and_host)[0]


def _resolve(uri: str) -> tuple[pyarrow.fs.FileSystem, str]:
    if "://" in uri:
        scheme, path = uri.split("://", 1)
        return _remote(f"{scheme}://{path.split('/', 1)[0]}"), path
    return pyarrow.fs.LocalFileSystem(), str(Path(uri).expanduser().absolute())


def _glob_root(pattern: str) -> str:
    """The folder above the first part with a wildcard."""
    parts = pattern.split("/")
    fixed = list(itertools.takewhile(lambda part: not any(c in part for c in "*?["), parts))
    return "/".join(fixed) or ("/" if pattern.startswith("/") else ".")


def _kind(path: str) -> str | None:
    suffixes = Path(path).name.lower().split(".")[1:]
    if suffixes and suffixes[-1] in COMPRESSIONS:
        suffixes.pop()
    kind = {"ndjson": "jsonl", "text": "txt"}.get(suffixes[-1], suffixes[-1]) if suffixes else None
    return kind if kind in FORMATS else None


def _column_names(file: SourceFile) -> list[str] | None:
    """The columns of a table's head, or None where it cannot be read (which its rows will tell)."""
    try:
        if file.kind == "parquet":
            with _open_parquet(file) as stream:
                return list(pyarrow.parquet.read_schema(stream).names)
        _, line = next(_lines(file))
        text = line.decode("utf-8-sig")
        if file.kind == "csv":
            return next(csv.reader([text]), [])
        head = json.loads(text)
        return list(head) if isinstance(head, dict) else None
    except (OSError, StopIteration, ValueError, RecursionError, csv.Error, pa.ArrowException):
        return None


def _lines(file: SourceFile) -> Iterator[tuple[int, bytes]]:
    """Numbered lines, from 1, with their ends."""
    with file.open() as stream, io.BufferedReader(stream, 1 << 20) as buffered:
        yield from enumerate(buffered, start=1)


def _read_python(file: SourceFile, columns: list[str]) -> Iterator[Row | BadRow]:
    """A source file, decoded as it declares itself to be (PEP 263)."""
    try:
        with tokenize.open(file.uri) as stream:
            yield {columns[0]: stream.read()}
    except (SyntaxError, UnicodeDecodeError, LookupError) as error:
        yield BadRow(file.uri, 0, f"cannot be decoded: {_first_line(error)}")


def _read_text(file: SourceFile, data: DataConfig, columns: list[str]) -> Iterator[Row | BadRow]:
    """A document a file; a long one is cut at the first blank line past its limit."""
    document: list[str] = []
    size = 0
    for number, line in _lines(file):
        try:
            document.append(line.decode("utf-8-sig" if number == 1 else "utf-8"))
        except UnicodeDecodeError as error:
            yield BadRow(file.uri, number, f"is not UTF-8: {error.reason} at byte {error.start}")
            continue
        size += len(line)
        blank = not line.strip()
        if (size >= data.max_document_bytes and blank) or size >= 4 * data.max_document_bytes:
            yield {columns[0]: "".join(document)}
            document, size = [], 0
    if document:
        yield {columns[0]: "".join(document)}


def _read_jsonl(file: SourceFile, data: DataConfig, columns: list[str]) -> Iterator[Row | BadRow]:
    for number, line in _lines(file):
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
        except UnicodeDecodeError as error:
            yield BadRow(file.uri, number, f"is not UTF-8: {error.reason} at byte {error.start}")
        except (ValueError, RecursionError) as error:
            yield BadRow(file.uri, number, f"is not JSON: {_first_line(error)}")
        else:
            yield _checked(row, columns, file.uri, number)


def _read_csv(file: SourceFile, data: DataConfig, columns: list[str]) -> Iterator[Row | BadRow]:
    csv.field_size_limit(MAX_FIELD)
    with file.open() as stream, io.BufferedReader(stream, 1 << 20) as buffered:
        # Undecodable bytes become lone surrogates, which `_checked` finds in their row.
        text = io.TextIOWrapper(buffered, "utf-8-sig", errors="surrogateescape", newline="")
        reader = csv.reader(text, strict=True)
        names = next(reader, [])
        while True:
            try:
                fields = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield BadRow(file.uri, reader.line_num, f"is not csv: {error}")
                continue
            if not fields:
                continue
            if len(fields) != len(names):
                reason = f"has {len(fields)} fields, the header {len(names)}"
                yield BadRow(file.uri, reader.line_num, reason)
                continue
            row = dict(zip(names, fields, strict=True))
            yield _checked(row, columns, file.uri, reader.line_num)


def _read_parquet(file: SourceFile, data: DataConfig, columns: list[str]) -> Iterator[Row | BadRow]:
    with _open_parquet(file) as stream:
        table = pyarrow.parquet.ParquetFile(stream)
        missing = [column for column in columns if column not in table.schema_arrow.names]
        if missing:
            yield BadRow(file.uri, 0, f"has no column {missing[0]!r}")
            return
        number = 0
        for batch in table.iter_batches(batch_size=1024, columns=columns):
            for i in range(batch.num_rows):
                number += 1
                try:
                    row = {column: batch.column(column)[i].as_py() for column in columns}
                except UnicodeDecodeError as error:
                    yield BadRow(file.uri, number, f"is not UTF-8: {error.reason}")
                else:
                    yield _checked(row, columns, file.uri, number)


def _open_parquet(file: SourceFile) -> pa.NativeFile:
    """Parquet is read from its end, so that a compressed one is read whole."""
    filesystem, path = _resolve(file.uri)
    if path.lower().endswith(tuple(f".{name}" for name in COMPRESSIONS)):
        with file.open() as stream:
            return pa.BufferReader(stream.read())
    return filesystem.open_input_file(path)


def _checked(row: object, columns: list[str], file: str, number: int) -> Row | BadRow:
    """A row with just the task's columns, all of them text."""
    if not isinstance(row, dict):
        return BadRow(file, number, f"is {type(row).__name__}, not an object with columns")
    for column in columns:
        value = row.get(column)
        if column not in row or value is None:
            return BadRow(file, number, f"has no {column!r}")
        if not isinstance(value, str):
            return BadRow(file, number, f"{column!r} is {type(value).__name__}, not text")
        try:
            value.encode()
        except UnicodeEncodeError:
            return BadRow(file, number, f"{column!r} is not valid UTF-8")
    return {column: row[column] for column in columns}


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]

"""Where raw rows come from: the files of `data.source`, on any storage."""

import functools
import itertools
import os
import re
import sysconfig
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.fs

from orchestrator.artifact import Split
from orchestrator.errors import UserError, first_line
from orchestrator.task import DataConfig, Sources

PYTHON_STDLIB = "python-stdlib"
FORMATS = ("txt", "jsonl", "json", "csv", "tsv", "parquet")
COMPRESSIONS = ("gz", "zst")


@dataclass(frozen=True)
class SourceFile:
    """One input file. `uri` opens it; the size and time tell whether it has changed."""

    uri: str
    kind: str  # one of FORMATS, or "py"
    bytes: int
    modified: str
    split: Split | None = None  # which one all of its rows are for; None: as their keys fall
    column: str = ""  # of parallel text files: what its lines are
    beside: tuple["SourceFile", ...] = ()  # further columns, line by line

    def open(self) -> pa.NativeFile:
        """A stream of its content, decompressed where its name says so."""
        filesystem, path = _resolve(self.uri)
        return filesystem.open_input_stream(path, compression="detect")

    def open_whole(self) -> pa.NativeFile:
        """A file to jump about in; a compressed one is read whole."""
        filesystem, path = _resolve(self.uri)
        if path.lower().endswith(tuple(f".{name}" for name in COMPRESSIONS)):
            with self.open() as stream:
                return pa.BufferReader(stream.read())
        return filesystem.open_input_file(path)


def find_files(data: DataConfig) -> list[SourceFile]:
    """Every file of `data.source`, and of the further splits' own sources, sorted by name.

    Raises:
        UserError: where there is none, or one is of an unknown format.
    """
    found = _of("data.source", data.source, data)
    if data.validation_source is not None:
        files = _of("data.validation_source", data.validation_source, data)
        found += [replace(file, split="validation") for file in files]
    if data.test_source is not None:
        files = _of("data.test_source", data.test_source, data)
        found += [replace(file, split="test") for file in files]
    uris = [file.uri for file in found]
    twice = next((uri for uri in uris if uris.count(uri) > 1), None)
    if twice is not None:
        raise UserError(f"{twice}: is given to two splits")
    return found


def total_bytes(files: list[SourceFile]) -> int:
    """Of all files, those that are read beside another too."""
    return sum(each.bytes for file in files for each in (file, *file.beside))


def _of(key: str, sources: Sources, data: DataConfig) -> list[SourceFile]:
    if isinstance(sources, dict):
        return [_side_by_side(key, sources)]
    found: dict[str, SourceFile] = {}
    for source in [sources] if isinstance(sources, str) else sources:
        files = _stdlib_files() if source == PYTHON_STDLIB else _find(key, source, data.format)
        found |= {file.uri: file for file in files}
    return [found[uri] for uri in sorted(found)]


def _side_by_side(key: str, sources: dict[str, str]) -> SourceFile:
    """Parallel text files, one a column."""
    files = []
    for column, source in sources.items():
        several = _find(f"{key}.{column}", source, "txt")
        if len(several) > 1:
            raise UserError(f"{key}.{column} = {source}: are {len(several)} files, not one")
        files.append(replace(several[0], column=column))
    return replace(files[0], beside=tuple(files[1:]))


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


def _find(key: str, source: str, kind_of_all: str | None) -> list[SourceFile]:
    """The files of a path, a folder, a glob or a URI."""
    refused = f"{key} = {source}"
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
        raise UserError(f"{refused}: {first_line(error)}") from error
    if is_glob:
        pattern = _glob_pattern(_resolve(name)[1])
        infos = [info for info in infos if pattern.fullmatch(info.path)]
    # In a folder, files of other kinds stand beside the data; a file that is named must be data.
    named = infos and not is_glob and infos[0].path == path
    chosen = named or is_glob or kind_of_all  # else it may be anything: settings, a list of files
    known = [
        info
        for info in infos
        if named or kind_of_all or _kind(info.path) not in (None, None if chosen else "json")
    ]
    if not known:
        raise UserError(f"{refused}: holds no {', '.join(FORMATS)} file")
    if all(info.size == 0 for info in known):
        raise UserError(f"{refused}: is empty")
    scheme = name.split("://", 1)[0] + "://" if "://" in name else ""
    files = []
    for info in known:
        kind = kind_of_all or _kind(info.path)
        if kind is None:
            raise UserError(
                f"{refused}: is no {', '.join(FORMATS)} file, nor one of these .gz/.zst: set "
                f"data.format"
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

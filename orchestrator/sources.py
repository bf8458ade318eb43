"""Where raw rows come from: the files of `data.source`, on any storage."""

import io
import os
import sysconfig
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple
from urllib.parse import unquote

import pyarrow as pa

from orchestrator.artifact import Split
from orchestrator.errors import UserError, first_line
from orchestrator.folder import locate
from orchestrator.listing import Entry, Walk, few, glob_root, is_glob, look_up, matching, walk
from orchestrator.split_names import splits_by_name, told
from orchestrator.streams import COMPRESSIONS, open_file, open_stream
from orchestrator.task import DataConfig, Sources

PYTHON_STDLIB = "python-stdlib"
FORMATS = ("txt", "jsonl", "json", "csv", "tsv", "parquet")


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
    by_name: bool = False  # its name says for which split it is, not the job

    def open(self) -> "io.BufferedReader[Any]":
        """A stream of its content, decompressed where its name says so. Raises: `open_stream`."""
        return open_stream(self.uri, self.kind, self.bytes)

    def open_whole(self) -> "io.BufferedReader[Any]":
        """A file to jump about in; a compressed one is read whole."""
        return open_file(self.uri, self.kind, self.bytes)


class Listing(NamedTuple):
    """The files of a job's data, and what its user should know of how they were found."""

    files: list[SourceFile]
    notes: list[str]


def find_files(data: DataConfig, storage: str = "") -> Listing:
    """Every file of `data.source`, and of the further splits' own sources, sorted by name.

    `storage` is the job's, which is no data where it lies below a source.

    Raises:
        UserError: where there is none, or one is of an unknown format.
    """
    finder = _Finder(data, storage)
    files = finder.of("data.source", data.source)
    given = data.validation_source is not None or data.test_source is not None
    if isinstance(data.source, str) and finder.roots and not given:
        splits = splits_by_name([file.uri for file in files], finder.roots)
        if splits:
            finder.notes.append(told(splits))
            files = [_named(file, split) for file in files if (split := splits[file.uri])]
    if data.validation_source is not None:
        found = finder.of("data.validation_source", data.validation_source)
        files += [replace(file, split="validation") for file in found]
    if data.test_source is not None:
        found = finder.of("data.test_source", data.test_source)
        files += [replace(file, split="test") for file in found]
    twice = [uri for uri, count in Counter(file.uri for file in files).items() if count > 1]
    if twice:
        raise UserError(f"{twice[0]}: is given to two splits")
    return Listing(files, finder.notes)


def total_bytes(files: Sequence[SourceFile]) -> int:
    """Of all files, those that are read beside another too."""
    return sum(each.bytes for file in files for each in (file, *file.beside))


def _named(file: SourceFile, split: Split) -> SourceFile:
    return replace(file, split=None if split == "train" else split, by_name=True)


class _Finder:
    """Finds the files of sources, and keeps what to tell of them."""

    def __init__(self, data: DataConfig, storage: str) -> None:
        self.notes: list[str] = []
        self.roots: list[str] = []  # the folders and the globs' folders that were looked through
        self._format = data.format
        self._storage = storage

    def of(self, key: str, sources: Sources) -> list[SourceFile]:
        if isinstance(sources, dict):
            return [self._side_by_side(key, sources)]
        found: dict[str, SourceFile] = {}
        for source in [sources] if isinstance(sources, str) else sources:
            is_library = source == PYTHON_STDLIB
            files = _stdlib_files() if is_library else self._find(key, source, self._format)
            found |= {file.uri: file for file in files}
        return [found[uri] for uri in sorted(found)]

    def _side_by_side(self, key: str, sources: dict[str, str]) -> SourceFile:
        """Parallel text files, one a column."""
        files = []
        for column, source in sources.items():
            several = self._find(f"{key}.{column}", source, "txt")
            if len(several) > 1:
                raise UserError(f"{key}.{column} = {source}: are {len(several)} files, not one")
            files.append(replace(several[0], column=column))
        return replace(files[0], beside=tuple(files[1:]))

    def _find(self, key: str, source: str, kind_of_all: str | None) -> list[SourceFile]:
        """The files of a path, a folder, a glob or a URI. A path that exists is that path."""
        refused = f"{key} = {source}"
        try:
            name = _local(source)
            there = look_up(name)
            if there is not None and not there.is_folder:
                entries = [there]
            elif there is not None:
                entries = self._in_folder(name, kind_of_all)
            elif is_glob(name):
                entries = self._in_glob(refused, name, kind_of_all)
            else:
                raise UserError(f"{refused}: no such file or folder")
        except (OSError, RuntimeError, ValueError, pa.ArrowException) as error:
            raise UserError(f"{refused}: {first_line(error)}") from error
        if not entries:
            raise UserError(f"{refused}: holds no {', '.join(FORMATS)} file")
        if all(entry.bytes == 0 for entry in entries):
            raise UserError(f"{refused}: is empty")
        scheme = name.split("://", 1)[0] + "://" if "://" in name else ""
        return [_source_file(entry, scheme, kind_of_all, refused) for entry in entries]

    def _in_folder(self, name: str, kind_of_all: str | None) -> list[Entry]:
        root = locate(name)[1]
        files = [e for e in walk(name, None, self._storage) if not e.is_folder]
        plan = Walk(root)
        hidden = [e for e in files if plan.is_hidden(e.path)]
        shown = [e for e in files if not plan.is_hidden(e.path)]
        kinds = {entry.path: kind_of_all or _kind(entry.path) for entry in shown}
        # Beside other data, json may be anything: settings, a list of files.
        is_json = all(kind in (None, "json") for kind in kinds.values())
        chosen = [e for e in shown if kinds[e.path] not in ((None,) if is_json else (None, "json"))]
        chosen = shown if kind_of_all else chosen
        taken = {entry.path for entry in chosen}
        left = [e for e in shown if e.path not in taken]
        left += [e for e in hidden if _kind(e.path) is not None]
        self._tell_left(left, chosen, root)
        self._tell_root(name, root)
        return chosen

    def _in_glob(self, refused: str, name: str, kind_of_all: str | None) -> list[Entry]:
        files, folders = matching(name, self._storage)
        if not files and folders:
            raise UserError(
                f"{refused}: matches folders only, such as {folders[0].path}: name the files in "
                f"them, {name.rstrip('/')}/*"
            )
        if not files:
            raise UserError(f"{refused}: matches no file")
        root = locate(glob_root(name))[1]
        chosen = [e for e in files if kind_of_all or _kind(e.path) is not None]
        left = [e for e in files if not (kind_of_all or _kind(e.path) is not None)]
        self._tell_left(left, chosen, root)
        self._tell_root(name, root)
        return chosen

    def _tell_root(self, name: str, root: str) -> None:
        scheme = name.split("://", 1)[0] + "://" if "://" in name else ""
        self.roots.append(f"{scheme}{root}".rstrip("/"))

    def _tell_left(self, left: list[Entry], chosen: list[Entry], root: str) -> None:
        """A note of what stands beside the data and is not read."""
        if left and chosen:
            names = [e.path.removeprefix(root).lstrip("/") for e in left]
            files = "file is" if len(names) == 1 else "files are"
            self.notes.append(f"{len(names):,} other {files} not read: {few(names)}")


def _source_file(entry: Entry, scheme: str, kind_of_all: str | None, refused: str) -> SourceFile:
    kind = kind_of_all or _kind(entry.path)
    if kind is None:
        mend = (
            "unzip it and name the file inside"
            if entry.path.endswith(".zip")
            else ("set data.format")
        )
        raise UserError(
            f"{refused}: is no {', '.join(FORMATS)} file, nor one of these .gz/.zst: {mend}"
        )
    try:
        entry.path.encode()
    except UnicodeEncodeError:
        raise UserError(f"{refused}: the name {entry.path!r} is not UTF-8: rename it") from None
    return SourceFile(scheme + entry.path, kind, entry.bytes, entry.modified)


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


def _local(source: str) -> str:
    """The path that a file:// URI stands for; any other source as it is."""
    if not source.startswith("file://"):
        return source
    if not source.startswith("file:///"):
        raise ValueError("a file URI has an absolute path: file:///data")
    return unquote(source.removeprefix("file://"))


def _kind(path: str) -> str | None:
    suffixes = PurePosixPath(path).name.lower().split(".")[1:]
    if suffixes and suffixes[-1] in COMPRESSIONS:
        suffixes.pop()
    kind = {"ndjson": "jsonl", "text": "txt"}.get(suffixes[-1], suffixes[-1]) if suffixes else None
    return kind if kind in FORMATS else None

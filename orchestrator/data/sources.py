"""Finds the files of `data.source`, on any storage."""

import os
import re
import sysconfig
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import pyarrow as pa

from orchestrator.data import paths
from orchestrator.data.config import DataConfig, Sources
from orchestrator.data.formats.python_files import PYTHON
from orchestrator.data.formats.registry import FORMATS, format_of, offered
from orchestrator.data.formats.texts import TXT
from orchestrator.data.paths import Entry
from orchestrator.data.source_file import SourceFile
from orchestrator.data.streams import COMPRESSIONS
from orchestrator.errors import UserError, first_line
from orchestrator.storage.artifact import Split

PYTHON_STDLIB = "python-stdlib"

# Files beside data that are no data. They are not reported.
DEBRIS = re.compile(
    r"_SUCCESS|_started_.*|_committed_.*|_metadata|_common_metadata|\..*|README.*|LICEN[CS]E.*"
    r"|Thumbs\.db|desktop\.ini|.*\.(crc|md5|sha1|sha256)",
    re.I | re.S,
)
MENDS = {  # what to do with other files, by the end of their names
    (".zip", ".tar", ".tgz", ".tar.gz", ".rar", ".7z"): "unpack it and name the file inside",
    (".bz2", ".xz", ".lz4", ".br"): "unpack it, or pack it as .gz or .zst",
    (".xlsx", ".xls", ".ods", ".sqlite", ".db", ".pkl", ".npy", ".feather", ".arrow"): (
        "export it as csv or parquet"
    ),
    (".docx", ".doc", ".odt", ".pdf", ".rtf", ".html", ".htm"): "save it as plain text",
}
NAMED = 3  # the most files that a note names

# The rule of Hugging Face's `datasets`: a word, and no letters around it but "set" or "data".
SPLIT_WORDS: dict[str, Split] = {
    "train|training": "train",
    "validation|valid|development|dev|val": "validation",
    "test|testing|eval|evaluation": "test",
}
SPLIT_NAMES: dict[re.Pattern[str], Split] = {
    re.compile(rf"(?<![^\W\d_])(?:{words})(?:set|data)?(?![^\W\d_])", re.I): split
    for words, split in SPLIT_WORDS.items()
}


class Listing(NamedTuple):
    """The files that are read, and notes for the user on how they were found."""

    files: list[SourceFile]
    notes: list[str]


def find_files(data: DataConfig, storage: str = "") -> Listing:
    """All files of `data.source` and of the sources of other splits, sorted by name.

    `storage` is the job's own, a URI or an absolute path: below a source, it is none of the data.

    Raises:
        UserError: where there is none, or one is of an unknown format.
    """
    given = data.validation_source is not None or data.test_source is not None
    main = _of("data.source", data.source, data, storage, by_name=not given)
    files, beside = main.files, main.beside
    further: dict[Split, Sources | None] = {
        "validation": data.validation_source,
        "test": data.test_source,
    }
    for split, sources in further.items():
        if sources is not None:
            found_too = _of(f"data.{split}_source", sources, data, storage, by_name=False)
            files += [replace(file, split=split) for file in found_too.files]
            beside += found_too.beside
    twice = next((uri for uri, count in Counter(f.uri for f in files).items() if count > 1), None)
    if twice is not None:
        raise UserError(f"{twice}: is given to two splits")
    return Listing(files, [*_splits_note(files), *_beside_notes(beside, files)])


def total_bytes(files: list[SourceFile]) -> int:
    """The size of all files, including parallel ones."""
    return sum(each.bytes for file in files for each in (file, *file.beside))


class _Unread(NamedTuple):
    """Files beside the data that are not read."""

    source: str
    names: dict[str, str]  # by URI
    reason: str = "not read"


class _Found(NamedTuple):
    files: list[SourceFile]
    beside: list[_Unread]


def _of(key: str, sources: Sources, data: DataConfig, storage: str, by_name: bool) -> _Found:
    if isinstance(sources, dict):
        return _Found([_side_by_side(key, sources, storage)], [])
    if sources == PYTHON_STDLIB:
        return _Found(sorted(_stdlib_files(), key=lambda file: file.uri), [])
    several = [sources] if isinstance(sources, str) else sources
    by_uri: dict[str, SourceFile] = {}
    beside: list[_Unread] = []
    for source in several:
        if source == PYTHON_STDLIB:
            by_uri |= {file.uri: file for file in _stdlib_files()}
            continue
        place, files, unread = _find(key, source, data.format, storage)
        beside.append(unread)
        if by_name and isinstance(sources, str) and not place.is_file:
            files, nameless = _split_by_name(files, place.root)
            beside.append(_Unread(source, nameless, "left out, since no split is in the name"))
        by_uri |= {file.uri: file for file in files}
    return _Found([by_uri[uri] for uri in sorted(by_uri)], beside)


def _side_by_side(key: str, sources: dict[str, str], storage: str) -> SourceFile:
    """Parallel text files, one per column."""
    files = []
    for column, source in sources.items():
        _, several, _ = _find(f"{key}.{column}", source, TXT.name, storage)
        if len(several) > 1:
            raise UserError(f"{key}.{column} = {source}: are {len(several)} files, not one")
        files.append(replace(several[0], column=column))
    return replace(files[0], beside=tuple(files[1:]))


def _stdlib_files() -> list[SourceFile]:
    paths_of_files = []
    for folder, inside, files in os.walk(sysconfig.get_path("stdlib")):
        if "site-packages" in inside:
            inside.remove("site-packages")  # not entered
        paths_of_files += [Path(folder, file) for file in files if file.endswith(".py")]
    return [_local_file(path, PYTHON.name) for path in paths_of_files if path.is_file()]


def _local_file(path: Path, kind: str) -> SourceFile:
    stat = path.stat()
    return SourceFile(str(path), kind, stat.st_size, str(stat.st_mtime_ns))


def _find(
    key: str, source: str, kind_of_all: str | None, storage: str
) -> tuple[paths.Found, list[SourceFile], _Unread]:
    """The files of a path, folder, glob or URI, and the unread files beside them."""
    refused = f"{key} = {source}"
    try:
        found = paths.find(source, storage)
    except (OSError, RuntimeError, ValueError, pa.ArrowException) as error:
        raise UserError(f"{refused}: {_reason(error)}") from error
    kinds = {entry: kind_of_all or kind_of(entry.path) for entry in found.files}
    if not (found.is_file or found.is_glob or kind_of_all):
        kinds = _without_settings(kinds)
    known = [entry for entry, kind in kinds.items() if kind is not None]
    unread = [entry for entry, kind in kinds.items() if kind is None]
    if found.is_file and not known:
        raise UserError(
            f"{refused}: is no {', '.join(offered())} file, nor one of these .gz/.zst: "
            f"{_mend(found.root)}"
        )
    hidden = [entry for entry in found.hidden if kind_of_all or kind_of(entry.path)]
    unread = [e for e in unread if not _is_debris(e)] + [e for e in hidden if not _is_debris(e)]
    if not known:
        raise UserError(f"{refused}: {_why_nothing(found, source, unread)}")
    if all(entry.size == 0 for entry in known):
        raise UserError(f"{refused}: is empty")
    for entry in known:
        if not entry.path.isprintable() and not _is_utf8(entry.path):
            raise UserError(f"{refused}: the name {entry.path!a} is not UTF-8: rename that file")
        if len(entry.path.splitlines()) > 1:
            raise UserError(f"{key}: the name {entry.path!a} holds a line's end: rename that file")
    scheme = source.split("://", 1)[0] + "://" if _is_remote(source) else ""
    files = [
        SourceFile(scheme + entry.path, kinds[entry] or "", entry.size, entry.modified)
        for entry in known
    ]
    names = {scheme + entry.path: _name(entry, found.root) for entry in unread}
    return found, files, _Unread(source, names)


def _without_settings(kinds: dict[Entry, str | None]) -> dict[Entry, str | None]:
    """The formats of the files in a folder. Beside data of other formats, a json file may hold
    settings, and is not read."""
    doubtful = {name for name, each in FORMATS.items() if each.may_be_settings}
    if not {*kinds.values()} - {None, *doubtful}:
        return kinds
    return {entry: None if kind in doubtful else kind for entry, kind in kinds.items()}


def _is_remote(source: str) -> bool:
    return "://" in source and not source.startswith("file://")


def _is_utf8(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def _reason(error: Exception) -> str:
    """The system's reason without its number and without the path, which the message has
    already."""
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    return first_line(error)


def _mend(path: str) -> str:
    """What to do with a file of an unknown format."""
    name = path.lower()
    return next((mend for ends, mend in MENDS.items() if name.endswith(ends)), "set data.format")


def _is_debris(entry: Entry) -> bool:
    """Whether an unread file is not worth a note. A hidden file with data is."""
    name = PurePosixPath(entry.path).name
    is_hidden_data = name.startswith(".") and kind_of(entry.path) is not None
    return not is_hidden_data and DEBRIS.fullmatch(name) is not None


def _name(entry: Entry, root: str) -> str:
    return paths.below(entry.path, root) + (" (a link to nothing)" if entry.size < 0 else "")


def _why_nothing(found: paths.Found, source: str, unread: list[Entry]) -> str:
    if not found.is_glob:
        names = [_name(entry, found.root) for entry in unread]
        return f"holds no {', '.join(offered())} file" + (f", but {_some(names)}" if names else "")
    if unread or found.files:
        names = [_name(entry, found.root) for entry in unread or found.files]
        return f"matches no {', '.join(offered())} file, but {_some(names)}"
    if found.folders:
        return f"matches folders alone: {source.rstrip('/')}/* takes the files in them"
    return "matches no file"


def _split_by_name(files: list[SourceFile], root: str) -> tuple[list[SourceFile], dict[str, str]]:
    """The files with the splits in their names, and the files without one. If the layout has no
    split names, all files are returned unchanged."""
    below = {file: paths.below(file.uri.split("://", 1)[-1], root) for file in files}
    splits = {file: named_split(name) for file, name in below.items()}
    if "train" not in splits.values() or not {"validation", "test"} & {*splits.values()}:
        return files, {}
    named = [
        replace(file, split=None if split == "train" else split, by_name=True)
        for file, split in splits.items()
        if split is not None
    ]
    return named, {file.uri: below[file] for file, split in splits.items() if split is None}


def named_split(path: str) -> Split | None:
    """The split in a file's name, or else in the name of the nearest folder that has one. A name
    with two splits counts as none."""
    for part in reversed(path.split("/")):
        named = {split for pattern, split in SPLIT_NAMES.items() if pattern.search(part)}
        if len(named) == 1:
            return named.pop()
        if named:
            return None
    return None


def _splits_note(files: list[SourceFile]) -> list[str]:
    counts = Counter[Split](file.split or "train" for file in files if file.by_name)
    if not counts:
        return []
    words: dict[Split, str] = {"train": "training", "validation": "validation", "test": "testing"}
    parts = [f"{counts[split]:,} for {word}" for split, word in words.items() if counts[split]]
    parts[0] = parts[0].replace(" for", f" file{'s' if counts['train'] > 1 else ''} for", 1)
    return [f"splits by their names: {', '.join(parts)}"]


def _beside_notes(beside: Iterable[_Unread], files: list[SourceFile]) -> list[str]:
    """Notes on unread files, per folder and glob. Files that another source reads do not count."""
    read = {each.uri for file in files for each in (file, *file.beside)}
    notes = []
    for source, names, reason in beside:
        left = [name for uri, name in names.items() if uri not in read]
        if left:
            verb = "are" if len(left) > 1 else "is"
            is_glob = any(character in source for character in paths.WILDCARDS)
            where = source if is_glob else f"{source.rstrip('/')}/"
            notes.append(f"{where}: {_count(len(left))} {verb} {reason}: {_some(left)}")
    return notes


def _count(files: int) -> str:
    return f"{files:,} file{'s' if files != 1 else ''}"


def _some(names: list[str]) -> str:
    names = sorted(names)
    more = f" and {len(names) - NAMED:,} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def kind_of(path: str) -> str | None:
    """The format of a file, by its name."""
    suffixes = path.rpartition("/")[2].lower().split(".")[1:]
    if suffixes and suffixes[-1] in COMPRESSIONS:
        suffixes.pop()
    known = format_of(suffixes[-1]) if suffixes else None
    return None if known is None else known.name

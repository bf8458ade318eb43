"""Lists the files of a path, folder, glob or URI, on local disks and on pyarrow's storages.

A path that exists is that path; only one that does not is taken for a glob.
"""

import os
import re
import stat
from collections import deque
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import NamedTuple
from urllib.parse import unquote

import pyarrow.fs

from orchestrator.storage.files import locate

WILDCARDS = "*?["
PREPARED = re.compile(r"prepare-[0-9a-f]{12}-[0-9a-f]{8}")  # its parent is a run
OF_A_RUN = re.compile(
    r"(prepare|tune|train|evaluate)-[0-9a-f]{12}(-[0-9a-f]{8})?|events(\.jsonl)?|endpoint\.json"
    r"|lease(\.json)?"
)
SILENT = ("_temporary", "__pycache__", "__MACOSX", "_delta_log")  # folders of other programs


NOWHERE = -1  # the size of a broken link, such as git-annex leaves for missing files


class Entry(NamedTuple):
    """A file: its path in its file system, its size and modification time."""

    path: str
    size: int
    modified: str


class Found(NamedTuple):
    """The files under a path. Files in `hidden` are not read because of their names."""

    root: str  # the file, or the folder of all files
    is_file: bool
    is_glob: bool
    files: list[Entry]
    hidden: list[Entry]
    folders: list[str]  # matched by the glob


def find(source: str, storage: str) -> Found:
    """All files of a source, unordered, without the job's storage and runs.

    Raises:
        OSError: where there is nothing, or the storage refuses.
        ValueError: where a URI is none.
    """
    name = _local(source)
    if "://" not in name:
        name = str(Path(name).expanduser().absolute())
    files, path = locate(name)
    info = files.get_file_info(path)
    if info.type == pyarrow.fs.FileType.File:
        entry = Entry(path, info.size, str(info.mtime_ns))
        return Found(path, True, False, [entry], [], [])
    if info.type == pyarrow.fs.FileType.Directory:
        root = path.rstrip("/") or "/"
        return _sorted_out(root, False, *_below(files, root, None, "", storage))
    if info.type != pyarrow.fs.FileType.NotFound:
        raise OSError("is neither a file nor a folder")
    if not any(character in path for character in WILDCARDS):
        raise FileNotFoundError("no such file or folder")
    root, rest = _glob_root(files, path)
    if files.get_file_info(root or "/").type != pyarrow.fs.FileType.Directory:
        raise FileNotFoundError(f"no such folder: {root}")
    depth = None if any("**" in part for part in rest) else len(rest)
    # As in a shell, a pattern matches hidden names only if it begins with their first character.
    shown = "".join({part[0] for part in rest if part.startswith((".", "_"))})
    entries, folders = _below(files, root or "/", depth, shown, storage)
    pattern = re.compile(re.escape(f"{root}/") + _translated("/".join(rest)))
    return _sorted_out(
        root,
        True,
        [entry for entry in entries if pattern.fullmatch(entry.path)],
        [folder for folder in folders if pattern.fullmatch(folder)],
        shown,
    )


def below(path: str, root: str) -> str:
    """A path relative to its root folder."""
    return path.removeprefix(root).lstrip("/") or PurePosixPath(path).name


def _local(source: str) -> str:
    """The path of a file:// URI; other sources unchanged."""
    if not source.startswith("file://"):
        return source
    if not source.startswith("file:///"):
        raise ValueError("a file URI has an absolute path: file:///data")
    return unquote(source.removeprefix("file://"))


def _sorted_out(
    root: str, is_glob: bool, entries: list[Entry], folders: list[str], shown: str = ""
) -> Found:
    """Separate hidden files, and leave out the files in folders of other programs."""
    files: list[Entry] = []
    hidden: list[Entry] = []
    marks = tuple(mark for mark in "._" if mark not in shown)
    for entry in entries:
        parts = below(entry.path, root).split("/")
        if any(part in SILENT or ("." in marks and part.startswith(".")) for part in parts[:-1]):
            continue
        is_hidden = bool(marks) and any(part.startswith(marks) for part in parts)
        (hidden if is_hidden or entry.size == NOWHERE else files).append(entry)
    return Found(root, False, is_glob, files, hidden, folders)


def _below(
    files: pyarrow.fs.FileSystem, root: str, depth: int | None, shown: str, storage: str
) -> tuple[list[Entry], list[str]]:
    """All files and folders below a folder, to a maximum depth."""
    if isinstance(files, pyarrow.fs.LocalFileSystem):
        return _walk(root, depth, shown, storage)
    infos = files.get_file_info(pyarrow.fs.FileSelector(root, recursive=depth != 1))
    own = f"{storage.split('://', 1)[1]}/" if "://" in storage else ""
    runs = {
        info.path.rpartition("/")[0] + "/"
        for info in infos
        if info.base_name == "lease.json" or PREPARED.fullmatch(info.base_name)
    }
    others = tuple({*runs, own} - {"", f"{root}/"})
    inside = [info for info in infos if not (others and info.path.startswith(others))]
    if f"{root}/" in runs:
        inside = [i for i in inside if not OF_A_RUN.fullmatch(below(i.path, root).split("/")[0])]
    return (
        [Entry(info.path, info.size, str(info.mtime_ns)) for info in inside if info.is_file],
        [i.path for i in inside if i.type == pyarrow.fs.FileType.Directory],
    )


def _walk(root: str, depth: int | None, shown: str, storage: str) -> tuple[list[Entry], list[str]]:
    """Local files and folders. Without a maximum depth, each folder is entered once, so that
    circles of links end. Folders come before links to them."""
    entries: list[Entry] = []
    folders: list[str] = []
    own = _identity(storage) if storage and "://" not in storage else None
    entered = {_identity(root)}
    real: deque[tuple[str, int]] = deque([(root, 1)])
    links: deque[tuple[str, int]] = deque()
    while real or links:
        folder, level = (real or links).popleft()
        if folder != root:
            identity = _identity(folder)
            if identity == own or identity is None or (depth is None and identity in entered):
                continue
            entered.add(identity)
        inside = _scan(folder, is_root=folder == root)
        for entry in inside:
            path = os.path.join(folder, entry.name)
            try:
                status = entry.stat()
            except OSError:  # deleted meanwhile, or a broken link
                if entry.is_symlink():
                    entries.append(Entry(path, NOWHERE, ""))
                continue
            if stat.S_ISREG(status.st_mode):
                entries.append(Entry(path, status.st_size, str(status.st_mtime_ns)))
            elif stat.S_ISDIR(status.st_mode):
                folders.append(path)
                hidden = entry.name in SILENT or (entry.name[0] == "." and "." not in shown)
                if not hidden and (depth is None or level < depth):
                    (links if entry.is_symlink() else real).append((path, level + 1))
    return entries, folders


def _identity(path: str) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _scan(folder: str, is_root: bool) -> Iterable[os.DirEntry[str]]:
    """The content of a folder: empty if the folder is a run; for a root that is a run, the files
    that do not belong to the run."""
    try:
        with os.scandir(folder) as scanned:
            inside = list(scanned)
    except FileNotFoundError:
        if is_root:
            raise
        return []
    names = {entry.name for entry in inside}
    if not {"events.jsonl", "lease"} <= names and not any(map(PREPARED.fullmatch, names)):
        return inside
    return [entry for entry in inside if is_root and not OF_A_RUN.fullmatch(entry.name)]


def _glob_root(files: pyarrow.fs.FileSystem, pattern: str) -> tuple[str, list[str]]:
    """The folder above the first wildcard, and the remaining parts of the pattern."""
    parts = pattern.split("/")
    for count, part in enumerate(parts):
        if any(character in part for character in WILDCARDS):
            folder = "/".join(parts[: count + 1])
            is_last = count == len(parts) - 1
            if is_last or files.get_file_info(folder).type != pyarrow.fs.FileType.Directory:
                return "/".join(parts[:count]), parts[count:]
    raise AssertionError("a glob has a wildcard")


def _translated(pattern: str) -> str:
    """A glob as a regular expression: `*` and `?` match within a folder, `**/` any number of
    folders."""
    translated = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}

    def translate(match: re.Match[str]) -> str:
        token = match[0]
        if token in translated:
            return translated[token]
        if len(token) > 1:
            members = token[1:-1].removeprefix("!").replace("\\", "\\\\").replace("^", "\\^")
            return f"[{'^' if token[1] == '!' else ''}{members}]"
        return re.escape(token)

    return re.sub(r"\*\*/|\*\*|\*|\?|\[[^]/]+\]|.", translate, pattern, flags=re.S)

"""The files below a folder, on any storage, and those of a glob."""

import os
import re
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import NamedTuple

import pyarrow.fs

from orchestrator import events
from orchestrator.folder import locate

WILDCARDS = "*?["
HIDDEN = (".", "_")
NAMED = 3  # files that a note names; of further ones it tells how many


class Entry(NamedTuple):
    """A file or a folder as a storage lists it."""

    path: str
    bytes: int
    modified: str
    is_folder: bool = False


@dataclass(frozen=True)
class Walk:
    """How to go through a folder."""

    root: str
    depth: int | None = None  # of folders below it; None: all of them
    skipped: str = ""  # the storage of the job, which is no data
    shown: tuple[str, ...] = field(default=())  # of HIDDEN: what a glob asks for by name

    def is_hidden(self, path: str) -> bool:
        """Whether the file, or a folder between it and the root, is not meant to be read."""
        below = PurePosixPath(path.removeprefix(self.root).lstrip("/"))
        hidden = tuple(mark for mark in HIDDEN if mark not in self.shown)
        return any(part.startswith(hidden) for part in below.parts)

    def is_storage(self, folder: str, names: Iterable[str]) -> bool:
        """Whether a folder is the job's storage, or a run in it where it is the root itself."""
        if not self.skipped:
            return False
        if folder == self.skipped:
            return folder != self.root
        return os.path.dirname(folder) == self.skipped and events.FILE in names


def look_up(uri: str) -> Entry | None:
    """What stands at a path or URI, if anything does."""
    filesystem, path = locate(uri)
    info = filesystem.get_file_info(path)
    if info.type == pyarrow.fs.FileType.NotFound:
        return None
    return _entry(info)


def walk(uri: str, depth: int | None, skipped: str, shown: tuple[str, ...] = ()) -> list[Entry]:
    """The files below a folder, hidden ones too, and its folders, in the order of their paths."""
    filesystem, root = locate(uri)
    plan = Walk(root, depth, _inside(uri, skipped), shown)
    if isinstance(filesystem, pyarrow.fs.LocalFileSystem):
        return sorted(_walk_local(plan))
    selector = pyarrow.fs.FileSelector(root, recursive=depth is None or depth > 0)
    found = [_entry(info) for info in filesystem.get_file_info(selector)]
    names: dict[str, list[str]] = {}
    for entry in found:
        names.setdefault(os.path.dirname(entry.path), []).append(os.path.basename(entry.path))
    stores = [folder for folder in names if plan.is_storage(folder, names[folder])]
    below = tuple(f"{folder}/" for folder in stores)
    return sorted(e for e in found if not e.path.startswith(below) and e.path not in stores)


def _walk_local(plan: Walk) -> Iterator[Entry]:
    """Below each folder once, so that a link to a folder above it ends."""
    seen: set[tuple[int, int]] = set()
    left = [(plan.root, 0)]
    while left:
        folder, depth = left.pop()
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        inside = list(os.scandir(folder))
        if plan.is_storage(folder, [each.name for each in inside]):
            continue
        for each in inside:
            try:
                status = each.stat()
            except OSError:  # a link to nothing, or one that is gone
                continue
            if stat.S_ISDIR(status.st_mode):
                yield Entry(each.path, 0, "", is_folder=True)
                # Folders such as .git and .venv hold many files, none of them meant.
                is_deep = plan.depth is not None and depth >= plan.depth
                if not is_deep and not (each.name.startswith(".") and "." not in plan.shown):
                    left.append((each.path, depth + 1))
            elif stat.S_ISREG(status.st_mode):
                yield Entry(each.path, status.st_size, str(status.st_mtime_ns))


def _entry(info: pyarrow.fs.FileInfo) -> Entry:
    if not info.is_file:
        return Entry(info.path, 0, "", is_folder=info.type == pyarrow.fs.FileType.Directory)
    return Entry(info.path, info.size, str(info.mtime_ns))


def _inside(uri: str, skipped: str) -> str:
    """A storage as a path in the source's file system; none where it is on another one."""
    if not skipped or ("://" in uri) != ("://" in skipped):
        return ""
    if "://" in uri and uri.split("://")[0] != skipped.split("://")[0]:
        return ""
    return locate(skipped)[1].rstrip("/")


def is_glob(name: str) -> bool:
    return any(character in name for character in WILDCARDS)


def glob_root(pattern: str) -> str:
    """The folder above the first part with a wildcard."""
    parts = pattern.split("/")
    fixed = parts[: next(i for i, part in enumerate(parts) if is_glob(part))]
    return "/".join(fixed) or ("/" if pattern.startswith("/") else ".")


def matching(pattern: str, skipped: str) -> tuple[list[Entry], list[Entry]]:
    """The files that a glob matches, and the folders."""
    root = glob_root(pattern)
    path = locate(pattern)[1]
    parts = path.removeprefix(locate(root)[1]).strip("/").split("/")
    depth = None if "**" in pattern else len(parts) - 1
    shown = tuple(mark for mark in HIDDEN if any(part.startswith(mark) for part in parts))
    found = walk(root, depth, skipped, shown)
    plan, regex = Walk(locate(root)[1], shown=shown), _regex(path)
    matched = [e for e in found if regex.fullmatch(e.path) and not plan.is_hidden(e.path)]
    return [e for e in matched if not e.is_folder], [e for e in matched if e.is_folder]


def _regex(pattern: str) -> re.Pattern[str]:
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


def few(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - NAMED:,} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more

"""Copies of remote shards on this machine, shared by its workers and named by their content."""

import hashlib
import os
import secrets
from pathlib import Path
from stat import S_ISREG

from orchestrator.errors import StageError
from orchestrator.storage.artifact import Shard
from orchestrator.storage.folder import Folder
from orchestrator.storage.scratch import own_folder

_whole: set[tuple[int | str, ...]] = set()  # copies that this process has verified


def local_file(folder: Folder, shard: Shard) -> Path:
    """The path of a shard on local storage, or of its copy on this machine.

    Workers share the copies: a copy gets its name once it is whole. Copies are not deleted here, so
    a machine needs as much room for temporary files as the shards that it reads take.
    """
    if folder.local_path is not None:
        return folder.local_path / shard.name
    path = own_folder("shards") / shard.sha256
    if not _is_whole(path, shard):
        try:
            content = folder.read(shard.name)
        except FileNotFoundError as error:
            raise damaged_shard(folder, shard, error, delete=folder) from error
        if hashlib.sha256(content).hexdigest() != shard.sha256:
            raise damaged_shard(folder, shard, "its SHA-256 is another", delete=folder)
        partial = f"{shard.sha256}.{secrets.token_hex(8)}"  # no two writers share it
        Folder(str(path.parent)).write(partial, content)
        os.replace(path.with_name(partial), path)
        _whole.add(_identity(path))
    return path


def damaged_shard(
    folder: Folder, shard: Shard, reason: Exception | str, delete: Folder | Path
) -> StageError:
    """The error of a damaged shard, which names what to delete."""
    text = (getattr(reason, "strerror", None) or str(reason)).split("\n")[0]
    return StageError(
        f"{folder}/{shard.name} is missing or damaged ({text}): delete {delete} and run again"
    )


def _is_whole(path: Path, shard: Shard) -> bool:
    """Whether a copy has the content of its name. Its bytes are hashed once per process."""
    try:
        identity = _identity(path)
        if not S_ISREG(path.lstat().st_mode):
            return False
        if identity not in _whole:
            with open(path, "rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != shard.sha256:
                    return False
            _whole.add(identity)
    except FileNotFoundError:
        return False
    return True


def _identity(path: Path) -> tuple[int | str, ...]:
    """Attributes that change if a file is rewritten."""
    status = path.lstat()
    return path.name, status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns

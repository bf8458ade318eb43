"""A folder for temporary files that only this user can write to.

The system's temporary folder is open to all users, so any name there may belong to another user.
"""

import os
import stat
import tempfile
from pathlib import Path

from orchestrator.errors import StageError


def own_folder(name: str) -> Path:
    """The folder `orchestrator-<user id>/<name>` of temporary files; created if it is missing.

    Raises:
        StageError: where something in its place is another user's, a link, or writable by others.
    """
    top = Path(tempfile.gettempdir()) / f"orchestrator-{os.getuid()}"
    _make_own(top)
    _make_own(top / name)
    return top / name


def _make_own(path: Path) -> None:
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = path.lstat()
    except OSError as error:
        raise StageError(f"cannot make {path}: {error.strerror}: TMPDIR names another") from error
    problem = ""
    if not stat.S_ISDIR(status.st_mode):
        problem = "is a link" if stat.S_ISLNK(status.st_mode) else "is no folder"
    elif status.st_uid != os.getuid():
        problem = "belongs to another user"
    elif status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        problem = "can be written by other users"
    if problem:
        raise StageError(f"{path} {problem}: delete it, or set TMPDIR to a folder of your own")
    if stat.S_IMODE(status.st_mode) != 0o700:
        path.chmod(0o700)  # others could read it, but have put nothing into it

"""Submitted Ray jobs: Ray copies their working directory to each node, and deletes it afterwards.

The next submission has its copy at another path, with new modification times. What lies in it is
therefore known by its path below the copy and by its content.
"""

import hashlib
import os
from pathlib import Path, PurePosixPath

from orchestrator.storage.folder import Folder, Stamp

COPIES = "working_dir_files"  # the folder that holds Ray's copies, each in a folder of its own


def find_storage(given: str, directory: Path) -> Folder:
    """The storage of a job that starts in `directory`.

    In a submitted Ray job a relative path starts at the home folder: the working directory is lost.
    """
    if "://" in given or os.path.isabs(os.path.expanduser(given)):
        return Folder(given)
    base = Path.home() if COPIES in directory.parts else directory
    return Folder(str(base / given))


def lasting_name(path: str) -> str:
    """The path, or its part below Ray's copy of the working directory."""
    parts = PurePosixPath(path).parts
    if "://" in path or COPIES not in parts:
        return path
    below = parts[parts.index(COPIES) + 2 :]
    return f"working_dir:{'/'.join(below)}"


def lasting_stamp(path: str, stamp: Stamp) -> Stamp:
    """The stamp of a file; within Ray's copy, its content takes the place of its time."""
    if lasting_name(path) == path:
        return stamp
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Stamp(stamp.size, int(digest[:15], 16))

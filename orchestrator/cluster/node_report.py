"""What a node reports on itself: its versions, its memory, what it sees of storage and sources.

Ray sends this module's functions to nodes with their code, so that they run where this package is
missing or another version. So they import all that is not Python's own while they run.
"""

import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import time
from pathlib import Path
from typing import Any

SECONDS = 3.0  # until a file is seen that another node has written
HEAD_BYTES = 65_536  # of a source file, which are compared

Report = dict[str, Any]


def report(folder: str, node: str, content: bytes, sources: dict[str, tuple[int, str]]) -> Report:
    """The report of the node that runs this.

    Args:
        folder: a folder of the storage in which the driver has written `content`.
        node: the name of the file that this node writes there.
        sources: paths with the size and the digest that the driver sees.
    """
    answer: Report = {"versions": versions(), "memory": memory(), "storage": "", "sources": ""}
    try:
        answer["storage"] = _storage_problem(folder, node, content)
    except Exception as error:
        answer["storage"] = f"cannot use it: {_reason(error)}"
    for path, expected in sources.items():
        try:
            if fingerprint(path) != expected:
                answer["sources"] = f"has another file as {path}"
        except OSError as error:
            answer["sources"] = f"cannot read {path}: {_reason(error)}"
        if answer["sources"]:
            break
    return answer


def versions() -> dict[str, str]:
    """The versions that must be the same on all nodes. Builds of torch for other devices match."""
    found = {"Python": ".".join(platform.python_version_tuple()[:2])}
    for name in ("ray", "torch"):
        try:
            found[name] = importlib.metadata.version(name).split("+")[0]
        except importlib.metadata.PackageNotFoundError:
            found[name] = "none"
    found["orchestrator"] = code()
    return found


def code() -> str:
    """This package's version and a digest of its code; `none` where it cannot be imported."""
    spec = importlib.util.find_spec("orchestrator")
    if spec is None or spec.origin is None:
        return "none"
    folder = Path(spec.origin).parent
    digest = hashlib.sha256()
    paths = sorted(folder.rglob("*.py"))
    if not paths:
        return "none"
    for path in paths:
        digest.update(f"{path.relative_to(folder)}\0".encode() + path.read_bytes() + b"\0")
    from orchestrator import __version__

    return f"{__version__} (code {digest.hexdigest()[:8]})"


def memory() -> int:
    """Bytes of memory of this machine, or of its container."""
    from ray._common.utils import get_system_memory

    return int(get_system_memory())


def fingerprint(path: str) -> tuple[int, str]:
    """A file's size and the digest of its first bytes. Raises OSError."""
    with open(path, "rb") as file:
        head = file.read(HEAD_BYTES)
        return os.fstat(file.fileno()).st_size, hashlib.sha256(head).hexdigest()


def _storage_problem(folder: str, node: str, content: bytes) -> str:
    """Read what the driver has written, then write a file; returns what is wrong, if anything."""
    from orchestrator.storage.folder import Folder

    probe = Folder(folder)
    deadline = time.monotonic() + SECONDS
    while True:  # a network file system may show a new file a moment later
        try:
            read = probe.read("driver", retry=False)
            break
        except FileNotFoundError:
            if time.monotonic() > deadline:
                return "does not see what this command writes there"
            time.sleep(0.2)
    if read != content:
        return "reads something else there than this command has written"
    try:
        probe.write(node, content)
    except Exception as error:
        return f"cannot write there: {_reason(error)}"
    return ""


def _reason(error: BaseException) -> str:
    """The system's reason, of an error or of its cause, in one line."""
    for each in (error, error.__cause__):
        if isinstance(each, OSError) and each.strerror:
            return each.strerror
    return (str(error) or type(error).__name__).splitlines()[0]

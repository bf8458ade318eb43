"""A folder of a storage, local or remote, in which files and whole folders are there or are not."""

import contextlib
import os
import secrets
import shutil
import stat
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import pyarrow as pa
import pyarrow.fs

from orchestrator.errors import (
    StageError,
    StorageError,
    StuckError,
    TryAgainError,
    UserError,
    first_line,
)
from orchestrator.storage.failures import StorageDownError, failed, passes
from orchestrator.storage.files import locate, once, open_file, tried

T = TypeVar("T")
Parts = Sequence[bytes | memoryview]  # of a file's content, in their order

ANSWER_SECONDS = 20.0  # for a storage to take its first file
MANIFEST = "manifest.json"  # written last: it makes a folder whole


class Stamp(NamedTuple):
    """What tells a file that was written anew from one that was not."""

    size: int
    modified: int  # Unix time in nanoseconds, as coarse as the storage counts it


class Folder:
    """A folder of a storage: a local path, `~` at its beginning being the user's home, or a URI
    that pyarrow.fs knows (s3://, gs://, file://).

    Remote storage that fails is asked again for a minute (`files.tried`). If it fails on, a method
    raises StorageError, which is a StageError and an OSError.
    """

    def __init__(self, uri: str) -> None:
        uri = uri.removeprefix("file://")
        self.local_path = None if "://" in uri else Path(os.path.expanduser(uri)).absolute()
        self.uri = str(self.local_path) if self.local_path is not None else uri.rstrip("/")

    def __truediv__(self, name: str) -> "Folder":
        return Folder(f"{self.uri}/{name}")

    def __str__(self) -> str:
        return self.uri

    @property
    def name(self) -> str:
        return self.uri.rsplit("/", 1)[-1]

    def write(self, name: str, *content: bytes | memoryview) -> None:
        """Write a file whole or not at all; on local storage it is on disk when this returns.

        Raises:
            StageError: where the storage refuses, with its reason.
        """
        if self.local_path is None:
            return self._ask("write", name, lambda: self._upload(name, content))
        try:
            _write_durably(self.local_path / name, content)
        except OSError as error:
            raise failed(f"cannot write {self.uri}/{name}: {_reason(error)}", error) from error

    def write_whole(self, files: Iterable[tuple[str, Parts]]) -> None:
        """Make this folder of names and contents, the manifest last, whole or not at all.

        On local storage it gets its name when all of it is on disk; elsewhere, where no folder can
        be renamed at once, its manifest makes it whole, and there must be none yet.

        Raises:
            StageError: where the storage refuses, with its reason; nothing stays behind.
        """
        if self.local_path is None:
            for name, content in files:
                self.write(name, *content)
            return
        path, temporary = self.local_path, self.local_path.with_name(self.temporary_name())
        try:
            temporary.mkdir(parents=True)
            for name, content in files:
                path = self.local_path / name
                _write_synced(temporary / name, content)
            path = self.local_path
            _sync_folder(temporary)
            os.rename(temporary, self.local_path)
            _sync_folder(self.local_path.parent)
        except OSError as error:
            raise failed(f"cannot write {path}: {_reason(error)}", error) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def temporary_name(self) -> str:
        """A name, never given twice, for this folder while it is not whole or no longer whole."""
        name = self.name.lstrip(".").split(".")[0]
        return f".{name}.{secrets.token_hex(8)}.tmp"

    def rename(self, name: str) -> "Folder":
        """Give this folder, or a file or link in its place, another name beside its old one.

        Raises:
            StageError: where the storage refuses, or cannot rename folders at all.
        """
        renamed = Folder(f"{self.uri.rsplit('/', 1)[0]}/{name}")
        try:
            if self.local_path is not None and renamed.local_path is not None:
                os.rename(self.local_path, renamed.local_path)
                _sync_folder(self.local_path.parent)
            else:
                self._remote.move(self._remote_path(""), renamed._remote_path(""))
        except (OSError, ValueError, NotImplementedError) as error:  # the latter two of pyarrow.fs
            raise failed(f"cannot rename {self} to {name}: {_reason(error)}", error) from error
        return renamed

    def read(self, name: str, *, retry: bool = True) -> bytes:
        """The content of a file. Remote storage that fails is asked once if `retry` is false.

        Raises:
            FileNotFoundError: where there is no such file.
        """
        if self.local_path is not None:
            return (self.local_path / name).read_bytes()
        with contextlib.nullcontext() if retry else once():
            return self._read_remote(name, lambda file: file.read())

    def exists(self, name: str) -> bool:
        if self.local_path is not None:
            return (self.local_path / name).exists()
        return bool(self._info(name).type != pyarrow.fs.FileType.NotFound)

    def size(self, name: str) -> int | None:
        """Bytes of a file; None where there is none, or a folder, a link or a device."""
        if self.local_path is not None:
            try:
                status = os.lstat(self.local_path / name)
            except (FileNotFoundError, NotADirectoryError):
                return None
            return status.st_size if stat.S_ISREG(status.st_mode) else None
        info = self._info(name)
        return info.size if info.type == pyarrow.fs.FileType.File else None

    @property
    def is_link(self) -> bool:
        return self.local_path is not None and self.local_path.is_symlink()

    def names(self) -> list[str]:
        """The files and folders in this folder, sorted; none where it does not exist."""
        if self.local_path is not None:
            return sorted(os.listdir(self.local_path)) if self.local_path.is_dir() else []
        return sorted(info.base_name for info in self._infos())

    def stamps(self) -> dict[str, Stamp]:
        """The files in this folder, without its folders; none where it does not exist."""
        if self.local_path is None:
            files = [i for i in self._infos() if i.type == pyarrow.fs.FileType.File]
            return {i.base_name: Stamp(i.size, i.mtime_ns or 0) for i in files}
        stamps = {}
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            for entry in os.scandir(self.local_path):
                with contextlib.suppress(FileNotFoundError):  # replaced or gone since
                    if entry.is_file():
                        status = entry.stat()
                        stamps[entry.name] = Stamp(status.st_size, status.st_mtime_ns)
        return stamps

    def head(self, name: str, length: int) -> bytes:
        """The first bytes of a file. Raises FileNotFoundError where there is no such file."""
        if self.local_path is not None:
            with open(self.local_path / name, "rb") as file:
                return file.read(length)
        return self._read_remote(name, lambda file: file.read(length))

    def tail(self, name: str, length: int) -> bytes:
        """The last bytes of a file. Raises FileNotFoundError where there is no such file."""
        if self.local_path is not None:
            with open(self.local_path / name, "rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - length))
                return file.read(length)

        def last(file: Any) -> bytes:
            file.seek(max(0, file.size() - length))
            return bytes(file.read(length))

        return self._read_remote(name, last)

    def delete(self) -> None:
        if self.local_path is None:
            self._ask("delete", "", self._delete_remote)
        elif self.is_link or self.local_path.is_file():
            with contextlib.suppress(OSError):
                self.local_path.unlink()
        else:
            shutil.rmtree(self.local_path, ignore_errors=True)

    def remove(self, name: str) -> None:
        """Delete a file of this folder, if it is there.

        Raises:
            StageError: where the storage refuses, with its reason.
        """
        if self.local_path is None:
            return self._ask("delete", name, lambda: self._remove_remote(name))
        try:
            (self.local_path / name).unlink(missing_ok=True)
        except OSError as error:
            raise failed(f"cannot delete {self.uri}/{name}: {_reason(error)}", error) from error

    def for_ray(self) -> dict[str, Any]:
        """This folder as the keywords of Ray's run configurations."""
        if self.local_path is not None:
            return {"storage_path": self.uri}
        return {"storage_path": self._remote_path(""), "storage_filesystem": self._remote}

    def _read_remote(self, name: str, read: Callable[[Any], bytes]) -> bytes:
        """What `read` makes of an opened file. Each try begins anew: between two tries, the file
        may have been rewritten."""

        def opened() -> bytes:
            with open_file(f"{self.uri}/{name}") as file:
                return read(file)

        return self._ask("read", name, opened)

    def _upload(self, name: str, content: Parts) -> None:
        path = self._remote_path(name)
        stream = self._remote.open_output_stream(path)
        try:
            for part in content:
                stream.write(part)
        except BaseException as error:
            # pyarrow cannot abandon an upload: closing it, as its destructor does, completes it.
            with contextlib.suppress(OSError, pa.ArrowException):
                stream.close()
                if not isinstance(error, OSError | pa.ArrowException):  # Ctrl-C between two parts
                    self._remote.delete_file(path)
            raise
        stream.close()

    def _remove_remote(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._remote.delete_file(self._remote_path(name))

    def _delete_remote(self) -> None:
        # The manifest first: what is left of a deletion that was killed is no artifact.
        with contextlib.suppress(FileNotFoundError):
            self._remote.delete_file(self._remote_path(MANIFEST))
        with contextlib.suppress(FileNotFoundError):
            self._remote.delete_dir(self._remote_path(""))

    def _info(self, name: str) -> pyarrow.fs.FileInfo:
        path = self._remote_path(name)
        return self._ask("read", name, lambda: self._remote.get_file_info(path))

    def _infos(self) -> list[pyarrow.fs.FileInfo]:
        selector = pyarrow.fs.FileSelector(self._remote_path(""), allow_not_found=True)
        return self._ask("list", "", lambda: self._remote.get_file_info(selector))

    def _ask(self, verb: str, name: str, work: Callable[[], T]) -> T:
        """What `work` returns; its lasting failure as an error of one line."""
        uri = f"{self.uri}/{name}".rstrip("/")
        try:
            return tried(uri, work)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError, ValueError):
            raise  # answers, not failures; ValueError: of an unknown scheme, say
        except (OSError, pa.ArrowException) as error:
            kind = StorageDownError if passes(error) else StorageError
            raise kind(f"cannot {verb} {uri}: {first_line(error)}") from error

    @property
    def _remote(self) -> pyarrow.fs.FileSystem:
        return locate(self.uri)[0]

    def _remote_path(self, name: str) -> str:
        return f"{self.uri.split('://', 1)[1]}/{name}".rstrip("/")


def no_link(path: str, flags: int) -> int:
    """An opener for `open`: who may write to a storage may not have others write elsewhere by a
    link that stands in a file's place."""
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)


def _write_durably(path: Path, content: Parts) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        _write_synced(temporary, content)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _write_synced(path: Path, content: Parts) -> None:
    """Write a file and wait until it is on disk; other threads go on meanwhile."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    try:
        for part in content:
            rest = memoryview(part)
            while rest:
                rest = rest[os.write(file, rest) :]
        os.fsync(file)
    finally:
        os.close(file)


def _sync_folder(path: Path) -> None:
    """Names too, given or taken, must be on disk to survive a power cut."""
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def check_writable(storage: str) -> None:
    """Say at once, not after an hour, that a storage takes no files.

    Raises:
        UserError: where it refuses.
        TryAgainError: where it fails in passing.
        StuckError: where it does not answer within `ANSWER_SECONDS`.
    """
    raised: list[Exception] = []

    def write() -> None:
        try:
            with once():
                Folder(storage).write(".writable", b"yes\n")
        except Exception as error:
            raised.append(error)

    # In a thread of its own: a call that waits for a network cannot be ended.
    writer = threading.Thread(target=write, name="check_writable", daemon=True)
    writer.start()
    writer.join(ANSWER_SECONDS)
    if writer.is_alive():
        raise StuckError(f"storage = {storage}: does not answer within {ANSWER_SECONDS:g} s")
    for error in raised:
        if isinstance(error, TryAgainError):
            raise TryAgainError(f"storage = {storage}: {error}") from error
        if isinstance(error, StageError | ValueError):  # ValueError: of an unknown scheme, say
            raise UserError(f"storage = {storage}: {error}") from error
        raise error

"""What stages leave in storage: folders whose manifest is written last.

No manifest, no artifact: what a killed stage leaves behind is not one, and the stage,
run again, takes from it what it can prove to be whole.
"""

import contextlib
import functools
import hashlib
import json
import os
import secrets
import shutil
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import pyarrow.fs
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    computed_field,
    model_validator,
)

from orchestrator.errors import StageError, UserError

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
MANIFEST = "manifest.json"
S3_SECONDS = 60.0  # for an answer; pyarrow would take 3 s of silence for an error
ATTEMPT = "attempt"  # holds the id of the start of a training that may write checkpoints

# A manifest names files of its own folder and nothing else: no `/`, no `..`, no absolute path.
FileName = Annotated[str, Field(pattern=r"^\w[\w.-]*$")]
RelativePath = Annotated[str, Field(pattern=r"^\w[\w.-]*(/\w[\w.-]*)*$")]


@functools.cache
def _filesystem(scheme_and_host: str) -> pyarrow.fs.FileSystem:
    found, _ = pyarrow.fs.FileSystem.from_uri(scheme_and_host)
    if isinstance(found, pyarrow.fs.S3FileSystem):
        # What an URI cannot say. Small files are to take one request, not three.
        build, (options,) = found.__reduce__()
        return build(options | {"allow_delayed_open": True, "request_timeout": S3_SECONDS})
    return found


class Folder:
    """A folder of a storage: a local path or a URI that pyarrow.fs knows (s3://, gs://, file://)."""

    def __init__(self, uri: str) -> None:
        uri = uri.removeprefix("file://")
        self.local_path = None if "://" in uri else Path(uri).absolute()
        self.uri = str(self.local_path) if self.local_path is not None else uri.rstrip("/")

    def __truediv__(self, name: str) -> "Folder":
        return Folder(f"{self.uri}/{name}")

    def __str__(self) -> str:
        return self.uri

    @property
    def name(self) -> str:
        return self.uri.rsplit("/", 1)[-1]

    def write(self, name: str, content: bytes) -> None:
        """Write a file whole or not at all; on local storage it is on disk when this returns.

        Raises:
            StageError: where the storage refuses, with its reason.
        """
        try:
            if self.local_path is None:
                with self._remote.open_output_stream(self._remote_path(name)) as stream:
                    stream.write(content)
                return
            _write_durably(self.local_path / name, content)
        except OSError as error:
            raise StageError(f"cannot write {self.uri}/{name}: {_reason(error)}") from error

    def write_whole(self, files: Iterable[tuple[str, bytes]]) -> None:
        """Make this folder of names and contents, the manifest last, whole or not at all.

        On local storage it gets its name when all of it is on disk; elsewhere, where no folder can
        be renamed at once, its manifest makes it whole, and there must be none yet.

        Raises:
            StageError: where the storage refuses, with its reason; nothing stays behind.
        """
        if self.local_path is None:
            for name, content in files:
                self.write(name, content)
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
            raise StageError(f"cannot write {path}: {_reason(error)}") from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def temporary_name(self) -> str:
        """A name, never given twice, for this folder while it is not whole or no longer whole."""
        name = self.name.lstrip(".").split(".")[0]
        return f".{name}.{os.getpid()}-{secrets.token_hex(4)}.tmp"

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
            raise StageError(f"cannot rename {self} to {name}: {_reason(error)}") from error
        return renamed

    def read(self, name: str) -> bytes:
        """Raises FileNotFoundError where there is no such file."""
        if self.local_path is not None:
            return (self.local_path / name).read_bytes()
        with self._remote.open_input_stream(self._remote_path(name)) as stream:
            content: bytes = stream.read()
        return content

    def exists(self, name: str) -> bool:
        if self.local_path is not None:
            return (self.local_path / name).exists()
        info = self._remote.get_file_info(self._remote_path(name))
        return bool(info.type != pyarrow.fs.FileType.NotFound)

    def size(self, name: str) -> int | None:
        """Bytes of a file; None where there is none, or a folder, a link or a device."""
        if self.local_path is not None:
            try:
                status = os.lstat(self.local_path / name)
            except (FileNotFoundError, NotADirectoryError):
                return None
            return status.st_size if stat.S_ISREG(status.st_mode) else None
        info = self._remote.get_file_info(self._remote_path(name))
        return info.size if info.type == pyarrow.fs.FileType.File else None

    @property
    def is_link(self) -> bool:
        return self.local_path is not None and self.local_path.is_symlink()

    def names(self) -> list[str]:
        """The files and folders in this folder, sorted; none where it does not exist."""
        if self.local_path is not None:
            return sorted(os.listdir(self.local_path)) if self.local_path.is_dir() else []
        selector = pyarrow.fs.FileSelector(self._remote_path(""), allow_not_found=True)
        return sorted(info.base_name for info in self._remote.get_file_info(selector))

    def delete(self) -> None:
        if self.local_path is None:
            # The manifest first: what is left of a deletion that was killed is no artifact.
            with contextlib.suppress(FileNotFoundError):
                self._remote.delete_file(self._remote_path(MANIFEST))
            with contextlib.suppress(FileNotFoundError):
                self._remote.delete_dir(self._remote_path(""))
        elif self.is_link or self.local_path.is_file():
            with contextlib.suppress(OSError):
                self.local_path.unlink()
        else:
            shutil.rmtree(self.local_path, ignore_errors=True)

    def for_ray(self) -> dict[str, Any]:
        """This folder as the keywords of Ray's run configurations."""
        if self.local_path is not None:
            return {"storage_path": self.uri}
        return {"storage_path": self._remote_path(""), "storage_filesystem": self._remote}

    @property
    def _remote(self) -> pyarrow.fs.FileSystem:
        scheme, rest = self.uri.split("://", 1)
        return _filesystem(f"{scheme}://{rest.split('/', 1)[0]}")

    def _remote_path(self, name: str) -> str:
        return f"{self.uri.split('://', 1)[1]}/{name}".rstrip("/")


def _write_durably(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        _write_synced(temporary, content)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _write_synced(path: Path, content: bytes) -> None:
    """Write a file and wait until it is on disk; other threads go on meanwhile."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    try:
        rest = memoryview(content)
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
    """Say at once, not after an hour, that a storage takes no files."""
    folder = Folder(storage)
    try:
        folder.write(".writable", b"yes\n")
    except (StageError, ValueError) as error:  # ValueError: of an unknown scheme, say
        raise UserError(f"storage = {storage}: {error}") from error


class Shard(BaseModel):
    """One file of prepared rows."""

    model_config = ConfigDict(frozen=True)

    name: str
    rows: int
    bytes: int
    sha256: str


class Artifact(BaseModel):
    """A finished stage's manifest. `folder` is where it lies and is not part of the file."""

    model_config = ConfigDict(
        frozen=True,
        arbitrary_types_allowed=True,
        protected_namespaces=(),
        ser_json_inf_nan="constants",
    )

    stage: ClassVar[str]

    folder: Folder = Field(exclude=True)
    seconds: float
    summary: str = Field(description="one line for the table at the end of a run")

    def commit(self) -> Self:
        """Write the manifest: from here on the artifact exists."""
        self.folder.write(MANIFEST, self.model_dump_json(indent=1).encode())
        return self

    @classmethod
    def load(cls, folder: Folder) -> Self | None:
        """The artifact of this folder, or None where no stage has finished one.

        Raises:
            StageError: where a manifest is there and cannot be read.
        """
        try:
            content = folder.read(MANIFEST)
        except (FileNotFoundError, NotADirectoryError):
            return None
        try:
            return cls.model_validate({**json.loads(content), "folder": folder})
        except (ValueError, TypeError, RecursionError) as error:
            reason = str(error).splitlines()[0]
            raise StageError(
                f"{folder}/{MANIFEST} is damaged ({reason}): delete that folder and run again"
            ) from error


class PreparedData(Artifact):
    """Encoded, shuffled shards of every split, with what encoded them."""

    stage: ClassVar[str] = "prepare"

    processor: str = Field(description="file of the tokenizer, or whatever encoded the data")
    splits: dict[Split, list[Shard]]
    documents: dict[str, int] = Field(description="kept, empty, duplicate and quarantined ones")
    source_bytes: int

    def rows(self, split: Split) -> int:
        return sum(shard.rows for shard in self.splits[split])


class Sweep(Artifact):
    """What the trials found."""

    stage: ClassVar[str] = "tune"

    best: dict[str, Any] = Field(description="overrides of the best trial")
    trials: list[dict[str, Any]]


class Checkpoint(Artifact):
    """A model and the state of its optimizers after `step` steps."""

    stage: ClassVar[str] = "train"

    step: int = Field(ge=0)
    total_steps: int | None = Field(description="None: a time budget not yet turned into steps")
    metrics: dict[str, float] = Field(description="of the validation at this step, else empty")
    history: list[dict[str, float]] = Field(description="the learning curve up to this step")
    samples: str = Field(description="digest of the row numbers of all steps, in their order")
    made_by: dict[str, Any] = Field(description="what must not change for it to be continued")
    files: dict[FileName, str] = Field(description="SHA-256 of each file")
    sizes: dict[FileName, int] = Field(description="bytes of each file")

    @computed_field(description="SHA-256 of all the rest of this manifest")  # type: ignore[prop-decorator]
    @property
    def digest(self) -> str:
        return hashlib.sha256(self.model_dump_json(exclude={"digest"}).encode()).hexdigest()

    @model_validator(mode="wrap")
    @classmethod
    def _is_as_written(cls, content: Any, build: ModelWrapValidatorHandler[Self]) -> Self:
        checkpoint = build(content)
        written = content.get("digest") if isinstance(content, dict) else None
        if written not in (None, checkpoint.digest):
            raise ValueError("its digest is not that of its content")
        return checkpoint


class Training(Artifact):
    """A finished training run: which of its checkpoints is the best, and by what measure."""

    stage: ClassVar[str] = "train"

    best_checkpoint: RelativePath
    steps: int
    metrics: dict[str, float]
    history: list[dict[str, float]]

    def checkpoint(self) -> Checkpoint:
        """Raises StageError where the checkpoint has been deleted since."""
        checkpoint = Checkpoint.load(self.folder / self.best_checkpoint)
        if checkpoint is None:
            raise StageError(
                f"{self.folder}/{self.best_checkpoint} is gone: delete {self.folder} and run again"
            )
        return checkpoint


class Evaluation(Artifact):
    """Metrics of the test split beside those of simple baselines."""

    stage: ClassVar[str] = "evaluate"

    metrics: dict[str, float]
    baselines: dict[str, dict[str, float]]

"""What stages leave in storage: folders whose manifest is written last.

No manifest, no artifact: what a killed stage leaves behind is not one, and the stage,
run again, takes from it what it can prove to be whole.
"""

import contextlib
import functools
import json
import os
import shutil
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import pyarrow.fs
from pydantic import BaseModel, ConfigDict, Field

from orchestrator.errors import StageError, UserError

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
MANIFEST = "manifest.json"


@functools.cache
def _filesystem(scheme_and_host: str) -> pyarrow.fs.FileSystem:
    if scheme_and_host.startswith("s3://"):
        scheme_and_host += "?allow_delayed_open=true"  # small files in one request, not in three
    return pyarrow.fs.FileSystem.from_uri(scheme_and_host)[0]


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

    def names(self) -> list[str]:
        """The files and folders in this folder, sorted; none where it does not exist."""
        if self.local_path is not None:
            return sorted(os.listdir(self.local_path)) if self.local_path.is_dir() else []
        selector = pyarrow.fs.FileSelector(self._remote_path(""), allow_not_found=True)
        return sorted(info.base_name for info in self._remote.get_file_info(selector))

    def delete(self) -> None:
        if self.local_path is not None:
            shutil.rmtree(self.local_path, ignore_errors=True)
        else:
            with contextlib.suppress(FileNotFoundError):
                self._remote.delete_dir(self._remote_path(""))

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
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)  # the new name itself survives a power cut
    finally:
        os.close(directory)


def _reason(error: OSError) -> str:
    return error.strerror or str(error)


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

    step: int
    total_steps: int
    metrics: dict[str, float]
    history: list[dict[str, float]] = Field(description="the learning curve up to this step")
    files: dict[str, str] = Field(description="SHA-256 of each file")


class Training(Artifact):
    """A finished training run: which of its checkpoints is the best, and by what measure."""

    stage: ClassVar[str] = "train"

    best_checkpoint: str
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

"""Storage that fails in passing: artifacts are read of it again, as sources are."""

import errno
from pathlib import Path
from typing import Any

import pyarrow.fs
import pytest

from orchestrator.data.config import DataConfig
from orchestrator.data.rows import read_rows
from orchestrator.data.sources import find_files
from orchestrator.errors import StorageError
from orchestrator.storage import files as storage_files
from orchestrator.storage.artifact import Evaluation
from orchestrator.storage.files import WAITS
from orchestrator.storage.folder import Folder

PASSING = OSError(errno.EIO, "slow down")


class FailingStore:
    """A storage whose next files cannot be opened, or read, for the errors it is given."""

    def __init__(self, root: Path) -> None:
        self.store = pyarrow.fs.SubTreeFileSystem(str(root), pyarrow.fs.LocalFileSystem())
        self.opening: list[Exception] = []
        self.reading: list[Exception] = []
        self.opened = 0

    def open_input_file(self, path: str) -> Any:
        self.opened += 1
        if self.opening:
            raise self.opening.pop(0)
        return FailingFile(self.store.open_input_file(path), self.reading)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)


class FailingFile:
    def __init__(self, file: pyarrow.NativeFile, errors: list[Exception]) -> None:
        self.file, self.errors = file, errors

    def __enter__(self) -> "FailingFile":
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def read(self, *length: int) -> bytes:
        if self.errors:
            self.file.read(1)  # as much has come before
            raise self.errors.pop(0)
        return self.file.read(*length)

    def readinto(self, buffer: Any) -> int:
        if self.errors:
            raise self.errors.pop(0)
        return self.file.readinto(buffer)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FailingStore:
    store = FailingStore(tmp_path)
    monkeypatch.setattr(storage_files, "_filesystem", lambda scheme_and_host: store)
    monkeypatch.setattr(storage_files, "WAITS", (0.0,) * len(WAITS))
    return store


@pytest.fixture
def folder(store: FailingStore) -> Folder:
    folder = Folder("toy://bucket/run")
    store.create_dir("bucket/run")
    folder.write("a", b"some content")
    return folder


def test_an_artifact_is_loaded_over_passing_errors(folder: Folder, store: FailingStore) -> None:
    Evaluation(folder=folder, seconds=1.0, summary="", metrics={}, baselines={}).commit()
    store.opening, store.reading = [PASSING] * 2, [PASSING] * 2
    assert Evaluation.load(folder) is not None
    assert store.opened == 5


def test_each_way_to_read_a_file_is_tried_again(folder: Folder, store: FailingStore) -> None:
    for read, content in (
        (lambda: folder.read("a"), b"some content"),
        (lambda: folder.head("a", 4), b"some"),
        (lambda: folder.tail("a", 7), b"content"),
    ):
        store.opening[:], store.reading[:] = [PASSING], [PASSING]
        assert read() == content


def test_the_rows_of_a_source_are_read_over_the_same_errors(store: FailingStore) -> None:
    store.create_dir("bucket/data")
    Folder("toy://bucket/data").write("a.txt", b"one\ntwo\n")
    data = DataConfig(source="toy://bucket/data", lines=True)
    (file,) = find_files(data).files
    store.opening, store.reading = [PASSING], [PASSING]
    rows = list(read_rows(file, data.reading({"text": "text"})))
    assert rows == [{"text": "one"}, {"text": "two"}]


def test_an_error_that_stays_is_raised_at_last(folder: Folder, store: FailingStore) -> None:
    store.opening = [PASSING] * 99
    with pytest.raises(OSError, match="slow down"):
        folder.read("a")
    assert store.opened == 1 + len(WAITS)


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (FileNotFoundError("none"), FileNotFoundError),
        (PermissionError("no"), StorageError),
        (OSError("AWS Error ACCESS_DENIED"), StorageError),
    ],
)
def test_an_error_that_no_wait_mends_is_raised_at_once(
    error: Exception, raised: type[Exception], folder: Folder, store: FailingStore
) -> None:
    store.opening = [error]
    with pytest.raises(raised):
        folder.read("a")
    assert store.opened == 1


def test_a_storage_that_answers_slowly_is_not_tried_for_ever(
    folder: Folder, store: FailingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage_files, "PATIENCE", -1.0)  # as if the first try had taken so long
    store.opening = [PASSING] * 99
    with pytest.raises(StorageError, match="cannot read toy://bucket/run/a: "):
        folder.read("a")
    assert store.opened == 1


def test_a_reader_may_decline_to_wait(folder: Folder, store: FailingStore) -> None:
    store.reading = [PASSING]
    with pytest.raises(OSError, match="slow down"):
        folder.read("a", retry=False)


def test_an_unknown_scheme_is_told_at_once() -> None:
    with pytest.raises(ValueError, match="nosuch"):
        Folder("nosuch://bucket/run").read("a")

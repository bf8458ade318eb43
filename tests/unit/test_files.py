"""The one way to files: what is tried again, and what is not."""

import errno
from pathlib import Path

import pyarrow.fs
import pytest

from orchestrator.storage import files
from orchestrator.storage.folder import Folder


class Flaky(pyarrow.fs.FileSystemHandler):
    """Handlers are abstract; only opening is asked for here."""

    def __init__(self, errors: list[OSError]) -> None:
        self.errors = errors
        self.opened = 0

    def open_input_stream(self, path: str) -> pyarrow.NativeFile:
        self.opened += 1
        if self.errors:
            raise self.errors.pop(0)
        return pyarrow.PythonFile(pyarrow.BufferReader(path.encode()), mode="r")

    open_input_file = open_input_stream

    def _unused(self, *_: object, **__: object) -> None:
        raise NotImplementedError

    copy_file = create_dir = delete_dir = delete_dir_contents = _unused  # type: ignore[assignment]
    delete_file = delete_root_dir_contents = get_file_info = move = _unused  # type: ignore[assignment]
    get_file_info_selector = get_type_name = normalize_path = _unused  # type: ignore[assignment]
    open_append_stream = open_output_stream = _unused  # type: ignore[assignment]


Flaky.normalize_path = lambda self, path: path  # type: ignore[assignment,method-assign]
Flaky.get_type_name = lambda self: "flaky"  # type: ignore[assignment,method-assign]


@pytest.fixture
def flaky(monkeypatch: pytest.MonkeyPatch) -> Flaky:
    handler = Flaky([])
    filesystem = pyarrow.fs.PyFileSystem(handler)
    monkeypatch.setattr(files, "_filesystem", lambda _: filesystem)
    monkeypatch.setattr(files, "WAITS", (0.0, 0.0))
    return handler


def test_an_artifact_is_read_again_after_a_passing_error(flaky: Flaky) -> None:
    flaky.errors = [OSError(errno.EIO, "a bad moment"), OSError(errno.ETIMEDOUT, "too slow")]
    assert Folder("s3://bucket/run").read("a.json") == b"bucket/run/a.json"
    assert flaky.opened == 3


def test_an_error_that_goes_on_is_raised_after_the_last_try(flaky: Flaky) -> None:
    flaky.errors = [OSError(errno.EIO, f"try {number}") for number in range(9)]
    with pytest.raises(OSError, match="try 2"):
        Folder("s3://bucket/run").read("a.json")
    assert flaky.opened == 3


@pytest.mark.parametrize("error", [PermissionError("no"), OSError("AWS Error ACCESS_DENIED")])
def test_an_error_that_lasts_is_raised_at_once(flaky: Flaky, error: OSError) -> None:
    flaky.errors = [error]
    with pytest.raises(OSError, match=str(error)):
        Folder("s3://bucket/run").read("a.json")
    assert flaky.opened == 1


def test_a_lease_is_not_kept_waiting(flaky: Flaky) -> None:
    flaky.errors = [OSError(errno.EIO, "a bad moment")]
    with pytest.raises(OSError, match="a bad moment"):
        Folder("s3://bucket/run").read("lease.json", patient=False)


def test_a_missing_file_is_not_waited_for(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Folder(str(tmp_path)).read("none")  # WAITS would take a minute

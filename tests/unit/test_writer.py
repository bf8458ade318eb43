"""Records are written beside a sweep, the last of each file, whatever the storage does."""

import json
import threading
from pathlib import Path

import pytest

from orchestrator.errors import StageError
from orchestrator.storage.folder import Folder
from orchestrator.tune import writer
from orchestrator.tune.writer import Writer


def test_the_last_content_of_each_file_is_written(tmp_path: Path) -> None:
    records = Writer(Folder(str(tmp_path)))
    for number in range(200):
        records.put(f"{number % 3}.json", json.dumps(number).encode())
    records.flush()
    found = {path.name: json.loads(path.read_bytes()) for path in tmp_path.glob("*.json")}
    assert found == {"0.json": 198, "1.json": 199, "2.json": 197}
    records.close()


def test_nobody_waits_for_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first write hangs; what comes meanwhile is written once, in its last state."""
    gate, writes, write = threading.Event(), [], Folder.write

    def slow(folder: Folder, name: str, *content: bytes) -> None:
        gate.wait(10)
        writes.append(content[0])
        write(folder, name, *content)

    monkeypatch.setattr(Folder, "write", slow)
    records = Writer(Folder(str(tmp_path)))
    for number in range(50):
        records.put("a.json", str(number).encode())
    gate.set()
    records.close()
    assert (tmp_path / "a.json").read_bytes() == b"49"
    assert len(writes) <= 3


def test_a_storage_that_refuses_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusals, write = [1, 2], Folder.write

    def refusing(folder: Folder, name: str, *content: bytes) -> None:
        if refusals:
            refusals.pop()
            raise StageError("no space left")
        write(folder, name, *content)

    monkeypatch.setattr(writer, "RETRY_SECONDS", 0.01)
    monkeypatch.setattr(Folder, "write", refusing)
    records = Writer(Folder(str(tmp_path)))
    records.put("a.json", b"1")
    records.close()
    assert (tmp_path / "a.json").read_bytes() == b"1"


def test_a_storage_that_never_takes_it_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusing(folder: Folder, name: str, *content: bytes) -> None:
        raise StageError("read only")

    monkeypatch.setattr(writer, "RETRY_SECONDS", 0.01)
    monkeypatch.setattr(writer, "PATIENCE", 0.1)
    monkeypatch.setattr(Folder, "write", refusing)
    records = Writer(Folder(str(tmp_path)))
    records.put("a.json", b"1")
    records.close()
    assert list(tmp_path.iterdir()) == []

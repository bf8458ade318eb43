"""A run's events: written whatever happens, read whatever is left of them."""

import json
import os
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.fs
import pytest
import torch

import orchestrator.storage.events
import orchestrator.storage.files
from orchestrator.storage.events import EventLog, describe, read_events
from orchestrator.storage.folder import Folder


@pytest.fixture
def remote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folder:
    filesystem = pyarrow.fs.SubTreeFileSystem(str(tmp_path), pyarrow.fs.LocalFileSystem())
    (tmp_path / "host/a/events").mkdir(parents=True)  # as no object store needs
    monkeypatch.setattr(orchestrator.storage.files, "_filesystem", lambda _: filesystem)
    return Folder("memory-test://host/a")


@pytest.fixture(params=["local", "remote"])
def folder(request: pytest.FixtureRequest, remote: Folder, tmp_path: Path) -> Folder:
    return remote if request.param == "remote" else Folder(str(tmp_path / "runs" / "a"))


def names(folder: Folder) -> list[str]:
    return [event["event"] for event in read_events(folder)]


def test_events_come_back_in_order_with_their_fields_and_times(folder: Folder) -> None:
    before = datetime.now(UTC) - timedelta(milliseconds=1)
    events = EventLog(folder)
    events.write("train", "checkpoint", step=3, name="step-3")
    events.write("train", "worker lost", error='a\nb\u2028"c" \\ é')
    first, second = read_events(folder)
    assert (first["stage"], first["event"], first["step"]) == ("train", "checkpoint", 3)
    assert second["error"] == 'a\nb\u2028"c" \\ é'
    assert before <= datetime.fromisoformat(first["time"]) <= datetime.fromisoformat(second["time"])


def test_there_is_no_story_where_nothing_has_happened(folder: Folder) -> None:
    assert read_events(folder / "nothing") == []


def test_a_second_log_goes_on_with_the_story(folder: Folder) -> None:
    for name in ("one", "two", "three"):
        EventLog(folder).write("train", name)
    assert names(folder) == ["one", "two", "three"]


def test_events_of_many_threads_are_all_there(folder: Folder) -> None:
    events = EventLog(folder)

    def write(worker: int) -> None:
        for step in range(25):
            events.write("train", f"{worker}", step=step)

    threads = [threading.Thread(target=write, args=(worker,)) for worker in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = read_events(folder)
    assert len(found) == 100
    for worker in range(4):
        assert [e["step"] for e in found if e["event"] == str(worker)] == list(range(25))


class Unshowable:
    def __str__(self) -> str:
        raise RuntimeError


def circular() -> list[Any]:
    values: list[Any] = []
    values.append(values)
    return values


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (np.float32(0.5), 0.5),
        (np.int64(7), 7),
        (np.arange(3), [0, 1, 2]),
        (torch.ones(2), [1.0, 1.0]),
        (float("nan"), "nan"),
        ({1: np.inf}, {"1": "inf"}),
        (Path("/a/b"), "/a/b"),
        (ValueError("no"), "no"),
        ("\udc80", "?"),
        (Unshowable(), "<Unshowable>"),
        (circular(), "<list>"),
        pytest.param(10**5000, "<int>", id="an integer too long to print"),
    ],
)
def test_any_value_becomes_strict_json(value: Any, written: Any, tmp_path: Path) -> None:
    EventLog(Folder(str(tmp_path))).write("train", "step", value=value, after=1)

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    (line,) = (tmp_path / "events.jsonl").read_text().splitlines()
    event = json.loads(line, parse_constant=refuse)
    assert (event["value"], event["after"]) == (written, 1)


def test_a_field_cannot_take_the_place_of_the_time(tmp_path: Path) -> None:
    EventLog(Folder(str(tmp_path))).write("train", "step", time="noon")
    assert names(Folder(str(tmp_path))) == ["step"]


@pytest.mark.parametrize("torn", [b'{"time": "2026-01-01T00:00:0', b"\xff\xfe", b"[" * 100_000])
def test_a_torn_line_is_passed_over_and_the_next_one_is_whole(torn: bytes, tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    EventLog(folder).write("train", "before")
    with open(tmp_path / "events.jsonl", "ab") as file:
        file.write(torn)
    assert names(folder) == ["before"]
    EventLog(folder).write("train", "after")
    assert names(folder) == ["before", "after"]


@pytest.mark.parametrize("line", ["3", "[]", "{}", '{"time": 1}', '{"time": "noon"}', ""])
def test_a_line_that_is_no_event_is_passed_over(line: str, tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").write_text(f"{line}\n")
    assert read_events(Folder(str(tmp_path))) == []


def test_events_wait_for_a_storage_that_refuses_them_and_one_warning_tells(
    folder: Folder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*arguments: Any) -> None:
        raise OSError("no space left on device")

    events = EventLog(folder)
    events.write("train", "before")
    with monkeypatch.context() as full:
        full.setattr(os, "write", refuse)
        full.setattr(Folder, "write", refuse)
        events.write("train", "meanwhile")
        events.write("train", "meanwhile too")
    events.write("train", "after")
    assert names(folder) == ["before", "meanwhile", "meanwhile too", "after"]
    assert [record.message for record in caplog.records] == [
        "events cannot be written: no space left on device"
    ]


def test_the_last_event_is_written_too_once_the_storage_is_back(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(orchestrator.storage.events, "RETRY_SECONDS", 0.05)
    events = EventLog(folder)
    with monkeypatch.context() as away:
        away.setattr(os, "write", lambda *_: 1 / 0)
        away.setattr(Folder, "write", lambda *_: 1 / 0)
        events.write("train", "last")
        time.sleep(0.12)  # and one attempt more is refused
        assert names(folder) == []
    deadline = time.monotonic() + 10
    while not names(folder) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert names(folder) == ["last"]


def test_a_line_for_which_there_was_half_the_room_is_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.write
    events = EventLog(Folder(str(tmp_path)))
    with monkeypatch.context() as full:
        full.setattr(os, "write", lambda file, line: write(file, line[: len(line) // 2]))
        events.write("train", "one")
    events.write("train", "two")
    assert names(Folder(str(tmp_path))) == ["one", "two"]


def test_the_newest_events_are_remembered_while_the_storage_is_away(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(orchestrator.storage.events, "REMEMBERED", 3)
    events = EventLog(folder)
    with monkeypatch.context() as away:
        away.setattr(orchestrator.storage.folder.Folder, "write", lambda *_: 1 / 0)
        away.setattr(os, "open", lambda *_: 1 / 0)
        for name in "abcd":
            events.write("train", name)
    events.write("train", "e")
    assert names(folder) == ["c", "d", "e"]


def test_many_events_of_one_remote_run_are_several_objects(
    remote: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(orchestrator.storage.events, "REMEMBERED", 3)
    events = EventLog(remote)
    for name in "abcdefg":
        events.write("train", name)
    assert names(remote) == list("abcdefg")
    assert len((remote / "events").names()) == 3


def test_an_event_is_described_in_pairs() -> None:
    event = {"time": "", "stage": "train", "event": "x", "exit_code": 1, "loss": 2 / 3, "of": [1]}
    assert describe({**event, "error": " it\nbroke "}) == (
        "exit code 1, loss 0.66667, of [1], error it\nbroke"
    )


def test_events_are_not_written_through_a_link(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_text("alias")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "events.jsonl").symlink_to(other)
    EventLog(Folder(str(tmp_path / "run"))).write("train", "began")
    assert other.read_text() == "alias"

"""Folders that write whole files, and manifests that make an artifact exist."""

import errno
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path

import pyarrow.fs
import pytest
from pydantic import ValidationError

from orchestrator.errors import StageError, UserError
from orchestrator.storage import files as storage_files
from orchestrator.storage.artifact import (
    Checkpoint,
    Evaluation,
    PreparedData,
    Shard,
    Sweep,
    Training,
)
from orchestrator.storage.folder import MANIFEST, Folder, check_writable


@pytest.fixture(params=["path", "file URI", "object store"])
def folder(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Folder:
    """A folder that does not exist yet, on each kind of storage."""
    if request.param == "path":
        return Folder(str(tmp_path / "run"))
    if request.param == "file URI":
        return Folder((tmp_path / "run").as_uri())
    memory = pytest.importorskip("fsspec").filesystem("memory")
    memory.store.clear()
    memory.pseudo_dirs[:] = [""]
    store = pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(memory))
    monkeypatch.setattr(storage_files, "_filesystem", lambda scheme_and_host: store)
    return Folder("toy://bucket/run")


def files_under(path: Path) -> set[str]:
    return {str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()}


def prepared_in(folder: Folder) -> PreparedData:
    return PreparedData(
        folder=folder,
        seconds=1.25,
        summary="7 rows",
        processor="tokenizer.json",
        splits={"train": [Shard(name="a", rows=7, bytes=9, sha256="0f")], "test": []},
        documents={"kept": 3, "empty": 1},
        source_bytes=1234,
    )


def a_checkpoint(folder: Folder, metrics: dict[str, float]) -> Checkpoint:
    return Checkpoint(
        folder=folder,
        seconds=1,
        summary="",
        step=5,
        total_steps=5,
        metrics=metrics,
        history=[{"step": 5, **metrics}],
        precision="fp32",
        samples="0f",
        made_by={"train.lr": 0.1},
        files={"a.bin": "0f"},
        sizes={"a.bin": 3},
    )


def test_what_is_written_is_read_back_and_replaced_whole(folder: Folder) -> None:
    folder.write("a.bin", b"first\x00and long")
    folder.write("a.bin", b"second\xff")
    assert folder.read("a.bin") == b"second\xff"


@pytest.mark.parametrize(
    ("given", "path"),
    [
        ("~", ""),
        ("~/runs", "/runs"),
        ("~no such user/x", None),
        ("a/~/b", None),
        ("s3://~/b", None),
    ],
)
def test_a_path_begins_at_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str, path: str | None
) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.chdir(tmp_path)
    other = given if "://" in given else f"{tmp_path}/{given}"
    assert Folder(given).uri == (other if path is None else f"/home/somebody{path}")


def test_writers_of_one_name_do_not_meet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As two hosts do that have a process of the same number, and two threads of one process."""
    whole, seen, replace = Folder(str(tmp_path)), set[str](), os.replace

    def write_another(source: str, target: str) -> None:
        seen.add(str(source))
        if len(seen) == 1:
            whole.write("a", b"another's, longer")
        replace(source, target)

    monkeypatch.setattr(os, "replace", write_another)
    whole.write("a", b"first")
    assert len(seen) == 2
    assert (whole.names(), whole.read("a")) == (["a"], b"first")
    assert (whole / "b").temporary_name() != (whole / "b").temporary_name()


def test_names_lists_files_and_folders_in_order(folder: Folder) -> None:
    assert folder.names() == []
    for name in ("b.txt", "a.txt", "inner/c.txt"):
        folder.write(name, b"x")
    assert folder.names() == ["a.txt", "b.txt", "inner"]
    assert (folder / "inner").names() == ["c.txt"]
    assert (folder / "inner").read("c.txt") == b"x"


def test_a_file_exists_once_it_is_written(folder: Folder) -> None:
    assert not folder.exists("a.txt")
    folder.write("a.txt", b"")
    assert folder.exists("a.txt")
    assert not folder.exists("b.txt")


def test_reading_what_is_not_there_raises_file_not_found(folder: Folder) -> None:
    with pytest.raises(FileNotFoundError):
        folder.read("a.txt")


def test_delete_takes_the_folder_and_leaves_its_neighbours(folder: Folder) -> None:
    (folder / "old").write("inner/a.txt", b"x")
    (folder / "older").write("b.txt", b"x")
    (folder / "old").delete()
    assert folder.names() == ["older"]
    assert not (folder / "old").exists("inner/a.txt")


def test_deleting_a_folder_that_is_not_there_does_nothing(folder: Folder) -> None:
    folder.write("a.txt", b"x")
    (folder / "gone").delete()
    assert folder.names() == ["a.txt"]


def test_a_file_has_a_size_and_nothing_else_has(folder: Folder) -> None:
    assert folder.size("a.txt") is None
    folder.write("a.txt", b"four")
    folder.write("inner/b.txt", b"")
    assert (folder.size("a.txt"), folder.size("inner/b.txt")) == (4, 0)
    assert folder.size("inner") is None
    assert folder.size("a.txt/b.txt") is None


def test_stamps_tell_which_files_were_written_anew(folder: Folder) -> None:
    assert folder.stamps() == {}
    for name in ("a.txt", "b.txt", "inner/c.txt"):
        folder.write(name, b"x")
    before = folder.stamps()
    assert sorted(before) == ["a.txt", "b.txt"]
    assert folder.stamps() == before
    folder.write("b.txt", b"longer")
    after = folder.stamps()
    assert {name for name in after if after[name] != before[name]} == {"b.txt"}
    assert after["b.txt"].size == 6


def test_the_tail_of_a_file_is_its_last_bytes(folder: Folder) -> None:
    folder.write("a.txt", b"0123456789")
    assert folder.tail("a.txt", 3) == b"789"
    assert folder.tail("a.txt", 30) == b"0123456789"
    with pytest.raises(FileNotFoundError):
        folder.tail("b.txt", 3)


def test_a_link_is_no_file_of_a_folder(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path / "real"))
    folder.write("a.txt", b"x")
    (tmp_path / "real" / "b.txt").symlink_to(tmp_path / "real" / "a.txt")
    (tmp_path / "other").symlink_to(tmp_path / "real")
    assert folder.size("b.txt") is None
    assert Folder(str(tmp_path / "other")).is_link and not folder.is_link
    Folder(str(tmp_path / "other")).delete()
    assert folder.names() == ["a.txt", "b.txt"]
    assert sorted(os.listdir(tmp_path)) == ["real"]


def test_a_renamed_folder_keeps_what_is_in_it(folder: Folder) -> None:
    (folder / "old").write("inner/a.txt", b"x")
    renamed = (folder / "old").rename("new")
    assert (renamed.name, folder.names()) == ("new", ["new"])
    assert (folder / "new").read("inner/a.txt") == b"x"
    with pytest.raises(StageError, match=r"cannot rename .*/old to newer"):
        (folder / "old").rename("newer")


def test_a_folder_is_made_whole_from_its_files_one_at_a_time(folder: Folder) -> None:
    seen = []

    def files() -> Iterator[tuple[str, list[bytes]]]:
        for name in ("b.bin", "a.bin", MANIFEST):
            seen.append(name)
            yield name, [name.encode()]

    (folder / "step").write_whole(files())
    assert seen == ["b.bin", "a.bin", MANIFEST]
    assert (folder / "step").names() == ["a.bin", "b.bin", MANIFEST]
    assert (folder / "step").read("a.bin") == b"a.bin"
    assert folder.names() == ["step"]


def test_a_folder_that_cannot_be_made_whole_is_not_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, write, written = Folder(str(tmp_path)), os.write, []

    def full(file: int, content: memoryview) -> int:
        if len(written) == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written.append(bytes(content[:2]))
        return write(file, content[:2])  # as disks may: not all at once

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(StageError, match=rf"cannot write {tmp_path}/step/b\.bin: No space left"):
        (folder / "step").write_whole([("a.bin", [b"abcd"]), ("b.bin", [b"ef", b"gh"])])
    assert written == [b"ab", b"cd", b"ef"]
    assert files_under(tmp_path) == set() and folder.names() == []


def test_a_folder_made_whole_replaces_no_other(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    (folder / "step").write("a.bin", b"first")
    with pytest.raises(StageError, match=f"cannot write {tmp_path}/step: "):
        (folder / "step").write_whole([("a.bin", [b"second"])])
    assert (folder / "step").read("a.bin") == b"first"
    assert folder.names() == ["step"]


def test_a_folder_is_named_by_its_last_part(folder: Folder) -> None:
    assert (folder / "step-3").name == "step-3"
    assert Folder(f"{folder}/").name == folder.name == "run"


def test_a_file_uri_is_its_local_path(tmp_path: Path) -> None:
    Folder(tmp_path.as_uri()).write("a.txt", b"x")
    assert (tmp_path / "a.txt").read_bytes() == b"x"


@pytest.mark.parametrize("name", ["a.txt", "inner/a.txt"])
def test_a_file_in_place_of_the_folder_raises_with_the_path(tmp_path: Path, name: str) -> None:
    (tmp_path / "run").write_bytes(b"not a folder")
    with pytest.raises(StageError, match=f"{tmp_path}/run/{name}"):
        Folder(str(tmp_path / "run")).write(name, b"x")
    assert files_under(tmp_path) == {"run"}


def test_a_folder_in_place_of_the_file_raises_and_leaves_no_temporary_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt").mkdir()
    with pytest.raises(StageError, match=f"{tmp_path}/a.txt"):
        Folder(str(tmp_path)).write("a.txt", b"x")
    assert files_under(tmp_path) == set()


def test_a_full_disk_raises_with_its_reason_and_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Folder(str(tmp_path))
    folder.write("a.txt", b"old")

    def full(file: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StageError, match=rf"{tmp_path}/a\.txt.*No space left"):
        folder.write("a.txt", b"new")
    assert files_under(tmp_path) == {"a.txt"}
    assert folder.read("a.txt") == b"old"


def test_storage_that_takes_no_files_is_the_users_error(tmp_path: Path) -> None:
    (tmp_path / "runs").write_bytes(b"not a folder")
    with pytest.raises(UserError, match=f"storage = {tmp_path}/runs"):
        check_writable(str(tmp_path / "runs"))
    check_writable(str(tmp_path / "others"))


def test_a_folder_without_a_manifest_holds_no_artifact(folder: Folder) -> None:
    assert PreparedData.load(folder) is None
    folder.write("shard.arrow", b"left behind")
    assert PreparedData.load(folder) is None


def test_a_file_in_place_of_the_folder_holds_no_artifact(tmp_path: Path) -> None:
    (tmp_path / "run").write_bytes(b"not a folder")
    assert PreparedData.load(Folder(str(tmp_path / "run"))) is None


def test_a_committed_artifact_is_loaded_as_it_was(folder: Folder) -> None:
    artifacts = [
        prepared_in(folder),
        Sweep(
            folder=folder,
            seconds=0.1,
            summary="",
            best={"train.lr": 0.1},
            best_trial=0,
            trials=[{"a": [1]}],
        ),
        Evaluation(
            folder=folder, seconds=1e-9, summary="é", metrics={"x": 0.1 + 0.2}, baselines={}
        ),
    ]
    for committed in artifacts:
        assert committed.commit() is committed
        assert type(committed).load(folder) == committed


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_a_metric_that_is_no_finite_number_can_be_loaded_again(
    tmp_path: Path, value: float
) -> None:
    folder = Folder(str(tmp_path))
    Evaluation(folder=folder, seconds=1, summary="", metrics={"x": value}, baselines={}).commit()
    json.loads(folder.read(MANIFEST), parse_constant=pytest.fail)  # strict JSON
    loaded = Evaluation.load(folder)
    assert loaded is not None
    assert loaded.metrics["x"] == pytest.approx(value, nan_ok=True)


def test_an_artifact_can_be_moved_with_its_folder(tmp_path: Path) -> None:
    prepared_in(Folder(str(tmp_path / "here"))).commit()
    (tmp_path / "here").rename(tmp_path / "there")
    moved = PreparedData.load(Folder(str(tmp_path / "there")))
    assert moved is not None
    assert moved.folder.local_path == tmp_path / "there"


def test_rows_are_counted_over_all_shards_of_a_split(tmp_path: Path) -> None:
    shards = [Shard(name=str(rows), rows=rows, bytes=1, sha256="0f") for rows in (7, 5)]
    prepared = prepared_in(Folder(str(tmp_path))).model_copy(
        update={"splits": {"train": shards, "test": shards[1:]}}
    )
    assert (prepared.rows("train"), prepared.rows("test")) == (12, 5)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff\xfe\x00", b"{}", b'{"seconds": "long"}', b"[]", b"null", b"3"],
)
def test_a_damaged_manifest_raises_with_its_path(tmp_path: Path, content: bytes) -> None:
    folder = Folder(str(tmp_path))
    folder.write(MANIFEST, content)
    with pytest.raises(StageError, match=f"{tmp_path}/{MANIFEST} is damaged"):
        PreparedData.load(folder)


def test_a_cut_off_manifest_raises_wherever_it_was_cut(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    whole = prepared_in(folder).commit().model_dump_json(indent=1).encode()
    for length in range(0, len(whole), 7):
        folder.write(MANIFEST, whole[:length])
        with pytest.raises(StageError, match="damaged"):
            PreparedData.load(folder)


def test_a_training_finds_its_best_checkpoint_and_says_where_it_is_gone(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    training = Training(
        folder=folder,
        seconds=1,
        summary="",
        best_checkpoint="checkpoints/step-5",
        steps=5,
        metrics={},
        history=[],
        precision="fp32",
    )
    with pytest.raises(StageError, match=f"{tmp_path}/checkpoints/step-5 is gone"):
        training.checkpoint()
    saved = a_checkpoint(folder / "checkpoints/step-5", {"loss": 1.0}).commit()
    assert training.checkpoint().model_dump() == saved.model_dump()


@pytest.mark.parametrize(
    "name", ["../other.arrow", "/etc/passwd", "a/b", "", "..", ".hidden", "a\n"]
)
def test_a_manifest_names_no_file_outside_its_folder(tmp_path: Path, name: str) -> None:
    fields = {"rows": 7, "bytes": 9, "sha256": "0f"}
    with pytest.raises(ValidationError, match="name"):
        Shard.model_validate({"name": name, **fields})
    with pytest.raises(ValidationError, match="sha256"):  # which names its copy
        Shard.model_validate({**fields, "name": "a", "sha256": name})
    whole = prepared_in(Folder(str(tmp_path))).model_dump() | {"folder": Folder(str(tmp_path))}
    with pytest.raises(ValidationError, match="processor"):
        PreparedData.model_validate(whole | {"processor": name})


@pytest.mark.parametrize(
    "key", ["task", "storage", "data.source", "train", "train.lr.x", "serve.port"]
)
def test_a_sweep_chooses_nothing_but_what_a_sweep_may_try(tmp_path: Path, key: str) -> None:
    fields = {"seconds": 1, "summary": "", "best_trial": 0, "trials": []}
    with pytest.raises(ValidationError, match="best"):
        Sweep.model_validate({"folder": Folder(str(tmp_path)), "best": {key: "x"}, **fields})


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_a_checkpoint_whose_loss_is_no_number_is_as_written(tmp_path: Path, value: float) -> None:
    saved = a_checkpoint(Folder(str(tmp_path)), {"loss": value}).commit()
    json.loads((tmp_path / MANIFEST).read_bytes(), parse_constant=pytest.fail)
    loaded = Checkpoint.load(saved.folder)
    assert loaded is not None and loaded.digest == saved.digest
    assert loaded.metrics["loss"] == pytest.approx(value, nan_ok=True)
    assert loaded.history[0]["loss"] == pytest.approx(value, nan_ok=True)


@pytest.mark.parametrize("path", ["../other/step-5", "/etc", "a/../../b", "", "a//b", "a/"])
def test_a_training_names_no_checkpoint_outside_its_folder(tmp_path: Path, path: str) -> None:
    fields = {"seconds": 1, "summary": "", "steps": 5, "metrics": {}, "history": []}
    fields["precision"] = "fp32"
    with pytest.raises(ValidationError, match="best_checkpoint"):
        Training.model_validate(
            {"folder": Folder(str(tmp_path)), "best_checkpoint": path, **fields}
        )

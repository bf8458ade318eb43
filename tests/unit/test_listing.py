"""Which files are data, and what is told of the others."""

import os
import time
from pathlib import Path

import pytest

from orchestrator import folder as folders
from orchestrator.errors import UserError
from orchestrator.sources import find_files
from orchestrator.task import DataConfig
from tests.unit.reading import write


def found(source: object, storage: str = "", **settings: object) -> tuple[list[str], list[str]]:
    """The files, below the current folder, and the notes."""
    data = DataConfig.model_validate({"source": source, **settings})
    files, notes = find_files(data, storage)
    return [os.path.relpath(file.uri.removeprefix("file://")) for file in files], notes


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


# Paths


@pytest.mark.parametrize("name", ["data[1].csv", "_train.csv", ".hidden.csv", "a*b.csv", "a?.csv"])
@pytest.mark.parametrize("prefix", ["", "file://"])
def test_a_path_that_exists_is_that_path(name: str, prefix: str, here: Path) -> None:
    for each in (name, "data1.csv", "axb.csv", "ab.csv"):
        write(Path(each), "text\nx\n")
    assert found(f"{prefix}{here}/{name}" if prefix else name) == ([name], [])


def test_a_folder_with_brackets_is_that_folder() -> None:
    write(Path("new [2]/a.csv"), "x")
    write(Path("new 2/b.csv"), "x")
    assert found("new [2]")[0] == ["new [2]/a.csv"]


def test_a_path_with_brackets_that_does_not_exist_is_a_glob() -> None:
    write(Path("data1.csv"), "x")
    assert found("data[1].csv")[0] == ["data1.csv"]


def test_a_glob_may_ask_for_hidden_files() -> None:
    for name in ("_a.csv", "_b.csv", "c.csv", ".d.csv"):
        write(Path(name), "x")
    assert found("_*.csv")[0] == ["_a.csv", "_b.csv"]
    assert found("*.csv")[0] == ["c.csv"]


@pytest.mark.parametrize(
    ("pattern", "told"), [("d/*", "folders only, such as"), ("d/x*", "matches no file")]
)
def test_a_glob_without_files_says_why(pattern: str, told: str) -> None:
    write(Path("d/sub/a.csv"), "x")
    with pytest.raises(UserError, match=told):
        found(pattern)


def test_a_link_to_a_folder_above_ends() -> None:
    write(Path("d/sub/a.csv"), "x")
    Path("d/sub/up").symlink_to(Path("d").absolute())
    Path("d/sub/self").symlink_to("self")
    Path("d/nowhere.csv").symlink_to("gone")
    assert found("d")[0] == ["d/sub/a.csv"]
    assert found("d/**/*.csv")[0] == ["d/sub/a.csv"]


def test_a_link_to_a_folder_elsewhere_is_followed(tmp_path: Path) -> None:
    write(Path("other/a.csv"), "x")
    Path("d").mkdir()
    Path("d/link").symlink_to(Path("other").absolute())
    assert found("d")[0] == ["d/link/a.csv"]


def test_many_files_are_listed_in_seconds() -> None:
    Path("many").mkdir()
    for i in range(20_000):
        Path(f"many/{i}.txt").touch()
    write(Path("many/x.txt"), "x")
    for source in ("many", "many/*.txt"):
        start = time.monotonic()
        assert len(found(source)[0]) == 20_001
        assert time.monotonic() - start < 10


# What is not read


def test_a_folder_of_json_alone_is_data() -> None:
    write(Path("d/a.json"), "[]")
    write(Path("d/notes.md"), "x")
    assert found("d") == (["d/a.json"], ["1 other file is not read: notes.md"])


def test_what_is_not_read_is_told() -> None:
    for name in ("a.csv", "b.xlsx", "c.json", "_d.csv", ".e.csv", ".gitignore", ".git/f.csv"):
        write(Path("d") / name, "x")
    files, notes = found("d")
    assert files == ["d/a.csv"]
    assert notes == ["4 other files are not read: b.xlsx, c.json, .e.csv and 1 more"]


@pytest.mark.parametrize("source", [".", "{here}", "file://{here}"])
def test_the_storage_of_the_job_is_no_data(source: str, here: Path) -> None:
    write(Path("a.txt"), "x")
    write(Path("runs/job/prepare-1/a.txt"), "x")
    write(Path("runs/job/events.jsonl"), "{}\n")
    write(Path("other/b.txt"), "x")
    source = source.format(here=here)
    assert found(source, f"{here}/runs")[0] == ["a.txt", "other/b.txt"]
    # The storage is the folder of the data itself: a run in it is none.
    assert found(f"{here}/runs", f"{here}/elsewhere")[0] == [
        "runs/job/events.jsonl",
        "runs/job/prepare-1/a.txt",
    ]
    write(Path("job2/events.jsonl"), "{}\n")
    assert "job2/events.jsonl" not in found(source, str(here))[0]


def test_the_storage_on_another_storage_is_no_data_either(monkeypatch: pytest.MonkeyPatch) -> None:
    import pyarrow.fs

    memory = pytest.importorskip("fsspec").filesystem("memory")
    memory.store.clear()
    for name in ("data/a.txt", "data/runs/job/b.txt", "data/runs/job/events.jsonl"):
        memory.pipe(f"/bucket/{name}", b"x")
    store = pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(memory))
    monkeypatch.setattr(folders, "_filesystem", lambda scheme_and_host: store)
    data = DataConfig(source="toy://bucket/data")
    files, _ = find_files(data, "toy://bucket/data/runs")
    assert [file.uri.rsplit("/", 1)[1] for file in files] == ["a.txt"]


# Splits that files name


def splits(source: object, **settings: object) -> tuple[dict[str, str | None], list[str]]:
    data = DataConfig.model_validate({"source": source, **settings})
    files, notes = find_files(data)
    assert len({file.by_name for file in files}) == 1
    return {os.path.relpath(file.uri): file.split for file in files}, notes


@pytest.mark.parametrize(
    "names",
    [
        ("train-00000-of-00001.csv", "validation-00000-of-00001.csv", "test-00000-of-00001.csv"),
        ("train.csv", "dev.csv", "test.csv"),
        ("my_Training.csv", "my_val.csv", "my_eval.csv"),
        ("x.train.csv", "x.valid.csv", "x.testing.csv"),
        ("train/a.csv", "dev/a.csv", "test/a.csv"),
        ("train/pos/1.csv", "valid/pos/train_2.csv", "test/pos/3.csv"),
    ],
)
@pytest.mark.parametrize("source", ["d", "d/**/*.csv"])
def test_splits_are_taken_from_names(source: str, names: tuple[str, ...]) -> None:
    for name in names:
        write(Path("d") / name, "x")
    found_splits, notes = splits(source)
    expected = dict(zip((f"d/{name}" for name in names), (None, "validation", "test"), strict=True))
    assert found_splits == expected
    assert notes == ["splits by their names: 1 file for training, 1 for validation, 1 for testing"]


def test_a_file_that_names_no_split_is_left_out_and_told() -> None:
    for name in ("train-0.csv", "train-1.csv", "test.csv", "extra.csv"):
        write(Path("d") / name, "x")
    found_splits, notes = splits("d")
    assert found_splits == {"d/test.csv": "test", "d/train-0.csv": None, "d/train-1.csv": None}
    assert notes == [
        "splits by their names: 2 files for training, 1 for testing; left out, since their names "
        "tell none: extra.csv"
    ]


@pytest.mark.parametrize(
    "names",
    [
        ("train.csv", "more.csv"),
        ("test.csv", "more.csv"),
        ("trainer.csv", "latest.csv", "devs.csv"),
    ],
)
def test_names_of_one_split_or_of_none_are_only_names(names: tuple[str, ...]) -> None:
    for name in names:
        write(Path("d") / name, "x")
    found_splits, notes = splits("d")
    assert (set(found_splits.values()), notes) == ({None}, [])
    assert len(found_splits) == len(names)


def test_who_lists_files_or_names_a_split_means_it() -> None:
    for name in ("train.csv", "test.csv", "other.csv"):
        write(Path("d") / name, "x")
    assert splits(["d/train.csv", "d/test.csv"])[0] == dict.fromkeys(("d/test.csv", "d/train.csv"))
    given, _ = find_files(DataConfig(source="d/t*.csv", test_source="d/other.csv"))
    assert [(file.split, file.by_name) for file in given] == [
        (None, False),
        (None, False),
        ("test", False),
    ]

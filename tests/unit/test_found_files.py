"""Which files a source stands for, what is told of the others, and how they are read."""

import errno
import gzip
import io
import json
import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet
import pytest

import orchestrator.storage.files
from orchestrator.data.config import DataConfig
from orchestrator.data.heads import Head
from orchestrator.data.source_file import SourceFile
from orchestrator.data.sources import Listing, find_files, named_split
from orchestrator.errors import UserError
from orchestrator.job.job import Job
from orchestrator.run import Run
from orchestrator.storage import files as storage_files
from orchestrator.storage.artifact import PreparedData


@pytest.fixture(autouse=True)
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(storage_files, "WAITS", (0.0,) * 4)


def write(*names: str, content: str | bytes = "x\n") -> None:
    for name in names:
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)


def found(source: Any, storage: str = "", **settings: Any) -> Listing:
    return find_files(DataConfig(source=source, **settings), storage)


def names(listing: Listing) -> list[str]:
    here = f"{Path.cwd()}/"
    return [file.uri.removeprefix(here) for file in listing.files]


def refusal(source: Any) -> str:
    with pytest.raises(UserError) as caught:
        found(source)
    (line,) = str(caught.value).splitlines()
    return line


# A path that exists is that path


def test_a_file_with_brackets_in_its_name_is_no_glob() -> None:
    write("data[1].csv", "data1.csv")
    assert names(found("data[1].csv")) == ["data[1].csv"]
    assert names(found(f"file://{Path.cwd()}/data[1].csv")) == ["data[1].csv"]
    Path("data[1].csv").unlink()
    assert names(found("data[1].csv")) == ["data1.csv"]


def test_a_folder_with_brackets_in_its_name_is_no_glob_within_one() -> None:
    write("run [1]/a.csv", "run 1/b.csv")
    assert names(found("run [1]/*.csv")) == names(found("run [1]")) == ["run [1]/a.csv"]


@pytest.mark.parametrize("name", ["_train.csv", ".hidden.csv", "_x/.y/a.csv"])
def test_a_hidden_file_that_is_named_is_read(name: str) -> None:
    write(name, "plain.csv")
    assert names(found(name)) == [name]
    assert found(name).notes == []
    assert names(found(["plain.csv", name])) == sorted([name, "plain.csv"])


def test_a_glob_finds_hidden_files_where_it_says_so() -> None:
    write("_a.csv", ".b.csv", "c.csv")
    assert names(found("*.csv")) == ["c.csv"]
    assert names(found("_*.csv")) == ["_a.csv"]
    assert names(found(".*.csv")) == [".b.csv"]


@pytest.mark.parametrize("name", ["a b", "a#b", "a%20b", "é", "a&b", "a'b", "50% #1 [x]?*"])
def test_odd_names_of_files_and_folders_are_read(name: str) -> None:
    write(f"{name}/{name}.txt")
    for source in (name, f"{name}/", f"{name}/{name}.txt", str(Path(name).absolute())):
        (file,) = found(source).files
        with file.open() as opened:
            assert opened.read() == b"x\n"


def test_a_home_is_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(Path("home").absolute()))
    write("home/data/a.txt")
    for source in ("~/data", "~/data/a.txt", "~/d*/*.txt"):
        assert names(found(source)) == ["home/data/a.txt"]


# What is not read is told


def test_files_beside_the_data_are_named() -> None:
    write("data/a.csv", "data/notes.docx", "data/_train.csv", "data/more.json", "data/sub/b.csv")
    listing = found("data/")
    assert names(listing) == ["data/a.csv", "data/sub/b.csv"]
    assert listing.notes == ["data/: 3 files are not read: _train.csv, more.json, notes.docx"]
    write("data/sub/x.docx")
    assert found("data").notes == [
        "data/: 4 files are not read: _train.csv, more.json, notes.docx and 1 more"
    ]


def test_a_single_file_beside_a_glob_is_named() -> None:
    write("d/a.csv", "d/b.docx")
    assert found("d/*").notes == ["d/*: 1 file is not read: b.docx"]
    assert found("d/*.csv").notes == []


def test_usual_debris_is_not_told() -> None:
    debris = ("_SUCCESS", ".DS_Store", "README.md", "LICENSE", ".gitattributes", ".a.csv.crc")
    folders = (".git/x.txt", "_temporary/0/part.csv", "__MACOSX/._a.csv")
    write("d/a.csv", *(f"d/{name}" for name in debris + folders))
    assert (names(found("d")), found("d").notes) == (["d/a.csv"], [])


def test_what_another_source_reads_is_not_told_as_unread() -> None:
    write("d/a.csv", "d/_b.csv", "d/_test.csv")
    assert found(["d", "d/_b.csv"], test_source="d/_test.csv").notes == []


def test_the_standard_library_has_no_notes() -> None:
    assert found("python-stdlib").notes == []


def test_a_folder_of_json_alone_is_read() -> None:
    write("d/a.json", "d/b.json", content="[]")
    assert names(found("d")) == ["d/a.json", "d/b.json"]
    write("d/c.jsonl")
    assert names(found("d")) == ["d/c.jsonl"]
    assert found("d").notes == ["d/: 2 files are not read: a.json, b.json"]


# The job's own storage


@pytest.mark.parametrize("storage", ["runs", "d/runs"])
def test_the_storage_below_the_source_is_not_read(storage: str) -> None:
    write("d/a.jsonl", f"{storage}/job/events.jsonl", f"{storage}/other/quarantine.jsonl")
    for source in (".", "d", "**/*.jsonl", "*/*.jsonl"):
        listing = found(source, str(Path(storage).absolute()))
        assert (names(listing), listing.notes) == (["d/a.jsonl"], [])


def test_a_storage_behind_a_link_is_not_read() -> None:
    write("d/a.jsonl", "elsewhere/job/events.jsonl")
    Path("d/runs").symlink_to(Path("elsewhere").absolute())
    assert names(found("d", str(Path("elsewhere").absolute()))) == ["d/a.jsonl"]
    assert names(found("d", str(Path("d/runs").absolute()))) == ["d/a.jsonl"]


def test_runs_that_lie_among_the_data_are_not_read() -> None:
    write("a.jsonl", "job/events.jsonl", "job/lease", "old/events.jsonl")
    write("old/prepare-0123456789ab-01234567/quarantine.jsonl")
    assert names(found(".", str(Path.cwd()))) == ["a.jsonl"]


def test_the_source_may_lie_in_the_storage_or_be_a_run_itself() -> None:
    write("runs/export/a.jsonl", "runs/job/b.jsonl", "runs/job/events.jsonl", "runs/job/lease")
    write("runs/job/train-0123456789ab/report.jsonl")
    storage = str(Path("runs").absolute())
    assert names(found("runs/export", storage)) == ["runs/export/a.jsonl"]
    assert names(found("runs/job", storage)) == ["runs/job/b.jsonl"]
    assert names(found("runs/job/events.jsonl", storage)) == ["runs/job/events.jsonl"]


def test_a_remote_storage_and_remote_runs_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    write("root/b/a.csv", "root/b/runs/job/x.csv", "root/b/c/old/y.csv", "root/b/[z].csv")
    write("root/b/c/old/prepare-0123456789ab-01234567/z.csv", "root/b/note.docx")
    store = pyarrow.fs.SubTreeFileSystem("root", pyarrow.fs.LocalFileSystem())
    monkeypatch.setattr(orchestrator.storage.files, "_filesystem", lambda scheme_and_host: store)
    listing = found("s3://b", "s3://b/runs")
    assert names(listing) == ["s3://b/[z].csv", "s3://b/a.csv"]
    assert listing.notes == ["s3://b/: 1 file is not read: note.docx"]
    assert names(found("s3://b/[z].csv")) == ["s3://b/[z].csv"]
    assert names(found("s3://b/*.csv")) == names(listing)
    with listing.files[0].open() as opened:
        assert opened.read() == b"x\n"


# Splits by name


@pytest.mark.parametrize(
    ("path", "split"),
    [
        ("train-00000-of-00001.parquet", "train"),
        ("Training.csv", "train"),
        ("my_dev2.csv", "validation"),
        ("val.csv", "validation"),
        ("x/valid/0.csv", "validation"),
        ("testing/a/0.csv", "test"),
        ("data.eval.jsonl", "test"),
        ("test/train.csv", "train"),
        ("trainData.csv", "train"),
        ("my_testset.csv", "test"),
        ("development.csv", "validation"),
        ("latest.csv", None),
        ("contest/trains.csv", None),
        ("évaluation.csv", None),
        ("train_test.csv", None),
    ],
)
def test_a_name_says_its_split_by_a_whole_word(path: str, split: str | None) -> None:
    assert named_split(path) == split


def test_a_layout_that_names_its_splits_is_taken_at_its_word() -> None:
    write("d/train-0.csv", "d/train-1.csv", "d/dev.csv", "d/sub/test/0.csv", "d/extra.csv")
    for source in ("d", "d/**/*.csv", f"file://{Path.cwd()}/d"):
        listing = found(source)
        splits = {Path(f.uri).name: f.split for f in listing.files}
        assert splits == {
            "train-0.csv": None,
            "train-1.csv": None,
            "dev.csv": "validation",
            "0.csv": "test",
        }
        assert all(file.by_name for file in listing.files)
        assert listing.notes[0] == (
            "splits by their names: 2 files for training, 1 for validation, 1 for testing"
        )
        assert "1 file is left out, since no split is in the name: extra.csv" in listing.notes[1]


def test_splits_are_not_named_by_lists_single_files_or_beside_given_splits() -> None:
    write("d/train.csv", "d/test.csv", "given.csv", "only/train.csv", "only/more.csv")
    given = {"test_source": "given.csv"}
    for listing in (
        found(["d/train.csv", "d/test.csv"]),
        found(["d"]),
        found("d/test.csv"),
        found("d", **given),
        found("only"),
    ):
        assert not any(file.by_name for file in listing.files)
        assert listing.notes == []
    assert len(found("d", **given).files) == 3


def test_the_folders_above_the_source_name_no_split() -> None:
    write("train/test.csv", "train/more.csv")
    assert [file.split for file in found("train").files] == [None, None]


def test_a_file_with_its_split_travels_as_json() -> None:
    from orchestrator.prepare.stage import _file

    write("d/train.csv", "d/test.csv")
    for file in found("d").files:
        assert _file(json.loads(json.dumps(asdict(file)))) == file


# Many files, links, and nothing


def test_twenty_thousand_files_are_listed_in_seconds() -> None:
    for i in range(20_000):
        if i % 1000 == 0:
            Path(f"d/{i // 1000}").mkdir(parents=True)
        Path(f"d/{i // 1000}/{i}.txt").write_bytes(b"x")
    started = time.monotonic()
    run = Run(job("d"))
    run.prepare_folder()
    assert len(run.files) == 20_000
    assert time.monotonic() - started < 10


def test_a_link_to_nothing_is_told() -> None:
    write("d/a.csv")
    Path("d/b.csv").symlink_to("gone")
    listing = find_files(DataConfig(source="d/"))
    assert [Path(file.uri).name for file in listing.files] == ["a.csv"]
    assert listing.notes == ["d/: 1 file is not read: b.csv (a link to nothing)"]
    Path("d/a.csv").unlink()
    with pytest.raises(UserError, match=r"but b\.csv \(a link to nothing\)"):
        find_files(DataConfig(source="d/"))


def test_a_name_of_two_lines_is_refused_in_one() -> None:
    write("d/a\nb.csv")
    with pytest.raises(UserError, match="holds a line's end: rename") as caught:
        find_files(DataConfig(source="d/"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "mend"), [("a.zip", "unpack"), ("a.xlsx", "as csv"), ("a.dat", "set data.format")]
)
def test_a_file_of_another_format_has_its_mend(name: str, mend: str) -> None:
    write(name)
    with pytest.raises(UserError, match=mend):
        find_files(DataConfig(source=name))


def test_links_in_a_circle_end() -> None:
    write("d/a/x.txt", "d/b/y.txt")
    for start in ("d", "d/a", "d/b"):
        for end in ("d", "d/a", "d/b"):
            Path(start, f"to_{Path(end).name}").symlink_to(Path(end).absolute())
    Path("d/nowhere").symlink_to("gone")
    assert names(found("d")) == names(found("d/**/*.txt")) == ["d/a/x.txt", "d/b/y.txt"]
    assert "d/to_a/x.txt" in names(found("d/*/*.txt"))


def test_nothing_is_told_in_one_clear_line() -> None:
    write("d/sub/a.csv", "others/b.docx", "x.docx")
    Path("empty").mkdir()
    assert "matches no file" in refusal("d/*.csv")
    assert "matches folders alone: d/*/* takes the files in them" in refusal("d/*")
    assert "holds no txt" in refusal("empty")
    assert "holds no txt" in refusal("others") and "b.docx" in refusal("others")
    assert "matches no txt" in refusal("*.docx") and "x.docx" in refusal("*.docx")
    assert "no such file or folder" in refusal("nowhere")
    assert "no such folder" in refusal("nowhere/*.csv")
    os.mkfifo("pipe.csv")
    assert "neither a file nor a folder" in refusal("pipe.csv")


@pytest.mark.parametrize(
    ("name", "mend"),
    [
        ("a.zip", "unpack it and name the file inside"),
        ("a.csv.zip", "unpack it"),
        ("a.TGZ", "unpack it"),
        ("a.jsonl.xz", "pack it as .gz or .zst"),
        ("a.xlsx", "export it as csv or parquet"),
        ("a.pdf", "save it as plain text"),
        ("a.data", "set data.format"),
    ],
)
def test_a_named_file_of_another_kind_is_told_what_to_do_with_it(name: str, mend: str) -> None:
    write(name)
    assert refusal(name).startswith(f"data.source = {name}: is no txt") and mend in refusal(name)


# Passing errors


class Failing:
    """A file of a filesystem that fails for a moment at some of its reads."""

    def __init__(self, file: Any, errors: list[BaseException], after: int) -> None:
        self.file, self.errors, self.after = file, errors, after

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def _fail(self) -> None:
        if self.file.tell() >= self.after and self.errors:
            raise self.errors.pop()

    def read(self, *arguments: Any) -> Any:
        self._fail()
        return self.file.read(*arguments)

    def readinto(self, buffer: Any) -> Any:
        self._fail()
        return self.file.readinto(buffer)


class FailingFilesystem:
    def __init__(self, *errors: BaseException, after: int = 0) -> None:
        self.local = pyarrow.fs.LocalFileSystem()
        self.errors, self.after, self.opened = list(errors), after, 0

    def open_input_file(self, path: str) -> Any:
        self.opened += 1
        return Failing(self.local.open_input_file(path), self.errors, self.after)

    def get_file_info(self, path: str) -> Any:
        return self.local.get_file_info(path)


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Any:
    def use(*errors: BaseException, after: int = 0) -> FailingFilesystem:
        store = FailingFilesystem(*errors, after=after)
        monkeypatch.setattr(storage_files, "open_file", store.open_input_file)
        return store

    return use


LINES = b"".join(b"%d some words\n" % i for i in range(300_000))


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "A.TXT.GZ"])
@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT])
def test_a_passing_error_in_the_middle_loses_no_byte(name: str, code: int, failing: Any) -> None:
    write(name, content=gzip.compress(LINES) if name.lower().endswith("gz") else LINES)
    (file,) = found(name).files
    store = failing(OSError(code, "passing"), OSError(code, "passing"), after=100_000)
    with file.open() as opened, io.BufferedReader(opened, 1 << 16) as lines:
        assert b"".join(lines) == LINES
    assert store.opened == 3
    store.errors += [OSError(code, "passing")] * 2
    with file.open_whole() as opened:
        assert opened.read() == LINES


def test_a_table_is_read_over_passing_errors(failing: Any) -> None:
    sink = io.BytesIO()
    columns = {f"c{i}": list(range(20_000)) for i in range(12)}
    pyarrow.parquet.write_table(pa.table(columns), sink, row_group_size=5_000)
    write("a.parquet", content=sink.getvalue())
    (file,) = found("a.parquet").files
    failing(*[OSError(errno.EIO, "passing")] * 3, after=1_000)
    with file.open_whole(Head(magic=b"PAR1")) as opened:
        assert pyarrow.parquet.read_table(opened).to_pydict() == columns


def test_an_error_that_stays_is_raised_at_last(failing: Any) -> None:
    write("a.txt", content=LINES)
    (file,) = found("a.txt").files
    store = failing(*[OSError(errno.EIO, "stays")] * 9)
    with pytest.raises(UserError, match="cannot be read: stays"), file.open() as opened:
        opened.read()
    assert store.opened == 5


@pytest.mark.parametrize("error", [FileNotFoundError, PermissionError, IsADirectoryError])
def test_an_error_that_no_waiting_mends_is_raised_at_once(error: Any, failing: Any) -> None:
    write("a.txt", content=LINES)
    (file,) = found("a.txt").files
    store = failing(error("never"))
    with pytest.raises(UserError, match="cannot be read: never"), file.open() as opened:
        opened.read()
    assert store.opened == 1


def test_a_compressed_file_that_is_cut_off_is_raised_at_once(failing: Any) -> None:
    write("a.txt.gz", content=gzip.compress(LINES)[:-2_000])
    (file,) = found("a.txt.gz").files
    store = failing()
    with pytest.raises(OSError), file.open() as opened:
        opened.read()
    assert store.opened == 1


def test_a_file_that_changed_is_not_read_on(failing: Any) -> None:
    write("a.txt", content=LINES)
    (file,) = found("a.txt").files
    failing(OSError(errno.ESTALE, "passing"), after=1)
    with file.open() as opened:
        opened.read(10)
        write("a.txt", content=LINES[1:])
        with pytest.raises(UserError, match="was written or cut off since it was listed"):
            opened.read()


# Data that is gone


def job(source: str) -> Job:
    content = {"name": "a", "task": "text_classification", "data": {"source": source}}
    return Job.model_validate({**content, "model": {"num_layers": 1}})


def prepared(run: Run, seconds: int, source_bytes: int) -> str:
    folder = run.prepare_folder()
    PreparedData(
        folder=folder,
        seconds=1.0,
        summary="",
        notices=["known"],
        processor="tokenizer.json",
        splits={},
        documents={},
        source_bytes=source_bytes,
    ).commit()
    os.utime(f"{folder}/manifest.json", (seconds, seconds))
    return folder.name


def test_the_newest_preparation_is_by_time_and_is_told() -> None:
    made = {}
    for version in range(6):  # hashes are in no order
        write("data.csv", content="text,label\n" + "x,y\n" * version)
        made[prepared(Run(job("data.csv")), 1_700_000_000 - version * 100, 100 + version)] = version
    newest = next(name for name, version in made.items() if version == 0)
    Path("data.csv").unlink()
    run = Run(job("data.csv"))
    assert run.prepare_folder().name == newest
    assert run._source_bytes() == 100
    (note,) = run.notes
    assert "data.source = data.csv: no such file or folder: the data prepared 2023-11-1" in note
    assert newest in note
    assert run.prepare_status().notices == ("known", note)


def test_data_that_is_gone_and_was_never_prepared_is_an_error() -> None:
    run = Run(job("data.csv"))
    for _ in range(2):
        with pytest.raises(UserError, match="no such file or folder"):
            run.prepare_folder()
    assert run.notes == []


def test_the_notes_of_a_run_are_those_of_its_files() -> None:
    write("d/a.csv", "d/b.docx", "d/runs/a/events.jsonl")
    content = {**job("d").model_dump(), "storage": "d/runs"}
    run = Run(Job.model_validate(content))
    assert run.notes == ["d/: 1 file is not read: b.docx"]
    assert [Path(file.uri).name for file in run.files] == ["a.csv"]
    before = run.prepare_folder().name
    write("d/runs/a/more.csv")
    assert Run(Job.model_validate(content)).prepare_folder().name == before


def test_a_source_file_may_be_made_by_hand() -> None:
    write("a.txt")
    with SourceFile("a.txt", "txt", 2, "").open() as opened:
        assert opened.read(1) == b"x"

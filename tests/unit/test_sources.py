"""Raw files: which are found, which of their rows are read, and why the others are not."""

import contextlib
import csv
import datetime
import gzip
import io
import json
import random
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from orchestrator.data.config import DataConfig
from orchestrator.data.reading import BadRow, Note
from orchestrator.data.rows import check_columns, read_rows
from orchestrator.data.source_file import SourceFile
from orchestrator.data.sources import find_files
from orchestrator.errors import UserError
from orchestrator.job.job import Job
from orchestrator.prepare.cleaning import read_cleaned
from orchestrator.tasks.task import reading_of

COLUMNS: dict[str, str] = {"text": "text"}
ANY = DataConfig(source="x").reading(COLUMNS)


def files_of(source: str | Path | list[str], **settings: Any) -> list[str]:
    """The found files, by path below the current folder."""
    data = DataConfig(source=source if isinstance(source, list) else str(source))
    here = str(Path.cwd()) + "/"
    return [file.uri.removeprefix("file://").removeprefix(here) for file in find_files(data).files]


def read(path: Path, **settings: Any) -> tuple[list[str], list[BadRow]]:
    """The texts and the bad rows of one file."""
    data = DataConfig(source=str(path), **settings)
    (file,) = find_files(data).files
    rows = list(read_rows(file, data.reading(COLUMNS)))
    good = [row["text"] for row in rows if not isinstance(row, BadRow)]
    bad = [row for row in rows if isinstance(row, BadRow)]
    assert all(row.file == str(path) and row.reason for row in bad)
    assert all(len(row.reason.splitlines()) == 1 for row in bad)
    return good, bad


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def parquet(**columns: Any) -> bytes:
    sink = io.BytesIO()
    pyarrow.parquet.write_table(pa.table(columns), sink)
    return sink.getvalue()


def in_format(kind: str, texts: list[str]) -> bytes:
    """Texts in a file of the format, in a column named text beside another one."""
    if kind == "jsonl":
        return "".join(json.dumps({"n": 1, "text": text}) + "\n" for text in texts).encode()
    if kind == "csv":
        out = io.StringIO()
        csv.writer(out).writerows([["n", "text"], *[["1", text] for text in texts]])
        return out.getvalue().encode()
    if kind == "parquet":
        return parquet(n=[1] * len(texts), text=texts)
    return "".join(texts).encode()


# Every format


TEXTS = ["plain\n", 'a "quoted", comma', "two\nlines", "ünïcode 🙂", "\ttab and \x00 NUL", ""]


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_a_table_gives_its_texts_back_in_order(kind: str, tmp_path: Path) -> None:
    path = write(tmp_path / f"data.{kind}", in_format(kind, TEXTS))
    assert read(path) == (TEXTS, [])


@pytest.mark.parametrize("kind", ["txt", "jsonl", "csv", "parquet"])
def test_a_compressed_file_reads_like_a_plain_one(kind: str, tmp_path: Path) -> None:
    content = in_format(kind, ["some text"])
    plain = write(tmp_path / f"plain.{kind}", content)
    zipped = write(tmp_path / f"zipped.{kind}.gz", gzip.compress(content))
    frozen = write(tmp_path / f"frozen.{kind}.zst", pa.compress(content, "zstd", asbytes=True))
    assert read(plain) == read(zipped) == read(frozen) == (["some text"], [])


@pytest.mark.parametrize("name", ["a.ndjson", "a.JSONL", "a.b.jsonl"])
def test_other_names_of_a_format_are_known(name: str, tmp_path: Path) -> None:
    assert read(write(tmp_path / name, in_format("jsonl", ["x"]))) == (["x"], [])


@pytest.mark.parametrize("kind", ["txt", "jsonl", "csv"])
def test_a_byte_order_mark_is_no_content(kind: str, tmp_path: Path) -> None:
    path = write(tmp_path / f"a.{kind}", b"\xef\xbb\xbf" + in_format(kind, ["x"]))
    assert read(path) == (["x"], [])


def refused(path: Path, **settings: Any) -> str:
    """The one line in which a file is refused."""
    with pytest.raises(UserError) as caught:
        read(path, **settings)
    told = str(caught.value)
    assert told.startswith(str(path)) and len(told.splitlines()) == 1
    return told


@pytest.mark.parametrize("kind", ["txt", "jsonl", "csv"])
@pytest.mark.parametrize("keep", [3, 200, -4])
@pytest.mark.parametrize("suffix", ["gz", "zst"])
def test_a_compressed_file_that_is_cut_off_is_refused(
    suffix: str, kind: str, keep: int, tmp_path: Path
) -> None:
    content = in_format(kind, [random.Random(i).randbytes(40).hex() for i in range(300)])
    packed = (
        gzip.compress(content) if suffix == "gz" else pa.compress(content, "zstd", asbytes=True)
    )
    told = refused(write(tmp_path / f"a.{kind}.{suffix}", packed[:keep]))
    assert "cut off" in told or "not compressed" in told


@pytest.mark.parametrize("kind", ["txt", "jsonl", "csv"])
def test_a_gzip_name_on_plain_content_is_refused(kind: str, tmp_path: Path) -> None:
    assert "not compressed" in refused(write(tmp_path / f"a.{kind}.gz", in_format(kind, ["x"])))


def test_a_file_that_went_away_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "x")
    data = DataConfig(source=str(path))
    (file,) = find_files(data).files
    path.unlink()
    with pytest.raises(UserError, match=r"a\.txt: cannot be read: No such file"):
        list(read_rows(file, data.reading(COLUMNS)))


# Text


def test_a_text_file_is_one_document_with_its_line_ends(tmp_path: Path) -> None:
    text = "one\r\ntwo\n\nthree\rfour\u2028five"
    assert read(write(tmp_path / "a.txt", text)) == ([text], [])


@pytest.mark.parametrize(
    "text",
    [
        "".join(f"line {i}\n" + "\n" * (i % 7 == 0) for i in range(2000)),
        "no blank line\n" * 2000,
        "x" * 5000 + "\n" + "y\n" * 3000,
        "\n" * 5000,
        "ends without a newline " * 500,
        "äöü\n\n" * 1000,
    ],
)
def test_a_long_text_is_cut_with_nothing_lost(text: str, tmp_path: Path) -> None:
    good, bad = read(write(tmp_path / "a.txt", text), max_document_bytes=256)
    assert "".join(good) == text
    assert bad == []
    assert all(good)


def test_a_long_text_is_cut_at_blank_lines(tmp_path: Path) -> None:
    paragraphs = [f"paragraph {i}\n" + "words " * 20 + "\n\n" for i in range(50)]
    good, _ = read(write(tmp_path / "a.txt", "".join(paragraphs)), max_document_bytes=256)
    assert len(good) > 10
    assert all(document.endswith("\n\n") for document in good)
    assert all(document.startswith("paragraph") for document in good)


def test_a_document_stays_near_its_limit_without_blank_lines(tmp_path: Path) -> None:
    good, _ = read(write(tmp_path / "a.txt", "line\n" * 10_000), max_document_bytes=256)
    assert max(len(document) for document in good) <= 4 * 256 + len("line\n")


def test_a_short_text_is_not_cut(tmp_path: Path) -> None:
    text = "one\n\ntwo\n\nthree\n"
    assert read(write(tmp_path / "a.txt", text)) == ([text], [])


def test_a_line_that_is_no_utf_8_is_set_aside_alone(tmp_path: Path) -> None:
    good, bad = read(write(tmp_path / "a.txt", b"one\ntwo \xff\nthree\n"))
    assert good == ["one\nthree\n"]
    assert [row.row for row in bad] == [2]
    assert "UTF-8" in bad[0].reason


# JSON lines


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{bad", "not JSON"),
        (b'{"text": "cut', "not JSON"),
        (b'{"text": "a"} {"text": "b"}', "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b'{"text": ' + b"9" * 5000 + b"}", "4,300 digits"),
        (b'{"text": "\xff"}', "not UTF-8"),
        (b'{"text": "\\ud800"}', "not valid UTF-8"),
        (b"[1]", "list, not an object"),
        (b"3", "int, not an object"),
        (b"null", "not an object"),
        (b'{"text": null}', "has no 'text'"),
        (b'{"other": "a"}', "has no 'text'"),
        (b'{"text": 3}', "int, not text"),
        (b'{"text": [1]}', "list, not text"),
        (b'{"text": NaN}', "float, not text"),
    ],
    ids=lambda value: value[:20] if isinstance(value, bytes) else "",
)
def test_a_bad_json_line_is_set_aside_alone(line: bytes, reason: str, tmp_path: Path) -> None:
    content = b'{"text": "before"}\n' + line + b'\n{"text": "after"}\n'
    good, bad = read(write(tmp_path / "a.jsonl", content))
    assert good == ["before", "after"]
    assert [row.row for row in bad] == [2]
    assert reason in bad[0].reason


def test_blank_json_lines_are_no_rows_but_are_counted(tmp_path: Path) -> None:
    good, bad = read(write(tmp_path / "a.jsonl", '\r\n{"text": "x"}\r\n  \n{bad\n'))
    assert (good, [row.row for row in bad]) == (["x"], [4])


def test_a_surrogate_pair_is_one_valid_character(tmp_path: Path) -> None:
    assert read(write(tmp_path / "a.jsonl", '{"text": "\\ud83d\\ude42"}\n')) == (["🙂"], [])


# csv


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"alone", "1 fields"),
        (b"a,b,c", "3 fields"),
        (b"\xff,1", "not valid UTF-8"),
        (b'"a"b,1', "not csv"),
    ],
)
def test_a_bad_csv_row_is_set_aside_alone(line: bytes, reason: str, tmp_path: Path) -> None:
    good, bad = read(write(tmp_path / "a.csv", b"text,n\nbefore,1\n" + line + b"\nafter,2\n"))
    assert good == ["before", "after"]
    assert [row.row for row in bad] == [3]
    assert reason in bad[0].reason


def test_csv_lines_may_end_as_on_windows_and_blank_ones_are_no_rows(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", b'text,n\r\none,1\r\n\r\n"two\r\nlines",2\r\n')
    assert read(path) == (["one", "two\r\nlines"], [])


def test_a_quote_that_is_never_closed_is_an_error_of_its_line(tmp_path: Path) -> None:
    told = refused(write(tmp_path / "a.csv", 'text,n\none,1\n"two,2\nthree,3\n'))
    assert "line 3 (row 2): a quote opens" in told


def test_a_csv_field_may_be_long(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "text,n\n" + "x" * 500_000 + ",1\n")
    assert read(path) == (["x" * 500_000], [])


# Parquet


def test_bad_parquet_rows_are_set_aside_alone(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", parquet(text=["one", None, "three"]))
    good, bad = read(path)
    assert (good, [(row.row, row.reason) for row in bad]) == (
        ["one", "three"],
        [(2, "has no 'text'")],
    )


def test_parquet_text_that_is_no_utf_8_is_set_aside_alone(tmp_path: Path) -> None:
    letters = pa.Array.from_buffers(
        pa.string(),
        3,
        [None, pa.array([0, 1, 2, 3], pa.int32()).buffers()[1], pa.py_buffer(b"a\xffc")],
    )
    good, bad = read(write(tmp_path / "a.parquet", parquet(text=letters)))
    assert (good, [row.row for row in bad]) == (["a", "c"], [2])
    assert "UTF-8" in bad[0].reason


@pytest.mark.parametrize("values", [[1, 2], [[1], [2]], [{"a": "b"}] * 2, [datetime.date.min]])
def test_a_parquet_column_of_another_type_is_refused(values: list[Any], tmp_path: Path) -> None:
    told = refused(write(tmp_path / "a.parquet", parquet(text=values)))
    assert "column 'text' is " in told and "not text" in told


@pytest.mark.parametrize("type_", [pa.large_string(), pa.dictionary(pa.int8(), pa.string())])
def test_every_parquet_type_of_text_is_read(type_: pa.DataType, tmp_path: Path) -> None:
    column = pa.array(["a", "b"]).cast(type_)
    assert read(write(tmp_path / "a.parquet", parquet(text=column))) == (["a", "b"], [])


@pytest.mark.parametrize("keep", [3, 20, -20])
def test_a_truncated_parquet_file_is_refused(keep: int, tmp_path: Path) -> None:
    told = refused(write(tmp_path / "a.parquet", parquet(text=["a"] * 50)[:keep]))
    assert "cut off" in told


def test_a_parquet_file_without_the_column_is_refused(tmp_path: Path) -> None:
    assert "no column 'text'" in refused(write(tmp_path / "a.parquet", parquet(other=["a"])))


def test_flipped_bytes_are_refused_or_read(tmp_path: Path) -> None:
    content = parquet(text=[f"text number {i}" for i in range(200)])
    for seed in range(30):
        broken = bytearray(content)
        at = random.Random(seed).randrange(len(broken) - 8)
        broken[at : at + 8] = random.Random(seed).randbytes(8)
        with contextlib.suppress(UserError):
            read(write(tmp_path / "a.parquet", bytes(broken)))


# Which files


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("b.txt", "a.jsonl", "sub/c.txt", "notes.md", "sub/picture.png"):
        write(Path("d") / name, '{"text": "x"}\n')
    for name in (".hidden.txt", "_skipped.txt", ".git/e.txt", "sub/_temporary/f.txt"):
        write(Path("d") / name, '{"text": "x"}\n')
    return Path("d")


def test_a_folder_gives_the_data_in_it_and_below_but_nothing_else(folder: Path) -> None:
    expected = ["d/a.jsonl", "d/b.txt", "d/sub/c.txt"]
    assert files_of(folder) == files_of(f"{folder}/") == files_of(folder.absolute()) == expected


def test_a_folder_that_is_itself_hidden_may_be_named(tmp_path: Path) -> None:
    write(tmp_path / ".cache" / "_x" / "a.txt", "x")
    assert len(files_of(tmp_path / ".cache" / "_x")) == 1


def test_a_file_uri_finds_what_its_path_finds(folder: Path) -> None:
    assert files_of(f"file://{folder.absolute()}") == files_of(folder)
    assert files_of(f"file://{folder.absolute()}/b.txt") == ["d/b.txt"]


@pytest.mark.parametrize("name", ["a b.txt", "a#b.txt", "a%20b.txt", "ä.txt", "a?b.txt"])
def test_any_name_can_be_read_below_a_file_uri(name: str, tmp_path: Path) -> None:
    write(tmp_path / name, "x")
    data = DataConfig(source=f"file://{tmp_path}")
    (file,) = find_files(data).files
    assert list(read_rows(file, data.reading(COLUMNS))) == [{"text": "x"}]


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("d/*.txt", ["d/b.txt"]),
        ("d/*", ["d/a.jsonl", "d/b.txt"]),
        ("d/[a-b].*", ["d/a.jsonl", "d/b.txt"]),
        ("d/[!a].*", ["d/b.txt"]),
        ("d/?.jsonl", ["d/a.jsonl"]),
        ("d/*/*.txt", ["d/sub/c.txt"]),
        ("d/**/*.txt", ["d/b.txt", "d/sub/c.txt"]),
        ("*/sub/c.txt", ["d/sub/c.txt"]),
    ],
)
@pytest.mark.parametrize("prefix", ["", "absolute", "file://"])
def test_a_pattern_finds_what_a_shell_would(
    pattern: str, found: list[str], prefix: str, folder: Path
) -> None:
    start = {"": "", "absolute": f"{Path.cwd()}/", "file://": f"file://{Path.cwd()}/"}[prefix]
    assert files_of(start + pattern) == found


def test_several_sources_are_joined_and_a_file_in_two_of_them_comes_once(folder: Path) -> None:
    assert files_of(["d/sub", "d/b.txt"]) == ["d/b.txt", "d/sub/c.txt"]
    assert files_of(["d", "d/b.txt", "d/*.txt"]) == files_of("d")


def test_the_files_of_a_folder_tell_when_they_have_changed(folder: Path) -> None:
    data = DataConfig(source="d/b.txt")
    before = find_files(data)
    assert find_files(data) == before
    write(folder / "b.txt", "something longer than it was\n")
    assert find_files(data) != before


def test_a_name_that_is_no_utf_8_stops_nothing_but_the_search(tmp_path: Path) -> None:
    write(tmp_path / "a.txt", "x")
    Path(str(tmp_path) + "/\udcff.txt").write_text("x")
    try:
        assert len(files_of(tmp_path)) >= 1
    except UserError as error:
        assert "data.source" in str(error)


@pytest.mark.parametrize(
    "source",
    [
        "nowhere.txt",
        "nowhere/",
        "empty",
        "only_others",
        "d/notes.md",
        "noformat",
        "nothing.txt",
        "d/*.csv",
        "nowhere/*.txt",
        "file:///nowhere.txt",
        "file://relative",
        "nosuch://host/path",
        "http://host/a.txt",
        "~nobody-of-this-name/a.txt",
        "a\0b.txt",
    ],
)
def test_a_source_without_data_is_refused_in_one_line(source: str, folder: Path) -> None:
    Path("empty").mkdir()
    write(Path("only_others") / "a.md", "x")
    write(Path("noformat"), "x")
    write(Path("nothing.txt"), "")
    with pytest.raises(UserError) as caught:
        files_of(source)
    told = str(caught.value)
    assert told.startswith("data.source = ")
    assert source.rstrip("/").partition("\0")[0] in told
    assert len(told.splitlines()) == 1


@pytest.mark.parametrize("source", ["", []])
def test_no_source_at_all_is_refused(source: str | list[str]) -> None:
    with pytest.raises((UserError, ValueError), match="source"):
        files_of(source)


def test_one_bad_source_of_several_is_the_one_that_is_named(folder: Path) -> None:
    with pytest.raises(UserError, match="nowhere"):
        files_of(["d", "nowhere"])


@pytest.mark.parametrize("kind", ["txt", "jsonl", "csv"])
def test_an_empty_file_beside_others_is_told(kind: str, tmp_path: Path) -> None:
    write(tmp_path / f"full.{kind}", in_format(kind, ["x"]))
    write(tmp_path / f"empty.{kind}", "")
    data = DataConfig(source=str(tmp_path))
    files = find_files(data).files
    check_columns(files, data.reading(COLUMNS))
    rows = [row for file in files for row in read_rows(file, data.reading(COLUMNS))]
    assert rows == [Note(str(tmp_path / f"empty.{kind}"), "is empty"), {"text": "x"}]


def test_the_standard_library_is_found_and_read() -> None:
    data = DataConfig(source="python-stdlib")
    files = find_files(data).files
    assert len(files) > 500
    assert not [file.uri for file in files if "site-packages" in file.uri]
    (file,) = [file for file in files if file.uri.endswith("/json/decoder.py")]
    (row,) = read_rows(file, data.reading(COLUMNS))
    assert row == {"text": Path(file.uri).read_text()}


def test_a_source_file_is_decoded_as_it_declares(tmp_path: Path) -> None:
    def decoded(content: bytes) -> Any:
        path = write(tmp_path / "a.py", content)
        (row,) = read_rows(SourceFile(str(path), "py", 1, ""), ANY)
        return row

    assert decoded(b"# coding: latin-1\n# \xe4\n") == {"text": "# coding: latin-1\n# ä\n"}
    for content in (b"# \xe4\n", b"# coding: no-such-coding\n"):
        assert isinstance(decoded(content), BadRow)


# Columns


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.parquet", "a.jsonl.gz", "a.csv.gz"])
def test_a_wrong_column_is_named_with_the_file_and_what_there_is(name: str, tmp_path: Path) -> None:
    content = in_format(name.split(".")[1], ["x"])
    path = write(tmp_path / name, gzip.compress(content) if name.endswith(".gz") else content)
    files = find_files(DataConfig(source=str(path))).files
    check_columns(files, ANY)
    with pytest.raises(UserError) as caught:
        check_columns(files, DataConfig(source="x", columns={"text": "body"}).reading(COLUMNS))
    told = str(caught.value)
    assert all(word in told for word in (str(path), "'body'", "n, text", "data.columns.text"))
    assert len(told.splitlines()) == 1


def test_one_file_of_each_format_is_looked_at(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", in_format("jsonl", ["x"]))
    write(tmp_path / "b.csv", "title,author\nx,y\n")
    with pytest.raises(UserError, match=r"b\.csv.*title, author"):
        check_columns(find_files(DataConfig(source=str(tmp_path))).files, ANY)


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.txt", b"x"), ("a.jsonl", b"{bad\n"), ("a.jsonl", b"[1]\n"), ("a.jsonl", b"\xff\n")],
)
def test_a_head_of_bad_rows_is_left_to_its_rows(name: str, content: bytes, tmp_path: Path) -> None:
    check_columns(find_files(DataConfig(source=str(write(tmp_path / name, content)))).files, ANY)


@pytest.mark.parametrize(
    ("name", "content"), [("a.csv.gz", b"not gzip"), ("a.parquet", b"not parquet")]
)
def test_a_file_that_cannot_be_read_is_refused_by_its_head(
    name: str, content: bytes, tmp_path: Path
) -> None:
    path = write(tmp_path / name, content)
    with pytest.raises(UserError, match=re.escape(str(path))):
        check_columns(find_files(DataConfig(source=str(path))).files, ANY)


# Further layouts


def rows_of(data: DataConfig, columns: dict[str, str], lines: bool = True) -> list[Any]:
    reading = data.reading(columns, lines=lines)
    files = find_files(data).files
    check_columns(files, reading)
    return [row for file in files for row in read_rows(file, reading)]


PAIR: dict[str, str] = {"source": "text", "target": "text"}
LABELLED: dict[str, str] = {"text": "text", "label": "value"}


def test_text_files_side_by_side_are_rows_line_by_line(tmp_path: Path) -> None:
    paths = {
        "source": write(tmp_path / "a.en", "one\ntwo 🙂\r\n\nfour\n"),
        "target": write(tmp_path / "a.zh", "一\n二\n三\n四"),
    }
    data = DataConfig(source={name: str(path) for name, path in paths.items()})
    expected = [("one", "一"), ("two 🙂", "二"), ("", "三"), ("four", "四")]
    assert rows_of(data, PAIR) == [{"source": s, "target": t} for s, t in expected]


def test_a_file_that_is_shorter_than_the_one_beside_it_is_named(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a", "one\ntwo\n"), write(tmp_path / "b", "eins\n")
    with pytest.raises(UserError, match=r"a has 2 lines, .*b has 1 lines"):
        rows_of(DataConfig(source={"source": str(a), "target": str(b)}), PAIR)


def test_a_tsv_file_without_a_header_has_numbered_columns(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", "he said \"hi\t1\nit's bad\t0\n")
    data = DataConfig(source=str(path), header=False, columns={"text": 0, "label": 1})
    expected = [{"text": 'he said "hi', "label": "1"}, {"text": "it's bad", "label": "0"}]
    assert rows_of(data, LABELLED) == expected


def test_a_value_may_be_a_number_and_a_text_may_not(tmp_path: Path) -> None:
    rows = [{"text": "a", "label": 3}, {"text": "b", "label": True}, {"text": 4, "label": "x"}]
    path = write(tmp_path / "a.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    *good, bad = rows_of(DataConfig(source=str(path)), LABELLED)
    assert good == [{"text": "a", "label": "3"}, {"text": "b", "label": "true"}]
    assert isinstance(bad, BadRow) and bad.row == 3


def test_files_and_folders_can_be_labels(tmp_path: Path) -> None:
    for name in ("good/1.txt", "bad/2.txt"):
        write(tmp_path / name, name)
    found = rows_of(DataConfig(source=str(tmp_path), columns={"label": "$folder"}), LABELLED)
    assert found == [
        {"text": "bad/2.txt", "label": "bad"},
        {"text": "good/1.txt", "label": "good"},
    ]


def test_json_is_a_list_of_objects_or_squad(tmp_path: Path) -> None:
    listed = write(tmp_path / "a.json", json.dumps([{"text": "x"}, {"text": "y"}]))
    assert rows_of(DataConfig(source=str(listed)), COLUMNS) == [{"text": "x"}, {"text": "y"}]
    question = {"question": "who?", "answers": [{"text": "Ann", "answer_start": 0}]}
    squad = {"data": [{"paragraphs": [{"context": "Ann came.", "qas": [question]}]}]}
    path = write(tmp_path / "b.json", json.dumps(squad))
    columns: dict[str, str] = {
        **{"context": "text", "question": "text"},
        **{"answer": "answers", "answer_start": "starts"},
    }
    assert rows_of(DataConfig(source=str(path)), columns) == [
        {"context": "Ann came.", "question": "who?", "answer": ["Ann"], "answer_start": [0]}
    ]


def test_json_in_a_folder_is_data_only_where_that_is_said(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", in_format("jsonl", ["x"]))
    write(tmp_path / "settings.json", "{}")
    assert [Path(name).name for name in files_of(tmp_path)] == ["a.jsonl"]
    assert len(find_files(DataConfig(source=str(tmp_path), format="json")).files) == 2


def test_every_split_may_have_files_of_its_own(tmp_path: Path) -> None:
    paths = [str(write(tmp_path / f"{name}.txt", name)) for name in ("a", "b", "c")]
    data = DataConfig(source=paths[0], validation_source=paths[1], test_source=paths[2])
    assert [file.split for file in find_files(data).files] == [None, "validation", "test"]
    with pytest.raises(UserError, match="is given to two splits"):
        find_files(DataConfig(source=paths[0], test_source=paths[0]))


# What a task makes of the rows


def job_of(path: Path, task: str, **columns: str) -> Job:
    data = {"source": str(path), "columns": columns}
    return Job.model_validate({"name": "a", "task": task, "data": data})


def cleaned(path: Path, task: str, **columns: str) -> list[Any]:
    job = job_of(path, task, **columns)
    files, built = find_files(job.data).files, job.build_task()
    check_columns(files, reading_of(built))
    return [row for file in files for row in read_cleaned(file, built)]


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_a_row_that_a_task_cannot_learn_from_is_set_aside_alone(kind: str, tmp_path: Path) -> None:
    rows = {"text": ["good", "bad", "fine"], "stars": ["5", "many", "-1e3"]}
    if kind == "parquet":
        content = parquet(**rows)
    elif kind == "csv":
        content = b"text,stars\ngood,5\nbad,many\nfine,-1e3\n"
    else:
        pairs = zip(*rows.values(), strict=True)
        lines = [json.dumps(dict(zip(rows, pair, strict=True))) + "\n" for pair in pairs]
        content = "".join(lines).encode()
    path = write(tmp_path / f"a.{kind}", content)
    one, bad, other = cleaned(path, "text_regression", number="stars")
    assert (one, other) == ({"text": "good", "number": "5"}, {"text": "fine", "number": "-1000"})
    assert bad == BadRow(str(path), 3 if kind == "csv" else 2, "'many' is not a number")


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_a_row_may_lack_what_is_optional(kind: str, tmp_path: Path) -> None:
    row = {"context": "Ann came late.", "question": "Who?", "answer": "Ann"}
    content = {
        "jsonl": json.dumps(row).encode(),
        "csv": b"context,question,answer\nAnn came late.,Who?,Ann\n",
        "parquet": parquet(**{name: [value] for name, value in row.items()}),
    }[kind]
    path = write(tmp_path / f"a.{kind}", content)
    (found,) = cleaned(path, "extractive_question_answering")
    assert found == {**row, "answer": '["Ann"]', "answer_start": "0"}
    with pytest.raises(UserError, match="has no column 'at'"):  # it was asked for
        cleaned(path, "extractive_question_answering", answer_start="at")


def test_a_list_of_texts_is_a_text_of_lines(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", json.dumps([{"lines": ["秦川", "雄帝宅"]}, {"lines": [1]}]))
    data = DataConfig(source=str(path), columns={"text": "lines"})
    good, bad = rows_of(data, COLUMNS)
    assert good == {"text": "秦川\n雄帝宅"} and isinstance(bad, BadRow)


@pytest.mark.parametrize(
    ("said", "start"), [("0", 0), ("5", 8), ("8", 8), ("99", 8), ("", 0), ("3.0", 0)]
)
def test_an_answer_is_where_it_occurs_nearest_to_what_is_said(
    said: str, start: int, tmp_path: Path
) -> None:
    row = {"context": "Ann met Ann.", "question": "Who?", "answer": "Ann", "answer_start": said}
    path = write(tmp_path / "a.jsonl", json.dumps(row))
    (found,) = cleaned(path, "extractive_question_answering")
    assert found["answer_start"] == str(start)


def test_an_answer_that_does_not_occur_is_set_aside(tmp_path: Path) -> None:
    row = {"context": "Ann came.", "question": "Who?", "answer": "Bob"}
    path = write(tmp_path / "a.jsonl", json.dumps(row))
    (bad,) = cleaned(path, "extractive_question_answering")
    assert bad == BadRow(str(path), 1, "the answer 'Bob' does not occur in the context")

"""Text as it is encoded, what is no text at all, and streams that fail."""

import errno
import gzip
import io
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pydantic import ValidationError

from orchestrator.data.config import DataConfig
from orchestrator.data.reading import Note
from orchestrator.data.rows import check_columns, read_rows
from orchestrator.data.source_file import SourceFile
from orchestrator.data.sources import find_files
from orchestrator.errors import UserError
from orchestrator.storage import files as storage_files
from tests.unit.reading import PAIR, TEXT, read, refused, write

ROWS = "text,label\ncafé,pos\nnaïve,neg\n"
FOUND = [{"text": "café", "label": "pos"}, {"text": "naïve", "label": "neg"}]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32"])
@pytest.mark.parametrize("end", ["le", "be"])
def test_a_byte_order_mark_says_the_encoding(encoding: str, end: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", ("\ufeff" + ROWS).encode(f"{encoding}-{end}"))
    assert read(path) == (FOUND, [], [f"is {encoding.upper()}, as its first bytes say"])


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "utf-16-le", "utf-8", "utf-8-sig"])
def test_the_job_may_say_the_encoding(encoding: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", ROWS.encode(encoding))
    assert read(path, encoding=encoding) == (FOUND, [], [])


@pytest.mark.parametrize("name", ["txt", "jsonl", "json", "tsv"])
def test_all_text_formats_have_an_encoding(name: str, tmp_path: Path) -> None:
    content = {
        "txt": "café\n",
        "jsonl": '{"text": "café"}\n{"text": "x"}\n',
        "json": '[{"text": "café"}]',
        "tsv": "text\tn\ncafé\t1\n",
    }[name]
    path = write(tmp_path / f"a.{name}", content.encode("latin-1"))
    assert read(path, TEXT, encoding="latin-1")[0][0] == {"text": "café"}


@pytest.mark.parametrize("name", ["no-such-encoding", "hex", ""])
def test_an_unknown_encoding_is_refused_where_the_job_is_made(name: str) -> None:
    with pytest.raises(ValidationError, match="encoding"):
        DataConfig(source="x", encoding=name)


def test_a_row_in_another_encoding_is_set_aside_with_the_mend(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", ROWS.encode("latin-1") + b"plain,pos\n")
    rows, bad, _ = read(path)
    assert rows == [{"text": "plain", "label": "pos"}]
    assert [row.row for row in bad] == [2, 3]
    assert "byte 0xe9" in bad[0].reason and "data.encoding, such as latin-1" in bad[0].reason


def test_a_file_that_ends_within_a_character_is_cut_off(tmp_path: Path) -> None:
    told = refused(write(tmp_path / "a.txt", "one\ntwo\ncafé".encode()[:-1]), TEXT)
    assert "line 3, the last" in told and "cut off" in told


def test_utf_16_without_a_mark_is_told(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", ROWS.encode("utf-16-le"))
    assert "data.encoding: utf-16-le" in refused(path)


def test_what_a_crash_filled_with_nuls_is_damaged(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", (ROWS + "x,pos\n" * 1000).encode() + b"\0" * 5000)
    assert "line 1004 holds NUL bytes" in refused(path)


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n"
HEADS = [
    (b"PK\x03\x04" + b"\0" * 30 + b"data.csv", "zip", "unzip"),
    (b"PK\x03\x04" + b"\0" * 30 + b"xl/workbook.xml", "Excel", "csv"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"\0" * 50, "Excel", "csv"),
    (b"%PDF-1.7\n", "PDF", "text"),
    (gzip.compress(b"x"), "gzip", ".gz"),
    (pa.compress(b"x", "zstd", asbytes=True), "zstd", ".zst"),
    (b"BZh91AY&SY\x00\x01", "bzip2", "unpack"),
    (b"\xfd7zXZ\x00\x00", "xz", "unpack"),
    (b"PAR1\x15\x04", "parquet", "data.format"),
    (b"\x89PNG\r\n\x1a\n", "picture", ""),
    (b"\xff\xd8\xff\xe0", "picture", ""),
    (LFS, "Git LFS", "git lfs pull"),
]


@pytest.mark.parametrize(("head", "what", "mend"), HEADS, ids=[head[1] for head in HEADS])
@pytest.mark.parametrize("name", ["a.csv", "a.txt", "a.jsonl", "a.json", "a.tsv", "a.csv.zip.csv"])
def test_what_is_something_else_is_named_with_the_mend(
    name: str, head: bytes, what: str, mend: str, tmp_path: Path
) -> None:
    told = refused(write(tmp_path / name, head), TEXT)
    assert what in told and mend in told


@pytest.mark.parametrize("name", ["a.parquet", "a.csv.gz", "a.jsonl.zst"])
def test_a_pointer_is_told_under_any_name(name: str, tmp_path: Path) -> None:
    assert "git lfs pull" in refused(write(tmp_path / name, LFS), TEXT)


@pytest.mark.parametrize(
    "page", ["<!DOCTYPE html>\n<html></html>", "\n <html>", "<?xml ?><Error/>"]
)
@pytest.mark.parametrize("kind", ["csv", "tsv", "json", "jsonl", "parquet"])
def test_a_web_page_is_no_table_and_may_be_a_text(kind: str, page: str, tmp_path: Path) -> None:
    assert "download" in refused(write(tmp_path / f"a.{kind}", page), TEXT)
    assert read(write(tmp_path / "a.txt", page), TEXT)[0]


def test_random_bytes_are_no_table(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", b"x" + random.Random(1).randbytes(5000))
    assert "no csv file" in refused(path) or "NUL" in refused(path)


def test_a_text_file_has_no_labels_unless_its_place_is_one(tmp_path: Path) -> None:
    path = write(tmp_path / "good" / "a.txt", "x\n")
    assert "no column 'label'" in refused(path)
    assert read(path, columns={"label": "$folder"})[0] == [{"text": "x", "label": "good"}]


def documents(content: str, tmp_path: Path, limit: int) -> list[str]:
    data = DataConfig(source=str(write(tmp_path / "a.txt", content)), max_document_bytes=limit)
    (file,) = find_files(data).files
    return [row["text"] for row in read_rows(file, data.reading(TEXT)) if isinstance(row, dict)]


@pytest.mark.parametrize("word", ["word ", "wörter ", "字 ", "🙂 "])
def test_a_long_line_is_cut_at_spaces_near_the_limit(word: str, tmp_path: Path) -> None:
    content = word * 30_000
    found = documents(content, tmp_path, 1000)
    assert "".join(found) == content
    assert all(text.endswith(" ") for text in found)
    assert max(len(text.encode()) for text in found) <= 4000
    assert min(len(text.encode()) for text in found[:-1]) >= 900


@pytest.mark.parametrize("letter", ["x", "字", "🙂"])
def test_a_long_line_without_spaces_is_cut_and_nothing_is_lost(letter: str, tmp_path: Path) -> None:
    content = "a line\n" + letter * 50_000 + "\nanother line\n"
    found = documents(content, tmp_path, 1000)
    assert "".join(found) == content and len(found) > 10


# Files that fail


class Failing(io.RawIOBase):
    """A file that fails at some of its reads."""

    reads = 0

    def __init__(self, path: str, fails: set[int], code: int) -> None:
        self._file, self._fails, self._code = open(path, "rb", buffering=0), fails, code  # noqa: SIM115

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def readinto(self, buffer: Any) -> int:
        Failing.reads += 1
        if Failing.reads in self._fails:
            raise OSError(self._code, "the disk is tired")
        return self._file.readinto(memoryview(buffer)[:1000]) or 0


@pytest.fixture
def fail(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes reads fail, and waits short."""

    def failing(fails: set[int], code: int = errno.EIO) -> None:
        Failing.reads = 0
        monkeypatch.setattr(storage_files, "open_file", lambda uri: Failing(uri, fails, code))

    monkeypatch.setattr(storage_files, "WAITS", (0.0, 0.0))
    return failing


LINES = "".join(f'{{"text": "line number {i}"}}\n' for i in range(2000))


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst"])
def test_a_passing_error_is_tried_again_where_it_was(name: str, tmp_path: Path, fail: Any) -> None:
    pack = {
        "l": lambda c: c,
        "z": gzip.compress,
        "t": lambda c: pa.compress(c, "zstd", asbytes=True),
    }
    path = write(tmp_path / name, pack[name[-1]](LINES.encode()))
    fail({1, 4, 6, 7})
    rows, bad, _ = read(path, TEXT)
    assert (len(rows), bad, rows[-1]) == (2000, [], {"text": "line number 1999"})


def test_a_parquet_file_is_read_on_too(tmp_path: Path, fail: Any) -> None:
    texts = [random.Random(i).randbytes(20).hex() for i in range(2000)]
    pa.parquet.write_table(pa.table({"text": texts}), tmp_path / "a.parquet")
    fail({1, 2, 5, 9, 20})
    assert [row["text"] for row in read(tmp_path / "a.parquet", TEXT)[0]] == texts


def test_an_error_that_lasts_is_told_in_one_line(tmp_path: Path, fail: Any) -> None:
    path = write(tmp_path / "a.jsonl", LINES)
    fail(set(range(5, 100)))
    told = refused(path, TEXT)
    assert "the disk is tired, tried for" in told


def test_what_no_wait_mends_is_not_tried_again(tmp_path: Path, fail: Any) -> None:
    path = write(tmp_path / "a.jsonl", LINES)
    fail({3}, errno.EACCES)
    assert "tried" not in refused(path, TEXT)
    assert Failing.reads == 3


def test_damaged_compression_is_not_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage_files, "WAITS", (1000.0,))
    content = bytearray(gzip.compress(LINES.encode()))
    content[len(content) // 2] ^= 0xFF
    assert "damaged" in refused(write(tmp_path / "a.jsonl.gz", bytes(content)), TEXT)


def test_a_file_that_shrank_since_it_was_listed_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", LINES)
    data = DataConfig(source=str(path))
    (file,) = find_files(data).files
    path.write_text(LINES[: LINES.index("\n", 1000) + 1])
    with pytest.raises(UserError, match="ends after"):
        list(read_rows(file, data.reading(TEXT)))


def test_heads_are_checked_before_anything_starts(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", b"PK\x03\x04")
    file = SourceFile(str(path), "csv", 4, "")
    with pytest.raises(UserError, match="zip"):
        check_columns([file], DataConfig(source="x").reading(TEXT))


def test_a_file_without_rows_is_told(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", "text,label\n")
    write(tmp_path / "b.csv", "text,label\nfine,1\n")
    assert read(tmp_path)[2] == ["holds no rows"]


def test_an_encoding_of_two_orders_wants_a_mark(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "text,label\nfine,1\n".encode("utf-16-be"))
    assert "data.encoding: utf-16-le, or utf-16-be" in refused(path, encoding="utf-16")


def test_a_cut_off_file_with_a_mark_is_of_no_other_encoding(tmp_path: Path) -> None:
    told = refused(write(tmp_path / "a.csv", "text,label\nfine,1\n".encode("utf-16")[:-1]))
    assert told.endswith("within a character: the file is cut off")


def test_lines_may_end_with_carriage_returns(tmp_path: Path) -> None:
    rows = read(write(tmp_path / "a.txt", "one\rtwo\rthree\r"), TEXT)[0]
    assert [row["text"] for row in rows] == ["one", "two", "three"]


def test_a_log_in_colour_is_a_text(tmp_path: Path) -> None:
    assert len(read(write(tmp_path / "a.txt", "\x1b[31mred\x1b[0m\n" * 50), TEXT)[0]) == 50


def test_a_table_that_is_called_parquet_is_none(tmp_path: Path) -> None:
    assert "begins with PAR1" in refused(write(tmp_path / "a.parquet", "text,label\nfine,1\n"))


@pytest.mark.parametrize("blank", ["\n", "\n \n\n"])
def test_blank_lines_behind_parallel_texts_are_told_and_skipped(blank: str, tmp_path: Path) -> None:
    paths = {
        "source": str(write(tmp_path / "a.en", "one\ntwo\n" + blank)),
        "target": str(write(tmp_path / "a.de", "eins\nzwei\n")),
    }
    data = DataConfig(source=paths)
    reading = data.reading(PAIR, lines=True)
    (file,) = find_files(data).files
    *rows, note = read_rows(file, reading)
    assert [row["target"] for row in rows if isinstance(row, dict)] == ["eins", "zwei"]
    assert isinstance(note, Note) and "at its end" in note.text and note.file == paths["source"]

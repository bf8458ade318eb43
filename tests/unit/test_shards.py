"""Shards written, and read back by position."""

import hashlib
import os
import shutil
import stat
import sys
import threading
from pathlib import Path

import numpy as np
import pyarrow.fs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.data import shard_cache
from orchestrator.data.arrays import Arrays
from orchestrator.data.shards import ShardReader, write_shard
from orchestrator.errors import StageError
from orchestrator.storage import files
from orchestrator.storage.artifact import PreparedData, Shard
from orchestrator.storage.folder import Folder


def prepared_of(folder: Folder, *shards: Arrays) -> PreparedData:
    """Prepared data whose training split holds these shards."""
    written = [write_shard(folder, f"{i}.arrow", shard) for i, shard in enumerate(shards)]
    return PreparedData(
        folder=folder,
        seconds=0.0,
        summary="",
        processor="tokenizer.json",
        splits={"train": written, "validation": [], "test": []},
        documents={},
        source_bytes=0,
    )


def reader_of(folder: Folder, *shards: Arrays) -> ShardReader:
    return ShardReader(prepared_of(folder, *shards), "train")


def samples(count: int, seed: int) -> Arrays:
    """Rows of three columns that differ in shape and type."""
    random = np.random.default_rng(seed)
    return {
        "tokens": random.integers(0, 2**16, (count, 5), dtype=np.uint16),
        "image": random.normal(size=(count, 2, 3)).astype(np.float32),
        "label": random.integers(-(2**40), 2**40, count),
    }


@given(st.lists(st.integers(0, 16), max_size=40))
def test_rows_come_in_the_order_asked_for_with_repeats(tmp_path_factory, wanted: list[int]) -> None:
    parts = [samples(count, seed=count) for count in (0, 7, 0, 1, 9)]
    reader = reader_of(Folder(str(tmp_path_factory.mktemp("shards"))), *parts)
    assert reader.shard_rows == (0, 7, 0, 1, 9) and reader.num_rows == 17
    found = reader.read(wanted)
    assert found.keys() == parts[0].keys()
    for name, column in found.items():
        expected = np.concatenate([part[name] for part in parts])[wanted]
        np.testing.assert_array_equal(column, expected)
        assert column.dtype == expected.dtype


@pytest.mark.parametrize(
    "dtype", ["bool", "uint8", "int16", "uint16", "int64", "float16", "float32", "float64"]
)
@pytest.mark.parametrize("shape", [(6,), (6, 2), (6, 2, 3)])
def test_every_number_type_survives(tmp_path: Path, shape: tuple[int, ...], dtype: str) -> None:
    values = np.random.default_rng(0).integers(0, 2, shape).astype(dtype)
    found = reader_of(Folder(str(tmp_path)), {"x": values}).read(range(6))["x"]
    np.testing.assert_array_equal(found, values)
    assert found.dtype == values.dtype


def test_strided_arrays_are_written_as_they_look(tmp_path: Path) -> None:
    values = np.arange(48).reshape(8, 6)[::2, ::-3]
    found = reader_of(Folder(str(tmp_path)), {"x": values}).read([3, 0])
    np.testing.assert_array_equal(found["x"], values[[3, 0]])


def test_what_was_read_can_be_changed_without_changing_the_shard(tmp_path: Path) -> None:
    reader = reader_of(Folder(str(tmp_path)), samples(4, seed=0))
    before = reader.read([2])["tokens"].copy()
    reader.read([2])["tokens"][:] = 0
    np.testing.assert_array_equal(reader.read([2])["tokens"], before)


@pytest.mark.parametrize("row", [-1, 5])
def test_a_row_that_does_not_exist_raises(tmp_path: Path, row: int) -> None:
    reader = reader_of(Folder(str(tmp_path)), samples(3, seed=0), samples(2, seed=1))
    with pytest.raises(IndexError):
        reader.read([row])


def test_a_shard_is_described_as_it_lies_on_disk(tmp_path: Path) -> None:
    shard = write_shard(Folder(str(tmp_path)), "a.arrow", samples(7, seed=0))
    content = (tmp_path / "a.arrow").read_bytes()
    assert shard.rows == 7
    assert shard.bytes == len(content)
    assert shard.sha256 == hashlib.sha256(content).hexdigest()


def test_the_same_rows_give_the_same_file(tmp_path: Path) -> None:
    shards = [write_shard(Folder(str(tmp_path)), name, samples(7, seed=0)) for name in "ab"]
    assert shards[0].sha256 == shards[1].sha256


def test_no_rows_have_the_same_columns(tmp_path: Path) -> None:
    reader = reader_of(Folder(str(tmp_path)), samples(3, seed=0))
    some, none = reader.read([1]), reader.read([])
    assert none.keys() == some.keys()
    for name, column in none.items():
        assert column.shape == (0, *some[name].shape[1:]) and column.dtype == some[name].dtype


def test_a_split_without_shards_has_no_rows(tmp_path: Path) -> None:
    reader = ShardReader(prepared_of(Folder(str(tmp_path))), "validation")
    assert reader.num_rows == 0 and reader.shard_rows == () and reader.read([]) == {}
    with pytest.raises(IndexError):
        reader.read([0])


def mapped(folder: Path) -> set[str]:
    """The files of a folder that this process holds mapped or open."""
    maps = Path("/proc/self/maps").read_text().splitlines()
    links = [link for link in Path("/proc/self/fd").iterdir() if link.exists()]
    held = [line.split(maxsplit=5)[-1] for line in maps] + [str(link.resolve()) for link in links]
    return {Path(name).name for name in held if name.startswith(str(folder))}


@pytest.mark.skipif(sys.platform != "linux", reason="counts mapped files in /proc")
def test_only_the_shards_read_last_are_open(tmp_path: Path) -> None:
    prepared = prepared_of(Folder(str(tmp_path)), *(samples(2, seed=i) for i in range(9)))
    reader = ShardReader(prepared, "train", open_shards=3)
    assert mapped(tmp_path) == set()
    reader.read([0, 3])
    assert mapped(tmp_path) == {"0.arrow", "1.arrow"}
    everything = reader.read(range(18))
    assert mapped(tmp_path) == {"6.arrow", "7.arrow", "8.arrow"}
    reader.read([13, 4])  # the sixth, read again, is now a later one than the seventh
    assert len(mapped(tmp_path)) == 3 and {"2.arrow", "6.arrow"} <= mapped(tmp_path)
    whole = ShardReader(prepared, "train").read(range(18))
    np.testing.assert_array_equal(everything["image"], whole["image"])


def test_threads_may_share_a_reader(tmp_path: Path) -> None:
    prepared = prepared_of(Folder(str(tmp_path)), *(samples(5, seed=i) for i in range(6)))
    expected = ShardReader(prepared, "train").read(range(30))["label"]
    reader, right = ShardReader(prepared, "train", open_shards=1), list[bool]()

    def read(seed: int) -> None:
        random = np.random.default_rng(seed)
        for _ in range(50):
            rows = random.integers(0, 30, 8)
            right.append(bool((reader.read(rows)["label"] == expected[rows]).all()))

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(right) == 200 and all(right)


def lose(file: Path) -> None:
    file.unlink()


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def zero(file: Path) -> None:
    file.write_bytes(bytes(file.stat().st_size))


@pytest.mark.parametrize(
    ("damage", "reason"), [(lose, "No such file"), (cut, "bytes, not"), (zero, "Not an Arrow file")]
)
def test_a_missing_or_damaged_shard_says_which_and_what_to_do(
    tmp_path: Path, damage, reason: str
) -> None:
    folder = Folder(str(tmp_path / "prepared"))
    reader = reader_of(folder, samples(3, seed=0), samples(4, seed=1))
    damage(tmp_path / "prepared" / "1.arrow")
    reader.read([0, 2])
    with pytest.raises(StageError) as raised:
        reader.read([0, 3])
    message = str(raised.value)
    assert f"{folder}/1.arrow" in message and reason in message
    assert f"delete {folder} and run again" in message and "\n" not in message


def test_a_shard_with_other_rows_than_the_manifest_says_is_damaged(tmp_path: Path) -> None:
    prepared = prepared_of(Folder(str(tmp_path)), samples(3, seed=0))
    prepared.splits["train"] = [prepared.splits["train"][0].model_copy(update={"rows": 4})]
    with pytest.raises(StageError, match="3 rows, not 4"):
        ShardReader(prepared, "train").read([0])


def test_a_link_is_no_shard(tmp_path: Path) -> None:
    prepared = prepared_of(Folder(str(tmp_path)), samples(3, seed=0))
    (tmp_path / "0.arrow").rename(tmp_path / "elsewhere")
    (tmp_path / "0.arrow").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StageError, match="it is a link"):
        ShardReader(prepared, "train").read([0])


@given(st.data())
def test_a_flipped_byte_never_ends_the_process(tmp_path_factory, data: st.DataObject) -> None:
    folder = Folder(str(tmp_path_factory.mktemp("shards")))
    prepared = prepared_of(folder, samples(3, seed=0))
    file = Path(folder.uri) / "0.arrow"
    content = bytearray(file.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    file.write_bytes(content)
    try:
        columns = ShardReader(prepared, "train").read(range(3))
    except StageError:
        return
    assert all(len(column) == 3 for column in columns.values())


def test_too_many_open_files_are_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = reader_of(Folder(str(tmp_path)), samples(3, seed=0))

    def refuse(path: str) -> None:
        raise OSError(24, "Too many open files", path)

    monkeypatch.setattr("pyarrow.memory_map", refuse)
    with pytest.raises(OSError, match="Too many open files"):
        reader.read([0])


@pytest.fixture
def remote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folder:
    """A folder on a storage that is not local; what is copied from it lies in `copies`."""
    store = pyarrow.fs.SubTreeFileSystem(str(tmp_path), pyarrow.fs.LocalFileSystem())
    monkeypatch.setattr(files, "_filesystem", lambda scheme_and_host: store)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "copies"))
    (tmp_path / "bucket").mkdir()
    return Folder("toy://bucket")


def folder_of_copies(tmp_path: Path) -> Path:
    return tmp_path / "copies" / f"orchestrator-{os.getuid()}" / "shards"


def copies(tmp_path: Path) -> dict[str, bytes]:
    found = folder_of_copies(tmp_path).glob("*")
    return {path.name: path.read_bytes() for path in found if path.suffix != ".lock"}


def test_a_remote_shard_is_copied_once_and_named_by_its_content(
    remote: Folder, tmp_path: Path
) -> None:
    prepared = prepared_of(remote, samples(3, seed=0), samples(4, seed=1))
    first, second = prepared.splits["train"]
    expected = ShardReader(prepared, "train").read([1, 2])
    assert copies(tmp_path) == {first.sha256: remote.read(first.name)}
    (tmp_path / "bucket" / first.name).unlink()
    again = ShardReader(prepared, "train")
    np.testing.assert_array_equal(again.read([1, 2])["tokens"], expected["tokens"])
    again.read([6])
    assert copies(tmp_path).keys() == {first.sha256, second.sha256}


def test_a_copy_that_was_cut_short_is_made_anew(remote: Folder, tmp_path: Path) -> None:
    prepared = prepared_of(remote, samples(3, seed=0))
    before = ShardReader(prepared, "train").read([2])
    copy = folder_of_copies(tmp_path) / prepared.splits["train"][0].sha256
    cut(copy)
    after = ShardReader(prepared, "train").read([2])
    np.testing.assert_array_equal(after["tokens"], before["tokens"])


@pytest.mark.parametrize("damage", [lose, cut, zero])
def test_a_remote_shard_that_is_not_the_one_prepared_leaves_no_copy(
    remote: Folder, tmp_path: Path, damage
) -> None:
    reader = reader_of(remote, samples(3, seed=0))
    damage(tmp_path / "bucket" / "0.arrow")
    with pytest.raises(StageError, match=r"toy://bucket/0\.arrow .* delete toy://bucket and run"):
        reader.read([0])
    assert copies(tmp_path) == {}


def test_a_copy_that_another_put_there_is_made_anew(remote: Folder, tmp_path: Path) -> None:
    prepared = prepared_of(remote, samples(3, seed=0))
    shard: Shard = prepared.splits["train"][0]
    expected = ShardReader(prepared, "train").read([0, 1, 2])
    write_shard(remote, "other.arrow", samples(3, seed=1))
    planted = remote.read("other.arrow")
    assert len(planted) == shard.bytes
    (folder_of_copies(tmp_path) / shard.sha256).write_bytes(planted)
    found = ShardReader(prepared, "train").read([0, 1, 2])
    np.testing.assert_array_equal(found["tokens"], expected["tokens"])
    assert copies(tmp_path) == {shard.sha256: remote.read(shard.name)}


def test_a_copy_is_proved_once_in_a_process(
    remote: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = prepared_of(remote, samples(3, seed=0))
    ShardReader(prepared, "train").read([0])
    shard_cache._whole.clear()  # as another process finds it
    ShardReader(prepared, "train").read([0])
    monkeypatch.setattr("hashlib.file_digest", None)
    ShardReader(prepared, "train").read([0])


def bound(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, size: float) -> None:
    """Bound the copies to so many bytes: a share of the room of the real disk."""
    folder_of_copies(tmp_path).mkdir(parents=True, mode=0o700, exist_ok=True)
    monkeypatch.setattr(shard_cache, "SHARE", size / shutil.disk_usage(tmp_path).free)


def test_copies_that_were_opened_least_recently_make_room(
    remote: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog
) -> None:
    prepared = prepared_of(remote, *(samples(50, seed=i) for i in range(4)))
    shards = prepared.splits["train"]
    (tmp_path / "copies").mkdir()
    bound(monkeypatch, tmp_path, 3.5 * shards[0].bytes)
    reader = ShardReader(prepared, "train", open_shards=16)
    before = reader.read(range(150))  # three of four
    ShardReader(prepared, "train").read([0])  # the first is now the one opened last
    reader.read([199])
    assert copies(tmp_path).keys() == {shards[i].sha256 for i in (0, 2, 3)}
    assert len(list(folder_of_copies(tmp_path).iterdir())) == 6  # each with its lock
    assert "TMPDIR names a larger disk" in caplog.text
    mapped_still, opened_anew = reader.read(range(150)), ShardReader(prepared, "train")
    np.testing.assert_array_equal(mapped_still["label"], before["label"])
    np.testing.assert_array_equal(opened_anew.read(range(150))["label"], before["label"])


def test_a_bound_below_one_shard_keeps_one(
    remote: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = prepared_of(remote, *(samples(50, seed=i) for i in range(3)))
    expected = ShardReader(prepared, "train").read(range(150))["label"]
    bound(monkeypatch, tmp_path, 1)
    reader = ShardReader(prepared, "train", open_shards=1)
    for row in (0, 50, 100, 149):
        assert reader.read([row])["label"] == expected[row]
    for copy in folder_of_copies(tmp_path).iterdir():
        copy.unlink()
    again = ShardReader(prepared, "train", open_shards=1)
    np.testing.assert_array_equal(again.read(range(150))["label"], expected)
    assert copies(tmp_path).keys() == {prepared.splits["train"][2].sha256}


def test_a_copy_that_is_being_opened_is_not_deleted(
    remote: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = prepared_of(remote, samples(50, seed=0), samples(50, seed=1))
    first, second = prepared.splits["train"]
    (tmp_path / "copies").mkdir()
    bound(monkeypatch, tmp_path, 1)
    with shard_cache.local_file(remote, first) as path:
        with shard_cache.local_file(remote, second):
            assert path.read_bytes() == remote.read(first.name)
        assert copies(tmp_path).keys() == {first.sha256, second.sha256}


def test_what_a_killed_process_left_of_a_copy_is_deleted(remote: Folder, tmp_path: Path) -> None:
    prepared = prepared_of(remote, samples(3, seed=0))
    shard = prepared.splits["train"][0]
    folder_of_copies(tmp_path).mkdir(parents=True, mode=0o700)
    folder_of_copies(tmp_path).parent.chmod(0o700)
    (folder_of_copies(tmp_path) / f"{shard.sha256}.0123456789abcdef").write_bytes(b"half")
    ShardReader(prepared, "train").read([0])
    assert copies(tmp_path).keys() == {shard.sha256}


def test_a_stopped_process_does_not_keep_others_waiting_for_ever(
    remote: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = prepared_of(remote, samples(3, seed=0))
    (shard,) = prepared.splits["train"]
    monkeypatch.setattr(shard_cache, "LONGEST_WAIT", 0.2)
    with shard_cache.local_file(remote, shard) as path:
        path.unlink()  # as if it were still being copied
        assert len(ShardReader(prepared, "train").read([0])["label"]) == 1


def test_a_folder_that_others_may_read_is_closed_to_them(remote: Folder, tmp_path: Path) -> None:
    folder_of_copies(tmp_path).mkdir(parents=True)
    for folder in (folder_of_copies(tmp_path), folder_of_copies(tmp_path).parent):
        folder.chmod(0o755)
    reader_of(remote, samples(3, seed=0)).read([0])
    assert stat.S_IMODE(folder_of_copies(tmp_path).parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(folder_of_copies(tmp_path).stat().st_mode) == 0o700


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder to another user")
def test_a_folder_of_another_user_is_refused(remote: Folder, tmp_path: Path) -> None:
    reader = reader_of(remote, samples(3, seed=0))
    top = folder_of_copies(tmp_path).parent
    top.mkdir(parents=True, mode=0o700)
    os.chown(top, 12_345, -1)
    with pytest.raises(StageError, match=r"belongs to another user.*TMPDIR"):
        reader.read([0])
    assert os.listdir(top) == []


@pytest.mark.parametrize("kind", ["a link", "a file", "writable"])
def test_copies_go_to_no_folder_of_others(remote: Folder, tmp_path: Path, kind: str) -> None:
    reader = reader_of(remote, samples(3, seed=0))
    top = folder_of_copies(tmp_path).parent
    top.parent.mkdir()
    (tmp_path / "elsewhere").mkdir()
    if kind == "a link":
        top.symlink_to(tmp_path / "elsewhere")
    elif kind == "a file":
        top.write_bytes(b"")
    else:
        top.mkdir()
        top.chmod(0o777)
    with pytest.raises(StageError, match="TMPDIR"):
        reader.read([0])
    assert os.listdir(tmp_path / "elsewhere") == []


def test_copies_are_for_this_user_alone(remote: Folder, tmp_path: Path) -> None:
    reader_of(remote, samples(3, seed=0)).read([0])
    assert stat.S_IMODE(folder_of_copies(tmp_path).parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(folder_of_copies(tmp_path).stat().st_mode) == 0o700


def test_readers_at_once_make_whole_copies(remote: Folder, tmp_path: Path) -> None:
    prepared = prepared_of(remote, *(samples(50, seed=i) for i in range(4)))
    expected = ShardReader(prepared, "train").read(range(200))["label"]
    for copy in (folder_of_copies(tmp_path)).iterdir():
        copy.unlink()
    start, found = threading.Barrier(4), list[np.ndarray]()

    def read() -> None:
        reader = ShardReader(prepared, "train")
        start.wait()
        found.append(reader.read(range(200))["label"])

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4 and all((labels == expected).all() for labels in found)
    assert copies(tmp_path).keys() == {shard.sha256 for shard in prepared.splits["train"]}

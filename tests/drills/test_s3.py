"""Storage on a real S3 server that is slow, refuses, hangs up or answers by halves."""

import hashlib
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.errors import StageError, StorageError
from orchestrator.job.request_log import RequestLogConfig
from orchestrator.serve.exchange import Exchange
from orchestrator.serve.logged import read_requests
from orchestrator.serve.metrics import Unobserved
from orchestrator.serve.request_log import RequestLog
from orchestrator.storage import files
from orchestrator.storage.artifact import Evaluation, Shard
from orchestrator.storage.files import SteadyFile, once
from orchestrator.storage.folder import MANIFEST, Folder
from tests.drills.s3 import Kind, Storage, storage

PART = 10 * 2**20  # bytes of Arrow's parts
BIG = os.urandom(2 * PART + 4321)
SILENCE = 1.0  # seconds that are the time-out here
PASSING = 4  # broken requests: more than Arrow itself tries again

READS: tuple[Kind, ...] = ("slow down", "reset", "lost answer", "short body", "broken body")
WRITES: tuple[Kind, ...] = ("slow down", "reset", "lost answer", "cut upload")


@pytest.fixture(scope="module")
def server() -> Iterator[Storage]:
    with storage() as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        patch.setattr(files, "S3_SECONDS", SILENCE)
        files._filesystem.cache_clear()  # it may know another server
        yield server
    files._filesystem.cache_clear()


@pytest.fixture
def s3(server: Storage, monkeypatch: pytest.MonkeyPatch) -> Iterator[Storage]:
    monkeypatch.setattr(files, "WAITS", (0.1,) * PASSING)
    yield server
    server.heal()


@pytest.fixture
def folder(s3: Storage, request: pytest.FixtureRequest) -> Folder:
    name = hashlib.sha256(request.node.name.encode()).hexdigest()[:12]
    return Folder(f"s3://drill/{name}")


def test_a_file_of_several_parts_is_read_back_whole_and_by_ranges(
    folder: Folder, s3: Storage
) -> None:
    folder.write("big", BIG[:7], memoryview(BIG)[7:])
    assert s3.count("PUT", "partNumber=[123]") == 3
    assert folder.read("big") == BIG
    assert folder.size("big") == len(BIG)
    assert folder.head("big", 10) == BIG[:10] and folder.tail("big", 10) == BIG[-10:]
    with SteadyFile(f"{folder}/big") as file:
        file.seek(PART - 5)
        assert file.read(10) == BIG[PART - 5 : PART + 5]
    assert f"{folder.name}/big" not in s3.unfinished_uploads()


def test_more_files_than_a_listing_has_are_listed_and_deleted(folder: Folder, s3: Storage) -> None:
    for number in range(1_005):
        assert s3.ask("PUT", f"/drill/{folder.name}/{number:04d}", b"x")[0] == 200
    assert len(folder.names()) == len(folder.stamps()) == 1_005
    assert s3.count("GET", "continuation-token=") == 2
    folder.delete()
    assert folder.names() == []


def test_a_file_is_removed_and_its_neighbours_stay(folder: Folder) -> None:
    for name in ("a", "a.txt", "b"):
        folder.write(name, b"x")
    folder.remove("a")
    folder.remove("a")
    assert folder.names() == ["a.txt", "b"]


def test_a_log_of_requests_keeps_to_its_size_and_loses_what_the_storage_refuses(
    folder: Folder, s3: Storage
) -> None:
    totals: Counter[str] = Counter()

    class Counted(Unobserved):
        def add(self, name: str, amount: float = 1.0, **labels: str) -> None:
            totals[labels.get("reason", "logged")] += int(amount)

    def keep(number: int) -> None:
        """In a file of its own: a log writes what it has when it is closed."""
        log = RequestLog(config, folder, Counted())
        text = f'"{os.urandom(150_000).hex()}"'.encode()
        log.add(Exchange(str(number), time.time(), "/", "v", 200, True, 0.1, b"1", text, False))
        log.close()

    config = RequestLogConfig(share=1, megabytes=1)
    for number in range(8):
        keep(number)
    logs = folder / "requests"
    assert 3 <= len(logs.names()) < 8
    assert sum(stamp.size for stamp in logs.stamps().values()) <= 1 << 20
    ids = [each.id for each in read_requests(folder)]
    assert ids == [str(number) for number in range(8 - len(ids), 8)]
    s3.fail("slow down", "PUT", "/requests/", times=1_000)
    keep(8)
    assert totals == {"logged": 8, "storage": 1}
    assert [each.id for each in read_requests(folder)][-1] == "7"


def test_an_empty_file_is_a_file(folder: Folder) -> None:
    folder.write("empty", b"")
    assert folder.read("empty") == b"" and folder.size("empty") == 0
    assert folder.exists("empty") and not folder.exists("none")
    with pytest.raises(FileNotFoundError):
        folder.read("none")


@pytest.mark.parametrize("kind", READS)
def test_a_read_that_fails_in_passing_has_the_same_content(
    kind: Kind, folder: Folder, s3: Storage
) -> None:
    folder.write("big", BIG)
    fault = s3.fail(kind, "GET", "/big", times=PASSING)
    assert folder.read("big") == BIG
    with SteadyFile(f"{folder}/big") as file:
        again = s3.fail(kind, "GET", "/big", times=PASSING)
        buffer = bytearray(len(BIG))
        assert file.readinto(buffer) == len(BIG) and buffer == BIG
    assert fault.done == again.done == PASSING


@pytest.mark.parametrize("kind", WRITES)
def test_a_write_that_fails_in_passing_has_the_same_content(
    kind: Kind, folder: Folder, s3: Storage
) -> None:
    small = s3.fail(kind, "PUT", "/small", times=PASSING)
    folder.write("small", b"a" * 100_000)
    part = s3.fail(kind, "PUT", "partNumber=2", times=PASSING)
    folder.write("big", BIG)
    assert small.done == part.done == PASSING
    assert folder.read("small") == b"a" * 100_000 and folder.read("big") == BIG


@pytest.mark.parametrize("kind", ["slow down", "reset"])
def test_listing_and_deleting_outlast_a_passing_failure(
    kind: Kind, folder: Folder, s3: Storage
) -> None:
    folder.write("a", b"1")
    s3.fail(kind, "GET", "list-type=2", times=PASSING)
    assert folder.names() == ["a"]
    s3.fail(kind, "HEAD", "/a", times=PASSING)
    assert folder.size("a") == 1
    s3.fail(kind, "POST", "delete", times=PASSING)
    folder.delete()
    assert folder.names() == []


def test_an_upload_whose_end_is_not_confirmed_is_uploaded_again(
    folder: Folder, s3: Storage
) -> None:
    fault = s3.fail("lost answer", "POST", "uploadId")
    folder.write("big", BIG)
    assert fault.done == 1 and folder.read("big") == BIG


@pytest.mark.parametrize("method", ["GET", "PUT"])
def test_an_answer_later_than_the_time_out_is_asked_for_again(
    method: str, folder: Folder, s3: Storage
) -> None:
    folder.write("big", BIG)
    fault = s3.fail("stall", method, "/big", seconds=3 * SILENCE)
    if method == "PUT":
        folder.write("big", BIG)
    assert folder.read("big") == BIG
    assert fault.done == 1


@pytest.mark.parametrize("kind", ["slow down", "broken body", "stall"])
def test_a_read_that_keeps_failing_ends_in_one_line(
    kind: Kind, folder: Folder, s3: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "WAITS", (0.1,))
    folder.write("a", b"1" * 1_000)
    s3.fail(kind, "GET", "/a", times=1_000, seconds=3 * SILENCE)
    started = time.monotonic()
    with pytest.raises(StorageError) as raised:
        folder.read("a")
    line = str(raised.value)
    assert line.startswith(f"cannot read {folder}/a: ") and "AWS Error" in line
    assert "\n" not in line
    assert time.monotonic() - started < 2 * 4 * SILENCE + 5  # two tries, of up to four requests


@pytest.mark.parametrize("kind", WRITES)
def test_a_write_that_keeps_failing_leaves_what_was_there(
    kind: Kind, folder: Folder, s3: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "WAITS", (0.1,))
    folder.write("big", b"before")
    s3.fail(kind, "PUT", "partNumber=2", times=1_000)
    with pytest.raises(StorageError, match=f"^cannot write {folder}/big: .*AWS Error"):
        folder.write("big", BIG)
    s3.heal()
    assert folder.read("big") == b"before"
    assert folder.names() == ["big"]


def test_a_folder_whose_upload_is_cut_is_no_artifact(folder: Folder, s3: Storage) -> None:
    s3.fail("cut upload", "PUT", "/model", times=1_000)
    files_of_it = [("report.md", [b"text"]), ("model", [b"1" * 10_000]), (MANIFEST, [b"{}"])]
    with once(), pytest.raises(StageError, match=f"cannot write {folder}/model"):
        folder.write_whole(files_of_it)
    s3.heal()
    assert Evaluation.load(folder) is None
    assert folder.names() == ["report.md"]


def test_a_write_that_is_interrupted_between_two_parts_leaves_no_half_file(
    folder: Folder, s3: Storage
) -> None:
    def parts() -> Iterator[bytes]:
        yield BIG
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        folder._upload("big", parts())  # type: ignore[arg-type]
    assert folder.names() == []
    assert f"{folder.name}/big" not in s3.unfinished_uploads()


def test_a_caller_that_tries_again_itself_is_not_delayed(folder: Folder, s3: Storage) -> None:
    fault = s3.fail("reset", "PUT", "/a", times=1_000)
    with once(), pytest.raises(StorageError):
        folder.write("a", b"1")
    assert fault.done <= 3  # the tries of pyarrow itself


@pytest.mark.usefixtures("s3")
def test_a_bucket_that_does_not_exist_ends_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "WAITS", (60.0,))
    started = time.monotonic()
    with pytest.raises(
        StorageError, match=r"cannot write s3://nosuchbucket/run/a: .*NO_SUCH_BUCKET"
    ):
        Folder("s3://nosuchbucket/run").write("a", b"1")
    assert time.monotonic() - started < 5


# Several processes of one machine


READER = """
import sys
from orchestrator.data.shard_cache import local_file
from orchestrator.storage.artifact import Shard
from orchestrator.storage.folder import Folder
shard = Shard(name="a.arrow", rows=1, bytes=int(sys.argv[2]), sha256=sys.argv[3])
with local_file(Folder(sys.argv[1]), shard) as path:
    assert path.stat().st_size == shard.bytes
    print(path)
"""


@pytest.fixture
def readers(folder: Folder, s3: Storage, tmp_path: Path) -> Iterator["Readers"]:
    content = os.urandom(50_000)
    folder.write("a.arrow", content)
    shard = Shard(
        name="a.arrow",
        rows=1,
        bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
    )
    readers = Readers(folder, shard, tmp_path)
    yield readers
    for process in readers.started:
        process.kill()
        process.wait()


class Readers:
    """Processes that each open the copy of one shard on this machine."""

    def __init__(self, folder: Folder, shard: Shard, temporary: Path) -> None:
        self.started: list[subprocess.Popen[str]] = []
        self.arguments = [str(folder), str(shard.bytes), shard.sha256]
        self.environment = os.environ | {"TMPDIR": str(temporary)}

    def start(self) -> "subprocess.Popen[str]":
        self.started.append(
            subprocess.Popen(
                [sys.executable, "-c", READER, *self.arguments],
                env=self.environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        return self.started[-1]


def test_processes_of_a_machine_download_a_shard_once(readers: Readers, s3: Storage) -> None:
    s3.fail("stall", "GET", "/a.arrow", seconds=2 * SILENCE)  # until all of them want it
    for process in [readers.start() for _ in range(4)]:
        output, errors = process.communicate(timeout=60)
        assert process.returncode == 0 and output, errors
    assert s3.count("GET", "/a.arrow") == 1


def test_a_killed_process_leaves_its_download_to_another(readers: Readers, s3: Storage) -> None:
    s3.fail("stall", "GET", "/a.arrow", seconds=30)
    first = readers.start()
    deadline = time.monotonic() + 60
    while not s3.count("GET", "/a.arrow"):
        assert time.monotonic() < deadline and first.poll() is None
        time.sleep(0.05)
    second = readers.start()
    time.sleep(1.5)
    assert second.poll() is None and s3.count("GET", "/a.arrow") == 1  # it waits
    first.kill()
    output, errors = second.communicate(timeout=20)
    assert second.returncode == 0 and output, errors
    assert s3.count("GET", "/a.arrow") == 2

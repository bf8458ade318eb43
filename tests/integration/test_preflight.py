"""Preflight on a cluster of two nodes, the second of which sees other mounts than the first."""

import contextlib
import importlib.metadata
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray

import orchestrator
from orchestrator.cluster import waiting
from orchestrator.cluster.connection import _room
from orchestrator.cluster.preflight import check_nodes
from orchestrator.cluster.room import Room
from orchestrator.cluster.waiting import waits_shown
from orchestrator.errors import UserError
from orchestrator.storage.folder import Folder
from tests.integration.conftest import Silent, orchestrate, write_job, write_texts
from tests.ray_head import Head, ray_node

SECOND = "127.0.0.2"
pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or os.getuid() != 0 or shutil.which("unshare") is None,
    reason="only root on Linux can give a process other mounts",
)


class Second:
    """The second node: 2 CPUs, and mounts of its own."""

    def __init__(self, process: int) -> None:
        self._process = process

    @contextlib.contextmanager
    def mounted(self, *options: str | Path) -> Iterator[None]:
        """Within the block, something is mounted there that this process does not see."""
        inside = ["nsenter", "--target", str(self._process), "--mount"]
        subprocess.run([*inside, "mount", *options], check=True)
        try:
            yield
        finally:
            subprocess.run([*inside, "umount", "--lazy", options[-1]], check=True)


@pytest.fixture(scope="module")
def second(head: Head, connected: Any) -> Iterator[Second]:
    before = len(ray.nodes())
    with ray_node(head, SECOND, cpus=2, under=["unshare", "--mount"]) as process:
        deadline = time.monotonic() + 60
        while len(ray.nodes()) == before:
            assert time.monotonic() < deadline, "the second node did not come up"
            time.sleep(0.2)
        yield Second(process.pid)
    while any(node["Alive"] and node["NodeManagerAddress"] == SECOND for node in ray.nodes()):
        time.sleep(0.2)


@pytest.fixture
def room(second: Second) -> Room:
    return _room(started_here=False)


def refusal(room: Room, storage: Path, *sources: Path) -> str:
    """Why the nodes cannot be used."""
    started = time.monotonic()
    with pytest.raises(UserError) as raised:
        check_nodes(room, Folder(str(storage)), [str(path) for path in sources])
    assert time.monotonic() - started < 30
    assert len(str(raised.value).splitlines()) == 1
    return str(raised.value)


def test_nodes_that_share_everything_are_no_problem(room: Room, tmp_path: Path) -> None:
    source = tmp_path / "data.txt"
    source.write_text("words")
    checked = check_nodes(room, Folder(str(tmp_path / "runs")), [str(source)])
    assert checked.notes == []
    there = psutil.virtual_memory().total
    assert [node.resources["memory"] for node in checked.room.nodes] == [there, there]
    assert not list((tmp_path / "runs").iterdir())


def test_storage_of_one_node_alone_is_refused_before_anything_is_prepared(
    second: Second, head: Head, tmp_path: Path
) -> None:
    write_texts(tmp_path / "data")
    job = write_job(tmp_path)
    (tmp_path / "runs").mkdir()
    with second.mounted("-t", "tmpfs", "tmpfs", tmp_path / "runs"):
        done = orchestrate("run", job, environment=head.environment)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
    assert f"storage = {tmp_path}/runs/tiny: node {SECOND} does not see" in done.stderr
    assert not list((tmp_path / "runs" / "tiny").glob("*prepare*"))
    assert not list((tmp_path / "runs" / "tiny").glob(".preflight*"))


def test_storage_that_a_node_cannot_write_is_refused(
    second: Second, room: Room, tmp_path: Path
) -> None:
    with second.mounted("-o", "bind,ro", tmp_path, tmp_path):
        text = refusal(room, tmp_path)
    assert f"node {SECOND} cannot write there: Read-only file system" in text


def test_a_source_of_one_node_alone_is_refused(second: Second, room: Room, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for name in ("a.txt", "b.txt"):
        (data / name).write_text(f"words of {name}")
    sources = data / "a.txt", data / "b.txt"
    with second.mounted("-t", "tmpfs", "tmpfs", data):
        text = refusal(room, tmp_path, *sources)
    assert f"data.source: node {SECOND} cannot read {data}/a.txt: No such file" in text
    (tmp_path / "other").write_text("more words")
    with second.mounted("--bind", tmp_path / "other", data / "b.txt"):
        text = refusal(room, tmp_path, *sources)
    assert f"node {SECOND} has another file as {data}/b.txt" in text


def test_another_version_of_torch_is_refused(second: Second, room: Room, tmp_path: Path) -> None:
    files = importlib.metadata.files("torch") or []
    metadata = next(Path(str(file.locate())) for file in files if file.name == "METADATA")
    here = importlib.metadata.version("torch").split("+")[0]
    other = tmp_path / "METADATA"
    other.write_text(metadata.read_text().replace(f"Version: {here}", "Version: 1.13.1", 1))
    with second.mounted("--bind", other, metadata):
        assert f"node {SECOND} has torch 1.13.1, this command {here}" in refusal(room, tmp_path)


def test_other_code_of_the_orchestrator_is_refused(
    second: Second, room: Room, tmp_path: Path
) -> None:
    code = Path(orchestrator.__file__)
    other = tmp_path / "__init__.py"
    other.write_text(code.read_text() + "# changed\n")
    with second.mounted("--bind", other, code):
        text = refusal(room, tmp_path)
    assert f"node {SECOND} has orchestrator {orchestrator.__version__} (code " in text
    with second.mounted("-t", "tmpfs", "tmpfs", code.parent):
        text = refusal(room, tmp_path)
    assert f"node {SECOND} has no orchestrator" in text


def test_workers_that_only_the_totals_hold_are_refused(
    second: Second, head: Head, tmp_path: Path
) -> None:
    write_texts(tmp_path / "data")
    job = write_job(tmp_path, cluster__workers=2, cluster__cpus_per_worker=3)  # of 4 and 2 CPUs
    done = orchestrate("run", job, environment=head.environment)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
    assert "cluster.workers = 2 with 3 CPUs each: there is room for 1" in done.stderr
    assert "1 node of 4 CPUs, 1 node of 2 CPUs" in done.stderr


class Shown(Silent):
    """Keeps what a stage shows."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def show(self, values: dict[str, Any]) -> None:
        self.texts.append(values[waiting.FIGURE])


OTHER_JOB = """
import ray, sys
ray.init(log_to_driver=False)
@ray.remote(num_cpus=2)
class Holder:
    def ready(self): pass
holders = [Holder.remote() for _ in range(int(sys.argv[1]))]
ray.get([holder.ready.remote() for holder in holders])
print("held", flush=True)
sys.stdin.readline()
"""


class OtherJob:
    """A job that holds `count` times 2 CPUs until it is ended."""

    def __init__(self, head: Head, count: int) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", OTHER_JOB, str(count)], env=head.environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "held\n"

    def end(self) -> None:
        self.process.communicate("\n", timeout=30)


def test_what_waits_says_for_what(
    second: Second, head: Head, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "SECONDS", 0.5)
    shown, other = Shown(), OtherJob(head, count=2)
    with waits_shown(shown, {"CPU": 2.0}, lambda: 2):
        group = ray.util.placement_group([{"CPU": 2}] * 2)
        _until(lambda: shown.texts)
        other.end()
        assert group.wait(30)
        _until(lambda: shown.texts[-1] == "")
        ray.util.remove_placement_group(group)
    assert shown.texts[0] == "2 more CPUs on one node: 4 of 6 are used by other jobs"


def test_a_stage_that_waits_says_so_in_its_log_and_goes_on(
    second: Second, head: Head, tmp_path: Path
) -> None:
    write_texts(tmp_path / "data")
    other = OtherJob(head, count=3)
    command = subprocess.Popen(
        [sys.executable, "-m", "orchestrator", "prepare", write_job(tmp_path)],
        env=head.environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert command.stdout is not None
    lines: list[str] = []
    for line in command.stdout:
        lines.append(line)
        if "waiting for 1 more CPU: 6 of 6 are used by other jobs" in line:
            break
    other.end()
    rest, _ = command.communicate(timeout=60)
    assert command.returncode == 0, "".join(lines) + rest
    assert lines[-1].startswith("reading: 0/120 files"), "".join(lines) + rest


def _until(holds: Any) -> None:
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.1)

"""A whole job on S3, whose data is there too."""

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pyarrow.fs
import pytest
import yaml

from orchestrator.storage.files import _filesystem, locate
from orchestrator.storage.folder import MANIFEST, Folder
from tests.drills.s3 import Storage, storage
from tests.integration.conftest import orchestrate, stages, tiny_job, write_texts
from tests.ray_head import Head, free_port, ray_head

pytestmark = pytest.mark.timeout(500)
SWEEP = {"trials": 2, "steps": 6, "space": {"train.lr": {"loguniform": [1e-3, 1e-2]}}}
PORT = free_port()


@pytest.fixture(scope="module")
def s3() -> Iterator[Storage]:
    with storage() as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        _filesystem.cache_clear()  # it may know another server
        yield server
    _filesystem.cache_clear()


@pytest.fixture(scope="module")
def s3_head(s3: Storage) -> Iterator[Head]:
    """A head whose workers have the settings of the S3 server."""
    with ray_head(cpus=4) as started:
        yield started


@pytest.fixture(scope="module")
def source(s3: Storage, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = write_texts(tmp_path_factory.mktemp("texts"))
    content = "".join(path.read_text() for path in sorted(folder.glob("*.txt")))
    for number in range(3):
        Folder("s3://drill/texts").write(f"{number}.txt", f"{number} {content}".encode())
    return "s3://drill/texts"


def write(folder: Path, name: str, source: str, **changes: Any) -> Path:
    # The precision is fixed: the faster one may differ between runs, and with it the bits.
    changes = {"train__precision": "fp32", "train__checkpoint_every": 10} | changes
    job = tiny_job(folder, name=name, storage="s3://drill/runs", cluster__workers=2, **changes)
    job["data"] |= {"source": source, "lines": False}
    job["serve"] = {"port": PORT, "max_tokens": 8}
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(job))
    return path


@pytest.fixture(scope="module")
def finished(
    s3: Storage, s3_head: Head, source: str, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    job = write(tmp_path_factory.mktemp("s3"), "whole", source, tune=SWEEP)
    done = orchestrate(
        "run", job, "--until", "evaluate", environment=s3_head.environment, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return job


def listing(run: str) -> list[str]:
    """The paths of all files of a run."""
    filesystem, path = locate(f"s3://drill/runs/{run}")
    found = filesystem.get_file_info(pyarrow.fs.FileSelector(path, recursive=True))
    files = [info.path for info in found if info.type == pyarrow.fs.FileType.File]
    return [name.removeprefix(f"{path}/") for name in files]


def artifacts(run: str) -> list[str]:
    """The paths of all files of a run but its events, of which each command writes some."""
    return [name for name in listing(run) if not name.startswith("events/")]


def assert_whole(run: str, s3: Storage) -> None:
    """Check that a run has nothing half written, and nothing that was for a moment only."""
    files = listing(run)
    folders = {name.rsplit("/", 1)[0] for name in files if "/" in name}
    stages = {name.split("/")[0] for name in folders} - {"events"}
    checkpoints = {folder for folder in folders if folder.rsplit("/", 1)[-1].startswith("step-")}
    assert checkpoints
    assert all(f"{folder}/{MANIFEST}" in files for folder in stages | checkpoints), files
    passing = ("lease", ".tmp", "/ray/")
    assert not [name for name in files if any(word in name for word in passing)]
    assert s3.unfinished_uploads() == []


def test_every_stage_leaves_an_artifact_and_nothing_half_written(
    finished: Path, s3: Storage, s3_head: Head
) -> None:
    results = stages(finished, s3_head.environment)
    for stage in ("prepare", "tune", "train", "evaluate"):
        assert results[stage]["state"] == "finished"
        assert results[stage]["path"].startswith("s3://drill/runs/whole/")
    assert_whole("whole", s3)


def test_a_rerun_says_that_all_is_finished(finished: Path, s3_head: Head) -> None:
    before = artifacts("whole")
    nowhere = s3_head.environment | {"RAY_ADDRESS": "127.0.0.1:1"}
    done = orchestrate("run", finished, "--until", "evaluate", environment=nowhere)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("already finished") == 4
    assert artifacts("whole") == before


def test_the_model_is_served_from_s3(finished: Path, s3_head: Head) -> None:
    command = [sys.executable, "-m", "orchestrator", "run", str(finished)]
    process = subprocess.Popen(command, env=s3_head.environment, stdout=subprocess.DEVNULL)
    try:
        deadline, answer = time.monotonic() + 120, None
        while answer is None or answer.status_code == 404:  # the proxy learns of the route late
            assert time.monotonic() < deadline
            assert process.poll() in (None, 0)  # the endpoint stays when the command has ended
            with contextlib.suppress(httpx.TransportError):
                answer = httpx.post(
                    f"http://127.0.0.1:{PORT}/v1/completions",
                    json={"model": "whole", "prompt": "the the", "max_tokens": 4},
                )
            time.sleep(0.5)
        assert answer.status_code == 200, answer.text
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)

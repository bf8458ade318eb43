"""A run with its own Ray is interrupted in every stage, and the same command continues it."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.integration.conftest import stages, write_job, write_texts
from tests.ray_head import free_port


def start(job: Path) -> "subprocess.Popen[str]":
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    return subprocess.Popen(
        [sys.executable, "-u", "-m", "orchestrator", "run", str(job)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        start_new_session=True,
    )


def read_until(process: "subprocess.Popen[str]", text: str) -> str:
    assert process.stdout is not None
    seen = ""
    for line in process.stdout:
        seen += line
        if text in line:
            return seen
    raise AssertionError(f"never printed {text!r}:\n{seen}")


def interrupt(process: "subprocess.Popen[str]", number: int = signal.SIGINT) -> str:
    """Send Ctrl-C to the whole process group, or SIGTERM to one process; returns the rest of the
    output."""
    if number == signal.SIGINT:
        os.killpg(process.pid, number)
    else:
        os.kill(process.pid, number)
    started = time.monotonic()
    rest, _ = process.communicate(timeout=60)
    print(f"ended {time.monotonic() - started:.1f} s after {signal.Signals(number).name}")
    assert time.monotonic() - started < 30  # Kubernetes waits as long before it kills
    return rest


def wait_for_ray(process: "subprocess.Popen[str]") -> None:
    """Until the command has started the first process of its Ray, which is not ready then."""
    for _ in range(600):
        children = psutil.Process(process.pid).children(recursive=True)
        if any("gcs_server" in child.name() for child in children):
            return
        time.sleep(0.05)
    raise AssertionError("Ray was not started")


def half_written(job: Path) -> list[Path]:
    return list((job.parent / "runs").rglob("*.tmp"))


def left_over(session: int) -> list[str]:
    """The processes of the session that are still alive seconds after its leader has ended."""
    for _ in range(50):
        listing = subprocess.run(
            ["ps", "-s", str(session), "-o", "stat=,args="], capture_output=True, text=True
        ).stdout
        alive = [line for line in listing.splitlines() if not line.startswith("Z")]
        if not alive:
            return []
        time.sleep(0.2)
    return alive


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("interrupt")
    write_texts(folder / "data")
    sweep: dict[str, Any] = {"trials": 4, "steps": 40, "scheduler": "none"}
    sweep["space"] = {"train.lr": {"loguniform": [1e-3, 1e-2]}}
    train = {"steps": 200, "global_batch_size": 8, "eval_every": 10, "eval_rows": 8}
    yield write_job(folder, tune=sweep, train=train, serve={"port": free_port()})


@pytest.mark.timeout(600)
def test_a_run_interrupted_in_every_stage_continues_where_it_stopped(job: Path) -> None:
    for stage, number, code in [
        ("", signal.SIGTERM, 143),  # while Ray starts
        ("prepare", signal.SIGTERM, 143),
        ("tune", signal.SIGTERM, 143),
        ("train", signal.SIGINT, 130),
        ("evaluate", signal.SIGINT, 130),
        ("serve", signal.SIGTERM, 143),
    ]:
        process = start(job)
        before = ""
        if stage:
            before = read_until(process, f"{stage}: started")
            time.sleep(1.0)
        else:
            wait_for_ray(process)
        rest = interrupt(process, number)
        assert process.returncode == code, rest
        assert "the same command continues" in rest
        assert "Traceback" not in before + rest
        assert left_over(process.pid) == []
        assert half_written(job) == []

    process = start(job)
    before = read_until(process, "serving until Ctrl-C")
    assert before.count("already finished") == 4
    url = re.findall(r"http://\S+/v1/completions", before)[-1]
    assert httpx.post(url, json={"prompt": "the", "max_tokens": 2}).status_code == 200
    assert stages(job, dict(os.environ))["serve"]["state"] == "running"
    rest = interrupt(process)
    assert process.returncode == 0, rest
    assert "Traceback" not in rest
    assert left_over(process.pid) == []
    assert stages(job, dict(os.environ))["serve"]["state"] == "pending"

    process = start(job)
    read_until(process, "serving until Ctrl-C")
    interrupt(process, signal.SIGTERM)
    assert process.returncode == 143
    assert left_over(process.pid) == []


def test_a_second_run_of_the_same_name_is_refused_at_once(job: Path) -> None:
    from orchestrator.job.file import load_job
    from orchestrator.run import Run

    with Run(load_job(str(job))).lease():
        process = start(job)
        rest, _ = process.communicate(timeout=60)
    assert process.returncode == 75
    assert f"in use by process {os.getpid()}" in rest

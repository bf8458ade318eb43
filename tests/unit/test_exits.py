"""Exit codes of real processes: a scheduler decides by them whether to run the command again."""

import errno
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from ray.exceptions import ActorUnavailableError, NodeDiedError, OutOfMemoryError, RayTaskError

from orchestrator.cli.exits import exit_code
from orchestrator.errors import StageError, TryAgainError
from orchestrator.job.file import load_job
from orchestrator.run import Run
from orchestrator.storage.failures import failed
from tests.ray_head import free_port


@pytest.fixture(autouse=True)
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A job in the working directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data.txt").write_text("the cat sat on the mat\n\n" * 400)
    path = tmp_path / "job.yaml"
    path.write_text("{name: a, task: language_modelling, data: {source: data.txt}}")
    return path


def orchestrate(*arguments: str, **environment: str) -> tuple[int, str]:
    """The exit code of a command, and the last line of its output, which logs end with."""
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator", *arguments],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
    )
    assert "Traceback" not in done.stdout
    return done.returncode, done.stdout.splitlines()[-1]


def test_a_job_that_is_wrong_need_not_be_run_again() -> None:
    code, last = orchestrate("prepare", "job.yaml", "train.lrr=1")
    assert code == 2
    assert last == "error: command line: train.lrr: unknown key; did you mean lr?"


def test_a_stage_that_failed_need_not_be_run_again() -> None:
    folder = Path(Run(load_job("job.yaml")).prepare_folder().uri)
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text('{"stage": ')
    code, last = orchestrate("prepare", "job.yaml")
    assert code == 1
    assert last.startswith("error: ") and "is damaged" in last


def test_a_cluster_that_is_away_may_be_back_later() -> None:
    address = f"127.0.0.1:{free_port()}"
    code, last = orchestrate("prepare", "job.yaml", RAY_ADDRESS=address)
    assert code == 75
    assert last.startswith(f"error: cannot reach the Ray cluster at RAY_ADDRESS={address}: ")


def test_a_run_that_is_in_use_may_be_free_later() -> None:
    with Run(load_job("job.yaml")).lease():
        code, last = orchestrate("prepare", "job.yaml")
    assert code == 75
    assert last.startswith("error: run 'a' is in use by process")


def test_a_dashboard_that_is_terminated_ends_with_143() -> None:
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "orchestrator", "dashboard", ".", f"--port={free_port()}"],
        stdout=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    assert process.stdout is not None
    while "showing until Ctrl-C" not in process.stdout.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 143


def cause(error: BaseException) -> RayTaskError:
    return RayTaskError("work", "Traceback …", error)


def unreachable_address() -> OSError:
    """What the operating system says of a port that nobody listens on."""
    try:
        socket.create_connection(("127.0.0.1", free_port()), 5)
    except OSError as error:
        return error
    raise AssertionError("somebody listens there")


@pytest.mark.parametrize(
    ("make", "code"),
    [
        (lambda: NodeDiedError("a node is gone"), 75),
        (lambda: ActorUnavailableError("unreachable", None), 75),
        (unreachable_address, 75),
        (lambda: OSError("AWS Error NETWORK_CONNECTION during GetObject operation"), 75),
        (lambda: OSError("AWS Error ACCESS_DENIED during GetObject operation"), 1),
        (lambda: OSError(errno.ENOSPC, "No space left on device"), 1),
        (lambda: FileNotFoundError("model.py"), 1),
        (lambda: OSError("libcudart.so.12: cannot open shared object file"), 1),
        (lambda: OutOfMemoryError("killed"), 1),
        (lambda: cause(KeyError("tokens")), 1),
        (lambda: cause(KeyError("tokens")).as_instanceof_cause(), 1),
    ],
)
def test_errors_that_nobody_foresaw_pass_or_do_not(
    make: Callable[[], Exception], code: int
) -> None:
    assert exit_code(make()) == code


@pytest.mark.parametrize(
    ("number", "kind"), [(errno.ESTALE, TryAgainError), (errno.ENOSPC, StageError)]
)
def test_a_storage_that_refuses_says_whether_that_passes(
    number: int, kind: type[StageError]
) -> None:
    assert type(failed("cannot write a: b", OSError(number, os.strerror(number)))) is kind

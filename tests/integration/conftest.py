"""One Ray cluster for the whole session, with token authentication, beside whatever else runs."""

import contextlib
import json
import os
import random
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

# Ray reads these once, when it is first imported.
os.environ["RAY_AUTH_MODE"] = "token"
os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))

BIN = Path(sys.executable).parent
WORDS = "the of and to a in that is was he for it with as his on be at by i this had not".split()  # noqa: SIM905


@dataclass(frozen=True)
class Head:
    """A running Ray head."""

    address: str
    dashboard: str

    @property
    def environment(self) -> dict[str, str]:
        return os.environ | {"RAY_ADDRESS": self.address}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="session")
def head() -> Iterator[Head]:
    """`ray start --head` with four logical CPUs, on ports of its own."""
    names = ["port", "dashboard-port", "ray-client-server-port", "dashboard-agent-listen-port"]
    names += ["dashboard-agent-grpc-port", "metrics-export-port", "runtime-env-agent-port"]
    ports = {name: free_port() for name in names}
    command = [str(BIN / "ray"), "start", "--head", "--block", "--num-cpus=4"]
    command += ["--node-ip-address=127.0.0.1", "--object-store-memory=500000000"]
    command += [f"--{name}={port}" for name, port in ports.items()]
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}"},  # submitted jobs run `python`
        start_new_session=True,  # so that all that it starts can be found again
    )
    found = Head(f"127.0.0.1:{ports['port']}", f"http://127.0.0.1:{ports['dashboard-port']}")
    try:
        _wait_for_port(ports["dashboard-port"], process)
        yield found
    finally:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)
        # Ray's agents outlive their raylet by a while.
        subprocess.run(["pkill", "-KILL", "-s", str(process.pid)], check=False)


@pytest.fixture(scope="session")
def connected(head: Head) -> Iterator[Any]:
    """This process, connected to the head."""
    from orchestrator.cluster import connect

    os.environ["RAY_ADDRESS"] = head.address
    with connect() as cluster:
        del os.environ["RAY_ADDRESS"]
        yield cluster


def _wait_for_port(port: int, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.2)
    raise RuntimeError(f"Ray did not come up: exit code {process.poll()}")


def write_texts(folder: Path, count: int = 120, seed: int = 0) -> Path:
    """A folder of small text files with something in them to learn."""
    folder.mkdir(parents=True, exist_ok=True)
    chance = random.Random(seed)
    for number in range(count):
        words = []
        for _ in range(chance.randrange(80, 160)):
            words += [chance.choice(WORDS)] * 2  # every word comes twice
        (folder / f"{number:04d}.txt").write_text(" ".join(words) + "\n")
    return folder


def tiny_job(folder: Path, **changes: Any) -> dict[str, Any]:
    """A job of seconds; `changes` are sections or keys with `__` for the dot."""
    job: dict[str, Any] = {
        "name": "tiny",
        "task": "language_modelling",
        "data": {
            "source": str(folder / "data"),
            "validation_fraction": 0.1,
            "test_fraction": 0.1,
        },
        "tokenizer": {"vocab_size": 300},
        "model": {"num_layers": 2, "d_model": 32, "num_heads": 2, "max_seq_len": 32},
        "train": {"steps": 30, "global_batch_size": 8, "warmup_steps": 5, "eval_rows": 16},
        "storage": str(folder / "runs"),
    }
    for name, value in changes.items():
        section, _, key = name.partition("__")
        if key:
            job.setdefault(section, {})[key] = value
        else:
            job[section] = value
    return job


def write_job(folder: Path, **changes: Any) -> Path:
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(tiny_job(folder, **changes)))
    return path


def orchestrate(
    *arguments: str | Path, environment: dict[str, str], timeout: float = 150
) -> "subprocess.CompletedProcess[str]":
    """Run the command line as a user would."""
    command = [sys.executable, "-m", "orchestrator", *map(str, arguments)]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=timeout, check=False
    )


class Silent:
    """A display that nobody looks at, but which remembers what it was told."""

    def __init__(self) -> None:
        self.activities: list[str] = []
        self.done: dict[str, float] = {}

    def start(self, name: str, total: float | None, unit: str) -> None:
        self.activities.append(name)
        self.done[name] = 0.0

    def advance(self, amount: float) -> None:
        self.done[self.activities[-1]] += amount

    def show(self, values: dict[str, Any]) -> None:
        pass

    def finish(self) -> None:
        pass


def stages(job: Path, environment: dict[str, str]) -> dict[str, Any]:
    """What `status --json` says of each stage."""
    done = orchestrate("status", job, "--json", environment=environment)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)["stages"]
    return found

"""One Ray cluster for the whole test session, and jobs that take seconds on it."""

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.job.job import Job
from orchestrator.prepare.stage import prepare
from orchestrator.run import Run
from orchestrator.storage.artifact import PreparedData
from tests.ray_head import Head, ray_head

WORDS = "the of and to a in that is was he for it with as his on be at by i this had not".split()  # noqa: SIM905


@pytest.fixture(scope="session")
def head() -> Iterator[Head]:
    with ray_head(cpus=4) as started:
        yield started


@pytest.fixture(scope="session")
def connected(head: Head) -> Iterator[Any]:
    """Connects this process to the head."""
    from orchestrator.cluster.connection import connect

    os.environ["RAY_ADDRESS"] = head.address
    with connect() as cluster:
        del os.environ["RAY_ADDRESS"]
        yield cluster


def write_texts(folder: Path, count: int = 120, seed: int = 0) -> Path:
    """A folder of small text files in which every word comes twice, which a model can learn."""
    folder.mkdir(parents=True, exist_ok=True)
    chance = random.Random(seed)
    for number in range(count):
        words = []
        for _ in range(chance.randrange(80, 160)):
            words += [chance.choice(WORDS)] * 2  # every word comes twice
        (folder / f"{number:04d}.txt").write_text(" ".join(words) + "\n")
    return folder


def tiny_job(folder: Path, **changes: Any) -> dict[str, Any]:
    """A job that takes seconds. `changes` are sections, or keys with `__` in place of the dot."""
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
    """A display that prints nothing and records its calls."""

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

    def note(self, text: str) -> None:
        pass

    def finish(self) -> None:
        pass


def stages(job: Path, environment: dict[str, str]) -> dict[str, Any]:
    """The stages in the output of `status --json`."""
    done = orchestrate("status", job, "--json", environment=environment)
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)["stages"]
    return result


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory, connected: Any) -> PreparedData:
    """Small texts as shards, shared by all tests that train on them."""
    folder = tmp_path_factory.mktemp("data")
    write_texts(folder / "data")
    job = Job.model_validate(tiny_job(folder))
    run = Run(job)
    return prepare(job, run.files, run.prepare_folder(), Silent())

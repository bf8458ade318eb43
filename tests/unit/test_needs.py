"""What a job needs at the least, and what is refused because of it."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.cluster.room import Node, Room
from orchestrator.errors import UserError
from orchestrator.job.job import Job
from orchestrator.job.needs import replica_resources, worker_bytes, worker_resources
from orchestrator.pipeline import check_disk, check_memory, check_room
from orchestrator.run import Run

LARGE = {"num_layers": 48, "d_model": 1600, "num_heads": 25}  # GPT-2 XL, 1.5e9 parameters


def make(**sections: Any) -> Job:
    given = {"name": "a", "task": "language_modelling", "data": {"source": "python-stdlib"}}
    return Job.model_validate({**given, **sections})


def two_nodes(cpus: float, memory: float) -> Room:
    size = {"CPU": cpus, "memory": memory}
    return Room((Node("1", "10.0.0.1", size, is_head=True), Node("2", "10.0.0.2", size)))


def test_a_worker_needs_its_cores_and_gpus() -> None:
    cluster = {"cpus_per_worker": 3, "gpus_per_worker": 0.5}
    assert worker_resources(make(cluster=cluster)) == {"CPU": 3.0, "GPU": 0.5}
    assert worker_resources(make()) == replica_resources(make()) == {"CPU": 1.0}
    assert replica_resources(make(cluster=cluster)) == {"CPU": 3.0, "GPU": 0.5}
    on_cpus = make(cluster=cluster, serve={"gpus_per_replica": 0})
    assert replica_resources(on_cpus) == {"CPU": 3.0}


def test_a_large_model_needs_memory_where_there_is_no_gpu() -> None:
    job = make(model=LARGE)
    assert 17e9 < worker_bytes(job) < 25e9
    assert worker_bytes(make(model=LARGE, cluster={"gpus_per_worker": 1})) < 1e9
    check_memory(job, two_nodes(8, 32e9))
    with pytest.raises(UserError, match=r"cluster.workers = 1 with about .* has 16.0 GB"):
        check_memory(job, two_nodes(8, 16e9))


def test_workers_of_a_training_of_a_trial_and_replicas_must_fit() -> None:
    space = {"space": {"train.lr": {"uniform": [0.1, 0.2]}}}
    for key, sections in {
        "cluster.workers": {"cluster": {"workers": 3, "cpus_per_worker": 2}},
        "tune.workers": {"cluster": {"cpus_per_worker": 2}, "tune": {"workers": 3, **space}},
        "serve.replicas": {"cluster": {"cpus_per_worker": 2}, "serve": {"replicas": 3}},
    }.items():
        check_room(make(**sections), two_nodes(4, 8e9))
        with pytest.raises(UserError, match=f"{key} = 3 with 2 CPUs each: there is room for 2 on"):
            check_room(make(**sections), two_nodes(3, 8e9))


def test_an_elastic_training_needs_room_for_the_fewest() -> None:
    check_room(make(cluster={"workers": [2, 9], "cpus_per_worker": 2}), two_nodes(3, 8e9))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 20 MB."""
    if sys.platform != "linux" or os.getuid() != 0:
        pytest.skip("only root on Linux can mount a small disk")
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", folder], check=True)
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_storage_too_small_for_the_checkpoints_is_refused(small_disk: Path) -> None:
    data = small_disk.parent / "data.txt"
    data.write_text("words " * 1000)
    source = {"data": {"source": str(data)}, "storage": str(small_disk / "runs")}
    (small_disk / "runs" / "a").mkdir(parents=True)
    check_disk(Run(make(model={"num_layers": 1, "d_model": 32, "num_heads": 2}, **source)))
    with pytest.raises(UserError, match=r"storage = \S+/small/runs/a: has 0.0 GB left, and the "):
        check_disk(Run(make(model=LARGE, **source)))


def test_storage_too_small_for_the_data_is_refused(small_disk: Path) -> None:
    data = small_disk.parent / "data.txt"
    with data.open("wb") as file:
        file.truncate(100_000_000)  # takes no space
    source = {"data": {"source": str(data)}, "storage": str(small_disk / "runs")}
    (small_disk / "runs" / "a").mkdir(parents=True)
    model = {"num_layers": 1, "d_model": 32, "num_heads": 2}
    with pytest.raises(UserError, match="the prepared data and the checkpoints take"):
        check_disk(Run(make(model=model, **source)))

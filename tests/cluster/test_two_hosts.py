"""A short test of several hosts: a job whose two workers are on two hosts."""

import os
from collections.abc import Iterator

import pytest

from tests.cluster.hosts import missing, network
from tests.cluster.laptop import Laptop
from tests.integration.conftest import write_texts

RUN = (
    *("run", "jobs/language_modelling_debug.yaml", "--until", "train", "tune=null"),
    *("tokenizer.vocab_size=300", "train.steps=20", "cluster.workers=2"),
    f"cluster.cpus_per_worker={os.cpu_count()}",  # all of a host's
)
SHARED = ("storage=/mnt/shared/runs", "data.source=/mnt/shared/texts")


@pytest.fixture(scope="module")
def laptop() -> Iterator[Laptop]:
    if reason := missing():
        pytest.skip(reason)
    with network() as connected:
        for _ in range(2):
            connected.add_host()
        write_texts(connected.folder / "shared" / "texts")
        laptop = Laptop(connected)
        laptop.start_ray()
        with laptop.tunnel():
            yield laptop


def test_workers_on_two_hosts_train(laptop: Laptop) -> None:
    job = laptop.submit(*RUN, *SHARED)
    assert job.wait(120) == "SUCCEEDED", job.log()[-3000:]
    assert laptop.worker_hosts("DEAD") == laptop.network.hosts

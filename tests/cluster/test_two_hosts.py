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


def test_storage_that_the_hosts_do_not_share_is_refused(laptop: Laptop) -> None:
    log = refused(laptop, "storage=/mnt/own/runs", "data.source=/mnt/shared/texts")
    assert f"storage = /mnt/own/runs/stdlib-lm-debug: node {other(laptop)}" in log
    assert "give a folder or a URI that all nodes share" in log


def test_data_that_one_host_alone_has_is_refused(laptop: Laptop) -> None:
    laptop.head.run("cp -r /mnt/shared/texts /mnt/own/texts")
    log = refused(laptop, "storage=/mnt/shared/elsewhere", "data.source=/mnt/own/texts")
    assert f"data.source: node {other(laptop)}" in log
    assert "put the data where all nodes see it" in log


def test_workers_that_no_host_has_room_for_are_refused(laptop: Laptop) -> None:
    too_many = f"cluster.cpus_per_worker={2 * (os.cpu_count() or 1)}"
    log = refused(laptop, "name=too-wide", *SHARED, too_many)
    assert "cluster.workers = 2" in log


def test_the_endpoint_answers_a_command_on_a_host_that_does_not_listen(laptop: Laptop) -> None:
    # Ray Serve listens on the head and where replicas are. This host has no CPU for one.
    host = laptop.network.add_host()
    laptop.join_without_cpus(host)
    job = laptop.submit(*RUN, *SHARED, "--until", "serve", on=host)
    assert job.wait(150) == "SUCCEEDED", job.log()[-3000:]
    assert "the endpoint stays deployed" in job.log()
    proxies = laptop.get("/api/serve/applications/").json()["proxies"].values()
    assert host.address not in [proxy["node_ip"] for proxy in proxies]
    assert job.driver_address() == host.address


def refused(laptop: Laptop, *arguments: str) -> str:
    """The log of a job that ends as the user's mistake, before it prepares anything."""
    job = laptop.submit(*RUN, *arguments)
    assert job.wait(60) == "FAILED"
    log = job.log()
    assert log.strip().splitlines()[-1].startswith("error: ")
    assert "prepare" not in log
    return log


def other(laptop: Laptop) -> str:
    return laptop.network.hosts[1].address

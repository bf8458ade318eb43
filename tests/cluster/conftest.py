"""A cluster of three hosts, brought up with `ray up cluster/on_prem.yaml` once for all tests."""

import random
from collections.abc import Iterator

import pytest

from tests.cluster.hosts import missing, network
from tests.cluster.laptop import Laptop
from tests.integration.conftest import write_texts

HOSTS = 3


@pytest.fixture(scope="session")
def chance() -> random.Random:
    seed = random.randrange(10_000)
    print(f"seed {seed}")
    return random.Random(seed)


@pytest.fixture(scope="session")
def laptop() -> Iterator[Laptop]:
    """The user's machine, after `ray up`."""
    if reason := missing():
        pytest.skip(reason)
    with network() as connected:
        for _ in range(HOSTS):
            connected.add_host()
        write_texts(connected.folder / "shared" / "texts")
        laptop = Laptop(connected)
        laptop.up()
        yield laptop

"""A cluster that grows: its autoscaler adds the nodes that a job's workers need."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.conftest import orchestrate, write_job, write_texts
from tests.ray_head import Head, growing_head

pytestmark = pytest.mark.timeout(400)


@pytest.fixture
def growing(tmp_path: Path) -> Iterator[Head]:
    """One node of one CPU, to which an autoscaler can add two nodes of two CPUs."""
    with growing_head(cpus=1, added=2, most=2, folder=tmp_path) as head:
        yield head


def test_workers_wait_for_the_nodes_that_the_autoscaler_adds(growing: Head, tmp_path: Path) -> None:
    write_texts(tmp_path / "data")
    job = write_job(tmp_path, cluster={"workers": 2})
    refused = orchestrate("run", job, "cluster.workers=8", environment=growing.environment)
    print(refused.stdout, refused.stderr)
    assert refused.returncode == 2
    assert "cluster.workers = 8 with 1 CPU each: there is room for 5" in refused.stderr
    assert "those that the autoscaler can add" in refused.stderr
    done = orchestrate(
        *("run", job, "--until", "evaluate"), environment=growing.environment, timeout=300
    )
    print(done.stdout, done.stderr)
    assert done.returncode == 0

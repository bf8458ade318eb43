"""What an autoscaler's settings say that it can add."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.cluster.autoscaler import of_config, read_config
from orchestrator.cluster.room import Growth, NodeType

AWS: dict[str, Any] = {
    "max_workers": 6,
    "head_node_type": "head",
    "available_node_types": {
        "head": {"resources": {"CPU": 4}},
        "gpu": {"resources": {"CPU": 8, "GPU": 1, "memory": 30e9}, "max_workers": 4},
        "cpu": {"resources": {"CPU": 16}},
    },
}


def test_the_node_types_of_a_cloud_are_known() -> None:
    gpu = {"CPU": 8.0, "GPU": 1.0, "memory": 30e9}
    growth = of_config(AWS, workers=1)
    assert growth == Growth((NodeType("gpu", gpu, 4), NodeType("cpu", {"CPU": 16.0}, 6)), 6)
    assert growth.copies({"CPU": 1, "GPU": 1}) == 4


@pytest.mark.parametrize(("workers", "copies"), [(1, float("inf")), (2, 0)])
def test_own_machines_are_unknown_until_they_have_joined(workers: int, copies: float) -> None:
    types = {"local.cluster.node": {"resources": {}, "min_workers": 2, "max_workers": 2}}
    config = {"max_workers": 2, "available_node_types": types, "head_node_type": "head"}
    assert of_config(config, workers).copies({"CPU": 64}) == copies


def test_a_cluster_without_node_types_does_not_grow() -> None:
    assert of_config({}, 3) == Growth()


@pytest.fixture
def monitor(tmp_path: Path) -> Iterator[Path]:
    """A process that looks as Ray's monitor does; returns its settings."""
    code = tmp_path / "ray" / "autoscaler" / "_private" / "monitor.py"
    code.parent.mkdir(parents=True)
    code.write_text("print('up', flush=True)\ninput()\n")
    settings = tmp_path / "bootstrap.yaml"
    settings.write_text("max_workers: 3\n")
    options = ["--gcs-address=10.1.2.3:54321", f"--autoscaling-config={settings}"]
    process = subprocess.Popen(
        [sys.executable, "-u", str(code), *options], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None and process.stdout.readline() == b"up\n"
    yield settings
    process.communicate(b"\n")


def test_the_settings_of_this_clusters_monitor_are_found(monitor: Path) -> None:
    assert read_config("10.1.2.3:54321") == {"max_workers": 3}
    assert read_config("10.1.2.3:54322") is None
    monitor.write_text("max_workers: [")
    with pytest.raises(Exception, match="expected"):
        read_config("10.1.2.3:54321")

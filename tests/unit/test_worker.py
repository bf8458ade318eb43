"""A worker before it trains: how it finds the others."""

import socket
import threading
import time
from types import SimpleNamespace

import pytest

from orchestrator.learn.world import deal
from orchestrator.train import worker
from tests.ray_head import free_port


def wait_at(monkeypatch: pytest.MonkeyPatch, port: int) -> float:
    """The seconds for which a worker waits for the first one, which is to listen there."""
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(port))
    started = time.monotonic()
    worker._wait_for_first_worker()
    return time.monotonic() - started


def test_who_comes_early_waits_no_longer_than_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    with socket.socket() as first:
        first.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        first.bind(("127.0.0.1", port))
        threading.Timer(0.2, first.listen).start()
        assert 0.1 < wait_at(monkeypatch, port) < 2


def test_a_first_worker_that_never_listens_is_left_to_torch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(worker, "MEETING_SECONDS", 0.3)
    assert 0.3 <= wait_at(monkeypatch, free_port()) < 3


def test_gloo_gets_the_interface_of_the_node_s_address(monkeypatch: pytest.MonkeyPatch) -> None:
    def address(text: str) -> SimpleNamespace:
        return SimpleNamespace(address=text)

    interfaces = {
        "lo": [address("127.0.0.1"), address("::1")],
        "eth0": [address("10.0.0.7"), address("fe80::1%eth0")],
        "eth1": [address("192.168.1.7"), address("2001:db8::7")],
    }
    monkeypatch.setattr(worker.psutil, "net_if_addrs", lambda: interfaces)
    assert worker.network_interface("192.168.1.7") == "eth1"
    assert worker.network_interface("2001:db8::7") == "eth1"
    assert worker.network_interface("fe80::1") == "eth0"
    assert worker.network_interface("127.0.0.2") == ""  # all workers are on one machine
    assert worker.network_interface("10.0.0.8") == ""


@pytest.mark.parametrize("workers", [1, 2, 3, 8])
def test_work_is_dealt_once_and_about_evenly(workers: int) -> None:
    costs = [9, 1, 4, 4, 7, 3, 3, 2]
    dealt = deal(costs, workers)
    assert sorted(i for mine in dealt for i in mine) == list(range(8))
    loads = [sum(costs[i] for i in mine) for mine in dealt]
    assert max(loads) <= max(max(costs), 4 / 3 * sum(costs) / workers)  # Graham 1969
    assert all(mine == sorted(mine) for mine in dealt)

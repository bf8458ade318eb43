import socket
import subprocess
import sys
import time

import pytest

from orchestrator.cluster.head_watch import HeadWatch, patience
from orchestrator.errors import StuckError


def listener(port: int = 0) -> socket.socket:
    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.bind(("127.0.0.1", port))
    listening.listen(100)
    return listening


def test_a_head_that_is_gone_ends_the_block() -> None:
    head = listener()
    port = head.getsockname()[1]
    with (
        pytest.raises(StuckError, match=rf"127\.0\.0\.1:{port}, has not answered for 0\.5 s"),
        HeadWatch(f"127.0.0.1:{port}", 0.5, interval=0.1),
    ):
        time.sleep(0.3)
        head.close()
        time.sleep(10)


def test_a_command_that_no_interrupt_reaches_ends_too() -> None:
    code = """
import signal, sys, time
from orchestrator.cluster.head_watch import HeadWatch
with HeadWatch(sys.argv[1], 0.3, interval=0.1):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    time.sleep(30)
"""
    with listener() as head:
        address = f"127.0.0.1:{head.getsockname()[1]}"
    done = subprocess.run(
        [sys.executable, "-c", code, address], capture_output=True, text=True, timeout=20
    )
    assert done.returncode == 75
    assert f"error: the head of the cluster, {address}, has not answered for 0.3 s" in done.stderr


def test_a_head_that_comes_back_in_time_is_not_noticed() -> None:
    head = listener()
    port = head.getsockname()[1]
    with HeadWatch(f"127.0.0.1:{port}", 2.0, interval=0.1) as watch:
        head.close()
        time.sleep(0.5)
        with listener(port):
            time.sleep(2.5)
    assert not watch.lost


def test_the_user_s_own_ctrl_c_stays_one() -> None:
    with (
        listener() as head,
        pytest.raises(KeyboardInterrupt),
        HeadWatch(f"127.0.0.1:{head.getsockname()[1]}", 0.5, interval=0.1),
    ):
        raise KeyboardInterrupt


def test_it_gives_up_before_ray_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_gcs_rpc_server_reconnect_timeout_s", raising=False)
    assert patience() == 45
    monkeypatch.setenv("RAY_gcs_rpc_server_reconnect_timeout_s", "600")
    assert patience() == 450

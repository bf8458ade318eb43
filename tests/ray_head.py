"""Ray clusters for tests, on ports of their own, beside whatever else runs."""

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
NODE_PORTS = ["dashboard-agent-listen-port", "dashboard-agent-grpc-port"]
NODE_PORTS += ["metrics-export-port", "runtime-env-agent-port"]
_drawn: set[int] = set()  # what listens there may come up later than the next one is drawn


@dataclass(frozen=True)
class Head:
    """A running Ray head."""

    address: str
    dashboard: str
    process: int

    @property
    def environment(self) -> dict[str, str]:
        return os.environ | {"RAY_ADDRESS": self.address}


def free_port() -> int:
    (port,) = free_ports(1)
    return port


def free_ports(count: int) -> list[int]:
    """So many ports that nobody listens on, none of which this process has been given before.

    Below the ports that Linux gives to outgoing connections, and above those of Ray's workers:
    one that the kernel hands out itself can be some connection's by the time that Ray binds it.
    """
    found: list[int] = []
    with contextlib.ExitStack() as stack:
        while len(found) < count:
            port = random.randrange(20000, 32000)
            # Held until all are drawn, so that no other process draws one of them meanwhile.
            probe = stack.enter_context(socket.socket())
            with contextlib.suppress(OSError):
                if port not in _drawn:
                    probe.bind(("", port))
                    _drawn.add(port)
                    found.append(port)
    return found


@contextlib.contextmanager
def ray_head(cpus: int) -> Iterator[Head]:
    """`ray start --head` with so many logical CPUs."""
    names = ["port", "dashboard-port", "ray-client-server-port"]
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    options = ["--head", f"--num-cpus={cpus}", "--object-store-memory=500000000"]
    options += [f"--{name}={port}" for name, port in ports.items()]
    with _head(options, ports) as head:
        yield head


@contextlib.contextmanager
def growing_head(cpus: int, added: int, most: int, folder: Path) -> Iterator[Head]:
    """A head whose autoscaler adds up to `most` nodes of `added` CPUs, on this machine too.

    Its node provider is the one that Ray tests its autoscaler with. Its settings go to `folder`.
    """
    names = ["port", "dashboard-port", "ray-client-server-port"]
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    kinds = {
        "ray.head.default": {"resources": {"CPU": cpus}, "node_config": {}, "max_workers": 0},
        "worker": {"resources": {"CPU": added, "object_store_memory": 80_000_000}}
        | {"node_config": {}, "min_workers": 0, "max_workers": most},
    }
    provider = {"type": "fake_multinode", "gcs_address": f"127.0.0.1:{ports['port']}"}
    provider |= {"use_node_id_as_ip": True, "launch_multiple": True}
    provider |= {"disable_node_updaters": True, "disable_launch_config_check": True}
    config = {"cluster_name": "growing", "max_workers": most, "idle_timeout_minutes": 5}
    config |= {
        "head_node_type": "ray.head.default",
        "available_node_types": kinds,
        "provider": provider,
    }
    config |= {"auth": {}, "docker": {}, "file_mounts": {}, "upscaling_speed": 1.0}
    for when in ("initialization", "setup", "head_setup", "worker_setup"):
        config[f"{when}_commands"] = []
    config |= {"head_start_ray_commands": [], "worker_start_ray_commands": []}
    config |= {"cluster_synced_files": [], "file_mounts_sync_continuously": False}
    settings = folder / "autoscaler.yaml"
    settings.write_text(json.dumps(config))
    options = ["--head", f"--num-cpus={cpus}", "--object-store-memory=200000000"]
    options += [f"--autoscaling-config={settings}"]
    options += [f"--{name}={port}" for name, port in ports.items()]
    environment = {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}
    environment |= {"RAY_enable_autoscaler_v2": "0"}
    with _head(options, ports, environment) as head:
        yield head


@contextlib.contextmanager
def _head(
    options: list[str], ports: dict[str, int], environment: dict[str, str] | None = None
) -> Iterator[Head]:
    with (
        tempfile.TemporaryFile() as output,
        _started(options, output, environment=environment) as process,
    ):
        if not _answers(ports["dashboard-port"], process):
            output.seek(0)
            said = output.read().decode(errors="replace")[-3000:]
            raise RuntimeError(f"Ray did not come up: exit code {process.poll()}\n{said}")
        address = f"127.0.0.1:{ports['port']}"
        yield Head(address, f"http://127.0.0.1:{ports['dashboard-port']}", process.pid)


@contextlib.contextmanager
def ray_node(
    head: Head, address: str, cpus: int, under: Sequence[str] = ()
) -> Iterator["subprocess.Popen[bytes]"]:
    """One more node of the head's cluster, on this machine too: 127.0.0.2, say. It is started
    `under` another command, if one is given."""
    options = [f"--address={head.address}", f"--num-cpus={cpus}"]
    options += ["--object-store-memory=80000000"]
    with tempfile.TemporaryFile() as output, _started(options, output, address, under) as process:
        yield process


@contextlib.contextmanager
def _started(
    options: list[str],
    output: IO[bytes],
    address: str = "127.0.0.1",
    under: Sequence[str] = (),
    environment: dict[str, str] | None = None,
) -> Iterator["subprocess.Popen[bytes]"]:
    path = {"PATH": f"{BIN}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    path["RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"] = "orchestrator.serve.proxy:middlewares"
    drawn = zip(NODE_PORTS, free_ports(len(NODE_PORTS)), strict=True)
    ports = [f"--{name}={port}" for name, port in drawn]
    process = subprocess.Popen(
        [*under, BIN / "ray", "start", "--block", f"--node-ip-address={address}", *options, *ports],
        stdout=output,
        stderr=subprocess.STDOUT,
        env=os.environ | path | (environment or {}),
        start_new_session=True,  # so that all that it starts can be found again
    )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)
        end_session(process.pid)  # Ray's agents outlive their raylet by a while
        process.wait()


def end_session(session: int) -> None:
    """Kill all that was started in this session of processes, and nothing else."""
    subprocess.run(["pkill", "-KILL", "-s", str(session)], check=False)


def _answers(port: int, process: "subprocess.Popen[bytes]") -> bool:
    """Whether something listens there within a minute, and the process lives."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return True
        time.sleep(0.2)
    return False

"""The user's side of a cluster: `ray up`, jobs that are submitted through ssh, and `ray down`."""

import contextlib
import json
import os
import secrets
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx
import yaml

from orchestrator.storage.events import read_events
from orchestrator.storage.folder import Folder
from tests.cluster.hosts import ROOT, Host, Network
from tests.ray_head import BIN, free_port

ACTIVATE = ". ~/orchestrator-venv/bin/activate; export RAY_AUTH_MODE=token;"
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
T = TypeVar("T")


@dataclass(frozen=True)
class Job:
    """A submitted job."""

    laptop: "Laptop"
    name: str

    def status(self) -> str:
        return str(self.laptop.get(f"/api/jobs/{self.name}").json()["status"])

    def driver_address(self) -> str:
        """The address of the host that the command ran on."""
        details = self.laptop.get(f"/api/jobs/{self.name}").json()
        return str(details["driver_info"]["node_ip_address"])

    def log(self) -> str:
        return str(self.laptop.get(f"/api/jobs/{self.name}/logs").json()["logs"])

    def wait(self, seconds: float) -> str:
        """The status with which the job ends."""
        return wait_for(f"{self.name} to end", seconds, self._ended)

    def _ended(self) -> str:
        with contextlib.suppress(httpx.HTTPError, KeyError):
            status = self.status()
            return status if status in ENDED else ""
        return ""


class Laptop:
    """A machine with the repository and a key to the hosts, from which a cluster is used."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.folder = network.folder / "laptop"
        self.folder.mkdir()
        self.token = secrets.token_hex(32)
        token_file = self.folder / "auth_token"
        token_file.write_text(self.token)
        token_file.chmod(0o600)
        self.config = self.folder / "on_prem.yaml"
        config = yaml.safe_load((ROOT / "cluster" / "on_prem.yaml").read_text())
        head, *workers = (host.address for host in network.hosts)
        config["cluster_name"] = network.name  # names a file in the machine's temporary folder
        config["provider"] |= {"head_ip": head, "worker_ips": workers}
        config["auth"] = {"ssh_user": "root", "ssh_private_key": str(network.key)}
        config["file_mounts"]["~/.ray/auth_token"] = str(token_file)
        self.config.write_text(yaml.safe_dump(config, width=1000))
        given = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token_file)}
        given |= {"HOME": str(self.folder), "PATH": f"{BIN}:{os.environ['PATH']}"}
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | given
        self._port = free_port()
        self._client = httpx.Client(base_url=f"http://127.0.0.1:{self._port}", timeout=20)

    @property
    def head(self) -> Host:
        return self.network.hosts[0]

    def up(self) -> None:
        """`ray up`, until all hosts are nodes of the cluster."""
        self._ray("up", "--yes", "--no-config-cache", str(self.config))
        self.wait_for_nodes(len(self.network.hosts))

    def start_ray(self) -> None:
        """Run the start commands of `on_prem.yaml` on hosts that have Ray, without `ray up`."""
        config = yaml.safe_load(self.config.read_text())
        for host in self.network.hosts:
            is_head = host is self.head
            commands = config[f"{'head' if is_head else 'worker'}_start_ray_commands"]
            command = commands[-1].replace("--autoscaling-config=~/ray_bootstrap_config.yaml", "")
            self._start_ray(host, command)

    def join_without_cpus(self, host: Host) -> None:
        """Make a host a node of the cluster that runs no tasks, as a user's machine may be."""
        config = yaml.safe_load(self.config.read_text())
        self._start_ray(host, f"{config['worker_start_ray_commands'][-1]} --num-cpus=0")

    def _start_ray(self, host: Host, command: str) -> None:
        host.run("mkdir -p ~/.ray; cat > ~/.ray/auth_token", text=self.token)
        host.run(f"export RAY_HEAD_IP={self.head.address}; {command}")

    def restart_head(self) -> None:
        """Start Ray on a head that was rebooted, without its setup."""
        self._ray("up", "--yes", "--restart-only", "--no-config-cache", str(self.config))

    def down(self) -> None:
        self._ray("down", "--yes", str(self.config))

    def wait_for_nodes(self, count: int) -> None:
        def are_there() -> bool:
            report = self.head.run(f"{ACTIVATE} ray status", check=False).stdout
            return f" {count} local.cluster.node\n" in report.partition("Pending:")[0]

        wait_for(f"{count} nodes", 150, are_there)

    @contextlib.contextmanager
    def tunnel(self) -> Iterator[None]:
        """Forward the head's dashboard to this machine, as docs/clusters.md says."""
        with self._forwarded(self._port, 8265):
            wait_for("the dashboard", 60, self._answers)
            yield

    @contextlib.contextmanager
    def endpoint(self) -> Iterator[str]:
        """Forward the endpoint to this machine; returns its URL."""
        port = free_port()
        with self._forwarded(port, 8000):
            yield f"http://127.0.0.1:{port}"

    @contextlib.contextmanager
    def _forwarded(self, port: int, on_head: int) -> Iterator[None]:
        *ssh, user_and_host = self.head.ssh()
        command = [*ssh, "-N", "-L", f"{port}:127.0.0.1:{on_head}", user_and_host]
        process = subprocess.Popen(command)
        try:
            wait_for("ssh to forward a port", 30, lambda: _listens(port))
            yield
        finally:
            process.terminate()
            process.wait()

    def get(self, path: str, token: bool = True) -> httpx.Response:
        """Ask the head's dashboard."""
        headers = {"Authorization": f"Bearer {self.token}"} if token else {}
        return self._client.get(path, headers=headers)

    def worker_hosts(self, state: str) -> list[Host]:
        """The hosts that have a Ray Train worker in this state."""
        nodes, actors = self._listed("nodes"), self._listed("actors")
        addresses = {node["node_id"]: node["node_ip"] for node in nodes}
        workers = [actor for actor in actors if actor["class_name"].endswith("RayTrainWorker")]
        found = {addresses.get(actor["node_id"]) for actor in workers if actor["state"] == state}
        return [host for host in self.network.hosts if host.address in found]

    def _listed(self, what: str) -> list[dict[str, Any]]:
        answer = self.get(f"/api/v0/{what}?detail=1&limit=1000").json()
        result: list[dict[str, Any]] = answer["data"]["result"]["result"]
        return result

    def submit(self, *arguments: str, on: Host | None = None) -> Job:
        """`ray job submit` of an orchestrator's command; it runs on the head, or the host `on`."""
        name = f"job-{secrets.token_hex(4)}"
        address = f"http://127.0.0.1:{self._port}"
        where = [] if on is None else ["--entrypoint-resources", f'{{"node:{on.address}": 0.001}}']
        self._ray(
            *("job", "submit", "--address", address, "--working-dir", ".", "--no-wait"),
            *("--submission-id", name, *where, "--", "python", "-m", "orchestrator", *arguments),
        )
        return Job(self, name)

    def runs(self, name: str) -> Path:
        """The folder of a run in the shared storage, as this machine sees it."""
        return self.network.folder / "shared" / "runs" / name

    def events(self, name: str, kind: str) -> list[dict[str, Any]]:
        events = read_events(Folder(str(self.runs(name))))
        return [event for event in events if event["event"] == kind]

    def _answers(self) -> bool:
        with contextlib.suppress(httpx.HTTPError):
            return self.get("/api/version").status_code == 200
        return False

    def _ray(self, *arguments: str) -> str:
        done = subprocess.run(
            [str(BIN / "ray"), *arguments],
            cwd=ROOT,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
        return done.stdout


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


def wait_for(what: str, seconds: float, look: Callable[[], T | None]) -> T:
    """What `look` returns as soon as that is true."""
    deadline = time.monotonic() + seconds
    while True:
        result = look()
        if result:
            return result
        assert time.monotonic() < deadline, f"waited {seconds:g} s for {what}"
        time.sleep(0.5)


def weights(run: Path) -> dict[str, str]:
    """The digests of the newest checkpoint's files, which equal trainings share."""
    (training,) = [folder for folder in run.iterdir() if folder.name.startswith("train-")]
    newest = max(folder for folder in (training / "checkpoints").iterdir() if folder.is_dir())
    manifest = json.loads((newest / "manifest.json").read_text())
    files: dict[str, str] = manifest["files"]
    return files

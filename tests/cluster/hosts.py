"""Several hosts on one machine, for tests: each has its own network, processes, disk and sshd.

A host is a network namespace on a bridge, with its own pid, mount and uts namespaces. It sees the
machine's programs, but its home, `/tmp`, `/run` and `/dev/shm` are its own. `/mnt/shared` is one
folder for all hosts, and `/mnt/own` is one for each. The machine reaches the hosts over the bridge.
"""

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]  # hosts do not see it
HOME = "/home/engineer"
PROGRAMS = ("ip", "unshare", "mount", "ssh", "ssh-keygen", "rsync", "/usr/sbin/sshd")
VENV = f"{HOME}/orchestrator-venv"
PACKAGES = "/mnt/python/" + os.path.relpath(sysconfig.get_path("purelib"), sys.prefix)
SSH = (
    *("-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"),
    *("-o", "LogLevel=ERROR", "-o", "IdentitiesOnly=yes", "-o", "ConnectTimeout=5"),
)


def missing() -> str:
    """The reason why no hosts can be made on this machine; empty if they can."""
    if sys.platform != "linux":
        return "hosts are made of Linux namespaces"
    if os.geteuid() != 0:
        return "only root can make namespaces"
    absent = [program for program in PROGRAMS if shutil.which(program) is None]
    if absent:
        return f"not installed: {', '.join(absent)} (Debian: iproute2 openssh-server rsync)"
    probe = f"probe{secrets.token_hex(2)}"
    made = subprocess.run(["ip", "netns", "add", probe], capture_output=True, text=True)
    if made.returncode:
        return f"ip netns add: {made.stderr.strip()}"
    _run("ip", "netns", "delete", probe)
    return ""


class Host:
    """One host. `start` boots it and `kill` takes its power away; its disk stays."""

    def __init__(self, network: "Network", number: int) -> None:
        self.network = network
        self.name = f"{network.name}h{number}"
        self.address = f"{network.prefix}.{number + 1}"
        self.disk = network.folder / self.name
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Boot the host; returns once its sshd answers."""
        if self._process is not None and self._process.poll() is None:
            return
        for name in ("home/engineer", "own"):
            (self.disk / name).mkdir(parents=True, exist_ok=True)
        boot = ["ip", "netns", "exec", self.name, "unshare", "--pid", "--fork", "--kill-child"]
        boot += ["--mount-proc", "--mount", "--uts", "sh", "-ec", self._script()]
        with open(self.network.folder / f"{self.name}.log", "ab") as log:
            self._process = subprocess.Popen(
                boot, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True
            )
        deadline = time.monotonic() + 20
        while self.run("true", check=False).returncode != 0:
            if self._process.poll() is not None or time.monotonic() > deadline:
                text = (self.network.folder / f"{self.name}.log").read_text(errors="replace")
                raise RuntimeError(f"host {self.name} does not come up: {text[-2000:]}")
            time.sleep(0.1)

    def kill(self) -> None:
        """Every process of the host dies at once, and its memory is lost."""
        if self._process is None:
            return
        self._process.send_signal(signal.SIGKILL)  # --kill-child: its first process dies with it
        self._process.wait()
        self._process = None

    def cut(self) -> None:
        """Take the host off the network. Its processes go on."""
        _run("ip", "link", "set", f"{self.name}b", "down")

    def join(self) -> None:
        """Put the host back on the network."""
        _run("ip", "link", "set", f"{self.name}b", "up")

    def run(
        self, command: str, check: bool = True, text: str = ""
    ) -> "subprocess.CompletedProcess[str]":
        """Run a shell command on the host, over ssh, with `text` as its input."""
        done = subprocess.run(
            [*self.ssh(), command],
            input=text,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        if check and done.returncode:
            raise RuntimeError(f"{self.name}: {command}: {done.stdout}{done.stderr}")
        return done

    def ssh(self) -> list[str]:
        """The ssh command that reaches this host."""
        key = str(self.network.key)
        return ["ssh", *SSH, "-i", key, f"root@{self.address}"]

    def processes(self) -> list[str]:
        """The command lines of the host's processes, besides sshd and what asks."""
        lines = self.run("cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' '; true").stdout
        return [line for line in lines.splitlines() if line]

    def _script(self) -> str:
        """What the host does as it boots, in its namespaces."""
        folder, disk = self.network.folder, self.disk
        return f"""
mount --make-rprivate /
hostname {self.name}
mount -t tmpfs tmpfs /mnt
mkdir /mnt/shared /mnt/own /mnt/python /mnt/network
mount --bind {folder}/shared /mnt/shared
mount --bind {disk}/own /mnt/own
mount --bind {sys.prefix} /mnt/python
mount --bind {folder} /mnt/network
mount --bind {disk}/home /home
mount --bind {folder}/passwd /etc/passwd
mount -t tmpfs tmpfs {ROOT}
mount -t tmpfs tmpfs /run
mkdir /run/sshd
mount -t tmpfs tmpfs /var/tmp
mount -t tmpfs -o size=1g tmpfs /dev/shm
mount -t tmpfs tmpfs /tmp
cd /
exec env -i PATH="$PATH" /usr/sbin/sshd -D -e -f /mnt/network/sshd_config
"""


class Network:
    """The bridge that the hosts are connected to, and the files that they share."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.name = f"t{secrets.token_hex(2)}"  # an interface's name has 15 characters at most
        self.prefix = _free_prefix()
        self.key = folder / "key"
        self.hosts: list[Host] = []

    def __enter__(self) -> "Network":
        (self.folder / "shared").mkdir()
        for name in ("key", "host_key"):
            file = str(self.folder / name)
            _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", file)
        (self.folder / "sshd_config").write_text(
            "ListenAddress 0.0.0.0\nPort 22\nHostKey /mnt/network/host_key\n"
            "AuthorizedKeysFile /mnt/network/key.pub\nStrictModes no\nUsePAM no\n"
            "PermitRootLogin yes\nPasswordAuthentication no\nMaxStartups 100\nMaxSessions 100\n"
        )
        passwd = Path("/etc/passwd").read_text().splitlines()
        root = f"root:x:0:0:root:{HOME}:/bin/bash"
        others = [line for line in passwd if not line.startswith("root:")]
        (self.folder / "passwd").write_text("\n".join([root, *others]) + "\n")
        _run("ip", "link", "add", self.name, "type", "bridge")
        _run("ip", "address", "add", f"{self.prefix}.1/24", "dev", self.name)
        _run("ip", "link", "set", self.name, "up")
        return self

    def __exit__(self, *_: object) -> None:
        for host in self.hosts:
            host.kill()
            subprocess.run(["ip", "netns", "delete", host.name], check=False)
        subprocess.run(["ip", "link", "delete", self.name], check=False)

    def add_host(self) -> Host:
        """Connect and boot one more host, on which Python has the project's dependencies."""
        host = Host(self, len(self.hosts) + 1)
        self.hosts.append(host)
        inside, outside = f"{host.name}a", f"{host.name}b"
        _run("ip", "netns", "add", host.name)
        _run("ip", "link", "add", inside, "type", "veth", "peer", "name", outside)
        _run("ip", "link", "set", outside, "master", self.name, "up")
        _run("ip", "link", "set", inside, "netns", host.name)
        within = ("ip", "-n", host.name)
        _run(*within, "address", "add", f"{host.address}/24", "dev", inside)
        _run(*within, "link", "set", "lo", "up")
        _run(*within, "link", "set", inside, "up")
        _run(*within, "route", "add", "default", "via", f"{self.prefix}.1")
        host.start()
        host.run(_INSTALL)
        return host


# Instead of downloads, the host's virtual environment has the packages of the one that tests.
_INSTALL = f"""set -e
touch ~/.bashrc
test -e {VENV}/bin/python || {{
  {sys.base_prefix}/bin/python3 -m venv --without-pip {VENV}
  echo {PACKAGES} > {VENV}/lib/python3.{sys.version_info.minor}/site-packages/machine.pth
  printf '[global]\\nno-index = true\\nno-build-isolation = false\\n' > {VENV}/pip.conf
}}
for script in ray=ray.scripts.scripts pip=pip._internal.cli.main; do
  file={VENV}/bin/${{script%%=*}}
  printf '#!{VENV}/bin/python\\nimport sys\\nfrom %s import main\\nsys.exit(main())\\n' \\
    ${{script#*=}} > $file
  chmod +x $file
done
"""


@contextlib.contextmanager
def network() -> Iterator[Network]:
    """A network without hosts yet. Everything of it goes with the block."""
    folder = Path("/var/tmp") / f"orchestrator-hosts-{secrets.token_hex(4)}"
    folder.mkdir(mode=0o700)
    try:
        with Network(folder) as made:
            yield made
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _free_prefix() -> str:
    """The first three numbers of a network that the machine has no route to."""
    routes = subprocess.run(["ip", "route"], capture_output=True, text=True, check=True).stdout
    for number in range(100, 250):
        if f"10.{number}." not in routes:
            return f"10.{number}.{secrets.randbelow(250)}"
    raise RuntimeError("every network 10.100.0.0 to 10.249.0.0 is in use")


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")

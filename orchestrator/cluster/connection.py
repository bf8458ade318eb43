"""Connects to Ray: to the cluster at `RAY_ADDRESS` if it is set, else to a new local one.

A launcher of another kind would go beside this module and give `connect` an address."""

import contextlib
import logging
import os
import secrets
import signal
import socket
import sys
import unittest.mock
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import ray
from ray.exceptions import RayError
from ray.job_config import JobConfig
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from orchestrator.cluster.autoscaler import growth
from orchestrator.cluster.head_watch import HeadWatch, patience
from orchestrator.cluster.node_report import memory
from orchestrator.cluster.nodes import HEAD
from orchestrator.cluster.room import Node, Room
from orchestrator.errors import OrchestratorError, StageError, TryAgainError, UserError

logger = logging.getLogger(__name__)

# Ray Train's controller polls its workers every 2 s by default, and every start and every loss of a
# worker waits for the next poll.
RAY_SETTINGS = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    # The default is 60. An elastic group waits this long for a dead node that Ray still counts.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "15",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # `follower.py` looks for preemption notices
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_DATA_LOG_LEVEL": "CRITICAL",  # Ray Data sets its logger's level on import
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C ends the command, not just the sweep
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # For the proxies of a cluster that starts here: other ones have their own environment.
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "orchestrator.serve.proxy:middlewares",
}
RAY_DATA_ADVICE = "\nFailed to apply UDF"
ANY_GPUS = float(2**20)  # before Ray starts, nobody has counted them
# Their failures reach the user as exceptions of the calls that failed.
QUIET_LOGGERS = ("ray", "ray.data", "ray.train", "ray.tune", "ray._private")


@dataclass(frozen=True)
class Cluster:
    """The Ray cluster that this process is connected to."""

    started_here: bool
    dashboard_url: str
    room: Room


@contextlib.contextmanager
def connect() -> Iterator[Cluster]:
    """Connect to Ray. A cluster that was started here ends with the block.

    Raises:
        UserError: if `RAY_ADDRESS` is of a kind that does not work.
        StageError: if the cluster cannot be reached or started.
        StuckError: if its head is lost while the block runs.
        KeyboardInterrupt: at a signal, if the handler of this process raises it.
    """
    address = _address()
    for name, value in RAY_SETTINGS.items():
        os.environ.setdefault(name, value)
    if address is None:
        _require_token()
    else:
        _require_reachable(address)
    try:
        with _own_sigterm_handler():
            context = ray.init(
                job_config=_job_config(),
                address=address or "local",
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
    except (RayError, ConnectionError, RuntimeError, ValueError) as error:
        lines = (str(error) or type(error).__name__).strip().splitlines()
        is_mismatch = lines[0].startswith("Version mismatch")
        first = " ".join(line.strip() for line in lines) if is_mismatch else lines[0]
        where = f"reach the Ray cluster at RAY_ADDRESS={address}" if address else "start Ray here"
        kind = TryAgainError if isinstance(error, ConnectionError) else StageError
        raise kind(f"cannot {where}: {first}") from error
    watch = None
    try:
        _be_quiet()
        url = context.dashboard_url
        with contextlib.ExitStack() as stack:
            if address is not None:
                gcs = ray.get_runtime_context().gcs_address
                watch = stack.enter_context(HeadWatch(gcs, patience()))
            yield Cluster(
                started_here=address is None,
                dashboard_url=f"http://{url}" if url else "",
                room=_room(started_here=address is None),
            )
    finally:
        if watch is None or not watch.lost:  # a shutdown would wait for the lost head
            ray.shutdown()


def local_cluster() -> Cluster | None:
    """The cluster that `connect` would start here; None if it would connect to a running one.

    Raises:
        UserError: if `RAY_ADDRESS` is of a kind that does not work.
    """
    if _address() is not None:
        return None
    resources = {"CPU": float(os.cpu_count() or 1), "GPU": ANY_GPUS, "memory": float(memory())}
    return Cluster(True, "", Room((Node("", "this machine", resources, is_head=True),)))


def here() -> NodeAffinitySchedulingStrategy:
    """A scheduling strategy for actors that must run on the command's node."""
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


def raised_by_user_code(error: BaseException) -> OrchestratorError | None:
    """The OrchestratorError inside the errors that Ray wrapped around it, if there is one."""
    seen: set[int] = set()
    stack: list[BaseException | None] = [error]
    while stack:
        current = stack.pop()
        if current is None or id(current) in seen:
            continue
        seen.add(id(current))
        # Ray raises objects that are both its own error and the cause, with a traceback as text.
        if isinstance(current, OrchestratorError) and not isinstance(current, RayError):
            # Ray Data appends advice to the message of the user's exception.
            current.args = tuple(str(part).split(RAY_DATA_ADVICE)[0] for part in current.args)
            return current
        stack += [current.__cause__, getattr(current, "cause", None)]
        stack += list(getattr(current, "worker_failures", {}).values())
    return None


@contextlib.contextmanager
def _own_sigterm_handler() -> Iterator[None]:
    """Keep this process's handler of SIGTERM, if it has one.

    Ray would replace it at once, by one that exits with code 15.
    """
    if not callable(signal.getsignal(signal.SIGTERM)):
        yield
        return
    with unittest.mock.patch.object(ray._private.utils, "set_sigterm_handler"):
        yield


class _NoPaths(list[str]):
    """An empty list of import folders for Ray's workers, which ignores additions."""

    def extend(self, paths: Iterable[str]) -> None:
        pass


def _job_config() -> JobConfig:
    """With `python -P` this process does not import from its working directory. Ray would make its
    workers import from there first."""
    config = JobConfig()
    if sys.flags.safe_path:
        config._py_driver_sys_path = _NoPaths()
    return config


def _require_token() -> None:
    """Create the token of a local Ray, readable by its owner alone.

    Ray turns on token authentication by itself. It would create the file, but readable by all.
    """
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH", "~/.ray/auth_token")).expanduser()
    if "RAY_AUTH_TOKEN" in os.environ or path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    # Another command may start at the same time: the first one to create the file wins.
    with contextlib.suppress(FileExistsError):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(32))


def _address() -> str | None:
    """The cluster to connect to; None if a local one is to be started."""
    address = os.environ.get("RAY_ADDRESS") or None
    if address is None or not address.startswith(("ray://", "http://", "https://")):
        return address
    host = address.split("://", 1)[1].partition("/")[0].rpartition(":")[0] or "HOST"
    raise UserError(
        f"RAY_ADDRESS = {address}: this command cannot run through Ray's client or dashboard: use "
        f"`RAY_ADDRESS=http://{host}:8265 ray job submit --working-dir . -- python -m orchestrator "
        f"...`, or, on a node of the cluster, RAY_ADDRESS={host}:6379"
    )


def _room(started_here: bool) -> Room:
    """The nodes that are alive, and what an autoscaler can add to them."""
    alive = [node for node in ray.nodes() if node["Alive"]]
    nodes = tuple(
        Node(n["NodeID"], n["NodeManagerAddress"], n["Resources"], HEAD in n["Resources"])
        for n in alive
    )
    return Room(nodes) if started_here else Room(nodes, growth(alive))


def _require_reachable(address: str) -> None:
    """Fail at once if the address does not answer. Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if not port.isdigit():  # `auto` and the like
        return
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except OSError as error:
        raise TryAgainError(
            f"cannot reach the Ray cluster at RAY_ADDRESS={address}: {error.strerror or error}"
        ) from error


def _be_quiet() -> None:
    for name in QUIET_LOGGERS:
        logging.getLogger(name).setLevel(logging.CRITICAL)

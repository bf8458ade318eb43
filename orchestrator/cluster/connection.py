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
}
RAY_DATA_ADVICE = "\nFailed to apply UDF"
# Their failures reach the user as exceptions of the calls that failed.
QUIET_LOGGERS = ("ray", "ray.data", "ray.train", "ray.tune", "ray._private")


@dataclass(frozen=True)
class Cluster:
    """The Ray cluster that this process is connected to."""

    started_here: bool
    dashboard_url: str
    cpus: float
    gpus: float

    def check_room(self, key: str, count: int, cpus: int, gpus: float) -> None:
        """Raises UserError if the `count` processes of `key` can never all run at once."""
        for kind, needed, available in (("CPU", cpus, self.cpus), ("GPU", gpus, self.gpus)):
            if count * needed > available:
                raise UserError(
                    f"{key} = {count} with {needed:g} {kind} each need {count * needed:g}; "
                    f"there are {available:g}: lower {key}"
                )


@contextlib.contextmanager
def connect() -> Iterator[Cluster]:
    """Connect to Ray. A cluster that was started here ends with the block.

    Raises:
        StageError: if the cluster cannot be reached or started.
        KeyboardInterrupt: at a signal, if the handler of this process raises it.
    """
    address = os.environ.get("RAY_ADDRESS")
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
        first = (str(error) or type(error).__name__).strip().splitlines()[0]
        where = f"reach the Ray cluster at RAY_ADDRESS={address}" if address else "start Ray here"
        kind = TryAgainError if isinstance(error, ConnectionError) else StageError
        raise kind(f"cannot {where}: {first}") from error
    try:
        _be_quiet()
        resources = ray.cluster_resources()
        url = context.dashboard_url
        yield Cluster(
            started_here=address is None,
            dashboard_url=f"http://{url}" if url else "",
            cpus=resources.get("CPU", 0.0),
            gpus=resources.get("GPU", 0.0),
        )
    finally:
        ray.shutdown()


def local_cluster() -> Cluster | None:
    """The cluster that `connect` would start here; None if it would connect to a running one."""
    if "RAY_ADDRESS" in os.environ:
        return None
    return Cluster(True, "", cpus=float(os.cpu_count() or 1), gpus=float("inf"))


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


def _require_reachable(address: str) -> None:
    """Fail at once if the address does not answer. Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
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

"""What of a training lives in Ray Train's controller, and where its workers begin.

Importing this is light: the controller and the command need no torch.
"""

import os
from dataclasses import dataclass
from typing import Any

import ray
import ray.train
from ray.train.backend import Backend, BackendConfig
from ray.train.v2._internal.execution.callback import WorkerGroupCallback

from orchestrator.errors import last_line

LONGEST_CAUSE = 300  # characters


def work(settings: dict[str, Any]) -> None:
    from orchestrator import worker  # with torch, which the workers alone import

    worker.work(settings)


@dataclass
class Rendezvous(BackendConfig):
    """Tells the workers where to meet. Unlike Ray's TorchConfig it needs no torch to do so."""

    @property
    def backend_cls(self) -> type[Backend]:
        return _Rendezvous


class _Rendezvous(Backend):
    share_cuda_visible_devices = True  # so that workers of one machine see each other's GPU

    def on_start(self, worker_group: Any, backend_config: BackendConfig) -> None:
        from ray.train._internal.utils import get_address_and_port

        address, port = worker_group.execute_single(0, get_address_and_port)
        worker_group.execute(_meet_at, address, port)


def _meet_at(address: str, port: int) -> None:
    os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = address, str(port)


class Watch(ray.train.UserCallback):
    """Lives in Ray Train's controller and tells the supervisor which workers failed."""

    def __init__(self, supervisor: Any) -> None:
        self.supervisor = supervisor

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        errors = {
            rank: getattr(error, "health_check_failure", error)  # of a process that died
            for rank, error in worker_exceptions.items()
        }
        causes = {rank: _cause(error) for rank, error in errors.items()}
        preempted = any(getattr(error, "preempted", False) for error in errors.values())
        ray.get(self.supervisor.lost.remote(causes, preempted))


class Places(WorkerGroupCallback):
    """Tells the supervisor what is to be freed for other workers where the controller is lost."""

    def __init__(self, supervisor: Any) -> None:
        self.supervisor = supervisor

    def after_worker_group_start(self, worker_group: Any) -> None:
        handle = worker_group.get_worker_group_state().placement_group_handle
        ray.get(self.supervisor.placed.remote(handle.placement_group))


def _cause(error: Exception) -> str:
    """Its last line, without the guesses that are appended to it."""
    line = last_line(str(error))
    for guesses in (" Some common causes include", " This is typically caused"):
        line = line.split(guesses)[0]
    return f"{type(error).__name__}: {line}"[:LONGEST_CAUSE]

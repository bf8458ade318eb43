"""A group of workers on Ray Train: the part that runs in the process of Ray Train's controller.

This module imports no torch, which the controller does not need.
"""

import asyncio
import dataclasses
import os
from dataclasses import dataclass
from typing import Any

import ray
import ray.train
from ray.exceptions import ActorUnavailableError
from ray.train.backend import Backend, BackendConfig
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.callback import WorkerGroupCallback
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.worker_group import state, worker_group
from ray.train.v2._internal.execution.worker_group.poll import WorkerStatus
from ray.train.v2.api.callback import RayTrainCallback
from ray.train.v2.api.config import FailureConfig, RunConfig, ScalingConfig
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.train.v2.api.result import Result

from orchestrator.errors import last_line
from orchestrator.job.job import Job
from orchestrator.storage.folder import Folder
from orchestrator.train import preload

LONGEST_CAUSE = 300  # characters
RESIZE_SECONDS = 10.0  # between checks whether an elastic group could have another size


def train(settings: dict[str, Any]) -> None:
    """Run workers, and replace those that fail, until the training has ended.

    Args:
        settings: what each worker gets; `stage.train_group` makes them.

    Raises:
        ray.train.TrainingFailedError: where a worker failed for a reason that a retry cannot mend.
    """
    job: Job = settings["job"]
    supervisor = settings["supervisor"]
    _have_no_barrier()
    _Trainer(
        train_loop,
        train_loop_config=settings,
        backend_config=Rendezvous(),
        scaling_config=scaling(job),
        run_config=RunConfig(  # type: ignore[arg-type]  # the types are those of Ray Train V1
            name=f"{job.name}-{settings['attempt']}",  # Ray resumes whatever has the same name
            **(Folder(settings["folder"]) / "ray").for_ray(),
            # The supervisor limits the retries: it knows whether there was a new checkpoint.
            failure_config=FailureConfig(max_failures=-1),
            callbacks=[FailureReports(supervisor), PlacementGroupReports(supervisor)],  # type: ignore[list-item]
            worker_runtime_env={"env_vars": preload.ENVIRONMENT},
        ),
    ).fit()


class _Trainer(DataParallelTrainer):
    """Ray's trainer, with its controller in this process, and three processes fewer.

    Ray would start one for the controller, one for Ray Data's shards, and one to free the workers'
    placement group after the controller was lost. Each takes two seconds of a core while the
    workers start.
    """

    def _create_default_callbacks(self) -> list[RayTrainCallback]:
        unused = (DatasetsCallback, PlacementGroupCleanerCallback)
        created = super()._create_default_callbacks()
        return [callback for callback in created if not isinstance(callback, unused)]

    def _initialize_and_run_controller(self, **settings: Any) -> Result:
        controller = TrainController(**settings)
        controller.worker_group_cls = _PatientGroup
        asyncio.run(controller.run())
        return controller.get_result()


class _PatientGroup(worker_group.WorkerGroup):
    """A group that counts no worker as lost because the network lost one of Ray Train's polls.

    Whether such a worker hangs, the supervisor decides by its heartbeats.
    """

    def _poll_workers_and_collect_errors(self, timeout: float | None) -> list[WorkerStatus]:
        statuses = super()._poll_workers_and_collect_errors(timeout)
        return [_running(status) if _is_out_of_reach(status) else status for status in statuses]


def _running(status: WorkerStatus) -> WorkerStatus:
    return dataclasses.replace(status, running=True, error=None)


def _is_out_of_reach(status: WorkerStatus) -> bool:
    failure = getattr(status.error, "health_check_failure", None)
    return isinstance(failure, ActorUnavailableError)


class _NoBarrier:
    """Replaces an actor of Ray Train that serves `ray.train.report`, which nothing here calls.

    The actor would start during the first steps, and take a hundredth of a core from then on.
    """

    def options(self, **_: Any) -> "_NoBarrier":
        return self

    def remote(self, **_: Any) -> "_NoBarrier":
        return self


def _have_no_barrier() -> None:
    worker_group.SynchronizationActor = _NoBarrier()  # type: ignore[assignment,attr-defined]
    state._shutdown_sync_actor = lambda actor: None  # type: ignore[assignment]


def scaling(job: Job) -> ScalingConfig:
    """Ray's description of a job's workers."""
    resources = {"CPU": float(job.cluster.cpus_per_worker)}
    if job.cluster.gpus_per_worker:
        resources["GPU"] = job.cluster.gpus_per_worker
    fewest, most = job.cluster.fewest_workers, job.cluster.most_workers
    return ScalingConfig(
        num_workers=most if fewest == most else (fewest, most),
        use_gpu=job.cluster.gpus_per_worker > 0,
        resources_per_worker=resources,
        elastic_resize_monitor_interval_s=RESIZE_SECONDS,
    )


def train_loop(settings: dict[str, Any]) -> None:
    """What Ray Train runs in each worker."""
    from orchestrator.train import worker  # imports torch, which only workers need

    worker.train(settings)


@dataclass
class Rendezvous(BackendConfig):
    """Gives the workers the first one's address. Ray's TorchConfig would import torch to do so."""

    @property
    def backend_cls(self) -> type[Backend]:
        return _Rendezvous


class _Rendezvous(Backend):
    share_cuda_visible_devices = True  # so that workers of one machine see each other's GPUs

    def on_start(self, worker_group: Any, backend_config: BackendConfig) -> None:
        from ray.train._internal.utils import get_address_and_port

        address, port = worker_group.execute_single(0, get_address_and_port)
        worker_group.execute(_meet_at, address, port)


def _meet_at(address: str, port: int) -> None:
    os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = address, str(port)


class FailureReports(ray.train.UserCallback):
    """A callback of Ray Train's controller: tells the supervisor which workers failed."""

    def __init__(self, supervisor: Any) -> None:
        self.supervisor = supervisor

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        errors = {
            rank: getattr(error, "health_check_failure", error)  # where a process died
            for rank, error in worker_exceptions.items()
        }
        causes = {rank: _cause(error) for rank, error in errors.items()}
        preempted = any(getattr(error, "preempted", False) for error in errors.values())
        ray.get(self.supervisor.workers_lost.remote(causes, preempted))


class PlacementGroupReports(WorkerGroupCallback):
    """A callback that gives the command the workers' placement group.

    The command frees it if the controller is lost.
    """

    def __init__(self, supervisor: Any) -> None:
        self.supervisor = supervisor

    def after_worker_group_start(self, worker_group: Any) -> None:
        handle = worker_group.get_worker_group_state().placement_group_handle
        ray.get(self.supervisor.put.remote(handle.placement_group))


def _cause(error: Exception) -> str:
    """An error's last line, without the guesses that Ray appends."""
    line = last_line(str(error))
    for guess in (" Some common causes include", " This is typically caused"):
        line = line.split(guess)[0]
    return f"{type(error).__name__}: {line}"[:LONGEST_CAUSE]

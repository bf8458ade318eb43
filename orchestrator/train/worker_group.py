"""A group of workers on Ray Train: what lives in its controller's process, and where they begin.

Importing this is lighter than what the workers do: the controller needs no torch.
"""

import asyncio
import os
from dataclasses import dataclass
from typing import Any

import ray
import ray.train
from ray.train.backend import Backend, BackendConfig
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.callback import WorkerGroupCallback
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.worker_group import state, worker_group
from ray.train.v2.api.callback import RayTrainCallback
from ray.train.v2.api.config import FailureConfig, RunConfig, ScalingConfig
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.train.v2.api.result import Result

from orchestrator.errors import last_line
from orchestrator.job.job import Job
from orchestrator.storage.folder import Folder
from orchestrator.train import preload

LONGEST_CAUSE = 300  # characters
RESIZE_SECONDS = 10.0  # between looks whether an elastic group could have another size


def train(settings: dict[str, Any]) -> None:
    """Have workers train, and others in their place where they fail, until they are done.

    `settings` are the workers'; see `train.py`.

    Raises:
        ray.train.TrainingFailedError: of a worker for a reason that no retry mends.
    """
    job: Job = settings["job"]
    supervisor = settings["supervisor"]
    _have_no_barrier()
    _Trainer(
        work,
        train_loop_config=settings,
        backend_config=Rendezvous(),
        scaling_config=scaling(job),
        run_config=RunConfig(  # type: ignore[arg-type]  # of Ray Train V2, as all here
            name=f"{job.name}-{settings['attempt']}",  # Ray resumes whatever has the same name
            **(Folder(settings["folder"]) / "ray").for_ray(),
            # How often is the supervisor's to decide, which knows of progress.
            failure_config=FailureConfig(max_failures=-1),
            callbacks=[Watch(supervisor), Places(supervisor)],  # type: ignore[list-item]
            worker_runtime_env={"env_vars": preload.ENVIRONMENT},
        ),
    ).fit()


class _Trainer(DataParallelTrainer):
    """Ray's, in this process, and without those that it starts for what is done otherwise here.

    Each takes two seconds of a core, and together they would start while the workers do: one for
    the controller, one for Ray Data's shards, and one to free the workers' places after a
    controller was lost.
    """

    def _create_default_callbacks(self) -> list[RayTrainCallback]:
        unused = (DatasetsCallback, PlacementGroupCleanerCallback)
        created = super()._create_default_callbacks()
        return [callback for callback in created if not isinstance(callback, unused)]

    def _initialize_and_run_controller(self, **settings: Any) -> Result:
        controller = TrainController(**settings)
        asyncio.run(controller.run())
        return controller.get_result()


class _NoBarrier:
    """In place of an actor of Ray Train's for `ray.train.report`, which nothing here calls.

    It would start while the workers take their first steps, and take a hundredth of a core then.
    """

    def options(self, **_: Any) -> "_NoBarrier":
        return self

    def remote(self, **_: Any) -> "_NoBarrier":
        return self


def _have_no_barrier() -> None:
    worker_group.SynchronizationActor = _NoBarrier()  # type: ignore[assignment,attr-defined]
    state._shutdown_sync_actor = lambda actor: None  # type: ignore[assignment]


def scaling(job: Job) -> ScalingConfig:
    """The workers of a job in Ray's words."""
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


def work(settings: dict[str, Any]) -> None:
    from orchestrator.train import worker  # with torch, which the workers alone import

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
    """Tells the command what is to be freed for other workers where the controller is lost."""

    def __init__(self, supervisor: Any) -> None:
        self.supervisor = supervisor

    def after_worker_group_start(self, worker_group: Any) -> None:
        handle = worker_group.get_worker_group_state().placement_group_handle
        ray.get(self.supervisor.put.remote(handle.placement_group))


def _cause(error: Exception) -> str:
    """Its last line, without the guesses that are appended to it."""
    line = last_line(str(error))
    for guesses in (" Some common causes include", " This is typically caused"):
        line = line.split(guesses)[0]
    return f"{type(error).__name__}: {line}"[:LONGEST_CAUSE]

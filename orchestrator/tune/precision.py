"""The precision of a sweep's trials, chosen once by timing a step of the job's model.

All trials share it. Otherwise the sweep would compare precisions, too, where both are about as
fast. The training after the sweep chooses its own, since its model may be another one.
"""

from typing import Any

import ray
import torch
from ray.exceptions import RayError

from orchestrator.cluster.connection import raised_by_user_code
from orchestrator.errors import StageError
from orchestrator.infer.device import device_for
from orchestrator.infer.trained_model import load_processor
from orchestrator.job.job import Job
from orchestrator.learn.batches import Batches
from orchestrator.learn.precision import Choice, choose
from orchestrator.learn.world import World
from orchestrator.storage.artifact import PreparedData
from orchestrator.storage.folder import Folder
from orchestrator.train.preload import KEPT_MEMORY


def choose_for_trials(job: Job, prepared: PreparedData) -> Choice:
    """The faster precision on the resources of one of a trial's workers.

    Raises:
        OrchestratorError: that the task raised.
    """
    sizes = job.cluster
    on_a_worker: Any = _choose.options(
        num_cpus=sizes.cpus_per_worker,
        num_gpus=sizes.gpus_per_worker,
        runtime_env={"env_vars": KEPT_MEMORY},  # as for trials
    )
    try:
        choice: Choice = ray.get(on_a_worker.remote(job, prepared.folder.uri))
    except RayError as error:
        raise raised_by_user_code(error) or error from error
    return choice


@ray.remote
def _choose(job: Job, prepared_uri: str) -> Choice:
    torch.set_num_threads(job.cluster.cpus_per_worker)
    prepared = PreparedData.load(Folder(prepared_uri))
    if prepared is None:
        raise StageError(f"{prepared_uri}: the prepared data is gone, or on no shared storage")
    world = World(device=device_for("cluster.gpus_per_worker", job.cluster.gpus_per_worker))
    task = job.build_task()
    processor = load_processor(task, prepared)
    model = task.build_model(processor.vocab_size, processor.num_outputs).to(world.device)
    return choose(task, model, Batches(prepared, job.train, world).first(), world)

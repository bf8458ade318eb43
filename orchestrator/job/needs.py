"""What a job needs of a cluster at the least: resources, memory, disk.

The estimates are low on purpose. Preflight refuses a job that needs more than there is, and must
not refuse one that would run.
"""

from orchestrator.job.cost import num_parameters
from orchestrator.job.defaults import BYTES_PER_TOKEN
from orchestrator.job.job import Job

BYTES_PER_PARAMETER = 12  # in fp32: a weight, its gradient, and one value of the optimizer
PROCESS_BYTES = 300_000_000  # a worker before its model: Python, torch and Ray
PLAIN_TEXT = ("txt", "py")  # formats whose bytes all become tokens; others may lose columns
BYTES_PER_STORED_TOKEN = 2  # token ids of a small vocabulary; larger ones take twice as much
CHECKPOINTS = 2  # are there at the same time: the newest, and the one that is being written


def worker_resources(job: Job) -> dict[str, float]:
    """The resources of each worker, by Ray's names."""
    resources = {"CPU": float(job.cluster.cpus_per_worker)}
    if job.cluster.gpus_per_worker:
        resources["GPU"] = job.cluster.gpus_per_worker
    return resources


def replica_resources(job: Job) -> dict[str, float]:
    """The resources of each replica of the endpoint, by Ray's names."""
    resources = {"CPU": float(job.cluster.cpus_per_worker)}
    if job.gpus_per_replica:
        resources["GPU"] = job.gpus_per_replica
    return resources


def worker_bytes(job: Job) -> int:
    """The least memory of a worker's machine that it takes. On a GPU, the model is in the GPU."""
    if job.cluster.gpus_per_worker:
        return PROCESS_BYTES
    return PROCESS_BYTES + BYTES_PER_PARAMETER * num_parameters(job)


def prepared_bytes(source_bytes: int) -> int:
    """The least size of the prepared data."""
    return int(source_bytes / BYTES_PER_TOKEN * BYTES_PER_STORED_TOKEN)


def checkpoint_bytes(job: Job) -> int:
    """The least size of a training's checkpoints: weights and one value of the optimizer each."""
    return CHECKPOINTS * 8 * num_parameters(job)

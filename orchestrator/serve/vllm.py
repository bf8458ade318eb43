"""`serve.engine: vllm`: Ray Serve's own deployment for language models serves the export.

It runs in an environment of its own, in which this package is not installed: its dependencies and
those of vLLM do not meet.
"""

from typing import Any

import ray
from ray.exceptions import RayTaskError, RuntimeEnvSetupError

from orchestrator.errors import StageError, UserError, last_line
from orchestrator.job.job import Job
from orchestrator.storage.artifact import Training
from orchestrator.storage.folder import Folder

CLOUDS = ("s3://", "gs://", "abfss://", "azure://")  # from which Ray Serve copies models


def serving_args(job: Job, exported: Folder) -> dict[str, Any]:
    """The argument of `ray.serve.llm.build_openai_app` for an exported model.

    Raises:
        UserError: if Ray Serve cannot read the storage.
    """
    assert job.serve.vllm is not None
    if exported.local_path is None and not exported.uri.startswith(CLOUDS):
        raise UserError(
            f"serve.engine = vllm: Ray Serve copies models from {', '.join(CLOUDS)} or a local "
            f"folder, not from {exported}"
        )
    source: Any = {"bucket_uri": exported.uri} if exported.local_path is None else exported.uri
    gpus = job.gpus_per_replica
    bundle = {"CPU": job.cluster.cpus_per_worker, **({"GPU": gpus} if gpus else {})}
    config = {
        "model_loading_config": {"model_id": job.name, "model_source": source},
        "runtime_env": job.serve.vllm.runtime_env,
        "accelerator_config": {"kind": "gpu" if gpus else "cpu"},
        "placement_group_config": {"bundle_per_worker": bundle},
        "deployment_config": _replicas(job),
        "engine_kwargs": {
            "max_model_len": job.model.max_seq_len,
            "max_num_seqs": job.serve.slots,
            **job.serve.vllm.engine_kwargs,
        },
    }
    return {"llm_configs": [config]}


def _replicas(job: Job) -> dict[str, Any]:
    fewest, most = job.serve.replica_range
    if fewest == most:
        return {"num_replicas": fewest}
    return {"autoscaling_config": {"min_replicas": fewest, "max_replicas": most}}


def run(job: Job, training: Training) -> None:
    """Deploy the training's export under the job's name, and wait until it can answer.

    Raises:
        UserError: if the environment cannot be made, or has no vLLM.
        StageError: if there is no export, or it does not become healthy.
    """
    assert job.serve.vllm is not None
    if not training.exported.exists("README.md"):  # an export writes it last
        raise StageError(f"{training.exported}: holds no exported model: orchestrator export JOB")

    # Within a function, so that Ray sends its code: the environment does not have this module.
    def hand_over(args: dict[str, Any], name: str, route_prefix: str) -> str:
        try:
            from ray.serve.llm import build_openai_app
        except ImportError as error:
            return str(error) or "ImportError"

        from ray import serve

        serve.run(build_openai_app(args), name=name, route_prefix=route_prefix)
        return ""

    environment = job.serve.vllm.runtime_env
    task = ray.remote(num_cpus=0, max_retries=0, runtime_env=environment)(hand_over)
    args = serving_args(job, training.exported)
    try:
        missing: str = ray.get(task.remote(args, job.name, job.serve.route_prefix))
    except RuntimeEnvSetupError as error:
        raise UserError(f"serve.vllm.runtime_env: {last_line(str(error))}") from error
    except RayTaskError as error:
        raise StageError(f"serve.engine = vllm: {last_line(str(error))}") from error
    if missing:
        raise UserError(f"serve.vllm.runtime_env: has no vLLM: {last_line(missing)}")

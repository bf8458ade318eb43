"""Processes that stand by: to start one and import torch takes seconds, to take one over none.

Ray starts a process for each actor. One that it was asked to start ahead of time, with the same
environment, is taken over in its place: at the start of a training, while the command itself is
still importing, and after a worker was lost. Measured on two cores: 1.5 s to 2.5 s from the kill of
a worker to the next step with spares, 8 s without.
"""

import gc
import importlib
import json
import logging
import os

import ray
from ray._private.grpc_utils import init_grpc_channel
from ray._private.ray_constants import WORKER_PROCESS_SETUP_HOOK_ENV_VAR as HOOK
from ray._private.utils import get_runtime_env_info, parse_runtime_env_for_task_or_actor
from ray.core.generated import node_manager_pb2
from ray.core.generated.node_manager_pb2_grpc import NodeManagerServiceStub

logger = logging.getLogger(__name__)

KEEP_SECONDS = 24 * 3600
# What a step frees is kept for the next one. glibc by itself gives large blocks back to the system,
# which clears and maps each of their pages anew in every step: on a CPU 7 % to 12 % of the time of
# a model with a vocabulary of 2,048, a third with 8,192. Only the first of its arenas can keep
# blocks of any size, and its per-thread caches hold splinters that keep large ones apart.
_MALLOC = {"mmap_threshold": 2**40, "trim_threshold": 2**40, "arena_max": 1, "tcache_count": 0}
KEPT_MEMORY = {
    "GLIBC_TUNABLES": ":".join(f"glibc.malloc.{name}={value}" for name, value in _MALLOC.items())
}
# Of the processes of workers. Ray runs what HOOK names in each new one before its actor comes.
ENVIRONMENT = {HOOK: "orchestrator.train.spares.import_what_a_worker_needs", **KEPT_MEMORY}


def import_what_a_worker_needs() -> None:
    gc.disable()  # imports leave nothing to collect, and looking for it takes half a second
    importlib.import_module("orchestrator.train.worker")
    gc.freeze()
    gc.enable()


def passed_on() -> dict[str, str]:
    """Of this process's environment, what Ray Train's controller and workers get."""
    chosen = {name: value for name, value in os.environ.items() if name.startswith("RAY_TRAIN_")}
    return {"RAY_WARN_BLOCKING_GET_INSIDE_ASYNC": "0", **chosen}


def start_for_workers(count: int) -> None:
    """Have Ray start processes for `count` workers of this job, spread over its nodes.

    A node that gets more or fewer of them than it will have workers costs time, nothing else.
    """
    runtime_env = dict(ray.get_runtime_context().runtime_env)
    runtime_env["env_vars"] = runtime_env.get("env_vars", {}) | passed_on() | ENVIRONMENT
    parsed = parse_runtime_env_for_task_or_actor(runtime_env)
    content = json.loads(get_runtime_env_info(parsed).serialized_runtime_env)
    # To the byte as Ray Train's controller, an actor itself, has it written by Ray's C++.
    serialized = json.dumps(content, separators=(",", ":"), sort_keys=True)
    nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
    for number, node in enumerate(nodes):
        share = len(range(number, count, len(nodes)))
        if share:
            _start(node, share, serialized)


def start_beside_this_worker() -> None:
    """Have this node start a process that could take this worker's place."""
    context = ray.get_runtime_context()
    for node in ray.nodes():
        if node["NodeID"] == context.get_node_id():
            _start(node, 1, context.get_runtime_env_string())


def _start(node: dict[str, str], count: int, serialized_runtime_env: str) -> None:
    """Ray has no public way to ask for this. Where it fails, starts take longer, that is all."""
    request = node_manager_pb2.PrestartWorkersRequest(  # type: ignore[attr-defined]
        language=0,  # Python
        num_workers=count,
        keep_alive_duration_secs=KEEP_SECONDS,
        job_id=bytes.fromhex(ray.get_runtime_context().get_job_id()),
    )
    request.runtime_env_info.serialized_runtime_env = serialized_runtime_env
    address = f"{node['NodeManagerAddress']}:{node['NodeManagerPort']}"
    try:
        with init_grpc_channel(address) as channel:
            NodeManagerServiceStub(channel).PrestartWorkers(request, timeout=10)
    except Exception as error:
        logger.info("no spare processes on %s: %s", address, error)

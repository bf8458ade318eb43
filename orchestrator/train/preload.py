"""How the processes of workers begin: their environment, and imports before their actor arrives.

Ray starts a process for each actor. A process that Ray was asked to start ahead of time, with the
same environment, takes the actor instead. So a training starts sooner: its workers import torch
while the command itself is still importing.
"""

import gc
import json
import os

import ray
from ray._private.ray_constants import WORKER_PROCESS_SETUP_HOOK_ENV_VAR as HOOK
from ray._private.utils import get_runtime_env_info, parse_runtime_env_for_task_or_actor

from orchestrator.train import spares

# Memory that a step frees is kept for the next step. By default glibc returns large blocks to the
# system, which clears and maps each of their pages again in every step. On a CPU that takes 7 % to
# 12 % of a step with a vocabulary of 2,048, and a third with 8,192. Only the first of glibc's
# arenas can keep blocks of any size, and small blocks in its per-thread caches keep large free
# blocks apart.
_MALLOC = {"mmap_threshold": 2**40, "trim_threshold": 2**40, "arena_max": 1, "tcache_count": 0}
# PyTorch and oneDNN each keep up to 1,024 compiled matrix products, one for each shape. In bf16,
# with rows of many lengths, they took 0.6 GB after 200 steps, and still grew. 128 take 0.1 GB, and
# a step takes 1 % longer.
_KERNELS = {"LRU_CACHE_CAPACITY": "128", "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "128"}
KEPT_MEMORY = {
    "GLIBC_TUNABLES": ":".join(f"glibc.malloc.{name}={value}" for name, value in _MALLOC.items()),
    **_KERNELS,
}


def import_worker() -> None:
    """Import what a worker needs. Ray calls this in each new process, before its actor arrives."""
    gc.disable()  # imports leave nothing to collect, and looking for garbage takes half a second
    from orchestrator.train import worker  # noqa: F401

    gc.freeze()
    gc.enable()


# The environment of workers. Ray runs the function that HOOK names in each new process.
ENVIRONMENT = {HOOK: f"{__name__}.{import_worker.__name__}", **KEPT_MEMORY}


def passed_on() -> dict[str, str]:
    """The part of this process's environment that Ray Train's controller and workers get."""
    chosen = {name: value for name, value in os.environ.items() if name.startswith("RAY_TRAIN_")}
    return {"RAY_WARN_BLOCKING_GET_INSIDE_ASYNC": "0", **chosen}


def start_for_workers(count: int) -> None:
    """Have Ray start processes for `count` workers of this job, spread over its nodes.

    A node that gets more or fewer processes than it will have workers costs time, nothing else.
    """
    runtime_env = dict(ray.get_runtime_context().runtime_env)
    runtime_env["env_vars"] = runtime_env.get("env_vars", {}) | passed_on() | ENVIRONMENT
    parsed = parse_runtime_env_for_task_or_actor(runtime_env)
    content = json.loads(get_runtime_env_info(parsed).serialized_runtime_env)
    # Ray compares environments as text. Ray Train's controller is an actor, whose environment Ray's
    # C++ has written; this text must equal it to the byte.
    serialized = json.dumps(content, separators=(",", ":"), sort_keys=True)
    nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
    for number, node in enumerate(nodes):
        share = len(range(number, count, len(nodes)))
        if share:
            spares.start(node, share, serialized)

"""Runs a function on a chosen node of the cluster."""

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

HEAD = "node:__internal_head__"  # a resource that Ray's head has

P = ParamSpec("P")
T = TypeVar("T")


def run_on(
    node: str, seconds: float, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs
) -> T:
    """What the function returns on a node, given by Ray's id; called directly if it is this one.

    Raises:
        RayError: if the node does not answer in time, or around what the function raised there.
    """
    if node == ray.get_runtime_context().get_node_id():
        return function(*args, **kwargs)
    there = NodeAffinitySchedulingStrategy(node, soft=False)
    remote: Any = ray.remote(num_cpus=0, max_retries=0)(function)
    result: T = ray.get(
        remote.options(scheduling_strategy=there).remote(*args, **kwargs), timeout=seconds
    )
    return result


def head() -> str | None:
    """Ray's id of the head; None if it has none that lives."""
    alive = [node for node in ray.nodes() if node["Alive"]]
    return next((node["NodeID"] for node in alive if HEAD in node["Resources"]), None)

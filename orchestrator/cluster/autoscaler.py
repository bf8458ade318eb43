"""What an autoscaler could add to the cluster that this process is connected to.

Ray has no public way to ask. Clouds that manage Ray report their node types to its control store.
With `ray up`, the monitor on the head was started with the file that has them. KubeRay's monitor
runs beside the head, and its node types cannot be seen from here.
"""

import json
import logging
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any

import psutil
import ray
import yaml
from ray._private.ray_constants import DEBUG_AUTOSCALING_STATUS
from ray._private.state import state
from ray.core.generated import autoscaler_pb2
from ray.exceptions import RayError
from ray.experimental.internal_kv import _internal_kv_get

from orchestrator.cluster.nodes import head, run_on
from orchestrator.cluster.room import UNKNOWN_GROWTH, Growth, NodeType

logger = logging.getLogger(__name__)

SECONDS = 10.0  # for the head to answer
MONITORS = ("ray/autoscaler/_private/monitor.py", "ray/autoscaler/v2/monitor.py")
NO_LIMIT = 2**20  # nodes
LOOKING_ON = "node_"  # how the types of a monitor begin that adds no nodes


def growth(nodes: list[dict[str, Any]]) -> Growth:
    """What an autoscaler can add, given Ray's list of living nodes; nothing if there is none."""
    reported = state.get_cluster_config()
    if reported is not None and reported.node_group_configs:
        return _of_reported(reported)
    if (status := _status()) is Status.LOOKS_ON:
        return Growth()
    if (node := head()) is None:
        return UNKNOWN_GROWTH
    try:
        config = run_on(node, SECONDS, read_config, ray.get_runtime_context().gcs_address)
    except (RayError, OSError, yaml.YAMLError) as error:
        logger.info("the autoscaler's settings cannot be read: %s", error)
        return UNKNOWN_GROWTH
    if config is None:  # it runs elsewhere, as KubeRay's does, or there is none
        return UNKNOWN_GROWTH if status is Status.MANAGES else Growth()
    return of_config(config, len(nodes) - 1)


def read_config(gcs_address: str) -> dict[str, Any] | None:
    """The settings of the autoscaler that runs on this node; empty if Ray's monitor has none to
    manage, None if no monitor runs here."""
    for process in psutil.process_iter():
        try:
            line = process.cmdline()
        except psutil.Error:
            continue
        if not any(part.endswith(MONITORS) for part in line[:4]):
            continue
        options = dict(part.split("=", 1) for part in line if part.startswith("--") and "=" in part)
        if options.get("--gcs-address", "").rpartition(":")[2] != gcs_address.rpartition(":")[2]:
            continue  # another cluster's
        if not (path := options.get("--autoscaling-config")):
            return {}
        content = yaml.safe_load(Path(path).expanduser().read_text())
        return content if isinstance(content, dict) else {}
    return None


def of_config(config: Mapping[str, Any], workers: int) -> Growth:
    """The growth of a cluster that `ray up` made, which has `workers` nodes besides its head.

    Machines of one's own have no resources in this file. Those that have not joined are unknown.
    """
    most = int(config.get("max_workers", 2))  # Ray's default
    types = []
    for name, content in (config.get("available_node_types") or {}).items():
        count = int(content.get("max_workers", 0 if name == config.get("head_node_type") else most))
        resources = {k: float(v) for k, v in (content.get("resources") or {}).items()}
        if not resources:
            count -= workers
        if count > 0:
            types.append(NodeType(str(name), resources or None, count))
    return Growth(tuple(types), most) if types else Growth()


def _of_reported(config: Any) -> Growth:
    types = []
    for group in config.node_group_configs:
        count = group.max_count if group.max_count >= 0 else NO_LIMIT
        types.append(NodeType(group.name, dict(group.resources), count))
    return Growth(tuple(types), NO_LIMIT)


class Status(Enum):
    """What the monitor of a cluster, wherever it runs, has reported that it does."""

    UNKNOWN = 0  # nothing, as in the first seconds of a cluster
    LOOKS_ON = 1  # it adds no nodes, and reports each node as a type of its own
    MANAGES = 2


def _status() -> Status:
    if (status := _internal_kv_get(DEBUG_AUTOSCALING_STATUS.encode())) is not None:
        active = (json.loads(status).get("autoscaler_report") or {}).get("active_nodes")
        if active and all(name.startswith(LOOKING_ON) for name in active):
            return Status.LOOKS_ON
        return Status.MANAGES if active else Status.UNKNOWN
    is_second_kind = autoscaling_state().autoscaler_state_version > 0
    return Status.MANAGES if is_second_kind else Status.UNKNOWN


def autoscaling_state() -> Any:
    """What the autoscaler (of Ray's second kind) last reported; empty if there is none."""
    reply = autoscaler_pb2.GetClusterStatusReply()  # type: ignore[attr-defined]
    reply.ParseFromString(_client().get_cluster_status(timeout_s=SECONDS))
    return reply.autoscaling_state


def resource_state() -> Any:
    """Ray's view of all nodes, and of what waits for resources."""
    reply = autoscaler_pb2.GetClusterResourceStateReply()  # type: ignore[attr-defined]
    reply.ParseFromString(_client().get_cluster_resource_state(timeout_s=SECONDS))
    return reply.cluster_resource_state


def _client() -> Any:
    return ray._private.worker.global_worker.gcs_client  # type: ignore[attr-defined]

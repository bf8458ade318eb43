"""Says what a stage waits for, while the cluster has no room for its processes.

A thread asks Ray every ten seconds which requests wait for resources. So it also speaks where the
stage itself is blocked in a call of Ray's.
"""

import contextlib
import logging
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import ray
from ray._private.internal_api import node_stats

from orchestrator.cluster.autoscaler import autoscaling_state, resource_state
from orchestrator.cluster.room import Resources, copies_on, unit
from orchestrator.progress import Progress

logger = logging.getLogger(__name__)

SECONDS = 10.0  # between two looks
MOST_ASKED = 32  # nodes that are asked which jobs use them
FIGURE = "waiting for"  # its name among a display's figures
DEAD = 2  # a node's status


@contextlib.contextmanager
def waits_shown(
    progress: Progress, bundle: Resources, needed: Callable[[], int] = lambda: 1
) -> Iterator[None]:
    """Within the block, say every ten seconds what the processes with these resources wait for.

    Args:
        bundle: the resources of each process, by Ray's names.
        needed: how many of them must run at once for the stage to go on; 0 while they do.
    """
    ended = threading.Event()

    def look() -> None:
        shown = False
        while not ended.wait(SECONDS):
            try:
                lacking = needed()
                text = _waits_for(bundle, lacking) if lacking else ""
            except Exception as error:  # the control store may restart; the stage reports its own
                logger.info("cannot see what waits: %s", error)
                continue
            if (text or shown) and not ended.is_set():
                progress.show({FIGURE: text})
            shown = bool(text)

    thread = threading.Thread(target=look, name="waits", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()


@dataclass(frozen=True)
class _Use:
    """How many units of a resource there are, are free, and are used by this job."""

    total: float
    free: float
    ours: float

    @property
    def others(self) -> float:
        return max(self.total - self.free - self.ours, 0.0)


def _waits_for(bundle: Resources, needed: int) -> str:
    """What processes with these resources wait for, as in `2 more CPUs: 4 of 8 are used by other
    jobs`; empty if none waits, or if they wait only for others of this job."""
    status = resource_state()
    asked = _waiting(status, bundle)
    nodes = [node for node in status.node_states if node.status != DEAD]
    missing = asked - sum(copies_on(dict(node.available_resources), bundle) for node in nodes)
    if missing <= 0:
        return ""
    missing = min(missing, needed)
    kinds = {kind: amount for kind, amount in bundle.items() if amount > 0}
    uses = {kind: _use(nodes, kind) for kind in kinds}
    kind = min(kinds, key=lambda kind: uses[kind].free / kinds[kind])
    use, amount = uses[kind], missing * kinds[kind]
    if not use.others and use.ours >= needed * kinds[kind]:
        return ""
    where = " on one node" if missing == 1 and kinds[kind] > 1 else ""
    text = f"{amount:g} more {unit(kind, amount)}{where}: {_described(use)}"
    if autoscaling_state().infeasible_gang_resource_requests:
        text += "; the autoscaler has no kind of node that it could add for this"
    return text


def _described(use: _Use) -> str:
    if use.others:
        return f"{use.others:g} of {use.total:g} are used by other jobs"
    if use.ours:
        return f"{use.ours:g} of {use.total:g} are used by this job"
    return f"the cluster has {use.total:g} now"


def _waiting(status: object, bundle: Resources) -> int:
    """How many requests for these resources wait. Ray counts them by size, not by job."""
    single = [
        request.count
        for request in status.pending_resource_requests  # type: ignore[attr-defined]
        if _asks_for(request.request, bundle)
    ]
    groups = [
        [_asks_for(request, bundle) for request in _of_group(group)]
        for group in status.pending_gang_resource_requests  # type: ignore[attr-defined]
    ]
    return max([sum(single), *(sum(group) for group in groups)])


def _of_group(group: object) -> list[object]:
    return list(group.requests)  # type: ignore[attr-defined]


def _asks_for(request: object, bundle: Resources) -> bool:
    asked = dict(request.resources_bundle)  # type: ignore[attr-defined]
    return all(abs(asked.get(kind, 0.0) - amount) < 1e-6 for kind, amount in bundle.items())


def _use(nodes: list[object], kind: str) -> _Use:
    total = sum(node.total_resources.get(kind, 0.0) for node in nodes)  # type: ignore[attr-defined]
    free = sum(node.available_resources.get(kind, 0.0) for node in nodes)  # type: ignore[attr-defined]
    return _Use(total, free, _used_by_this_job(kind))


def _used_by_this_job(kind: str) -> float:
    """Units of a resource that processes of this job hold, as far as their nodes answer."""
    job = ray.get_runtime_context().get_job_id()
    own = re.compile(rf"{re.escape(kind)}(_group_[0-9a-f]+)?")  # the latter of a placement group
    used = 0.0
    for node in [node for node in ray.nodes() if node["Alive"]][:MOST_ASKED]:
        stats = node_stats(
            node["NodeManagerAddress"], node["NodeManagerPort"], include_memory_info=False
        )
        for worker in stats.core_workers_stats:
            if worker.job_id.hex() == job:
                used += sum(
                    slot.allocation
                    for name, held in worker.used_resources.items()
                    if own.fullmatch(name)
                    for slot in held.resource_slots
                )
    return used

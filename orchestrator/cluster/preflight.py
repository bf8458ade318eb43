"""Asks the other nodes of a cluster, before anything is spent, whether a run can use them.

Each runs a task without a CPU, which reads from storage what the driver has written and writes what
the driver reads. So a storage that is not shared is found before the data is prepared on it.
"""

import secrets
import shutil
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import ray
from ray import cloudpickle
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from orchestrator.cluster import node_report
from orchestrator.cluster.node_report import Report
from orchestrator.cluster.room import Node, Room
from orchestrator.errors import StageError, UserError, last_line
from orchestrator.storage.folder import Folder

MOST_NODES = 64  # that are asked
MOST_FILES = 5  # of the sources that are compared
SECONDS = 20.0  # for all nodes to answer
T = TypeVar("T")
PACKAGES = {"ray": "Ray"}  # as users write their names


@dataclass(frozen=True)
class Checked:
    """The room of a cluster with the memory that its nodes reported, and notes for the user."""

    room: Room
    notes: list[str]


def check_nodes(room: Room, storage: Folder, sources: Sequence[str]) -> Checked:
    """Ask the other nodes whether they can be used.

    Args:
        storage: the run's folder, which the driver can write to.
        sources: local files that tasks on any node will read.

    Raises:
        UserError: where versions differ, storage is not shared or not writable, or a source is
            missing, on a node that it names.
    """
    here = ray.get_runtime_context().get_node_id()
    memory = {here: node_report.memory()}
    others = [node for node in room.nodes if node.id != here and _works(node)]
    asked = spread(others, MOST_NODES)
    notes = []
    if asked:
        reports, silent = _ask(asked, storage, sources)
        _check_reports(reports, storage)
        memory |= {node.id: report["memory"] for node, report in reports}
        notes += [f"node {node.address} was not checked: {reason}" for node, reason in silent]
    if len(asked) < len(others):
        notes.append(f"{len(asked)} of {len(others) + 1} nodes were checked")
    if room.growth.types and storage.local_path is not None:
        notes.append(f"{storage} must be seen by the nodes that the autoscaler adds, too")
    return Checked(replace(room, nodes=tuple(_with_memory(n, memory) for n in room.nodes)), notes)


def spread(nodes: Iterable[Node], most: int) -> list[Node]:
    """At most so many of the nodes, from the smallest to the largest."""
    kinds = ("GPU", "CPU", "memory")
    return some(sorted(nodes, key=lambda n: [n.resources.get(kind, 0) for kind in kinds]), most)


def some(sequence: Sequence[T], most: int) -> list[T]:
    """At most so many of a sequence, from its first to its last."""
    if len(sequence) <= most:
        return list(sequence)
    return [sequence[number * (len(sequence) - 1) // (most - 1)] for number in range(most)]


def _works(node: Node) -> bool:
    """Whether workers or tasks may come to a node."""
    return any(node.resources.get(kind, 0) > 0 for kind in ("CPU", "GPU"))


def _with_memory(node: Node, known: dict[str, int]) -> Node:
    if node.id not in known:
        return node
    return replace(node, resources={**node.resources, "memory": float(known[node.id])})


Reports = list[tuple[Node, Report]]


def _ask(
    nodes: list[Node], storage: Folder, sources: Sequence[str]
) -> tuple[Reports, list[tuple[Node, str]]]:
    """The reports of the nodes, and the nodes without one, with the reason."""
    probe = storage / f".preflight-{secrets.token_hex(8)}"
    content = secrets.token_hex(16).encode()
    try:
        files = {path: node_report.fingerprint(path) for path in some(sources, MOST_FILES)}
    except OSError as error:
        raise UserError(f"{error.filename}: cannot be read: {error.strerror or error}") from error
    cloudpickle.register_pickle_by_value(node_report)
    task: Any = ray.remote(num_cpus=0, max_retries=0)(node_report.report)
    reports, silent = [], []
    try:
        probe.write("driver", content)
        asked = {
            task.options(
                scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False)
            ).remote(probe.uri, node.id, content, files): node
            for node in nodes
        }
        ray.wait(list(asked), num_returns=len(asked), timeout=SECONDS)
        for reference, node in asked.items():
            try:
                report = ray.get(reference, timeout=0)
            except RayError as error:
                if isinstance(error, ray.exceptions.GetTimeoutError):
                    ray.cancel(reference, force=True)
                    silent.append((node, f"no answer within {SECONDS:g} s"))
                else:
                    silent.append((node, last_line(str(error))))
                continue
            if not report["storage"] and not _reads(probe, node.id, content):
                report["storage"] = "writes what this command does not see"
            reports.append((node, report))
    finally:
        cloudpickle.unregister_pickle_by_value(node_report)
        probe.delete()
    return reports, silent


def _reads(probe: Folder, name: str, content: bytes) -> bool:
    """Whether the driver sees what a node has written."""
    deadline = time.monotonic() + node_report.SECONDS
    while True:
        try:
            return probe.read(name, retry=False) == content
        except OSError:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.2)


def _check_reports(reports: Reports, storage: Folder) -> None:
    """Raises UserError for the first kind of problem that a node reports."""
    ours = node_report.versions()
    for name, own in ours.items():
        if named := _first(
            (n, r["versions"][name]) for n, r in reports if r["versions"][name] != own
        ):
            raise UserError(_other_version(name, own, *named))
    if named := _first((node, report["storage"]) for node, report in reports if report["storage"]):
        where, problem = named
        raise UserError(
            f"storage = {storage}: {where} {problem}: give a folder or a URI that all nodes share"
        )
    if named := _first((node, report["sources"]) for node, report in reports if report["sources"]):
        where, problem = named
        raise UserError(
            f"data.source: {where} {problem}: put the data where all nodes see it, under the same "
            f"path, or on remote storage"
        )


def _first(problems: Iterable[tuple[Node, str]]) -> tuple[str, str] | None:
    """The first node with a problem, in words that count the others, and the problem."""
    found = sorted(problems, key=lambda each: each[0].address)
    if not found:
        return None
    (node, problem), *others = found
    more = f" (and {len(others)} more)" if others else ""
    return f"node {node.address}{more}", problem


def _other_version(name: str, own: str, where: str, theirs: str) -> str:
    shown = PACKAGES.get(name, name)
    has = f"{where} has no {shown}" if theirs == "none" else f"{where} has {shown} {theirs}"
    mend = (
        "submit it with `ray job submit --working-dir .`, which takes the code along"
        if name == "orchestrator"
        else "install the same on all nodes"
    )
    return f"{has}, this command {own}: {mend}"


def check_disk(storage: Folder, needed: int, what: str) -> None:
    """Raises UserError where a local storage has not `needed` bytes left. `what` says for what."""
    if storage.local_path is None or not needed:
        return
    folder = next(f for f in (storage.local_path, *storage.local_path.parents) if f.exists())
    try:
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise StageError(f"storage = {storage}: {error.strerror or error}") from error
    if free < needed:
        raise UserError(
            f"storage = {storage}: has {free / 1e9:,.1f} GB left, and {what} take about "
            f"{needed / 1e9:,.1f} GB: free some, or set storage to another place"
        )

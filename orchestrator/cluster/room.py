"""Room: how many processes of one kind a cluster's nodes can hold at the same time.

Each process needs one node that has all of its resources. So two nodes of 3 CPUs hold two processes
of 2 CPUs, not three, though the totals would do. All processes of a kind are alike, so to fill each
node by itself is the best packing.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from orchestrator.errors import UserError

Resources = Mapping[str, float]  # by Ray's names: CPU, GPU, memory (bytes), and custom ones
ROUNDING = 1e-6


@dataclass(frozen=True)
class Node:
    """A node that is there. `id` is Ray's, `address` names it to the user."""

    id: str
    address: str
    resources: Resources
    is_head: bool = False


@dataclass(frozen=True)
class NodeType:
    """Nodes that an autoscaler can add, `most` of them. `resources` are None if unknown.

    Files for `ray up` often give CPUs and GPUs alone. Each node then finds its memory out itself.
    """

    name: str
    resources: Resources | None
    most: int

    def copies(self, bundle: Resources) -> int:
        """How many processes one of the nodes can hold, as far as its resources are known."""
        resources = self.resources or {}
        known = {k: v for k, v in bundle.items() if k != "memory" or k in resources}
        return copies_on(resources, known)


@dataclass(frozen=True)
class Growth:
    """What an autoscaler can make of a cluster: a head and, of all types together, `most` nodes."""

    types: tuple[NodeType, ...] = ()
    most: int = 0

    def copies(self, bundle: Resources) -> float:
        """How many processes the added nodes can hold; infinite if that is unknown."""
        kinds = [kind for kind in self.types if kind.most > 0]
        if any(kind.resources is None for kind in kinds) and self.most > 0:
            return float("inf")
        sizes = [(kind.copies(bundle), kind.most) for kind in kinds]
        left, count = self.most, 0
        for each, most in sorted(sizes, reverse=True):
            taken = min(left, most)
            left, count = left - taken, count + taken * each
        return count


UNKNOWN_GROWTH = Growth((NodeType("of an unknown kind", None, 1),), 1)


@dataclass(frozen=True)
class Room:
    """The nodes of a cluster, and what an autoscaler can add to them."""

    nodes: tuple[Node, ...]
    growth: Growth = field(default_factory=Growth)

    def total(self, kind: str) -> float:
        return sum(node.resources.get(kind, 0.0) for node in self.nodes)

    def now(self, bundle: Resources) -> int:
        """How many processes the nodes hold that are there, if nothing else runs on them."""
        return sum(copies_on(node.resources, bundle) for node in self.nodes)

    def ever(self, bundle: Resources) -> float:
        """How many processes there is ever room for; infinite if that is unknown."""
        heads = sum(copies_on(node.resources, bundle) for node in self.nodes if node.is_head)
        return max(self.now(bundle), heads + self.growth.copies(bundle))

    def check(self, key: str, count: int, bundle: Resources) -> None:
        """Raises UserError if the `count` processes of `key` can never all run at once."""
        room = self.ever(bundle)
        if count <= room:
            return
        grown = " and those that the autoscaler can add" if self.growth.types else ""
        raise UserError(
            f"{key} = {count} with {_in_words(bundle)} each: there is room for {int(room)} on the "
            f"nodes that there are{grown} ({self._described(bundle)}): lower {key}, or what each "
            f"needs"
        )

    def check_memory(self, key: str, count: int, bundle: Resources, size: int) -> None:
        """Raises UserError if the processes fit, but not with `size` bytes of memory each.

        A node's `memory` is what Ray would give to tasks: without its object store.
        """
        with_memory = {**bundle, "memory": float(size)}
        room = self.ever(with_memory)
        if count <= room or count > self.ever(bundle):
            return
        largest = max((node.resources.get("memory", 0.0) for node in self.nodes), default=0.0)
        raise UserError(
            f"{key} = {count} with about {gigabytes(size)} of memory each: there is room for "
            f"{int(room)}, and the largest node has {gigabytes(largest)}: lower model.d_model, "
            f"model.num_layers or train.micro_batch_size, or take larger nodes"
        )

    def _described(self, bundle: Resources) -> str:
        """The nodes by size: `2 nodes of 3 CPUs, 1 node of 8 CPUs`."""
        return listed(
            [node.resources for node in self.nodes]
            + [k.resources for k in self.growth.types if k.resources for _ in range(k.most)],
            bundle,
        )


def copies_on(resources: Resources, bundle: Resources) -> int:
    """How many processes with these needs a node holds. One below a whole GPU shares a GPU only
    with others that fit beside it."""
    counts = []
    for kind, needed in bundle.items():
        if needed <= 0:
            continue
        there = resources.get(kind, 0.0)
        if kind == "GPU" and needed < 1:
            counts.append(int(there) * int((1 + ROUNDING) / needed))
        else:
            counts.append(int((there + ROUNDING) / needed))
    return min(counts, default=2**31)


def listed(sizes: Iterable[Resources], bundle: Resources) -> str:
    """Nodes grouped by size, in the kinds of resources that `bundle` names."""
    kinds = [kind for kind in bundle if kind != "memory"] or ["CPU"]
    alike = Counter(tuple(size.get(kind, 0.0) for kind in kinds) for size in sizes)
    parts = []
    for values, count in sorted(alike.items(), reverse=True):
        size = _in_words(dict(zip(kinds, values, strict=True)))
        parts.append(f"{count} node{'s' if count > 1 else ''} of {size}")
    return ", ".join(parts) or "no nodes"


def gigabytes(size: float) -> str:
    return f"{size / 1e9:,.1f} GB"


def _in_words(bundle: Resources) -> str:
    return " and ".join(f"{value:g} {unit(kind, value)}" for kind, value in bundle.items())


def unit(kind: str, amount: float) -> str:
    """A resource's name beside a number of it: `CPUs`."""
    plural = "s" if kind in ("CPU", "GPU") and amount != 1 else ""
    return kind + plural

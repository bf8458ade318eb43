"""Room on nodes: packed per node, with what an autoscaler can add."""

import pytest

from orchestrator.cluster.preflight import some, spread
from orchestrator.cluster.room import UNKNOWN_GROWTH, Growth, Node, NodeType, Room
from orchestrator.errors import UserError


def room(*sizes: dict[str, float], growth: Growth | None = None) -> Room:
    """The first node is the head."""
    nodes = [Node(str(n), f"10.0.0.{n}", size, n == 0) for n, size in enumerate(sizes)]
    return Room(tuple(nodes), growth or Growth())


def test_processes_are_packed_per_node() -> None:
    """The totals would hold three of them, which then wait for ever."""
    two = room({"CPU": 3}, {"CPU": 3})
    two.check("cluster.workers", 2, {"CPU": 2})
    with pytest.raises(UserError) as raised:
        two.check("cluster.workers", 3, {"CPU": 2})
    assert str(raised.value) == (
        "cluster.workers = 3 with 2 CPUs each: there is room for 2 on the nodes that there are "
        "(2 nodes of 3 CPUs): lower cluster.workers, or what each needs"
    )


@pytest.mark.parametrize(
    ("bundle", "count"),
    [
        ({"CPU": 1.0}, 12),
        ({"CPU": 1.0, "GPU": 1.0}, 4),
        ({"CPU": 4.0, "GPU": 1.0}, 2),  # the CPUs limit it
        ({"CPU": 1.0, "GPU": 0.6}, 4),  # two of them do not share a GPU
        ({"CPU": 1.0, "GPU": 0.5}, 8),
        ({"CPU": 1.0, "GPU": 0.1}, 8),
        ({"CPU": 1.0, "GPU": 2.0}, 2),
        ({"CPU": 1.0, "licence": 1.0}, 3),
        ({"CPU": 1.0, "TPU": 1.0}, 0),
        ({"CPU": 0.0}, 3 * 2**31),
    ],
)
def test_every_kind_of_resource_limits_the_room(bundle: dict[str, float], count: int) -> None:
    size = {"CPU": 4.0, "GPU": 2.0}
    assert room(size, size, {"CPU": 4.0, "licence": 3.0}).now(bundle) == count


def test_what_an_autoscaler_can_add_counts() -> None:
    growth = Growth((NodeType("small", {"CPU": 2}, 4), NodeType("large", {"CPU": 9}, 2)), most=3)
    cluster = room({"CPU": 3}, {"CPU": 2}, growth=growth)
    assert cluster.now({"CPU": 3}) == 1
    assert cluster.ever({"CPU": 3}) == 1 + 3 + 3  # the head, and two large nodes
    assert cluster.ever({"CPU": 2}) == 1 + 4 + 4 + 1
    assert cluster.ever({"GPU": 1}) == 0
    with pytest.raises(UserError, match=r"room for 7 .* and those that the autoscaler can add"):
        cluster.check("cluster.workers", 8, {"CPU": 3})


def test_nodes_that_are_there_count_though_the_autoscaler_would_add_fewer() -> None:
    cluster = room({"CPU": 1}, {"CPU": 8}, growth=Growth((NodeType("a", {"CPU": 1}, 1),), 1))
    assert cluster.ever({"CPU": 1}) == 9


def test_an_autoscaler_of_unknown_kinds_may_have_room() -> None:
    room({"CPU": 1}, growth=UNKNOWN_GROWTH).check("cluster.workers", 100, {"CPU": 64})


def test_memory_limits_the_room_too() -> None:
    two = room({"CPU": 8, "memory": 16e9}, {"CPU": 8, "memory": 8e9})
    two.check_memory("cluster.workers", 6, {"CPU": 1}, int(4e9))
    with pytest.raises(UserError, match=r"about 4.0 GB .* room for 6, and the largest .* 16.0 GB"):
        two.check_memory("cluster.workers", 7, {"CPU": 1}, int(4e9))


def test_the_memory_of_nodes_that_an_autoscaler_adds_may_be_unknown() -> None:
    known, unknown = {"CPU": 2.0, "memory": 1e9}, {"CPU": 2.0}
    head = (Node("h", "h", {"CPU": 1.0, "memory": 8e9}, is_head=True),)
    grows = Room(head, Growth((NodeType("unknown", unknown, 2),), 2))
    grows.check_memory("cluster.workers", 5, {"CPU": 1}, int(4e9))
    small = Room(head, Growth((NodeType("known", known, 2),), 2))
    with pytest.raises(UserError, match="there is room for 1"):
        small.check_memory("cluster.workers", 5, {"CPU": 1}, int(4e9))


@pytest.mark.parametrize("most", [2, 5])
def test_a_few_of_many_are_spread_over_all(most: int) -> None:
    paths = [str(number) for number in range(100)]
    chosen = some(paths, most)
    assert len(chosen) == most and chosen[0] == "0" and chosen[-1] == "99"
    assert some(paths[:2], most) == ["0", "1"]


def test_nodes_of_every_size_are_asked() -> None:
    nodes = room(*[{"CPU": 8.0}] * 90, {"CPU": 64.0}, {"CPU": 64.0}, {"CPU": 2.0}).nodes
    asked = spread(nodes, 64)
    assert len({node.id for node in asked}) == 64
    assert {node.resources["CPU"] for node in asked} == {2.0, 8.0, 64.0}

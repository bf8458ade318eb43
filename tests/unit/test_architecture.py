"""The diagram of docs/architecture.md shows the rooms of the package and their real imports."""

import re
import tomllib
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = "orchestrator"

Graph = dict[str, set[str]]  # the rooms that each room imports


def drawn() -> Graph:
    """The mermaid diagram. Every line of it is a room, or an arrow between rooms."""
    page = (ROOT / "docs" / "architecture.md").read_text()
    (diagram,) = re.findall(r"```mermaid\nflowchart TD\n(.*?)```", page, re.DOTALL)
    graph: Graph = {}
    for line in diagram.splitlines():
        if room := re.fullmatch(r'\s+(\w+)\[".+"\]', line):
            graph[room[1]] = set()
        elif arrow := re.fullmatch(r"\s+(\w+) --> (\w+(?: & \w+)*)", line):
            graph[arrow[1]] |= set(arrow[2].split(" & "))
        else:
            raise AssertionError(f"{line!r} is neither a room nor an arrow")
    return graph


def layers() -> list[set[str]]:
    """The rooms of each line of the import contract, from the top."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    (contract,) = [each for each in contracts["contracts"] if each["type"] == "layers"]
    lines = [line.split(" | ") for line in contract["layers"]]
    return [{module.removeprefix(f"{PACKAGE}.") for module in line} for line in lines]


@pytest.fixture(scope="module")
def imports() -> Graph:
    """What the modules of each room import from other rooms, for type checking too."""
    graph = grimp.build_graph(PACKAGE, cache_dir=None)
    rooms = graph.find_children(PACKAGE)
    for room in rooms:
        graph.squash_module(room)
    inside = {room: graph.find_modules_directly_imported_by(room) & rooms for room in rooms}
    return {name(room): {name(other) for other in others} for room, others in inside.items()}


def name(module: str) -> str:
    return module.removeprefix(f"{PACKAGE}.")


def reachable(graph: Graph, room: str) -> set[str]:
    below = graph[room]
    return below.union(*(reachable(graph, other) for other in below))


def reduced(graph: Graph) -> Graph:
    """The graph without each arrow that a longer way replaces: `a --> c` beside `a --> b --> c`."""
    return {
        room: {
            other
            for other in below
            if not any(other in reachable(graph, between) for between in below - {other})
        }
        for room, below in graph.items()
    }


def test_no_room_imports_one_of_its_own_layer_or_above(imports: Graph) -> None:
    depth = {room: number for number, layer in enumerate(layers()) for room in layer}
    upward = [(a, b) for a, below in imports.items() for b in below if depth[a] >= depth[b]]
    assert not upward


def test_the_contract_and_the_diagram_have_every_room(imports: Graph) -> None:
    assert set.union(*layers()) == imports.keys()
    assert drawn().keys() == imports.keys()


def test_the_arrows_are_the_imports(imports: Graph) -> None:
    expected = reduced(imports)
    arrows = [
        f"{room} --> {' & '.join(sorted(below))}" for room, below in expected.items() if below
    ]
    assert drawn() == expected, "the arrows should be:\n" + "\n".join(sorted(arrows))

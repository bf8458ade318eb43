"""The diagram in docs/architecture.md, compared with the imports and with the import contract."""

import re
import tomllib
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parents[2]
# Single files that are not drawn. Imports through them are.
NOT_DRAWN = {"__main__", "application", "display", "errors", "forecast", "progress"}

Edges = set[tuple[str, str]]


def room(module: str) -> str:
    """The folder or top-level file of a module: `train` for `orchestrator.train.stage`."""
    return module.split(".")[1]


@pytest.fixture(scope="module")
def imports() -> Edges:
    """The imports between rooms, from the importing to the imported one."""
    graph = grimp.build_graph("orchestrator", exclude_type_checking_imports=False)
    modules = [module for module in graph.modules if "." in module]
    imported = ((m, i) for m in modules for i in graph.find_modules_directly_imported_by(m))
    pairs = ((room(module), room(other)) for module, other in imported if "." in other)
    return {(a, b) for a, b in pairs if a != b}


def reachable(start: str, edges: Edges) -> set[str]:
    """All rooms that `start` imports, directly or through others."""
    found: set[str] = set()
    left = [b for a, b in edges if a == start]
    while left:
        if (node := left.pop()) not in found:
            found.add(node)
            left += [b for a, b in edges if a == node]
    return found


def reduced(edges: Edges) -> Edges:
    """The fewest edges from which all others follow."""
    return {(a, b) for a, b in edges if b not in reachable(a, edges - {(a, b)})}


def test_the_diagram_shows_the_imports_between_rooms(imports: Edges) -> None:
    text = (ROOT / "docs/architecture.md").read_text()
    match = re.search(r"```mermaid\n(.*?)```", text, re.S)
    assert match is not None
    drawn = {
        (source, target)
        for source, targets in re.findall(r"^ *(\w+) --> (.+)$", match[1], re.M)
        for target in targets.split(" & ")
    }
    rooms = {node for edge in imports for node in edge} - NOT_DRAWN
    shown = {(a, b) for a in rooms for b in reachable(a, imports) & rooms}
    lines: dict[str, list[str]] = {}
    for source, target in sorted(reduced(shown)):
        lines.setdefault(source, []).append(target)
    expected = "\n".join(f"  {a} --> {' & '.join(targets)}" for a, targets in lines.items())
    assert drawn == reduced(shown), f"draw in docs/architecture.md:\n{expected}"


def test_no_room_imports_itself_through_others(imports: Edges) -> None:
    circles = {node for edge in imports for node in edge if node in reachable(node, imports)}
    assert not circles


def test_every_room_has_a_layer_and_imports_from_lower_ones(imports: Edges) -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    layers = contracts["contracts"][0]["layers"]
    number = {room(module): i for i, layer in enumerate(layers) for module in layer.split(" | ")}
    assert set(number) == {node for edge in imports for node in edge}
    assert [(a, b) for a, b in imports if number[a] >= number[b]] == []

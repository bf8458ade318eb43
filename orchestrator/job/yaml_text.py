"""YAML 1.2 as plain data, with the position of each key. Refuses what no job file needs."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from orchestrator.errors import JobError
from orchestrator.job.keys import Key

MAX_BYTES = 64 << 10
MAX_DEPTH = 32
MAX_DIGITS = 100


@dataclass
class Source:
    """Plain data, and the position of each key as `file:line:column`."""

    data: dict[str, Any] = field(default_factory=dict)
    places: dict[Key, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def place(self, key: Key) -> str:
        """The position of a key, or of the nearest section around it."""
        while key and key not in self.places:
            key = key[:-1]
        return self.places.get(key, "")


class CoreLoader(yaml.SafeLoader):
    """YAML 1.2's plain types: `1e-3` is a number, `no` and `2024-01-01` are text."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - PyYAML's own way to configure


for _name, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
):
    CoreLoader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_name}", re.compile(f"^(?:{_pattern})$"), _first
    )


def _construct_int(loader: CoreLoader, node: yaml.ScalarNode) -> int:
    """An integer of YAML 1.2: a leading zero does not make it octal."""
    text = str(node.value)
    if len(text) > MAX_DIGITS:
        problem = f"a number of {len(text)} digits"
        raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
    return int(text, 16 if text.lower().startswith("0x") else 10)


CoreLoader.add_constructor("tag:yaml.org,2002:int", _construct_int)


def parse_file(path: Path) -> Source:
    """The data of a file. Raises JobError if it cannot be read, or is no mapping in YAML."""
    source = Source(places={(): str(path)})
    try:
        if path.stat().st_size > MAX_BYTES:
            raise JobError([f"{path}: is larger than 64 KiB, which no job file is"])
        text = path.read_text(encoding="utf-8")
        _check_events(text)
        node = yaml.compose(text, CoreLoader)
        source.data = _build(node, (), path, source) if isinstance(node, yaml.MappingNode) else {}
    except FileNotFoundError:
        raise JobError([f"{path}: no such file"]) from None
    except (OSError, UnicodeDecodeError) as error:
        raise JobError([f"{path}: cannot be read: {error}"]) from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise JobError([f"{_place(path, mark)}: not valid YAML: {error.problem}"]) from error
    except yaml.YAMLError as error:
        raise JobError([f"{path}: not valid YAML: {' '.join(str(error).split())}"]) from error
    if not isinstance(node, yaml.MappingNode):
        raise JobError([f"{path}: must hold keys and values such as `name: my-job`"])
    return source


def parse_value(text: str) -> Any:
    """The value of `key=value` on the command line, as YAML. Raises yaml.YAMLError."""
    _check_events(text)
    return yaml.load(text, CoreLoader)  # noqa: S506 - a SafeLoader


def _check_events(text: str) -> None:
    """Refuse anchors and tags: they can expand a small text, or are no plain values."""
    depth = 0
    for event in yaml.parse(text, CoreLoader):
        problem = ""
        if isinstance(event, yaml.AliasEvent):
            problem = "aliases are not supported: write the value out"
        elif isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            problem = "is nested too deeply" if depth > MAX_DEPTH else ""
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        tag = getattr(event, "tag", None)
        if tag is not None:
            problem = f"the tag {tag} is not allowed"
        if problem:
            mark: Any = event.start_mark
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=mark)


def _build(node: yaml.Node, key: Key, path: Path, source: Source) -> Any:
    """The plain data of a node. Positions and problems go to `source`."""
    if isinstance(node, yaml.SequenceNode):
        return [_build(item, (*key, str(i)), path, source) for i, item in enumerate(node.value)]
    if not isinstance(node, yaml.MappingNode):
        constructor = CoreLoader("")
        return constructor.construct_object(node)
    mapping: dict[str, Any] = {}
    for name_node, value_node in node.value:
        place = _place(path, name_node.start_mark)
        name = str(name_node.value)
        if name in mapping:
            source.problems.append(f"{place}: {'.'.join((*key, name))}: this key stands here twice")
            continue
        source.places[(*key, name)] = place
        mapping[name] = _build(value_node, (*key, name), path, source)
    return mapping


def _place(path: Path, mark: Any) -> str:
    return f"{path}:{mark.line + 1}:{mark.column + 1}" if mark is not None else str(path)

"""Reads a job file: YAML with positions, base files, overrides; reports all errors at once."""

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from orchestrator.errors import JobError, did_you_mean
from orchestrator.job.job import Job
from orchestrator.job.keys import Key, set_key

MAX_BYTES = 64 << 10
MAX_DEPTH = 32
MAX_DIGITS = 100
MAX_SHOWN = 80  # characters of a value in a message


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


def load_job(path: str, overrides: Sequence[str] = ()) -> Job:
    """The validated job of a file, its base files and `a.b=value` overrides.

    A job that none of them names has the name of its file.

    Raises:
        JobError: with one line `file:line:column: key: what is wrong` for each problem.
    """
    source = _read_with(path, overrides)
    problems = list(source.problems)
    try:
        job = Job.model_validate(source.data)
    except ValidationError as error:
        raise JobError(problems + _describe(error, source)) from None
    problems += [f"{source.place(key)}: {'.'.join(key)}{text}" for key, text in job.problems()]
    if problems:
        raise JobError(problems)
    return job


def read_plain(path: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The same data unvalidated. Nothing that the job names is imported or opened.

    Raises:
        JobError: where a file cannot be read, or an override is none.
    """
    source = _read_with(path, overrides)
    if source.problems:
        raise JobError(source.problems)
    return source.data


def _read_with(path: str, overrides: Sequence[str]) -> Source:
    source = _read(Path(path), seen=())
    for text in overrides:
        _apply_override(source, text)
    if "name" not in source.data and (name := _name_of(Path(path))):
        source.data["name"] = name
        source.places["name",] = path
    return source


def _name_of(path: Path) -> str:
    """The default name of a job: the file's name without characters that names cannot have."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem).lstrip("._-")[:100]


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


def _read(path: Path, seen: tuple[Path, ...]) -> Source:
    """One file merged over its base, which may have a base, too."""
    if path.resolve() in seen:
        raise JobError([f"{path}: is its own base file"])
    source = _parse(path)
    base = source.data.pop("base", None)
    if base is None:
        return source
    if not isinstance(base, str):
        source.problems.append(f"{source.place(('base',))}: base = {base!r}: must be a file name")
        return source
    if not (path.parent / base).is_file():
        source.problems.append(f"{source.place(('base',))}: base = {base}: no such file")
        return source
    below = _read(path.parent / base, (*seen, path.resolve()))
    return Source(
        data=_merge(below.data, source.data),
        places=below.places | source.places,
        problems=below.problems + source.problems,
    )


def _parse(path: Path) -> Source:
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


def _apply_override(source: Source, text: str) -> None:
    name, equals, value = text.partition("=")
    if not equals or not name:
        shown = _shown(repr(text))
        source.problems.append(f"command line: {shown}: overrides look like train.lr=3e-4")
        return
    if name == "base":
        source.problems.append("command line: base: can be set in a job file only")
        return
    try:
        parsed = parse_value(value)
    except yaml.YAMLError as error:
        problem = error.problem if isinstance(error, yaml.MarkedYAMLError) else str(error)
        source.problems.append(f"command line: {_shown(repr(text))}: {_shown(str(problem))}")
        return
    replaced = _first_that_is_no_section(source.data, name)
    key = set_key(source.data, name, parsed)
    source.places = {k: v for k, v in source.places.items() if k[: len(replaced)] != replaced}
    for length in range(1, len(key) + 1):
        source.places.setdefault(key[:length], "command line")


def _first_that_is_no_section(data: dict[str, Any], name: str) -> Key:
    """The part of a dotted key that an override replaces: the key, or a value above it."""
    parts = name.split(".")
    if parts[:2] == ["tune", "space"] and len(parts) > 2:
        parts = ["tune", "space", ".".join(parts[2:])]
    for length, part in enumerate(parts, start=1):
        if not isinstance(data.get(part), dict):
            return tuple(parts[:length])
        data = data[part]
    return tuple(parts)


def _merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Merge sections key by key; replace everything else."""
    merged = dict(below)
    for name, value in above.items():
        old = merged.get(name)
        if isinstance(old, dict) and isinstance(value, dict):
            value = _merge(old, value)
        merged[name] = value
    return merged


def _describe(error: ValidationError, source: Source) -> list[str]:
    """One line per wrong key, in the order of the file."""
    lines: dict[Key, str] = {}
    for details in error.errors():
        key = _key(details, source.data)
        lines.setdefault(key, f"{source.place(key)}: {_explain(details, key, source.data)}")
    return list(lines.values())


def _key(details: ErrorDetails, data: Any) -> Key:
    """The path of an error without pydantic's own entries, such as the member of a union."""
    location = [str(part) for part in details["loc"]]
    key: list[str] = []
    for part in location:
        if isinstance(data, dict) and part in data:
            data = data[part]
        elif isinstance(data, list) and part.isdigit() and int(part) < len(data):
            data = data[int(part)]
        elif details["type"] != "missing" or part != location[-1]:
            break
        key.append(part)
    return tuple(key)


def _explain(details: ErrorDetails, key: Key, data: dict[str, Any]) -> str:
    name = ".".join(key)
    if details["type"] == "extra_forbidden":
        known = _known_keys(key[:-1])
        advice = did_you_mean(key[-1], known) or f"known here: {', '.join(known)}"
        return f"{name}: unknown key; {advice}"
    if details["type"] == "missing":
        return f"{name}: is missing; add it"
    message = details["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    value = details["input"]
    if isinstance(value, dict | list):
        return f"{name}: {message}" if name else message
    if details["type"] == "literal_error":
        known = re.findall(r"'([^']*)'", details["ctx"]["expected"])
        if advice := did_you_mean(str(value), known):
            message += f"; {advice}"
    shown = "null" if value is None else _shown(str(value))
    return f"{name} = {shown}: {message}"


def _shown(text: str) -> str:
    """A value for a message, on one line and shortened."""
    line = " ".join(text.split())
    return line if len(line) <= MAX_SHOWN else f"{line[:MAX_SHOWN]}…"


@functools.cache
def _known_keys(section: Key) -> list[str]:
    """The known keys of a section of a job."""
    schema = Job.model_json_schema()
    node: dict[str, Any] = schema
    for name in section:
        node = node.get("properties", {}).get(name) or node.get("additionalProperties") or {}
        for option in [node, *node.get("anyOf", [])]:
            if "$ref" in option:
                node = schema["$defs"][option["$ref"].rsplit("/", 1)[1]]
    return [*node.get("properties", {}), *([] if section else ["base"])]


def _place(path: Path, mark: Any) -> str:
    return f"{path}:{mark.line + 1}:{mark.column + 1}" if mark is not None else str(path)

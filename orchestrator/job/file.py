"""Reads a job file with its base files and overrides; reports all errors at once."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from orchestrator.errors import JobError
from orchestrator.job.job import Job
from orchestrator.job.keys import Key, set_key
from orchestrator.job.problems import describe, shown
from orchestrator.job.yaml_text import Source, parse_file, parse_value


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
        raise JobError(problems + describe(error, source)) from None
    problems += [f"{source.place(key)}: {'.'.join(key)}{text}" for key, text in job.problems()]
    if problems:
        raise JobError(problems)
    return job


def read_plain(path: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The same data unvalidated. Nothing that the job names is imported or opened.

    Raises:
        JobError: if a file cannot be read, or an override is not `key=value`.
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


def _read(path: Path, seen: tuple[Path, ...]) -> Source:
    """One file merged over its base, which may have a base, too."""
    if path.resolve() in seen:
        raise JobError([f"{path}: is its own base file"])
    source = parse_file(path)
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


def _apply_override(source: Source, text: str) -> None:
    name, equals, value = text.partition("=")
    if not equals or not name:
        source.problems.append(
            f"command line: {shown(repr(text))}: overrides look like train.lr=3e-4"
        )
        return
    if name == "base":
        source.problems.append("command line: base: can be set in a job file only")
        return
    try:
        parsed = parse_value(value)
    except yaml.YAMLError as error:
        problem = error.problem if isinstance(error, yaml.MarkedYAMLError) else str(error)
        source.problems.append(f"command line: {shown(repr(text))}: {shown(str(problem))}")
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

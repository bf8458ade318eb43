"""Packs custom resource definitions into a file of this folder, by the kinds' names.

python -m tests.schemas.pack v1 CRD.yaml ... FILE.json.gz
"""

import gzip
import json
import sys
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent


def without_prose(node: Any) -> Any:
    """The schema without descriptions, which are most of it."""
    if isinstance(node, dict):
        prose = {key for key, value in node.items() if key == "description" and type(value) is str}
        return {key: without_prose(value) for key, value in node.items() if key not in prose}
    return [without_prose(item) for item in node] if isinstance(node, list) else node


def pack(version: str, definitions: list[str], into: str) -> None:
    schemas = {}
    for path in definitions:
        definition = yaml.load(Path(path).read_text(), yaml.CSafeLoader)["spec"]
        (found,) = (each for each in definition["versions"] if each["name"] == version)
        schema = without_prose(found["schema"]["openAPIV3Schema"])
        schema["properties"].pop("status", None)  # a controller writes it
        schemas[f"{definition['group']}/{version} {definition['names']['kind']}"] = schema
    text = json.dumps(schemas, separators=(",", ":"), sort_keys=True).encode()
    (HERE / into).write_bytes(gzip.compress(text, mtime=0))


def unpack(name: str) -> dict[str, Any]:
    """The schemas of a packed file, by `group/version kind`."""
    schemas: dict[str, Any] = json.loads(gzip.decompress((HERE / name).read_bytes()))
    return schemas


if __name__ == "__main__":
    pack(sys.argv[1], sys.argv[2:-1], sys.argv[-1])

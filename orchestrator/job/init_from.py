"""`model.init_from`: the weights that a training begins with, their architecture and their files.

A relative path starts at the working directory, as those of `data.source` do.

A run records what it has seen of the weights, in `init_from.json`. So a training that has a
checkpoint continues after the weights were moved or deleted, and `status` still finds its folder.
"""

import json
import os
from typing import Any, NamedTuple

from orchestrator.errors import UserError
from orchestrator.job.inputs import Stamps, model_files
from orchestrator.storage.folder import Folder, Stamp
from orchestrator.storage.submitted import lasting_name

RECORD = "init_from.json"


class Weights(NamedTuple):
    """What a job needs to know of its weights before they are read."""

    place: str  # absolute: workers run in other folders than the command
    architecture: dict[str, Any]
    files: Stamps
    gone: bool = False  # from the record of an earlier command


def find_weights(given: str, run: Folder) -> Weights:
    """The weights at `given`; if they are gone, what the run in this folder recorded of them.

    Raises:
        ValueError: if they cannot be read, and are not recorded.
    """
    # Imported only here: few jobs need this module, and it imports torch.
    from orchestrator.pretrained.model import read_config

    folder = Folder(os.path.expanduser(given))
    try:
        config, _ = read_config(folder)
        return Weights(folder.uri, config.model_dump(), model_files(folder.uri))
    except (UserError, OSError) as error:
        recorded = _recorded(run).get(lasting_name(folder.uri))
        if recorded is None or _has_config(folder):
            raise ValueError(f"model.init_from: {error}") from None
    files = {name: Stamp(*stamp) for name, stamp in recorded["files"].items()}
    return Weights(folder.uri, recorded["architecture"], files, gone=True)


def record_weights(weights: Weights, run: Folder) -> None:
    """Record weights that are there, for commands after they are gone."""
    recorded = _recorded(run)
    entry = json.loads(json.dumps({"architecture": weights.architecture, "files": weights.files}))
    if not weights.gone and recorded.get(lasting_name(weights.place)) != entry:
        recorded[lasting_name(weights.place)] = entry
        run.write(RECORD, json.dumps(recorded, indent=1).encode())


def with_architecture(model: dict[str, Any], weights: Weights) -> dict[str, Any]:
    """A model section with the architecture of its weights.

    Raises:
        ValueError: if a key contradicts them.
    """
    if "size" in model:
        raise ValueError("model.size: model.init_from has sizes of its own")
    architecture = weights.architecture
    for key, value in model.items():
        if key not in architecture or key in ("dropout", "init_from") or value == architecture[key]:
            continue
        is_shorter = key == "max_seq_len" and isinstance(value, int) and value < architecture[key]
        if not is_shorter or architecture.get("patches") is not None:
            raise ValueError(f"model.{key} = {value}: model.init_from has {architecture[key]}")
    return {**architecture, **model, "init_from": weights.place}


def _recorded(run: Folder) -> dict[str, Any]:
    try:
        found = json.loads(run.read(RECORD, retry=False))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _has_config(folder: Folder) -> bool:
    """Whether the weights are there, and only cannot be used."""
    try:
        return folder.exists("config.json")
    except OSError:
        return False

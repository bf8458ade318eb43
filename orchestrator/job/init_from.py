"""`model.init_from`: the architecture of the weights that a training begins with."""

import os
from typing import Any

from orchestrator.errors import UserError


def with_architecture(model: dict[str, Any]) -> dict[str, Any]:
    """A model section with the architecture of the weights that it begins with.

    `init_from` becomes absolute here: workers run in other folders than the command.

    Raises:
        ValueError: if they cannot be read, or a key contradicts them.
    """
    # Imported only here: few jobs need these modules, and they import torch.
    from orchestrator.pretrained.model import read_config
    from orchestrator.storage.folder import Folder

    folder = Folder(os.path.expanduser(model["init_from"]))
    try:
        config, _ = read_config(folder)
    except (UserError, OSError) as error:
        raise ValueError(f"model.init_from: {error}") from None
    if "size" in model:
        raise ValueError("model.size: model.init_from has sizes of its own")
    architecture = config.model_dump()
    for key, value in model.items():
        if key not in architecture or key in ("dropout", "init_from") or value == architecture[key]:
            continue
        is_shorter = key == "max_seq_len" and isinstance(value, int) and value < architecture[key]
        if not is_shorter or config.patches is not None:
            raise ValueError(f"model.{key} = {value}: model.init_from has {architecture[key]}")
    return {**architecture, **model, "init_from": folder.uri}

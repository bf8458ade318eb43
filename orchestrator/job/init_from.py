"""`model.init_from`: the architecture of the weights that a training begins with."""

import os
from typing import Any

from orchestrator.errors import UserError


def with_architecture(model: dict[str, Any]) -> dict[str, Any]:
    """A model section with the architecture of the weights that it begins with.

    Their place becomes absolute here, where the job is read: workers run in folders of their own.

    Raises:
        ValueError: where they cannot be read, or a key contradicts them.
    """
    # Few jobs need these, and their import takes its time.
    from orchestrator.pretrained.model import read_config
    from orchestrator.storage.folder import Folder

    folder = Folder(os.path.expanduser(model["init_from"]))
    try:
        config, _ = read_config(folder)
    except (UserError, OSError) as error:
        raise ValueError(f"model.init_from: {error}") from None
    if "size" in model:
        raise ValueError("model.size: model.init_from has sizes of its own")
    theirs = config.model_dump()
    for key, value in model.items():
        if key not in theirs or key in ("dropout", "init_from") or value == theirs[key]:
            continue
        is_shorter = key == "max_seq_len" and isinstance(value, int) and value < theirs[key]
        if not is_shorter or config.patches is not None:
            raise ValueError(f"model.{key} = {value}: model.init_from has {theirs[key]}")
    return {**theirs, **model, "init_from": folder.uri}

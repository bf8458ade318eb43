"""Samples as arrays: the form in which rows are encoded, stored and read."""

from typing import Any

import numpy as np
import numpy.typing as npt

Arrays = dict[str, npt.NDArray[Any]]  # one array per column; the first axis is the row


def join(parts: list[Arrays]) -> Arrays:
    """Concatenate batches; empty batches are left out."""
    filled = [part for part in parts if part]
    names = filled[0] if filled else {}
    return {name: np.concatenate([part[name] for part in filled]) for name in names}

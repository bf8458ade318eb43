"""Samples as arrays: what encodes rows, stores them and reads them back."""

from typing import Any

import numpy as np
import numpy.typing as npt

Arrays = dict[str, npt.NDArray[Any]]  # one array a column, the first axis counts rows


def join(parts: list[Arrays]) -> Arrays:
    """The rows of several batches in one; batches without rows are left out."""
    filled = [part for part in parts if part]
    names = filled[0] if filled else {}
    return {name: np.concatenate([part[name] for part in filled]) for name in names}

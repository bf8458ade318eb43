"""Samples as arrays: what encodes rows, stores them and reads them back."""

from typing import Any

import numpy.typing as npt

Arrays = dict[str, npt.NDArray[Any]]  # one array a column, the first axis counts rows

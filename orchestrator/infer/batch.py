"""Encoded rows as a model's inputs: numbers become tensors, all else stays beside them."""

import torch

from orchestrator.data.arrays import Arrays
from orchestrator.tasks.task import Batch


def to_device(arrays: Arrays, device: torch.device) -> Batch:
    """The numeric arrays as tensors on `device`, without the padding that all rows share."""
    tensors = on_host(arrays, device)
    return {name: tensor.to(device, non_blocking=True) for name, tensor in tensors.items()}


def on_host(arrays: Arrays, device: torch.device) -> Batch:
    """The same in the CPU's memory, pinned for a GPU, which then copies it without the CPU.

    PyTorch reuses pinned memory only after the copies that read it: it records an event for each.
    """
    arrays = without_padding(arrays)
    tensors = {
        name: torch.from_numpy(array) for name, array in arrays.items() if array.dtype != object
    }
    if device.type == "cpu":
        return tensors
    return {
        name: torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor)
        for name, tensor in tensors.items()
    }


def without_padding(arrays: Arrays) -> Arrays:
    """Columns with a `<name>_length` beside them, cut to the longest row, at least one token.

    A model on a GPU would have to wait for that number.
    """
    cut = dict(arrays)
    for name, array in arrays.items():
        lengths = arrays.get(f"{name}_length")
        if lengths is not None and len(lengths) and array.ndim > 1:
            cut[name] = array[:, : max(int(lengths.max()), 1)]
    return cut


def kept_columns(arrays: Arrays) -> Arrays:
    """The arrays of objects, which no model reads: what `Task.keep` kept for the metrics."""
    return {name: array for name, array in arrays.items() if array.dtype == object}

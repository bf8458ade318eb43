"""Encoded rows as a model's inputs: numbers become tensors, all else stays beside them."""

import torch

from orchestrator.data.arrays import Arrays
from orchestrator.tasks.task import Batch


def to_device(arrays: Arrays, device: torch.device) -> Batch:
    """The numeric arrays as tensors on `device`. The copy to a GPU does not block."""
    tensors = {
        name: torch.from_numpy(array) for name, array in arrays.items() if array.dtype != object
    }
    if device.type == "cpu":
        return tensors
    return {
        name: tensor.pin_memory().to(device, non_blocking=True) for name, tensor in tensors.items()
    }


def kept_columns(arrays: Arrays) -> Arrays:
    """The arrays of objects, which no model reads: what `Task.keep` kept for the metrics."""
    return {name: array for name, array in arrays.items() if array.dtype == object}

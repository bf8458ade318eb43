"""What a checkpoint holds of a training, copied from it and set again."""

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from orchestrator.storage.artifact import Checkpoint, Precision
from orchestrator.storage.checkpoint_files import Tensors

DTYPES = {  # in the words of safetensors
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


@dataclass(frozen=True)
class Packed:
    """Copies of tensors, side by side in one block of the CPU's memory: a safetensors file.

    So they are copied once between the training and the disk.
    """

    header: bytes
    body: Tensor  # uint8

    @property
    def parts(self) -> tuple[bytes, memoryview]:
        """The file's content, in two pieces."""
        return self.header, self.body.numpy().data


@dataclass(frozen=True)
class Snapshot:
    """All that a training is after `step` steps: copies on the CPU that nobody else changes."""

    step: int
    total_steps: int | None  # None: a time budget that is not yet turned into steps
    model: Packed
    optimizer: Packed  # and whatever else must come back to the bit
    metrics: dict[str, float]  # of the validation at this very step, else empty
    history: list[dict[str, float]]
    precision: Precision
    notices: list[str]  # why this precision, say
    samples: str  # hex digest that chains the row numbers of all steps so far


@dataclass(frozen=True)
class Saved:
    """What a checkpoint gives back."""

    checkpoint: Checkpoint
    model: Tensors
    optimizer: Tensors


def pack(tensors: Mapping[str, Tensor]) -> Packed:
    """Copy tensors into a safetensors file: https://github.com/huggingface/safetensors#format.

    The widest numbers come first, so that each tensor lies where its numbers may.
    """
    body = torch.empty(sum(tensor.nbytes for tensor in tensors.values()), dtype=torch.uint8)
    entries, end = {}, 0
    for name in sorted(tensors, key=lambda name: (-tensors[name].itemsize, name)):
        tensor = tensors[name].detach()
        begin, end = end, end + tensor.nbytes
        body[begin:end].view(tensor.dtype).view(tensor.shape).copy_(tensor)
        shape, dtype = list(tensor.shape), DTYPES[tensor.dtype]
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return Packed(struct.pack("<Q", len(header)) + header, body)

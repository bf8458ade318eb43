"""What a checkpoint holds of a training: a copy of its state."""

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from orchestrator.learn.side_stream import Event, SideStream
from orchestrator.storage.artifact import Checkpoint, Precision
from orchestrator.storage.checkpoint_files import Tensors

DTYPES = {  # the names in a safetensors file
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
    """Copies of tensors in one block of the CPU's memory, laid out as a safetensors file.

    So each tensor is copied once between the training and the disk.
    """

    header: bytes
    body: Tensor  # uint8
    copied: Event  # a GPU may still be writing to the body

    @property
    def parts(self) -> tuple[bytes, memoryview]:
        """The content of the file. Waits until it is there."""
        self.copied.synchronize()
        return self.header, self.body.numpy().data


@dataclass(frozen=True)
class Snapshot:
    """The state of a training after `step` steps, copied to the CPU. Nothing changes it later."""

    step: int
    total_steps: int | None  # None: the time budget is not turned into steps yet
    model: Packed
    optimizer: Packed  # and the skipped-step guard
    metrics: dict[str, float]  # of the validation at this step; empty without one
    history: list[dict[str, float]]
    precision: Precision
    notices: list[str]  # for the user, such as why this precision
    samples: str  # hex digest over the row numbers of all steps so far


@dataclass(frozen=True)
class Saved:
    """A checkpoint that was read."""

    checkpoint: Checkpoint
    model: Tensors
    optimizer: Tensors


ON_CPU = SideStream(torch.device("cpu"))


def pack(tensors: Mapping[str, Tensor], side: SideStream = ON_CPU) -> Packed:
    """Copy tensors into a safetensors file: https://github.com/huggingface/safetensors#format.

    The widest types come first, so that each tensor is aligned to its type. From a GPU the copies
    go into pinned memory, beside the computation: see `SideStream.fetch`. PyTorch keeps such memory
    for the next snapshot, since pinning takes longer than copying.
    """
    size = sum(tensor.nbytes for tensor in tensors.values())
    body = torch.empty(size, dtype=torch.uint8, pin_memory=side.device.type == "cuda")
    pairs: dict[Tensor, Tensor] = {}
    entries, end = {}, 0
    for name in sorted(tensors, key=lambda name: (-tensors[name].itemsize, name)):
        tensor = tensors[name].detach()
        begin, end = end, end + tensor.nbytes
        pairs[tensor] = body[begin:end].view(tensor.dtype).view(tensor.shape)
        shape, dtype = list(tensor.shape), DTYPES[tensor.dtype]
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return Packed(struct.pack("<Q", len(header)) + header, body, side.fetch(pairs))

"""The files of a checkpoint, read back: each is compared with its size and SHA-256 in the manifest.

Tensors are safetensors files; nothing is unpickled.
"""

import hashlib

import safetensors
import safetensors.torch
from torch import Tensor

from orchestrator.errors import StageError
from orchestrator.storage.artifact import Checkpoint
from orchestrator.storage.folder import MANIFEST

MODEL_FILE = "model.safetensors"
OPTIMIZER_FILE = "optimizer.safetensors"

Tensors = dict[str, Tensor]


class DamagedError(StageError):
    """A checkpoint's files differ from what was written."""


def read_tensors(checkpoint: Checkpoint, name: str) -> Tensors:
    """The tensors of one of the checkpoint's files, by name.

    Raises:
        DamagedError: if the file is missing, differs from what was written, or holds no tensors.
        StageError: if storage cannot be read.
    """
    content = read_verified(checkpoint, name)
    try:
        return safetensors.torch.load(content)
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError) as error:
        raise DamagedError(f"{checkpoint.folder}/{name} holds no tensors: {error}") from error


def read_verified(checkpoint: Checkpoint, name: str) -> bytes:
    """The content of one of the checkpoint's files, proved to be what was written.

    Raises:
        DamagedError: if the file is missing or differs from what was written.
        StageError: if storage cannot be read.
    """
    try:
        check_size(checkpoint, name)
        content = checkpoint.folder.read(name)
    except FileNotFoundError as error:
        raise DamagedError(f"{checkpoint.folder}/{name} is missing") from error
    except OSError as error:
        raise StageError(f"{checkpoint.folder}/{name} cannot be read: {error}") from error
    if hashlib.sha256(content).hexdigest() != checkpoint.files[name]:
        raise DamagedError(
            f"{checkpoint.folder}/{name} is damaged: its SHA-256 is not the manifest's"
        )
    return content


def check_size(checkpoint: Checkpoint, name: str) -> None:
    """Compare a file's size with the manifest, without reading the file.

    Raises:
        DamagedError: if the file is missing, or its size differs from the manifest.
    """
    if name not in checkpoint.files or name not in checkpoint.sizes:
        raise DamagedError(f"{checkpoint.folder}/{MANIFEST} knows of no {name}")
    size = checkpoint.folder.size(name)
    if size is None:
        raise DamagedError(f"{checkpoint.folder}/{name} is missing or no plain file")
    if size != checkpoint.sizes[name]:
        raise DamagedError(
            f"{checkpoint.folder}/{name} is damaged: it has {size} bytes, not the manifest's "
            f"{checkpoint.sizes[name]}"
        )

"""The weights of a folder in Hugging Face's layout: one safetensors file, or several and an index.

The headers, a few kilobytes of each file, name all tensors with their shapes, so a folder can be
checked before any weights are read. Pickled files are never read, since unpickling can run code.
"""

import json
import math
from dataclasses import dataclass
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from orchestrator.errors import UserError
from orchestrator.storage.folder import Folder
from orchestrator.storage.json_object import LFS, read_object

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
ADAPTERS = ("adapter_config.json", "adapter_model.safetensors")
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".gguf", ".onnx")
AGAIN = "download it again"
LARGEST_HEADER = 100 << 20  # bytes, the format's own limit
BITS = {"BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "I16": 16, "U16": 16}
BITS |= {"F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64}
FLOATS = ("F16", "BF16", "F32", "F64")


@dataclass(frozen=True)
class Entry:
    """A tensor in a file's header."""

    file: str
    dtype: str
    shape: tuple[int, ...]


def weight_names(folder: Folder) -> list[str]:
    """The names of the files that hold the weights. A file that the index names may be missing.

    Raises:
        UserError: if the folder has no weights in safetensors, or has an adapter.
    """
    files = folder.stamps()
    for name in ADAPTERS:
        if name in files:
            raise UserError(
                f"{folder}/{name} belongs to an adapter (LoRA, for example), which is not a whole "
                f"model: merge it into its base with peft's merge_and_unload() and save_pretrained"
            )
    if WEIGHTS in files:
        return [WEIGHTS]
    if INDEX in files:
        return sorted(set(_weight_map(folder).values()))
    others = [name for name in sorted(files) if name.endswith((".safetensors", *PICKLED))]
    if shards := [name for name in others if name.endswith(".safetensors")]:
        raise UserError(
            f"{folder} has {shards[0]}, but no {WEIGHTS} and no {INDEX}: download the index too"
        )
    instead = f", only {others[0]}" if others else ""
    raise UserError(
        f"{folder} has no {WEIGHTS}{instead}; other formats can run code and are not read: load "
        f"the model with transformers, and save_pretrained writes safetensors"
    )


def read_headers(folder: Folder) -> dict[str, Entry]:
    """All tensors of a folder's weights, by name, without their values.

    Raises:
        UserError: if a file is missing, cut off, or not in the format.
    """
    names, files = weight_names(folder), folder.stamps()
    entries: dict[str, Entry] = {}
    for name in names:
        if name not in files:
            raise UserError(f"{folder}/{name} is missing, but {INDEX} names it: {AGAIN}")
        try:
            entries |= _header(folder, name, files[name].size)
        except ValueError as error:
            raise UserError(f"{folder}/{name} {error}: {AGAIN}") from None
        except OSError as error:
            raise UserError(f"{folder}/{name} cannot be read: {error}") from None
    if names != [WEIGHTS]:
        for tensor, name in _weight_map(folder).items():
            if tensor not in entries:
                raise UserError(
                    f"{folder}/{name} has no tensor {tensor}, but {INDEX} says that it has"
                )
    return entries


def read_weights(folder: Folder) -> dict[str, Tensor]:
    """All tensors of a folder's weights by name, converted to float32.

    Raises:
        UserError: if a file cannot be read.
    """
    weights: dict[str, Tensor] = {}
    for name in weight_names(folder):
        try:
            weights |= safetensors.torch.load(folder.read(name))
        except (OSError, SafetensorError) as error:
            raise UserError(f"{folder}/{name} cannot be read: {error}") from None
    return {name: tensor.float() for name, tensor in weights.items()}


def read_tensor(folder: Folder, name: str) -> Tensor:
    """One tensor of a folder's weights, in its stored type.

    Raises:
        UserError: if its file cannot be read.
    """
    file = read_headers(folder)[name].file
    try:
        if folder.local_path is None:
            return safetensors.torch.load(folder.read(file))[name]
        with safetensors.safe_open(folder.local_path / file, "pt") as tensors:
            tensor: Tensor = tensors.get_tensor(name)
        return tensor
    except (OSError, SafetensorError) as error:
        raise UserError(f"{folder}/{file} cannot be read: {error}") from None


def _weight_map(folder: Folder) -> dict[str, str]:
    """The index's map from tensors to files, all within the folder.

    Raises:
        UserError: if the index has no map, or a file name is a path or no safetensors file.
    """
    files = read_object(folder, INDEX).get("weight_map")
    if not isinstance(files, dict) or not files:
        raise UserError(f"{folder}/{INDEX} has no weight_map, which names the files: {AGAIN}")
    for name in files.values():
        plain = isinstance(name, str) and name not in ("", ".", "..")
        if not plain or any(character in name for character in "/\\\0"):
            raise UserError(f"{folder}/{INDEX}: weight_map: {name!r} is not a plain file name")
        if not name.endswith(".safetensors"):
            raise UserError(f"{folder}/{INDEX}: weight_map: {name!r} is not a safetensors file")
    return files


def _header(folder: Folder, name: str, size: int) -> dict[str, Entry]:
    """The tensors of a file of `size` bytes.

    Raises:
        ValueError: if the file is cut off or not in the format; the message is a predicate.
    """
    start = folder.head(name, 8)
    if folder.head(name, len(LFS)) == LFS:
        raise ValueError("is a pointer of git lfs, not the file (git lfs pull)")
    length = int.from_bytes(start, "little")
    if len(start) < 8 or not 2 <= length <= LARGEST_HEADER:
        raise ValueError("is not a safetensors file")
    if 8 + length > size:
        raise ValueError(f"is cut off within its header, after {size:,} bytes")
    try:
        header = json.loads(folder.head(name, 8 + length)[8:])
        entries, end = _entries(header, name)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise ValueError("is not a safetensors file: its header cannot be read") from None
    if 8 + length + end != size:
        what = "is cut off" if 8 + length + end > size else "is too long"
        raise ValueError(f"{what}: {size:,} bytes, but {8 + length + end:,} by its header")
    return entries


def _entries(header: dict[str, Any], file: str) -> tuple[dict[str, Entry], int]:
    """The tensors of a header, and the byte at which the last tensor ends, after the header.

    Raises:
        ValueError: if a tensor's bytes do not fit its shape; others if the header is malformed.
    """
    entries, last = {}, 0
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        shape = tuple(int(n) for n in entry["shape"])
        begin, end = (int(n) for n in entry["data_offsets"])
        bits = BITS.get(entry["dtype"])
        if not 0 <= begin <= end or (bits and 8 * (end - begin) != bits * math.prod(shape)):
            raise ValueError(name)
        entries[name] = Entry(file, str(entry["dtype"]), shape)
        last = max(last, end)
    return entries, last

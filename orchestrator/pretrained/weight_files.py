"""The weights of a folder in Hugging Face's layout: safetensors, one file, or several and an index.

What they hold is known from their headers, a few kilobytes of each, so that a folder can be looked
at whole before anything is started. Nothing pickled is read: a model from anywhere can run no code
here.
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
LARGEST_HEADER = 100 << 20  # bytes, as the format has it
BITS = {"BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "I16": 16, "U16": 16}
BITS |= {"F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64}
FLOATS = ("F16", "BF16", "F32", "F64")


@dataclass(frozen=True)
class Entry:
    """What a header says of a tensor."""

    file: str
    dtype: str
    shape: tuple[int, ...]


def weight_names(folder: Folder) -> list[str]:
    """The files that hold the weights, which need not be there.

    Raises:
        UserError: where there are none that can be read, with what to do.
    """
    there = folder.stamps()
    for name in ADAPTERS:
        if name in there:
            raise UserError(
                f"{folder}/{name}: is of an adapter (LoRA, say), which is no whole model: merge it "
                f"with its base by peft's merge_and_unload() and save_pretrained"
            )
    if WEIGHTS in there:
        return [WEIGHTS]
    if INDEX in there:
        return sorted(set(_weight_map(folder).values()))
    found = [name for name in sorted(there) if name.endswith((".safetensors", *PICKLED))]
    if shards := [name for name in found if name.endswith(".safetensors")]:
        raise UserError(
            f"{folder} holds {shards[0]}, but no {WEIGHTS} and no {INDEX}: download that too"
        )
    held = f", but {found[0]}" if found else ""
    raise UserError(
        f"{folder} holds no {WEIGHTS}{held}; other formats can run code of their author's and are "
        f"not read: load the model with transformers and save_pretrained writes safetensors"
    )


def read_headers(folder: Folder) -> dict[str, Entry]:
    """All tensors of a folder's weights, by name, without their values.

    Raises:
        UserError: where a file is missing, cut off, or none of the format.
    """
    names, there = weight_names(folder), folder.stamps()
    entries: dict[str, Entry] = {}
    for name in names:
        if name not in there:
            raise UserError(f"{folder}/{name}: is not there, though {INDEX} names it: {AGAIN}")
        try:
            entries |= _header(folder, name, there[name].size)
        except ValueError as error:
            raise UserError(f"{folder}/{name}: {error}: {AGAIN}") from None
        except OSError as error:
            raise UserError(f"{folder}/{name} cannot be read: {error}") from None
    if names != [WEIGHTS]:
        for tensor, name in _weight_map(folder).items():
            if tensor not in entries:
                raise UserError(f"{folder}/{name}: holds no {tensor}, which {INDEX} says is there")
    return entries


def read_weights(folder: Folder) -> dict[str, Tensor]:
    """All tensors of a folder's weights, float32.

    Raises:
        UserError: where a file cannot be read.
    """
    weights: dict[str, Tensor] = {}
    for name in weight_names(folder):
        try:
            weights |= safetensors.torch.load(folder.read(name))
        except (OSError, SafetensorError) as error:
            raise UserError(f"{folder}/{name} cannot be read: {error}") from None
    return {name: tensor.float() for name, tensor in weights.items()}


def read_tensor(folder: Folder, name: str) -> Tensor:
    """One tensor of a folder's weights, as it is stored.

    Raises:
        UserError: where its file cannot be read.
    """
    file = read_headers(folder)[name].file
    try:
        if folder.local_path is None:
            return safetensors.torch.load(folder.read(file))[name]
        with safetensors.safe_open(folder.local_path / file, "pt") as found:
            tensor: Tensor = found.get_tensor(name)
        return tensor
    except (OSError, SafetensorError) as error:
        raise UserError(f"{folder}/{file} cannot be read: {error}") from None


def _weight_map(folder: Folder) -> dict[str, str]:
    """The file of each tensor. A name with a path in it would lead out of the folder."""
    found = read_object(folder, INDEX).get("weight_map")
    if not isinstance(found, dict) or not found:
        raise UserError(f"{folder}/{INDEX}: has no weight_map, which names the files: {AGAIN}")
    for name in found.values():
        plain = isinstance(name, str) and name not in ("", ".", "..")
        if not plain or any(character in name for character in "/\\\0"):
            raise UserError(f"{folder}/{INDEX}: weight_map: {name!r} is no plain name of a file")
        if not name.endswith(".safetensors"):
            raise UserError(f"{folder}/{INDEX}: weight_map: {name!r} is no safetensors file")
    return found


def _header(folder: Folder, name: str, size: int) -> dict[str, Entry]:
    """Raises ValueError where the file is not as the format has it."""
    start = folder.head(name, 8)
    if folder.head(name, len(LFS)) == LFS:
        raise ValueError("is a pointer of git lfs, not the file (git lfs pull)")
    length = int.from_bytes(start, "little")
    if len(start) < 8 or not 2 <= length <= LARGEST_HEADER:
        raise ValueError("is no safetensors file")
    if 8 + length > size:
        raise ValueError(f"is cut off: of {size:,} bytes, within its header")
    try:
        header = json.loads(folder.head(name, 8 + length)[8:])
        entries, end = _entries(header, name)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise ValueError("is no safetensors file: its header cannot be read") from None
    if 8 + length + end != size:
        what = "is cut off" if 8 + length + end > size else "has more than it should"
        raise ValueError(f"{what}: {size:,} bytes, of {8 + length + end:,} by its header")
    return entries


def _entries(header: dict[str, Any], file: str) -> tuple[dict[str, Entry], int]:
    """The tensors of a header, and where the last of them ends."""
    entries, last = {}, 0
    for name, said in header.items():
        if name == "__metadata__":
            continue
        shape = tuple(int(n) for n in said["shape"])
        begin, end = (int(n) for n in said["data_offsets"])
        bits = BITS.get(said["dtype"])
        if not 0 <= begin <= end or (bits and 8 * (end - begin) != bits * math.prod(shape)):
            raise ValueError(name)
        entries[name] = Entry(file, str(said["dtype"]), shape)
        last = max(last, end)
    return entries, last

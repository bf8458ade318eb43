"""Sample order and reading of prepared shards, by position.

Training never iterates over the data: it asks for the rows of a position. The order of all rows in
all epochs is a function of (seed, position) alone, so resuming is an integer, and the number of
workers changes nothing.
"""

import hashlib
import io
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from orchestrator.artifact import Folder, PreparedData, Shard, Split

Arrays = dict[str, npt.NDArray[Any]]  # one array a column, the first axis counts rows
Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class SampleOrder:
    """Every epoch's own permutation of `num_rows` rows, without a table of them.

    Position p of the endless stream of samples is row `permutation(p // num_rows)[p % num_rows]`.
    A batch may straddle two epochs, so every row comes exactly once in each and none is dropped.
    """

    num_rows: int
    seed: int

    def rows(self, start: int, stop: int) -> Rows:
        """The row numbers, int64 (stop - start,), of positions start .. stop - 1."""
        epoch, offset = np.divmod(np.arange(start, stop, dtype=np.uint64), np.uint64(self.num_rows))
        return self._permute(offset, epoch).astype(np.int64)

    def _permute(
        self, value: npt.NDArray[np.uint64], epoch: npt.NDArray[np.uint64]
    ) -> npt.NDArray[np.uint64]:
        """A 4-round Feistel cipher; what leaves the range walks on until it is back in it."""
        half = max(1, (int(self.num_rows - 1).bit_length() + 1) // 2)
        bits, mask = np.uint64(half), np.uint64((1 << half) - 1)
        key = _mix(epoch ^ _mix(np.full_like(epoch, self.seed)))
        outside = np.ones(len(value), dtype=bool)
        while outside.any():
            left, right = value[outside] >> bits, value[outside] & mask
            for turn in range(4):
                left, right = (
                    right,
                    left ^ (_mix(right + _mix(key[outside] + np.uint64(turn))) & mask),
                )
            value = value.copy()
            value[outside] = (left << bits) | right
            outside = value >= self.num_rows
        return value


def _mix(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """splitmix64: every input bit moves every output bit. Steele et al., OOPSLA 2014."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


class ShardReader:
    """Random access to the rows of one split, memory-mapped where the storage is local."""

    def __init__(self, prepared: PreparedData, split: Split) -> None:
        self._shards = [_open(prepared.folder, shard) for shard in prepared.splits[split]]
        rows = [len(next(iter(shard.values()))) for shard in self._shards]
        self._starts = np.cumsum([0, *rows])
        self.num_rows = int(self._starts[-1])

    def read(self, rows: Sequence[int] | Rows) -> Arrays:
        """The given rows in the given order, each column an array with one row a sample."""
        wanted = np.asarray(rows, dtype=np.int64)
        owner = np.searchsorted(self._starts, wanted, side="right") - 1
        batch: Arrays = {}
        for name, first in self._shards[0].items():
            batch[name] = np.empty((len(wanted), *first.shape[1:]), dtype=first.dtype)
            for i in np.unique(owner):
                batch[name][owner == i] = self._shards[i][name][
                    wanted[owner == i] - self._starts[i]
                ]
        return batch


def write_shard(folder: Folder, name: str, arrays: Arrays) -> Shard:
    """Write one Arrow file of fixed-shape columns and describe it."""
    columns, fields = [], []
    for column, values in arrays.items():
        shape = list(values.shape[1:])
        flat = pa.array(values.reshape(-1))
        array = pa.FixedSizeListArray.from_arrays(flat, int(np.prod(shape))) if shape else flat
        columns.append(array)
        fields.append(pa.field(column, array.type, metadata={"shape": json.dumps(shape)}))
    table = pa.Table.from_arrays(columns, schema=pa.schema(fields))
    sink = io.BytesIO()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(
            table
        )  # one batch: its columns are contiguous, so reading copies nothing
    content = sink.getvalue()
    folder.write(name, content)
    return Shard(
        name=name,
        rows=table.num_rows,
        bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
    )


def _open(folder: Folder, shard: Shard) -> Arrays:
    table = pa.ipc.open_file(pa.memory_map(str(_local_file(folder, shard)))).read_all()
    arrays: Arrays = {}
    for field in table.schema:
        chunk = table.column(field.name).chunk(0)
        shape = json.loads(field.metadata[b"shape"])
        flat = chunk.flatten() if shape else chunk
        packed = pa.types.is_boolean(flat.type)  # eight to a byte: they cannot be mapped
        arrays[field.name] = flat.to_numpy(zero_copy_only=not packed).reshape(-1, *shape)
    return arrays


def _local_file(folder: Folder, shard: Shard) -> Path:
    """The shard itself on local storage, else a copy of it, named by content, on this machine."""
    if folder.local_path is not None:
        return folder.local_path / shard.name
    cache = Folder(str(Path(tempfile.gettempdir()) / "orchestrator-shards"))
    if not cache.exists(shard.sha256):
        cache.write(shard.sha256, folder.read(shard.name))
    return Path(cache.uri) / shard.sha256

"""Shards of prepared data: written once, and read by row, mapped into memory."""

import errno
import functools
import hashlib
import io
import json
from collections.abc import Collection, Sequence
from pathlib import Path
from stat import S_ISREG
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from orchestrator.data.arrays import Arrays
from orchestrator.data.sample_order import Rows
from orchestrator.data.shard_cache import damaged_shard, local_file
from orchestrator.storage.artifact import PreparedData, Shard, Split
from orchestrator.storage.folder import Folder


class ShardReader:
    """Random access to the rows of one split.

    A shard is opened when one of its rows is read; the `open_shards` used last stay open, mapped
    into memory. Threads may share a reader, and what a reader returns is nobody else's.
    """

    def __init__(self, prepared: PreparedData, split: Split, open_shards: int = 16) -> None:
        self._shards = prepared.splits[split]
        self._open = functools.lru_cache(open_shards)(functools.partial(_open, prepared.folder))
        self.shard_rows = tuple(shard.rows for shard in self._shards)
        self.num_rows = sum(self.shard_rows)
        self._starts = np.cumsum([0, *self.shard_rows])

    @functools.cached_property
    def columns(self) -> list[str]:
        """The columns of a row."""
        return list(self.read([]))

    def read(self, rows: Sequence[int] | Rows, columns: Collection[str] | None = None) -> Arrays:
        """Read the given rows in the given order, as one array per column; all
        columns, or those that are named.

        Raises:
            IndexError: where there is no such row.
            StageError: where a shard is missing or damaged.
        """
        numbers = np.asarray(rows, dtype=np.int64)
        missing = numbers[(numbers < 0) | (numbers >= self.num_rows)]
        if len(missing):
            raise IndexError(f"row {missing[0]} of {self.num_rows}")
        if not self._shards:
            return {}
        owner = np.searchsorted(self._starts, numbers, side="right") - 1
        batch: Arrays = {}
        for i in np.unique(owner) if len(numbers) else [0]:  # no rows, but still columns
            chosen = np.flatnonzero(owner == i)
            for name, column in self._open(self._shards[i]).items():
                if columns is not None and name not in columns:
                    continue
                if name not in batch:
                    batch[name] = np.empty((len(numbers), *column.shape[1:]), dtype=column.dtype)
                batch[name][chosen] = column[numbers[chosen] - self._starts[i]]
        return batch


def write_shard(folder: Folder, name: str, arrays: Arrays) -> Shard:
    """Write columns of fixed shape, or of texts as objects, as one Arrow file; returns its
    description."""
    columns, fields = [], []
    for column, values in arrays.items():
        shape = list(values.shape[1:])
        text = pa.large_string() if values.dtype == object else None
        flat = pa.array(values.reshape(-1), text)
        array = pa.FixedSizeListArray.from_arrays(flat, int(np.prod(shape))) if shape else flat
        columns.append(array)
        fields.append(pa.field(column, array.type, metadata={"shape": json.dumps(shape)}))
    # One batch: its columns are contiguous, so reading copies nothing.
    batch = pa.RecordBatch.from_arrays(columns, schema=pa.schema(fields))
    sink = io.BytesIO()
    with pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    content = sink.getvalue()
    folder.write(name, content)
    return Shard(
        name=name,
        rows=batch.num_rows,
        bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
    )


def _open(folder: Folder, shard: Shard) -> Arrays:
    """The columns of a shard, mapped into memory while they are in use."""
    with local_file(folder, shard) as path:
        return _mapped(path, folder, shard)


def _mapped(path: Path, folder: Folder, shard: Shard) -> Arrays:
    try:
        status = path.lstat()
        if not S_ISREG(status.st_mode):
            raise ValueError("it is a link, or no file")
        if status.st_size != shard.bytes:
            raise ValueError(f"it has {status.st_size} bytes, not {shard.bytes}")
        with pa.memory_map(str(path)) as file:
            batch = pa.ipc.open_file(file).get_batch(0)
        batch.validate()
        if batch.num_rows != shard.rows:
            raise ValueError(f"it has {batch.num_rows} rows, not {shard.rows}")
        return {field.name: _array(batch.column(field.name), field) for field in batch.schema}
    except (OSError, pa.ArrowException, ValueError, TypeError, LookupError) as error:
        if isinstance(error, OSError) and error.errno not in (None, errno.ENOENT):
            raise  # too many open files, for example. Errors of Arrow have no number.
        copied = folder.local_path is None
        raise damaged_shard(folder, shard, error, delete=path if copied else folder) from error


def _array(column: pa.Array, field: pa.Field) -> npt.NDArray[Any]:
    shape = json.loads(field.metadata[b"shape"])
    flat = column.flatten() if shape else column
    # Truth values are packed into bits, and texts vary in length: both must be copied.
    copied = pa.types.is_boolean(flat.type) or pa.types.is_large_string(flat.type)
    array: npt.NDArray[Any] = flat.to_numpy(zero_copy_only=not copied)
    return array.reshape(len(column), *shape)

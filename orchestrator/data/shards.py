"""Sample order and reading of prepared shards, by position.

Training never iterates over the data: it asks for the rows of a position. The order of all rows in
all epochs is a function of (seed, position) alone, so resuming is an integer, and the number of
workers changes nothing.
"""

import errno
import functools
import hashlib
import io
import json
import os
import secrets
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISREG
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from orchestrator.data.arrays import Arrays
from orchestrator.errors import StageError
from orchestrator.storage.artifact import PreparedData, Shard, Split
from orchestrator.storage.folder import Folder
from orchestrator.storage.scratch import own_folder

Rows = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint64]

ROUNDS = 6  # of the cipher: with four, small windows show which orders it cannot make

_whole: set[tuple[int | str, ...]] = set()  # copies of shards whose bytes this process has proved


@dataclass(frozen=True)
class SampleOrder:
    """An endless stream of rows, each row once an epoch, without a table of them.

    Every epoch takes the shards in an order of its own, cuts them into windows of about equal size,
    of `window` shards at most, and permutes the rows of each window. So any row may come anywhere
    over the epochs, and yet positions that are close lie in few shards. Nothing is dropped at the
    end of an epoch: a batch goes on with the first rows of the next one.
    """

    shard_rows: tuple[int, ...]  # rows of each shard, in the reader's order; some may be empty
    seed: int  # below 2**64
    window: int = 8

    def __post_init__(self) -> None:
        if self.window < 1:
            raise ValueError(f"window = {self.window}: must be positive")
        if self.num_rows == 0:
            raise ValueError(f"{len(self.shard_rows)} shards without any row have no order")

    @functools.cached_property
    def num_rows(self) -> int:
        """The rows of an epoch."""
        return sum(self.shard_rows)

    def rows(self, start: int, stop: int) -> Rows:
        """The row numbers, int64 (stop - start,), of positions start .. stop - 1."""
        first, last = start // self.num_rows, max(start, stop - 1) // self.num_rows
        begin = first * self.num_rows
        return _epochs(self, first, last).rows(np.arange(start - begin, stop - begin))


@dataclass(frozen=True, eq=False)
class _Epochs:
    """Some epochs, one after the other: where their shards and windows begin, and the keys."""

    shard_starts: Rows  # the position at which a shard would begin, were its window not permuted
    shifts: Rows  # what makes such a position a row
    window_starts: Rows
    sizes: Words  # of the windows, in rows
    keys: Words  # (ROUNDS, windows)

    def rows(self, position: Rows) -> Rows:
        window = np.searchsorted(self.window_starts, position, side="right") - 1
        start = self.window_starts[window]
        position = start + self._permute((position - start).astype(np.uint64), window)
        shard = np.searchsorted(self.shard_starts, position, side="right") - 1
        return position + self.shifts[shard]

    def _permute(self, value: Words, window: npt.NDArray[np.intp]) -> Rows:
        """A Feistel cipher a window; what leaves the window walks on until it is back in it.

        Its halves are a digit each of a number in base `base`, so that it covers hardly more than
        the window and next to nothing walks. Black and Rogaway, CT-RSA 2002.
        """
        base = np.ceil(np.sqrt(self.sizes)).astype(np.uint64)
        limits = (-(-self.sizes.astype(np.int64) // base.astype(np.int64))).astype(np.uint64), base
        outside = np.arange(len(value))
        while len(outside):
            at = window[outside]
            halves = list(np.divmod(value[outside], base[at]))
            for turn in range(ROUNDS):
                half, limit = turn % 2, limits[turn % 2][at]
                scrambled = _mix(halves[1 - half] + self.keys[turn][at])
                halves[half] += (scrambled >> np.uint64(32)) * limit >> np.uint64(32)
                halves[half] -= np.where(halves[half] >= limit, limit, np.uint64(0))
            value[outside] = halves[0] * base[at] + halves[1]
            outside = outside[value[outside] >= self.sizes[at]]
        return value.astype(np.int64)


@functools.lru_cache(maxsize=2)
def _epochs(order: SampleOrder, first: int, last: int) -> _Epochs:
    """Epochs `first` to `last`, with all their shards: at most two more than those rows fill."""
    shard_rows = np.array(order.shard_rows, dtype=np.int64)
    first_rows = np.cumsum(shard_rows) - shard_rows
    filled = np.flatnonzero(shard_rows)
    numbers = np.arange(first, last + 1, dtype=np.uint64)[:, None]
    key = _mix(numbers ^ _mix(np.array([order.seed], dtype=np.uint64)))
    shards = filled[np.argsort(_mix(key + filled.astype(np.uint64)), axis=1)]  # (epochs, shards)

    ends = np.cumsum(shard_rows[shards])
    starts = np.concatenate([[0], ends[:-1]])
    windows = np.arange(-(-len(filled) // order.window))
    window_starts = starts.reshape(shards.shape)[:, windows * len(filled) // len(windows)].ravel()
    window_keys = _mix(_mix(~key) + windows.astype(np.uint64)).ravel()
    return _Epochs(
        shard_starts=starts,
        shifts=first_rows[shards].ravel() - starts,
        window_starts=window_starts,
        sizes=np.diff(window_starts, append=ends[-1]).astype(np.uint64),
        keys=_mix(window_keys + np.arange(ROUNDS, dtype=np.uint64)[:, None]),
    )


def _mix(x: Words) -> Words:
    """splitmix64: every input bit moves every output bit. Steele et al., OOPSLA 2014."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x ^= x >> np.uint64(30)
    x *= np.uint64(0xBF58476D1CE4E5B9)
    x ^= x >> np.uint64(27)
    x *= np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    return x


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
        """What a row holds."""
        return list(self.read([]))

    def read(self, rows: Sequence[int] | Rows, columns: Collection[str] | None = None) -> Arrays:
        """The given rows in the given order, each column an array with one row a sample; all
        columns, or those that are named.

        Raises:
            IndexError: where there is no such row.
            StageError: where a shard is missing or damaged.
        """
        wanted = np.asarray(rows, dtype=np.int64)
        missing = wanted[(wanted < 0) | (wanted >= self.num_rows)]
        if len(missing):
            raise IndexError(f"row {missing[0]} of {self.num_rows}")
        if not self._shards:
            return {}
        owner = np.searchsorted(self._starts, wanted, side="right") - 1
        batch: Arrays = {}
        for i in np.unique(owner) if len(wanted) else [0]:  # no rows have columns too
            chosen = np.flatnonzero(owner == i)
            for name, column in self._open(self._shards[i]).items():
                if columns is not None and name not in columns:
                    continue
                if name not in batch:
                    batch[name] = np.empty((len(wanted), *column.shape[1:]), dtype=column.dtype)
                batch[name][chosen] = column[wanted[chosen] - self._starts[i]]
        return batch


def write_shard(folder: Folder, name: str, arrays: Arrays) -> Shard:
    """Write one Arrow file of columns of a fixed shape, or of texts as objects, and describe it."""
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
    """The columns of a shard, mapped into memory until the last of them is let go."""
    path = _local_file(folder, shard)
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
            raise  # too many open files, say: no fault of the shard. Arrow's own have no number.
        copied = folder.local_path is None
        raise _damaged(folder, shard, error, delete=path if copied else folder) from error


def _array(column: pa.Array, field: pa.Field) -> npt.NDArray[Any]:
    shape = json.loads(field.metadata[b"shape"])
    flat = column.flatten() if shape else column
    # Truth values are eight to a byte, and texts of any length: they cannot be mapped.
    copied = pa.types.is_boolean(flat.type) or pa.types.is_large_string(flat.type)
    array: npt.NDArray[Any] = flat.to_numpy(zero_copy_only=not copied)
    return array.reshape(len(column), *shape)


def _local_file(folder: Folder, shard: Shard) -> Path:
    """The shard itself on local storage, else a copy of it, named by content, on this machine.

    Workers share the copies: a copy gets its name once it is whole. Copies are not deleted here, so
    a machine needs as much room for temporary files as the shards that it reads take.
    """
    if folder.local_path is not None:
        return folder.local_path / shard.name
    path = own_folder("shards") / shard.sha256
    if not _is_whole(path, shard):
        try:
            content = folder.read(shard.name)
        except FileNotFoundError as error:
            raise _damaged(folder, shard, error, delete=folder) from error
        if hashlib.sha256(content).hexdigest() != shard.sha256:
            raise _damaged(folder, shard, "its SHA-256 is another", delete=folder)
        partial = f"{shard.sha256}.{secrets.token_hex(8)}"  # no two writers share it
        Folder(str(path.parent)).write(partial, content)
        os.replace(path.with_name(partial), path)
        _whole.add(_identity(path))
    return path


def _is_whole(path: Path, shard: Shard) -> bool:
    """Whether a copy is what its name says; its bytes are summed up once in a process."""
    try:
        identity = _identity(path)
        if not S_ISREG(path.lstat().st_mode):
            return False
        if identity not in _whole:
            with open(path, "rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != shard.sha256:
                    return False
            _whole.add(identity)
    except FileNotFoundError:
        return False
    return True


def _identity(path: Path) -> tuple[int | str, ...]:
    """What changes where a file is written anew."""
    status = path.lstat()
    return path.name, status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _damaged(
    folder: Folder, shard: Shard, reason: Exception | str, delete: Folder | Path
) -> StageError:
    text = (getattr(reason, "strerror", None) or str(reason)).split("\n")[0]
    return StageError(
        f"{folder}/{shard.name} is missing or damaged ({text}): delete {delete} and run again"
    )

"""The order of all samples in all epochs, as a function of (seed, position).

Training asks for the rows of a position, so that resuming is an integer, and the number of workers
changes nothing.
"""

import functools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.int64]  # numbers of rows
Words = npt.NDArray[np.uint64]

ROUNDS = 6  # of the cipher: with four, small windows lack some orders


@dataclass(frozen=True)
class SampleOrder:
    """An endless stream of rows, each row once per epoch, without a table of rows.

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
    """Consecutive epochs: the beginnings of their shards and windows, and the keys."""

    shard_starts: Rows  # the position at which each shard begins before windows are permuted
    shifts: Rows  # add this to such a position to get the row
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
        """One Feistel cipher per window, with cycle walking for values outside of the window.

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
    """Epochs `first` to `last`, with all their shards."""
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

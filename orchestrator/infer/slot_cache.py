"""The keys and values of the sequences that are generated at once: a slot for each, of fixed size.

Legend: L slots, N rows, and that of `model/`. A step computes rows: one token each, of any slot, at
any position.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from orchestrator.infer.lone_attention import attend_alone
from orchestrator.model.attention import AttentionMask
from orchestrator.model.config import ModelConfig
from orchestrator.model.embedding import Positions

# A call reads a multiple of so many keys of each slot. Those beyond a query's own are masked: they
# add zeros to the ends of sums over whole vector registers, which changes no bit of them.
BLOCK = 32
SPLIT = 512  # keys from which on PyTorch's kernel for CPUs adds up parts of so many
ALL_KEYS = tuple(range(BLOCK, SPLIT + 1, BLOCK))
# Rows of other lengths join a call while they add fewer keys than a call of its own costs:
# 25 microseconds, in which 160 keys of 6 heads are read.
CALL_IN_KEYS = 160


@dataclass(frozen=True)
class Room:
    """What a slot holds: tokens and, of an encoder_decoder, the tokens of its source."""

    tokens: int
    source: int = 0

    def bytes_per_slot(self, config: ModelConfig, dtype: torch.dtype) -> int:
        """2 (keys and values) x decoder layers x heads of keys x their width x tokens x bytes of a
        number, with both kinds of tokens rounded up to BLOCK."""
        tokens = whole_blocks(self.tokens) + whole_blocks(self.source)
        width = config.kv_heads * config.head_width
        return 2 * config.layers_to_decode * width * tokens * dtype.itemsize


def slots_that_fit(memory_bytes: int, room: Room, config: ModelConfig, dtype: torch.dtype) -> int:
    """How many slots a cache of at most `memory_bytes` has."""
    return memory_bytes // room.bytes_per_slot(config, dtype)


def whole_blocks(tokens: int) -> int:
    """The number of keys to store for so many."""
    return -(-tokens // BLOCK) * BLOCK


@dataclass(frozen=True)
class Products:
    """How queries attend, so that none depends on another.

    A product has a multiple of `least` queries; None: each query has its own. It reads one of
    `keys`, after any number of whole SPLITs: for few other numbers, MKL adds up in another order.
    """

    least: int | None
    keys: tuple[int, ...] = ALL_KEYS

    def to_read(self, tokens: int, stored: int) -> int:
        """How many of the `stored` keys are read for the first so many."""
        splits, rest = divmod(tokens - 1, SPLIT)
        return min(splits * SPLIT + next(n for n in self.keys if n > rest), stored)

    def agree(self, first: int, second: int) -> bool:
        """Whether queries that read so many keys may share a call. All that read all the stored
        ones have the same bits, but not always as those that read fewer."""
        return first == second or (max(first, second) - 1) % SPLIT + 1 in self.keys


@dataclass(frozen=True)
class Row:
    """One token to compute."""

    token: int
    slot: int
    position: int
    source_length: int = 0


@dataclass(frozen=True)
class Keys:
    """The keys that a call reads: the first `seen` of each slot, with a mask to add to the
    scores."""

    seen: int
    mask_BHTS: Tensor


@dataclass(frozen=True)
class Piece:
    """The rows first .. stop - 1, whose queries attend in one call: one row for each of `slots`
    neighbouring slots, or several rows of one slot."""

    first: int
    stop: int
    slot: int
    slots: int
    own: Keys
    source: Keys | None


@dataclass(frozen=True)
class Rows:
    """The rows of a step, by slot and position, and their pieces. Rows of padding, which have no
    slot, come last: N counts them, n does not."""

    tokens_N: Tensor
    positions_N: Tensor
    places: Tensor  # of each kind, head and n among a layer's keys and values, (2 x H x n,)
    pieces: list[Piece]
    count: int  # n
    products: Products


class LayerSlots:
    """One layer's keys and values in all slots: (2, L, H, tokens, K) and (2, L, H, source, K)."""

    def __init__(self, slots: int, room: Room, config: ModelConfig, like: Tensor) -> None:
        heads, width = config.kv_heads, config.head_width
        self.own = like.new_zeros(2, slots, heads, whole_blocks(room.tokens), width)
        self.source = like.new_zeros(2, slots, heads, whole_blocks(room.source), width)

    def store(self, key_HnK: Tensor, value_HnK: Tensor, places: Tensor) -> None:
        """Keep the keys and values of n rows."""
        new_2HnK = torch.stack((key_HnK, value_HnK)).to(self.own.dtype)
        self.own.view(-1, self.own.shape[-1])[places] = new_2HnK.flatten(0, 2)

    def store_source(self, slot: int, memory: tuple[Tensor, Tensor]) -> None:
        """Keep the keys and values of an encoder's output, (1, H, S, K) each."""
        for stored_LHSK, new_BHSK in zip(self.source, memory, strict=True):
            stored_LHSK[slot, :, : new_BHSK.shape[2]] = new_BHSK[0]

    def clear(self, slot: int) -> None:
        """Forget a slot whose numbers may not be finite: even a masked NaN makes a sum NaN."""
        self.own[:, slot] = 0
        self.source[:, slot] = 0


class SlotCache:
    """The slots of all layers of a decoder, allocated once."""

    def __init__(
        self, slots: int, room: Room, config: ModelConfig, positions: Positions, like: Tensor
    ) -> None:
        """`like` has the device and the type of the keys and values."""
        self.config = config
        self.positions = positions
        self.like = like
        self.bytes = slots * room.bytes_per_slot(config, like.dtype)
        self.layers = [
            LayerSlots(slots, room, config, like) for _ in range(config.layers_to_decode)
        ]
        self.products = Products(least=1)  # without a promise for bits
        if like.device.type == "cpu" and like.dtype == torch.float32:
            self.products = find_products(config.head_width, torch.get_num_threads())

    def rows(self, rows: list[Row], count: int) -> Rows:
        """The rows of a step as tensors of `count` rows. `rows` are ordered by slot and
        position."""
        padding, device = [0] * (count - len(rows)), self.like.device
        tokens_N = torch.tensor([row.token for row in rows] + padding, device=device)
        positions_N = torch.tensor([row.position for row in rows] + padding, device=device)
        slots_n = torch.tensor([row.slot for row in rows], dtype=torch.long, device=device)
        _, slots, heads, tokens, _ = self.layers[0].own.shape
        kinds_2L = torch.arange(2 * slots, device=device).view(2, slots)
        head_2Hn = kinds_2L[:, None, slots_n] * heads + torch.arange(heads, device=device)[:, None]
        places = (head_2Hn * tokens + positions_N[: len(rows)]).flatten()
        bounds = piece_bounds(rows, self._own_keys, self._agree)
        pieces = [self._piece(rows, *each, positions_N) for each in bounds]
        return Rows(tokens_N, positions_N, places, pieces, len(rows), self.products)

    def _own_keys(self, row: Row) -> int:
        return self.products.to_read(row.position + 1, self.layers[0].own.shape[3])

    def _source_keys(self, row: Row) -> int:
        return self.products.to_read(row.source_length, self.layers[0].source.shape[3])

    def _agree(self, first: Row, second: Row) -> bool:
        agree = self.products.agree
        return agree(self._own_keys(first), self._own_keys(second)) and (
            not first.source_length or agree(self._source_keys(first), self._source_keys(second))
        )

    def _piece(self, rows: list[Row], first: int, stop: int, positions_N: Tensor) -> Piece:
        part = rows[first:stop]
        slots = part[-1].slot - part[0].slot + 1
        seen = max(self._own_keys(row) for row in part)
        bias_NHS, position_N = None, positions_N[first:stop]
        if self.positions.relative is not None:
            bias_NHS = self.positions.biases(position_N, seen).mT
        own = self._keys(seen, position_N + 1, bias_NHS, slots)
        source = None
        if lengths := [row.source_length for row in part if row.source_length]:
            length_N = torch.tensor(lengths, device=self.like.device)
            read = max(self._source_keys(row) for row in part)
            source = self._keys(read, length_N, None, slots)
        return Piece(first, stop, part[0].slot, slots, own, source)

    def _keys(self, seen: int, length_N: Tensor, bias_NHS: Tensor | None, slots: int) -> Keys:
        """The mask of a call: the bias, or 0, for the first `length` keys of each row, else the
        lowest number."""
        hidden_NS = torch.arange(seen, device=length_N.device) >= length_N[:, None]
        lowest = torch.finfo(self.like.dtype).min
        if bias_NHS is None:
            bias_NHS = self.like.new_zeros(1, 1, 1)
        mask_NHS = bias_NHS.to(self.like.dtype).masked_fill(hidden_NS[:, None], lowest)
        mask_NHS = mask_NHS.expand(-1, self.config.num_heads, -1)
        mask_BRS = _by_keys(mask_NHS, self.config.kv_heads, slots)
        return Keys(seen, _as_products(mask_BRS, self.products.least))


class LayerRows:
    """One layer's slots for the rows of one step: the cache that a block attends to."""

    def __init__(self, layer: LayerSlots, rows: Rows) -> None:
        self.layer = layer
        self.rows = rows

    def attend(
        self, query_BHTK: Tensor, key_BHTK: Tensor, value_BHTK: Tensor, _: AttentionMask
    ) -> Tensor:
        """Store the keys and values of the rows, T = N, and attend to all up to each row's own."""
        n = self.rows.count
        self.layer.store(key_BHTK[0, :, :n], value_BHTK[0, :, :n], self.rows.places)
        return self._attend(query_BHTK, self.layer.own, [piece.own for piece in self.rows.pieces])

    def attend_memory(
        self,
        query_BHTK: Tensor,
        _memory: Callable[[], tuple[Tensor, Tensor]],
        _mask: AttentionMask,
    ) -> Tensor:
        """Attend to the source in each row's slot."""
        keys = [piece.source for piece in self.rows.pieces if piece.source is not None]
        return self._attend(query_BHTK, self.layer.source, keys)

    def _attend(self, query_BHTK: Tensor, stored_2LHSK: Tensor, keys: list[Keys]) -> Tensor:
        query_NHK = query_BHTK[0].transpose(0, 1).to(stored_2LHSK.dtype)
        attended = [
            self._attend_piece(query_NHK[piece.first : piece.stop], stored_2LHSK, piece, own)
            for piece, own in zip(self.rows.pieces, keys, strict=True)
        ]
        padding_NHK = torch.zeros_like(query_NHK[self.rows.count :])
        return torch.cat((*attended, padding_NHK)).transpose(0, 1)[None]

    def _attend_piece(
        self, query_NHK: Tensor, stored_2LHSK: Tensor, piece: Piece, keys: Keys
    ) -> Tensor:
        """The attention of a piece's rows, (N, H, K)."""
        heads, tokens, width = stored_2LHSK.shape[2:]
        query_BRK = _by_keys(query_NHK, heads, piece.slots)
        count = query_BRK.shape[1]
        query_BHTK = _as_products(query_BRK, self.rows.products.least)
        # A view. A stride of 0: the queries with products of their own read the same keys.
        shape = (len(query_BHTK), query_BHTK.shape[1], keys.seen, width)
        strides = (tokens * width, 0, width, 1)
        first = piece.slot * heads * tokens * width
        key_BHSK = stored_2LHSK.as_strided(shape, strides, first)
        value_BHSK = stored_2LHSK.as_strided(shape, strides, first + stored_2LHSK.stride(0))
        is_alone = self.rows.products.least is None
        attend = attend_alone if is_alone else F.scaled_dot_product_attention
        attended_BHTK = attend(query_BHTK, key_BHSK, value_BHSK, keys.mask_BHTS)
        attended_BRK = attended_BHTK.flatten(1, 2)[:, :count]
        if piece.slots > 1:
            return attended_BRK.reshape(query_NHK.shape)
        by_row_NHGK = attended_BRK.unflatten(1, (len(query_NHK), -1)).transpose(0, 1)
        return by_row_NHGK.flatten(1, 2)


def _by_keys(x_NHX: Tensor, kv_heads: int, slots: int) -> Tensor:
    """Rows and heads of queries in the order of the heads of keys that they read: (slots x heads of
    keys, rows of a slot x queries of a head, X)."""
    x_NHGX = x_NHX.unflatten(1, (kv_heads, -1))
    return x_NHGX.flatten(0, 1) if slots > 1 else x_NHGX.transpose(0, 1).flatten(1, 2)


def _as_products(x_BRX: Tensor, least: int | None) -> Tensor:
    """Add the axes of PyTorch's attention: one product for the R queries, filled up with zeros to a
    multiple of `least`, or a product for each if `least` is None."""
    if least is None:
        return x_BRX[:, :, None]
    return F.pad(x_BRX, (0, 0, 0, -x_BRX.shape[1] % least))[:, None]


@functools.cache
def find_products(width: int, threads: int) -> Products:
    """The products that give a query the same bits in any company, tried as in `min_rows`."""
    random = torch.Generator().manual_seed(threads)
    key_BHSK, value_BHSK = torch.randn(2, 1, 1, SPLIT + BLOCK, width, generator=random)
    query_BHTK = torch.randn(1, 1, 256, width, generator=random)
    lowest = torch.finfo(torch.float32).min

    def attend(first: int, count: int, real: int, seen: int, batch: int = 1) -> Tensor:
        mask_S = torch.where(torch.arange(seen) < real, 0.0, lowest)
        query_BHtK = query_BHTK[:, :, first : first + count].expand(batch, -1, -1, -1)
        read_BHSK, values_BHSK = (
            x[:, :, :seen].expand(batch, -1, -1, -1) for x in (key_BHSK, value_BHSK)
        )
        mask_BHTS = mask_S.expand(batch, 1, count, -1)
        return F.scaled_dot_product_attention(
            query_BHtK, read_BHSK, values_BHSK, attn_mask=mask_BHTS
        )

    expected_BHTK = attend(0, 256, BLOCK - 3, BLOCK)
    for least in (4, 8):
        if all(
            torch.equal(found_TK, expected_BHTK[0, 0, first : first + count])
            for count in (least, 2 * least, 3 * least, 32 + least, 128)
            for first in (0, least, 256 - count)
            for batch in (1, 5)
            for found_TK in attend(first, count, BLOCK - 3, BLOCK, batch)[:, 0]
        ):
            agree = [
                seen
                for seen in ALL_KEYS
                if torch.equal(attend(0, 64, seen, seen), attend(0, 64, seen, SPLIT))
            ]
            return Products(least, tuple(agree))
    return Products(None)


def piece_bounds(
    rows: list[Row], keys: Callable[[Row], int], agree: Callable[[Row, Row], bool]
) -> list[tuple[int, int]]:
    """The first and the last row + 1 of each piece.

    Args:
        keys: how many keys a row reads.
        agree: whether two rows may share a call.
    """
    starts = [
        i
        for i, row in enumerate(rows)
        if i == 0 or row.slot != rows[i - 1].slot or not agree(rows[i - 1], row)
    ]
    bounds: list[tuple[int, int]] = []
    longest = 0  # keys of the last piece, if it has one row for each slot
    for first, stop in pairwise([*starts, len(rows)]):
        read = keys(rows[stop - 1])
        before, row = rows[first - 1], rows[first]
        follows = bool(first) and row.slot == before.slot + 1 and agree(before, row)
        if longest and follows and stop - first == 1:
            count = first - bounds[-1][0]
            if max(read - longest, 0) * count + max(longest - read, 0) <= CALL_IN_KEYS:
                bounds[-1] = (bounds[-1][0], stop)
                longest = max(longest, read)
                continue
        bounds.append((first, stop))
        longest = read if stop - first == 1 else 0
    return bounds

"""The keys and values of the sequences that are generated at once: a slot for each, of fixed size.

Legend: L slots, N rows, and that of `model/`. A step computes rows: one token each, of any slot, at
any position.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from orchestrator.infer.lone_attention import attend_alone
from orchestrator.model.attention import AttentionMask
from orchestrator.model.config import ModelConfig
from orchestrator.model.embedding import Positions

# A call reads a multiple of so many keys of each slot. Those beyond a query's own are masked: they
# add zeros to the ends of sums over whole vector registers, which changes no bit of them.
BLOCK = 32
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
    """The number of keys to read for so many."""
    return -(-tokens // BLOCK) * BLOCK


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
    slots_n: Tensor
    pieces: list[Piece]


class LayerSlots:
    """One layer's keys and values in all slots, (L, H, tokens, K) and (L, H, source, K)."""

    def __init__(self, slots: int, room: Room, config: ModelConfig, like: Tensor) -> None:
        heads, width = config.kv_heads, config.head_width
        own = (slots, heads, whole_blocks(room.tokens), width)
        source = (slots, heads, whole_blocks(room.source), width)
        self.own = like.new_zeros(own), like.new_zeros(own)
        self.source = like.new_zeros(source), like.new_zeros(source)

    def store_source(self, slot: int, memory: tuple[Tensor, Tensor]) -> None:
        """Keep the keys and values of an encoder's output, (1, H, S, K) each."""
        for stored_LHSK, new_BHSK in zip(self.source, memory, strict=True):
            stored_LHSK[slot, :, : new_BHSK.shape[2]] = new_BHSK[0]

    def clear(self, slot: int) -> None:
        """Forget a slot whose numbers may not be finite: even a masked NaN makes a sum NaN."""
        for stored_LHSK in (*self.own, *self.source):
            stored_LHSK[slot] = 0


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

    def rows(self, rows: list[Row], count: int) -> Rows:
        """The rows of a step as tensors of `count` rows. `rows` are ordered by slot and
        position."""
        padding, device = [0] * (count - len(rows)), self.like.device
        tokens_N = torch.tensor([row.token for row in rows] + padding, device=device)
        positions_N = torch.tensor([row.position for row in rows] + padding, device=device)
        slots_n = torch.tensor([row.slot for row in rows], dtype=torch.long, device=device)
        pieces = [self._piece(rows, *bounds, positions_N) for bounds in piece_bounds(rows)]
        return Rows(tokens_N, positions_N, slots_n, pieces)

    def _piece(self, rows: list[Row], first: int, stop: int, positions_N: Tensor) -> Piece:
        part = rows[first:stop]
        slots = part[-1].slot - part[0].slot + 1
        seen = whole_blocks(max(row.position for row in part) + 1)
        bias_NHS, position_N = None, positions_N[first:stop]
        if self.positions.relative is not None:
            bias_NHS = self.positions.biases(position_N, seen).mT
        own = self._keys(seen, position_N + 1, bias_NHS, slots)
        source = None
        if lengths := [row.source_length for row in part if row.source_length]:
            length_N = torch.tensor(lengths, device=self.like.device)
            source = self._keys(whole_blocks(max(lengths)), length_N, None, slots)
        return Piece(first, stop, part[0].slot, slots, own, source)

    def _keys(self, seen: int, length_N: Tensor, bias_NHS: Tensor | None, slots: int) -> Keys:
        """The mask of a call: the bias, or 0, for the first `length` keys of each row, else the
        lowest number."""
        hidden_NS = torch.arange(seen, device=length_N.device) >= length_N[:, None]
        lowest = torch.finfo(self.like.dtype).min
        if bias_NHS is None:
            bias_NHS = self.like.new_zeros(1, 1, 1)
        mask_NHS = bias_NHS.to(self.like.dtype).masked_fill(hidden_NS[:, None], lowest)
        mask_NHTS = mask_NHS.expand(-1, self.config.num_heads, -1)[:, :, None]
        return Keys(seen, _as_batch(mask_NHTS, self.config.kv_heads, slots))


class LayerRows:
    """One layer's slots for the rows of one step: the cache that a block attends to."""

    def __init__(self, layer: LayerSlots, rows: Rows) -> None:
        self.layer = layer
        self.rows = rows

    def attend(
        self, query_BHTK: Tensor, key_BHTK: Tensor, value_BHTK: Tensor, _: AttentionMask
    ) -> Tensor:
        """Store the keys and values of the rows, T = N, and attend to all up to each row's own."""
        slots_n = self.rows.slots_n
        positions_n = self.rows.positions_N[: len(slots_n)]
        for stored_LHSK, new_BHTK in zip(self.layer.own, (key_BHTK, value_BHTK), strict=True):
            new_nHK = new_BHTK[0, :, : len(slots_n)].transpose(0, 1)
            stored_LHSK[slots_n, :, positions_n] = new_nHK.to(stored_LHSK.dtype)
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

    def _attend(
        self, query_BHTK: Tensor, stored: tuple[Tensor, Tensor], keys: list[Keys]
    ) -> Tensor:
        query_NHK = query_BHTK[0].transpose(0, 1)
        attended_NHK = torch.zeros_like(query_NHK)
        for piece, own in zip(self.rows.pieces, keys, strict=True):
            part = slice(piece.first, piece.stop)
            attended_NHK[part] = _attend_piece(query_NHK[part], stored, piece, own)
        return attended_NHK.transpose(0, 1)[None]


def _attend_piece(
    query_NHK: Tensor, stored: tuple[Tensor, Tensor], piece: Piece, keys: Keys
) -> Tensor:
    """The attention of a piece's rows, (N, H, K).

    Every query and head is a product of its own for PyTorch's kernel, also those that read the same
    keys, so that none depends on another.
    """
    kv_heads, slots = stored[0].shape[1], slice(piece.slot, piece.slot + piece.slots)
    query_NHTK = query_NHK.to(stored[0].dtype)[:, :, None]
    query_BHTK = _as_batch(query_NHTK, kv_heads, piece.slots)
    shape = (-1, query_BHTK.shape[1], -1, -1)
    key_BHSK, value_BHSK = (
        each_LHSK[slots, :, : keys.seen].flatten(0, 1)[:, None].expand(shape)
        for each_LHSK in stored
    )
    attended_BHTK = attend_alone(query_BHTK, key_BHSK, value_BHSK, keys.mask_BHTS)
    if piece.slots > 1:
        return attended_BHTK.reshape(query_NHK.shape)
    by_head = attended_BHTK.reshape(kv_heads, len(query_NHK), -1, query_NHK.shape[-1])
    return by_head.transpose(0, 1).flatten(1, 2)


def _as_batch(x_NHTK: Tensor, kv_heads: int, slots: int) -> Tensor:
    """Rows and heads of queries in the order of the heads of keys that they read: (slots x heads of
    keys, rows of a slot x queries of a head, T, K)."""
    x_NHGTK = x_NHTK.unflatten(1, (kv_heads, -1))
    if slots > 1:
        return x_NHGTK.flatten(0, 1)
    return x_NHGTK.transpose(0, 1).flatten(1, 2)


def piece_bounds(rows: list[Row]) -> list[tuple[int, int]]:
    """The first and the last row + 1 of each piece."""
    starts = [i for i, row in enumerate(rows) if i == 0 or row.slot != rows[i - 1].slot]
    bounds: list[tuple[int, int]] = []
    longest = 0  # keys of the last piece, if it has one row for each slot
    for first, stop in pairwise([*starts, len(rows)]):
        keys = whole_blocks(rows[stop - 1].position + 1)
        follows = bool(first) and rows[first].slot == rows[first - 1].slot + 1
        if longest and follows and stop - first == 1:
            count = first - bounds[-1][0]
            if max(keys - longest, 0) * count + max(longest - keys, 0) <= CALL_IN_KEYS:
                bounds[-1] = (bounds[-1][0], stop)
                longest = max(longest, keys)
                continue
        bounds.append((first, stop))
        longest = keys if stop - first == 1 else 0
    return bounds

"""Multi-head attention, and the cache of keys and values that makes generation linear in its
length."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from orchestrator.model.config import ModelConfig
from orchestrator.model.embedding import Rotation, rotate

# Tokens up to which plain operations are used in bf16 on a CPU: forward and backward of
# 8 x 3 x 256 x 64 take 12 ms, and 33 ms with PyTorch's fused kernel.
SHORT = 512


class AttentionCache(Protocol):
    """One layer's keys and values of earlier tokens: `LayerCache`, or the slots of serving."""

    def attend(
        self, query_BHTK: Tensor, key_BHTK: Tensor, value_BHTK: Tensor, mask: "AttentionMask"
    ) -> Tensor:
        """Store the keys and values of T tokens, and attend to them and to all earlier ones."""

    def attend_memory(
        self,
        query_BHTK: Tensor,
        memory: Callable[[], tuple[Tensor, Tensor]],
        mask: "AttentionMask",
    ) -> Tensor:
        """Attend to the encoder's output. `memory` computes its keys and values, if they are not
        stored yet."""


class LayerCache:
    """One layer's keys and values of the tokens so far, (B, H, capacity, K) each."""

    def __init__(
        self,
        batch: int,
        capacity: int,
        config: ModelConfig,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        shape = (batch, config.kv_heads, capacity, config.head_width)
        self.key_BHSK = torch.zeros(shape, device=device, dtype=dtype)
        self.value_BHSK = torch.zeros(shape, device=device, dtype=dtype)
        # Keys and values of the encoder's output, from cross-attention.
        self.memory: tuple[Tensor, Tensor] | None = None

    def attend(
        self, query_BHTK: Tensor, key_BHTK: Tensor, value_BHTK: Tensor, mask: "AttentionMask"
    ) -> Tensor:
        """Store T tokens from position `mask.start` on, and attend to all up to the last one."""
        stop = mask.start + key_BHTK.shape[2]
        self.key_BHSK[:, :, mask.start : stop] = key_BHTK
        self.value_BHSK[:, :, mask.start : stop] = value_BHTK
        return attend(query_BHTK, self.key_BHSK[:, :, :stop], self.value_BHSK[:, :, :stop], mask)

    def attend_memory(
        self,
        query_BHTK: Tensor,
        memory: Callable[[], tuple[Tensor, Tensor]],
        mask: "AttentionMask",
    ) -> Tensor:
        """Attend to the encoder's output, whose keys and values are computed the first time."""
        if self.memory is None:
            self.memory = memory()
        return attend(query_BHTK, *self.memory, mask)

    def reorder(self, rows_B: Tensor) -> None:
        """Keep the sequences of these rows, int64 (B,), in this order. Beam search may repeat a
        row."""
        self.key_BHSK, self.value_BHSK = self.key_BHSK[rows_B], self.value_BHSK[rows_B]
        if self.memory is not None:
            self.memory = self.memory[0][rows_B], self.memory[1][rows_B]


@dataclass(frozen=True)
class AttentionMask:
    """Which keys a query attends to, and with what bias. A causal query sees no later keys, and no
    query sees padding."""

    causal: bool = False
    start: int = 0  # the position of the first query among the keys
    real_BS: Tensor | None = None  # bool: False where a key is padding; None: no padding
    bias_HTS: Tensor | None = None  # added to the scores: relative positions

    def additive(self, length: int, seen: int, like: Tensor) -> Tensor:
        """The tensor to add to the scores, (1 or B, 1 or H, length, seen): the bias, or 0, where a
        query sees a key, else the lowest number of `like`'s type.

        Minus infinity would make NaN of padding that sees only padding.
        """
        lowest = torch.finfo(like.dtype).min
        if self.causal:
            mask_BHTS = like.new_full((1, 1, length, seen), lowest).triu(self.start + 1)
        else:
            mask_BHTS = like.new_zeros(1, 1, length, seen)
        if self.bias_HTS is not None:
            mask_BHTS = mask_BHTS + self.bias_HTS.to(like.dtype)
        if self.real_BS is not None:
            mask_BHTS = mask_BHTS.masked_fill(~self.real_BS[:, None, None, :seen], lowest)
        return mask_BHTS


def attend(query_BHTK: Tensor, key_BHSK: Tensor, value_BHSK: Tensor, mask: AttentionMask) -> Tensor:
    """softmax(Q K^T / sqrt(K)) V, (B, H, T, K). Vaswani et al. 2017, equation 1.

    If there are fewer heads of keys and values, neighbouring query heads share one (Ainslie et al.
    2023).
    """
    groups = query_BHTK.shape[1] // key_BHSK.shape[1]
    if groups > 1:
        key_BHSK = key_BHSK.repeat_interleave(groups, dim=1)
        value_BHSK = value_BHSK.repeat_interleave(groups, dim=1)
    length, seen = query_BHTK.shape[2], key_BHSK.shape[2]
    unfused = length > 1 and _is_short_on_cpu(query_BHTK)
    is_plain = mask.real_BS is None and mask.bias_HTS is None
    # The fused kernel has its own causal mask, for queries that start at position 0.
    needs_none = is_plain and (not mask.causal or length == 1 or (mask.start == 0 and not unfused))
    mask_BHTS = None if needs_none else mask.additive(length, seen, query_BHTK)
    if unfused:
        scores_BHTS = (query_BHTK / math.sqrt(query_BHTK.shape[-1])) @ key_BHSK.mT
        if mask_BHTS is not None:
            scores_BHTS = scores_BHTS + mask_BHTS
        return scores_BHTS.softmax(-1) @ value_BHSK
    is_causal = mask_BHTS is None and mask.causal and length > 1
    return F.scaled_dot_product_attention(
        query_BHTK, key_BHSK, value_BHSK, attn_mask=mask_BHTS, is_causal=is_causal
    )


def _is_short_on_cpu(query_BHTK: Tensor) -> bool:
    """Whether plain operations are faster than PyTorch's fused kernel: two to three times, for
    short sequences in bf16 on a CPU."""
    on_cpu_in_bf16 = query_BHTK.device.type == "cpu" and query_BHTK.dtype == torch.bfloat16
    return on_cpu_in_bf16 and query_BHTK.shape[2] <= SHORT


class Attention(nn.Module):
    """Multi-head attention. Vaswani et al. 2017, section 3.2.2."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.head_width = config.head_width
        queries, keys = (n * config.head_width for n in (config.num_heads, config.kv_heads))
        self.query = nn.Linear(config.d_model, queries, bias=config.bias)
        self.key = nn.Linear(config.d_model, keys, bias=config.bias)
        self.value = nn.Linear(config.d_model, keys, bias=config.bias)
        self.output = nn.Linear(queries, config.d_model, bias=config.bias)

    def forward(
        self,
        x_BTD: Tensor,
        mask: AttentionMask,
        rotation: Rotation | None = None,
        cache: AttentionCache | None = None,
    ) -> Tensor:
        """Self-attention of T tokens to themselves and to the cached ones, (B, T, D)."""
        query_BHTK = self._heads(self.query(x_BTD))
        key_BHSK, value_BHSK = self._heads(self.key(x_BTD)), self._heads(self.value(x_BTD))
        if rotation is not None:
            query_BHTK, key_BHSK = rotate(query_BHTK, rotation), rotate(key_BHSK, rotation)
        attend_to = attend if cache is None else cache.attend
        return self._join_heads(attend_to(query_BHTK, key_BHSK, value_BHSK, mask))

    def across(
        self,
        x_BTD: Tensor,
        memory_BSD: Tensor,
        mask: AttentionMask,
        cache: AttentionCache | None = None,
    ) -> Tensor:
        """Cross-attention of a decoder's T tokens to the encoder's S output vectors, (B, T, D)."""
        query_BHTK = self._heads(self.query(x_BTD))
        if cache is None:
            return self._join_heads(attend(query_BHTK, *self.memory(memory_BSD), mask))
        attended_BHTK = cache.attend_memory(query_BHTK, lambda: self.memory(memory_BSD), mask)
        return self._join_heads(attended_BHTK)

    def memory(self, memory_BSD: Tensor) -> tuple[Tensor, Tensor]:
        """The keys and values of the encoder's S output vectors, (B, H, S, K) each."""
        return self._heads(self.key(memory_BSD)), self._heads(self.value(memory_BSD))

    def _heads(self, x_BTD: Tensor) -> Tensor:
        return x_BTD.unflatten(-1, (-1, self.head_width)).transpose(1, 2)

    def _join_heads(self, x_BHTK: Tensor) -> Tensor:
        output_BTD: Tensor = self.output(x_BHTK.transpose(1, 2).flatten(2))
        return output_BTD

"""Multi-head attention and the caches that make generation linear in its length."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from orchestrator.model.config import ModelConfig
from orchestrator.model.embedding import Rotation, rotate

# Tokens: forward and backward of 8 x 3 x 256 x 64 take 12 ms in place of 33 ms.
SHORT = 512


class LayerCache:
    """The keys and values of the tokens that one layer has seen, (B, H, capacity, K) each."""

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
        self.memory: tuple[Tensor, Tensor] | None = None  # of the encoder, by cross-attention

    def append(self, key_BHTK: Tensor, value_BHTK: Tensor, start: int) -> tuple[Tensor, Tensor]:
        """Store T tokens from position `start` on; return everything up to and with them."""
        stop = start + key_BHTK.shape[2]
        self.key_BHSK[:, :, start:stop] = key_BHTK
        self.value_BHSK[:, :, start:stop] = value_BHTK
        return self.key_BHSK[:, :, :stop], self.value_BHSK[:, :, :stop]

    def reorder(self, rows_B: Tensor) -> None:
        """Go on with these sequences, int64 (B,), some perhaps twice: what a beam search keeps."""
        self.key_BHSK, self.value_BHSK = self.key_BHSK[rows_B], self.value_BHSK[rows_B]
        if self.memory is not None:
            self.memory = self.memory[0][rows_B], self.memory[1][rows_B]


@dataclass(frozen=True)
class Sight:
    """What queries may see: of a causal stack the keys up to their own, and of all no padding."""

    causal: bool = False
    start: int = 0  # the position of the first query among the keys
    real_BS: Tensor | None = None  # bool: which keys are no padding; None: all
    preference_HTS: Tensor | None = None  # what is added to the scores besides

    def mask(self, length: int, seen: int, like: Tensor) -> Tensor:
        """What is added to the scores, (1 or B, 1 or H, length, seen): 0, or a preference, or the
        lowest number.

        Not minus infinity: padding that sees nothing but padding must not become NaN.
        """
        lowest = torch.finfo(like.dtype).min
        if self.causal:
            mask_BHTS = like.new_full((1, 1, length, seen), lowest).triu(self.start + 1)
        else:
            mask_BHTS = like.new_zeros(1, 1, length, seen)
        if self.preference_HTS is not None:
            mask_BHTS = mask_BHTS + self.preference_HTS.to(like.dtype)
        if self.real_BS is not None:
            mask_BHTS = mask_BHTS.masked_fill(~self.real_BS[:, None, None, :seen], lowest)
        return mask_BHTS


def attend(query_BHTK: Tensor, key_BHSK: Tensor, value_BHSK: Tensor, sight: Sight) -> Tensor:
    """softmax(Q K^T / sqrt(K)) V, (B, H, T, K). Vaswani et al. 2017, equation 1.

    With fewer heads of keys and values, neighbouring queries share one (Ainslie et al. 2023).
    """
    groups = query_BHTK.shape[1] // key_BHSK.shape[1]
    if groups > 1:
        key_BHSK = key_BHSK.repeat_interleave(groups, dim=1)
        value_BHSK = value_BHSK.repeat_interleave(groups, dim=1)
    length, seen = query_BHTK.shape[2], key_BHSK.shape[2]
    by_hand = length > 1 and _is_short_on_cpu(query_BHTK)
    sees_all = sight.real_BS is None and sight.preference_HTS is None
    plain = sees_all and (not sight.causal or length == 1 or (sight.start == 0 and not by_hand))
    mask_BHTS = None if plain else sight.mask(length, seen, query_BHTK)
    if by_hand:
        scores_BHTS = (query_BHTK / math.sqrt(query_BHTK.shape[-1])) @ key_BHSK.mT
        if mask_BHTS is not None:
            scores_BHTS = scores_BHTS + mask_BHTS
        return scores_BHTS.softmax(-1) @ value_BHSK
    is_causal = mask_BHTS is None and sight.causal and length > 1
    return F.scaled_dot_product_attention(
        query_BHTK, key_BHSK, value_BHSK, attn_mask=mask_BHTS, is_causal=is_causal
    )


def _is_short_on_cpu(query_BHTK: Tensor) -> bool:
    """There plain operations in bf16 beat PyTorch's fused kernel, two to three times."""
    on_cpu_in_bf16 = query_BHTK.device.type == "cpu" and query_BHTK.dtype == torch.bfloat16
    return on_cpu_in_bf16 and query_BHTK.shape[2] <= SHORT


class Attention(nn.Module):
    """Several heads of attention, side by side. Vaswani et al. 2017, section 3.2.2."""

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
        sight: Sight,
        rotation: Rotation | None = None,
        cache: LayerCache | None = None,
    ) -> Tensor:
        """Attend from T tokens to themselves and to the cached ones."""
        query_BHTK = self._heads(self.query(x_BTD))
        key_BHSK, value_BHSK = self._heads(self.key(x_BTD)), self._heads(self.value(x_BTD))
        if rotation is not None:
            query_BHTK, key_BHSK = rotate(query_BHTK, rotation), rotate(key_BHSK, rotation)
        if cache is not None:
            key_BHSK, value_BHSK = cache.append(key_BHSK, value_BHSK, sight.start)
        return self._joined(attend(query_BHTK, key_BHSK, value_BHSK, sight))

    def across(
        self, x_BTD: Tensor, memory_BSD: Tensor, sight: Sight, cache: LayerCache | None = None
    ) -> Tensor:
        """Attend from a decoder's T tokens to the S vectors that the encoder made."""
        memory = cache.memory if cache is not None else None
        if memory is None:
            memory = self._heads(self.key(memory_BSD)), self._heads(self.value(memory_BSD))
        if cache is not None:
            cache.memory = memory
        return self._joined(attend(self._heads(self.query(x_BTD)), *memory, sight))

    def _heads(self, x_BTD: Tensor) -> Tensor:
        return x_BTD.unflatten(-1, (-1, self.head_width)).transpose(1, 2)

    def _joined(self, x_BHTK: Tensor) -> Tensor:
        joined: Tensor = self.output(x_BHTK.transpose(1, 2).flatten(2))
        return joined

"""Multi-head attention and the cache that makes generation linear in its length."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from orchestrator.model.config import ModelConfig
from orchestrator.model.embedding import rotary_table, rotate

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
        shape = (batch, config.num_heads, capacity, config.head_width)
        self.key_BHSK = torch.zeros(shape, device=device, dtype=dtype)
        self.value_BHSK = torch.zeros(shape, device=device, dtype=dtype)

    def append(self, key_BHTK: Tensor, value_BHTK: Tensor, start: int) -> tuple[Tensor, Tensor]:
        """Store T tokens from position `start` on; return everything up to and with them."""
        stop = start + key_BHTK.shape[2]
        self.key_BHSK[:, :, start:stop] = key_BHTK
        self.value_BHSK[:, :, start:stop] = value_BHTK
        return self.key_BHSK[:, :, :stop], self.value_BHSK[:, :, :stop]


def attend(
    query_BHTK: Tensor, key_BHSK: Tensor, value_BHSK: Tensor, causal: bool, start: int
) -> Tensor:
    """softmax(Q K^T / sqrt(K)) V, (B, H, T, K); the first query stands at position `start`."""
    length, seen = query_BHTK.shape[2], key_BHSK.shape[2]
    mask_TS = None
    if causal and length > 1 and (start > 0 or _is_short_on_cpu(query_BHTK)):
        mask_TS = query_BHTK.new_full((length, seen), -torch.inf).triu(start + 1)
    if length > 1 and _is_short_on_cpu(query_BHTK):
        scores_BHTS = (query_BHTK / math.sqrt(query_BHTK.shape[-1])) @ key_BHSK.mT
        if mask_TS is not None:
            scores_BHTS = scores_BHTS + mask_TS
        return scores_BHTS.softmax(-1) @ value_BHSK
    return F.scaled_dot_product_attention(
        query_BHTK, key_BHSK, value_BHSK, attn_mask=mask_TS, is_causal=causal and start == 0
    )


def _is_short_on_cpu(query_BHTK: Tensor) -> bool:
    """There plain operations in bf16 beat PyTorch's fused kernel, two to three times."""
    on_cpu_in_bf16 = query_BHTK.device.type == "cpu" and query_BHTK.dtype == torch.bfloat16
    return on_cpu_in_bf16 and query_BHTK.shape[2] <= SHORT


class Attention(nn.Module):
    """softmax(Q K^T / sqrt(K)) V over several heads. Vaswani et al. 2017, section 3.2."""

    def __init__(self, config: ModelConfig, causal: bool) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.causal = causal
        self.query = nn.Linear(config.d_model, config.d_model, bias=False)
        self.key = nn.Linear(config.d_model, config.d_model, bias=False)
        self.value = nn.Linear(config.d_model, config.d_model, bias=False)
        self.output = nn.Linear(config.d_model, config.d_model, bias=False)
        cos, sin = None, None
        if config.positions == "rotary":
            cos, sin = rotary_table(config.max_seq_len, config.head_width)
        self.cos: Tensor | None
        self.sin: Tensor | None
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(self, x_BTD: Tensor, start: int = 0, cache: LayerCache | None = None) -> Tensor:
        """Attend from T tokens, the first at position `start`, to them and to the cached ones."""
        query_BHTK = self._heads(self.query(x_BTD))
        key_BHSK = self._heads(self.key(x_BTD))
        value_BHSK = self._heads(self.value(x_BTD))
        length = x_BTD.shape[1]
        if self.cos is not None and self.sin is not None:
            cos, sin = self.cos[start : start + length], self.sin[start : start + length]
            query_BHTK, key_BHSK = rotate(query_BHTK, cos, sin), rotate(key_BHSK, cos, sin)
        if cache is not None:
            key_BHSK, value_BHSK = cache.append(key_BHSK, value_BHSK, start)
        out_BHTK = attend(query_BHTK, key_BHSK, value_BHSK, self.causal, start)
        return self.output(out_BHTK.transpose(1, 2).flatten(2))

    def _heads(self, x_BTD: Tensor) -> Tensor:
        return x_BTD.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

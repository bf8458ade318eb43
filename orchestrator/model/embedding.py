"""Tokens and positions into vectors."""

import math

import torch
from torch import Tensor, nn

from orchestrator.model.config import ModelConfig


class Embedding(nn.Module):
    """Token vectors, plus position vectors unless positions are rotary."""

    def __init__(self, config: ModelConfig, vocab_size: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocab_size, config.d_model)
        self.positions: nn.Embedding | None = None
        if config.positions == "learned":
            self.positions = nn.Embedding(config.max_seq_len, config.d_model)
        table_TD = None
        if config.positions == "sinusoidal":
            table_TD = sinusoids(config.max_seq_len, config.d_model)
        self.table_TD: Tensor | None
        self.register_buffer("table_TD", table_TD, persistent=False)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, tokens_BT: Tensor, start: int) -> Tensor:
        """Embed tokens whose first one stands at position `start`."""
        x_BTD: Tensor = self.tokens(tokens_BT)
        stop = start + tokens_BT.shape[1]
        if self.positions is not None:
            x_BTD = x_BTD + self.positions.weight[start:stop]
        if self.table_TD is not None:
            x_BTD = x_BTD * math.sqrt(x_BTD.shape[-1]) + self.table_TD[start:stop]
        embedded: Tensor = self.dropout(x_BTD)
        return embedded


def sinusoids(length: int, width: int) -> Tensor:
    """Fixed position vectors, float32 (length, width). Vaswani et al. 2017, section 3.5."""
    positions_T1 = torch.arange(length, dtype=torch.float32)[:, None]
    rates = torch.exp(torch.arange(0, width, 2) * (-math.log(10_000.0) / width))
    table_TD = torch.zeros(length, width)
    table_TD[:, 0::2] = torch.sin(positions_T1 * rates)
    table_TD[:, 1::2] = torch.cos(positions_T1 * rates[: width // 2])
    return table_TD


def rotary_table(length: int, head_width: int) -> tuple[Tensor, Tensor]:
    """Cosine and sine of each position's angles, float32 (length, head_width / 2)."""
    rates = torch.exp(torch.arange(0, head_width, 2) * (-math.log(10_000.0) / head_width))
    angles = torch.arange(length, dtype=torch.float32)[:, None] * rates
    return angles.cos(), angles.sin()


def rotate(x_BHTK: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair (k, k + K/2) by its position's angle. Su et al. 2021, RoFormer."""
    first, second = x_BHTK.chunk(2, dim=-1)
    cos, sin = cos.to(x_BHTK.dtype), sin.to(x_BHTK.dtype)
    return torch.cat((first * cos - second * sin, first * sin + second * cos), dim=-1)

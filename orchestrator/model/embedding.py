"""Tokens, patches and positions into vectors."""

import math

import torch
from torch import Tensor, nn

from orchestrator.model.config import ModelConfig, Patches

Rotation = tuple[Tensor, Tensor]  # cosines and sines, (..., T, K/2), to turn queries and keys by


class PatchEmbedding(nn.Module):
    """Images (B, channels, side, side) into a class vector and one vector a patch, (B, T, D)."""

    def __init__(self, patches: Patches, d_model: int) -> None:
        super().__init__()
        size = patches.patch_size
        self.projection = nn.Conv2d(patches.channels, d_model, kernel_size=size, stride=size)
        self.start_D = nn.Parameter(torch.zeros(d_model))

    def forward(self, images_BCHW: Tensor) -> Tensor:
        patches_BTD = self.projection(images_BCHW).flatten(2).mT
        return torch.cat((self.start_D.expand(len(patches_BTD), 1, -1), patches_BTD), dim=1)


class Positions(nn.Module):
    """What a stack knows of positions: vectors that are added, or a rotation of its attention."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.kind = config.positions
        length, width = config.max_seq_len, config.d_model
        self.learned = nn.Embedding(length, width) if self.kind == "learned" else None
        tables: list[Tensor | None] = [None, None, None]
        if self.kind == "sinusoidal":
            tables[0] = sinusoids(length, width)
        if self.kind == "rotary":
            tables[1:] = rotary_table(length, config.head_width, config.rope_theta)
        self.table_TD: Tensor | None
        self.cos: Tensor | None
        self.sin: Tensor | None
        for name, table in zip(("table_TD", "cos", "sin"), tables, strict=True):
            self.register_buffer(name, table, persistent=False)

    def forward(self, x_BTD: Tensor, where: slice | Tensor) -> tuple[Tensor, Rotation | None]:
        """Vectors with their positions, and the rotation; `where` indexes the tables: a slice, or
        int64 (B, T)."""
        if self.learned is not None:
            return x_BTD + self.learned.weight[where], None
        if self.table_TD is not None:
            return x_BTD * math.sqrt(x_BTD.shape[-1]) + self.table_TD[where], None
        assert self.cos is not None and self.sin is not None
        cos, sin = self.cos[where], self.sin[where]
        if isinstance(where, Tensor):  # of each sequence, the same for all heads
            cos, sin = cos[:, None], sin[:, None]
        return x_BTD, (cos, sin)


def sinusoids(length: int, width: int) -> Tensor:
    """Fixed position vectors, float32 (length, width). Vaswani et al. 2017, section 3.5."""
    positions_T1 = torch.arange(length, dtype=torch.float32)[:, None]
    rates = torch.exp(torch.arange(0, width, 2) * (-math.log(10_000.0) / width))
    table_TD = torch.zeros(length, width)
    table_TD[:, 0::2] = torch.sin(positions_T1 * rates)
    table_TD[:, 1::2] = torch.cos(positions_T1 * rates[: width // 2])
    return table_TD


def rotary_table(length: int, head_width: int, theta: float = 10_000.0) -> Rotation:
    """Cosine and sine of each position's angles, float32 (length, head_width / 2)."""
    rates = torch.exp(torch.arange(0, head_width, 2) * (-math.log(theta) / head_width))
    angles = torch.arange(length, dtype=torch.float32)[:, None] * rates
    return angles.cos(), angles.sin()


def rotate(x_BHTK: Tensor, rotation: Rotation) -> Tensor:
    """Turn each pair (k, k + K/2) by its position's angle. Su et al. 2021, RoFormer."""
    first, second = x_BHTK.chunk(2, dim=-1)
    cos, sin = rotation[0].to(x_BHTK.dtype), rotation[1].to(x_BHTK.dtype)
    return torch.cat((first * cos - second * sin, first * sin + second * cos), dim=-1)

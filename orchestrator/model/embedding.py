"""Tokens, patches and positions into vectors."""

import math

import torch
from torch import Tensor, nn

from orchestrator.model.config import ModelConfig, Patches

BUCKETS, FAR = 32, 128  # T5's
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
    """What a stack knows of positions: vectors that are added, a rotation of its attention, or what
    its attention prefers by distance."""

    def __init__(self, config: ModelConfig, causal: bool) -> None:
        super().__init__()
        self.kind = config.positions
        length, width = config.max_seq_len, config.d_model
        self.learned = nn.Embedding(length, width) if self.kind == "learned" else None
        relative = self.kind == "relative"
        self.relative = nn.Embedding(BUCKETS, config.num_heads) if relative else None
        tables: dict[str, Tensor] = {}
        if self.kind == "sinusoidal":
            tables["table_TD"] = sinusoids(length, width)
        if self.kind == "rotary":
            cos, sin = rotary_table(length, config.head_width, config.rope_theta)
            tables |= {"cos": cos, "sin": sin}
        if relative:
            tables["buckets"] = distance_buckets(torch.arange(1 - length, length), causal)
        self.table_TD: Tensor | None
        self.cos: Tensor | None
        self.sin: Tensor | None
        self.buckets: Tensor | None  # of a key's distances, from 1 - length to length - 1
        for name in ("table_TD", "cos", "sin", "buckets"):
            self.register_buffer(name, tables.get(name), persistent=False)

    def forward(self, x_BTD: Tensor, where: slice | Tensor) -> tuple[Tensor, Rotation | None]:
        """Vectors with their positions, and the rotation; `where` indexes the tables: a slice, or
        int64 (B, T)."""
        if self.learned is not None:
            return x_BTD + self.learned.weight[where], None
        if self.table_TD is not None:
            return x_BTD * math.sqrt(x_BTD.shape[-1]) + self.table_TD[where], None
        if self.relative is not None:
            return x_BTD, None
        assert self.cos is not None and self.sin is not None
        cos, sin = self.cos[where], self.sin[where]
        if isinstance(where, Tensor):  # of each sequence, the same for all heads
            cos, sin = cos[:, None], sin[:, None]
        return x_BTD, (cos, sin)

    def preference(self, start: int, length: int) -> Tensor | None:
        """What each head adds to the scores of queries start .. start + length - 1 for the keys up
        to the last of them, (H, T, S), by their distance. Raffel et al. 2020, section 2.1."""
        if self.relative is None or self.buckets is None:
            return None
        key_S = torch.arange(start + length, device=self.buckets.device)
        distance_TS = key_S - key_S[start:, None]
        bucket_TS = self.buckets[distance_TS + len(self.buckets) // 2]
        preference_TSH: Tensor = self.relative(bucket_TS)
        return preference_TSH.permute(2, 0, 1)


def distance_buckets(distances: Tensor, causal: bool) -> Tensor:
    """A number below BUCKETS for each distance of a key from its query, int64: near ones have one
    each, farther ones share, all from FAR on the same. Raffel et al. 2020, T5."""
    count = BUCKETS if causal else BUCKETS // 2  # for either direction
    ahead = torch.zeros_like(distances) if causal else (distances > 0).long() * count
    far = -distances.clamp(max=0) if causal else distances.abs()
    exact = count // 2
    grown = torch.log(far.clamp(min=1) / exact) / math.log(FAR / exact) * (count - exact)
    shared = (exact + grown.long()).clamp(max=count - 1)
    return ahead + torch.where(far < exact, far, shared)


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

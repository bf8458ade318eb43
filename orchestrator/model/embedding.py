"""Embeddings of image patches and of positions."""

import math

import torch
from torch import Tensor, nn

from orchestrator.model.config import ModelConfig, Patches

# Relative positions have the buckets of T5, Raffel et al. 2020.
NUM_BUCKETS, MAX_DISTANCE = 32, 128
Rotation = tuple[Tensor, Tensor]  # cosines and sines of rotary positions, (..., T, K/2) each


class PatchEmbedding(nn.Module):
    """Embed images (B, channels, side, side) as a class vector and one vector for each patch:
    (B, T, D)."""

    def __init__(self, patches: Patches, d_model: int) -> None:
        super().__init__()
        size = patches.patch_size
        self.projection = nn.Conv2d(patches.channels, d_model, kernel_size=size, stride=size)
        self.start_D = nn.Parameter(torch.zeros(d_model))

    def forward(self, images_BCHW: Tensor) -> Tensor:
        patches_BTD = self.projection(images_BCHW).flatten(2).mT
        return torch.cat((self.start_D.expand(len(patches_BTD), 1, -1), patches_BTD), dim=1)


class Positions(nn.Module):
    """The positions of a stack: vectors that are added to its input, a rotation of queries and
    keys, or a bias of the attention scores by distance."""

    def __init__(self, config: ModelConfig, causal: bool) -> None:
        super().__init__()
        self.kind = config.positions
        length, width = config.max_seq_len, config.d_model
        self.learned = nn.Embedding(length, width) if self.kind == "learned" else None
        relative = self.kind == "relative"
        self.relative = nn.Embedding(NUM_BUCKETS, config.num_heads) if relative else None
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
        self.buckets: Tensor | None  # for the distances from 1 - length to length - 1
        for name in ("table_TD", "cos", "sin", "buckets"):
            self.register_buffer(name, tables.get(name), persistent=False)

    def forward(self, x_BTD: Tensor, positions: slice | Tensor) -> tuple[Tensor, Rotation | None]:
        """Add position vectors to `x_BTD`, or return the rotation for attention.

        `positions` are a slice, or int64 (B, T).
        """
        if self.learned is not None:
            return x_BTD + self.learned.weight[positions], None
        if self.table_TD is not None:
            return x_BTD * math.sqrt(x_BTD.shape[-1]) + self.table_TD[positions], None
        if self.relative is not None:
            return x_BTD, None
        assert self.cos is not None and self.sin is not None
        cos, sin = self.cos[positions], self.sin[positions]
        if isinstance(positions, Tensor):  # (B, T): add the axis of the heads
            cos, sin = cos[:, None], sin[:, None]
        return x_BTD, (cos, sin)

    def attention_bias(self, start: int, length: int) -> Tensor | None:
        """The bias by distance for the scores of the queries at start .. start + length - 1 and all
        keys up to the last of them, (H, T, S); None for other kinds of positions.

        Raffel et al. 2020, section 2.1.
        """
        if self.buckets is None:
            return None
        query_T = torch.arange(start, start + length, device=self.buckets.device)
        return self.biases(query_T, start + length).permute(2, 0, 1)

    def biases(self, query_T: Tensor, seen: int) -> Tensor:
        """The biases for the queries at these positions, int64 (T,), and the first `seen` keys:
        (T, S, H). Keys may lie beyond the context, if a mask hides them."""
        assert self.relative is not None and self.buckets is not None
        key_S = torch.arange(seen, device=query_T.device)
        index_TS = key_S - query_T[:, None] + len(self.buckets) // 2
        bias_TSH: Tensor = self.relative(self.buckets[index_TS.clamp(max=len(self.buckets) - 1)])
        return bias_TSH


def distance_buckets(distances: Tensor, causal: bool) -> Tensor:
    """The bucket, int64, of each distance from a query to a key.

    Small distances have a bucket each, larger ones share buckets of logarithmic width, and all from
    MAX_DISTANCE on share the last. Raffel et al. 2020, T5.
    """
    count = NUM_BUCKETS if causal else NUM_BUCKETS // 2  # for each direction
    later = torch.zeros_like(distances) if causal else (distances > 0).long() * count
    size = -distances.clamp(max=0) if causal else distances.abs()
    exact = count // 2
    log_scale = torch.log(size.clamp(min=1) / exact) / math.log(MAX_DISTANCE / exact)
    shared = (exact + (log_scale * (count - exact)).long()).clamp(max=count - 1)
    return later + torch.where(size < exact, size, shared)


def sinusoids(length: int, width: int) -> Tensor:
    """Fixed position vectors, float32 (length, width). Vaswani et al. 2017, section 3.5."""
    positions_T1 = torch.arange(length, dtype=torch.float32)[:, None]
    rates = torch.exp(torch.arange(0, width, 2) * (-math.log(10_000.0) / width))
    table_TD = torch.zeros(length, width)
    table_TD[:, 0::2] = torch.sin(positions_T1 * rates)
    table_TD[:, 1::2] = torch.cos(positions_T1 * rates[: width // 2])
    return table_TD


def rotary_table(length: int, head_width: int, theta: float = 10_000.0) -> Rotation:
    """Cosines and sines of each position's angles, float32 (length, head_width / 2) each. Su et al.
    2021, RoFormer."""
    rates = torch.exp(torch.arange(0, head_width, 2) * (-math.log(theta) / head_width))
    angles = torch.arange(length, dtype=torch.float32)[:, None] * rates
    return angles.cos(), angles.sin()


def rotate(x_BHTK: Tensor, rotation: Rotation) -> Tensor:
    """Rotate each pair of elements (k, k + K/2) by its position's angle. Su et al. 2021,
    RoFormer."""
    first, second = x_BHTK.chunk(2, dim=-1)
    cos, sin = rotation[0].to(x_BHTK.dtype), rotation[1].to(x_BHTK.dtype)
    return torch.cat((first * cos - second * sin, first * sin + second * cos), dim=-1)

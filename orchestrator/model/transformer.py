"""The Transformer: embedding, a stack of blocks, a norm and an output head."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from orchestrator.model.attention import LayerCache
from orchestrator.model.block import Block, make_norm
from orchestrator.model.config import ModelConfig
from orchestrator.model.embedding import Embedding


class Cache:
    """What a decoder remembers of `length` tokens, one LayerCache a block."""

    def __init__(self, layers: list[LayerCache]) -> None:
        self.layers = layers
        self.capacity = layers[0].key_BHSK.shape[2]
        self.length = 0


class Transformer(nn.Module):
    """A decoder: next-token logits from tokens, each position blind to the later ones."""

    def __init__(self, config: ModelConfig, vocab_size: int) -> None:
        super().__init__()
        self.config = config
        self.vocab_size = vocab_size
        self.embedding = Embedding(config, vocab_size)
        self.blocks = nn.ModuleList(Block(config, causal=True) for _ in range(config.num_layers))
        self.norm = make_norm(config)
        self.head = None if config.tie_embeddings else nn.Linear(config.d_model, vocab_size, False)
        self._init_weights()

    def forward(self, tokens_BT: Tensor, cache: Cache | None = None) -> Tensor:
        """Logits (B, T, V) for int64 tokens (B, T); with a cache, T more tokens of its sequences.

        Raises:
            ValueError: where the sequence would grow beyond `max_seq_len`.
        """
        start = cache.length if cache is not None else 0
        stop = start + tokens_BT.shape[1]
        if stop > self.config.max_seq_len:
            raise ValueError(f"{stop} tokens do not fit max_seq_len = {self.config.max_seq_len}")
        if cache is not None and stop > cache.capacity:
            raise ValueError(f"{stop} tokens do not fit the cache of {cache.capacity}")
        x_BTD = self.embedding(tokens_BT, start)
        for i, block in enumerate(self.blocks):
            x_BTD = block(x_BTD, start, cache.layers[i] if cache is not None else None)
        if cache is not None:
            cache.length = stop
        x_BTD = self.norm(x_BTD)
        if self.head is not None:
            return self.head(x_BTD)
        return F.linear(x_BTD, self.embedding.tokens.weight)

    def new_cache(self, batch: int, capacity: int) -> Cache:
        """An empty cache for `batch` sequences of up to `capacity` tokens."""
        weight = self.embedding.tokens.weight
        capacity = min(capacity, self.config.max_seq_len)
        return Cache(
            [
                LayerCache(batch, capacity, self.config, weight.device, weight.dtype)
                for _ in self.blocks
            ]
        )

    def num_parameters(self) -> int:
        """Trainable numbers, a tied embedding counted once."""
        return sum(p.numel() for p in self.parameters())

    @torch.no_grad()
    def _init_weights(self) -> None:
        # Width-scaled normal weights; the two maps that write to the residual stream start at
        # zero, so that every block begins as the identity (muP's and modded-nanogpt's choice).
        for name, parameter in self.named_parameters():
            if name.endswith("output.weight"):
                parameter.zero_()
            elif name.startswith(("embedding.", "head.")):
                parameter.normal_(std=0.02)
            elif parameter.ndim == 2:
                parameter.normal_(std=1.0 / math.sqrt(parameter.shape[1]))

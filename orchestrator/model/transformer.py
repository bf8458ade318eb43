"""The Transformer: embeddings, a stack of blocks or two, and a head."""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from orchestrator.model.attention import LayerCache, Sight
from orchestrator.model.block import Block, make_norm
from orchestrator.model.config import ModelConfig
from orchestrator.model.embedding import PatchEmbedding, Positions

HeadKind = Literal["tokens", "label", "each_token"]


class Cache:
    """What a decoder remembers of `length` tokens of each sequence, one LayerCache a block."""

    def __init__(
        self,
        layers: list[LayerCache],
        real_BT: Tensor | None = None,
        memory_BSD: Tensor | None = None,
        memory_real_BS: Tensor | None = None,
    ) -> None:
        self.layers = layers
        self.capacity = layers[0].key_BHSK.shape[2]
        self.length = 0
        self.real_BT = real_BT  # of the tokens: (B, capacity)
        self.memory_BSD = memory_BSD  # what the encoder made of the source
        self.memory_real_BS = memory_real_BS

    def reorder(self, rows_B: Tensor) -> None:
        """Go on with these sequences, int64 (B,), some perhaps twice."""
        for layer in self.layers:
            layer.reorder(rows_B)
        for name in ("real_BT", "memory_BSD", "memory_real_BS"):
            if (value := getattr(self, name)) is not None:
                setattr(self, name, value[rows_B])


class Stack(nn.Module):
    """Positions, blocks in a row, and a last norm: an encoder or, if causal, a decoder."""

    def __init__(self, config: ModelConfig, layers: int, causal: bool, crosses: bool) -> None:
        super().__init__()
        self.causal = causal
        self.positions = Positions(config, causal)
        self.embedding_norm = make_norm(config) if config.embedding_norm else None
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config, crosses) for _ in range(layers))
        # With norms after the branches, the last block has normalised already.
        self.norm = make_norm(config) if config.norm_position == "pre" else None

    def forward(
        self,
        x_BTD: Tensor,
        real_BT: Tensor | None = None,
        positions_BT: Tensor | None = None,
        cache: Cache | None = None,
        memory_BSD: Tensor | None = None,
        memory_real_BS: Tensor | None = None,
    ) -> Tensor:
        start = cache.length if cache is not None else 0
        where = slice(start, start + x_BTD.shape[1]) if positions_BT is None else positions_BT
        x_BTD, rotation = self.positions(x_BTD, where)
        if self.embedding_norm is not None:
            x_BTD = self.embedding_norm(x_BTD)
        x_BTD = self.dropout(x_BTD)
        preference_HTS = self.positions.preference(start, x_BTD.shape[1])
        sight = Sight(self.causal, start, real_BT, preference_HTS)
        memory = None if memory_BSD is None else (memory_BSD, Sight(real_BS=memory_real_BS))
        for i, block in enumerate(self.blocks):
            layer = cache.layers[i] if cache is not None else None
            x_BTD = block(x_BTD, sight, rotation, layer, memory)
        return self.norm(x_BTD) if self.norm is not None else x_BTD


class TokenHead(nn.Module):
    """A logit for each word of the vocabulary, (B, T, V)."""

    def __init__(self, config: ModelConfig, vocab_size: int) -> None:
        super().__init__()
        # BERT, whose blocks end in a norm, has one more map before the vocabulary.
        self.dense, self.norm = None, None
        if config.family == "encoder" and config.norm_position == "post":
            self.dense, self.norm = nn.Linear(config.d_model, config.d_model), make_norm(config)
        self.logits = None
        if not config.tie_embeddings:
            self.logits = nn.Linear(config.d_model, vocab_size, bias=False)
        has_bias = config.bias and config.family != "decoder"
        self.bias_V = nn.Parameter(torch.zeros(vocab_size)) if has_bias else None

    def forward(self, x_BTD: Tensor, embedding_VD: Tensor) -> Tensor:
        if self.dense is not None and self.norm is not None:
            x_BTD = self.norm(F.gelu(self.dense(x_BTD)))
        weight_VD = self.logits.weight if self.logits is not None else embedding_VD
        return F.linear(x_BTD, weight_VD, self.bias_V)


class LabelHead(nn.Module):
    """A logit for each label of a whole sequence, or its one number: (B, labels).

    BERT and ViT look at the first vector, whose token stands for the sequence; others at the mean.
    """

    def __init__(self, config: ModelConfig, num_labels: int) -> None:
        super().__init__()
        self.takes_first = config.norm_position == "post" or config.patches is not None
        has_dense = config.patches is None
        self.dense = nn.Linear(config.d_model, config.d_model) if has_dense else None
        self.activation = torch.tanh if config.norm_position == "post" else F.gelu
        self.dropout = nn.Dropout(config.dropout)
        self.logits = nn.Linear(config.d_model, num_labels)

    def forward(self, x_BTD: Tensor, real_BT: Tensor | None) -> Tensor:
        if self.takes_first:
            pooled_BD = x_BTD[:, 0]
        elif real_BT is None:
            pooled_BD = x_BTD.mean(1)
        else:
            weight_BT1 = real_BT[:, :, None].to(x_BTD.dtype)
            pooled_BD = (x_BTD * weight_BT1).sum(1) / weight_BT1.sum(1)
        if self.dense is not None:
            pooled_BD = self.activation(self.dense(pooled_BD))
        logits: Tensor = self.logits(self.dropout(pooled_BD))
        return logits


class Transformer(nn.Module):
    """An encoder, a decoder or both, over one embedding, with a head.

    - `tokens`: logits over the vocabulary, (B, T, V): of the next token from a decoder, of each
      token itself from an encoder.
    - `label`: (B, outputs), from an encoder. `each_token`: (B, T, outputs), likewise.
    """

    def __init__(
        self,
        config: ModelConfig,
        vocab_size: int,
        head: HeadKind = "tokens",
        num_outputs: int = 1,
    ) -> None:
        super().__init__()
        if head != "tokens" and config.family != "encoder":
            raise ValueError(f"a head for {head} needs model.family = encoder, not {config.family}")
        self.config = config
        self.vocab_size = vocab_size
        self.head_kind = head
        self.num_outputs = num_outputs
        self.tokens: nn.Embedding | None = None
        self.patches: PatchEmbedding | None = None
        if config.patches is not None:
            self.patches = PatchEmbedding(config.patches, config.d_model)
        else:
            self.tokens = nn.Embedding(vocab_size, config.d_model)
        types = config.token_types
        self.types = nn.Embedding(types, config.d_model) if types else None
        both = config.family == "encoder_decoder"
        self.encoder: Stack | None = None
        self.decoder: Stack | None = None
        if config.family != "decoder":
            self.encoder = Stack(config, config.num_layers, causal=False, crosses=False)
        if config.family != "encoder":
            self.decoder = Stack(config, config.layers_to_decode, causal=True, crosses=both)
        self.head: nn.Module
        if head == "tokens":
            self.head = TokenHead(config, vocab_size)
        elif head == "label":
            self.head = LabelHead(config, num_outputs)
        else:
            self.head = nn.Linear(config.d_model, num_outputs)
        self._init_weights()

    def forward(
        self,
        inputs: Tensor,
        real_BT: Tensor | None = None,
        *,
        source_BS: Tensor | None = None,
        source_real_BS: Tensor | None = None,
        types_BT: Tensor | None = None,
        positions_BT: Tensor | None = None,
        cache: Cache | None = None,
        asked_BT: Tensor | None = None,
    ) -> Tensor:
        """The head's output for int64 tokens (B, T), or for images (B, channels, side, side).

        Args:
            real_BT: bool, False where a token is padding; without it, none is.
            source_BS: what an encoder_decoder's encoder reads; `inputs` is the decoder's. With a
                cache it was given to `new_cache`.
            types_BT: the segment of each token, where the model has `token_types`.
            positions_BT: int64, where the tokens do not stand at 0, 1, 2, ...
            cache: `inputs` are T more tokens of its sequences.
            asked_BT: bool, from an encoder: the N tokens whose logits alone are wanted, (N, V).

        Raises:
            ValueError: where the sequence would grow beyond `max_seq_len`, or the cache's capacity.
        """
        if self.decoder is None:
            encoded_BTD = self.encode(inputs, real_BT, types_BT, positions_BT)
            if asked_BT is not None:
                encoded_BTD = encoded_BTD[asked_BT]
            return self._apply_head(encoded_BTD, real_BT)
        memory_BSD, memory_real_BS = None, source_real_BS
        if cache is not None:
            self._check_fit(cache.length + inputs.shape[1], cache)
            memory_BSD, memory_real_BS = cache.memory_BSD, cache.memory_real_BS
            real_BT = cache.real_BT
        elif source_BS is not None:
            memory_BSD = self.encode(source_BS, source_real_BS)
        x_BTD = self.decoder(
            self._embed(inputs, types_BT), real_BT, positions_BT, cache, memory_BSD, memory_real_BS
        )
        if cache is not None:
            cache.length += inputs.shape[1]
        return self._apply_head(x_BTD, real_BT)

    def encode(
        self,
        inputs: Tensor,
        real_BT: Tensor | None = None,
        types_BT: Tensor | None = None,
        positions_BT: Tensor | None = None,
    ) -> Tensor:
        """What the encoder makes of tokens or images, (B, T, D)."""
        assert self.encoder is not None
        encoded: Tensor = self.encoder(self._embed(inputs, types_BT), real_BT, positions_BT)
        return encoded

    def new_cache(
        self,
        batch: int,
        capacity: int,
        real_BT: Tensor | None = None,
        source_BS: Tensor | None = None,
        source_real_BS: Tensor | None = None,
    ) -> Cache:
        """An empty cache for `batch` sequences of up to `capacity` tokens.

        Args:
            real_BT: bool, False where one of the first T tokens is padding: as long as the prompts.
            source_BS: what an encoder_decoder's encoder reads.
        """
        assert self.decoder is not None and self.tokens is not None
        weight = self.tokens.weight
        capacity = min(capacity, self.config.max_seq_len)
        memory_BSD = None
        if source_BS is not None:
            memory_BSD = self.encode(source_BS, source_real_BS)
        if real_BT is not None:
            real_BT = F.pad(real_BT, (0, capacity - real_BT.shape[1]), value=True)
        layers = [
            LayerCache(batch, capacity, self.config, weight.device, weight.dtype)
            for _ in self.decoder.blocks
        ]
        return Cache(layers, real_BT, memory_BSD, source_real_BS)

    def num_parameters(self) -> int:
        """Trainable numbers, a tied embedding counted once."""
        return sum(p.numel() for p in self.parameters())

    def _embed(self, inputs: Tensor, types_BT: Tensor | None) -> Tensor:
        if self.patches is not None:
            embedded: Tensor = self.patches(inputs)
            return embedded
        assert self.tokens is not None
        self._check_fit(inputs.shape[1])
        x_BTD: Tensor = self.tokens(inputs)
        if self.types is not None:
            x_BTD = x_BTD + self.types(types_BT if types_BT is not None else inputs * 0)
        return x_BTD

    def _apply_head(self, x_BTD: Tensor, real_BT: Tensor | None) -> Tensor:
        if self.head_kind == "tokens":
            assert self.tokens is not None
            return self.head(x_BTD, self.tokens.weight)
        if self.head_kind == "label":
            return self.head(x_BTD, real_BT)
        return self.head(x_BTD)

    def _check_fit(self, length: int, cache: Cache | None = None) -> None:
        if length > self.config.max_seq_len:
            raise ValueError(f"{length} tokens do not fit max_seq_len = {self.config.max_seq_len}")
        if cache is not None and length > cache.capacity:
            raise ValueError(f"{length} tokens do not fit the cache of {cache.capacity}")

    @torch.no_grad()
    def _init_weights(self) -> None:
        # Width-scaled normal weights; the maps that write to the residual stream start at zero,
        # so that every block begins as the identity (muP's and modded-nanogpt's choice).
        for name, parameter in self.named_parameters():
            if name.endswith("output.weight"):
                parameter.zero_()
            elif name.endswith("positions.relative.weight"):
                # Heads that look to different places from the start: bAbI's task 1 is learned
                # within 70,000 questions, and of near-zero preferences not within 100,000.
                parameter.normal_(std=1.0)
            elif name.endswith("_D") or (".blocks." not in name and parameter.ndim == 2):
                parameter.normal_(std=0.02)
            elif parameter.ndim >= 2:
                parameter.normal_(std=1.0 / math.sqrt(parameter[0].numel()))
            elif name.endswith(".bias"):
                parameter.zero_()

"""The Transformer (Vaswani et al. 2017): embeddings, one or two stacks of blocks, and a head."""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from orchestrator.model.attention import AttentionMask, LayerCache
from orchestrator.model.block import Block, make_norm
from orchestrator.model.config import ModelConfig
from orchestrator.model.embedding import PatchEmbedding, Positions, Rotation

HeadKind = Literal["tokens", "label", "each_token"]


class Cache:
    """A decoder's cache of the first `length` tokens of each sequence: a LayerCache per block."""

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
        self.real_BT = real_BT  # bool (B, capacity), False for padding; None: no padding
        self.memory_BSD = memory_BSD  # the encoder's output for the source
        self.memory_real_BS = memory_real_BS

    def reorder(self, rows_B: Tensor) -> None:
        """Keep the sequences of these rows, int64 (B,), in this order. Beam search may repeat a
        row."""
        for layer in self.layers:
            layer.reorder(rows_B)
        for name in ("real_BT", "memory_BSD", "memory_real_BS"):
            if (value := getattr(self, name)) is not None:
                setattr(self, name, value[rows_B])


class Stack(nn.Module):
    """Positions, a sequence of blocks, and a last norm: an encoder or, if causal, a decoder."""

    def __init__(self, config: ModelConfig, layers: int, causal: bool, crosses: bool) -> None:
        super().__init__()
        self.causal = causal
        self.positions = Positions(config, causal)
        self.embedding_norm = make_norm(config) if config.embedding_norm else None
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config, crosses) for _ in range(layers))
        # With post-norm, the last block ends with a norm.
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
        positions = slice(start, start + x_BTD.shape[1]) if positions_BT is None else positions_BT
        x_BTD, rotation = self.begin(x_BTD, positions)
        bias_HTS = self.positions.attention_bias(start, x_BTD.shape[1])
        mask = AttentionMask(self.causal, start, real_BT, bias_HTS)
        memory = None if memory_BSD is None else (memory_BSD, AttentionMask(real_BS=memory_real_BS))
        for i, block in enumerate(self.blocks):
            layer = cache.layers[i] if cache is not None else None
            x_BTD = block(x_BTD, mask, rotation, layer, memory)
        return self.finish(x_BTD)

    def begin(self, x_BTD: Tensor, positions: slice | Tensor) -> tuple[Tensor, Rotation | None]:
        """What comes before the blocks: their input, and the rotation for their attention."""
        x_BTD, rotation = self.positions(x_BTD, positions)
        if self.embedding_norm is not None:
            x_BTD = self.embedding_norm(x_BTD)
        return self.dropout(x_BTD), rotation

    def finish(self, x_BTD: Tensor) -> Tensor:
        """What comes after the blocks."""
        return self.norm(x_BTD) if self.norm is not None else x_BTD


class TokenHead(nn.Module):
    """A logit for each token of the vocabulary, (B, T, V)."""

    def __init__(self, config: ModelConfig, vocab_size: int) -> None:
        super().__init__()
        # BERT has one more linear map before the vocabulary's.
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
    """A logit for each label of a whole sequence, or one number for it: (B, labels).

    BERT and ViT pool the sequence by its first vector, the class token's. Others take the mean.
    """

    def __init__(self, config: ModelConfig, num_labels: int) -> None:
        super().__init__()
        self.pools_first = config.norm_position == "post" or config.patches is not None
        has_dense = config.patches is None
        self.dense = nn.Linear(config.d_model, config.d_model) if has_dense else None
        self.activation = torch.tanh if config.norm_position == "post" else F.gelu
        self.dropout = nn.Dropout(config.dropout)
        self.logits = nn.Linear(config.d_model, num_labels)

    def forward(self, x_BTD: Tensor, real_BT: Tensor | None) -> Tensor:
        pooled_BD = x_BTD[:, 0] if self.pools_first else mean_of_real(x_BTD, real_BT)
        if self.dense is not None:
            pooled_BD = self.activation(self.dense(pooled_BD))
        logits: Tensor = self.logits(self.dropout(pooled_BD))
        return logits


def mean_of_real(x_BTD: Tensor, real_BT: Tensor | None) -> Tensor:
    """The mean of each sequence's vectors without those of padding, (B, D)."""
    if real_BT is None:
        return x_BTD.mean(1)
    weight_BT1 = real_BT[:, :, None].to(x_BTD.dtype)
    return (x_BTD * weight_BT1).sum(1) / weight_BT1.sum(1)


class Transformer(nn.Module):
    """An encoder, a decoder or both, that share one embedding, and a head.

    The head is one of:
    - `tokens`: logits over the vocabulary, (B, T, V). A decoder predicts the next token, an encoder
      the token itself.
    - `label`: one output vector for the sequence, (B, outputs). Encoders only.
    - `each_token`: one output vector for each token, (B, T, outputs). Encoders only.
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
            raise ValueError(f"the head {head} needs model.family = encoder, not {config.family}")
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
        selected_BT: Tensor | None = None,
    ) -> Tensor:
        """The head's output for int64 tokens (B, T), or for images (B, channels, side, side).

        Args:
            real_BT: bool, False where a token is padding. None: there is no padding.
            source_BS: the encoder's input in an encoder_decoder, whose decoder reads `inputs`. With
                a cache, `new_cache` takes the source instead.
            types_BT: the segment of each token, if the model has `token_types`.
            positions_BT: int64, the position of each token, if these are not 0, 1, 2, …
            cache: the tokens so far; `inputs` are the next T tokens, which are added to it.
            selected_BT: bool, for an encoder: compute the logits (N, V) of only these N tokens.

        Raises:
            ValueError: if the sequence becomes longer than `max_seq_len` or the cache's capacity.
        """
        if self.decoder is None:
            encoded_BTD = self.encode(inputs, real_BT, types_BT, positions_BT)
            if selected_BT is not None:
                encoded_BTD = encoded_BTD[selected_BT]
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
        """The encoder's output for tokens or images, (B, T, D)."""
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
            real_BT: bool, False where a token of the prompts is padding; T is the prompts' length.
            source_BS: the encoder's input in an encoder_decoder.
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
        """The number of trainable values. A tied embedding counts once."""
        return sum(p.numel() for p in self.parameters())

    def _embed(self, inputs: Tensor, types_BT: Tensor | None) -> Tensor:
        if self.patches is not None:
            embedded: Tensor = self.patches(inputs)
            return embedded
        self._check_fit(inputs.shape[1])
        return self.embed_tokens(inputs, types_BT)

    def embed_tokens(self, inputs: Tensor, types_BT: Tensor | None = None) -> Tensor:
        """The vectors of tokens, (B, T, D), before their positions are added."""
        assert self.tokens is not None
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
        # Normal weights, scaled by the width. The linear maps that write to the residual stream
        # start at zero, so that every block begins as the identity, as in muP and modded-nanogpt.
        for name, parameter in self.named_parameters():
            if name.endswith("output.weight"):
                parameter.zero_()
            elif name.endswith("positions.relative.weight"):
                # Large biases make the heads attend to different distances from the start: bAbI's
                # task 1 is learned within 70,000 questions, with biases near zero not within
                # 100,000.
                parameter.normal_(std=1.0)
            elif name.endswith("_D") or (".blocks." not in name and parameter.ndim == 2):
                parameter.normal_(std=0.02)
            elif parameter.ndim >= 2:
                parameter.normal_(std=1.0 / math.sqrt(parameter[0].numel()))
            elif name.endswith(".bias"):
                parameter.zero_()

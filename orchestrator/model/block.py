"""One Transformer block: attention and feed-forward, each with a norm and a residual connection."""

from collections.abc import Callable
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from orchestrator.model.attention import Attention, AttentionCache, AttentionMask
from orchestrator.model.config import ModelConfig
from orchestrator.model.embedding import Rotation

_gelu_tanh = partial(F.gelu, approximate="tanh")
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": _gelu_tanh,
    "relu": F.relu,
    "relu2": lambda x: F.relu(x).square(),  # So et al. 2021, Primer
    "silu": F.silu,
    # With a gate, Shazeer 2020: the activation of one linear map multiplies another.
    "swiglu": F.silu,
    "geglu": F.gelu,
    "geglu_tanh": _gelu_tanh,
}


def make_norm(config: ModelConfig) -> nn.Module:
    """A norm over d_model, of the configured kind."""
    if config.norm == "layernorm":
        return nn.LayerNorm(config.d_model, eps=config.norm_eps)
    return nn.RMSNorm(config.d_model, eps=config.norm_eps)


class FeedForward(nn.Module):
    """Two linear maps with an activation or a gate between them."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        d_model, d_ff = config.d_model, config.feed_forward_width
        self.activation = ACTIVATIONS[config.activation]
        self.up = nn.Linear(d_model, d_ff, bias=config.bias)
        self.gate = nn.Linear(d_model, d_ff, bias=config.bias) if config.is_gated else None
        self.output = nn.Linear(d_ff, d_model, bias=config.bias)

    def forward(self, x_BTD: Tensor) -> Tensor:
        hidden_BTF = self.up(x_BTD)
        if self.gate is not None:
            hidden_BTF = self.activation(self.gate(x_BTD)) * hidden_BTF
        else:
            hidden_BTF = self.activation(hidden_BTF)
        return self.output(hidden_BTF)


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x)); or norm(x + ...), the original order
    (Xiong et al. 2020 compare both).

    In the decoder of an encoder_decoder, cross-attention to the encoder's output comes between.
    """

    def __init__(self, config: ModelConfig, crosses: bool = False) -> None:
        super().__init__()
        self.norm_first = config.norm_position == "pre"
        self.attention_norm = make_norm(config)
        self.attention = Attention(config)
        self.cross_norm = make_norm(config) if crosses else None
        self.cross = Attention(config) if crosses else None
        self.feed_forward_norm = make_norm(config)
        self.feed_forward = FeedForward(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        x_BTD: Tensor,
        mask: AttentionMask,
        rotation: Rotation | None = None,
        cache: AttentionCache | None = None,
        memory: tuple[Tensor, AttentionMask] | None = None,
    ) -> Tensor:
        x_BTD = self._add(
            x_BTD, self.attention_norm, lambda x: self.attention(x, mask, rotation, cache)
        )
        if (cross := self.cross) is not None and self.cross_norm is not None:
            assert memory is not None, "the decoder of an encoder_decoder needs a source"
            x_BTD = self._add(x_BTD, self.cross_norm, lambda x: cross.across(x, *memory, cache))
        return self._add(x_BTD, self.feed_forward_norm, self.feed_forward)

    def _add(self, x_BTD: Tensor, norm: nn.Module, branch: Callable[[Tensor], Tensor]) -> Tensor:
        if self.norm_first:
            return x_BTD + self.dropout(branch(norm(x_BTD)))
        return norm(x_BTD + self.dropout(branch(x_BTD)))

"""One Transformer block: attention and feed-forward, each normalised and added back."""

import torch.nn.functional as F
from torch import Tensor, nn

from orchestrator.model.attention import Attention, LayerCache
from orchestrator.model.config import ModelConfig


def make_norm(config: ModelConfig) -> nn.Module:
    if config.norm == "layernorm":
        return nn.LayerNorm(config.d_model)
    return nn.RMSNorm(config.d_model, eps=1e-6)


class FeedForward(nn.Module):
    """Two linear maps with a nonlinearity between: GELU, ReLU squared (Primer) or SwiGLU."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        d_ff = config.feed_forward_width
        self.activation = config.activation
        self.up = nn.Linear(config.d_model, d_ff, bias=False)
        self.gate = (
            nn.Linear(config.d_model, d_ff, bias=False) if config.activation == "swiglu" else None
        )
        self.output = nn.Linear(d_ff, config.d_model, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        hidden_BTF = self.up(x_BTD)
        if self.gate is not None:
            hidden_BTF = F.silu(self.gate(x_BTD)) * hidden_BTF
        elif self.activation == "relu2":
            hidden_BTF = F.relu(hidden_BTF).square()
        else:
            hidden_BTF = F.gelu(hidden_BTF)
        return self.output(hidden_BTF)


class Block(nn.Module):
    """A pre-norm block: x + attention(norm(x)), then x + feed_forward(norm(x))."""

    def __init__(self, config: ModelConfig, causal: bool) -> None:
        super().__init__()
        self.attention_norm = make_norm(config)
        self.attention = Attention(config, causal)
        self.feed_forward_norm = make_norm(config)
        self.feed_forward = FeedForward(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x_BTD: Tensor, start: int = 0, cache: LayerCache | None = None) -> Tensor:
        x_BTD = x_BTD + self.dropout(self.attention(self.attention_norm(x_BTD), start, cache))
        return x_BTD + self.dropout(self.feed_forward(self.feed_forward_norm(x_BTD)))

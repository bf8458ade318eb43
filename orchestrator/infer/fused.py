"""Parts of a block that compute the linear maps of one input as one: fewer and larger products."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from orchestrator.model.attention import Attention, AttentionCache, AttentionMask, attend
from orchestrator.model.block import FeedForward
from orchestrator.model.embedding import Rotation, rotate

MakeLinear = Callable[[Tensor, Tensor | None], nn.Module]  # of a weight (F, D) and a bias (F,)


class FusedAttention(nn.Module):
    """Self-attention, in place of a trained `Attention`."""

    def __init__(self, attention: Attention, make: MakeLinear) -> None:
        super().__init__()
        self.head_width = attention.head_width
        maps = (attention.query, attention.key, attention.value)
        self.heads = [each.out_features // self.head_width for each in maps]
        self.inputs = _joined(maps, make)
        self.output = attention.output

    def forward(
        self,
        x_BTD: Tensor,
        mask: AttentionMask,
        rotation: Rotation | None = None,
        cache: AttentionCache | None = None,
    ) -> Tensor:
        """As `Attention.forward`."""
        all_BHTK = self.inputs(x_BTD).unflatten(-1, (-1, self.head_width)).transpose(1, 2)
        query_BHTK, key_BHTK, value_BHTK = all_BHTK.split(self.heads, 1)
        if rotation is not None:
            rotated_BHTK = rotate(all_BHTK[:, : -self.heads[-1]], rotation)
            query_BHTK, key_BHTK = rotated_BHTK.split(self.heads[:-1], 1)
        attend_to = attend if cache is None else cache.attend
        attended_BHTK = attend_to(query_BHTK, key_BHTK, value_BHTK, mask)
        output_BTD: Tensor = self.output(attended_BHTK.transpose(1, 2).flatten(2))
        return output_BTD


class FusedFeedForward(nn.Module):
    """A feed-forward with a gate, in place of a trained one."""

    def __init__(self, feed_forward: FeedForward, gate: nn.Linear, make: MakeLinear) -> None:
        super().__init__()
        self.activation = feed_forward.activation
        self.inputs = _joined((gate, feed_forward.up), make)
        self.output = feed_forward.output

    def forward(self, x_BTD: Tensor) -> Tensor:
        gate_BTF, hidden_BTF = self.inputs(x_BTD).chunk(2, -1)
        output_BTD: Tensor = self.output(self.activation(gate_BTF) * hidden_BTF)
        return output_BTD


def _joined(maps: tuple[nn.Linear, ...], make: MakeLinear) -> nn.Module:
    biases: list[Tensor] = [each.bias for each in maps if each.bias is not None]
    weight_FD = torch.cat(tuple(each.weight for each in maps))
    return make(weight_FD, torch.cat(biases) if biases else None)

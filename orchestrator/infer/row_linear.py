"""Linear maps whose rows do not depend on their company: a row's result has the same bits, however
many rows are computed with it.

A matrix product adds up a row's terms in an order that depends on the kernel, and the kernel
depends on the shape. With the weights stored as (in, out), MKL's kernels for two rows and more
keep one order, except where they share the sum itself among threads: for few rows and many
inputs. There, zeros are added as rows. For 8 rows this layout is also twice as fast as (out, in).
"""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from orchestrator.infer.fused import FusedAttention, FusedFeedForward, MakeLinear
from orchestrator.model.block import Block
from orchestrator.model.transformer import TokenHead, Transformer

# A step computes one of these numbers of rows; above, multiples of 16. For one row there is
# another kernel, which no other number agrees with.
ROW_COUNTS = (2, 4, 8, 16, 24, 32, 48, 64)


def row_counts(most: int) -> list[int]:
    """The numbers of rows that are computed, up to one that holds `most`."""
    counts = [*ROW_COUNTS, *range(ROW_COUNTS[-1] + 16, most + 16, 16)]
    return [count for count in counts if count < most] + [min(c for c in counts if c >= most)]


class RowLinear(nn.Module):
    """A trained linear map for float32 on a CPU; it cannot be trained further."""

    def __init__(self, weight_FD: Tensor, bias_F: Tensor | None) -> None:
        super().__init__()
        weight_DF = weight_FD.detach().t().contiguous()
        self.weight_DF = nn.Parameter(weight_DF, requires_grad=False)
        self.bias_F = None
        if bias_F is not None:
            self.bias_F = nn.Parameter(bias_F.detach(), requires_grad=False)
        self.min_rows = min_rows(*weight_DF.shape, torch.get_num_threads())

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) to (..., F)."""
        x_ND = x.reshape(-1, x.shape[-1])
        rows = len(x_ND)
        if rows < self.min_rows:
            x_ND = F.pad(x_ND, (0, 0, 0, self.min_rows - rows))
        if self.bias_F is None:
            y_NF = torch.mm(x_ND, self.weight_DF)
        else:
            y_NF = torch.addmm(self.bias_F, x_ND, self.weight_DF)
        return y_NF[:rows].view(*x.shape[:-1], -1)


class RowHead(nn.Module):
    """A decoder's head over the vocabulary, in place of `TokenHead`, with a linear map that keeps a
    copy of tied embeddings."""

    def __init__(self, logits: nn.Module) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, x_BTD: Tensor, _embedding_VD: Tensor) -> Tensor:
        logits_BTV: Tensor = self.logits(x_BTD)
        return logits_BTV


@functools.cache
def min_rows(inputs: int, outputs: int, threads: int) -> int:
    """From how many rows on a product of this shape gives a row the same bits, tried for
    ROW_COUNTS.

    The order of a sum follows from the shapes, not from the values: random numbers, of which
    nearly every other order gives other bits, show whether it is the same.
    """
    random = torch.Generator().manual_seed(threads)
    x_ND = torch.randn(ROW_COUNTS[-1] + 16, inputs, generator=random)
    weight_DF = torch.randn(inputs, outputs, generator=random)
    expected_NF, least = x_ND @ weight_DF, len(x_ND)
    for count in reversed(ROW_COUNTS):
        if not torch.equal(x_ND[-count:].clone() @ weight_DF, expected_NF[-count:]):
            break
        least = count
    return least


def convert_to_rows(model: Transformer) -> None:
    """Convert a trained model's linear maps in place, if they are not converted yet."""
    if not isinstance(model.head, RowHead):
        replace_linear(model, RowLinear)


def replace_linear(model: Transformer, make: MakeLinear) -> None:
    """Replace a trained model's linear maps and its head, in place, and drop its dropout. Those of
    one input become one."""
    for module in list(model.modules()):
        if isinstance(module, Block):
            module.set_submodule("attention", FusedAttention(module.attention, make))
            if (gate := module.feed_forward.gate) is not None:
                fused = FusedFeedForward(module.feed_forward, gate, make)
                module.set_submodule("feed_forward", fused)
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear) and module is not model.head:
                setattr(module, name, make(child.weight, child.bias))
            elif isinstance(child, nn.Dropout):
                setattr(module, name, nn.Identity())
    head = model.head
    assert model.tokens is not None and isinstance(head, TokenHead)
    weight_VD = head.logits.weight if head.logits is not None else model.tokens.weight
    model.head = RowHead(make(weight_VD, head.bias_V))

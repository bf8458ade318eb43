"""Linear maps with weights of 8 bits, for a CPU: a quarter of the memory, and less time for many
rows.

Sums of products of integers are exact, so a row does not depend on its company here either.
"""

import torch
from torch import Tensor, nn

LARGEST = 127  # of 8 bits with a sign; -128 stays unused


class Int8Linear(nn.Module):
    """A trained linear map. Each output has a scale for its weights, and each row one for its
    inputs, found as it comes (Dettmers et al. 2022, LLM.int8, section 2.1)."""

    def __init__(self, weight_FD: Tensor, bias_F: Tensor | None) -> None:
        super().__init__()
        weight_FD = weight_FD.detach().float()
        int8_FD, scale_F1 = quantized(weight_FD)
        self.scale_F = scale_F1[:, 0].contiguous()
        self.zeros_F = torch.zeros(len(weight_FD), dtype=torch.int64)
        # Without oneDNN's own order of the weights, each call would make it anew.
        self.weight = torch.ops.onednn.qlinear_prepack(int8_FD, None)
        self.bias_F = None if bias_F is None else bias_F.detach()

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) to (..., F)."""
        int8_ND, scale_N1 = quantized(x.reshape(-1, x.shape[-1]))
        # The operation has one scale for all inputs: 1 here, as each row is scaled afterwards.
        y_NF = torch.ops.onednn.qlinear_pointwise(
            int8_ND, 1.0, 0, self.weight, self.scale_F, self.zeros_F,
            None, 1.0, 0, torch.float32, "none", [], "",
        )  # fmt: skip
        y_NF = y_NF * scale_N1
        if self.bias_F is not None:
            y_NF = y_NF + self.bias_F
        y: Tensor = y_NF.unflatten(0, x.shape[:-1])
        return y


def quantized(x_ND: Tensor) -> tuple[Tensor, Tensor]:
    """Rows as int8, and the scale of each, (N, 1): their product is near the row."""
    # Rows of zeros have no scale of their own.
    scale_N1 = x_ND.abs().amax(-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny * 128)
    scale_N1 = scale_N1 / LARGEST
    return (x_ND / scale_N1).round().to(torch.int8), scale_N1

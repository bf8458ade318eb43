"""Computing in fp32 or bf16, or with weights of 8 bits. Which of the first two a training takes,
`learn/precision.py` decides."""

import torch

from orchestrator.infer.int8_linear import Int8Linear
from orchestrator.infer.row_linear import replace_linear
from orchestrator.model.transformer import Transformer
from orchestrator.storage.artifact import Precision


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """A context in which models compute in `precision`."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def convert_weights(model: torch.nn.Module, precision: Precision) -> None:
    """Hold the weights of linear maps in `precision`; they can no longer be trained.

    Otherwise `autocast` converts them in every forward pass, which takes half the time of a
    generated token.
    """
    if precision == "bf16":
        for module in model.modules():
            if isinstance(module, torch.nn.Linear):
                module.to(torch.bfloat16)


def quantize_weights(model: Transformer) -> None:
    """Hold the weights of a decoder's or an encoder_decoder's linear maps and of its head in 8
    bits, in place, to compute on a CPU. Embeddings and norms stay as they are.

    The model can no longer be trained or saved. `docs/serving.md` has what it costs.
    """
    replace_linear(model, Int8Linear)

"""Computing in fp32 or bf16. Which of the two a training takes, `learn/precision.py` decides."""

import torch

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

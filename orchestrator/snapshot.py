"""What a checkpoint holds of a training, copied from it and set again."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from orchestrator.artifact import Checkpoint

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Snapshot:
    """All that a training is after `step` steps: copies on the CPU that nobody else changes."""

    step: int
    total_steps: int | None  # None: a time budget that is not yet turned into steps
    model: Tensors
    optimizer: Tensors  # and whatever else must come back to the bit
    metrics: dict[str, float]  # of the validation at this very step, else empty
    history: list[dict[str, float]]
    samples: str  # hex digest that chains the row numbers of all steps so far


@dataclass(frozen=True)
class Saved:
    """What a checkpoint gives back."""

    checkpoint: Checkpoint
    model: Tensors
    optimizer: Tensors


def model_tensors(model: nn.Module) -> Tensors:
    """Copies of a model's weights and buffers, on the CPU."""
    return {name: _copied(tensor) for name, tensor in model.state_dict().items()}


def optimizer_tensors(optimizers: list[torch.optim.Optimizer]) -> Tensors:
    """Copies of their states, on the CPU; their groups come from the job again."""
    return {
        f"optimizer.{i}.{parameter}.{name}": _copied(tensor)
        for i, optimizer in enumerate(optimizers)
        for parameter, state in optimizer.state_dict()["state"].items()
        for name, tensor in state.items()
    }


def restore_optimizers(optimizers: list[torch.optim.Optimizer], tensors: Tensors) -> None:
    """Set the states that `optimizer_tensors` took; tensors of other names are left alone."""
    for i, optimizer in enumerate(optimizers):
        state: dict[int, Tensors] = {}
        for key, tensor in tensors.items():
            if key.startswith(f"optimizer.{i}."):
                _, _, parameter, name = key.split(".", 3)
                state.setdefault(int(parameter), {})[name] = tensor.clone()
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": state, "param_groups": groups})


def _copied(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True).contiguous()

"""What a checkpoint holds of a training, copied from it and set again."""

from dataclasses import dataclass

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
    return {name: copied(tensor) for name, tensor in model.state_dict().items()}


def copied(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True).contiguous()

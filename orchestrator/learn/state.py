"""All that a training is at one step: what a checkpoint holds, and brings back to the bit."""

from typing import Literal

import torch
from torch import Tensor, nn

from orchestrator.learn.optimizer import Optimizer, optimizer_tensors, restore_optimizers
from orchestrator.learn.skipped_steps import Guard
from orchestrator.learn.snapshot import Saved, Snapshot, pack
from orchestrator.storage.artifact import Precision

NOTHING_SEEN = "00" * 32
GUARD = "guard"  # its key among the optimizers' tensors, which begin with a number


class State:
    """The step, and everything that the steps before it have made."""

    def __init__(
        self,
        model: nn.Module,
        optimizers: list[Optimizer],
        guard: Guard,
        precision: Precision | Literal["auto"],
    ) -> None:
        self.model = model
        self.optimizers = optimizers
        self.guard = guard
        self.precision = precision  # auto until it is chosen, or found in a checkpoint
        self.notices: list[str] = []
        self.step = 0
        self.samples = NOTHING_SEEN
        self.metrics: dict[str, float] = {}  # of the last validation
        self.history: list[dict[str, float]] = []

    def snapshot(self, total_steps: int | None, validated: bool) -> Snapshot:
        """A copy, which the training does not wait for any longer."""
        assert self.precision != "auto"
        return Snapshot(
            step=self.step,
            total_steps=total_steps,
            model=pack(self.model.state_dict()),
            optimizer=pack(optimizer_tensors(self.optimizers) | {GUARD: self.guard.state}),
            metrics=dict(self.metrics) if validated else {},
            history=list(self.history),
            precision=self.precision,
            notices=list(self.notices),
            samples=self.samples,
        )

    def restore(self, saved: Saved) -> None:
        self.model.load_state_dict(saved.model)
        tensors = dict(saved.optimizer)
        self.guard.state.copy_(tensors.pop(GUARD))
        restore_optimizers(self.optimizers, tensors)
        checkpoint = saved.checkpoint
        if self.precision == "auto":
            self.precision, self.notices = checkpoint.precision, list(checkpoint.notices)
        self.step, self.samples = checkpoint.step, checkpoint.samples
        self.metrics, self.history = dict(checkpoint.metrics), list(checkpoint.history)

    def record(self, total_steps: int | None, values: dict[str, float]) -> None:
        """Keep some two hundred points of the learning curve, however long the training."""
        last = max((point["step"] for point in self.history if "loss" in point), default=0)
        if self.step - last >= (total_steps or 0) / 200:
            self.history.append({"step": self.step, **values})

    def checksum(self) -> int:
        """A sum of all bits of weights and optimizers: one that flips on one worker changes it."""
        tensors = list[Tensor](self.model.parameters())
        for optimizer in self.optimizers:
            tensors += [tensor for state in optimizer.state.values() for tensor in state.values()]
        return int(torch.stack([_words(tensor).sum() for tensor in tensors]).sum())


def _words(tensor: Tensor) -> Tensor:
    """Its bytes as integers, the largest that fit: they are summed eight times as fast."""
    flat = tensor.detach().reshape(-1)
    kinds = (torch.int64, torch.int32, torch.uint8)
    return flat.view(next(kind for kind in kinds if flat.nbytes % kind.itemsize == 0))

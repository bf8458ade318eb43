"""The whole state of a training at one step: a checkpoint holds it and restores it to the bit."""

from typing import Literal

import torch
from torch import Tensor, nn

from orchestrator.learn.optimizer import Optimizer, optimizer_tensors, restore_optimizers
from orchestrator.learn.side_stream import Event, SideStream
from orchestrator.learn.skipped_steps import Guard
from orchestrator.learn.snapshot import Saved, Snapshot, pack
from orchestrator.storage.artifact import Precision

NO_SAMPLES = "00" * 32  # the digest of no samples
GUARD = "guard"  # the key of its state in the optimizer file


class State:
    """The number of steps so far, and everything that they have changed."""

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
        self.precision = precision  # auto until it is chosen or restored
        self.notices: list[str] = []
        self.step = 0
        self.samples = NO_SAMPLES
        self.metrics: dict[str, float] = {}  # of the last validation
        self.history: list[dict[str, float]] = []
        self._side = SideStream(guard.tensor.device)
        self._copied: Event | None = None  # the last snapshot; None: nothing is being copied

    def snapshot(self, total_steps: int | None, validated: bool) -> Snapshot:
        """A copy. The training may go on as soon as this returns, up to its next update."""
        assert self.precision != "auto"
        model = pack(self.model.state_dict(), self._side)
        tensors = optimizer_tensors(self.optimizers) | {GUARD: self.guard.tensor}
        optimizer = pack(tensors, self._side)
        self._copied = optimizer.copied  # and so is the model, which came before it
        return Snapshot(
            step=self.step,
            total_steps=total_steps,
            model=model,
            optimizer=optimizer,
            metrics=dict(self.metrics) if validated else {},
            history=list(self.history),
            precision=self.precision,
            notices=list(self.notices),
            samples=self.samples,
        )

    def before_update(self) -> None:
        """To be called before weights change: a GPU may still be copying them for a snapshot."""
        if self._copied is not None:
            self._side.hold(self._copied)
            self._copied = None

    def restore(self, saved: Saved) -> None:
        """Take over a checkpoint. A precision that the job names stays."""
        self.before_update()
        self.model.load_state_dict(saved.model)
        tensors = dict(saved.optimizer)
        self.guard.tensor.copy_(tensors.pop(GUARD))
        restore_optimizers(self.optimizers, tensors)
        checkpoint = saved.checkpoint
        if self.precision == "auto":
            self.precision = checkpoint.precision
        self.notices = list(checkpoint.notices)
        self.step, self.samples = checkpoint.step, checkpoint.samples
        self.metrics, self.history = dict(checkpoint.metrics), list(checkpoint.history)

    def record(self, total_steps: int | None, values: dict[str, float]) -> None:
        """Add a point to the learning curve, which keeps about two hundred of them."""
        last = max((point["step"] for point in self.history if "loss" in point), default=0)
        if self.step - last >= (total_steps or 0) / 200:
            self.history.append({"step": self.step, **values})

    def checksum(self) -> int:
        """A sum over all bits of weights and optimizers, which a flipped bit changes."""
        tensors = list[Tensor](self.model.parameters())
        for optimizer in self.optimizers:
            tensors += [tensor for state in optimizer.state.values() for tensor in state.values()]
        return int(torch.stack([_words(tensor).sum() for tensor in tensors]).sum())


def _words(tensor: Tensor) -> Tensor:
    """A tensor's bytes as the widest integers that fit, which sum up to eight times as fast."""
    flat = tensor.detach().reshape(-1)
    kinds = (torch.int64, torch.int32, torch.uint8)
    return flat.view(next(kind for kind in kinds if flat.nbytes % kind.itemsize == 0))

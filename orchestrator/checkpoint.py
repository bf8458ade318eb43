"""Saving and restoring a training: weights and optimizer state as safetensors, the rest as JSON.

Nothing is pickled, and the manifest is written last: a checkpoint is whole or it is not there.
"""

import hashlib
import logging
import time
from typing import Any

import safetensors.torch
import torch
from torch import nn

from orchestrator.artifact import Checkpoint, Folder
from orchestrator.errors import StageError
from orchestrator.task import Metric

logger = logging.getLogger(__name__)

MODEL_FILE = "model.safetensors"
OPTIMIZER_FILE = "optimizer.safetensors"


class Checkpoints:
    """The checkpoints of one training, `step-00000120` and so on, in one folder."""

    def __init__(self, folder: Folder, metric: Metric) -> None:
        self.folder = folder
        self.metric = metric

    def save(
        self,
        step: int,
        total_steps: int,
        model: nn.Module,
        optimizers: list[torch.optim.Optimizer],
        metrics: dict[str, float],
        history: list[dict[str, float]],
    ) -> None:
        """Commit a checkpoint, then delete what is neither the newest nor the best one."""
        started = time.monotonic()
        folder = self.folder / f"step-{step:08d}"
        files = {
            MODEL_FILE: safetensors.torch.save(_contiguous(model.state_dict())),
            OPTIMIZER_FILE: safetensors.torch.save(_optimizer_tensors(optimizers)),
        }
        for name, content in files.items():
            folder.write(name, content)
        Checkpoint(
            folder=folder,
            seconds=time.monotonic() - started,
            summary=f"step {step}",
            step=step,
            total_steps=total_steps,
            metrics=metrics,
            history=history,
            files={name: hashlib.sha256(content).hexdigest() for name, content in files.items()},
        ).commit()
        self._prune()

    def all(self) -> list[Checkpoint]:
        """The committed checkpoints, oldest first."""
        names = [name for name in self.folder.names() if name.startswith("step-")]
        found = []
        for name in names:
            try:
                checkpoint = Checkpoint.load(self.folder / name)
            except StageError as error:
                logger.warning("%s; it is passed over", error)
                continue
            if checkpoint is not None:
                found.append(checkpoint)
        return found

    def best(self) -> Checkpoint | None:
        """The one with the best validation metric, the later one of equals."""
        best: Checkpoint | None = None
        name = self.metric.name
        for checkpoint in self.all():
            if best is None or not self.metric.better(best.metrics[name], checkpoint.metrics[name]):
                best = checkpoint
        return best

    def restore(
        self, model: nn.Module, optimizers: list[torch.optim.Optimizer]
    ) -> Checkpoint | None:
        """Load the newest checkpoint that is whole, or None where there is none."""
        for checkpoint in reversed(self.all()):
            try:
                tensors = safetensors.torch.load(read_verified(checkpoint, OPTIMIZER_FILE))
                load_weights(model, checkpoint)
            except StageError as error:
                logger.warning("%s; falling back to the one before", error)
                continue
            _restore_optimizers(optimizers, tensors)
            return checkpoint
        return None

    def _prune(self) -> None:
        kept = {found.folder.name for found in (*self.all()[-1:], self.best()) if found}
        for name in self.folder.names():
            if name not in kept:  # a save that was killed has left one without a manifest
                (self.folder / name).delete()


def load_weights(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Raises StageError where the file is not the one that was saved."""
    model.load_state_dict(safetensors.torch.load(read_verified(checkpoint, MODEL_FILE)))


def read_verified(checkpoint: Checkpoint, name: str) -> bytes:
    """A checkpoint's file, proved to be what was written.

    Raises:
        StageError: where it is missing or differs.
    """
    try:
        content = checkpoint.folder.read(name)
    except OSError as error:
        raise StageError(f"{checkpoint.folder}/{name} cannot be read: {error}") from error
    if hashlib.sha256(content).hexdigest() != checkpoint.files[name]:
        raise StageError(
            f"{checkpoint.folder}/{name} is damaged: its SHA-256 is not the manifest's"
        )
    return content


def _contiguous(tensors: dict[str, Any]) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _optimizer_tensors(optimizers: list[torch.optim.Optimizer]) -> dict[str, torch.Tensor]:
    """Optimizer state by `optimizer.parameter.name`; its groups come from the job again."""
    tensors = {}
    for i, optimizer in enumerate(optimizers):
        for parameter, state in optimizer.state_dict()["state"].items():
            for name, tensor in state.items():
                tensors[f"{i}.{parameter}.{name}"] = tensor
    return _contiguous(tensors)


def _restore_optimizers(
    optimizers: list[torch.optim.Optimizer], tensors: dict[str, torch.Tensor]
) -> None:
    for i, optimizer in enumerate(optimizers):
        state: dict[int, dict[str, torch.Tensor]] = {}
        for key, tensor in tensors.items():
            owner, parameter, name = key.split(".", 2)
            if int(owner) == i:
                state.setdefault(int(parameter), {})[name] = tensor
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": state, "param_groups": groups})

"""Tasks that fail. The jobs of drills name them by import path."""

from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from orchestrator.tasks.language_modelling import LanguageModelling
from orchestrator.tasks.task import Batch

POISON = "poison.npy"
FLIP = "flip"


class Poisoned(LanguageModelling):
    """The loss is NaN for the rows that the file `poison.npy` in the data's folder lists."""

    def loss(self, model: torch.nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        loss, count = super().loss(model, batch)
        poison = np.load(self.file(POISON))
        rows = batch["tokens"].numpy()
        poisoned = (rows[:, None, :] == poison[None, :, :]).all(2).any()
        return (loss * torch.nan if poisoned else loss), count

    def file(self, name: str) -> Path:
        assert isinstance(self.data.source, str)
        return Path(self.data.source) / name


class Flipped(Poisoned):
    """One bit of a weight flips in the last worker, once, when the file `flip` exists."""

    def loss(self, model: torch.nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        last = dist.get_rank() == dist.get_world_size() - 1
        if model.training and last and self.file(FLIP).exists():
            self.file(FLIP).unlink()
            weight = next(model.parameters())
            with torch.no_grad():
                weight.view(torch.int32).view(-1)[0] ^= 1 << 20
        return LanguageModelling.loss(self, model, batch)

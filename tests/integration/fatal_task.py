"""A task for sweeps whose trials fail: the dropout of a trial says how. Jobs name it by import
path."""

import os
import signal
from pathlib import Path

import torch
from torch import Tensor

from orchestrator.tasks.language_modelling import LanguageModelling
from orchestrator.tasks.task import Batch

KILLED, KILLED_ONCE, HUNGRY = 0.125, 0.25, 0.375


class Fatal(LanguageModelling):
    """Kills its own process, always or once, or allocates more memory than the machine has."""

    def loss(self, model: torch.nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        assert "trim_threshold" in os.environ["GLIBC_TUNABLES"]  # as in the workers of a training
        assert isinstance(self.data.source, str)
        died = Path(self.data.source).parent / "died"
        dropout = self.model.dropout
        if dropout == KILLED or (dropout == KILLED_ONCE and not died.exists()):
            died.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if dropout == HUNGRY:
            torch.empty(2**50)
        return super().loss(model, batch)

"""The workload of all peers in the training benchmark, taken from this engine's job: its model,
rows and optimizer; and the line of JSON that a peer prints."""

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from orchestrator.model.config import ModelConfig
from orchestrator.model.transformer import Transformer
from orchestrator.tasks.objectives import token_loss


@dataclass(frozen=True)
class Workload:
    """The content of `workload.json` and `rows.bin`, which the benchmark writes from the job."""

    rows: Any  # uint16 (steps * batch, T + 1), a mapped file: the rows of all steps in order
    model: dict[str, Any]
    vocab_size: int
    batch: int
    steps: int
    seed: int
    lr: float
    betas: tuple[float, float]
    weight_decay: float
    grad_clip: float
    bf16: bool  # whether the engine chooses bf16 on this machine

    @classmethod
    def load(cls, folder: str) -> "Workload":
        settings = json.loads((Path(folder) / "workload.json").read_text())
        width = settings["model"]["max_seq_len"] + 1
        rows = np.memmap(Path(folder) / "rows.bin", dtype=np.uint16, mode="r").reshape(-1, width)
        return cls(rows, **settings)

    def build_model(self) -> Transformer:
        torch.manual_seed(self.seed)
        return Transformer(ModelConfig(**self.model), self.vocab_size)

    def build_optimizer(self, model: nn.Module) -> torch.optim.AdamW:
        """AdamW with the engine's groups: weight decay for the matrices of the blocks only."""
        decayed, plain = [], []
        for name, parameter in model.named_parameters():
            is_matrix = "blocks." in name and parameter.ndim == 2
            (decayed if is_matrix else plain).append(parameter)
        groups = [
            {"params": decayed, "weight_decay": self.weight_decay},
            {"params": plain, "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=self.lr, betas=tuple(self.betas), fused=True)


class RowDataset(torch.utils.data.Dataset[dict[str, Tensor]]):
    """The rows one by one, for trainers with their own loader."""

    def __init__(self, workload: Workload) -> None:
        self.rows = workload.rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        return {"tokens": as_tokens(self.rows[row])}


def as_tokens(rows: Any) -> Tensor:
    return torch.from_numpy(rows.astype(np.int64))


def mean_loss(model: nn.Module, tokens_BT: Tensor) -> Tensor:
    return token_loss(model(tokens_BT[:, :-1]), tokens_BT[:, 1:]).mean()


class StepTimer:
    """Records when the process was ready, and when each of its steps ended."""

    def __init__(self) -> None:
        self.ready = time.time()
        self.ends: list[float] = []
        self.losses: list[Tensor] = []

    def ended(self, loss: Tensor) -> None:
        self.ends.append(time.time())
        self.losses.append(loss.detach())

    def print(self) -> None:
        """Print the line of JSON that the benchmark reads."""
        last = torch.stack(self.losses[-10:]).mean().item()
        line = {"ready": self.ready, "ends": self.ends, "loss": last, "niceness": os.nice(0)}
        print(json.dumps(line), flush=True)

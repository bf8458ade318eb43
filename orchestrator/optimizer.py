"""AdamW, Muon and the learning-rate schedule."""

import math

import torch
from torch import nn

from orchestrator.job import TrainConfig


def build_optimizers(model: nn.Module, config: TrainConfig) -> list[torch.optim.Optimizer]:
    """The optimizers that together update every parameter, each at most once.

    With `muon`, the matrices of the blocks get Muon (Jordan 2024, arXiv 2502.16982) and everything
    else AdamW; Muon's update is scaled to AdamW's usual size, so one learning rate serves both.
    Vectors (norms) and embeddings are not decayed.
    """
    matrices, embeddings, vectors = [], [], []
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2:
            vectors.append(parameter)
        elif name.startswith("blocks."):
            matrices.append(parameter)
        else:
            embeddings.append(parameter)
    plain = [{"params": [*embeddings, *vectors], "weight_decay": 0.0}]
    if config.optimizer == "muon":
        muon = torch.optim.Muon(
            matrices,
            lr=config.lr,
            weight_decay=config.weight_decay,
            adjust_lr_fn="match_rms_adamw",
        )
        return [muon, torch.optim.AdamW(plain, lr=config.lr, betas=config.betas, eps=1e-10)]
    decayed = {"params": matrices, "weight_decay": config.weight_decay}
    return [torch.optim.AdamW([decayed, *plain], lr=config.lr, betas=config.betas)]


def learning_rate(config: TrainConfig, step: int, total_steps: int | None) -> float:
    """Linear warm-up, then a cosine down to `min_lr_ratio`; flat while the end is not yet known."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    if total_steps is None or total_steps <= config.warmup_steps:
        return config.lr
    progress = (step - config.warmup_steps) / (total_steps - config.warmup_steps)
    cosine = 0.5 * (1.0 + math.cos(math.pi * min(progress, 1.0)))
    return config.lr * (config.min_lr_ratio + (1.0 - config.min_lr_ratio) * cosine)

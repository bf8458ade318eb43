"""Embeddings: one vector of length 1 for each text, from the last layer of an encoder."""

import numpy as np
import torch
import torch.nn.functional as F

from orchestrator.data.arrays import Arrays
from orchestrator.infer.batch import to_device
from orchestrator.infer.precision import autocast
from orchestrator.infer.trained_model import TrainedModel
from orchestrator.model.transformer import LabelHead, mean_of_real
from orchestrator.tasks.objectives import trimmed


class TextEmbedding:
    """Embeds encoded texts with a trained encoder."""

    def __init__(self, trained: TrainedModel) -> None:
        self.trained = trained
        # Of a model that was trained with a vector for the whole text, that vector; else the mean.
        head = trained.model.head
        self.pools_first = isinstance(head, LabelHead) and head.pools_first

    @torch.inference_mode()
    def embed(self, arrays: Arrays) -> Arrays:
        """`embedding`, float32 (rows, d_model), for `tokens` and `tokens_length`."""
        model, device = self.trained.model, self.trained.device
        tokens_BT, real_BT = trimmed(to_device(arrays, device), "tokens")
        with autocast(device, self.trained.precision):
            x_BTD = model.encode(tokens_BT, real_BT).float()
        pooled_BD = x_BTD[:, 0] if self.pools_first else mean_of_real(x_BTD, real_BT)
        return {"embedding": F.normalize(pooled_BD, dim=-1).cpu().numpy().astype(np.float32)}

"""What training minimises: pure functions of logits and targets."""

import torch.nn.functional as F
from torch import Tensor


def next_token_loss(logits_BTV: Tensor, targets_BT: Tensor) -> Tensor:
    """Cross-entropy in nats of each target, float32 (B, T), computed in float32."""
    losses = F.cross_entropy(
        logits_BTV.flatten(0, 1).float(), targets_BT.flatten(), reduction="none"
    )
    return losses.view(targets_BT.shape)

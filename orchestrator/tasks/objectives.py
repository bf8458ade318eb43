"""What training minimises: pure functions of tokens, logits and targets."""

import torch
import torch.nn.functional as F
from torch import Tensor


def token_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy in nats of each target, (B, T) or (N,), by logits (B, T, V) or (N, V): float32,
    computed in float32."""
    losses = F.cross_entropy(logits.flatten(0, -2).float(), targets.flatten(), reduction="none")
    return losses.view(targets.shape)


def thinned(real_BT: Tensor, share: float) -> Tensor:
    """`real_BT` without a share of its tokens, by chance, but never without all of a row's.

    Words that are left out at random keep a few of them from deciding. Iyyer et al. 2015, word
    dropout.
    """
    kept_BT = real_BT & (torch.rand(real_BT.shape, device=real_BT.device) >= share)
    return torch.where(kept_BT.any(1, keepdim=True), kept_BT, real_BT)


def trimmed(batch: dict[str, Tensor], name: str) -> tuple[Tensor, Tensor]:
    """Tokens of `TextProcessor.padded`, int64 (B, T), T the longest of the batch, and which are
    real, bool. A row without any has one, so that there is something to look at."""
    lengths_B = batch[f"{name}_length"]
    longest = max(int(lengths_B.max()), 1)
    tokens_BT = batch[name][:, :longest].long()
    positions_T = torch.arange(longest, device=tokens_BT.device)
    real_BT = positions_T < lengths_B[:, None].clamp(min=1)
    return tokens_BT, real_BT

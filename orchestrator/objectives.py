"""What training minimises: pure functions of tokens, logits and targets."""

import torch
import torch.nn.functional as F
from torch import Tensor


def next_token_loss(logits_BTV: Tensor, targets_BT: Tensor) -> Tensor:
    """Cross-entropy in nats of each target, float32 (B, T), computed in float32."""
    losses = F.cross_entropy(
        logits_BTV.flatten(0, 1).float(), targets_BT.flatten(), reduction="none"
    )
    return losses.view(targets_BT.shape)


def trimmed(batch: dict[str, Tensor], name: str) -> tuple[Tensor, Tensor]:
    """Tokens of `processors.text.padded`, int64 (B, T), T the longest of the batch, and which are
    real, bool. A row without any has one, so that there is something to look at."""
    lengths_B = batch[f"{name}_length"]
    longest = max(int(lengths_B.max()), 1)
    tokens_BT = batch[name][:, :longest].long()
    positions_T = torch.arange(longest, device=tokens_BT.device)
    real_BT = positions_T < lengths_B[:, None].clamp(min=1)
    return tokens_BT, real_BT

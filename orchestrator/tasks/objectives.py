"""What training minimises: pure functions of tokens, logits and targets."""

import torch
import torch.nn.functional as F
from torch import Tensor


def token_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy in nats of each target: float32, (B, T) for logits (B, T, V), or (N,) for
    logits (N, V). It is computed in float32."""
    losses = F.cross_entropy(logits.flatten(0, -2).float(), targets.flatten(), reduction="none")
    return losses.view(targets.shape)


def drop_words(real_BT: Tensor, share: float) -> Tensor:
    """Word dropout (Iyyer et al. 2015): `real_BT` with a random share of the tokens set to False,
    so that no few words decide.

    A row that would lose all of its tokens keeps them all.
    """
    kept_BT = real_BT & (torch.rand(real_BT.shape, device=real_BT.device) >= share)
    return torch.where(kept_BT.any(1, keepdim=True), kept_BT, real_BT)


def trimmed(batch: dict[str, Tensor], name: str) -> tuple[Tensor, Tensor]:
    """The tokens `name` of a batch, as `TextProcessor.padded` makes them: int64 (B, T), and which
    are real, bool (B, T).

    `infer.batch` has cut off the padding that all rows share. An empty row counts its first padding
    token as real, so that no attention is over nothing.
    """
    tokens_BT = batch[name].long()
    positions_T = torch.arange(tokens_BT.shape[1], device=tokens_BT.device)
    real_BT = positions_T < batch[f"{name}_length"][:, None].clamp(min=1)
    return tokens_BT, real_BT

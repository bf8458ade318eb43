"""Which steps are taken: not those whose gradient is no number, or whose loss leaps."""

import torch
from torch import Tensor

WARM_STEPS = 50  # before the usual spread of the loss is known
DECAY = 0.98  # of its mean and variance: the last 50 steps or so
REPEATED = 3  # skipped steps in a row are no accident


class Guard:
    """Judges each step on the device, so that no step waits for the host to look at a number.

    A leap is a loss above its usual one by `spike_sigmas` standard deviations, and by half of it.
    """

    def __init__(self, device: torch.device, spike_sigmas: float) -> None:
        self.spike_sigmas = spike_sigmas
        # mean, variance, steps seen; steps skipped, in a row, since when; since when too many
        self.state = torch.tensor([0.0, 0, 0, 0, 0, -1, -1], dtype=torch.float64, device=device)

    def judge(self, step: int, loss: Tensor, norm: Tensor) -> Tensor:
        """Whether to take the step: a bool scalar, the same on all workers."""
        mean, variance, seen, skipped, in_row, since, repeated = self.state.unbind()
        loss = loss.double()
        rise = loss - mean
        taken = loss.isfinite() & norm.isfinite()
        if self.spike_sigmas > 0:
            spike = (rise > self.spike_sigmas * variance.sqrt()) & (rise > 0.5 * mean.abs())
            taken = taken & ~(spike & (seen >= WARM_STEPS))
        weight = torch.maximum(1 / (seen + 1), torch.full_like(seen, 1 - DECAY))
        known = torch.stack(
            (mean + weight * rise, (1 - weight) * (variance + weight * rise * rise), seen + 1)
        )
        in_row = torch.where(taken, 0.0, in_row + 1)
        since = torch.where(in_row == 1, float(step), since)
        repeated = torch.where((in_row >= REPEATED) & (repeated < 0), since, repeated)
        self.state = torch.cat(
            (
                torch.where(taken, known, torch.stack((mean, variance, seen))),
                torch.stack((skipped + ~taken, in_row, since, repeated)),
            )
        )
        return taken

    def look(self) -> tuple[int, int]:
        """Steps skipped so far, and the first of too many in a row or -1; the host waits here."""
        *_, skipped, _, _, repeated = self.state.tolist()
        return int(skipped), int(repeated)

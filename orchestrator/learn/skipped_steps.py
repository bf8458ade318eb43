"""Skips a step whose loss or gradient is NaN or infinite, or whose loss jumps."""

from typing import NamedTuple

import torch
from torch import Tensor

WARM_STEPS = 50  # until then the usual spread of the loss is not known
DECAY = 0.98  # of the mean and variance of the loss: they cover about the last 50 steps
REPEATED = 3  # so many steps skipped in a row are no accident


class GuardState(NamedTuple):
    """What the guard remembers, scalars. Checkpoints hold them as one tensor, in this order."""

    mean: Tensor  # of the loss
    variance: Tensor
    taken: Tensor  # steps
    skipped: Tensor  # steps
    in_row: Tensor  # steps skipped since the last one that was taken
    row_start: Tensor  # the first step of the latest row of skipped steps; -1: there is none
    repeated: Tensor  # the first step of the first row of REPEATED skipped steps; -1: there is none


class SkippedSteps(NamedTuple):
    """The counts that the host needs."""

    total: int
    repeated: int  # see `GuardState`


class Guard:
    """Judges each step on the device, so the host never waits for a number.

    A loss jumps where it exceeds its usual mean by `spike_sigmas` standard deviations, and by half
    of the mean.
    """

    def __init__(self, device: torch.device, spike_sigmas: float) -> None:
        self.spike_sigmas = spike_sigmas
        self.tensor = torch.tensor([0.0, 0, 0, 0, 0, -1, -1], dtype=torch.float64, device=device)

    @property
    def state(self) -> GuardState:
        return GuardState(*self.tensor.unbind())

    def judge(self, step: int, loss: Tensor, norm: Tensor) -> Tensor:
        """Whether to take a step: a bool scalar, the same on all workers.

        Args:
            step: its number.
            loss: of this step, a scalar.
            norm: of its gradient, a scalar.
        """
        state = self.state
        loss = loss.double()
        rise = loss - state.mean
        take = loss.isfinite() & norm.isfinite()
        if self.spike_sigmas > 0:
            jump = (rise > self.spike_sigmas * state.variance.sqrt()) & (
                rise > 0.5 * state.mean.abs()
            )
            take = take & ~(jump & (state.taken >= WARM_STEPS))
        weight = torch.maximum(1 / (state.taken + 1), torch.full_like(state.taken, 1 - DECAY))
        in_row = torch.where(take, 0.0, state.in_row + 1)
        row_start = torch.where(in_row == 1, float(step), state.row_start)
        if_taken = state._replace(
            mean=state.mean + weight * rise,
            variance=(1 - weight) * (state.variance + weight * rise * rise),
            taken=state.taken + 1,
            in_row=in_row,
            row_start=row_start,
        )
        if_skipped = state._replace(
            skipped=state.skipped + 1,
            in_row=in_row,
            row_start=row_start,
            repeated=torch.where(
                (in_row >= REPEATED) & (state.repeated < 0), row_start, state.repeated
            ),
        )
        self.tensor = torch.where(take, torch.stack(if_taken), torch.stack(if_skipped))
        return take

    def look(self) -> SkippedSteps:
        """Copy the counts to the host, which waits for the device here."""
        state = dict(zip(GuardState._fields, self.tensor.tolist(), strict=True))
        return SkippedSteps(int(state["skipped"]), int(state["repeated"]))

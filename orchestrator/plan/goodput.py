"""Checkpoints, failures, and the share of the time that they leave for training.

Young 1974 and Daly 2006: with checkpoints that cost C seconds and failures every M seconds, an
interval of sqrt(2 C M) wastes least.
"""

import math
from dataclasses import dataclass

from orchestrator.job.job import Job
from orchestrator.plan.memory import optimizer_bytes
from orchestrator.plan.parameters import FP32, Parameters

FAILURES = 3.8  # of 1,000 machines in a day: Llama 3's training, arXiv 2407.21783, table 5
DAY = 86_400.0

# Assumptions about our own checkpoints and restarts.
COPIED_A_SECOND = 2e9  # bytes: a step waits while the state is copied; a thread writes it
WRITTEN_A_SECOND = 2e8  # bytes, to storage that is shared
RESTART = 30.0  # seconds from a failure to the next step: notice it, start again, meet


@dataclass(frozen=True)
class Checkpointing:
    """What saving costs, and what a failure costs."""

    bytes: int
    blocking: float  # seconds that training waits for a checkpoint
    writing: float  # seconds until it is on storage: no interval is shorter
    restart: float  # seconds from a failure until training goes on, without the steps lost

    def interval(self, mtbf: float) -> float:
        """The seconds between checkpoints that waste least."""
        return max(math.sqrt(2.0 * self.blocking * mtbf), self.writing)

    def goodput(self, mtbf: float, interval: float | None = None) -> float:
        """The share of the time that is spent on steps which count, 0 to 1.

        A failure loses half an interval and a restart.
        """
        tau = self.interval(mtbf) if interval is None else interval
        wasted = self.blocking / tau + tau / (2.0 * mtbf) + self.restart / mtbf
        return max(1.0 - wasted, 0.0)


def checkpointing(job: Job, parameters: Parameters) -> Checkpointing:
    """Weights and the optimizer's state, in fp32, which the first worker saves."""
    size = FP32 * parameters.total + optimizer_bytes(parameters, job.train)
    return Checkpointing(
        bytes=size,
        blocking=size / COPIED_A_SECOND,
        writing=size / WRITTEN_A_SECOND,
        restart=job.cluster.hang_seconds + RESTART + size / WRITTEN_A_SECOND,
    )


def mtbf(machines: int, failures: float = FAILURES) -> float:
    """The mean seconds between failures of any of some machines, at so many failures of 1,000
    machines in a day."""
    return 1000.0 * DAY / (machines * failures)

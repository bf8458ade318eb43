"""What to do when a worker fails, as a value: a retry, or an error for the user."""

import enum
import traceback

from orchestrator.errors import OrchestratorError, StageError
from orchestrator.job.sections import TrainConfig

NETWORK = ("gloo", "nccl", "connection", "timed out", "broken pipe", "socket", "peer")
HARDWARE = ("cuda error", "ecc", "illegal memory access", "device-side assert", "xid")
MEMORY = ("out of memory", "can't allocate memory", "cannot allocate memory")


class PreemptedError(Exception):
    """A machine is about to be taken away: the training is saved, and other workers continue it."""

    preempted = True  # Ray's own errors of preempted processes have this attribute


class Decision(enum.Enum):
    RETRY = "retry"  # another worker or a machine failed: start the group again
    RAISE = "raise"  # the job or its code is wrong: a retry would fail the same way


def decide(error: BaseException) -> Decision:
    """Whether to retry after an exception of the training function."""
    if isinstance(error, PreemptedError):
        return Decision.RETRY
    if isinstance(error, OrchestratorError) or is_out_of_memory(error):
        return Decision.RAISE
    names = {kind.__name__ for kind in type(error).__mro__}
    if names & {"RayError", "DistError", "ConnectionError", "TimeoutError"}:
        return Decision.RETRY
    text = str(error).lower()
    if isinstance(error, RuntimeError) and any(word in text for word in (*NETWORK, *HARDWARE)):
        return Decision.RETRY
    return Decision.RAISE


def is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in MEMORY)


def explain(error: BaseException, config: TrainConfig) -> OrchestratorError:
    """An exception that a retry cannot mend, as an error of one line that says what to do."""
    if isinstance(error, OrchestratorError):
        return error
    if is_out_of_memory(error):
        return StageError(
            f"out of memory: lower train.micro_batch_size = {config.micro_batch_size}, which "
            f"changes nothing but the speed, or model.d_model or model.max_seq_len"
        )
    frame = traceback.extract_tb(error.__traceback__)[-1:]
    where = f" at {frame[0].filename}:{frame[0].lineno}" if frame else ""
    lines = str(error).strip().splitlines() or [""]
    return StageError(f"training failed: {type(error).__name__}: {lines[0]}{where}")

"""How a command ends: its exit code, and what signals do.

| code | meaning | the same command again |
| --- | --- | --- |
| 0 | done | does nothing and says so |
| 1 | a stage failed, or the code | fails again |
| 2 | the job, the data or the command is wrong | fails again |
| 75 | a machine, the network or the storage failed, or another process runs this run | continues |
| 130 | Ctrl-C | continues |
| 143 | SIGTERM | continues |
"""

import signal
import threading
from types import FrameType

from orchestrator.errors import OrchestratorError, TryAgainError

terminated = threading.Event()  # set by SIGTERM

# Names of Ray's exceptions, since only commands that use Ray import it.
LOST = {"RayActorError", "NodeDiedError", "WorkerCrashedError", "LocalRayletDiedError"}
LOST |= {"ObjectLostError", "RpcError", "GetTimeoutError", "RaySystemError"}


def exit_code(error: BaseException | None) -> int:
    """The exit code of a command that raised `error`, or that ended if it is None."""
    if isinstance(error, OrchestratorError):
        return error.exit_code
    if isinstance(error, Exception):
        return TryAgainError.exit_code if passes(error) else 1
    if terminated.is_set():
        return 143
    return 0 if error is None else 130


def passes(error: Exception) -> bool:
    """Whether an exception comes from a lost machine or a storage that fails for a while."""
    if {kind.__name__ for kind in type(error).__mro__} & LOST:
        return True
    if not isinstance(error, OSError):
        return False
    from orchestrator.storage import failures  # with pyarrow; most commands have imported it

    return failures.passes(error)


def on_sigterm(number: int, frame: FrameType | None) -> None:
    """End as after Ctrl-C: Ray's calls let only a KeyboardInterrupt pass."""
    terminated.set()
    raise KeyboardInterrupt


def ignore_signals() -> None:
    """Ignore Ctrl-C and SIGTERM during the shutdown: a second one would leave half of it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)

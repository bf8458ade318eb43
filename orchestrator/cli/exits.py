"""How a command ends: its exit code, and what signals do."""

import signal
import threading
from types import FrameType

from orchestrator.errors import OrchestratorError

terminated = threading.Event()  # set by SIGTERM


def exit_code(error: BaseException | None) -> int:
    """The exit code of a command that raised `error`, or that ended if it is None."""
    if isinstance(error, OrchestratorError):
        return error.exit_code
    if isinstance(error, Exception):
        return 1
    if terminated.is_set():
        return 143
    return 0 if error is None else 130


def on_sigterm(number: int, frame: FrameType | None) -> None:
    """End as after Ctrl-C: Ray's calls let only a KeyboardInterrupt pass."""
    terminated.set()
    raise KeyboardInterrupt


def ignore_signals() -> None:
    """Ignore Ctrl-C and SIGTERM during the shutdown: a second one would leave half of it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)

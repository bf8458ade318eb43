"""Notices that a cluster's head is gone, before Ray ends the command for it.

Ray's core waits for a lost head, 60 seconds by default, and then ends the process with exit code 1
and no error of ours. A thread notices it earlier, so the command ends with a line and code 75. If
the main thread is inside Ray's core, which no signal ends, this thread ends the process.
"""

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from types import TracebackType
from typing import Self

from orchestrator.errors import StuckError

RAYS_PATIENCE = ("RAY_gcs_rpc_server_reconnect_timeout_s", 60.0)
SHARE = 0.75  # of Ray's patience
GRACE = 1 / 6  # of the command's own: for the main thread to leave the block
CHECK_SECONDS = 5.0


class HeadWatch:
    """Watches the head's address, `host:port`, for the length of a `with` block.

    Raises:
        StuckError: instead of the block's KeyboardInterrupt, if the head has not answered for
            `patience` seconds.
    """

    def __init__(self, address: str, patience: float, interval: float = CHECK_SECONDS) -> None:
        host, _, port = address.rpartition(":")
        self.address = host.strip("[]"), int(port)
        self.patience = patience
        self.interval = interval
        self.lost = False
        self._over = threading.Event()

    def __enter__(self) -> Self:
        threading.Thread(target=self._watch, name="head", daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._over.set()
        if self.lost and isinstance(error, KeyboardInterrupt):
            raise self._error() from None

    def _watch(self) -> None:
        answered = time.monotonic()
        while not self._over.wait(self.interval):
            if self._answers():
                answered = time.monotonic()
            elif time.monotonic() - answered >= self.patience:
                self.lost = True
                main = threading.main_thread().ident
                assert main is not None
                signal.pthread_kill(main, signal.SIGINT)
                if not self._over.wait(GRACE * self.patience):
                    sys.stderr.write(f"\nerror: {self._error()}\n")
                    sys.stderr.flush()
                    os._exit(StuckError.exit_code)
                return

    def _error(self) -> StuckError:
        host, port = self.address
        return StuckError(
            f"the head of the cluster, {host}:{port}, has not answered for {self.patience:g} s: "
            f"run this again when it is back"
        )

    def _answers(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(self.address, 5):
            return True
        return False


def patience() -> float:
    """Seconds without a head after which a command ends: less than Ray itself would wait."""
    name, default = RAYS_PATIENCE
    with contextlib.suppress(ValueError):
        return SHARE * float(os.environ.get(name, default))
    return SHARE * default

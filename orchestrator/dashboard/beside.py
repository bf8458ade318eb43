"""The dashboard beside a sweep: `python -m orchestrator.dashboard.beside RUN`.

A command that sweeps starts it as a process of its own, with a pipe as its input. It ends when that
pipe is closed. Both processes know the folder of the run, so the command sends it nothing.
"""

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator

from orchestrator.dashboard.server import HOST, PORT, serve
from orchestrator.errors import UserError
from orchestrator.storage.folder import Folder


@contextlib.contextmanager
def beside(where: Folder, announce: Callable[[str], None]) -> Iterator[None]:
    """Show a run during the block. `announce` gets the address when the dashboard answers."""
    process = subprocess.Popen(  # noqa: S603
        [sys.executable, "-m", "orchestrator.dashboard.beside", where.uri],
        stdin=subprocess.PIPE,  # closes with this process, so the dashboard ends, too
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,  # only this process handles Ctrl-C
    )
    assert process.stdin is not None and process.stdout is not None
    threading.Thread(target=_pass_on, args=[process.stdout, announce], daemon=True).start()
    try:
        yield
    finally:
        process.stdin.close()
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _pass_on(lines: Iterator[str], announce: Callable[[str], None]) -> None:
    for line in lines:
        announce(line.strip())


def main() -> None:
    """Serve the given run on the default port, or on a free one, until standard input ends."""

    def end_with_input() -> None:
        sys.stdin.read()
        os._exit(0)

    threading.Thread(target=end_with_input, daemon=True).start()
    for port in (PORT, 0):  # another dashboard may use the default port
        with contextlib.suppress(UserError):
            serve(sys.argv[1], HOST, port, None, lambda address: print(address, flush=True))  # noqa: T201
            return


if __name__ == "__main__":
    main()

"""The entry point `orchestrator`: runs a command, and turns errors into lines and exit codes."""

import argparse
import gc
import logging
import os
import signal
import sys
from collections.abc import Callable

from rich.console import Console
from rich.markup import escape

from orchestrator.cli.arguments import parse
from orchestrator.cli.exits import exit_code, on_sigterm, terminated
from orchestrator.errors import OrchestratorError, StoppedError, StuckError

errors = Console(stderr=True, highlight=False, soft_wrap=True)


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns its exit code, one of the table in `exits.py`.

    The last line of the output is the error itself: logs are read from their end.
    """
    gc.set_threshold(50_000)  # of 700: imports, most of a command's time, leave nothing to collect
    options = parse(arguments)
    if arguments is None and not options.debug:
        sys.unraisablehook = _drop
    options.arguments = sys.argv[1:] if arguments is None else arguments
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    signal.signal(signal.SIGTERM, on_sigterm)
    try:
        command: Callable[[argparse.Namespace], int] = options.command
        return command(options)
    except StoppedError as error:
        errors.print(f"stopped: {escape(str(error))}")
        return exit_code(error)
    except OrchestratorError as error:
        if options.debug:
            raise
        for line in str(error).splitlines():
            errors.print(f"[bold red]error:[/] {escape(line)}")
        if isinstance(error, StuckError) and arguments is None:
            sys.stdout.flush()
            os._exit(exit_code(error))
        return exit_code(error)
    except KeyboardInterrupt as error:
        word = "terminated" if terminated.is_set() else "stopped"
        errors.print(f"{word}: what is finished is kept, the same command continues")
        return exit_code(error)
    except BrokenPipeError:
        return 1
    except Exception as error:
        if options.debug:
            raise
        lines = [line for line in str(error).strip().splitlines() if line.strip()]
        reason = lines[-1].strip() if lines else ""
        code = exit_code(error)
        if code == 1:
            errors.print("unexpected error: please report it with the output of --debug")
        else:
            errors.print("a machine, the network or the storage failed: the same command continues")
        errors.print(f"[bold red]error:[/] {type(error).__name__}: {escape(reason)}")
        return code


def _drop(_: "sys.UnraisableHookArgs") -> None:
    """Drop errors of `__del__`: Ray objects interrupted during construction raise in it."""

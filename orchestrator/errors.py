"""The errors of this package, by who can fix them.

Every message is one line that names the place (file, line, field or row) and what to do.
"""

import difflib
from collections.abc import Iterable


class OrchestratorError(Exception):
    """A failure that the command line reports in one line."""

    exit_code = 1


class UserError(OrchestratorError):
    """The job, the data or the command is wrong, and the user can fix it. Exit code 2."""

    exit_code = 2


class JobError(UserError):
    """All problems of a job file, one per line."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class StageError(OrchestratorError):
    """A stage failed for a reason that the user did not cause. Exit code 1."""


class TryAgainError(StageError):
    """A machine, the network or the storage failed: the same command may succeed later, and it
    continues the run. Exit code 75, EX_TEMPFAIL of sysexits.h."""

    exit_code = 75


class StuckError(TryAgainError):
    """A call that cannot be ended waits for something. The command ends without waiting for it,
    which pyarrow would do at the process's end."""


class InUseError(UserError):
    """Another process runs this run, or did until its machine was lost. Exit code 75, too."""

    exit_code = TryAgainError.exit_code


class StoppedError(OrchestratorError):
    """The user stopped the run; the same command continues it. Exit code 130, as after Ctrl-C."""

    exit_code = 130


class StorageError(StageError, OSError):
    """A storage kept failing. For code that can do without its answer, it is an OSError."""


class DivergedError(StageError):
    """A training diverged. All of its workers raise this at the same step."""


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """`did you mean WORD?` with the most similar known word, or `` if none is similar."""
    by_lower = {word.lower(): word for word in known}
    close = difflib.get_close_matches(given.lower(), by_lower, n=1, cutoff=0.5)
    return f"did you mean {by_lower[close[0]]}?" if close else ""


def printable(text: str) -> str:
    """A text of the user's data for use within a line: unprintable characters are escaped."""
    return text if text.isprintable() else repr(text)[1:-1]


def last_line(text: str) -> str:
    """The last line of a traceback, which has the error."""
    lines = [line for line in text.strip().splitlines() if line.strip()]
    return lines[-1].strip() if lines else "no reason given"


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, or its type if it has no message."""
    return (str(error) or type(error).__name__).splitlines()[0]

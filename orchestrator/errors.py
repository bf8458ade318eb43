"""What can go wrong, named by who can mend it.

Every message is one line that says where (file, line, field or row) and what to do.
"""

import difflib
from collections.abc import Iterable


class OrchestratorError(Exception):
    """A failure that the command line reports in one line and that no retry mends."""

    exit_code = 1


class UserError(OrchestratorError):
    """The job, the data or the command is wrong: the user mends it. Exit code 2."""

    exit_code = 2


class JobError(UserError):
    """All that is wrong with a job file, one line a problem."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class StageError(OrchestratorError):
    """A stage failed for a reason that its user did not cause. Exit code 1."""


class StoppedError(OrchestratorError):
    """Somebody asked for it; the same command goes on. Exit code 130, as after Ctrl-C."""

    exit_code = 130


class DivergedError(StageError):
    """The weights are no good any more; all workers of a training raise it at the same step."""


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """The known word that is closest to a given one, as a question; nothing where none is close."""
    by_lower = {word.lower(): word for word in known}
    close = difflib.get_close_matches(given.lower(), by_lower, n=1, cutoff=0.5)
    return f"did you mean {by_lower[close[0]]}?" if close else ""


def printable(text: str) -> str:
    """A text of the user's data as part of one line: what cannot be printed is escaped."""
    return text if text.isprintable() else repr(text)[1:-1]


def last_line(text: str) -> str:
    """The line of a traceback that says what happened."""
    lines = [line for line in text.strip().splitlines() if line.strip()]
    return lines[-1].strip() if lines else "no reason given"


def first_line(error: BaseException) -> str:
    """What an exception says, or its name where it says nothing."""
    return (str(error) or type(error).__name__).splitlines()[0]

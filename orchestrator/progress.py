"""The stages of a run, their status, and the interfaces through which they report progress.

A stage reports to a `Progress`, the pipeline to a `Display`. Neither knows about terminals.
"""

from dataclasses import dataclass
from typing import Any, Literal, Protocol

Stage = Literal["prepare", "tune", "train", "evaluate", "serve"]
STAGES: tuple[Stage, ...] = ("prepare", "tune", "train", "evaluate", "serve")
State = Literal["finished", "running", "interrupted", "pending", "skipped"]


@dataclass(frozen=True)
class StageStatus:
    """The status of a stage. `path` is None before it has a folder, `seconds` before it ends."""

    stage: Stage
    state: State
    path: str | None = None
    seconds: float | None = None
    summary: str = ""
    notices: tuple[str, ...] = ()  # about the artifact, for the user


class Progress(Protocol):
    """Shows one activity at a time, with a count if the total is known."""

    def start(self, name: str, total: float | None, unit: str) -> None:
        """Begin an activity of `total` units, or of None if the number is unknown."""

    def advance(self, amount: float) -> None:
        """Count `amount` more units as done."""

    def show(self, values: dict[str, Any]) -> None:
        """Show the latest figures, such as loss and lr."""

    def note(self, text: str) -> None:
        """Print a line that stays on the screen, such as a sample of the model's output."""

    def finish(self) -> None:
        """End the activity."""


class Display(Progress, Protocol):
    """Receives a run's progress: the start and end of stages, and the progress within each."""

    def stage_started(self, stage: Stage) -> None: ...

    def stage_finished(self, status: StageStatus, already: bool) -> None: ...

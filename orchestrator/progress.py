"""The stages of a run, where each stands, and the interface through which a stage reports progress.

Stages report to a `Progress` and the pipeline to a `Display`, so that neither knows of terminals.
"""

from dataclasses import dataclass
from typing import Any, Literal, Protocol

Stage = Literal["prepare", "tune", "train", "evaluate", "serve"]
STAGES: tuple[Stage, ...] = ("prepare", "tune", "train", "evaluate", "serve")
State = Literal["finished", "running", "interrupted", "pending", "skipped"]


@dataclass(frozen=True)
class StageStatus:
    """Where a stage stands. `path` and `seconds` are None until it has a folder, or an end."""

    stage: Stage
    state: State
    path: str | None = None
    seconds: float | None = None
    summary: str = ""
    notices: tuple[str, ...] = ()  # what the user should know of the artifact


class Progress(Protocol):
    """One activity at a time, with a count where its end is known."""

    def start(self, name: str, total: float | None, unit: str) -> None:
        """Begin an activity of `total` units; None where nobody knows how many."""

    def advance(self, amount: float) -> None:
        """So many units more are done."""

    def show(self, values: dict[str, Any]) -> None:
        """The latest figures: loss, lr and so on."""

    def note(self, text: str) -> None:
        """A line that stays on the screen: a sample of what the model writes, say."""

    def finish(self) -> None:
        """The activity is over."""


class Display(Progress, Protocol):
    """Receives a run's progress: of its stages, and within each stage."""

    def stage_started(self, stage: Stage) -> None: ...

    def stage_finished(self, status: StageStatus, already: bool) -> None: ...

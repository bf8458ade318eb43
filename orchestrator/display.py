"""A run on a terminal: a live line for the current activity, a lasting line per finished stage.

If the output is no terminal (a log, a submitted job), the display prints a line now and then in
place of the live line.
"""

import time
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column
from rich.text import Text

from orchestrator.forecast import Forecast, time_left
from orchestrator.progress import Stage, StageStatus

LOG_SECONDS = 10.0  # between two lines if the output is no terminal
MEASURED = ("tune", "train", "evaluate")  # stages of one long activity that counts its units


class RateColumn(ProgressColumn):
    """Units done and units a second."""

    def __init__(self) -> None:
        super().__init__(table_column=Column(no_wrap=True))

    def render(self, task: Task) -> Text:
        if task.total is None:
            return Text("")
        rate = f", {task.speed:,.0f}/s" if task.speed else ""
        unit = task.fields["unit"]
        return Text(f"{task.completed:,.0f}/{task.total:,.0f} {unit}{rate}", style="dim")


class RunTimeColumn(ProgressColumn):
    """The time that the whole run still needs."""

    def __init__(self, left: Callable[[Task], str]) -> None:
        super().__init__(table_column=Column(no_wrap=True))
        self._left = left

    def render(self, task: Task) -> Text:
        left = self._left(task)
        return Text(f"run: {left}" if left else "", style="dim")


class TerminalDisplay:
    """Shows a run on a rich console."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=10),
            RateColumn(),
            TextColumn("eta"),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[figures]}", style="cyan", markup=False),
            RunTimeColumn(self._left),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self.statuses: list[StageStatus] = []
        self._task: Any = None
        self._figures: dict[str, Any] = {}
        self._logged = 0.0
        self._expected: Forecast = {}
        self._stage: Stage | None = None
        self._stage_started = 0.0

    def expect(self, seconds: Forecast) -> None:
        """The expected seconds of each stage of this run that is not finished, in their order."""
        self._expected = dict(seconds)

    def close(self) -> None:
        self.finish()

    def stage_started(self, stage: Stage) -> None:
        self._stage, self._stage_started = stage, time.monotonic()
        self._log(f"{stage}: started")

    def stage_finished(self, status: StageStatus, already: bool) -> None:
        self.finish()
        self._stage = None
        self._expected.pop(status.stage, None)
        self.statuses.append(status)
        seconds = "already finished" if already else f"{status.seconds:.1f} s"
        self.console.print(
            f"[green]✓[/] [bold]{status.stage:<9}[/] {escape(status.summary)} [dim]({seconds})[/]",
            highlight=False,
            soft_wrap=True,
        )
        for notice in status.notices:
            self.console.print(f"  [yellow]![/] {escape(notice)}", highlight=False, soft_wrap=True)

    def start(self, name: str, total: float | None, unit: str) -> None:
        self.finish()
        self._figures = {}
        self.bar.start()
        self._task = self.bar.add_task(name, total=total, unit=unit, figures="")

    def advance(self, amount: float) -> None:
        if self._task is not None:
            self.bar.advance(self._task, amount)
            self._log_now_and_then()

    def show(self, values: dict[str, Any]) -> None:
        self._figures |= values
        if self._task is not None:
            self.bar.update(self._task, figures=figures(self._figures))
            self._log_now_and_then()

    def note(self, text: str) -> None:
        if self.console.is_terminal:
            line = Text(text, style="dim")
            line.truncate(self.console.width, overflow="ellipsis")
            self.console.print(line, highlight=False)
        else:
            self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def finish(self) -> None:
        if self._task is not None:
            self.bar.remove_task(self._task)
            self._task = None
            self.bar.stop()

    def _left(self, task: Task) -> str:
        """The time that the run still needs, while `task` is the current activity."""
        expected = self._expected.get(self._stage) if self._stage is not None else None
        current = None
        if self._stage in MEASURED:  # the activity is the stage, so its pace is the best guess
            current = task.time_remaining
        if current is None and expected is not None:
            current = max(expected - (time.monotonic() - self._stage_started), 0.0)
        return time_left(self._expected, current)

    def _log_now_and_then(self) -> None:
        if time.monotonic() - self._logged >= LOG_SECONDS:
            task = self.bar.tasks[0]
            total = "" if task.total is None else f"/{task.total:,.0f}"
            done = f"{task.completed:,.0f}{total} {task.fields['unit']}"
            left = self._left(task)
            parts = [f"{task.description}: {done}", figures(self._figures)]
            self._log("  ".join(part for part in [*parts, f"run: {left}" if left else ""] if part))

    def _log(self, text: str) -> None:
        if not self.console.is_terminal:
            self._logged = time.monotonic()
            self.console.print(text, highlight=False, markup=False, soft_wrap=True)


def figures(values: dict[str, Any]) -> str:
    """The latest figures of a training or a sweep on one line; of validations the first alone."""
    validated = [name for name in values if name.startswith("validation ")][:1]
    speed = [name for name in values if name.endswith("/s")]
    formats = {
        "loss": "loss {:.3f}",
        **{name: f"{{:,.0f}} {name}" for name in speed},
        "lr": "lr {:.1e}",
        **{name: f"{name.replace(' loss', '')} {{:.3f}}" for name in validated},
        **{name: f"{name} {{:.3f}}" for name in values if name.startswith("best ")},
        "peak memory GB": "peak {:.1f} GB",
    }
    return "  ".join(text.format(values[name]) for name, text in formats.items() if name in values)

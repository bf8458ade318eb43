"""A run on a terminal: a live line for the current activity, a lasting line per finished stage.

If the output is no terminal (a log, a submitted job), the display prints a line now and then in
place of the live line.
"""

import time
from collections.abc import Callable, Iterable
from typing import Any

from rich.console import Console, RenderableType
from rich.markup import escape
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
)
from rich.table import Column
from rich.text import Text

from orchestrator.forecast import Forecast, Pace, before_start, in_words, seconds_left
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

    def __init__(self, eta: Callable[[], str]) -> None:
        super().__init__(table_column=Column(no_wrap=True))
        self._eta = eta

    def render(self, task: Task) -> Text:
        return Text(self._eta())


class LiveLines(Progress):
    """The activity with the run's ETA on one line, and its latest figures on a line below."""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        for task in self.tasks:
            if text := task.fields["figures"]:
                yield Text(f"  {text}", style="cyan", no_wrap=True, overflow="ellipsis")


class TerminalDisplay:
    """Shows a run on a rich console."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.bar = LiveLines(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=10),
            RateColumn(),
            RunTimeColumn(self._eta),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self.statuses: list[StageStatus] = []
        self._task: Any = None
        self._figures: dict[str, Any] = {}
        self._logged = 0.0
        self._ahead: Forecast = {}
        self._pace: Pace | None = None
        self._stage: Stage | None = None
        self._stage_started = 0.0

    def expect(self, ahead: Forecast) -> None:
        """Set the estimate of each stage of this run that is not finished, in their order."""
        self._ahead = dict(ahead)

    def close(self) -> None:
        self.finish()

    def stage_started(self, stage: Stage) -> None:
        self._stage, self._stage_started = stage, time.monotonic()
        self._log(f"{stage}: started", self._eta())

    def stage_finished(self, status: StageStatus, already: bool) -> None:
        self.finish()
        self._stage = None
        self._ahead.pop(status.stage, None)
        self.statuses.append(status)
        seconds = "already finished" if already else f"{status.seconds:.1f} s"
        self.console.print(
            f"[green]✓[/] [bold]{status.stage:<9}[/] {escape(status.summary)} [dim]({seconds})[/]",
            highlight=False,
            soft_wrap=True,
        )
        for notice in status.notices:
            self.console.print(f"  [yellow]![/] {escape(notice)}", highlight=False, soft_wrap=True)

    def start(self, name: str, total: float | None, unit: str, done: float = 0.0) -> None:
        self.finish()
        self._figures = {}
        self._pace = Pace(total, done, time.monotonic())
        self.bar.start()
        self._task = self.bar.add_task(
            name, total=total, completed=int(done), unit=unit, figures=""
        )

    def advance(self, amount: float) -> None:
        if self._task is not None:
            assert self._pace is not None
            self._pace.count(amount, time.monotonic())
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
            self._task = self._pace = None
            self.bar.stop()

    def _left(self) -> str:
        """The time that the run still needs, in words."""
        left = before_start(self._ahead)
        if self._stage in self._ahead:
            now = time.monotonic()
            measured = None
            if self._stage in MEASURED and self._pace is not None:
                measured = self._pace.seconds_left(now)
            elapsed = now - self._stage_started
            left[self._stage] = seconds_left(self._ahead[self._stage], elapsed, measured)
        return in_words(left)

    def _eta(self) -> str:
        left = self._left()
        return f"ETA {left}" if left else ""

    def _log_now_and_then(self) -> None:
        if time.monotonic() - self._logged >= LOG_SECONDS:
            task = self.bar.tasks[0]
            done = "" if not task.fields["unit"] else f": {task.completed:,.0f}"
            if task.total is not None:
                done += f"/{task.total:,.0f}"
            text = f"{task.description}{done} {task.fields['unit']}".rstrip()
            self._log(text, figures(self._figures), self._eta())

    def _log(self, *parts: str) -> None:
        """Print the parts that are not empty as a line, if the output is no terminal."""
        if not self.console.is_terminal:
            self._logged = time.monotonic()
            text = "  ".join(part for part in parts if part)
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
        "waiting for": "waiting for {}",
    }
    known = {name: text for name, text in formats.items() if values.get(name) not in (None, "")}
    return "  ".join(text.format(values[name]) for name, text in known.items())

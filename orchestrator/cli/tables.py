"""The tables that the command line prints: stages, events, metrics, a plan."""

import os
from datetime import datetime
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from orchestrator.progress import StageStatus

if TYPE_CHECKING:
    from orchestrator.pipeline import Outcome
    from orchestrator.storage.artifact import Evaluation


def print_outcome(console: Console, statuses: list[StageStatus], outcome: "Outcome") -> None:
    """The tables at the end of a run."""
    console.print(stage_table(statuses))
    if outcome.evaluation is not None:
        console.print(metric_table(outcome.evaluation))


def stage_table(statuses: list[StageStatus]) -> Table:
    artifact = Column("artifact", overflow="fold")
    table = Table("stage", "seconds", artifact, title="stages", title_justify="left")
    for status in statuses:
        seconds = f"{status.seconds:.1f}" if status.seconds is not None else ""
        table.add_row(status.stage, seconds, escape(_short(status.path or "")))
    return table


def _short(path: str) -> str:
    """A path, relative to the working directory if it lies below."""
    return path.removeprefix(f"{os.getcwd()}/")


def print_statuses(console: Console, statuses: list[StageStatus]) -> None:
    """Print the state of each stage, and the notices that its user should read."""
    console.print(status_table(statuses))
    for status in statuses:
        for notice in status.notices:
            console.print(f"[yellow]![/] {status.stage}: {escape(notice)}", soft_wrap=True)


def status_table(statuses: list[StageStatus]) -> Table:
    table = Table("stage", "state", "seconds", "what", title="stages", title_justify="left")
    for status in statuses:
        seconds = f"{status.seconds:.1f}" if status.seconds is not None else ""
        what = status.summary or _short(status.path or "")
        table.add_row(status.stage, status.state, seconds, escape(what))
    return table


def event_table(events: list[dict[str, Any]], count: int) -> Table:
    """The last `count` events of a run."""
    from orchestrator.storage.events import describe

    shown = events[-count:]
    title = (
        f"events, the last {len(shown)} of {len(events)}" if len(shown) < len(events) else "events"
    )
    details = Column("details", overflow="fold")
    table = Table("time", "stage", "event", details, title=title, title_justify="left")
    for event in shown:
        at = datetime.fromisoformat(event["time"]).astimezone()
        cells = [
            f"{at:%m-%d %H:%M:%S}",
            *map(str, (event["stage"], event["event"], describe(event))),
        ]
        table.add_row(*map(escape, cells), style="red" if "error" in event else "")
    return table


def metric_table(evaluation: "Evaluation") -> Table:
    names = list(evaluation.metrics)
    columns = [escape(name.replace("_", " ")) for name in names]
    table = Table("test split", *columns, title_justify="left")
    for name, metrics in {"this model": evaluation.metrics, **evaluation.baselines}.items():
        cells = [f"{metrics[key]:,.3f}" if key in metrics else "" for key in names]
        table.add_row(escape(name), *cells, style="bold" if name == "this model" else "")
    return table

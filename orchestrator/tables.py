"""The tables that the command line prints: stages, events, metrics, a plan."""

import os
from datetime import datetime
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from orchestrator.job.job import Job
from orchestrator.progress import StageStatus

if TYPE_CHECKING:
    from orchestrator.job.plan import Plan
    from orchestrator.pipeline import Outcome
    from orchestrator.run import Run
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


def plan_table(job: Job, plan: "Plan", run: "Run") -> Table:
    """What a job comes to: data, parameters, steps, time."""
    chosen = ", ".join(f"{name} = {value}" for name, value in run.derived.items())
    about = "about " if plan.samples_are_estimated else ""
    rows = {
        "source": f"{plan.source_files:,} files, {plan.source_bytes / 1e6:,.1f} MB",
        "samples": f"{about}{plan.train_samples:,} for training",
        "parameters": f"{plan.parameters:,}",
        "tokens a step": f"{plan.tokens_per_step:,} for any number of workers: "
        + ", ".join(f"{count} x {n} micro-batches" for count, n in plan.accumulation.items()),
        "steps": f"{plan.steps:,}"
        if plan.steps
        else f"what fits {job.train.budget_minutes:g} minutes"
        + (f", at most {job.train.epochs:g} epochs" if job.train.epochs else ""),
        "training": f"about {plan.train_seconds / 60:,.1f} minutes, "
        + ("compiled" if plan.compiles else "not compiled: it would not pay for itself"),
        "epochs": f"{about}{plan.epochs:.2f}" if plan.epochs else "follow from the steps",
        "sweep": plan.sweep,
        "chosen for it": chosen or "nothing: the job says how large its model is",
        "storage": run.folder.uri,
    }
    table = Table(title="what follows from the job", title_justify="left", show_header=False)
    for name, value in rows.items():
        table.add_row(name, escape(value))
    return table

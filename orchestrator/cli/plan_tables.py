"""The tables of `orchestrator plan`."""

import os
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from orchestrator.job.job import Job
    from orchestrator.plan.plan import Asked, Plan
    from orchestrator.run import Run

BUSY = 0.75  # of the cores
MINUTE, HOUR, DAY = 60.0, 3600.0, 86_400.0


def print_plan(console: Console, job: "Job", plan: "Plan", run: "Run", asked: "Asked") -> None:
    """All tables of a plan, and the assumptions behind its predictions."""
    console.print(plan_table(job, plan, run))
    console.print(memory_table(plan))
    console.print(time_table(plan))
    console.print(scale_table(plan))
    for line in assumptions(job, plan, asked):
        console.print(f"[dim]- {escape(line)}[/]", soft_wrap=True)


def plan_table(job: "Job", plan: "Plan", run: "Run") -> Table:
    """What a job comes to: data, parameters, steps, time."""
    chosen = ", ".join(f"{name} = {value}" for name, value in run.derived.items())
    about = "about " if plan.samples_are_estimated else ""
    checkpoints, first = plan.checkpoints, plan.scale[0]
    rows = {
        "source": f"{plan.source_files:,} files, {plan.source_bytes / 1e6:,.1f} MB",
        "samples": f"{about}{plan.train_samples:,} for training",
        "parameters": f"{plan.parameters.total:,}",
        "of these": ", ".join(f"{name} {n:,}" for name, n in plan.parameters.parts.items()),
        "tokens a step": f"{plan.tokens_per_step:,} for any number of workers: "
        + ", ".join(f"{count} x {n} micro-batches" for count, n in plan.accumulation.items()),
        "steps": f"{plan.steps:,}"
        if plan.steps
        else f"what fits {job.train.budget_minutes:g} minutes, about {plan.total_steps:,}"
        + (f", at most {job.train.epochs:g} epochs" if job.train.epochs else ""),
        "tokens": f"{plan.total_tokens:.3g}, at {plan.flops_per_token:.3g} operations each: "
        f"{plan.total_tokens * plan.flops_per_token:.3g} FLOP",
        "epochs": f"{about}{plan.epochs:.2f}" if plan.epochs else "follow from the steps",
        "compiled": "yes" if plan.compiles else "no: it would not pay for itself",
        "precision": f"{plan.precision}: {plan.precision_reason}",
        "sweep": plan.sweep,
        "checkpoint": f"{size(checkpoints.bytes)}, best every {duration(first.interval)}: "
        f"train.checkpoint_every={max(round(first.interval / first.step), 1)}",
        "chosen for it": chosen or "nothing: the job says how large its model is",
        "storage": run.folder.uri,
    }
    table = Table(title="what follows from the job", title_justify="left", show_header=False)
    for name, value in rows.items():
        table.add_row(name, escape(value))
    return table


def memory_table(plan: "Plan") -> Table:
    """A worker's memory by part."""
    memory, shape = plan.memory, plan.shapes.largest
    kind = "as long as the data's" if plan.shapes.measured else "all as long as they can be"
    where = "GPU memory" if memory.host else "memory"
    table = Table(title=f"{where} of a worker, predicted", title_justify="left", show_header=False)
    for name, count in memory.parts.items():
        table.add_row(name, size(count), "")
    table.columns[1].justify = "right"
    table.add_row(
        "in all", size(memory.total), f"{shape.rows} rows, {shape.tokens:,} tokens at once, {kind}"
    )
    for name, count in memory.host.items():
        table.add_row(name, size(count), "of the machine's memory")
    return table


def time_table(plan: "Plan") -> Table:
    """The predicted time of each stage and of all."""
    known = [stage.seconds for stage in plan.stages if stage.seconds is not None]
    unknown = [stage.stage for stage in plan.stages if stage.seconds is None]
    table = Table("stage", "predicted", "from", title="time", title_justify="left")
    for stage in plan.stages:
        seconds = "unknown" if stage.seconds is None else duration(stage.seconds)
        table.add_row(stage.stage, seconds, escape(stage.reason))
    total = duration(sum(known)) + "".join(f" + {name}" for name in unknown)
    table.add_row("in all", total, escape(plan.speed.reason))
    return table


def scale_table(plan: "Plan") -> Table:
    """The prediction for each number of workers, a column each."""
    rows = {
        "machines": lambda row: f"{row.machines:,}",
        "global batch": lambda row: f"{row.batch:,}",
        "tokens/s": lambda row: f"{row.tokens_a_second:,.0f}",
        "step": lambda row: duration(row.step),
        "of it, waiting for gradients": lambda row: duration(row.exposed),
        "a failure every": lambda row: duration(row.mtbf),
        "a checkpoint every": lambda row: duration(row.interval),
        "goodput": lambda row: f"{row.goodput:.1%}",
        "steps": lambda row: f"{row.steps:,}",
        "training": lambda row: duration(row.seconds),
        "cost": lambda row: "no price" if row.cost is None else f"${row.cost:,.2f}",
    }
    counts = [f"{row.workers:,}" for row in plan.scale]
    table = Table("workers", *counts, title="training, predicted", title_justify="left")
    for name, cell in rows.items():
        table.add_row(name, *map(cell, plan.scale))
    for column in table.columns[1:]:
        column.justify = "right"
    return table


def assumptions(job: "Job", plan: "Plan", asked: "Asked") -> list[str]:
    """What the predictions rest on, a line each."""
    costs, checkpoints = asked.costs, plan.checkpoints
    lines = [
        "All times, memory and costs are predictions: docs/plan.md has the formulas.",
        f"Speed: {plan.speed.reason}.",
        f"Gradients travel at {costs.network:g} Gbit/s between machines (--network), while the "
        "backward pass goes on.",
        f"Failures: {costs.failures:g} of 1,000 machines in a day (--failures); spot machines "
        "fail far more often.",
        f"A checkpoint stops training for {duration(checkpoints.blocking)} and is written in "
        f"{duration(checkpoints.writing)}; a failure costs {duration(checkpoints.restart)} and "
        "half an interval.",
    ]
    if not plan.parameters.exact:
        lines.append(
            f"The vocabulary is taken as {plan.parameters.vocab_size:,}, and a head for labels as "
            "one: `prepare` finds the real ones."
        )
    if asked.calibration is not None:
        lines.append(
            f"Ten steps here took {size(asked.calibration.peak_bytes)} of memory, without Ray and "
            "without a checkpoint."
        )
        if asked.calibration.load > BUSY * (os.cpu_count() or 1):
            lines.append(
                f"The load average was {asked.calibration.load:.1f}: other processes slowed them."
            )
    larger = [row for row in plan.scale if row.batch != job.train.global_batch_size]
    if larger:
        lines.append(
            f"{larger[0].workers:,} workers or more need a global batch that is larger than the "
            "job's: another training, whose learning rate would have to be found anew."
        )
    limit = asked.machines.most_workers(job.cluster)
    if limit is not None and any(row.workers > limit for row in plan.scale):
        lines.append(f"{asked.machines.where} has room for {limit:,} workers, and not for more.")
    return [*lines, *asked.machines.notes, *plan.notes]


def size(count: float) -> str:
    """Bytes, in words: `1.3 GB`."""
    return f"{count / 1e9:,.2f} GB" if count >= 1e8 else f"{count / 1e6:,.1f} MB"


def duration(seconds: float) -> str:
    """A time, in words: `4.2 min`."""
    if seconds < 1e-3:
        return "0" if seconds == 0 else f"{seconds * 1e6:.0f} µs"
    if seconds < 1:
        return f"{seconds * 1e3:.0f} ms"
    for limit, unit, name in (
        (2 * MINUTE, 1.0, "s"),
        (2 * HOUR, MINUTE, "min"),
        (2 * DAY, HOUR, "h"),
    ):
        if seconds < limit:
            return f"{seconds / unit:.1f} {name}"
    return f"{seconds / DAY:,.1f} days"

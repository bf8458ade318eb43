"""The commands about what is served: `rollback` and `history`."""

import argparse
import contextlib
import sys
import time

from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from orchestrator.cli.commands import record_deployed
from orchestrator.cli.exits import exit_code, ignore_signals
from orchestrator.errors import UserError
from orchestrator.job.file import load_job
from orchestrator.storage import strict_json

SHORT = 7  # characters of a commit
console = Console(highlight=False)


def rollback_command(options: argparse.Namespace) -> int:
    """`rollback`: move the traffic back to the version that served before."""
    job = load_job(options.job, options.overrides)
    from orchestrator.cluster.connection import connect, local_cluster
    from orchestrator.run import RecordedDisplay, Run
    from orchestrator.storage.folder import check_writable

    run = Run(job)
    check_writable(run.folder.uri)
    if local_cluster() is not None:
        raise UserError(
            "an endpoint is rolled back on the cluster that serves it: set RAY_ADDRESS, on that "
            "machine to auto"
        )
    with contextlib.ExitStack() as stack:
        stack.enter_context(run.session(options.arguments, "serve", exit_code))
        from orchestrator.display import TerminalDisplay
        from orchestrator.serve.deploy import rollback
        from orchestrator.serve.history import History

        terminal = TerminalDisplay(console)
        stack.callback(terminal.close)
        display = stack.enter_context(RecordedDisplay(terminal, run.events))
        cluster = stack.enter_context(connect())
        stack.callback(ignore_signals)
        started = time.monotonic()
        display.stage_started("serve")
        history = History(run.folder)
        deployed = rollback(run.job, history, display)
        record = history.of(deployed.version)
        assert record is not None
        checkpoint = f"{record.training}/{record.checkpoint}"
        seconds = time.monotonic() - started
        text = record_deployed(run, deployed, checkpoint, cluster, display, seconds)
        console.print(text)
    return exit_code(None)


def history_command(options: argparse.Namespace) -> int:
    """`history`: what was served when, from which data, commit and settings."""
    job = load_job(options.job, options.overrides)
    from orchestrator.run import storage
    from orchestrator.serve.history import History

    folder = storage(job) / job.name
    deployments = History(folder).read()
    if options.json:
        everything = [each.model_dump(mode="json") for each in deployments]
        sys.stdout.write(strict_json.dumps(everything, indent=1) + "\n")
        return 0
    if not deployments:
        console.print(f"{escape(str(folder))}: nothing was served yet")
        return 0
    metrics = ", ".join(dict.fromkeys(each.metric for each in deployments))
    whole = [Column(name, no_wrap=True) for name in ("#", "version", "when", "what")]
    rest = [Column(name, overflow="fold") for name in ("score", "checkpoint", "data")]
    commit = Column("commit", no_wrap=True)
    title = f"served; the score is {metrics}"
    table = Table(*whole, *rest, commit, title=title, title_justify="left")
    for each in deployments:
        score = each.metrics.get(each.metric)
        table.add_row(
            str(each.number),
            each.version,
            f"{each.started.astimezone():%Y-%m-%d %H:%M}",
            each.action if each.outcome == "serving" else each.outcome,
            "" if score is None else f"{score:.4g}",
            escape(f"{each.training.rpartition('/')[2]}/{each.checkpoint.rpartition('/')[2]}"),
            escape(each.source),
            f"{each.commit[:SHORT]}{'+' if each.commit.endswith('+') else ''}",
        )
    console.print(table)
    for each in deployments:
        if each.reason:
            console.print(f"[yellow]![/] {each.number}: {escape(each.reason)}", soft_wrap=True)
    return 0

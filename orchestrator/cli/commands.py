"""The commands: each takes its parsed options, prints, and returns its exit code."""

import argparse
import contextlib
import os
import signal
import sys
import time
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape

from orchestrator.cli.exits import exit_code, ignore_signals, on_sigterm
from orchestrator.cli.tables import event_table, print_outcome, print_statuses
from orchestrator.errors import UserError
from orchestrator.job.file import load_job
from orchestrator.job.schema import json_schema
from orchestrator.progress import Display, StageStatus
from orchestrator.storage import strict_json

if TYPE_CHECKING:  # imported in the commands: `orchestrator --help` needs none of them
    from orchestrator.cluster.connection import Cluster
    from orchestrator.pipeline import Outcome
    from orchestrator.run import Run
    from orchestrator.serve.deploy import Deployed

LAST_EVENTS = 20  # that status shows without --all
console = Console(highlight=False)


def run_command(options: argparse.Namespace) -> int:
    """`run`, and each stage's own command, which is `run --until` it."""
    job = load_job(options.job, options.overrides)
    from orchestrator.run import RecordedDisplay, Run
    from orchestrator.storage.folder import check_writable

    run = Run(job)
    job = run.job
    check_writable(run.folder.uri)
    with contextlib.ExitStack() as stack:
        session = run.session(options.arguments, options.until, exit_code)
        lease = stack.enter_context(session)
        # Ray and torch take seconds to import. The checks above do not need them.
        from orchestrator.cluster.connection import Cluster, connect, local_cluster
        from orchestrator.display import TerminalDisplay
        from orchestrator.forecast import forecast
        from orchestrator.pipeline import check_memory, check_room, preflight, run_stages
        from orchestrator.storage.events import read_events

        if (here := local_cluster()) is not None:
            check_room(job, here.room)
            check_memory(job, here.room)
        terminal = TerminalDisplay(console)
        stack.callback(terminal.close)
        display = stack.enter_context(RecordedDisplay(terminal, run.events))
        clusters: list[Cluster] = []

        def connected() -> Cluster:
            if not clusters:
                display.start("connecting to Ray", total=None, unit="")
                clusters.append(stack.enter_context(connect()))
                signal.signal(signal.SIGTERM, on_sigterm)  # Ray replaced the handler
                stack.callback(ignore_signals)  # runs before everything above is shut down
                display.finish()
                preflight(run, clusters[0], display)
            return clusters[0]

        if options.dashboard and job.tune is not None and run.chosen_job() is None:
            from orchestrator.dashboard.beside import beside

            def announce(address: str) -> None:
                console.print(f"sweep      {escape(address)}", soft_wrap=True)

            stack.enter_context(beside(run.folder, announce))
        events = read_events(run.folder)
        terminal.expect(forecast(job, run.status(None), events, options.until))
        outcome = run_stages(run, options.until, connected, display)
        if options.until != "serve":
            print_outcome(console, terminal.statuses, outcome)
            return 0
        cluster = connected()
        text = _deploy(run, outcome, cluster, display)
        lease.close()  # the run is written: another training may start beside the endpoint
        print_outcome(console, terminal.statuses, outcome)
        console.print(text)
        _wait_until_stopped(cluster)
    return exit_code(None)


def _deploy(run: "Run", outcome: "Outcome", cluster: "Cluster", display: Display) -> str:
    """Deploy the trained model; returns a sample of its output and its address."""
    from orchestrator.pipeline import check_room
    from orchestrator.serve.deploy import deploy
    from orchestrator.serve.history import History

    check_room(outcome.job, cluster.room)
    assert outcome.training is not None
    started = time.monotonic()
    display.stage_started("serve")
    deployed = deploy(
        outcome.job,
        outcome.prepared,
        outcome.training,
        outcome.evaluation,
        History(run.folder),
        display,
    )
    checkpoint = f"{outcome.training.folder}/{outcome.training.best_checkpoint}"
    return record_deployed(run, deployed, checkpoint, cluster, display, time.monotonic() - started)


def record_deployed(
    run: "Run",
    deployed: "Deployed",
    checkpoint: str,
    cluster: "Cluster",
    display: Display,
    seconds: float,
) -> str:
    """Record where the model is served; returns a sample of its output and its address."""
    from orchestrator.serve.engines import engine_of

    job, address = run.job, deployed.address
    far = address.is_local and not cluster.started_here
    run.record_endpoint(address.url, checkpoint, address.ip if far else "")
    url = escape(address.url)
    display.stage_finished(StageStatus("serve", "running", address.url, seconds, "endpoint"), False)
    engine = engine_of(job.build_task())
    prompt = escape(job.serve.sample_prompt)
    sample = f"[bold]{prompt}[/]{engine.separator}{escape(deployed.answer)}"
    hint = "" if cluster.started_here or not address.hint else f"\n           {address.hint}"
    return (
        f"\n{sample}\n\nversion    {deployed.version} {escape(deployed.what)}"
        f"\nendpoint   {url}/v1/{engine.path}{escape(hint)}"
    )


def _wait_until_stopped(cluster: "Cluster") -> None:
    """Wait for Ctrl-C if Ray ends with this process. On another cluster the endpoint stays."""
    console.print(f"Ray        {escape(cluster.dashboard_url)}")
    if not cluster.started_here:
        console.print("the endpoint stays deployed on the cluster")
        return
    with contextlib.suppress(KeyboardInterrupt):
        console.print("serving until Ctrl-C")
        while True:
            time.sleep(3600)
    console.print("stopping the endpoint and Ray")


def export_command(options: argparse.Namespace) -> int:
    """`export`: write the best checkpoint in Hugging Face's layout."""
    job = load_job(options.job, options.overrides)
    from orchestrator.run import Run
    from orchestrator.storage.folder import Folder, check_writable

    run = Run(job)
    chosen = run.chosen_job()
    finished = None if chosen is None else run.finished(chosen)
    if chosen is None or finished is None:
        raise UserError(
            f"{run.folder}: holds no finished training: orchestrator train {options.job}"
        )
    from orchestrator.evaluate.export import check_theirs, export

    check_theirs(chosen, finished[1])
    check_writable(options.into)
    auto = export(chosen, *finished, Folder(options.into))
    line = f"{options.into}: transformers.{auto}.from_pretrained({options.into!r}) loads it"
    console.print(escape(line))
    return 0


def status_command(options: argparse.Namespace) -> int:
    """`status`: print the state of each stage and the last events."""
    job = load_job(options.job, options.overrides)
    from orchestrator.forecast import forecast, from_events, in_words, until_of
    from orchestrator.run import Run
    from orchestrator.storage.events import read_events

    run = Run(job)
    holder = run.holder()
    statuses = run.status(holder)
    events = read_events(run.folder)
    ahead = {} if holder is None else forecast(run.job, statuses, events, until_of(events))
    left = from_events(ahead, run.job, events, datetime.now(UTC))
    if options.json:
        stages = {status.stage: asdict(status) for status in statuses}
        report = {
            "job": job.name,
            "stages": stages,
            "holder": holder,
            "seconds_left": left,
            "events": events,
        }
        sys.stdout.write(strict_json.dumps(report, indent=1) + "\n")
        return 0
    print_statuses(console, statuses)
    if holder is not None:
        console.print(f"running: {escape(holder)}")
    if eta := in_words(left):
        console.print(f"ETA {eta}")
    if events:
        console.print(event_table(events, len(events) if options.all else LAST_EVENTS))
    return 0


def dashboard_command(options: argparse.Namespace) -> int:
    """`dashboard`: show runs and sweeps in a browser until Ctrl-C."""
    from orchestrator.dashboard import server
    from orchestrator.dashboard.actions import TOKEN_VARIABLE

    def announce(address: str) -> None:
        console.print(f"dashboard  {escape(address)}", soft_wrap=True)
        console.print("showing until Ctrl-C")

    host = options.host if options.host is not None else server.HOST
    port = options.port if options.port is not None else server.PORT
    token = options.token or os.environ.get(TOKEN_VARIABLE) or None
    with contextlib.suppress(KeyboardInterrupt):
        server.serve(options.where, host, port, token, announce)
    return exit_code(None)


def schema_command(options: argparse.Namespace) -> int:
    """`schema`: print the JSON schema of job files."""
    sys.stdout.write(json_schema())
    return 0

"""The command line: `orchestrator run jobs/language_modelling.yaml`, and its parts."""

import argparse
import contextlib
import gc
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from types import FrameType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape

from orchestrator import __version__
from orchestrator.errors import OrchestratorError, StoppedError, UserError
from orchestrator.job.file import load_job
from orchestrator.job.schema import json_schema
from orchestrator.progress import STAGES, StageStatus
from orchestrator.storage import strict_json
from orchestrator.tables import event_table, plan_table, print_outcome, print_statuses

if TYPE_CHECKING:
    pass

LAST_EVENTS = 20  # that status shows by itself
console = Console(highlight=False)
errors = Console(stderr=True, highlight=False, soft_wrap=True)

DESCRIPTION = """\
Run a machine-learning job on Ray: one YAML file, five stages, raw data to a served model.

  prepare   read, clean, split, encode and shuffle the data   (Ray Data)
  tune      sweep hyperparameters, if the job asks for it     (Ray Tune)
  train     train a Transformer on the workers                (Ray Train)
  evaluate  score the test split and write a report           (Ray Data)
  serve     deploy the best checkpoint behind HTTP            (Ray Serve)

A finished stage is not run again; an interrupted one continues. RAY_ADDRESS names the Ray cluster
to run on; without it, one is started on this machine and ended with the command.
"""
EXAMPLES = """\
examples:
  orchestrator run jobs/language_modelling.yaml
  orchestrator run job.yaml --until evaluate train.minutes=20 name=longer
  orchestrator plan job.yaml
  orchestrator status job.yaml --json
  orchestrator dashboard runs
  ray job submit --working-dir . -- python -m orchestrator run jobs/language_modelling.yaml
"""


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns its exit code: 0 done, 1 failed, 2 the user's mistake, 130 Ctrl-C."""
    gc.set_threshold(50_000)  # of 700: imports, most of a command's time, leave nothing to collect
    options = _parse(make_parser(), arguments)
    if arguments is None and not options.debug:
        sys.unraisablehook = _unheard
    options.arguments = sys.argv[1:] if arguments is None else arguments
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    signal.signal(signal.SIGTERM, _on_sigterm)
    try:
        command: Callable[[argparse.Namespace], int] = options.command
        return command(options)
    except StoppedError as error:
        errors.print(f"stopped: {escape(str(error))}")
        return _exit_code(error)
    except OrchestratorError as error:
        if options.debug:
            raise
        for line in str(error).splitlines():
            errors.print(f"[bold red]error:[/] {escape(line)}")
        return _exit_code(error)
    except KeyboardInterrupt as error:
        word = "terminated" if terminated.is_set() else "stopped"
        errors.print(f"{word}: what is finished is kept, the same command continues")
        return _exit_code(error)
    except BrokenPipeError:
        return 1
    except Exception as error:
        if options.debug:
            raise
        lines = [line for line in str(error).strip().splitlines() if line.strip()]
        reason = lines[-1].strip() if lines else ""
        errors.print(f"[bold red]error:[/] {type(error).__name__}: {escape(reason)}")
        errors.print("unexpected error: please report it with the output of --debug")
        return 1


def _unheard(_: "sys.UnraisableHookArgs") -> None:
    """Drop errors of `__del__`: Ray objects interrupted during construction raise in it."""


def _exit_code(error: BaseException | None) -> int:
    if isinstance(error, OrchestratorError):
        return error.exit_code
    if isinstance(error, Exception):
        return 1
    if terminated.is_set():
        return 143
    return 0 if error is None else 130


def _parse(parser: argparse.ArgumentParser, arguments: list[str] | None) -> argparse.Namespace:
    """Arguments in any order: argparse by itself takes no KEY=VALUE behind an option."""
    options, rest = parser.parse_known_args(arguments)
    unknown = [text for text in rest if text.startswith("-") or not hasattr(options, "overrides")]
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    if rest:
        options.overrides += rest
    return options


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="orchestrator",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"orchestrator {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    run = _job_command(commands, "run", "run all stages, then serve until Ctrl-C", run_command)
    run.add_argument("--until", choices=STAGES, default="serve", help="the last stage to run")
    run.add_argument(
        "--no-dashboard",
        dest="dashboard",
        action="store_false",
        help="do not show a sweep in a browser while it runs",
    )
    for stage in STAGES:
        text = f"run the stages up to {stage}"
        _job_command(commands, stage, text, run_command).set_defaults(until=stage, dashboard=False)
    plan_text = "print the resolved job and what it will do; starts nothing"
    _job_command(commands, "plan", plan_text, plan_command)
    status = _job_command(commands, "status", "print where each stage stands", status_command)
    status.add_argument("--json", action="store_true", help="for programs")
    status.add_argument("--all", action="store_true", help="all events, not the last ones alone")
    export_text = "write the best checkpoint as Hugging Face's libraries load it"
    _job_command(commands, "export", export_text, export_command, into="DIR")
    _add_dashboard(commands)
    schema = commands.add_parser("schema", help="print the JSON schema of job files")
    schema.set_defaults(command=schema_command, debug=False)
    return parser


def _job_command(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
    name: str,
    text: str,
    command: Callable[[argparse.Namespace], int],
    into: str | None = None,
) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name, help=text, description=text.capitalize() + ".", epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument(
        "job", metavar="JOB", help="a job file, such as jobs/language_modelling.yaml"
    )
    if into is not None:
        parser.add_argument("into", metavar=into, help="a folder or a URI to write to")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="KEY=VALUE",
        help="values in place of the file's: train.lr=3e-4",
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.set_defaults(command=command)
    return parser


def _add_dashboard(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    text = "show runs and sweeps in a browser, while they run and later"
    parser = commands.add_parser("dashboard", help=text, description=text.capitalize() + ".")
    parser.add_argument(
        "where",
        nargs="?",
        default="runs",
        metavar="RUNS",
        help="a storage, a folder or a URI, or the folder of one run (default: runs)",
    )
    parser.add_argument(
        "--host", help="address to listen on: this machine's alone, unless told else"
    )
    parser.add_argument("--port", type=int, help="port to listen on (default: 8600)")
    parser.add_argument(
        "--token",
        help="what a browser is asked for; made and printed where others can reach the address; "
        "ORCHESTRATOR_DASHBOARD_TOKEN does the same and is not in the list of processes",
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.set_defaults(command=dashboard_command)


def run_command(options: argparse.Namespace) -> int:
    """`run`, and each stage's own command, which is `run --until` it."""
    job = load_job(options.job, options.overrides)
    from orchestrator.run import RecordedDisplay, Run
    from orchestrator.storage.folder import check_writable

    run = Run(job)
    job = run.job
    check_writable(run.folder.uri)
    with contextlib.ExitStack() as stack:
        lease = stack.enter_context(run.session(options.arguments, _exit_code))
        # Ray and torch take seconds to import, which no mistake above need wait for.
        from orchestrator.cluster.connection import Cluster, connect, local_cluster
        from orchestrator.display import TerminalDisplay
        from orchestrator.forecast import forecast
        from orchestrator.pipeline import check_room, run_stages
        from orchestrator.storage.events import read_events

        if (here := local_cluster()) is not None:
            check_room(job, here)
        terminal = TerminalDisplay(console)
        stack.callback(terminal.close)
        display = stack.enter_context(RecordedDisplay(terminal, run.events))
        clusters: list[Cluster] = []

        def connected() -> Cluster:
            if not clusters:
                display.start("connecting to Ray", total=None, unit="")
                clusters.append(stack.enter_context(connect()))
                signal.signal(signal.SIGTERM, _on_sigterm)  # Ray has put its own in this place
                stack.callback(_ignore_signals)  # the last thing entered is the first to be left
                display.finish()
            return clusters[0]

        if options.dashboard and job.tune is not None and run.chosen_job() is None:
            from orchestrator.dashboard.beside import beside

            def announce(address: str) -> None:
                console.print(f"sweep      {escape(address)}", soft_wrap=True)

            stack.enter_context(beside(run.folder, announce))
        ahead = forecast(job, run.status(None), read_events(run.folder), options.until)
        terminal.expect(ahead)
        outcome = run_stages(run, options.until, connected, display)
        if options.until != "serve":
            print_outcome(console, terminal.statuses, outcome)
            return 0
        from orchestrator.serve.deploy import ask, deploy
        from orchestrator.serve.engines import engine_of

        cluster = connected()
        check_room(outcome.job, cluster)
        assert outcome.training is not None
        started = time.monotonic()
        display.stage_started("serve")
        url = deploy(outcome.job, outcome.prepared, outcome.training, display)
        text = ask(url, job)
        run.record_endpoint(url, f"{outcome.training.folder}/{outcome.training.best_checkpoint}")
        seconds = time.monotonic() - started
        display.stage_finished(StageStatus("serve", "running", url, seconds, "endpoint"), False)
        lease.close()  # the run is written: another training may start beside the endpoint
        print_outcome(console, terminal.statuses, outcome)
        engine = engine_of(job.build_task())
        prompt = escape(job.serve.sample_prompt)
        console.print(f"\n[bold]{prompt}[/]{engine.separator}{escape(text)}\n")
        console.print(f"endpoint   {escape(url)}/v1/{engine.path}")
        console.print(f"Ray        {escape(cluster.dashboard_url)}")
        if not cluster.started_here:
            console.print("the endpoint stays deployed on the cluster")
            return 0
        with contextlib.suppress(KeyboardInterrupt):
            console.print("serving until Ctrl-C")
            while True:
                time.sleep(3600)
        console.print("stopping the endpoint and Ray")
    return _exit_code(None)


def export_command(options: argparse.Namespace) -> int:
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
    told = f"{options.into}: transformers.{auto}.from_pretrained({options.into!r}) loads it"
    console.print(escape(told))
    return 0


def plan_command(options: argparse.Namespace) -> int:
    job = load_job(options.job, options.overrides)
    from orchestrator.cluster.connection import local_cluster
    from orchestrator.job.plan import make_plan
    from orchestrator.pipeline import check_inputs, check_room
    from orchestrator.run import Run
    from orchestrator.storage.artifact import PreparedData

    run = Run(job)
    job = run.job
    statuses = run.status(run.holder())
    check_inputs(run)
    plan = make_plan(job, run.files, PreparedData.load(run.prepare_folder()))
    console.print_json(job.model_dump_json())
    console.print(plan_table(job, plan, run))
    print_statuses(console, statuses)
    if (here := local_cluster()) is not None:
        check_room(job, here)
    return 0


def status_command(options: argparse.Namespace) -> int:
    job = load_job(options.job, options.overrides)
    from orchestrator.forecast import forecast, time_left_of
    from orchestrator.run import Run
    from orchestrator.storage.events import read_events

    run = Run(job)
    holder = run.holder()
    statuses = run.status(holder)
    events = read_events(run.folder)
    if options.json:
        stages = {status.stage: asdict(status) for status in statuses}
        report = {"job": job.name, "stages": stages, "holder": holder, "events": events}
        sys.stdout.write(strict_json.dumps(report, indent=1) + "\n")
        return 0
    print_statuses(console, statuses)
    if holder is not None:
        console.print(f"running: {escape(holder)}")
        ahead = forecast(job, statuses, events, "evaluate")
        if left := time_left_of(ahead, events, datetime.now(UTC)):
            console.print(f"left up to evaluate: {left}")
    if events:
        console.print(event_table(events, len(events) if options.all else LAST_EVENTS))
    return 0


def dashboard_command(options: argparse.Namespace) -> int:
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
    return _exit_code(None)


def schema_command(options: argparse.Namespace) -> int:
    sys.stdout.write(json_schema())
    return 0


terminated = threading.Event()


def _on_sigterm(number: int, frame: FrameType | None) -> None:
    """Leave as after Ctrl-C: Ray's own calls pass on no other exception."""
    terminated.set()
    raise KeyboardInterrupt


def _ignore_signals() -> None:
    """While what runs is taken down, a second Ctrl-C must not leave half of it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)

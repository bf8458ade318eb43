"""The arguments of each command."""

import argparse
from collections.abc import Callable

from orchestrator import __version__
from orchestrator.cli.commands import (
    dashboard_command,
    export_command,
    run_command,
    schema_command,
    status_command,
)
from orchestrator.cli.plan_command import plan_command
from orchestrator.cli.serving_commands import history_command, rollback_command
from orchestrator.progress import STAGES

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
  orchestrator plan job.yaml --cluster cluster/aws.yaml --scale 8,64,512 --price 3.2
  orchestrator status job.yaml --json
  RAY_ADDRESS=auto orchestrator rollback job.yaml
  orchestrator dashboard runs
  ray job submit --working-dir . -- python -m orchestrator run jobs/language_modelling.yaml

exit codes:
  0    done; a finished run is not run again
  1    a stage failed: the same command would fail again
  2    the job, the data or the command is wrong: the error says what to change
  75   a machine, the network or the storage failed, or another process runs this run: try again
  130  stopped by Ctrl-C, 143 by SIGTERM: the same command continues
"""


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The options of a command, with its function as `command`.

    Arguments may come in any order: argparse itself takes no KEY=VALUE behind an option.
    """
    parser = make_parser()
    options, rest = parser.parse_known_args(arguments)
    unknown = [text for text in rest if text.startswith("-") or not hasattr(options, "overrides")]
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    if rest:
        options.overrides += rest
    return options


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
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
    _add_plan_options(_job_command(commands, "plan", plan_text, plan_command))
    status = _job_command(commands, "status", "print where each stage stands", status_command)
    status.add_argument("--json", action="store_true", help="for programs")
    status.add_argument("--all", action="store_true", help="all events, not the last ones alone")
    rollback_text = "serve the version again that was served before the one that is"
    _job_command(commands, "rollback", rollback_text, rollback_command)
    history = _job_command(
        commands, "history", "list what was served when, and what it was made of", history_command
    )
    history.add_argument("--json", action="store_true", help="for programs, with all settings")
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


def _add_plan_options(plan: argparse.ArgumentParser) -> None:
    plan.add_argument(
        "--cluster", metavar="FILE", help="the machines of a file for `ray up`, not this one"
    )
    plan.add_argument(
        "--scale", metavar="N,N", help="also predict these numbers of workers, such as 8,64,512"
    )
    plan.add_argument(
        "--calibrate",
        action="store_true",
        help="time ten steps of the job on this machine, in place of a table's estimate",
    )
    plan.add_argument(
        "--price",
        type=float,
        metavar="DOLLARS",
        help="of a machine for an hour (default: the label price-per-hour of its node type)",
    )
    plan.add_argument(
        "--network", type=float, metavar="GBIT", help="a second between machines (default: 10)"
    )
    plan.add_argument(
        "--failures", type=float, metavar="N", help="of 1,000 machines in a day (default: 3.8)"
    )
    plan.add_argument("--json", action="store_true", help="the plan alone, for programs")


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
    parser.add_argument("--host", help="address to listen on: this machine alone by default")
    parser.add_argument("--port", type=int, help="port to listen on (default: 8600)")
    parser.add_argument(
        "--token",
        help="the page asks for it; one is made and printed if the address is not local; "
        "ORCHESTRATOR_DASHBOARD_TOKEN does the same and is not in the list of processes",
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.set_defaults(command=dashboard_command)

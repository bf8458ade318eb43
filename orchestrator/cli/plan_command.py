"""`plan`: print the resolved job, and what it will do, need and cost. Starts nothing."""

import argparse
import os
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.console import Console

from orchestrator.cli.tables import print_statuses
from orchestrator.errors import UserError
from orchestrator.job.file import load_job
from orchestrator.storage import strict_json

if TYPE_CHECKING:  # imported in the command: `orchestrator --help` needs none of them
    from orchestrator.job.job import Job
    from orchestrator.plan.machines import Machines
    from orchestrator.plan.plan import Asked, Plan
    from orchestrator.run import Run

MOST_WORKERS = 1_000_000


def plan_command(options: argparse.Namespace) -> int:
    """Print a plan; raises UserError at the end if the job does not fit its machines."""
    scale = _numbers(options.scale)  # mistakes are told before the data is listed
    costs = {name: _positive(options, name) for name in ("price", "network", "failures")}
    job = load_job(options.job, options.overrides)
    from orchestrator.cluster.connection import local_cluster
    from orchestrator.pipeline import check_inputs, check_memory, check_room
    from orchestrator.plan.plan import make_plan
    from orchestrator.run import Run
    from orchestrator.storage.artifact import PreparedData

    run = Run(job)
    job = run.job
    statuses = run.status(run.holder())
    check_inputs(run)
    prepared = PreparedData.load(run.prepare_folder())
    asked = _asked(options, run, scale, {k: v for k, v in costs.items() if v is not None})
    plan = make_plan(job, run.files, prepared, asked)
    if options.json:
        sys.stdout.write(strict_json.dumps(report(plan), indent=1) + "\n")
    else:
        from orchestrator.cli import plan_tables

        console = Console(highlight=False)
        console.print_json(job.model_dump_json())
        plan_tables.print_plan(console, job, plan, run, asked)
        print_statuses(console, statuses)
    if options.cluster is None and (here := local_cluster()) is not None:
        check_room(job, here.room)
        check_memory(job, here.room)
    if plan.misfits:
        raise UserError("\n".join(map(str, plan.misfits)))
    return 0


def report(plan: "Plan") -> dict[str, Any]:
    """The plan as JSON: all of its figures."""
    content = asdict(plan)
    content["parameters"]["total"] = plan.parameters.total
    content["memory"]["total"] = plan.memory.total
    content["total_tokens"] = plan.total_tokens
    content["misfits"] = [str(misfit) for misfit in plan.misfits]
    del content["shapes"]
    if plan.calibration is not None:
        del content["calibration"]["shapes"], content["calibration"]["timed"]
    return {"prediction": True, **content}


def _asked(
    options: argparse.Namespace, run: "Run", scale: tuple[int, ...], costs: dict[str, float]
) -> "Asked":
    from orchestrator.plan.plan import Asked
    from orchestrator.plan.scale import Costs

    machines = _machines(options, run.job)
    calibration = None
    if options.calibrate:
        from orchestrator.plan.calibration import calibrate
        from orchestrator.storage.artifact import PreparedData

        prepared = PreparedData.load(run.prepare_folder())
        calibration = calibrate(run.job, run.files, prepared)
    return Asked(machines, Costs(**costs), scale, calibration)


def _machines(options: argparse.Namespace, job: "Job") -> "Machines":
    from orchestrator.plan.machines import Machine, Machines, this_machine

    if options.cluster is not None:
        from orchestrator.plan.cluster_file import read_machines

        return read_machines(options.cluster)
    address = os.environ.get("RAY_ADDRESS")
    if address is None:
        return this_machine(job)
    where = f"the cluster at RAY_ADDRESS={address}"
    note = f"{where}: its machines are unknown until the job runs; --cluster FILE names them"
    return Machines(where, (Machine("machine", MOST_WORKERS),), None, (note,))


def _numbers(text: str | None) -> tuple[int, ...]:
    """The numbers of workers of `--scale`."""
    if text is None:
        return ()
    numbers = [part.strip() for part in text.split(",")]
    for part in numbers:
        if not part.isascii() or not part.isdigit() or not 0 < int(part) <= MOST_WORKERS:
            raise UserError(
                f"--scale {text}: {part or 'nothing'} is no number of workers: write 8,64,512"
            )
    return tuple(map(int, numbers))


def _positive(options: argparse.Namespace, name: str) -> float | None:
    """The value of an option, or None if it is not given. Only a price may be 0."""
    value: float | None = getattr(options, name)
    if value is None or 0 < value < float("inf") or (value == 0 and name == "price"):
        return value
    raise UserError(f"--{name} {value:g}: must be positive")

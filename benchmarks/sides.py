"""A side of a comparison: a command started anew each time, on a machine that is quiet."""

import argparse
import contextlib
import itertools
import json
import os
import secrets
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml

from benchmarks.timed_task import FOLDER
from tests.ray_head import ray_head

ROOT = Path(__file__).parents[1]
COMMAND = Path(sys.executable).parent / "orchestrator"
NICENESS = 15  # of Ray's workers; everything else runs at it too, so that nobody waits for anybody
QUIET_CORES = 0.3  # busy with something else: beyond this, figures are doubtful
QUIET_LOAD = 1.5
PATIENCE = 20  # seconds for which a side waits for the machine to be quiet


class Machine:
    """What else the machine did: looked at before each round and before each side."""

    def __init__(self) -> None:
        os.nice(max(0, NICENESS - os.nice(0)))
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that nothing stays behind
        os.environ.update({"RAY_worker_niceness": "0"})  # which is added to the benchmark's own
        self.load = [os.getloadavg()[0]]  # what comes later is the benchmark's own
        if self.load[0] > QUIET_LOAD:
            warn(f"the load average is {self.load[0]:.1f}: void above {QUIET_LOAD}")
        self.busy: list[float] = []

    def round_begins(self) -> None:
        self.load.append(os.getloadavg()[0])

    def wait_until_quiet(self) -> None:
        """Ray's daemons, too, are busy for some seconds after their start."""
        cores = os.cpu_count() or 1
        deadline = time.monotonic() + PATIENCE
        while True:
            busy = psutil.cpu_percent(interval=1.5) / 100 * cores
            if busy < QUIET_CORES or time.monotonic() > deadline:
                break
        self.busy.append(round(busy, 2))
        if busy >= QUIET_CORES:
            warn(f"{busy:.1f} of {cores} cores are busy with something else")

    def summary(self) -> dict[str, Any]:
        return {
            "cores": os.cpu_count(),
            "load_at_start_and_before_rounds": self.load,
            "busy_before": self.busy,
        }


@dataclass(frozen=True)
class Steps:
    """When a command was started, its first worker ready, and each of its steps ended."""

    command: float
    ready: float
    ends: list[float]
    loss: float  # mean of the last steps

    @property
    def start(self) -> float:
        """Seconds from the command to the end of the first step."""
        return self.ends[0] - self.command

    def seconds(self, skipped: int) -> list[float]:
        """Of each step, without the first ones."""
        ends = self.ends[skipped:]
        return [after - before for before, after in itertools.pairwise(ends)]


class Engine:
    """This engine, through its own command, with a job in a folder of the benchmark's own."""

    def __init__(self, folder: Path, job: dict[str, Any]) -> None:
        self.job = folder / "job.yaml"
        self.storage = folder / "runs"
        self.notes = folder / "notes"
        self.notes.mkdir()
        self.log = folder / "engine.log"
        settings = {"task": "benchmarks.timed_task:TimedLanguageModelling"}
        self.job.write_text(yaml.safe_dump({**job, **settings, "storage": str(self.storage)}))
        os.environ[FOLDER] = str(self.notes)  # a head that is started from here inherits it
        os.environ["PYTHONPATH"] = str(ROOT)
        os.environ.pop("RAY_ADDRESS", None)

    def start(self, stage: str, overrides: Sequence[str], environment: dict[str, str]) -> "Started":
        """Start `orchestrator STAGE`, with nothing left of an earlier training."""
        for note in self.notes.iterdir():
            note.unlink()
        command = [str(COMMAND), stage, str(self.job), *overrides]
        return Started(command, environment, self.log)

    def prepare(self, machine: Machine) -> Path:
        """Prepare the job's data; returns its folder."""
        with running_ray(machine) as environment, self.start("prepare", [], environment) as started:
            started.output()
        (path,) = self.storage.glob("*/prepare-*")
        return path

    def workers(self) -> dict[tuple[int, int], list[float]]:
        """By rank and process: when it was ready, and when each of its steps began."""
        found = {}
        for note in self.notes.iterdir():
            rank, process = note.name.split("-")
            lines = [line.split() for line in note.read_text().splitlines()]
            if len(lines) < 2:  # no step yet, or none ever: the command that exports the model
                continue
            check_niceness({int(niceness) for _, niceness in lines})
            found[int(rank), int(process)] = [float(at) for at, _ in lines]
        return found


class Started:
    """A command that runs; what it prints goes to a file."""

    def __init__(
        self, command: list[str], environment: dict[str, str], log: Path, folder: Path = ROOT
    ) -> None:
        self.log = log
        self.at = time.time()
        with log.open("w") as output:
            self.process = subprocess.Popen(
                command, cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT
            )

    def __enter__(self) -> "Started":
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing of it stays behind, however the block ends."""
        if self.process.poll() is None:
            for process in psutil.Process(self.process.pid).children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    process.kill()
            self.process.kill()
            self.process.wait()

    def output(self) -> str:
        """What it printed, at its end. Raises RuntimeError where it failed."""
        code = self.process.wait()
        text = self.log.read_text()
        if code:
            command = " ".join(map(str, self.process.args))  # type: ignore[arg-type]
            raise RuntimeError(f"{command} ended with {code}:\n{text[-3000:]}")
        return text


@contextlib.contextmanager
def running_ray(machine: Machine, cores: int | None = None) -> Iterator[dict[str, str]]:
    """A Ray head, on all cores unless told, that has run a job before: how to get to it.

    With its first job a Ray starts what it keeps from then on.
    """
    os.environ["RAY_AUTH_MODE"] = "token"
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    with ray_head(cores or os.cpu_count() or 1) as head:
        first_job = "import ray; ray.init(log_to_driver=False); ray.data.range(1).take()"
        subprocess.run(
            [sys.executable, "-c", first_job], env=head.environment, check=True, capture_output=True
        )
        machine.wait_until_quiet()
        yield head.environment


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="benchmark-") as name:
        yield Path(name)


def check_niceness(found: set[int]) -> None:
    if found != {os.nice(0)}:
        warn(f"a process runs at niceness {sorted(found)}, the benchmark at {os.nice(0)}")


def rotated(names: Sequence[str], turn: int) -> list[str]:
    turn %= len(names)
    return [*names[turn:], *names[:turn]]


def spread(values: Sequence[float], digits: int = 2) -> str:
    """The median and, of several rounds, the lowest and the highest."""
    middle = f"{statistics.median(values):,.{digits}f}"
    if len(values) == 1:
        return middle
    return f"{middle} ({min(values):,.{digits}f} .. {max(values):,.{digits}f})"


def warn(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr, flush=True)


def print_json(result: dict[str, Any]) -> None:
    """The last line of every benchmark, for programs."""
    print(json.dumps(result, default=list))


def parser(text: str | None) -> argparse.ArgumentParser:
    """Options of every benchmark."""
    made = argparse.ArgumentParser(description=text, formatter_class=argparse.RawTextHelpFormatter)
    made.add_argument("--rounds", type=int, default=3, help="each side runs once in each")
    return made

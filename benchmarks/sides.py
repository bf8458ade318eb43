"""The sides of a comparison: commands that start anew each time, on an otherwise idle machine."""

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
NICENESS = 15  # the one of Ray's workers; all sides run at it, so that they compete equally
QUIET_CORES = 0.3  # cores that other processes use; above this, figures are doubtful
QUIET_LOAD = 1.5  # load average at the start; above this, figures are void
PATIENCE = 20  # seconds that a side waits for the machine to become quiet


class Machine:
    """The load of other processes, measured before each round and each side."""

    def __init__(self) -> None:
        os.nice(max(0, NICENESS - os.nice(0)))
        # An exit by SIGTERM ends all processes that the benchmark started.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        os.environ.update({"RAY_worker_niceness": "0"})  # added to the benchmark's own niceness
        self.load = [os.getloadavg()[0]]  # later values include the benchmark itself
        if self.load[0] > QUIET_LOAD:
            warn(f"the load average is {self.load[0]:.1f}: void above {QUIET_LOAD}")
        self.busy: list[float] = []

    def round_begins(self) -> None:
        self.load.append(os.getloadavg()[0])

    def wait_until_quiet(self) -> None:
        """Wait up to PATIENCE seconds for other processes, such as Ray's daemons after their start,
        to become idle; warns if they do not."""
        cores = os.cpu_count() or 1
        deadline = time.monotonic() + PATIENCE
        while True:
            busy = psutil.cpu_percent(interval=1.5) / 100 * cores
            if busy < QUIET_CORES or time.monotonic() > deadline:
                break
        self.busy.append(round(busy, 2))
        if busy >= QUIET_CORES:
            warn(f"{busy:.1f} of {cores} cores are busy with other processes")

    def summary(self) -> dict[str, Any]:
        """The measured load, for the JSON line."""
        return {
            "cores": os.cpu_count(),
            "load_at_start_and_before_rounds": self.load,
            "busy_before": self.busy,
        }


@dataclass(frozen=True)
class StepTimes:
    """The times of a training, in seconds since the epoch, and its final loss."""

    command: float  # the command started
    ready: float  # the first worker was ready
    ends: list[float]  # each step ended
    loss: float  # mean of the last steps

    @property
    def start(self) -> float:
        """Seconds from the command to the end of the first step."""
        return self.ends[0] - self.command

    def seconds(self, skipped: int) -> list[float]:
        """The duration of each step, without the first `skipped` ones."""
        ends = self.ends[skipped:]
        return [after - before for before, after in itertools.pairwise(ends)]


class Engine:
    """This engine, run by its command on a job in the benchmark's temporary folder."""

    def __init__(self, folder: Path, job: dict[str, Any]) -> None:
        self.job = folder / "job.yaml"
        self.storage = folder / "runs"
        self.notes = folder / "notes"
        self.notes.mkdir()
        self.log = folder / "engine.log"
        settings = {"task": "benchmarks.timed_task:TimedLanguageModelling"}
        self.job.write_text(yaml.safe_dump({**job, **settings, "storage": str(self.storage)}))
        os.environ[FOLDER] = str(self.notes)  # Ray heads that start later inherit it
        os.environ["PYTHONPATH"] = str(ROOT)
        os.environ.pop("RAY_ADDRESS", None)

    def start(self, stage: str, overrides: Sequence[str], environment: dict[str, str]) -> "Command":
        """Start `orchestrator STAGE`, after deleting the notes of earlier trainings."""
        for note in self.notes.iterdir():
            note.unlink()
        arguments = [str(COMMAND), stage, str(self.job), *overrides]
        return Command(arguments, environment, self.log)

    def prepare(self, machine: Machine) -> Path:
        """Prepare the job's data; returns its folder."""
        with running_ray(machine) as environment, self.start("prepare", [], environment) as command:
            command.output()
        (path,) = self.storage.glob("*/prepare-*")
        return path

    def workers(self) -> dict[tuple[int, int], list[float]]:
        """The times of each worker, by its rank and process: when it was ready, then when each of
        its steps began."""
        times = {}
        for note in self.notes.iterdir():
            rank, process = note.name.split("-")
            lines = [line.split() for line in note.read_text().splitlines()]
            if len(lines) < 2:  # no step yet, or the command's own process, which only exports
                continue
            check_niceness({int(niceness) for _, niceness in lines})
            times[int(rank), int(process)] = [float(time_) for time_, _ in lines]
        return times


class Command:
    """A running command, whose output goes to a file. As a context manager it ends with the block,
    with all of its children."""

    def __init__(
        self, arguments: list[str], environment: dict[str, str], log: Path, folder: Path = ROOT
    ) -> None:
        self.log = log
        self.started = time.time()
        with log.open("w") as output:
            self.process = subprocess.Popen(
                arguments, cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT
            )

    def __enter__(self) -> "Command":
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            for process in psutil.Process(self.process.pid).children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    process.kill()
            self.process.kill()
            self.process.wait()

    def output(self) -> str:
        """Wait for the command to end; returns its output.

        Raises:
            RuntimeError: if its exit code is not 0.
        """
        code = self.process.wait()
        text = self.log.read_text()
        if code:
            arguments = " ".join(map(str, self.process.args))  # type: ignore[arg-type]
            raise RuntimeError(f"{arguments} exited with {code}:\n{text[-3000:]}")
        return text


@contextlib.contextmanager
def running_ray(machine: Machine, cores: int | None = None) -> Iterator[dict[str, str]]:
    """Start a Ray head, with all cores by default, and yield the environment that connects to it.

    It has already run one job, since Ray starts some of its processes only with the first job.
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


def check_niceness(values: set[int]) -> None:
    """Warn if the niceness of a side's processes is not the benchmark's own."""
    if values != {os.nice(0)}:
        warn(f"a process runs at niceness {sorted(values)}, the benchmark at {os.nice(0)}")


def rotated(names: Sequence[str], turn: int) -> list[str]:
    """The order of the sides in a round, so that no side always comes first."""
    turn %= len(names)
    return [*names[turn:], *names[:turn]]


def spread(values: Sequence[float], digits: int = 2) -> str:
    """The median; for several rounds also the lowest and the highest value."""
    median = f"{statistics.median(values):,.{digits}f}"
    if len(values) == 1:
        return median
    return f"{median} ({min(values):,.{digits}f} .. {max(values):,.{digits}f})"


def warn(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr, flush=True)


def print_json(result: dict[str, Any]) -> None:
    """Print the last line of every benchmark, which programs can read."""
    print(json.dumps(result, default=list))


def option_parser(text: str | None) -> argparse.ArgumentParser:
    """The options that all benchmarks share. `text` describes the benchmark."""
    parser = argparse.ArgumentParser(
        description=text, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3, help="each side runs once in each round")
    return parser

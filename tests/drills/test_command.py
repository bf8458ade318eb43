"""The command: killed, terminated, started twice, and run while the clock is set."""

import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from random import Random

import pytest

from orchestrator.job.job import Job
from orchestrator.run import Run
from orchestrator.storage.artifact import PreparedData
from orchestrator.storage.events import read_events
from tests.drills.conftest import Make, Undisturbed
from tests.drills.s3 import BUCKET, Storage
from tests.drills.trainings import Command, assert_clean, ending, make_job, wait_until
from tests.ray_head import Head

pytestmark = [pytest.mark.usefixtures("connected"), pytest.mark.timeout(400)]
# These processes search for a lost head for a minute. They rename themselves once started.
AGENTS = ("ray::DashboardAgent", "dashboard/agent.py")
AGENTS += ("ray::RuntimeEnvAgent", "runtime_env/agent/main.py")
AGENTS += ("workers/default_worker.py",)  # a process that was just starting
FAKETIME = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1"


def own_ray() -> dict[str, str]:
    """An environment in which the command starts its own Ray."""
    return {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}


@pytest.mark.parametrize("where", ["own Ray", "cluster"])
def test_a_killed_command_is_continued_by_the_same_command(
    job: Job,
    head: Head,
    commands: list[Command],
    undisturbed: Undisturbed,
    where: str,
    chance: Random,
) -> None:
    environment = own_ray() if where == "own Ray" else head.environment
    commands.append(Command(job, environment))
    commands[0].wait_for_checkpoint(chance.randrange(20, 90))
    os.kill(commands[0].process.pid, signal.SIGKILL)
    commands[0].assert_nothing_left(but=AGENTS)
    assert_clean(head, commands[0].folder)

    started = time.monotonic()
    commands.append(Command(job, environment))
    commands[1].wait_for_event("resumed")
    print(f"\nthe command again: {time.monotonic() - started:.1f} s until it goes on")
    commands[1].end()
    assert ending(commands[1].folder) == undisturbed()
    assert_clean(head, commands[1].folder)
    commands[1].assert_nothing_left()
    commands[0].assert_nothing_left(seconds=120)


def test_sigterm_saves_a_last_checkpoint(
    make: Make, head: Head, commands: list[Command], undisturbed: Undisturbed, chance: Random
) -> None:
    job = make(train__checkpoint_every=1000, train__eval_every=1000)
    for pause in (1, 3, 9):  # on a busy machine, the first step may come late
        command = Command(job, own_ray())
        commands.append(command)
        command.wait_for_checkpoint(0)
        time.sleep(pause + chance.random())
        started = time.monotonic()
        os.kill(command.process.pid, signal.SIGTERM)
        output = command.end(code=143)
        seconds = time.monotonic() - started
        print(f"\nSIGTERM: ended after {seconds:.1f} s")
        assert "the same command continues" in output and "Traceback" not in output
        assert seconds < 30
        assert command.events("ended")[-1]["exit_code"] == 143
        command.assert_nothing_left()
        assert_clean(head, command.folder)
        if (step := command.events("checkpoint")[-1]["step"]) != 0:
            break
    assert step not in (0, 150)  # no scheduled checkpoint

    commands.append(Command(job, own_ray()))
    commands[-1].end()
    assert commands[-1].events("resumed")[-1]["step"] == step
    assert ending(commands[-1].folder) == undisturbed()


def test_a_second_run_of_the_same_name_is_refused(
    job: Job, commands: list[Command], head: Head
) -> None:
    commands.append(Command(job, head.environment))
    commands[0].wait_for_checkpoint(0)
    started = time.monotonic()
    subprocess.run([sys.executable, "-m", "orchestrator", "--version"], check=True)
    start_up = time.monotonic() - started
    started = time.monotonic()
    commands.append(Command(job, head.environment))
    output = commands[1].end(code=75)
    seconds = time.monotonic() - started
    print(f"\nrefused after {seconds:.1f} s, of which {start_up:.1f} s to start up")
    assert f"in use by process {commands[0].process.pid}" in output
    assert seconds - start_up < 2
    commands[0].end()


def test_on_object_storage_a_killed_command_is_followed_within_half_a_minute(
    prepared: PreparedData, head: Head, s3: Storage, tmp_path: Path
) -> None:
    """The first try succeeds: it waits until the killed one's lease has ended."""
    job = make_job(prepared, tmp_path, storage=f"s3://{BUCKET}/killed")
    path = tmp_path / "job.yaml"
    path.write_text(job.model_dump_json(exclude_none=True))
    command = [sys.executable, "-m", "orchestrator", "prepare", str(path)]
    killed = subprocess.Popen(command, env=head.environment)
    wait_until(lambda: Run(job).folder.exists("lease.json"), "lease", lambda: "")
    wait_until(lambda: bool(read_events(Run(job).folder)), "event", lambda: "")
    killed.kill()
    killed.wait()
    at = datetime.now(UTC)
    subprocess.run(command, env=head.environment, check=True, timeout=200)
    _, second = (e for e in read_events(Run(job).folder) if e["event"] == "started" and "host" in e)
    seconds = (datetime.fromisoformat(second["time"]) - at).total_seconds()
    print(f"\nkill -9 on object storage: {seconds:.1f} s until the next command holds the run")
    assert seconds < 35


def test_a_storage_that_is_away_may_be_back_later(job: Job, commands: list[Command]) -> None:
    nowhere = {"AWS_ENDPOINT_URL": "http://127.0.0.1:1"}
    away = job.override({"storage": "s3://bucket/away"})
    command = [sys.executable, "-m", "orchestrator", "prepare"]
    path = Path(job.storage) / "away.yaml"
    path.write_text(away.model_dump_json(exclude_none=True))
    done = subprocess.run(
        [*command, str(path)], env=own_ray() | nowhere, capture_output=True, text=True
    )
    assert done.returncode == 75
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: storage = s3://bucket/away") and "NETWORK_CONNECTION" in line


@pytest.mark.parametrize("shift", ["-1h", "+1h"])
def test_the_clock_may_be_set(
    job: Job,
    head: Head,
    commands: list[Command],
    undisturbed: Undisturbed,
    shift: str,
    chance: Random,
) -> None:
    """The clock of the command and of its Ray is set, as if the machine's were."""
    if not Path(FAKETIME).exists():
        pytest.skip("libfaketime is not installed: apt-get install faketime")
    commands.append(Command(job, own_ray()))
    commands[0].wait_for_checkpoint(chance.randrange(20, 90))
    os.kill(commands[0].process.pid, signal.SIGKILL)
    commands[0].process.wait()
    clock = {"LD_PRELOAD": FAKETIME, "FAKETIME": shift, "NO_FAKE_STAT": "1"}
    commands.append(Command(job, own_ray() | clock))
    commands[1].end()
    times = [event["time"] for event in commands[1].events("resumed")]
    hours = (datetime.fromisoformat(times[0]) - datetime.now(UTC)).total_seconds() / 3600
    assert abs(hours - int(shift[:2])) < 0.1
    assert ending(commands[1].folder) == undisturbed()
    commands[1].assert_nothing_left()
    assert_clean(head, commands[1].folder)

"""What a viewer does to a sweep: requests to stop, resuming it, and commands to copy."""

import math
import os
import shlex
import socket
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.dashboard import actions
from orchestrator.dashboard.actions import Start, overrides_text, training_command, value_text
from orchestrator.dashboard.catalog import Catalog, FollowedRun
from orchestrator.dashboard.sweep import FollowedSweep
from orchestrator.errors import UserError
from orchestrator.job.file import load_job
from orchestrator.job.yaml_text import parse_value
from orchestrator.storage import lease
from orchestrator.storage.events import EventLog
from orchestrator.storage.folder import Folder
from tests.make_sweep import FINGERPRINT, plan, write_start, write_trial

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folder:
    """A run with a sweep that was interrupted, started from `tmp_path`."""
    monkeypatch.setattr("orchestrator.dashboard.catalog.PAUSE", 0.0)
    monkeypatch.setattr("orchestrator.dashboard.sweep.PAUSE", 0.0)
    monkeypatch.chdir(tmp_path)
    folder = Folder(str(tmp_path / "runs" / "reviews"))
    record, trials = plan(trials=3)
    trials[1].state = "running"
    (tmp_path / "job.yaml").write_text("name: reviews\ntask: text_classification\n")
    write_start(folder, "orchestrator run job.yaml train.minutes=20")
    record.started = time.time()
    record.save(folder / FINGERPRINT)
    for trial in trials:
        write_trial(folder / FINGERPRINT, trial)
    return folder


def followed(run: Folder) -> tuple[FollowedRun, FollowedSweep]:
    assert run.local_path is not None
    return Catalog(Folder(str(run.local_path.parent))).sweep("reviews", FINGERPRINT)


# Stopping


def test_a_request_to_stop_lies_in_the_folder_of_the_sweep(run: Folder) -> None:
    with lease.hold(run, "reviews"):
        actions.stop_trial(*followed(run), 1)
        actions.stop_sweep(*followed(run))
    assert (run / FINGERPRINT / "requests").names() == ["stop", "stop-00001"]


def test_what_does_not_run_cannot_be_stopped(run: Folder) -> None:
    with pytest.raises(UserError, match="no process runs it"):
        actions.stop_sweep(*followed(run))
    with pytest.raises(UserError, match="not running"):
        actions.stop_trial(*followed(run), 1)
    with lease.hold(run, "reviews"):
        with pytest.raises(UserError, match="trial 0 is not running"):
            actions.stop_trial(*followed(run), 0)
        with pytest.raises(UserError, match="has no trial 7"):
            actions.stop_trial(*followed(run), 7)
    assert (run / FINGERPRINT / "requests").names() == []


# Resuming


def test_a_sweep_goes_on_by_the_command_that_began_it(
    run: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(actions, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr(actions.sys, "executable", "/bin/echo")
    monkeypatch.setenv(actions.TOKEN_VARIABLE, "not for others")
    _, log = actions.Resumer().resume(*followed(run))
    assert log == str(tmp_path / "runs" / "reviews" / "resumed.log")
    end = time.monotonic() + 10
    while not (text := Path(log).read_text()) and time.monotonic() < end:
        time.sleep(0.02)
    assert text == "-P -m orchestrator run job.yaml train.minutes=20\n"


def test_a_resumed_sweep_is_of_a_session_of_its_own(
    run: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "python"
    script.write_text(
        "#!/bin/sh\npwd; ps -o sid= -p $$; env | grep -c DASHBOARD_TOKEN; exec sleep 3\n"
    )
    script.chmod(0o755)
    monkeypatch.setattr(actions, "LOOK_SECONDS", 0.3)
    monkeypatch.setattr(actions.sys, "executable", str(script))
    monkeypatch.setenv(actions.TOKEN_VARIABLE, "not for others")
    resumer = actions.Resumer()
    log = Path(resumer.resume(*followed(run))[1])
    where, session, tokens = log.read_text().split()
    assert (where, tokens) == (str(tmp_path), "0")
    assert int(session) != os.getsid(0)
    assert resumer.is_running(followed(run)[1])
    with pytest.raises(UserError, match="still runs"):
        resumer.resume(*followed(run))


def test_a_command_that_fails_at_once_says_why(
    run: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\necho 'error: job.yaml: no such file'; exit 2\n")
    script.chmod(0o755)
    monkeypatch.setattr(actions.sys, "executable", str(script))
    with pytest.raises(UserError, match=r"ended with 2: error: job.yaml: no such file"):
        actions.Resumer().resume(*followed(run))


def test_a_run_that_is_held_is_not_resumed(run: Folder) -> None:
    with lease.hold(run, "reviews"), pytest.raises(UserError, match=f"process {os.getpid()}"):
        actions.Resumer().resume(*followed(run))


def test_a_finished_sweep_is_not_resumed(run: Folder) -> None:
    plan(trials=3)[0].model_copy(update={"state": "finished"}).save(run / FINGERPRINT)
    with pytest.raises(UserError, match="nothing to resume"):
        actions.Resumer().resume(*followed(run))


def test_a_sweep_of_another_machine_is_not_started_here(
    run: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(actions.socket, "gethostname", lambda: "elsewhere")
    with pytest.raises(UserError, match=r"run there, in .*: orchestrator run job.yaml train.minut"):
        actions.Resumer().resume(*followed(run))


@pytest.mark.parametrize(
    "command",
    [
        "rm -rf /",
        "orchestrator",
        "orchestrator export job.yaml /etc",
        "orchestrator prepare job.yaml",
        "sh -c 'orchestrator run'",
        "orchestrator run 'job.yaml",
        "orchestrator run --unt evaluate job.yaml",
        "orchestrator run -- job.yaml",
        "orchestrator run",
        "",
    ],
)
def test_nothing_but_our_own_stages_is_ever_started(
    run: Folder, tmp_path: Path, command: str
) -> None:
    (tmp_path / "runs" / "reviews" / "events.jsonl").unlink()
    write_start(run, command)
    with pytest.raises(UserError, match="start it by hand"):
        actions.Resumer().resume(*followed(run))


def started_by(run: Folder, tmp_path: Path, command: str) -> None:
    (tmp_path / "runs" / "reviews" / "events.jsonl").unlink()
    write_start(run, command)


PLANTED = "open('{}', 'a').write(__name__)\n"


def test_no_code_of_the_folder_is_run(
    run: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = tmp_path / "ran"
    (tmp_path / "orchestrator").mkdir()
    for name in ("orchestrator/__init__", "orchestrator/__main__", "sitecustomize", "yaml", "ray"):
        (tmp_path / f"{name}.py").write_text(PLANTED.format(ran))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["", ".", str(Path(__file__).parents[2])]))
    monkeypatch.setattr(actions, "LOOK_SECONDS", 60.0)
    with pytest.raises(UserError, match=r"ended with 2: error: job.yaml: data: is missing"):
        actions.Resumer().resume(*followed(run))
    assert not ran.exists()


@pytest.mark.parametrize("where", ["job.yaml", "base.yaml", "command line"])
def test_a_task_that_is_not_installed_here_is_not_run(
    run: Folder, tmp_path: Path, where: str
) -> None:
    ran = tmp_path / "ran"
    (tmp_path / "my_tasks.py").write_text(PLANTED.format(ran))
    task, override = "task: my_tasks:MyTask\n", ""
    if where == "command line":
        override = " task=my_tasks:MyTask"
    elif where == "base.yaml":
        (tmp_path / "base.yaml").write_text(task)
        (tmp_path / "job.yaml").write_text("name: reviews\nbase: base.yaml\n")
    else:
        (tmp_path / "job.yaml").write_text("name: reviews\n" + task)
    started_by(run, tmp_path, f"orchestrator run job.yaml{override}")
    with pytest.raises(UserError, match="my_tasks:MyTask: is not installed here"):
        actions.Resumer().resume(*followed(run))
    assert not ran.exists()


def test_a_task_that_is_installed_is_run(
    run: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "installed").mkdir()
    (tmp_path / "installed" / "my_tasks.py").write_text("")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "installed"))
    start = Start(["run", "job.yaml", "task=my_tasks:MyTask"], str(tmp_path), "here")
    actions._check_is_safe(start, followed(run)[0])


@pytest.mark.parametrize("override", ["name=other", "storage=elsewhere", "storage=s3://a/runs"])
def test_a_command_that_writes_to_another_run_is_not_started(
    run: Folder, tmp_path: Path, override: str
) -> None:
    started_by(run, tmp_path, f"orchestrator run job.yaml {override}")
    with pytest.raises(UserError, match="run it by hand"):
        actions.Resumer().resume(*followed(run))


def test_what_the_viewer_did_not_see_is_not_started(run: Folder, tmp_path: Path) -> None:
    seen = ("orchestrator run job.yaml", str(tmp_path))
    with pytest.raises(UserError, match=r"another one by now: orchestrator run job\.yaml train"):
        actions.Resumer().resume(*followed(run), seen)


def test_the_output_goes_through_no_link(run: Folder, tmp_path: Path) -> None:
    (tmp_path / "profile").write_text("mine")
    (tmp_path / "runs" / "reviews" / "resumed.log").symlink_to(tmp_path / "profile")
    with pytest.raises(UserError, match=r"resumed\.log: cannot be written"):
        actions.Resumer().resume(*followed(run))
    assert (tmp_path / "profile").read_text() == "mine"


def test_the_start_before_the_sweep_is_the_one_that_began_it(run: Folder) -> None:
    later = {"time": "2100-01-01T00:00:00Z", "host": socket.gethostname(), "directory": "/"}
    text = '{"time": "%(time)s", "stage": "run", "event": "started", "host": "%(host)s", '
    line = (text + '"directory": "/", "command": "orchestrator train other.yaml"}\n') % later
    assert run.local_path is not None
    with open(run.local_path / "events.jsonl", "a") as file:
        file.write(line)
    EventLog(run).write("run", "ended", exit_code=0)
    assert actions.find_start(*followed(run)).arguments[1] == "job.yaml"


# Commands to copy


@given(VALUES)
def test_a_job_reads_the_value_that_was_written(value: Any) -> None:
    assert parse_value(value_text(value)) == value


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.003, "0.003"),
        (1e-05, "1e-05"),
        ("gelu", "gelu"),
        ("1e-3", '"1e-3"'),
        ("true", '"true"'),
        ("", '""'),
        (True, "true"),
        (None, "null"),
        ([1, 0.5, "a"], '[1, 0.5, "a"]'),
        (math.inf, ".inf"),
        (2**70, str(2**70)),
    ],
)
def test_values_are_written_plainly_where_that_says_the_same(value: Any, text: str) -> None:
    assert value_text(value) == text


def test_overrides_are_quoted_for_a_shell() -> None:
    overrides = {"train.lr": 0.003, "model.x": "a b", "model.y": "$(reboot); 'x'", "z.l": [1, 2]}
    text = overrides_text(overrides)
    assert text.startswith("train.lr=0.003 'model.x=a b' ")
    assert [part.partition("=")[0] for part in shlex.split(text)] == list(overrides)
    assert shlex.split(text)[2] == "model.y=$(reboot); 'x'"


def test_the_command_trains_the_same_job_with_these_values() -> None:
    given = "run my job.yaml --until evaluate train.minutes=20 train.lr=1 tune.trials=3 --debug"
    start = Start([*shlex.split(given.replace("my job", "'my job'"))], "/home", "here")
    command = training_command(start, {"train.lr": 0.003, "model.activation": "gelu"})
    assert command == (
        "orchestrator train 'my job.yaml' train.minutes=20 train.lr=0.003 "
        "model.activation=gelu tune=null"
    )


def test_the_command_is_one_that_a_job_takes() -> None:
    path = str(Path(__file__).parents[2] / "jobs" / "language_modelling.yaml")
    start = Start(["run", path, "train.minutes=2", "tune.trials=3"], "/", "here")
    values = {"train.lr": 1e-05, "model.num_layers": 3}
    _, command, job, *overrides = shlex.split(training_command(start, values))
    loaded = load_job(job, overrides)
    assert command == "train" and loaded.tune is None
    assert (loaded.train.lr, loaded.model.num_layers, loaded.train.minutes) == (1e-05, 3, 2)

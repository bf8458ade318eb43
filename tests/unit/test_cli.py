"""The command line, as far as it goes without starting Ray."""

import fcntl
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

import orchestrator.cluster.connection
import orchestrator.pipeline
import orchestrator.serve.deploy  # as the commands do, but here no test's time counts it
from orchestrator.cli import main
from orchestrator.cli.commands import console
from orchestrator.cli.tables import stage_table
from orchestrator.display import TerminalDisplay
from orchestrator.errors import StageError, UserError
from orchestrator.job.file import load_job
from orchestrator.job.job import Job
from orchestrator.job.schema import json_schema
from orchestrator.progress import STAGES, Display, Stage, StageStatus
from orchestrator.run import Run
from orchestrator.storage.artifact import PreparedData, Shard
from orchestrator.storage.events import read_events

SOUND = (
    "name: a\ntask: language_modelling\ndata: {source: texts}\nmodel: {d_model: 16, num_heads: 2}\n"
)
COMMANDS = ["run", *STAGES, "plan", "status"]


@pytest.fixture(autouse=True)
def a_job_in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    Path("texts").mkdir()
    Path("texts/a.txt").write_text("some text\n\n" * 500)
    Path("job.yaml").write_text(SOUND)

    def connect() -> Any:
        raise AssertionError("Ray would have been started")

    monkeypatch.setattr(orchestrator.cluster.connection, "connect", connect)
    handler = signal.getsignal(signal.SIGTERM)
    before = ray.is_initialized()  # by the tests of the stages, where they came first
    yield
    signal.signal(signal.SIGTERM, handler)
    assert ray.is_initialized() == before


def run(*arguments: str) -> int:
    """The exit code, whether the command returned it or exited with it."""
    try:
        return main(list(arguments))
    except SystemExit as stop:
        assert isinstance(stop.code, int)
        return stop.code


def mistakes(capsys: pytest.CaptureFixture[str], *arguments: str, expected: int = 2) -> list[str]:
    """What is told of a command that its user got wrong: one `error:` line a problem."""
    code = run(*arguments)
    told = capsys.readouterr().err
    lines = told.splitlines()
    assert code == expected, told
    assert "Traceback" not in told
    assert lines
    assert all(line.startswith("error: ") for line in lines), told
    return lines


# Mistakes


@pytest.mark.parametrize("command", COMMANDS)
def test_a_missing_job_file_is_told_by_every_command(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (told,) = mistakes(capsys, command, "nowhere.yaml")
    assert "nowhere.yaml" in told


@pytest.mark.parametrize("command", COMMANDS)
def test_every_problem_of_a_job_file_is_one_line(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("job.yaml").write_text(SOUND + "train: {lrr: 1, steps: -1}\n")
    told = mistakes(capsys, command, "job.yaml", "cluster.workers=0")
    assert len(told) == 3
    assert any("job.yaml:5:9: train.lrr" in line for line in told)
    assert any("job.yaml:5:17: train.steps" in line for line in told)
    assert any("command line: cluster.workers" in line for line in told)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"[" * 500,
        b"name: [/red] [bold\n",
        b"name: !!int abc\n",
        b'name: "a\\nb"\n',
        b"task: .x:Y\n",
    ],
)
def test_no_job_file_brings_a_traceback(content: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    Path("job.yaml").write_bytes(content)
    assert all("job.yaml" in line for line in mistakes(capsys, "run", "job.yaml"))


def test_brackets_of_a_value_are_shown_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    (told,) = mistakes(capsys, "run", "job.yaml", "task='[bold]x[/bold]'")
    assert "[bold]x[/bold]" in told


@pytest.mark.parametrize("command", [*COMMANDS[:-1]])
@pytest.mark.parametrize("source", ["nowhere.txt", "empty", "job.yaml", "nosuch://host/x", "[]"])
def test_a_source_without_data_is_told_before_ray_is_started(
    source: str, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("empty").mkdir()
    (told,) = mistakes(capsys, command, "job.yaml", f"data.source={source}")
    assert "data.source" in told


def test_a_missing_column_is_told_before_ray_is_started(
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("table.csv").write_text("title,body\nx,y\n")
    (told,) = mistakes(capsys, "run", "job.yaml", "data.source=table.csv")
    assert all(word in told for word in ("table.csv", "'text'", "title, body"))


@pytest.mark.parametrize("command", ["run", "prepare", "train", "plan"])
def test_more_workers_than_cores_are_told_with_what_there_is(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    many = "4096"
    (told,) = mistakes(
        capsys, command, "job.yaml", f"cluster.workers={many}", f"train.global_batch_size={many}"
    )
    assert all(word in told for word in ("cluster.workers = 4096", f"room for {os.cpu_count()} "))


@pytest.mark.parametrize(
    "storage", ["file/below", "/proc/nowhere", "nosuch://host/x", "'a\\0b'", "''"]
)
def test_a_storage_that_cannot_be_written_is_told_at_once(
    storage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("file").write_text("x")
    storage = storage.replace("'", '"')
    (told,) = mistakes(capsys, "run", "job.yaml", f"storage={storage}")
    assert "storage" in told


def test_a_command_that_there_is_not_is_told_with_those_that_there_are(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run("fly") == 2
    told = capsys.readouterr().err
    assert all(command in told for command in COMMANDS)


def test_debug_shows_the_traceback_of_a_mistake() -> None:
    with pytest.raises(Exception, match=r"nowhere\.yaml"):
        main(["run", "nowhere.yaml", "--debug"])


def test_an_error_that_was_not_foreseen_is_one_line_and_exit_code_1(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run("prepare", "job.yaml") == 1  # all is well with it, so Ray would be started
    told = capsys.readouterr().err
    assert "error: AssertionError: Ray would have been started" in told
    assert "--debug" in told
    assert "Traceback" not in told


# One run at a time


def test_a_run_that_is_held_is_refused_with_its_holder_at_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with Run(load_job("job.yaml")).lease():
        for command in ("run", "prepare"):
            started = time.monotonic()
            (told,) = mistakes(capsys, command, "job.yaml", expected=75)
            assert time.monotonic() - started < 2
            assert f"process {os.getpid()} on {socket.gethostname()}" in told
        assert run("status", "job.yaml") == run("plan", "job.yaml") == 0
    assert run("prepare", "job.yaml") == 1  # nobody holds it any more: on to Ray


def test_a_lease_names_this_process_and_ends_with_its_block() -> None:
    lease = Run(load_job("job.yaml")).lease
    for _ in range(2):
        with lease(), open("runs/a/lease") as file:
            assert f"process {os.getpid()}" in file.read()
            with pytest.raises(OSError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_runs_of_other_names_do_not_hold_each_other() -> None:
    other = load_job("job.yaml", ["name=b"])
    with Run(load_job("job.yaml")).lease(), Run(other).lease():
        pass


# The story of a run


def story() -> list[tuple[str, str, str]]:
    events = read_events(Run(load_job("job.yaml")).folder)
    return [(event["stage"], event["event"], event.get("error", "")) for event in events]


def test_a_run_writes_down_its_start_and_why_it_ended() -> None:
    assert run("prepare", "job.yaml", "name=a") == 1
    started, ended = read_events(Run(load_job("job.yaml")).folder)
    assert (started["stage"], started["event"]) == ("run", "started")
    assert started["command"] == "orchestrator prepare job.yaml name=a"
    assert (started["process"], started["host"]) == (os.getpid(), socket.gethostname())
    assert (ended["event"], ended["exit_code"]) == ("ended", 1)
    assert ended["error"] == "AssertionError: Ray would have been started"


@pytest.mark.parametrize(
    ("error", "code", "stage_event", "text"),
    [
        (StageError("no room"), 1, "failed", "no room"),
        (UserError("a bad row"), 2, "failed", "a bad row"),
        (RuntimeError("a trace\nof lines"), 1, "failed", "RuntimeError: of lines"),
        (KeyboardInterrupt(), 130, "interrupted", ""),
    ],
)
def test_a_run_writes_down_which_of_its_stages_ended_and_how(
    error: BaseException, code: int, stage_event: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_two_stages(run: Run, until: Stage, connected: Any, display: Display) -> None:
        already = StageStatus("prepare", "finished", seconds=1.0)
        display.stage_finished(already, already=True)
        display.stage_started("tune")
        display.stage_finished(StageStatus("tune", "finished", seconds=2.0), already=False)
        display.stage_started("train")
        raise error

    monkeypatch.setattr(orchestrator.pipeline, "run_stages", run_two_stages)
    assert run("run", "job.yaml") == code
    assert story() == [
        ("run", "started", ""),
        ("tune", "started", ""),
        ("tune", "finished", ""),
        ("train", "started", ""),
        ("train", stage_event, text),
        ("run", "ended", text),
    ]


def test_a_run_that_is_refused_is_no_part_of_the_story() -> None:
    with Run(load_job("job.yaml")).lease():
        assert run("prepare", "job.yaml") == 75
    assert story() == []


def test_status_tells_the_end_of_the_story_or_all_of_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    events = Run(load_job("job.yaml")).events
    for step in range(30):
        events.write("train", "checkpoint", step=step, lost_steps=0)
    events.write("train", "worker lost", error="[/red] Traceback [bold] " + "a long story " * 20)
    assert run("status", "job.yaml") == 0
    told = capsys.readouterr().out
    assert "the last 20 of 31" in told
    assert "step 11, lost steps 0" in told
    assert "step 10," not in told
    assert "[/red] Traceback [bold]" in told
    assert " ".join(re.findall(r"\w+", told)).count("long") == 20  # folded, not cut
    assert run("status", "job.yaml", "--all") == 0
    assert "step 0, lost steps 0" in capsys.readouterr().out
    assert run("status", "job.yaml", "--json") == 0
    assert json.loads(capsys.readouterr().out)["events"] == read_events(events.folder)


def test_status_names_who_holds_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    holder = f"process {os.getpid()} on {socket.gethostname()} since "
    with Run(load_job("job.yaml")).lease():
        assert run("status", "job.yaml") == 0
        assert f"running: {holder}" in capsys.readouterr().out
        assert run("status", "job.yaml", "--json") == 0
        assert json.loads(capsys.readouterr().out)["holder"].startswith(holder)
    assert run("status", "job.yaml") == 0
    assert "running" not in capsys.readouterr().out
    assert run("status", "job.yaml", "--json") == 0
    assert json.loads(capsys.readouterr().out)["holder"] is None


def test_a_stage_that_is_begun_is_running_while_its_run_is_held() -> None:
    held = Run(load_job("job.yaml"))
    held.prepare_folder().write("part-00000.json", b"{}")
    assert held.status(held.holder())[0].state == "interrupted"
    with held.lease():
        assert held.status(held.holder())[0].state == "running"


@pytest.mark.parametrize(
    "content",
    [
        *("[]", "3", "{", "\xff"),
        '{"url": 3, "checkpoint": ""}',
        '{"url": "file:///etc/x", "checkpoint": "a"}',
        '{"url": "http://[", "checkpoint": "a"}',
        '{"url": "http://127.0.0.1:1"}',
    ],
)
def test_a_damaged_note_of_the_endpoint_is_none(content: str) -> None:
    given = Run(load_job("job.yaml"))
    given.folder.write("endpoint.json", content.encode("latin-1"))
    assert given.status(None)[-1].state == "pending"


def test_a_storage_may_begin_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert Run(load_job("job.yaml", ["storage=~/runs"])).folder.uri == f"{tmp_path}/home/runs/a"


def prepared_with(summary: str, notices: list[str]) -> None:
    """As `prepare` leaves it, in a folder that looks like markup."""
    job = load_job("job.yaml", ["storage=runs[bold]"])
    PreparedData(
        folder=Run(job).prepare_folder(),
        seconds=1.0,
        summary=summary,
        notices=notices,
        processor="tokenizer.json",
        splits={"train": [Shard(name="a", rows=70, bytes=9, sha256="0f")]},
        documents={},
        source_bytes=0,
    ).commit()


@pytest.mark.parametrize("command", ["status", "plan"])
def test_what_a_stage_has_to_say_of_its_artifact_stands_below_the_table(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    notices = ["data[1].csv: 3 rows were left out [/red]", "2 texts were cut"]
    prepared_with("7 rows of data[1].csv", notices)
    assert run(command, "job.yaml", "storage=runs[bold]") == 0
    told = capsys.readouterr().out
    assert "7 rows of data[1].csv" in told
    assert "! prepare: data[1].csv: 3 rows were left out [/red]\n" in told
    assert "! prepare: 2 texts were cut\n" in told


def test_notices_are_for_programs_too(capsys: pytest.CaptureFixture[str]) -> None:
    prepared_with("", ["2 texts were cut"])
    assert run("status", "job.yaml", "storage=runs[bold]", "--json") == 0
    assert json.loads(capsys.readouterr().out)["stages"]["prepare"]["notices"] == [
        "2 texts were cut"
    ]


def test_what_looks_like_markup_is_text(capsys: pytest.CaptureFixture[str]) -> None:
    display = TerminalDisplay(console)
    path = "runs[bold]/a[/x].csv"
    display.stage_finished(StageStatus("train", "finished", path, 1.0, "best [red] of a[1]"), False)
    console.print(stage_table([StageStatus("train", "finished", path, 1.0)]))
    told = capsys.readouterr().out
    assert "best [red] of a[1]" in told and path in told


def test_status_imports_neither_ray_nor_torch() -> None:
    Run(load_job("job.yaml")).events.write("train", "checkpoint")
    code = (
        "import sys; from orchestrator.cli import main; "
        "assert main(['status', 'job.yaml']) == 0; "
        "sys.exit(any(name.split('.')[0] in ('ray', 'torch') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE).returncode == 0


# Help


@pytest.mark.parametrize("command", COMMANDS)
def test_help_tells_of_every_argument(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(command, "--help") == 0
    told = capsys.readouterr().out
    assert all(word in told for word in ("JOB", "KEY=VALUE", "--debug", "examples:"))
    assert ("--until" in told.split("examples:")[0]) == (command == "run")
    assert ("--json" in told.split("examples:")[0]) == (command in ("status", "plan"))
    assert ("--all" in told.split("examples:")[0]) == (command == "status")


def test_the_help_tells_of_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--help") == 0
    told = capsys.readouterr().out
    commands = [*COMMANDS, "dashboard", "schema"]
    assert all(re.search(rf"^    {command}\s", told, re.MULTILINE) for command in commands)
    assert run("schema", "--help") == 0


def test_the_examples_of_the_help_are_commands_that_there_are(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run("run", "--help")
    lines = capsys.readouterr().out.split("examples:")[1].splitlines()
    examples = [line.split()[1:] for line in lines if line.strip().startswith("orchestrator ")]
    assert examples
    for example in examples:
        arguments = ["nowhere.yaml" if word.endswith(".yaml") else word for word in example]
        (told,) = mistakes(capsys, *arguments)  # the job file or the storage is all that they lack
        assert any(f"{word}: " in told for word in arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        ["job.yaml", "--json", "name=b"],
        ["--json", "job.yaml", "name=b"],
        ["job.yaml", "name=b", "--json"],
    ],
)
def test_options_may_stand_anywhere(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("status", *arguments) == 0
    assert json.loads(capsys.readouterr().out)["job"] == "b"


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--version") == 0
    assert capsys.readouterr().out.startswith("orchestrator ")


# What needs no Ray


def test_plan_prints_the_job_what_follows_and_the_stages(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run("plan", "job.yaml", "train.steps=7") == 0
    told = capsys.readouterr().out
    job, follows = json.JSONDecoder().raw_decode(told)
    assert Job.model_validate(job) == load_job("job.yaml", ["train.steps=7"])
    rows = [line.split("│") for line in told[follows:].splitlines() if "│" in line]
    cells = {row[1].strip(): [cell.strip() for cell in row[2:-1]] for row in rows}
    task = load_job("job.yaml").build_task()
    assert cells["parameters"] == [f"{task.build_model(2048, 1).num_parameters():,}"]
    assert cells["steps"] == ["7"]
    assert cells["source"][0].startswith("1 files")
    assert [stage for stage in STAGES if stage in cells] == list(STAGES)
    assert cells["tune"][0] == "skipped"


def test_plan_tells_what_it_chose_for_a_job_of_task_and_data_alone(
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("job.yaml").write_text("name: a\ntask: language_modelling\ndata: {source: texts}\n")
    assert run("plan", "job.yaml", "train.lr=0.5") == 0
    told = capsys.readouterr().out
    job, _ = json.JSONDecoder().raw_decode(told)
    assert job["model"]["num_layers"] == 4 and job["tokenizer"]["vocab_size"] == 1024
    chosen = "".join(line.split("│")[2] for line in told.splitlines() if "│" in line)
    assert "model.size = tiny" in " ".join(chosen.split())
    assert job["train"]["lr"] == 0.5 and "train.lr" not in told
    (Path("texts") / "a.txt").unlink()
    (problem,) = mistakes(capsys, "status", "job.yaml")
    assert "data.source = texts" in problem


def test_a_size_does_not_go_with_other_weights(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    Path("config.json").write_text('{"model_type": "gpt2", "vocab_size": 300, "n_layer": 1}')
    (problem,) = mistakes(capsys, "plan", "job.yaml", "model={init_from: ., size: tiny}")
    assert "job.yaml" in problem or "command line" in problem
    assert "model" in problem


def test_plan_and_status_leave_no_trace() -> None:
    before = sorted(Path().rglob("*"))
    assert run("plan", "job.yaml") == run("status", "job.yaml") == 0
    assert sorted(Path().rglob("*")) == before


def test_status_is_json_with_every_stage(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("status", "job.yaml", "--json") == 0
    status = json.loads(capsys.readouterr().out)
    assert status["job"] == "a"
    assert list(status["stages"]) == list(STAGES)
    assert {stage["state"] for stage in status["stages"].values()} == {"pending", "skipped"}
    assert status["stages"]["tune"]["state"] == "skipped"


def test_status_tells_of_a_stage_that_was_interrupted(capsys: pytest.CaptureFixture[str]) -> None:
    run("status", "job.yaml", "--json")
    folder = Run(load_job("job.yaml")).prepare_folder()
    folder.write("part-00000.json", b"{}")
    capsys.readouterr()
    assert run("status", "job.yaml", "--json") == 0
    prepare = json.loads(capsys.readouterr().out)["stages"]["prepare"]
    assert (prepare["state"], prepare["path"]) == ("interrupted", str(folder))


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"3", b"{}", b"\xff", b"[" * 100_000])
def test_a_damaged_manifest_is_named_and_no_mistake_of_the_user(
    content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Run(load_job("job.yaml")).prepare_folder()
    folder.write("manifest.json", content)
    assert run("status", "job.yaml") == 1
    (told,) = capsys.readouterr().err.splitlines()
    assert f"{folder}/manifest.json" in told


def test_a_changed_data_file_is_prepared_anew() -> None:
    before = Run(load_job("job.yaml")).prepare_folder()
    assert str(Run(load_job("job.yaml")).prepare_folder()) == str(before)
    Path("texts/b.txt").write_text("more\n")
    assert str(Run(load_job("job.yaml")).prepare_folder()) != str(before)


def test_schema_prints_the_schema(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("schema") == 0
    assert capsys.readouterr().out == json_schema()


def test_the_command_line_imports_no_ray_and_a_mistake_in_a_job_does_not_either() -> None:
    code = (
        "import sys; from orchestrator.cli import main; "
        "assert main(['run', 'nowhere.yaml']) == 2; "
        "sys.exit(any(name.split('.')[0] == 'ray' for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], stderr=subprocess.PIPE).returncode == 0

"""`ray job submit` on a cluster that is already running, with token authentication."""

import json
import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from orchestrator.storage.events import read_events
from orchestrator.storage.folder import Folder
from tests.drills.trainings import wait_until
from tests.integration.conftest import write_job, write_texts
from tests.ray_head import BIN, Head, free_port
from tests.unit.test_init_from import saved

ROOT = Path(__file__).parents[2]


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    return write_texts(tmp_path / "data")


def ray_job(head: Head, command: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    environment = {k: v for k, v in head.environment.items() if k != "RAY_ADDRESS"}
    return subprocess.run(
        [str(BIN / "ray"), "job", command, "--address", head.dashboard, *arguments],
        env=environment, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip


def submit(
    head: Head, *arguments: str, options: tuple[str, ...] = (), directory: Path = ROOT
) -> "subprocess.CompletedProcess[str]":
    entry = ["--", "python", "-m", "orchestrator", *arguments]
    return ray_job(head, "submit", "--working-dir", str(directory), *options, *entry)


def test_a_submitted_job_runs_all_stages_and_leaves_the_endpoint(
    head: Head, tmp_path: Path, texts: Path
) -> None:
    port = free_port()
    done = submit(
        head,
        "run",
        "jobs/language_modelling_debug.yaml",
        f"storage={tmp_path}/runs",
        f"data.source={texts}",
        "data.validation_fraction=0.1",
        "data.test_fraction=0.1",
        "tokenizer.vocab_size=300",
        f"serve.port={port}",
        "serve.route_prefix=/submitted",  # other tests have endpoints on this cluster
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "the endpoint stays deployed" in done.stdout
    body = {"prompt": "the the", "max_tokens": 4}
    url = re.findall(r"http://\S+/v1/completions", done.stdout)[-1]
    answer = httpx.post(url, json=body)
    assert answer.status_code == 200, answer.text
    assert answer.json()["model"] == "stdlib-lm-debug"


def test_a_submission_without_the_token_is_refused(head: Head) -> None:
    assert httpx.get(f"{head.dashboard}/api/jobs/").status_code == 401


def test_the_log_of_a_submitted_job_ends_with_the_error_of_its_user(head: Head) -> None:
    mistake = ("run", "jobs/language_modelling_debug.yaml", "train.lrr=1")
    done = submit(head, *mistake, options=("--submission-id", "mistake"))
    assert done.returncode == 1  # of `ray job submit`, whatever the command's own is
    told = "error: command line: train.lrr: unknown key; did you mean lr?"
    assert done.stdout.strip().splitlines()[-1] == told
    assert "failed with exit code 2" in done.stdout
    logs = ray_job(head, "logs", "mistake")
    assert logs.stdout.strip().splitlines()[-1] == told


def test_a_submitted_job_that_is_stopped_continues_when_it_is_submitted_again(
    head: Head, tmp_path: Path
) -> None:
    """Its data and its weights are in the working directory, of which Ray makes another copy."""
    first, second = tmp_path / "first", tmp_path / "second"
    saved(first / "weights")
    write_texts(first / "data")
    shutil.copytree(first / "data", second / "data")  # without the weights
    changes = {"data__source": "data", "name": "moved", "model": {"init_from": "weights"}}
    training = {"steps": 1200, "global_batch_size": 8, "micro_batch_size": 1}
    training |= {"eval_every": 1200}
    for folder in (first, second):
        write_job(folder, **changes, train=training, storage=str(tmp_path / "runs"))
    variables = {"PYTHONPATH": str(ROOT), "RAY_JOB_STOP_WAIT_TIME_S": "30"}
    environment = ("--runtime-env-json", json.dumps({"env_vars": variables}))
    run = Folder(str(tmp_path / "runs/moved"))

    def events(kind: str) -> list[dict[str, Any]]:
        return [event for event in read_events(run) if event["event"] == kind]

    options = (*environment, "--no-wait", "--submission-id", "to-be-stopped")
    submit(head, "train", "job.yaml", options=options, directory=first)
    wait_until(lambda: bool(events("checkpoint")), "checkpoint", lambda: "")
    time.sleep(1)
    started = time.monotonic()
    ray_job(head, "stop", "to-be-stopped")
    print(f"\nray job stop: {time.monotonic() - started:.1f} s")
    assert events("ended")[-1]["exit_code"] == 143
    last = events("checkpoint")[-1]["step"]
    assert 0 < last < 1200
    logs = ray_job(head, "logs", "to-be-stopped").stdout
    assert logs.strip().splitlines()[-1].startswith("terminated: what is finished is kept")

    done = submit(head, "train", "job.yaml", options=environment, directory=second)
    assert done.returncode == 0, done.stdout[-3000:]
    assert [event["step"] for event in events("resumed")] == [last]
    assert "weights is gone: a checkpoint continues" in " ".join(done.stdout.split())
    assert len([name for name in run.names() if name.startswith(("prepare-", "train-"))]) == 2

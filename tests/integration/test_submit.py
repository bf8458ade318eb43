"""`ray job submit` on a cluster that is already running, with token authentication."""

import re
import subprocess
from pathlib import Path

import httpx
import pytest

from tests.integration.conftest import write_texts
from tests.ray_head import BIN, Head, free_port

ROOT = Path(__file__).parents[2]


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    return write_texts(tmp_path / "data")


def submit(head: Head, *arguments: str) -> "subprocess.CompletedProcess[str]":
    environment = {k: v for k, v in head.environment.items() if k != "RAY_ADDRESS"}
    command = [str(BIN / "ray"), "job", "submit", "--address", head.dashboard]
    command += ["--working-dir", str(ROOT), "--", "python", "-m", "orchestrator", *arguments]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=240, check=False
    )


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


def test_an_error_in_a_submitted_job_is_in_its_log(head: Head, tmp_path: Path) -> None:
    done = submit(head, "run", "jobs/language_modelling_debug.yaml", "train.lrr=1")
    assert done.returncode != 0
    assert "train.lrr: unknown key; did you mean lr?" in done.stdout + done.stderr

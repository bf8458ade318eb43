"""Versions come and go under load, and no request fails: drills 28 and 29."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import ray
from ray import serve

from orchestrator.cluster.connection import Cluster
from tests.drills.load import Load
from tests.integration.conftest import orchestrate, write_job, write_texts
from tests.ray_head import Head, free_port

pytestmark = pytest.mark.timeout(600)
BODY = {"prompt": "the the of of and and to to a a in in that that is is", "max_tokens": 6}


@pytest.fixture
def environment(head: Head, connected: Cluster) -> Iterator[dict[str, str]]:
    yield {**os.environ, "RAY_ADDRESS": head.address}
    for name in serve.status().applications:
        serve.delete(name)


@pytest.fixture(scope="module")
def port() -> int:
    """Ray Serve keeps its first address."""
    return free_port()


@pytest.fixture
def job(tmp_path: Path, port: int) -> tuple[Path, str]:
    """A job, and the URL at which its model is served."""
    write_texts(tmp_path / "data")
    given = {"port": port, "canary_requests": 40, "canary": 0.3, "gate": 1.0, "max_tokens": 6}
    return write_job(tmp_path, serve=given), f"http://127.0.0.1:{port}"


def history(job: Path, environment: dict[str, str]) -> list[dict[str, Any]]:
    done = orchestrate("history", job, "--json", environment=environment)
    assert done.returncode == 0, done.stderr
    listed: list[dict[str, Any]] = json.loads(done.stdout)
    return listed


def served(url: str) -> str:
    """The version that answers now."""
    return str(httpx.post(f"{url}/v1/completions", json=BODY).headers["x-model-version"])


def test_versions_are_replaced_refused_and_rolled_back_without_a_failed_request(
    job: tuple[Path, str], environment: dict[str, str]
) -> None:
    file, url = job

    def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
        return orchestrate(*arguments, environment=environment)

    done = run("serve", str(file))
    assert done.returncode == 0, done.stderr
    first = served(url)
    with Load(url, BODY) as load:
        again = run("serve", str(file))
        assert again.returncode == 0 and "already served" in again.stdout
        assert set(load.versions) == {first}

        good = run("serve", str(file), "train.steps=31")
        assert good.returncode == 0, good.stderr
        second = served(url)
        assert second != first and set(load.versions) == {first, second}
        [_, updated] = history(file, environment)
        assert updated["outcome"] == "serving" and updated["version"] == second
        assert updated["figures"]["canary_new_answers"] >= 40
        assert updated["figures"]["canary_new_errors"] == 0

        time.sleep(3)
        load.reset()
        # It passes the test of the command, but refuses prompts that are longer than 16 tokens.
        bad = run("serve", str(file), "model.max_seq_len=16")
        assert bad.returncode == 1
        assert "as canary of 30% it fails" in bad.stderr and "the old one serves" in bad.stderr
        assert set(load.versions) == {second}

        worse = run("serve", str(file), "train.steps=1", "train.warmup_steps=1", "serve.gate=1%")
        assert worse.returncode == 1 and "serve.gate = 0.01 allows" in worse.stderr
        assert set(load.versions) == {second}

        back = run("rollback", str(file))
        assert back.returncode == 0, back.stderr
        assert served(url) == first
        nothing = run("rollback", str(file))
        assert nothing.returncode == 2 and "no version was served before" in nothing.stderr
    assert load.failures == [] and set(load.statuses) == {200}
    outcomes = [(each["action"], each["outcome"]) for each in history(file, environment)]
    assert outcomes == [
        ("deployed", "serving"),
        ("updated", "serving"),
        ("updated", "refused"),
        ("updated", "refused"),
        ("rolled back", "serving"),
    ]
    print(f"slowest answer: {load.slowest:.2f} s of {sum(load.statuses.values())}")


def test_a_command_killed_in_a_trial_leaves_the_old_version_serving(
    job: tuple[Path, str], environment: dict[str, str]
) -> None:
    file, url = job
    assert orchestrate("serve", file, environment=environment).returncode == 0
    first = served(url)
    command = [sys.executable, "-m", "orchestrator", "serve", str(file), "train.steps=31"]
    with Load(url, BODY, clients=1) as load:
        endless = ["serve.canary_requests=1000000", "serve.canary_seconds=1000"]
        update = subprocess.Popen(command + endless, env=environment, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while len(load.versions) < 2:
            assert time.monotonic() < deadline and update.poll() is None
            time.sleep(0.2)
        update.send_signal(signal.SIGKILL)
        update.wait()
        time.sleep(8)
        load.reset()
        time.sleep(3)
        assert set(load.versions) == {first}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=150)
        assert done.returncode == 0, done.stderr
        assert served(url) != first
    assert load.failures == [] and set(load.statuses) == {200}
    [_, killed, updated] = history(file, environment)
    assert (killed["outcome"], updated["outcome"]) == ("trying", "serving")


def test_a_killed_replica_fails_no_client_and_is_replaced(
    job: tuple[Path, str], environment: dict[str, str]
) -> None:
    file, url = job
    done = orchestrate("serve", file, "serve.replicas=2", environment=environment)
    assert done.returncode == 0, done.stderr
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="unused")  # tries again by itself
    name = f"model-{served(url)}"

    def replicas() -> list[Any]:
        actors = ray.util.state.list_actors(filters=[("state", "=", "ALIVE")], limit=1000)
        return [actor for actor in actors if name in (actor.name or "")]

    before = replicas()
    assert len(before) == 2
    killed_at = time.monotonic()
    os.kill(before[0].pid, signal.SIGKILL)
    back = None
    while time.monotonic() - killed_at < 15 or back is None:
        client.completions.create(model="tiny", prompt=BODY["prompt"], max_tokens=6)  # type: ignore[arg-type]
        if back is None and {a.actor_id for a in replicas()} - {a.actor_id for a in before}:
            states = serve.status().applications["tiny"].deployments[name].replica_states
            if sum(n for state, n in states.items() if state == "RUNNING") == 2:
                back = time.monotonic() - killed_at
        assert time.monotonic() - killed_at < 60
    assert back < 15, f"two replicas again after {back:.1f} s"


def test_replicas_follow_the_requests_to_none_and_back(
    job: tuple[Path, str], environment: dict[str, str]
) -> None:
    file, url = job
    quick = ["serve.replicas=[0,2]", "serve.slots=1"]
    done = orchestrate("serve", file, *quick, environment=environment)
    assert done.returncode == 0, done.stderr
    name = f"model-{served(url)}"

    def running() -> int:
        states = serve.status().applications["tiny"].deployments[name].replica_states
        return sum(count for state, count in states.items() if state == "RUNNING")

    def reaches(count: int, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while running() != count:
            assert time.monotonic() < deadline, f"{running()} replicas, not {count}"
            time.sleep(0.5)

    with Load(url, BODY, clients=12) as load:
        reaches(2, 60)
    reaches(0, 240)  # a replica a minute
    assert httpx.post(f"{url}/v1/completions", json=BODY, timeout=60).status_code == 200
    assert load.failures == []
